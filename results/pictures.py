"""Draw the pictures of the pages from their rows: `python results/pictures.py`, or those of the folders that you name.

The title of a study's picture is the finding of its page, the first line of its README.md. Without names, pictures
that show their rows already are left as they are.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import hero
import kernels
import map as overview
import pandas as pd
import widths
from matplotlib.figure import Figure
from pages.drawn import ROOT, Picture, content
from pages.study import CURVES, study_page
from pages.words import holds

from spectrum import load_results, plots, stats

ROWS = "results.jsonl"
LAYERS = {  # implementations of the layer, as `spectrum bench op` calls them, in words
    "spectrum": "this package",
    "grouped": "PyTorch's groups",
    "grouped, NCHW": "in default layout",
    "torch.compile": "compiled",
    "separate": "a call per segment",
    "block-diagonal": "zeros between segments",
}
BLUE, RED = "#0072B2", "#D55E00"  # of the curves that a title is about
GREYS = ("0.3", "0.45", "0.6")  # of the others


def finding(name: str) -> str:
    """The finding of a study: the title of its page."""
    page = (ROOT / "results" / name / "README.md").read_text(encoding="utf-8")
    return page.partition("\n")[0].removeprefix("# ")


def along(name: str, **wishes: Any) -> Figure:
    """Accuracy along the spectrum in a study."""
    return plots.spectrum_curve(load_results(ROOT / "results" / name), title=finding(name), **wishes)


def by_budget(name: str) -> Figure:
    """Accuracy in a study under each of its budgets."""
    return plots.budget_panels(load_results(ROOT / "results" / name), title=finding(name))


def compared(name: str) -> Figure:
    """All comparisons of a study."""
    page = study_page(name)
    return plots.forest(stats.contrasts(page.results, page.plan.contrasts), page.results, title=finding(name))


def effects(name: str) -> Figure:
    """What one change adds along the spectrum in a study."""
    pairs, margin = overview.EFFECTS[name]
    table = load_results(ROOT / "results" / name)
    return plots.difference_curve(table, pairs, margin=margin, title=finding(name), colors=[BLUE, *GREYS])


def teacher() -> Figure:
    """Accuracy of students along the spectrum under each teacher; students are called by their parameters."""
    table = load_results(ROOT / "results/teacher")
    sizes = table.groupby("width")["params"].median().div(1000)
    return along(
        "teacher", labels={f"width ×{width:g}": f"{size:.0f} k parameters" for width, size in sizes.to_dict().items()}
    )


def roofline() -> Figure:
    """Speed of the layer along the spectrum, ours and others'."""
    table = pd.read_csv(ROOT / "results/bench/amd-epyc/op.csv")
    colors = dict.fromkeys(LAYERS, GREYS[1]) | {"spectrum": BLUE, "grouped": RED}
    return plots.roofline_curve(table, title=_slowest(table), labels=LAYERS, colors=colors)


def _slowest(table: pd.DataFrame) -> str:
    """Where PyTorch's grouped convolution is slowest, relative to the roofline."""
    grouped = table[(table["shape"] == table["shape"].iloc[0]) & (table["way"] == "grouped")]
    even = grouped[grouped["channels_per_segment"] % 1 == 0].sort_values("percent")
    slowest = even[["segments", "channels_per_segment"]].iloc[:2].to_numpy().tolist()
    title = "PyTorch is slowest at 2 and 4 channels per segment (64 and 32 segments)"
    return holds(slowest == [[64, 2], [32, 4]], title)


STUDIES = {
    "activation": effects, "bsconv": compared, "curve": by_budget, "curve_cifar10": by_budget, "families": along,
    "larger": along, "order": effects, "residual": effects, "schedule": by_budget, "sizes": compared,
    "teacher": lambda name: teacher(), "teacher_pilot": along,
}  # fmt: skip


def pictures() -> list[Picture]:
    """All pictures that pages show, in the order of their paths."""
    curves = tuple(f"results/{name}/{ROWS}" for name in CURVES)
    effects_of = tuple(f"results/{name}/{ROWS}" for name in overview.EFFECTS)
    found = [
        Picture("results/bench/roofline.png", ("results/bench/amd-epyc/op.csv",), roofline),
        Picture("results/kernels/fronts.png", ("results/kernels/steps.csv", curves[1]), kernels.draw),
        Picture("results/map.png", (*curves, *effects_of), overview.draw),
        Picture("results/widths.png", curves, widths.draw),
    ]
    found += [Picture(f"results/hero_{name}.png", curves[1:], partial(hero.draw, name)) for name in hero.THEMES]
    found += [
        Picture(f"results/{name}/figure.png", (f"results/{name}/{ROWS}",), partial(draw, name))
        for name, draw in STUDIES.items()
    ]
    return sorted(found, key=lambda one: one.path)


def main(names: list[str]) -> None:
    """Write the pictures whose paths contain one of these names; without names, those that are stale."""
    for picture in pictures():
        wanted = any(name in picture.path for name in names)
        if wanted or (not names and picture.said() != {"Rows": picture.rows, "Drawn": content(picture.draw())}):
            picture.write()
            sys.stdout.write(f"{picture.path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Write the pages of the studies and of the map from their templates: `make readmes`.

Each results/STUDY/README.md.jinja is prose with expressions. Every measured number is computed here from the rows. A
claim that the rows contradict is an error. The tests render the pages again and compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from kernels import Steps
from pages.bench import Benches
from pages.study import complete, has_rows, study_page
from pages.templates import environment
from pages.words import (
    ahead,
    as_set,
    holds,
    listed,
    p_value,
    published,
    reversed_verdict,
    signed,
    with_interval,
)

from spectrum._files import write_whole
from spectrum.analysis.sentences import pp

RESULTS = Path(__file__).parent
DATASETS = dict.fromkeys(("curve_cifar10", "families", "larger"), "CIFAR-10")


def has_steps(folder: Path) -> bool:
    """Whether a folder has step times of a study's networks."""
    return (folder / "steps.csv").exists()


def has_benches(folder: Path) -> bool:
    """Whether a folder has benchmarks of machines."""
    return any(folder.glob("*/op.csv"))


def templates() -> list[Path]:
    """Templates of all pages whose studies have rows or step times, of the benchmarks and of the summary."""
    found = sorted(RESULTS.rglob("README.md.jinja"))
    known = (has_rows, has_steps, has_benches)
    return [path for path in found if path.parent == RESULTS or any(has(path.parent) for has in known)]


def render(template: Path) -> str:
    """Render a page from today's rows."""
    pages_of = environment()
    pages_of.filters |= {
        "pp": pp,
        "signed": signed,
        "with_interval": with_interval,
        "ahead": ahead,
        "as_set": as_set,
        "listed": listed,
        "p_value": p_value,
        "reversed_verdict": reversed_verdict,
        "median": lambda values: float(median(list(values))),
        "width_of": lambda channels, segments: f"{channels / segments:g}",
        "best_of": lambda model, study: study.compare.best(model=model).label,
        "mismatch": lambda study, *matches: study.costs.worst_mismatch(*matches),
        "largest": lambda values: max(values, default=0.0),
        "fewest_params": lambda rows: rows["params"].min(),
        "most_params": lambda rows: rows["params"].max(),
        "contrast_of": lambda end, start, study: study.compare.contrast(start + end),
        "verdict_of": lambda name, study: study.compare.contrast(name).verdict,
    }
    own, whole = template.parent.name, template.parent != RESULTS and has_rows(template.parent)
    return pages_of.get_template(str(template.relative_to(RESULTS))).render(
        own=study_page(own) if whole else None,
        study=study_page,
        dataset=DATASETS.get(own, "Fashion-MNIST"),
        dataset_of=lambda study: DATASETS.get(study.name, "Fashion-MNIST"),
        complete=complete,
        holds=holds,
        published=published,
        steps=Steps(),
        bench=Benches(),
    )


PART = re.compile(r"(<!-- (findings|hero): make readmes -->\n).*?(<!-- end -->)", re.DOTALL)


FRONT_PAGES = (RESULTS.parent / "README.md", RESULTS.parent / "docs/index.md")  # with the hero's caption, findings


def with_parts(page: Path) -> str:
    """A front page with the hero's caption and the findings, computed from today's rows."""
    up = "../" * len(page.relative_to(RESULTS.parent).parents[1:])

    def written(found: re.Match[str]) -> str:
        text = render(RESULTS / f"{found[2]}.md.jinja").replace("(results/", f"({up}results/")
        return found[1] + text + found[3]

    return PART.sub(written, page.read_text(encoding="utf-8"))


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with its text."""
    for template in templates():
        yield template.with_suffix(""), render(template)
    for page in FRONT_PAGES:
        yield page, with_parts(page)


if __name__ == "__main__":
    for path, text in list(pages()):  # all pages are rendered before one is written
        write_whole(path, text)

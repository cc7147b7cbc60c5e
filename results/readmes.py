"""Write the pages of the studies of the map from their templates: `make readmes`.

Each results/STUDY/README.md.jinja is prose; every figure in it is computed here from the rows, so that none is typed by
hand and a page cannot say what its rows do not. The tests render the pages again and compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from kernels import Steps
from shown import complete, has_rows, interval, shown
from templates import environment

from spectrum._files import write_whole
from spectrum.analysis.plots import literature
from spectrum.analysis.sentences import points

RESULTS = Path(__file__).parent
DATASETS = dict.fromkeys(("curve_cifar10", "families", "larger"), "CIFAR-10")


def places(labels: Sequence[str]) -> str:
    """Places on the spectrum in words, listed."""
    words = {"1, no 1×1": "the bare convolution", "per channel": "one a channel"}
    return listed([words.get(label, label) for label in labels])


def listed(words: Sequence[object]) -> str:
    """Words with commas, the last with "and"."""
    said = [str(word) for word in words]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def holds(condition: bool, text: str) -> str:
    """A claim in words, which the rows must bear out. Raises ValueError where they do not."""
    if not condition:
        raise ValueError(f"the rows do not say: {text}")
    return text


def published(work: str, segments: int) -> str:
    """What a work reports that so many segments give over its own 1 segment, in points of top-1 error."""
    found = literature().set_index(["work", "segments"])["gain"]
    return points(found[work, segments] / 100, sign=True)


def has_steps(folder: Path) -> bool:
    """Whether a study's networks were timed there."""
    return (folder / "steps.csv").exists()


def templates() -> list[Path]:
    """Templates of all pages whose studies have rows, or times."""
    found = sorted(RESULTS.rglob("README.md.jinja"))
    return [path for path in found if path.parent == RESULTS or has_rows(path.parent) or has_steps(path.parent)]


def render(template: Path) -> str:
    """A page as its rows say it today."""
    pages_of = environment()
    signed = lambda value: points(value, sign=True)  # noqa: E731
    pages_of.filters |= {
        "points": points,
        "signed": signed,
        "listed": listed,
        "places": places,
        "median": lambda values: float(median(list(values))),
        "width_of": lambda channels, segments: f"{channels / segments:g}",
        "best_of": lambda model, study: study.best(model=model)["label"],
        "mismatch": lambda study, *matches: study.worst_mismatch(*matches),
        "largest": lambda values: max(values, default=0.0),
        "fewest_params": lambda rows: rows["params"].min(),
        "most_params": lambda rows: rows["params"].max(),
        "verdict_of": lambda name, study: study.contrast(name)["verdict"],
    }
    own, whole = template.parent.name, template.parent != RESULTS and has_rows(template.parent)
    return pages_of.get_template(str(template.relative_to(RESULTS))).render(
        own=shown(own) if whole else None,
        study=shown,
        dataset=DATASETS.get(own, "Fashion-MNIST"),
        complete=complete,
        holds=holds,
        published=published,
        steps=Steps(),
        interval=interval,
    )


CAPTION = re.compile(r"(<!-- caption: make readmes -->\n).*?(<!-- end -->)", re.DOTALL)


FRONT_PAGES = (RESULTS.parent / "README.md", RESULTS.parent / "docs/index.md")  # which show the map


def with_caption(page: Path) -> str:
    """A front page with the caption of the map as the rows say it today."""
    up = "../" * len(page.relative_to(RESULTS.parent).parents[1:])
    caption = render(RESULTS / "caption.md.jinja").replace("(results/", f"({up}results/")
    return CAPTION.sub(lambda found: found[1] + caption + found[2], page.read_text(encoding="utf-8"))


def pages() -> Iterator[tuple[Path, str]]:
    """Every page and its text."""
    for template in templates():
        yield template.with_suffix(""), render(template)
    for page in FRONT_PAGES:
        yield page, with_caption(page)


if __name__ == "__main__":
    for path, text in list(pages()):  # all or none
        write_whole(path, text)

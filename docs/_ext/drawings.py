"""Figures of the pages, drawn at build, and numbers: from the package itself, and from rows in results/.

Figures go to docs/_figures, each as NAME_light.svg and NAME_dark.svg; pages name the light one, and the site shows the
one that fits. Numbers are what `reference.py` writes into pages.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from repository import DOCS, ROOT, write
from sphinx.application import Sphinx

from spectrum import build_model, load_results, load_study, measure_cost, plots, stats
from spectrum.conv.segments import Segments, segment_sizes
from spectrum.study.contrasts import examine
from spectrum.study.planning import plan_study

CHANNELS = 12
SHOWN: list[tuple[Segments, str]] = [
    (1, "1 segment"),
    (3, "3 segments"),
    (5, "5 segments, uneven"),
    ("per_channel", "one segment per channel"),
]
SHADES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"]
GREY = "0.6"
CURVES = {"Fashion-MNIST": "curve", "CIFAR-10": "curve_cifar10"}
PALE = "#c9d1d9"
THEMES: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color"), PALE
    )
    | {"grid.color": "0.35", "legend.facecolor": "none"},
}


def segments_figure() -> Figure:
    """Input channels, a dense 1×1, channels in segments, and the spatial convolution inside each."""
    figure = Figure(figsize=(8.6, 3.4))
    for ax, (segments, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        for a in range(CHANNELS):
            for b in range(CHANNELS):
                ax.plot([0, 1], [a, b], "-", color=GREY, lw=0.3, zorder=1)
        first = 0
        for number, size in enumerate(segment_sizes(CHANNELS, segments)):
            inside, shade = range(first, first + size), SHADES[number % len(SHADES)]
            for a in inside:
                for b in inside:
                    ax.plot([1, 2], [a, b], "-", color=shade, lw=0.6, zorder=1)
            for x in (1, 2):
                ax.scatter([x] * size, inside, color=shade, marker="o", s=22, zorder=3)
            ax.add_patch(Rectangle((0.86, first - 0.42), 1.28, size - 0.16, fill=False, ec=shade, lw=0.9, zorder=2))
            first += size
        ax.scatter([0] * CHANNELS, range(CHANNELS), color=GREY, marker="o", s=22, zorder=3)
        ax.set_title(title)
        ax.set_xlim(-0.25, 2.3)
        ax.set_ylim(CHANNELS - 0.3, -0.8)
        ax.set_xticks([0.43, 1.5], ["1×1", "3×3"])
        _bare(ax)
    return figure


def kernels_figure() -> Figure:
    """Which pairs of channels have a kernel: the dense convolution's weight, block-diagonal in segments."""
    figure = Figure(figsize=(8.6, 2.6))
    for ax, (segments, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        sizes, first = segment_sizes(CHANNELS, segments), 0
        for number, size in enumerate(sizes):
            for place in np.ndindex(size, size):
                corner = (first + place[1] + 0.06, first + place[0] + 0.06)
                ax.add_patch(Rectangle(corner, 0.88, 0.88, color=SHADES[number % len(SHADES)], lw=0))
            first += size
        ax.set_xlim(0, CHANNELS)
        ax.set_ylim(CHANNELS, 0)
        ax.set_aspect("equal")
        ax.set_title(f"{title}\n{sum(size**2 for size in sizes)} kernels")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel("input channel")
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set(visible=True, color=GREY)
    figure.axes[0].set_ylabel("output channel")
    return figure


def capacity_figure() -> Figure:
    """What the network `probe` costs along the spectrum, at its own widths."""
    counts = [1, 2, 4, 8, 16, 32, 64, 128]
    costs = [_probe_cost(count) for count in counts]
    figure = Figure(figsize=(5.6, 3.4))
    ax = figure.add_subplot()
    for name, label in (("params", "parameters"), ("macs", "MACs of one image, forward")):
        values = np.array([getattr(cost, name) for cost in costs]) / getattr(costs[-1], name)
        ax.plot(counts, values, label=label)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(counts, [*map(str, counts[:-1]), "per\nchannel"])
    ax.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    ax.set_xlabel("segments")
    ax.set_ylabel("times the per-channel network")
    ax.legend()
    return figure


FIGURES = {"segments": segments_figure, "kernels": kernels_figure, "capacity": capacity_figure}


def capacity() -> Iterator[str]:
    """What the fall in cost along the spectrum is, as a sentence."""
    few, many = (_probe_cost(segments) for segments in (1, "per_channel"))
    yield f"From one segment per channel to 1 segment, parameters grow {few.params / many.params:.1f}-fold and MACs"
    yield f"{few.macs / many.macs:.1f}-fold."
    yield "A curve of accuracy over this axis is a curve of capacity. The budget decides what it shows:"


def confounded() -> Iterator[str]:
    """What `spectrum plan experiments/bsconv.toml` prints of its first comparison.

    The networks are planned for digits of the same size, with as many channels and classes: they come with the package.
    """
    from spectrum.cli.printing import out, print_contrast

    study = load_study(ROOT / "experiments/bsconv.toml")
    base = study.base.model_copy(update={"dataset": "digits", "train_images": None})
    first = study.model_copy(update={"base": base, "contrasts": study.contrasts[:1], "axes": {"seed": (0,)}})
    (examined,) = examine(first, plan_study(first))
    with out.capture() as printed:
        print_contrast(examined.record())
    yield from ("```", *printed.get().splitlines(), "```")


def floor() -> Iterator[str]:
    """What is known of one accuracy from a number of test images."""
    accuracy, images = 0.9, 10_000
    half = 100 * stats.noise_floor(accuracy, images)
    yield f"**Seeds are not images.** {images:,} test images leave ±{half:.2f} pp (95%, `stats.noise_floor`) around one"
    yield f"accuracy of {accuracy:.0%}. More seeds do not remove this: all of them are tested on the same images."


def optima() -> Iterator[str]:
    """The possible optima under teachers."""
    rows = load_results(ROOT / "results/teacher")
    rows = rows[rows["width"] == 1.0]
    many, one = (stats.optimum(rows[rows["teacher_segments"] == teacher]) for teacher in ("per_channel", 1))
    possible = ", ".join(many.loc[many["in_set"], "label"])
    yield "[results/teacher](../results/teacher/README.md) compares parameter-matched students. Under a per-channel"
    yield f"teacher, the possible optima (95% set) are {{{possible}}}. Under a coupled teacher (1 segment),"
    yield f"{one.loc[one['best'], 'label'].iloc[0]} segments have the highest mean (exploratory)."


def matched() -> Iterator[str]:
    """What per-channel gains over few segments under two budgets, on two data sets, and what that shows."""
    seeds = load_results(ROOT / "results/curve")["seed"].nunique()
    budgets = {"none": "width-matched", "params": "parameter-matched"}
    yield f"| per-channel minus … (pp) | {' | '.join(f'{data}, {b}' for data in CURVES for b in budgets.values())} |"
    yield "|---|---|---|---|---|"
    found = {
        (segments, data, match): _difference(folder, match, segments)
        for segments in (1, 4)
        for data, folder in CURVES.items()
        for match in budgets
    }
    for segments, name in ((1, "1 segment"), (4, "4 segments")):
        cells = [_with_interval(found[segments, data, match]) for data in CURVES for match in budgets]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield f"*Differences of mean test accuracy in percentage points, with 95% CIs over {seeds} paired seeds;"
    yield "positive where the per-channel network is better.*"
    yield ""
    shown = {key for key, difference in found.items() if difference.low > 0}
    if shown != {key for key in found if key[1:] != ("Fashion-MNIST", "none")}:
        raise ValueError(f"the page says that all differences but two are shown; the rows show {shown}")
    yield "Parameter-matched, all differences are shown. Width-matched, those on CIFAR-10 are shown but smaller, and"
    yield "those on Fashion-MNIST are not shown."


def _probe_cost(segments: Any) -> Any:
    return measure_cost(build_model("probe", segments=segments, in_channels=1, image_size=28), (1, 28, 28))


def _difference(folder: str, match: str, segments: int) -> stats.Difference:
    """Mean test accuracy of per-channel minus that of some segments, over paired seeds of one study."""
    whole = {"match": match, "pointwise": True}
    sides = [{"segments": "per_channel", **whole}, {"segments": segments, **whole}]
    return stats.contrast(load_results(ROOT / "results" / folder), sides)


def _with_interval(found: stats.Difference) -> str:
    """A difference in percentage points."""
    mean, low, high = (100 * x for x in (found.mean, found.low, found.high))
    return f"{_signed(mean)} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _bare(ax: Axes) -> None:
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def draw(app: Sphinx, config: Any) -> None:
    fixed: dict[str, Sequence[str] | str] = {"svg.hashsalt": "spectrum", "svg.fonttype": "path"}
    for theme, colours in THEMES.items():
        with plots.style(), mpl.rc_context({**fixed, **colours}):
            for name, make in FIGURES.items():
                content = io.BytesIO()
                make().savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
                write(DOCS / "_figures" / f"{name}_{theme}.svg", content.getvalue())


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", draw)
    return {"parallel_read_safe": True}

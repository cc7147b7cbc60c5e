"""Draw the map of the spectrum, results/map.png, from the rows of its studies, for `pictures.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages.study import CURVES, complete

from spectrum import load_results, plots
from spectrum.analysis.plots.drawing import spectrum_axis
from spectrum.analysis.plots.frame import name_at_ends
from spectrum.analysis.plots.words import Wishes
from spectrum.analysis.table import studies_of

RESULTS = Path(__file__).parent
TYPE = 7.5  # font size of legends and captions, in points
EFFECTS: dict[
    str, tuple[list[tuple[dict[str, Any], dict[str, Any]]], float]
] = {  # pairs that a study compares, and its margin
    "activation": ([({"activation": a}, {"activation": "none"}) for a in ("relu", "elu", "gelu", "silu")], 0.005),
    "order": ([({"order": "pointwise_first"}, {"order": "spatial_first"})], 0.005),
    "residual": ([({"residual": True}, {"residual": False})], 0.005),
}
TITLES = {
    "curve": "Fashion-MNIST",
    "curve_cifar10": "CIFAR-10 (JPEG re-encodings)",
    "gain": "Gain over 1 segment: ours MAC-matched;\ngrey: published, each its own budget",
    "activation": "Activation between 1×1 and 3×3\nminus none, parameter-matched",
    "order": "Pointwise-first minus spatial-first,\nMAC-matched",
    "residual": "With minus without residual connections,\nparameter-matched",
}
WORDS = {"ShuffleNet, of its 1×1": "ShuffleNet", "ResNeXt-50": "ResNeXt", "Fashion-MNIST": "Fashion"}  # short
COLOURS = ("#0072B2", "0.3", "0.45", "0.6")  # the first effect of a panel is its subject
WIDTH, HEIGHT = 7.0, 2.4  # inches, of the figure and of a row; fixed, so that text keeps its size on a page


@plots.style()
def draw() -> Figure:
    """Draw all finished studies of the map: the curves, gains next to published ones, and effects of one change."""
    curves = [name for name in CURVES if complete(name)]
    effects = [name for name in EFFECTS if complete(name)]
    more = (2 + len(effects)) // 2  # rows below the curves: gains, then a panel for each effect
    figure = Figure(figsize=(WIDTH, HEIGHT * (1 + more) + 0.7))
    rows = figure.subfigures(1 + more, 1, squeeze=False, height_ratios=[1.15] + [1] * more)[:, 0]
    above = rows[0].subplots(1, len(curves), squeeze=False)[0]
    below = [ax for row in rows[1:] for ax in row.subplots(1, 2)]
    used = {name: load_results(RESULTS / name) for name in (*curves, *effects)}
    for name, ax in zip(curves, above, strict=True):
        plots.spectrum_curve(used[name], ax=ax, caption=False)
        named = _unnamed(ax)
        _title(ax, f"{TITLES[name]}, n = {used[name]['seed'].nunique()}", used[name])
        ax.set_ylabel("test accuracy, %" if ax is above[0] else "")
    rows[0].legend(*named, loc="outside upper center", ncols=4, fontsize=TYPE, columnspacing=1.2)
    matched = pd.concat([used[name][used[name]["match"] == "macs"] for name in curves])
    plots.literature_curve(matched, ax=below[0], caption=False)
    named = _unnamed(below[0])
    _title(below[0], TITLES["gain"], matched[matched["pointwise"].astype(bool)])
    below[0].set_yticks([0, 5, 10])
    _name(below[0], *named)
    for name, ax in zip(effects, below[1:], strict=False):
        pairs, margin = EFFECTS[name]
        plots.difference_curve(used[name], pairs, margin=margin, ax=ax, caption=False, colors=COLOURS)
        named = _unnamed(ax)
        table = used[name][used[name]["pointwise"].astype(bool)]
        _title(ax, f"{TITLES[name]}, n = {table['seed'].nunique()}", table)
        _name(ax, *named)
    for ax in below[1 + len(effects) :]:
        ax.set_axis_off()
    for letter, ax in zip("abcdefgh", [*above, *below[: 1 + len(effects)]], strict=False):
        ax.set_title(f"{letter}  {ax.get_title(loc='left')}", fontsize=8.5, loc="left")
    figure.supxlabel(", ".join(studies_of(table) for table in used.values()), fontsize=7, color="0.45")
    return figure


def _title(ax: Axes, title: str, table: pd.DataFrame) -> None:
    """Set the title and the axes of a panel, with as many ticks as fit without names of curves next to it."""
    ax.set_title(title, fontsize=8.5, loc="left")
    spectrum_axis(ax, table, Wishes())
    ax.set_xlabel("segments of the 3×3")
    ax.set_ylabel("pp")


def _unnamed(ax: Axes) -> tuple[list[Artist], list[str]]:
    """Remove the library's labels, which take too much space in a narrow panel. Returns marks and labels."""
    handles, labels = ax.get_legend_handles_labels()
    for text in list(ax.texts):
        text.remove()
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    for handle in handles:
        handle.set_label("")
    return list(handles), labels


def _name(ax: Axes, handles: list[Artist], labels: list[str]) -> None:
    """Write the names of several curves at their ends instead of a legend."""
    for handle, label in zip(handles, labels, strict=True):
        handle.set_label("" if label.startswith("margin") else WORDS.get(label, label))
    name_at_ends(ax)

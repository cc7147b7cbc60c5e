"""Draw the map of the spectrum, results/map.png and .svg, from the rows of its studies: `python results/map.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages.study import CURVES, complete

from spectrum import load_results, plots
from spectrum.analysis.plots.drawing import CAPTION_CHARACTERS, wrapped
from spectrum.analysis.table import studies_of

RESULTS = Path(__file__).parent
EFFECTS: dict[
    str, tuple[list[tuple[dict[str, Any], dict[str, Any]]], float]
] = {  # a study, what it compares with what, and its margin
    "activation": ([({"activation": a}, {"activation": "none"}) for a in ("relu", "elu", "gelu", "silu")], 0.005),
    "order": ([({"order": "pointwise_first"}, {"order": "spatial_first"})], 0.005),
    "residual": ([({"residual": True}, {"residual": False})], 0.005),
}
TITLES = {
    "curve": "Fashion-MNIST",
    "curve_cifar10": "CIFAR-10, JPEG re-encodings",
    "activation": "a non-linearity between the halves\nless none, equal parameters",
    "order": "1×1 first less spatial first,\nat equal MACs",
    "residual": "residual connections less none,\nequal parameters",
}


NAMES = {"dataset fashion mnist": "Fashion-MNIST", "dataset cifar10": "CIFAR-10"}  # in the legend of gains


def draw() -> Figure:
    """All studies of the map that have rows: curves above, what a change of one factor does along them below."""
    curves = [name for name in CURVES if complete(name)]
    effects = [name for name in EFFECTS if complete(name)]
    with plots.style():
        figure = Figure(figsize=(3.4 * max(len(curves) + 1, len(effects)), 6.4 if effects else 3.4))
        rows = figure.subfigures(2 if effects else 1, 1, squeeze=False)[:, 0]
        above = rows[0].subplots(1, len(curves) + 1, squeeze=False)[0]
        below = rows[-1].subplots(1, len(effects), squeeze=False)[0] if effects else []
    used = []
    for name, ax in zip(curves, above, strict=False):
        table = load_results(RESULTS / name)
        used.append(table)
        plots.spectrum_curve(table, ax=ax)
        ax.set_title(_titled(name, table), fontsize=9, loc="left")
        _make_room_for_legend(ax, 0.35, "lower right")
    matched = pd.concat([table[table["match"] == "macs"] for table in used])
    plots.literature_curve(matched, ax=above[-1])
    above[-1].set_title(
        "gain over 1 segment, at equal MACs; grey:\npublished, ImageNet, each budget its own", fontsize=9, loc="left"
    )
    above[-1].set_xlabel("segments (ShuffleNet: of the 1×1)")
    for label in above[-1].get_legend().get_texts():
        label.set_text(NAMES.get(label.get_text(), label.get_text()))
    low, high = above[-1].get_ylim()
    above[-1].set_ylim(low, high + 0.55 * (high - low))
    for name, ax in zip(effects, below, strict=True):
        table = load_results(RESULTS / name)
        used.append(table)
        pairs, margin = EFFECTS[name]
        plots.difference_curve(table, pairs, margin=margin, ax=ax)
        ax.set_title(_titled(name, table), fontsize=9, loc="left")
        if len(pairs) > 1:
            _make_room_for_legend(ax, 0.6, "lower left")
        else:
            ax.get_legend().remove()  # what is grey stands above
    studies = ", ".join(studies_of(table) for table in used)
    grey = "grey band: ±0.5 points, the margin of equivalence at a place"
    said = f"bars: 95 % t-intervals over seeds, of differences paired by seed · {grey} · studies {studies}"
    figure.suptitle(wrapped(said, round(figure.get_figwidth() * CAPTION_CHARACTERS)), color="0.25", fontsize=7.5)
    return figure


def _titled(name: str, table: pd.DataFrame) -> str:
    return f"{TITLES[name]}, n = {table['seed'].nunique()}"


def _make_room_for_legend(ax: Axes, share: float, place: Literal["lower left", "lower right"]) -> None:
    low, high = ax.get_ylim()
    ax.set_ylim(low - share * (high - low), high)
    if (legend := ax.get_legend()) is not None:
        legend.set_loc(place)


if __name__ == "__main__":
    plots.save_figure(draw(), RESULTS / "map")

"""Draw the map of the spectrum, results/map.png and .svg, from the rows of its studies: `python results/map.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrum import load_results, plots, stats
from spectrum.analysis.plots.drawing import CAPTION_CHARACTERS, look_of, offset_of, setting_said, spectrum_axis, wrapped
from spectrum.analysis.table import SPLIT, has, studies_of

RESULTS = Path(__file__).parent
EFFECTS = {  # a study, what it compares with what, and its margin
    "activation": ([({"activation": a}, {"activation": "none"}) for a in ("relu", "elu", "gelu", "silu")], 0.005),
    "order": ([({"order": "pointwise_first"}, {"order": "spatial_first"})], 0.005),
    "residual": ([({"residual": True}, {"residual": False})], 0.005),
}
TITLES = {
    "curve": "Fashion-MNIST",
    "curve_cifar10": "CIFAR-10, JPEG re-encodings",
    "activation": "a non-linearity between the halves, less none",
    "order": "1×1 first less spatial first",
    "residual": "residual connections, less none",
}


def draw() -> Figure:
    """All studies of the map that have rows: curves above, what a change of one factor does along them below."""
    curves = [name for name in ("curve", "curve_cifar10") if (RESULTS / name).exists()]
    effects = [name for name in EFFECTS if (RESULTS / name).exists()]
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
        ax.set_title(TITLES[name], fontsize=9, loc="left")
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.35 * (high - low), high)  # room for the legend
        ax.get_legend().set_loc("lower right")
    matched = pd.concat([table[table["match"] == "params"] for table in used])
    plots.literature_curve(matched, ax=above[-1])
    above[-1].set_title(
        "gain over 1 segment, at equal parameters,\nbeside what others published", fontsize=9, loc="left"
    )
    for name, ax in zip(effects, below, strict=True):
        table = load_results(RESULTS / name)
        used.append(table)
        with plots.style():
            _effects(ax, table, *EFFECTS[name])
        ax.set_title(TITLES[name], fontsize=9, loc="left")
    studies = ", ".join(studies_of(table) for table in used)
    said = f"bars: 95 % t-intervals over paired seeds · grey: margin of equivalence · studies {studies}"
    figure.suptitle(wrapped(said, round(figure.get_figwidth() * CAPTION_CHARACTERS)), color="0.25", fontsize=7.5)
    return figure


def _effects(ax: Axes, table: pd.DataFrame, pairs: Sequence[Sequence[dict[str, Any]]], margin: float) -> None:
    """What each change does at every number of segments, paired by seed."""
    table = table.assign(position=stats.spectrum_position(table))
    ax.axhspan(-100 * margin, 100 * margin, color="0.9", lw=0, zorder=0)
    ax.axhline(0, color="0.4", lw=0.8)
    for number, between in enumerate(pairs):
        sides = table[has(table, between[0]) | has(table, between[1])]
        places, found = [], []
        for _, at in sides.groupby([*SPLIT], sort=False, dropna=False):
            places.append(float(np.exp(np.log(at["position"]).mean())) * offset_of(number, len(pairs)))
            found.append(stats.t_interval(100 * stats.differences_by_seed(at, between)))
        order = np.argsort(places)
        means = [found[i][0] for i in order]
        halves = [found[i][2] - found[i][0] if found[i][2] == found[i][2] else 0.0 for i in order]
        label = setting_said(list(between[0]), list(between[0].values())) if len(pairs) > 1 else None
        ax.errorbar(
            [places[i] for i in order], means, halves, capsize=2.5, elinewidth=1, label=label, **look_of(number)
        )
    spectrum_axis(ax, table)
    ax.set_ylabel("difference, points of test accuracy")
    if len(pairs) > 1:
        ax.legend()


if __name__ == "__main__":
    plots.save_figure(draw(), RESULTS / "map")

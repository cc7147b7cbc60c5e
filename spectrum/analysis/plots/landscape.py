"""The landscape: accuracy over the split of the convolutions and the width of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.cm
import matplotlib.colors
import matplotlib.patches
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from spectrum.analysis.landscape import cells_of, common_range, log_width_at
from spectrum.analysis.plots.costs import engineering
from spectrum.analysis.plots.drawing import axes_or_new, drawable, figure_of, metric_label, small, styled
from spectrum.analysis.plots.frame import name_ends, say
from spectrum.analysis.plots.words import Wishes
from spectrum.analysis.table import scored_metric
from spectrum.models import NetworkOptions, stage_widths

CONTOURS: dict[str, dict[str, Any]] = {  # how lines of a cost look, and what they are called
    "params": {"ls": "-", "unit": "parameters", "words": "full lines: the same parameters"},
    "macs": {"ls": (0, (3, 2)), "unit": "MACs", "words": "dashed: the same MACs"},
}


@styled
def landscape(
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    metric: str | None = None,
    contours: Sequence[str] = ("params", "macs"),
    levels: int = 2,
    title: str | None = None,
    caption: bool = True,
    colors: str = "viridis",
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Mean accuracy over split and log₂ width, with lines of equal cost drawn over it.

    Args:
        results: from `load_results`, of a study with an axis of widths and several splits.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        contours: costs to draw lines of, of "params" (full) and "macs" (dashed).
        levels: how many lines of each.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: a colour map of matplotlib.
        labels: your words for labels, such as {"plain 3×3": "ResNet's 3×3"}.

    A cell is one configuration: its mean over seeds in percent. A line joins the widths at which the splits have one
    cost, interpolated between their networks in the logarithm of the cost; walking along it is what a matched budget
    does. Only costs are drawn at which every split has smaller and larger networks. Plain convolutions, without a 1×1,
    are a column of their own, where a short line stands apart. Raises ValueError where something else varies, and for a
    cost that is not known.
    """
    metric = scored_metric(results) if metric is None else metric
    unknown = [cost for cost in contours if cost not in CONTOURS]
    if unknown:
        raise ValueError(f"contours={unknown[0]!r}: try {', '.join(map(repr, CONTOURS))}")
    table = drawable(results, metric)
    wishes = Wishes(title, caption, None, labels)
    cells = cells_of(table, metric)
    new = ax is None
    ax = axes_or_new(ax)
    means = 100 * cells.pivot_table(index="width", columns="label", values="accuracy", sort=False).sort_index()
    columns = _columns(cells)
    if new:
        figure_of(ax).set_size_inches(2.2 + 0.75 * max(columns.values()), 1.6 + 0.42 * len(means))
    norm = mpl.colors.Normalize(np.nanmin(means.to_numpy()), np.nanmax(means.to_numpy()))
    _draw_cells(ax, means, columns, norm, colors)
    ends = [end for cost in contours for end in _draw_contours(ax, cells, cost, columns, levels)]
    ax.set_xticks(list(columns.values()), list(map(wishes.called, columns)))
    ax.set_xlim(-0.5, max(columns.values()) + 0.5)
    ax.set_yticks(range(len(means)), _first_channels(table))
    ax.set_ylim(-0.5, len(means) - 0.5)
    name_ends(ax, ends)
    ax.grid(False)
    ax.set_xlabel(wishes.called("split of the 3×3 convolution"))
    ax.set_ylabel(wishes.called("width: channels of the first stage"))
    figure = figure_of(ax)
    shown = mpl.cm.ScalarMappable(norm, colors)
    figure.colorbar(shown, ax=ax, label=metric_label(metric))
    words = [CONTOURS[cost]["words"] for cost in contours]
    say(ax, table, ["width"], "cells: mean over seeds", *words, wishes=wishes, title="Accuracy by split and width")
    return figure


def _columns(cells: pd.DataFrame) -> dict[str, float]:
    """Where each split stands; plain convolutions apart from the others."""
    labels = dict.fromkeys(cells["label"])
    plain = set(cells.loc[~cells["pointwise"], "label"])
    gap = 0.4 if plain and len(plain) < len(labels) else 0.0
    return {label: place + (0.0 if label in plain else gap) for place, label in enumerate(labels)}


def _draw_cells(ax: Axes, means: pd.DataFrame, columns: Mapping[str, float], norm: Any, colors: str) -> None:
    shades = mpl.colormaps[colors]
    for label, place in columns.items():
        for row, mean in enumerate(means[label]):
            if mean != mean:  # no run there
                continue
            ax.add_patch(mpl.patches.Rectangle((place - 0.5, row - 0.5), 1, 1, color=shades(norm(mean)), lw=0))
            ink = "white" if norm(mean) < 0.55 else "black"
            text = ax.text(place - 0.45, row - 0.44, f"{mean:.1f}", va="bottom", fontsize=small(), color=ink, zorder=6)
            text.set_path_effects([withStroke(linewidth=2, foreground=shades(norm(mean)))])


def _draw_contours(
    ax: Axes, cells: pd.DataFrame, cost: str, columns: Mapping[str, float], levels: int
) -> list[tuple[float, str, str]]:
    """Lines of equal cost: at each split, the place between the rows whose networks have it; their ends and names."""
    named = []
    look, widths_of_rows = CONTOURS[cost], np.sort(cells["width"].unique())
    rows = np.log2(widths_of_rows), np.arange(len(widths_of_rows))
    for level in _levels(cells[cells["pointwise"]], cost, levels):
        widths = {str(label): log_width_at(split, cost, level) for label, split in cells.groupby("label", sort=False)}
        heights = {label: float(np.interp(width, *rows)) for label, width in widths.items()}
        curve = dict.fromkeys(cells.loc[cells["pointwise"], "label"])
        x, y = [columns[label] for label in curve], [heights[label] for label in curve]
        for color, lw in (("white", 3.0), ("black", 1.2)):
            ax.plot(x, y, color=color, ls="-" if color == "white" else look["ls"], lw=lw, marker="", zorder=4)
            for label in heights.keys() - curve.keys():
                ends = [columns[label] - 0.3, columns[label] + 0.3]
                ax.plot(ends, 2 * [heights[label]], color=color, ls=look["ls"], lw=lw, marker="", zorder=4)
        text = f"{engineering(float(f'{level:.2g}'))} {look['unit']}"
        named.append((y[-1], text, "black"))
    return named


def _levels(cells: pd.DataFrame, cost: str, levels: int) -> Sequence[float]:
    """Costs, evenly on a log scale, at which every split has smaller and larger networks; none where there are none."""
    low, high = common_range(cells, cost)
    return list(np.geomspace(low, high, levels + 2)[1:-1]) if low < high else []


def _first_channels(table: pd.DataFrame) -> list[str]:
    """Channels of the first stage at each width, from narrow to wide."""
    networks = table.sort_values("width").drop_duplicates("width")[["model", "width"]].itertuples(index=False)
    return [str(stage_widths(model, NetworkOptions(width=width))[0]) for model, width in networks]

"""Differences between settings, with the margin below which they count as equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrum.analysis.pairing import NoRunsError, differences_by_seed
from spectrum.analysis.plots.drawing import (
    METRIC_LABELS,
    axes_or_new,
    draw_intervals,
    drawable,
    figure_of,
    look_of,
    offset_of,
    say,
    setting_label,
    shortened,
    spectrum_axis,
    styled,
)
from spectrum.analysis.table import SPLIT, has, spectrum_position, varied_settings


@styled
def forest(contrasts: pd.DataFrame, results: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """All contrasts of a study: mean difference and 95 % t-interval of each, with its margin as a band.

    Args:
        contrasts: from `stats.contrasts`.
        results: the table that they were judged by; says data set, seeds and budget.
        ax: where to draw; by default a figure of its own.

    Solid marks are of contrasts with a verdict, open ones undecided. Slopes, in points a doubling of the segments, are
    named so. Contrasts without runs are left out. Raises ValueError when none is left.
    """
    if not {"n", "verdict"} <= set(contrasts):
        raise ValueError("forest: expected a table of stats.contrasts first, then the results that it is of")
    table = contrasts[contrasts["n"] > 0]
    if table.empty:
        raise ValueError("forest: no contrast has a run on every side")
    new = ax is None
    ax = axes_or_new(ax)
    if new:
        figure_of(ax).set_size_inches(6.4, 1.6 + 0.5 * len(table))
    color = look_of(0)["color"]
    for place, (_, row) in enumerate(table.iterrows()):
        decided = row["verdict"] not in ("undecided", "unknown")
        if row["margin"] == row["margin"]:
            band = (place - 0.32, place + 0.32)
            ax.fill_betweenx(band, -100 * row["margin"], 100 * row["margin"], color="0.9", lw=0, zorder=1)
        if row["low"] == row["low"]:
            ax.plot([100 * row["low"], 100 * row["high"]], [place, place], color=color, marker="|", ls="-", zorder=3)
        face = color if decided else "white"
        ax.plot(100 * row["mean"], place, marker="o", ms=6, mfc=face, mec=color, ls="", zorder=4)
    notes = table["kind"].map({"slope": "\n(a doubling)"}).fillna("")
    notes += table["confounded"].map({True: "\n(confounded)", False: ""})
    names = [f"{name}{note}" for name, note in zip(table["name"], notes, strict=True)]
    ax.set_yticks(range(len(table)), [shortened(name, 34, 4) for name in names])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("difference, points")
    say(ax, results, varied_settings(results), "bars: 95 % t-interval · band: margin · open: undecided")
    return figure_of(ax)


Sides = Sequence[Mapping[str, Any]]


@styled
def difference_curve(
    results: pd.DataFrame,
    between: Sides | Sequence[Sides],
    *,
    margin: float | None = None,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
) -> Figure:
    """The difference of two settings along the spectrum, paired by seed, with a band of equivalence.

    Args:
        results: from `load_results`.
        between: two sides, such as [{"order": "pointwise_first"}, {"order": "spatial_first"}]; or several such pairs, a
            curve each.
        margin: a difference below which they count as equivalent; drawn as a band.
        ax: where to draw; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in points.

    An interval that lies within the band shows equivalence at that place, at 2.5 % and by itself. The pairs of runs are
    drawn as dots where there is one curve. Bare convolutions, without a 1×1, are left out, and so are places where no
    seed has both sides. Raises ValueError where there is no other.
    """
    pairs: list[Any] = [between] if not between or isinstance(between[0], Mapping) else list(between)
    drawable(results, metric, [name for pair in pairs for side in pair for name in side])  # refuses what would mislead
    table = results[results["pointwise"].astype(bool)]  # failed runs too: they leave gaps
    table = table.assign(position=spectrum_position(table))
    found = [_by_place(table, pair, metric) for pair in pairs]
    ax = axes_or_new(ax)
    if margin is not None:
        ax.axhspan(-100 * margin, 100 * margin, color="0.9", lw=0, zorder=0, label=f"margin, ±{100 * margin:g} points")
    ax.axhline(0, color="0.4", lw=0.8)
    labels = [[setting_label(list(side), list(side.values())) for side in pair] for pair in pairs]
    for number, (differences, words) in enumerate(zip(found, labels, strict=True)):
        label = words[0] if len(pairs) > 1 else None
        _draw(ax, {place * offset_of(number, len(pairs)): one for place, one in differences.items()}, number, label)
    sided = table[np.logical_or.reduce([has(table, side) for pair in pairs for side in pair])]
    spectrum_axis(ax, sided)
    first, second = (" or ".join(dict.fromkeys(words)) for words in zip(*labels, strict=True))
    less = f"{first} − {second}" if len(pairs) == 1 else f"each − {second}"
    ax.set_ylabel(f"{less},\npoints of {METRIC_LABELS.get(metric, metric).removesuffix(', %')}")
    if margin is not None or len(pairs) > 1:
        ax.legend()
    dots = "dots: pairs of runs · " if len(pairs) == 1 else ""
    say(ax, sided, varied_settings(sided), f"{dots}line and bars: mean and 95 % t-interval")
    return figure_of(ax)


def _by_place(table: pd.DataFrame, pair: Sides, metric: str) -> dict[float, pd.Series]:
    """The differences at each place where both sides are, in points."""
    with suppress(NoRunsError):
        differences_by_seed(table, pair, metric=metric)  # that there are two sides, and that they pair
    found = {}
    sided = table[has(table, pair[0]) | has(table, pair[1])]
    for _, at in sided.groupby([*SPLIT], sort=False, dropna=False):
        try:
            values = differences_by_seed(at, pair, metric=metric)
        except NoRunsError:
            continue
        found[float(np.exp(np.log(at["position"]).mean()))] = 100 * values
    if not found:
        differences_by_seed(table, pair, metric=metric)  # says why
    return found


def _draw(ax: Axes, differences: Mapping[float, pd.Series], number: int, label: str | None) -> None:
    """One curve, with the pairs of runs as dots where it is the only one."""
    draw_intervals(ax, differences, number, label)
    if label is None:
        for place in differences:
            xs = [place * 2**-0.1] * len(differences[place])
            ax.plot(xs, differences[place], ls="", marker=".", ms=3.5, color="0.35", zorder=2)

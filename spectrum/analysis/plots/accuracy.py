"""Accuracy along the spectrum: one curve, several, or a panel for each budget, teacher or data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrum.analysis.plots.drawing import (
    ShownFigure,
    axes_or_new,
    drawable,
    error_bars,
    figure_of,
    listed_axis,
    looks_of,
    metric_axis,
    offset_of,
    places_of,
    small,
    spectrum_axis,
    styled,
)
from spectrum.analysis.plots.frame import MOST_NAMED, name_curves, sample, say, say_of_all, share_legend, title_panel
from spectrum.analysis.plots.words import Wishes, budgets_of, seeds_label
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import IMAGES, SPLIT, spectrum_position, split_labels, varied_settings
from spectrum.analysis.words import setting_label, setting_name

TITLE = "Accuracy along the spectrum"
OF_EACH = "Accuracy of each configuration"
MARKS = "mean and 95% CI; dots: runs"


def spectrum_title(results: pd.DataFrame) -> str:
    """What `spectrum_curve` of a table is called: there is no spectrum where all runs have one split."""
    return OF_EACH if len(set(split_labels(results))) == 1 and len(varied_settings(results)) else TITLE


def _marks(table: pd.DataFrame) -> str:
    """What is drawn; marks are open where a 1×1 is left out at a place that has one with it too."""
    return MARKS if table["pointwise"].all() else f"{MARKS}; open: no 1×1"


@styled
def spectrum_curve(
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
    by: str | Sequence[str] | None = None,
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Accuracy along the spectrum: every run, the mean over seeds and its 95% CI, on a log₂ axis.

    Args:
        results: from `load_results`.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in percent.
        by: the column or columns, such as "activation", each of whose values gets a curve; by default all settings
            that vary. What varies beside is averaged within a seed, so that n counts seeds.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the curves, in their order or by their labels.
        labels: your words for labels, such as {"no activation": "linear"}.

    Configurations stand at the segments that their widest layer really has, per-channel at one place, and a plain 3×3
    left of 1 segment. More than five curves stand in panels, one for each teacher, data set or other setting. Where
    stages have segments of their own, and where all have the same split, there is no such axis, and configurations
    stand side by side. Raises ValueError when no row has the metric.
    """
    names = [by] if isinstance(by, str) else list(by or ())
    drawable(results, metric, names)  # refuses what would mislead
    results = results.reset_index(drop=True)
    table = results[results[metric].notna()]
    names = varied_settings(table) if by is None else names
    wishes = Wishes(title, caption, colors, labels)
    groups = list(results.groupby(names, sort=False, dropna=False)) if names else [((), results)]
    curves = [(values, part) for values, part in groups if part[metric].notna().any()]  # failed runs leave gaps
    if table["stage_segments"].notna().any():
        ax = axes_or_new(ax)
        _side_by_side(ax, table, metric, names, curves, wishes)
        say(ax, table, names, MARKS, wishes=wishes, title=TITLE)
        return figure_of(ax)
    telling, along = telling_apart(names, [values for values, _ in curves])
    foot = along_label(telling, along)
    if len(curves) > 1 and len(set(split_labels(table))) == 1:
        ax = axes_or_new(ax)
        _listed(ax, table, metric, names, curves, wishes)
        say(ax, table, names, MARKS, wishes=wishes, title=OF_EACH, foot=foot)
        return figure_of(ax)
    if ax is None and len(curves) > MOST_NAMED and len(telling) > 1:
        return _panels(results, table, metric, telling, wishes, foot)
    ax = axes_or_new(ax)
    _draw_curves(ax, results, table, metric, (names, telling), curves, wishes)
    name_curves(ax)
    say(ax, table, names, _marks(table), wishes=wishes, title=TITLE, foot=foot)
    return figure_of(ax)


Named = tuple[Sequence[str], Sequence[str]]  # settings that vary, and those by which curves are called
Curves = Sequence[tuple[Any, pd.DataFrame]]


def _draw_curves(
    ax: Axes, results: pd.DataFrame, table: pd.DataFrame, metric: str, named: Named, curves: Curves, wishes: Wishes
) -> None:
    """Curves on one log₂ axis, each in its look."""
    names, telling = named
    called = [setting_label(telling, [values[names.index(name)] for name in telling]) for values, _ in curves]
    by_budget = list(telling) == ["match"]
    looks = looks_of([part["match"].iloc[0] if by_budget else None for _, part in curves], called, wishes)
    everywhere = places_of(results)
    for number, ((_, part), label, look) in enumerate(zip(curves, called, looks, strict=True)):
        places = everywhere[part.index] * offset_of(number, len(curves))
        for bare, group in part.groupby(~part["pointwise"].astype(bool), sort=True):
            name = None if bare else wishes.called(label)
            _curve(ax, group, metric, places[group.index], bare=bool(bare), look=look, label=name)
    spectrum_axis(ax, table, wishes)
    metric_axis(ax, metric, table, wishes)


def along_label(telling: Sequence[str], along: Sequence[str]) -> str:
    """What else differs from curve to curve."""
    if not along:
        return ""
    return f"{', '.join(map(setting_name, along))} change with the {setting_name(telling[0])}"


def telling_apart(names: Sequence[str], curves: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The settings by which curves are called, and those that only go along with these: of a study of architectures,
    the model has depth and norm along."""
    for name, *values in zip(names, *curves, strict=True):
        if len(names) > 1 and len(set(map(repr, values))) == len(curves) > 1:
            return [name], [other for other in names if other != name]
    return list(names), []


def _panels(
    results: pd.DataFrame, table: pd.DataFrame, metric: str, names: Sequence[str], wishes: Wishes, foot: str
) -> Figure:
    """A panel for each value of one setting, such as the teacher; in it a curve for each of the others."""
    over = _panel_setting(table, names)
    rest = [name for name in names if name != over]
    parts = list(results[results[metric].notna()].groupby(over, sort=False, dropna=False))
    figure, panels = grid_of(len(parts), 2.35, 2.3)
    called = list(dict.fromkeys(setting_label(rest, values) for values in combinations(table, rest)))
    looks = dict(zip(called, looks_of([None] * len(called), called, wishes), strict=True))
    for (value, part), ax in zip(parts, panels, strict=True):
        curves = list(part.groupby(rest, sort=False, dropna=False))
        there = [setting_label(rest, values) for values, _ in curves]
        own = Wishes(
            colors={label: looks[label]["color"] for label in there}, labels=wishes.labels, labelled=wishes.labelled
        )
        _draw_curves(ax, results, table, metric, (rest, rest), curves, own)
        title_panel(ax, wishes.called(setting_label([over], [value])))
    tidy(panels)
    share_legend(figure, [sample(wishes.called(label), look) for label, look in looks.items()])
    facts = f"{seeds_label(table, names)} · {budgets_of(table)} · {_marks(table)}"
    say_of_all(figure, table, facts, wishes=wishes, title=TITLE, foot=foot)
    return figure


def _panel_setting(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Of what panels are: images or teachers; else the setting that leaves at most five curves in few panels."""
    images = [name for name in IMAGES if name in names]
    if images:
        return images[0]

    def crowd(name: str) -> tuple[bool, int, int]:
        values_of = [values[names.index(name)] for values in combinations(table, names)]
        most = max(map(values_of.count, values_of))
        return most > MOST_NAMED, len(set(map(repr, values_of))), most

    return min(names, key=crowd)


def combinations(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The values of some settings that occur together, in the order of the table."""
    return list(table[list(names)].drop_duplicates().itertuples(index=False, name=None))


def grid_of(count: int, width: float, height: float, most: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels with the same axes; four are two by two."""
    across = 2 if count == 4 else min(most, count)
    down = -(-count // across)
    figure = ShownFigure(figsize=(0.7 + width * across, 0.4 + height * down))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in grid.flat[count:]:
        panel.remove()
    return figure, list(grid.flat[:count])


def tidy(panels: Sequence[Axes]) -> None:
    """Titles of the axes at the left and at the foot only, and labels of ticks where no panel is below."""
    taken = {_row_and_column(ax) for ax in panels}
    for ax in panels:
        row, column = _row_and_column(ax)
        if column:
            ax.set_ylabel("")
        if (row + 1, column) in taken:
            ax.set_xlabel("")
        else:
            ax.tick_params(labelbottom=True)


def _row_and_column(ax: Axes) -> tuple[int, int]:
    place = ax.get_subplotspec()
    assert place is not None
    return place.rowspan.start, place.colspan.start


@styled
def budget_panels(
    results: pd.DataFrame,
    *,
    metric: str = "test_accuracy",
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """The curve under each budget, in panels on one scale.

    Args:
        results: from `load_results`, of one study with several budgets or of several studies, joined by `pd.concat`.
        metric: a column of accuracies from 0 to 1; shown in percent.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, worst mismatches and study.
        colors: of the curves, in their order or by their labels; of the panels, where each has one curve.
        labels: your words for labels, such as {"MAC-matched": "equal MACs"}.

    Raises ValueError when no row has the metric.
    """
    table = drawable(results, metric).reset_index(drop=True)
    wishes = Wishes(title, caption, colors, labels)
    matches = list(dict.fromkeys(table["match"]))
    names = [name for name in varied_settings(table) if name != "match"]
    figure, panels = grid_of(len(matches), 2.9, 2.1)
    called = [setting_label(["match"], [match]) for match in matches]
    every = [()] if not names else combinations(table, names)
    telling, along = telling_apart(names, every)
    budget_looks = looks_of(matches, called, wishes)
    for match, label, look, ax in zip(matches, called, budget_looks, panels, strict=True):
        part = table[table["match"] == match]
        curves = list(part.groupby(names or ["match"], sort=False, dropna=False))
        own = wishes if names else Wishes(colors=[look["color"]], labels=labels, labelled=wishes.labelled)
        if table["stage_segments"].notna().any():
            _side_by_side(ax, table, metric, names or ["match"], curves, own, named=bool(names))
        else:
            _draw_curves(ax, table, table, metric, (names or ["match"], telling or ["match"]), curves, own)
        title_panel(ax, f"{wishes.called(label)}, {seeds_label(part, names)}")
    tidy(panels)
    if names:
        handles, _ = panels[0].get_legend_handles_labels()
        share_legend(figure, handles)
    say_of_all(
        figure, table, _marks(table), wishes=wishes, title=f"{TITLE}, by budget", foot=along_label(telling, along)
    )  # fmt: skip
    return figure


def _curve(
    ax: Axes,
    table: pd.DataFrame,
    metric: str,
    places: pd.Series,
    *,
    bare: bool,
    look: dict[str, Any],
    label: str | None,
) -> None:
    table = table.assign(place=places).sort_values("place")
    color = look["color"]
    ax.plot(table["place"] * 2**-0.07, 100 * table[metric], ls="", marker=".", ms=3.5, color=color, alpha=0.4, zorder=2)
    groups = summarise(table, [*SPLIT, "place"], metric)  # configurations that realise the same segments stay apart
    if groups.empty:
        return
    ax.errorbar(
        groups["place"],
        100 * groups["mean"],
        error_bars(groups),
        color=color,
        marker=look["marker"],
        mfc="white" if bare else color,
        ls="" if bare else look["linestyle"],
        capsize=2,
        elinewidth=1,
        zorder=3,
        label=label,
    )


def _side_by_side(
    ax: Axes,
    table: pd.DataFrame,
    metric: str,
    names: Sequence[str],
    curves: Curves,
    wishes: Wishes,
    *,
    named: bool = True,
) -> None:
    """Configurations that have no place on one axis: those of one segment number first, then schedules as they come."""
    order = table.assign(
        label=split_labels(table), place=spectrum_position(table), staged=table["stage_segments"].notna()
    )
    order.loc[order["staged"], "place"] = 0.0
    splits = list(dict.fromkeys(order.sort_values(["staged", "place"], kind="stable")["label"]))
    called = [setting_label(names, values) for values, _ in curves]
    by_budget = list(names) == ["match"]
    looks = looks_of([part["match"].iloc[0] if by_budget else None for _, part in curves], called, wishes)
    for number, ((_, part), label, look) in enumerate(zip(curves, called, looks, strict=True)):
        groups, part = summarise(part, SPLIT, metric), part[part[metric].notna()]
        apart = 0.16 * (number - (len(curves) - 1) / 2)
        ax.plot(
            [splits.index(split) + apart - 0.05 for split in split_labels(part)], 100 * part[metric],
            ls="", marker=".", ms=3.5, color=look["color"], alpha=0.4, zorder=2,
        )  # fmt: skip
        ax.errorbar(
            [splits.index(split) + apart for split in split_labels(groups)], 100 * groups["mean"], error_bars(groups),
            **look | {"linestyle": ""}, capsize=2, elinewidth=1, zorder=3, label=wishes.called(label),
        )  # fmt: skip
    listed_axis(ax, list(map(wishes.called, splits)))
    metric_axis(ax, metric, table, wishes)
    if named and names:
        name_curves(ax)


def _listed(ax: Axes, table: pd.DataFrame, metric: str, names: Sequence[str], curves: Curves, wishes: Wishes) -> None:
    """Configurations of one split: a row each, named at the left."""
    figure = figure_of(ax)
    if isinstance(figure, ShownFigure):
        figure.set_size_inches(6.4, 0.7 + 0.3 * len(curves))
    called = [setting_label(names, values) for values, _ in curves]
    by_budget = "match" in names
    budgets = [part["match"].iloc[0] for _, part in curves]
    looks = looks_of(list(dict.fromkeys(budgets)), list(dict.fromkeys(budgets)), wishes)
    of_budget = dict(zip(dict.fromkeys(budgets), looks, strict=True))
    for row, ((_, part), match) in enumerate(zip(curves, budgets, strict=True)):
        look = of_budget[match] if by_budget else looks[0]
        groups = summarise(part, SPLIT, metric)
        values = 100 * part[metric].dropna()
        ax.plot(values, np.full(len(values), row + 0.22), ls="", marker=".", ms=3.5, color=look["color"], alpha=0.4)
        bars = error_bars(groups)
        ax.errorbar(100 * groups["mean"], [row], xerr=bars, **look | {"linestyle": ""}, capsize=2, elinewidth=1)
    ax.set_yticks(range(len(curves)), list(map(wishes.called, called)), fontsize=small())
    ax.set_ylim(len(curves) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    metric_axis(ax, metric, table, wishes)
    ax.set_xlabel(ax.get_ylabel())
    ax.set_ylabel("")

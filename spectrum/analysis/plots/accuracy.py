"""Accuracy along the spectrum, by setting, by epoch, and by what a search tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.lines
import matplotlib.patches
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from spectrum.analysis.plots.drawing import (
    CAPTION_CHARACTERS,
    METRIC_LABELS,
    ShownFigure,
    add_legend,
    axes_or_new,
    budget_label,
    budgets_label,
    drawable,
    error_bars,
    figure_of,
    legend_below,
    look_of,
    offset_of,
    places_axis,
    say,
    seeds_label,
    setting_label,
    shades_of,
    share_legend,
    spectrum_axis,
    styled,
    value_label,
    whence,
    wrapped,
)
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import SPLIT, spectrum_position, split_label, split_labels, varied_settings

MOST_LINES = 12  # of learning curves in one picture
SEARCHED_LABELS = {"lr": "peak learning rate", "weight_decay": "weight decay"}


@styled
def spectrum_curve(
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
    by: str | Sequence[str] | None = None,
) -> Figure:
    """Accuracy along the spectrum: every run, the mean over seeds and its 95 % t-interval, on a log₂ axis.

    Args:
        results: from `load_results`.
        ax: where to draw; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in per cent.
        by: the column or columns, such as "activation", each of whose values gets a curve; by default all settings
            that vary. What varies beside is averaged within a seed, so that n counts seeds.

    A point lies at the segments that its widest layer really has. A bare convolution (no 1×1) stands beside the curve.
    Where stages have segments of their own, there is no such place, and points stand side by side without a line.
    Raises ValueError when no row has the metric.
    """
    names = [by] if isinstance(by, str) else list(by or ())
    table = drawable(results, metric, names)
    ax = axes_or_new(ax)
    names = varied_settings(table) if by is None else names
    curves = list(results.groupby(names, sort=False, dropna=False)) if names else [((), results)]
    curves = [(values, part) for values, part in curves if part[metric].notna().any()]  # failed runs leave gaps
    if table["stage_segments"].notna().any():
        _side_by_side(ax, table, metric, names, curves)
        return figure_of(ax)
    telling, along = _telling_apart(names, [values for values, _ in curves])
    for number, (values, part) in enumerate(curves):
        for bare, group in part.groupby(~part["pointwise"].astype(bool), sort=True):
            label = setting_label(telling, [values[names.index(name)] for name in telling])
            offset = offset_of(number, len(curves)) * (2**-0.2 if bare else 1)
            _curve(
                ax, group, metric, bare=bool(bare), offset=offset, look=look_of(number), label=None if bare else label
            )
    spectrum_axis(ax, table)
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    add_legend(ax, bare=bool((~table["pointwise"].astype(bool)).any()))
    say(ax, table, names, f"dots: runs · line and bars: mean and 95 % t-interval{_along_label(telling, along)}")
    return figure_of(ax)


def _along_label(telling: Sequence[str], along: Sequence[str]) -> str:
    words = ["budget" if name == "match" else name.replace("_", " ") for name in (*telling[:1], *along)]
    return f" · with {words[0]} change {', '.join(words[1:])}" if along else ""


def _telling_apart(names: list[str], curves: Sequence[tuple[Any, ...]]) -> tuple[list[str], list[str]]:
    """The settings by which curves are called, and those that only go along with these: of a study of families, the
    model has depth and norm along."""
    for name, *values in zip(names, *curves, strict=True):
        if len(names) > 1 and len(set(map(repr, values))) == len(curves) > 1:
            return [name], [other for other in names if other != name]
    return names, []


@styled
def budget_panels(results: pd.DataFrame, *, metric: str = "test_accuracy") -> Figure:
    """The curve under each budget, side by side on one scale, with each budget's worst mismatch.

    Args:
        results: from `load_results`, of one study with several budgets or of several studies, joined by `pd.concat`.
        metric: a column of accuracies from 0 to 1; shown in per cent.

    Raises ValueError when no row has the metric.
    """
    table = drawable(results, metric)
    matches = list(dict.fromkeys(table["match"]))
    figure = ShownFigure(figsize=(0.6 + 2.7 * len(matches), 3.4))
    panels = figure.subplots(1, len(matches), sharey=True, squeeze=False)[0]
    for number, (match, ax) in enumerate(zip(matches, panels, strict=True)):
        part = table[table["match"] == match]
        spectrum_curve.__wrapped__(part, ax=ax, metric=metric)  # type: ignore[attr-defined]
        title = f"{budget_label(part)}\n{seeds_label(part, varied_settings(part))} a point"
        ax.set_title(title, color="0.25", fontsize=8)
        if number:
            ax.set_ylabel("")
    share_legend(panels)
    names = [name for name in varied_settings(table) if name != "match"]
    curves = table[names].drop_duplicates().itertuples(index=False, name=None) if names else []
    along = _along_label(*_telling_apart(names, list(curves)))
    _say_of_all(figure, table, f"line and bars: mean and 95 % t-interval{along}")
    return figure


def _say_of_all(figure: Figure, table: pd.DataFrame, what: str) -> None:
    """What stands above several panels; each says its own budget and seeds."""
    caption = " · ".join(filter(None, [", ".join(dict.fromkeys(table["dataset"])), what, whence(table)]))
    figure.suptitle(wrapped(caption, round(figure.get_figwidth() * CAPTION_CHARACTERS)), color="0.25", fontsize=8)


@styled
def setting_map(
    results: pd.DataFrame, setting: str, *, ax: Axes | None = None, metric: str = "test_accuracy"
) -> Figure:
    """A setting × segments: mean accuracy in every cell, and the half width of its 95 % t-interval.

    Args:
        results: from `load_results`.
        setting: a column that varies, such as "activation".
        ax: where to draw; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in per cent.

    Raises ValueError where a further setting varies: a cell would be a mean over different things.
    """
    table = drawable(results, metric, [setting])
    others = [name for name in varied_settings(table) if name != setting]
    if others:
        raise ValueError(f"{', '.join(others)} varies too; choose one value first, as in results[results[…] == …]")
    ax = axes_or_new(ax)
    table = table.assign(position=spectrum_position(table)).sort_values("position", kind="stable")
    columns = list(dict.fromkeys(split_labels(table)))
    rows = list(dict.fromkeys(results[setting]))
    means, halves = np.full((2, len(rows), len(columns)), np.nan)
    for _, cell in summarise(table, [setting, *SPLIT], metric).iterrows():
        place = rows.index(cell[setting]), columns.index(split_label(cell))
        means[place], halves[place] = 100 * cell["mean"], 100 * cell["half"]
    image = ax.imshow(means, aspect="auto", cmap="viridis")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (down, across), mean in np.ndenumerate(means):
        half = halves[down, across]
        text = f"{mean:.2f}" + (f"\n± {half:.2f}" if half == half else "")
        color = "white" if mean < middle else "black"
        ax.text(across, down, text if mean == mean else "", ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), [f"{row!s}".replace("_", " ") for row in rows])
    ax.grid(False)
    ax.set_xlabel("segments of the spatial convolution")
    ax.set_ylabel(setting.replace("_", " "))
    figure = figure_of(ax)
    figure.colorbar(image, ax=ax, label=METRIC_LABELS.get(metric, metric))
    say(ax, table, [setting], "cells: mean ± half of the 95 % t-interval")
    return figure


@styled
def tuning_map(tuning: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Validation accuracy of a search: a column a point of the spectrum, a row a value of the grid.

    Args:
        tuning: from `load_tuning`.
        ax: where to draw; by default a figure of its own, with a panel for each budget.

    Cells are means over the search's seeds, in per cent; what was chosen is framed. Raises ValueError when no run of
    the search has finished.
    """
    table = drawable(tuning, "val_accuracy", ["chosen", "lr", "weight_decay"])
    table = table.assign(position=spectrum_position(table))
    matches = list(dict.fromkeys(table["match"]))
    if ax is not None or len(matches) == 1:
        ax = axes_or_new(ax)
        image = _search(ax, table, table["val_accuracy"])
        figure_of(ax).colorbar(image, ax=ax, label=METRIC_LABELS["val_accuracy"], extend="min")
        say(ax, table, _grid_of(table), "framed: chosen, by validation images only")
        return figure_of(ax)
    figure = ShownFigure(figsize=(6.4, 0.6 + 2.1 * len(matches)))
    panels = figure.subplots(len(matches), 1, squeeze=False)[:, 0]
    for match, panel in zip(matches, panels, strict=True):
        part = table[table["match"] == match]
        image = _search(panel, part, table["val_accuracy"])
        panel.set_title(f"{budget_label(part)} · {seeds_label(part, _grid_of(table))} a cell", color="0.25", fontsize=8)
        if panel is not panels[-1]:
            panel.set_xlabel("")
    figure.colorbar(image, ax=list(panels), label=METRIC_LABELS["val_accuracy"], extend="min", aspect=40)
    _say_of_all(figure, table, "framed: chosen, by validation images only")
    return figure


def _grid_of(table: pd.DataFrame) -> list[str]:
    return [name for name in ("lr", "weight_decay") if table[name].nunique() > 1] or ["lr"]


def _search(ax: Axes, table: pd.DataFrame, scale: pd.Series) -> AxesImage:
    """One panel of a search; `scale` has the accuracies that the shades are to be compared with."""
    grid = _grid_of(table)
    others = [name for name in varied_settings(table) if name not in grid]
    columns = list(table.sort_values("position", kind="stable").groupby([*others, *SPLIT], sort=False, dropna=False))
    rows = sorted(set(table[grid].itertuples(index=False, name=None)))
    cells = np.full((len(rows), len(columns)), np.nan)
    for across, (_, column) in enumerate(columns):
        for values, cell in column.groupby(grid):
            up = rows.index(values)
            cells[up, across] = 100 * cell["val_accuracy"].mean()
            if cell["chosen"].any():
                frame = mpl.patches.Rectangle(
                    (across - 0.5, up - 0.5), 1, 1, fill=False, ec="#d55e00", lw=2.2, zorder=3
                )
                ax.add_patch(frame)
    low, high = 100 * scale.quantile(0.2), 100 * scale.max()
    image = ax.imshow(cells, origin="lower", aspect="auto", cmap="viridis", vmin=min(low, high - 1e-9), vmax=high)
    size = 7.5 if len(columns) <= 12 else 5.5
    for (up, across), value in np.ndenumerate(cells):
        dark = value < (low + high) / 2
        text = f"{value:.1f}" if value == value else ""
        ax.text(across, up, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    labels = [_column_label(column.iloc[0], others) for _, column in columns]
    upright = len(columns) <= 12 and max(len(line) for label in labels for line in label.splitlines()) < 12
    ax.set_xticks(range(len(columns)), labels, rotation=0 if upright else 90, fontsize=7.5 if upright else 6)
    ax.set_yticks(range(len(rows)), [", ".join(f"{value:g}" for value in values) for values in rows])
    ax.grid(False)
    ax.set_xlabel("segments of the spatial convolution")
    ax.set_ylabel(", ".join(SEARCHED_LABELS[name] for name in grid))
    return image


@styled
def learning_curves(
    history: pd.DataFrame, results: pd.DataFrame, *, ax: Axes | None = None, metric: str = "val_accuracy"
) -> Figure:
    """Validation accuracy by epoch, mean over seeds, one line a point, light to dark along the spectrum.

    Args:
        history: from `load_history`.
        results: from `load_results`; says which point each run is.
        ax: where to draw; by default a figure of its own, with a panel for each value of the settings that vary where
            one would be crowded.
        metric: a column of the history, from 0 to 1; shown in per cent.

    Raises ValueError when the history has no epoch of these results, or not this column.
    """
    table = drawable(results, needs=["id", "status"])
    if metric not in history:
        raise ValueError(f"learning_curves: the history has no column {metric}; expected a table from load_history")
    names = varied_settings(table)
    known = table.assign(position=spectrum_position(table), label=split_labels(table))
    joined = history[["id", "epoch", metric]].merge(known[["id", "status", "position", "label", *names]], on="id")
    if joined.empty:
        raise ValueError("learning_curves: no epoch of these results is in the history")
    shades = shades_of(known)
    kinds = list(joined.groupby(names, sort=False, dropna=False)) if names else [((), joined)]
    what = "lines: mean over seeds, diverged runs at chance"
    if ax is not None or joined.groupby([*names, "label"], dropna=False, sort=False).ngroups <= MOST_LINES:
        ax = axes_or_new(ax)
        for number, (values, kind) in enumerate(kinds):
            _lines(ax, kind, metric, shades, look=look_of(number), setting=setting_label(names, values))
        longest = max(len(str(line.get_label())) for line in ax.lines)
        if not legend_below(ax, ax.lines, "segments"):
            ax.legend(title="segments", ncols=2 if longest < 28 else 1, fontsize=7.5 if len(ax.lines) > 8 else None)
        say(ax, table, names, what)
        return figure_of(ax)
    panels = [(setting_label(names, values), kind) for values, kind in kinds]
    figure = _learning_panels(panels, metric, shades)
    _say_of_all(figure, table, f"{seeds_label(table, names)} a point · budget: {budgets_label(table)} · {what}")
    return figure


def _learning_panels(kinds: Sequence[tuple[str, pd.DataFrame]], metric: str, shades: Mapping[str, Any]) -> Figure:
    """A panel for each setting, which is its title, with the same axes; one legend."""
    across = min(4, len(kinds))
    down = -(-len(kinds) // across)
    figure = ShownFigure(figsize=(1.3 + 2.1 * across, 0.7 + 2.3 * down))
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(kinds) :]:
        panel.set_axis_off()
    for (title, kind), panel in zip(kinds, panels.flat, strict=False):
        _lines(panel, kind, metric, shades, look=look_of(0), setting="")
        panel.set_title(wrapped(title, 30), color="0.25", fontsize=8)
    for panel in panels[:, 1:].flat:
        panel.set_ylabel("")
    for panel in panels[:-1].flat:
        panel.set_xlabel("")
    handles = [mpl.lines.Line2D([], [], color=shade, label=label) for label, shade in shades.items()]
    figure.legend(handles=handles, title="segments", loc="outside right center", fontsize=7.5)
    return figure


def _lines(
    ax: Axes, kind: pd.DataFrame, metric: str, shades: Mapping[str, Any], *, look: Mapping[str, Any], setting: str
) -> None:
    """A line a point of one combination of settings."""
    for label, group in kind.sort_values("position", kind="stable").groupby("label", sort=False):
        mean = _mean_by_epoch(group, metric)
        ax.plot(
            mean.index,
            100 * mean,
            color=shades[str(label)],
            marker="" if len(mean) > 1 else look["marker"],
            ls=":" if str(label).endswith("no 1×1") else look["linestyle"],
            label=", ".join(filter(None, [str(label), setting])),
        )
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))


def _curve(
    ax: Axes, table: pd.DataFrame, metric: str, *, bare: bool, offset: float, look: dict[str, Any], label: str | None
) -> None:
    table = table.assign(position=spectrum_position(table) * offset).sort_values("position")
    color = look["color"]
    ax.plot(
        table["position"] * 2**-0.07, 100 * table[metric], ls="", marker=".", ms=3.5, color=color, alpha=0.45, zorder=2
    )
    groups = summarise(table, [*SPLIT, "position"], metric)  # points that realise the same segments stay apart
    ax.errorbar(
        groups["position"],
        100 * groups["mean"],
        error_bars(groups),
        color=color,
        marker="*" if bare else look["marker"],
        ms=9 if bare else 5,
        mfc="white" if bare else color,
        ls="" if bare else look["linestyle"],
        capsize=2.5,
        elinewidth=1,
        zorder=3,
        label=label,
    )


def _side_by_side(
    ax: Axes, table: pd.DataFrame, metric: str, names: Sequence[str], curves: Sequence[tuple[Any, pd.DataFrame]]
) -> None:
    """Points that have no place on one axis: those of one segment number first, then schedules as they come."""
    order = table.assign(
        label=split_labels(table), place=spectrum_position(table), staged=table["stage_segments"].notna()
    )
    order.loc[order["staged"], "place"] = 0.0
    labels = list(dict.fromkeys(order.sort_values(["staged", "place"], kind="stable")["label"]))
    for number, (values, part) in enumerate(curves):
        groups, part = summarise(part, SPLIT, metric), part[part[metric].notna()]
        apart = 0.16 * (number - (len(curves) - 1) / 2)
        ax.plot(
            [labels.index(label) + apart - 0.05 for label in split_labels(part)], 100 * part[metric],
            ls="", marker=".", ms=3.5, color=look_of(number)["color"], alpha=0.45, zorder=2,
        )  # fmt: skip
        ax.errorbar(
            [labels.index(label) + apart for label in split_labels(groups)], 100 * groups["mean"], error_bars(groups),
            **look_of(number) | {"linestyle": ""}, capsize=2.5, elinewidth=1, zorder=3,
            label=setting_label(names, values),
        )  # fmt: skip
    places_axis(ax, labels)
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    add_legend(ax, bare=False)
    say(ax, table, names, "dots: runs · bars: mean and 95 % t-interval")


def _column_label(row: pd.Series, others: Sequence[str]) -> str:
    return "\n".join([split_label(row), *(value_label(name, row[name]) for name in others)])


def _mean_by_epoch(epochs: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over runs at every epoch. A diverged run stays in it, at chance, after its last epoch."""
    runs = epochs.pivot_table(index="epoch", columns="id", values=metric)
    diverged = epochs.loc[epochs["status"] == "diverged", "id"].unique().tolist()
    runs[diverged] = runs[diverged].ffill()
    return runs.mean(axis=1)

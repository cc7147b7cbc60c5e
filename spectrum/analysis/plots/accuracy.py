"""Accuracy along the spectrum, by setting, by epoch, and by what a search tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.patches
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectrum.analysis.plots.drawing import (
    METRIC_LABELS,
    add_legend,
    axes_or_new,
    budget_said,
    error_bars,
    figure_of,
    look_of,
    offset_of,
    say,
    setting_said,
    span,
    spectrum_axis,
    styled,
)
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import SPLIT, point_label, point_labels, scored, spectrum_position, varied_settings

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
        metric: a column of accuracies from 0 to 1; shown in per cent.
        by: the column or columns, such as "activation", each of whose values gets a curve; by default all settings
            that vary.

    A point lies at the segments that its widest layer really has. A bare convolution (no 1×1) stands beside the curve.
    Raises ValueError when no row has the metric.
    """
    ax = axes_or_new(ax)
    table = scored(results, metric)
    names = varied_settings(table) if by is None else [by] if isinstance(by, str) else list(by)
    curves = list(table.groupby(names, sort=False, dropna=False)) if names else [((), table)]
    for number, (values, part) in enumerate(curves):
        for bare, group in part.groupby(~part["pointwise"].astype(bool), sort=True):
            label = setting_said(names, values)
            offset = offset_of(number, len(curves)) * (2**-0.2 if bare else 1)
            _curve(
                ax, group, metric, bare=bool(bare), offset=offset, look=look_of(number), label=None if bare else label
            )
    spectrum_axis(ax, table)
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    add_legend(ax, bare=bool((~table["pointwise"].astype(bool)).any()))
    say(ax, table, names, "dots: runs · line and bars: mean and 95 % t-interval")
    return figure_of(ax)


@styled
def budget_panels(results: pd.DataFrame, *, metric: str = "test_accuracy") -> Figure:
    """The curve under each budget, side by side on one scale, with each budget's worst mismatch.

    Args:
        results: from `load_results`, of one study with several budgets or of several studies, joined by `pd.concat`.
        metric: a column of accuracies from 0 to 1; shown in per cent.

    Raises ValueError when no row has the metric.
    """
    table = scored(results, metric)
    matches = list(dict.fromkeys(table["match"]))
    figure = Figure(figsize=(0.6 + 2.7 * len(matches), 3.4))
    panels = figure.subplots(1, len(matches), sharey=True, squeeze=False)[0]
    for number, (match, ax) in enumerate(zip(matches, panels, strict=True)):
        part = table[table["match"] == match]
        spectrum_curve.__wrapped__(part, ax=ax, metric=metric)  # type: ignore[attr-defined]
        seeds = part.groupby([*SPLIT, *varied_settings(part)], dropna=False).size()
        ax.set_title(f"{budget_said(part)}\nn = {span(seeds.min(), seeds.max())} a point", color="0.25", fontsize=8)
        if number:
            ax.set_ylabel("")
    figure.suptitle(
        ", ".join(dict.fromkeys(table["dataset"])) + " · line and bars: mean and 95 % t-interval", fontsize=8
    )
    return figure


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
    table = scored(results, metric)
    others = [name for name in varied_settings(table) if name != setting]
    if others:
        raise ValueError(f"{', '.join(others)} varies too; choose one value first, as in results[results[…] == …]")
    ax = axes_or_new(ax)
    table = table.assign(position=spectrum_position(table)).sort_values("position", kind="stable")
    columns = list(dict.fromkeys(point_labels(table)))
    rows = list(dict.fromkeys(results[setting]))
    means, halves = np.full((2, len(rows), len(columns)), np.nan)
    for _, cell in summarise(table, [setting, *SPLIT], metric).iterrows():
        place = rows.index(cell[setting]), columns.index(point_label(cell))
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

    Cells are means over the search's seeds, in per cent; what was chosen is framed. Raises ValueError when no run of
    the search has finished.
    """
    ax = axes_or_new(ax)
    table = scored(tuning, "val_accuracy").assign(position=lambda rows: spectrum_position(rows))
    grid = [name for name in ("lr", "weight_decay") if table[name].nunique() > 1] or ["lr"]
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
    low, high = np.nanpercentile(cells, 20), np.nanmax(cells)
    image = ax.imshow(cells, origin="lower", aspect="auto", cmap="viridis", vmin=min(low, high - 1e-9), vmax=high)
    for (up, across), value in np.ndenumerate(cells):
        dark = value < (low + high) / 2
        text = f"{value:.1f}" if value == value else ""
        ax.text(across, up, text, ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    labels = [_column_label(column.iloc[0], others) for _, column in columns]
    ax.set_xticks(range(len(columns)), labels, rotation=0 if max(map(len, labels)) < 12 else 35)
    ax.set_yticks(range(len(rows)), [", ".join(f"{value:g}" for value in values) for values in rows])
    ax.grid(False)
    ax.set_xlabel("segments of the spatial convolution")
    ax.set_ylabel(" , ".join(SEARCHED_LABELS[name] for name in grid))
    figure = figure_of(ax)
    figure.colorbar(image, ax=ax, label=METRIC_LABELS["val_accuracy"], extend="min")
    seeds = table.groupby([*others, *SPLIT, *grid], dropna=False)["seed"].nunique().max()
    ax.set_title(
        f"{', '.join(dict.fromkeys(table['dataset']))} · n = {seeds} {'seed' if seeds == 1 else 'seeds'} a cell\n"
        "framed: chosen, by validation images only",
        color="0.25",
        fontsize=8,
    )
    return figure


@styled
def learning_curves(
    history: pd.DataFrame, results: pd.DataFrame, *, ax: Axes | None = None, metric: str = "val_accuracy"
) -> Figure:
    """Validation accuracy by epoch, mean over seeds, one line a point, light to dark along the spectrum.

    Args:
        history: from `load_history`.
        results: from `load_results`; says which point each run is.
        metric: a column of the history, from 0 to 1; shown in per cent.

    Raises ValueError when the history has no epoch of these results.
    """
    ax = axes_or_new(ax)
    names = varied_settings(results)
    known = results.assign(position=spectrum_position(results))
    joined = history.merge(known[["id", "status", "position", *SPLIT, *names]], on="id", suffixes=("", "setting_said"))
    if joined.empty:
        raise ValueError("learning_curves: no epoch of these results is in the history")
    names = [f"{name}setting_said" if name in history else name for name in names]
    kinds = list(joined.groupby(names, sort=False, dropna=False)) if names else [((), joined)]
    for number, (values, kind) in enumerate(kinds):
        groups = list(kind.sort_values("position").groupby([*SPLIT], sort=False, dropna=False))
        shades = mpl.colormaps["viridis_r"](np.linspace(0.12, 1, len(groups)))
        for shade, (_, group) in zip(shades, groups, strict=True):
            mean = _mean_by_epoch(group, metric)
            label = ", ".join([point_label(group.iloc[0]), *(f"{value}".replace("_", " ") for value in values)])
            bare = not bool(group["pointwise"].iloc[0])
            line = ":" if bare else look_of(number)["linestyle"]
            marker = "" if len(mean) > 1 else look_of(number)["marker"]
            ax.plot(mean.index, 100 * mean, color=shade, marker=marker, ls=line, label=label)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    title = ", ".join(["segments", *(name.removesuffix("setting_said") for name in names)])
    ax.legend(title=title, ncols=2, fontsize=7.5 if len(ax.lines) > 8 else None)
    say(ax, results, varied_settings(results), "lines: mean over seeds, diverged runs at chance")
    return figure_of(ax)


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


def _column_label(row: pd.Series, others: Sequence[str]) -> str:
    return "\n".join([point_label(row), *(str(row[name]).replace("_", " ") for name in others)])


def _mean_by_epoch(epochs: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over runs at every epoch. A diverged run stays in it, at chance, after its last epoch."""
    runs = epochs.pivot_table(index="epoch", columns="id", values=metric)
    diverged = epochs.loc[epochs["status"] == "diverged", "id"].unique().tolist()
    runs[diverged] = runs[diverged].ffill()
    return runs.mean(axis=1)

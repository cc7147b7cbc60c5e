"""Maps: a setting along the spectrum, and what a learning-rate sweep found for each configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.patches
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from spectrum.analysis.plots.accuracy import along_label, combinations, grid_of, telling_apart, tidy
from spectrum.analysis.plots.drawing import (
    ShownFigure,
    axes_or_new,
    drawable,
    figure_of,
    metric_label,
    small,
    styled,
)
from spectrum.analysis.plots.frame import inches_of_text, say, say_of_all, title_panel
from spectrum.analysis.plots.words import Wishes, seeds_label
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import (
    IMAGES,
    SPLIT,
    check_source,
    spectrum_position,
    split_label,
    split_labels,
    varied_settings,
)
from spectrum.analysis.words import setting_label, setting_name, setting_words

SWEPT = {"lr": "peak learning rate", "weight_decay": "weight decay"}
FRAME = "#d55e00"
LEAST_SCALE, MOST_SCALE = 2.0, 8.0  # percentage points below the best, beyond which all cells are dark


@styled
def setting_map(
    results: pd.DataFrame,
    setting: str,
    *,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
    title: str | None = None,
    caption: bool = True,
    colors: str = "viridis",
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """A setting × segments: mean accuracy in every cell, and the half width of its 95% CI.

    Args:
        results: from `load_results`.
        setting: a column that varies, such as "activation".
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in percent.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: a colour map of matplotlib.
        labels: your words for labels, such as {"no activation": "linear"}.

    Raises ValueError where a further setting varies: a cell would be a mean over different things.
    """
    table = drawable(results, metric, [setting])
    others = [name for name in varied_settings(table) if name != setting]
    if others:
        raise ValueError(f"{', '.join(others)} varies too; choose one value first, as in results[results[…] == …]")
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, None, labels)
    table = table.assign(position=spectrum_position(table)).sort_values("position", kind="stable")
    columns = list(dict.fromkeys(split_labels(table)))
    rows = list(dict.fromkeys(results[setting]))
    means, halves = np.full((2, len(rows), len(columns)), np.nan)
    for _, cell in summarise(table, [setting, *SPLIT], metric).iterrows():
        place = rows.index(cell[setting]), columns.index(split_label(cell))
        means[place], halves[place] = 100 * cell["mean"], 100 * cell["half"]
    image = ax.imshow(means, aspect="auto", cmap=colors)
    for (down, across), mean in np.ndenumerate(means):
        half = halves[down, across]
        text = f"{mean:.2f}" + (f"\n± {half:.2f}" if half == half else "")
        ink = _ink(image, mean)
        ax.text(across, down, text if mean == mean else "", ha="center", va="center", fontsize=small(), color=ink)
    ax.set_xticks(range(len(columns)), list(map(wishes.called, columns)))
    ax.set_yticks(range(len(rows)), [wishes.called(setting_words(setting, row)) for row in rows])
    ax.grid(False)
    ax.set_xlabel(wishes.called("segments of the 3×3 convolution"))
    ax.set_ylabel(wishes.called(setting_name(setting)))
    figure = figure_of(ax)
    figure.colorbar(image, ax=ax, label=metric_label(metric))
    task = f"Accuracy by {setting_name(setting)} and segments"
    say(ax, table, [setting], "cells: mean ± half of the 95% CI", wishes=wishes, title=task)
    return figure


def _ink(image: AxesImage, value: Any) -> str:
    """Black or white, whichever is legible on a cell."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


@styled
def tuning_map(
    tuning: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    caption: bool = True,
    colors: str = "Blues_r",
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Validation accuracy of a learning-rate sweep: a row per configuration, a column per value of the grid.

    Args:
        tuning: from `load_tuning`.
        ax: where to draw, at any size and in your own settings; by default a figure of its own, with a panel for each
            budget, teacher or other setting.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: a colour map of matplotlib, from far below the best to the best.
        labels: your words for labels, such as {"plain 3×3": "ResNet's 3×3"}.

    Numbers are means over the sweep's seeds, in percent. Colours say how far a cell is below the best of its row. What
    was chosen is framed; a frame in an outer column is on the edge of the grid. Raises ValueError when no run of the
    sweep has finished.
    """
    check_source(tuning, ["chosen", "lr", "weight_decay"], "load_tuning")
    table = drawable(tuning, "val_accuracy")
    table = table.assign(position=spectrum_position(table))
    wishes = Wishes(title, caption, None, labels)
    grid = _grid_of(table)
    task = "Learning-rate sweep" if grid == ["lr"] else f"Sweep of {' and '.join(map(setting_name, grid))}"
    marks = "validation accuracy, %; framed: chosen"
    others = [name for name in varied_settings(table) if name not in grid]
    others, along = telling_apart(others, combinations(table, others))
    if ax is not None or not others:
        ax = axes_or_new(ax)
        table = _named_rows(table, others)
        if isinstance(figure_of(ax), ShownFigure):
            figure_of(ax).set_size_inches(*_size(table, grid))
        rows = list(dict.fromkeys(table["row"]))
        image = _sweep(ax, table, grid, rows, _furthest(table, [], grid), wishes, colors)
        _scale(figure_of(ax), image, [ax])
        say(ax, table, grid, marks, wishes=wishes, title=task, foot=along_label(others, along))
        return figure_of(ax)
    over = [name for name in others if name in ("match", *IMAGES)] or others[:1]
    table = _named_rows(table, [name for name in others if name not in over])
    rows, furthest = list(dict.fromkeys(table["row"])), _furthest(table, over, grid)
    parts = list(table.groupby(over, sort=False, dropna=False))
    columns, height = table[grid].drop_duplicates().shape[0], _size(table, grid)[1]
    figure, panels = grid_of(len(parts), 0.6 + 0.42 * columns, height - 0.2)
    figure.set_figwidth(figure.get_figwidth() + _more_for(rows))
    for (values, part), panel in zip(parts, panels, strict=True):
        title_panel(panel, wishes.called(setting_label(over, values)))
        image = _sweep(panel, part, grid, rows, furthest, wishes, colors)
    tidy(panels)
    _scale(figure, image, panels)
    facts = f"{seeds_label(table, grid)} per cell · {marks}"
    say_of_all(figure, table, facts, wishes=wishes, title=task, foot=along_label(others, along))
    return figure


def _size(table: pd.DataFrame, grid: Sequence[str]) -> tuple[float, float]:
    columns = table.groupby(list(grid), dropna=False).ngroups
    return max(4.2, 2.0 + _more_for(table["row"]) + 0.42 * columns), max(1.9, 0.8 + 0.21 * table["row"].nunique())


def _more_for(rows: Iterable[str]) -> float:
    """Inches that the longest name of a row takes beyond one that says its segments alone."""
    return max(0.0, max(inches_of_text(row, small()) for row in rows) - 0.8)


def _scale(figure: Figure, image: AxesImage, panels: Sequence[Axes]) -> None:
    figure.colorbar(image, ax=list(panels), label="pp below the row's best", extend="min", aspect=30, shrink=0.9)


def _grid_of(table: pd.DataFrame) -> list[str]:
    return [name for name in ("lr", "weight_decay") if table[name].nunique() > 1] or ["lr"]


def _named_rows(table: pd.DataFrame, others: Sequence[str]) -> pd.DataFrame:
    """The table from plain convolutions on along the spectrum, each run with the name of its row."""
    ordered = table.sort_values("position", kind="stable").sort_values("pointwise", kind="stable")
    return ordered.assign(row=[_row_label(row, others) for _, row in ordered.iterrows()])


def _furthest(table: pd.DataFrame, over: list[str], grid: list[str]) -> float:
    """How far below the best of their rows most cells are, within what colours can tell."""
    cells = table.groupby([*over, "row", *grid], dropna=False, sort=False)["val_accuracy"].mean()
    best = cells.groupby([*over, "row"], dropna=False, sort=False).transform("max")
    return float(np.clip(100 * (best - cells).quantile(0.9), LEAST_SCALE, MOST_SCALE))


def _sweep(
    ax: Axes, table: pd.DataFrame, grid: list[str], rows: list[str], furthest: float, wishes: Wishes, colors: str
) -> AxesImage:
    """One panel of a sweep: cells, each beside the best of its row; empty where nothing was trained."""
    columns = sorted(set(table[grid].itertuples(index=False, name=None)))
    cells = np.full((len(rows), len(columns)), np.nan)
    frames = []
    for (row, *values), cell in table.groupby(["row", *grid], sort=False):
        down, across = rows.index(str(row)), columns.index(tuple(values))
        cells[down, across] = 100 * cell["val_accuracy"].mean()
        if cell["chosen"].any():
            frames.append((across - 0.5, down - 0.5))
    best = np.array([np.nanmax(row) if np.isfinite(row).any() else np.nan for row in cells])
    below = cells - best[:, None]
    image = ax.imshow(below, aspect="auto", cmap=colors, vmin=-furthest, vmax=0)
    for (down, across), value in np.ndenumerate(cells):
        chosen = (across - 0.5, down - 0.5) in frames
        ax.text(
            across, down, f"{value:.1f}" if value == value else "", ha="center", va="center", fontsize=small(),
            color=_ink(image, below[down, across]), weight="bold" if chosen else "normal",
        )  # fmt: skip
    for corner in frames:
        ax.add_patch(mpl.patches.Rectangle(corner, 1, 1, fill=False, ec=FRAME, lw=2, zorder=3, clip_on=False))
    names = list(map(wishes.called, rows))
    ticks = [", ".join(f"{value:g}" for value in one) for one in columns]
    wide = max(inches_of_text(tick, small()) for tick in ticks) > 0.4
    ax.set_xticks(range(len(columns)), ticks, fontsize=small(), rotation=90 if wide else 0)
    ax.set_yticks(range(len(rows)), names, fontsize=small())
    ax.grid(False)
    ax.set_xlabel(wishes.called(", ".join(SWEPT[name] for name in grid)))
    ax.set_ylabel(wishes.called("segments"))
    return image


def _row_label(row: pd.Series, others: Sequence[str]) -> str:
    return ", ".join(filter(None, [split_label(row), setting_label(others, [row[name] for name in others])]))

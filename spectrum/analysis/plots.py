"""Pictures of a study. Each takes a table of results and, if wanted, axes, and returns the figure.

from spectrum import load_results, plots
plots.spectrum_curve(load_results("results/segments_fashion"))
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.lines
import matplotlib.patches
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from spectrum.analysis.stats import differences_by_seed, pareto_front, points_against, summarise, t_interval
from spectrum.analysis.table import (
    SPLIT,
    budget_name,
    has,
    point_label,
    point_labels,
    scored,
    segments_label,
    spectrum_position,
    studies_of,
    varied_settings,
    worst_mismatch,
)

STYLE = Path(__file__).with_name("spectrum.mplstyle")
COST_LABELS = {
    "params": "parameters",
    "macs": "MACs of one image, forward",
    "train_seconds": "training time in seconds",
}
SEARCHED_LABELS = {"lr": "peak learning rate", "weight_decay": "weight decay"}
METRIC_LABELS = {"test_accuracy": "test accuracy, %", "val_accuracy": "validation accuracy, %"}
P = ParamSpec("P")


@contextmanager
def style() -> Iterator[None]:
    """The project's style, for figures of one's own: `with plots.style(): …`."""
    with mpl.style.context(STYLE):
        yield


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return styled


@_styled
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
    ax = _axes(ax)
    table = scored(results, metric)
    names = varied_settings(table) if by is None else [by] if isinstance(by, str) else list(by)
    curves = list(table.groupby(names, sort=False, dropna=False)) if names else [((), table)]
    for number, (values, part) in enumerate(curves):
        for bare, group in part.groupby(~part["pointwise"].astype(bool), sort=True):
            label = _setting(names, values)
            offset = _offset(number, len(curves)) * (2**-0.2 if bare else 1)
            _curve(ax, group, metric, bare=bool(bare), offset=offset, look=_look(number), label=None if bare else label)
    _spectrum_axis(ax, table)
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    _legend(ax, bare=bool((~table["pointwise"].astype(bool)).any()))
    _say(ax, table, names, "dots: runs · line and bars: mean and 95 % t-interval")
    return _figure(ax)


@_styled
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
        ax.set_title(f"{_budget(part)}\nn = {_span(seeds.min(), seeds.max())} a point", color="0.25", fontsize=8)
        if number:
            ax.set_ylabel("")
    figure.suptitle(
        ", ".join(dict.fromkeys(table["dataset"])) + " · line and bars: mean and 95 % t-interval", fontsize=8
    )
    return figure


@_styled
def accuracy_against(
    results: pd.DataFrame, cost: str = "macs", *, ax: Axes | None = None, metric: str = "test_accuracy"
) -> Figure:
    """Mean accuracy against a cost on a log axis, every point labelled by its segments, the Pareto front drawn.

    Args:
        results: from `load_results`.
        cost: "params", "macs" or "train_seconds".
        metric: a column of accuracies from 0 to 1; shown in per cent.

    Raises ValueError when no row has the metric.
    """
    ax = _axes(ax)
    table = scored(results, metric)
    names = varied_settings(table)
    groups = points_against(table, cost, metric)
    looks = list(groups.groupby(names, sort=False, dropna=False)) if names else [((), groups)]
    for number, (values, part) in enumerate(looks):
        label = _setting(names, values)
        look = {"color": _look(number)["color"], "fmt": _look(number)["marker"]}
        ax.errorbar(part["cost"], 100 * part["mean"], _bars(part), capsize=2, lw=1, zorder=3, label=label, **look)
    tasks = [name for name in ("dataset", "teacher_segments", "teacher_seed", "label_noise") if name in groups]
    by_task = [part for _, part in groups.groupby(tasks, dropna=False)] if tasks else [groups]
    for part in by_task:
        front = part.iloc[pareto_front(part["cost"], part["mean"])]
        name = "Pareto front of the means" if part is by_task[0] else None
        ax.plot(front["cost"], 100 * front["mean"], ls="--", color="0.35", marker="", label=name)
    for _, group in groups.iterrows():
        top = group["high"] if group["high"] == group["high"] else group["mean"]
        offset = 2 if top > group["mean"] else 5  # above the bar, or above the mark where there is no bar
        text = ax.annotate(
            point_label(group),
            (group["cost"], 100 * top),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
            zorder=2.5,
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # legible across bars, below marks
    ax.set_xscale("log")
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(_engineering))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(COST_LABELS.get(cost, cost))
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    ax.legend()
    _say(ax, table, names, "labels: segments · bars: 95 % t-interval")
    return _figure(ax)


@_styled
def yardstick_curve(
    table: pd.DataFrame, *, ax: Axes | None = None, shape: str | None = None, ours: str = "spectrum"
) -> Figure:
    """Speed along the spectrum: per cent of the yardstick, one line a way to compute, on a log₂ axis.

    Args:
        table: of `spectrum bench op`, read from its CSV.
        shape: one of its shapes; by default the first.
        ours: the way that is drawn first and thick.

    Numbers of segments that leave uneven ones are left out. Raises ValueError for a shape that is not there.
    """
    ax = _axes(ax)
    shape = table["shape"].iloc[0] if shape is None else shape
    part = table[(table["shape"] == shape) & (table["channels_per_segment"] % 1 == 0)]
    if part.empty:
        raise ValueError(f"shape={shape}: not measured; try {', '.join(table['shape'].unique())}")
    for number, way in enumerate(sorted(part["way"].unique(), key=lambda way: (way != ours, way))):
        line, look = part[part["way"] == way], _look(number)
        low, high = (100 * line["yardstick_ms"] / line[q] for q in ("ms_q3", "ms_q1"))
        ax.fill_between(line["segments"], low, high, color=look["color"], alpha=0.2, linewidth=0)
        ax.plot(
            line["segments"],
            line["percent"],
            color=look["color"],
            marker=look["marker"],
            linewidth=2.2 if way == ours else 1.0,
            zorder=3 if way == ours else 2,
            label=way,
        )
    ax.axhline(100, color="0.6", linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("segments")
    ax.set_ylabel("speed, % of the yardstick")
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.set_title(f"3×3, {shape}, forward and backward; line: median, band: quartiles", fontsize="small")
    return _figure(ax)


@_styled
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
    ax = _axes(ax)
    names = varied_settings(results)
    known = results.assign(position=spectrum_position(results))
    joined = history.merge(known[["id", "status", "position", *SPLIT, *names]], on="id", suffixes=("", "_setting"))
    if joined.empty:
        raise ValueError("learning_curves: no epoch of these results is in the history")
    names = [f"{name}_setting" if name in history else name for name in names]
    kinds = list(joined.groupby(names, sort=False, dropna=False)) if names else [((), joined)]
    for number, (values, kind) in enumerate(kinds):
        groups = list(kind.sort_values("position").groupby([*SPLIT], sort=False, dropna=False))
        shades = mpl.colormaps["viridis_r"](np.linspace(0.12, 1, len(groups)))
        for shade, (_, group) in zip(shades, groups, strict=True):
            mean = _mean_by_epoch(group, metric)
            label = ", ".join([point_label(group.iloc[0]), *map(str, values)])
            bare = not bool(group["pointwise"].iloc[0])
            line = ":" if bare else _look(number)["linestyle"]
            marker = "" if len(mean) > 1 else _look(number)["marker"]
            ax.plot(mean.index, 100 * mean, color=shade, marker=marker, ls=line, label=label)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    title = ", ".join(["segments", *(name.removesuffix("_setting") for name in names)])
    ax.legend(title=title, ncols=2, fontsize=7.5 if len(ax.lines) > 8 else None)
    _say(ax, results, varied_settings(results), "lines: mean over seeds, diverged runs at chance")
    return _figure(ax)


@_styled
def tuning_map(tuning: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Validation accuracy of a search: a column a point of the spectrum, a row a value of the grid.

    Args:
        tuning: from `load_tuning`.

    Cells are means over the search's seeds, in per cent; what was chosen is framed. Raises ValueError when no run of
    the search has finished.
    """
    ax = _axes(ax)
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
    figure = _figure(ax)
    figure.colorbar(image, ax=ax, label=METRIC_LABELS["val_accuracy"], extend="min")
    seeds = table.groupby([*others, *SPLIT, *grid], dropna=False)["seed"].nunique().max()
    ax.set_title(
        f"{', '.join(dict.fromkeys(table['dataset']))} · n = {seeds} {'seed' if seeds == 1 else 'seeds'} a cell\n"
        "framed: chosen, by validation images only",
        color="0.25",
        fontsize=8,
    )
    return figure


@_styled
def forest(contrasts: pd.DataFrame, results: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """All contrasts of a study: mean difference and 95 % t-interval of each, with its margin as a band.

    Args:
        contrasts: from `stats.contrasts`.
        results: the table that they were judged by; says data set, seeds and budget.
        ax: where to draw; by default a figure of its own.

    Solid marks are of contrasts with a verdict, open ones undecided. Slopes, in points a doubling of the segments, are
    named so. Contrasts without runs are left out. Raises ValueError when none is left.
    """
    table = contrasts[contrasts["n"] > 0]
    if table.empty:
        raise ValueError("forest: no contrast has a run on every side")
    ax = _axes(ax)
    _figure(ax).set_size_inches(6.4, 1.6 + 0.5 * len(table))
    color = _look(0)["color"]
    for place, (_, row) in enumerate(table.iterrows()):
        decided = row["verdict"] not in ("undecided", "unknown")
        if row["margin"] == row["margin"]:
            band = (place - 0.32, place + 0.32)
            ax.fill_betweenx(band, -100 * row["margin"], 100 * row["margin"], color="0.9", lw=0, zorder=1)
        if row["low"] == row["low"]:
            ax.plot([100 * row["low"], 100 * row["high"]], [place, place], color=color, marker="|", ls="-", zorder=3)
        face = color if decided else "white"
        ax.plot(100 * row["mean"], place, marker="o", ms=6, mfc=face, mec=color, ls="", zorder=4)
    notes = table["per_doubling"].map({True: "\n(a doubling)", False: ""})
    notes += table["confounded"].map({True: "\n(confounded)", False: ""})
    names = [f"{name}{note}" for name, note in zip(table["name"], notes, strict=True)]
    ax.set_yticks(range(len(table)), [_wrapped(name, 34) for name in names])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("difference, points")
    _say(ax, results, varied_settings(results), "bars: 95 % t-interval · band: margin · open: undecided")
    return _figure(ax)


@_styled
def difference_curve(
    results: pd.DataFrame,
    between: Sequence[Mapping[str, Any]],
    *,
    margin: float | None = None,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
) -> Figure:
    """The difference of two settings along the spectrum, paired by seed, with a band of equivalence.

    Args:
        results: from `load_results`.
        between: two sides, such as [{"order": "pointwise_first"}, {"order": "spatial_first"}].
        margin: a difference below which they count as equivalent; drawn as a band.
        ax: where to draw; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in points.

    An interval that lies within the band shows equivalence at that place, at 2.5 % and by itself. Raises ValueError
    where no seed has both sides.
    """
    ax = _axes(ax)
    table = scored(results, metric).assign(position=lambda rows: spectrum_position(rows))
    sided = table[has(table, between[0]) | has(table, between[1])]
    places, found = [], []
    for _, at in sided.groupby([*SPLIT], sort=False, dropna=False):
        places.append(float(np.exp(np.log(at["position"]).mean())))
        found.append(differences_by_seed(at, between, metric=metric))
    if margin is not None:
        ax.axhspan(-100 * margin, 100 * margin, color="0.9", lw=0, zorder=0, label=f"margin, ±{100 * margin:g} points")
    ax.axhline(0, color="0.4", lw=0.8)
    order = np.argsort(places)
    intervals = [t_interval(100 * found[i]) for i in order]
    means = [mean for mean, _, _ in intervals]
    half = [high - mean if high == high else 0.0 for mean, _, high in intervals]
    xs = [places[i] for i in order]
    ax.errorbar(xs, means, half, capsize=2.5, elinewidth=1, zorder=3, **_look(0))
    for i in order:
        ax.plot(
            [places[i] * 2**-0.1] * len(found[i]), 100 * found[i], ls="", marker=".", ms=3.5, color="0.35", zorder=2
        )
    _spectrum_axis(ax, sided)
    first, second = (", ".join(f"{value}".replace("_", " ") for value in side.values()) for side in between)
    ax.set_ylabel(f"{first} − {second},\npoints of {METRIC_LABELS.get(metric, metric).removesuffix(', %')}")
    if margin is not None:
        ax.legend()
    _say(ax, sided, varied_settings(sided), "dots: pairs of runs · line and bars: mean and 95 % t-interval")
    return _figure(ax)


@_styled
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
    ax = _axes(ax)
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
    figure = _figure(ax)
    figure.colorbar(image, ax=ax, label=METRIC_LABELS.get(metric, metric))
    _say(ax, table, [setting], "cells: mean ± half of the 95 % t-interval")
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))


def _column_label(row: pd.Series, others: Sequence[str]) -> str:
    return "\n".join([point_label(row), *(str(row[name]).replace("_", " ") for name in others)])


def _mean_by_epoch(epochs: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over runs at every epoch. A diverged run stays in it, at chance, after its last epoch."""
    runs = epochs.pivot_table(index="epoch", columns="id", values=metric)
    diverged = epochs.loc[epochs["status"] == "diverged", "id"].unique().tolist()
    runs[diverged] = runs[diverged].ffill()
    return runs.mean(axis=1)


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write stem.svg and stem.png; the same figure gives the same bytes."""
    paths = [Path(f"{stem}.{kind}") for kind in ("svg", "png")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], metadata={"Software": None})
    return paths


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
        _bars(groups),
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


def _spectrum_axis(ax: Axes, table: pd.DataFrame) -> None:
    positions = spectrum_position(table)
    names: dict[float, str] = {}
    for position, segments, width in zip(positions, table["segments"], table["segment_width"], strict=True):
        name = "per\nchannel" if segments == "per_channel" else segments_label(segments, width)
        names.setdefault(position, name)
    ends = [position for position, name in names.items() if name.startswith("per")]
    if len(ends) > 1:  # of one meaning, at widths that a budget solved
        names = {position: name for position, name in names.items() if position not in ends}
        names[float(np.exp(np.log(ends).mean()))] = "per\nchannel"
    if np.isfinite(positions).all() and len(names):
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(names), list(names.values()))
        ax.minorticks_off()
    ax.set_xlabel("segments of the spatial convolution")


def _bars(groups: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Lengths of the error bars in per cent, below and above the mean; 0 where there is no interval."""
    ends = groups[["low", "high"]].sub(groups["mean"], axis=0).abs()
    return np.asarray(100 * ends.fillna(0.0)).T


def _legend(ax: Axes, *, bare: bool) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if bare:
        handles += [mpl.lines.Line2D([], [], color="0.3", ls="", marker="*", ms=9, mfc="white", label="no 1×1 (bare)")]
    if handles:
        ax.legend(handles=handles)


def _say(ax: Axes, table: pd.DataFrame, names: Sequence[str], what: str) -> None:
    """What a reader must know to judge the picture: data set, seeds, budget."""
    runs = table.groupby([*SPLIT, *names], sort=False, dropna=False).size()
    few, many = runs.min(), runs.max()
    n = f"n = {_span(few, many)}"
    data = ", ".join(dict.fromkeys(table["dataset"]))
    budget = ", ".join(_budget(table[table["match"] == match]) for match in dict.fromkeys(table["match"]))
    seeds = "seed" if many == 1 else "seeds"
    separator = "\n" if table["match"].nunique() > 1 else " · "
    said = f"{data} · {n} {seeds} a point{separator}budget: {budget}"
    studies = studies_of(table)
    whence = f"{'studies' if ',' in studies else 'study'} {studies}" if studies else ""
    lines = [said, what, *textwrap.wrap(whence, 90)]
    ax.set_title("\n".join(lines), color="0.25", fontsize=7.5)


def _span(few: int, many: int) -> str:
    return f"{few}" if few == many else f"{few}–{many}"


def _budget(table: pd.DataFrame) -> str:
    match = table["match"].iloc[0]
    if match == "none":
        return "unmatched"
    return f"{budget_name(match)} (within {worst_mismatch(table):.2%})"


def _setting(names: Sequence[str], values: Sequence[Any]) -> str:
    """What a curve is called: the values of the settings that vary; a budget in the words of the title."""
    said = [
        budget_name(value) if name == "match" else f"{name} {value}" for name, value in zip(names, values, strict=True)
    ]
    return ", ".join(said)


def _engineering(value: float, _position: int | None = None) -> str:
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _offset(number: int, count: int) -> float:
    """Curves of one picture stand a little apart, so that their bars do not hide each other."""
    return float(2 ** (0.06 * (number - (count - 1) / 2)))


def _look(number: int) -> dict[str, Any]:
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    return dict(cycle[number % len(cycle)])


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    figure = Figure()
    return figure.add_subplot()


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure()
    assert figure is not None
    return figure.figure if isinstance(figure, SubFigure) else figure

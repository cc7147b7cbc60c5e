"""Pictures of a study. Each takes a table of results and, if wanted, axes, and returns the figure.

from spectrum import load_results, plots
plots.spectrum_curve(load_results("results/segments_fashion"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.lines
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from spectrum.analysis.stats import pareto_front, segments_label, spectrum_position, summarise

STYLE = Path(__file__).with_name("spectrum.mplstyle")
COST_LABELS = {
    "params": "parameters",
    "macs": "MACs of one image, forward",
    "train_seconds": "training time in seconds",
}
METRIC_LABELS = {"test_accuracy": "test accuracy, %", "val_accuracy": "validation accuracy, %"}
POINT = ["segments", "segment_width", "pointwise"]
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
    results: pd.DataFrame, *, ax: Axes | None = None, metric: str = "test_accuracy", by: str | None = None
) -> Figure:
    """Accuracy along the spectrum: every run, the mean over seeds and its 95 % t-interval, on a log₂ axis.

    Args:
        results: from `load_results`.
        metric: a column of accuracies from 0 to 1; shown in per cent.
        by: a column, such as "activation" or "order", that gives one curve a value.

    A point lies at the segments that its widest layer really has. A bare convolution (no 1×1) stands beside the curve.
    Raises ValueError when no row has the metric.
    """
    ax = _axes(ax)
    table = _scored(results, metric)
    values = list(dict.fromkeys(table[by])) if by else [None]
    for number, value in enumerate(values):
        part = table if by is None else table[table[by] == value]
        look = _look(number)
        drawn = False
        for bare, group in part.groupby(~part["pointwise"].astype(bool), sort=True):
            label = None if by is None or drawn else f"{by} {value}"
            drawn = True
            _curve(ax, group, metric, bare=bool(bare), offset=_offset(number, len(values)), look=look, label=label)
    _spectrum_axis(ax, table)
    _accuracy_axis(ax, metric)
    if by or (~table["pointwise"].astype(bool)).any():
        _legend(ax, bare=bool((~table["pointwise"].astype(bool)).any()))
    _say(ax, table, "dots: runs · line and bars: mean and 95 % t-interval")
    return _figure(ax)


@_styled
def accuracy_against(
    results: pd.DataFrame, cost: str = "macs", *, ax: Axes | None = None, metric: str = "test_accuracy"
) -> Figure:
    """Mean accuracy against a cost on a log axis, every point labelled by its segments, the Pareto front drawn.

    Args:
        cost: "params", "macs" or "train_seconds".

    Raises ValueError when no row has the metric.
    """
    ax = _axes(ax)
    table = _scored(results, metric)
    groups = summarise(table, [*_varied(table)], metric)
    costs = table.groupby([*_varied(table)], sort=False, dropna=False)[cost].mean().to_numpy()
    means = 100 * groups["mean"].to_numpy()
    errors = 100 * np.abs(groups[["low", "high"]].to_numpy() - groups[["mean"]].to_numpy()).T
    look = _look(0)
    ax.errorbar(costs, means, np.nan_to_num(errors), fmt="o", color=look["color"], capsize=2, lw=1, zorder=3)
    front = pareto_front(costs, means)
    ax.plot(costs[front], means[front], "--", color=_look(1)["color"], marker="", label="Pareto front of the means")
    for x, y, (_, group) in zip(costs, means, groups.iterrows(), strict=True):
        ax.annotate(point_label(group), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7.5)
    ax.set_xscale("log")
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(_engineering))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(COST_LABELS.get(cost, cost))
    _accuracy_axis(ax, metric)
    ax.legend()
    _say(ax, table, "labels: segments · bars: 95 % t-interval")
    return _figure(ax)


@_styled
def learning_curves(
    history: pd.DataFrame, results: pd.DataFrame, *, ax: Axes | None = None, metric: str = "val_accuracy"
) -> Figure:
    """Validation accuracy by epoch, mean over seeds, one line a segment count, light to dark along the spectrum.

    Args:
        history: from `load_history`.
        results: from `load_results`; says which point each run is.
    """
    ax = _axes(ax)
    known = results.assign(position=spectrum_position(results))
    joined = history.merge(known[["id", "position", *POINT]], on="id")
    if joined.empty:
        raise ValueError("learning_curves: no epoch of these results is in the history")
    groups = list(joined.sort_values("position").groupby(POINT, sort=False, dropna=False))
    shades = mpl.colormaps["viridis_r"](np.linspace(0.12, 1, len(groups)))
    for shade, (_, group) in zip(shades, groups, strict=True):
        mean = group.groupby("epoch")[metric].mean()
        bare = not bool(group["pointwise"].iloc[0])
        ax.plot(mean.index, 100 * mean, color=shade, marker="", ls=":" if bare else "-", label=point_label(group.iloc[0]))
    ax.set_xlabel("epoch")
    _accuracy_axis(ax, metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(title="segments", ncols=2)
    _say(ax, results, "lines: mean over seeds")
    return _figure(ax)


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
    groups = summarise(table, ["position"], metric)
    errors = 100 * np.abs(groups[["low", "high"]].to_numpy() - groups[["mean"]].to_numpy()).T
    ax.errorbar(
        groups["position"],
        100 * groups["mean"],
        np.nan_to_num(errors),
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
    if np.isfinite(positions).all() and len(names):
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(names), list(names.values()))
        ax.minorticks_off()
    ax.set_xlabel("segments of the spatial convolution")


def _accuracy_axis(ax: Axes, metric: str) -> None:
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    if ax.get_ylim()[1] > 100:  # a t-interval knows no such bound, an accuracy does
        ax.set_ylim(top=100.05)


def _legend(ax: Axes, *, bare: bool) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if bare:
        handles += [mpl.lines.Line2D([], [], color="0.3", ls="", marker="*", ms=9, mfc="white", label="no 1×1 (bare)")]
    ax.legend(handles=handles)


def _say(ax: Axes, table: pd.DataFrame, what: str) -> None:
    """What a reader must know to judge the picture: data set, seeds, budget."""
    seeds = table.groupby([*_varied(table)], sort=False, dropna=False).size()
    n = f"n = {seeds.min()}" if seeds.min() == seeds.max() else f"n = {seeds.min()}–{seeds.max()}"
    data = ", ".join(dict.fromkeys(table["dataset"]))
    budget = ", ".join("unmatched" if match == "none" else f"equal {match}" for match in dict.fromkeys(table["match"]))
    ax.set_title(f"{data} · {n} seeds · budget: {budget}\n{what}", color="0.25", fontsize=8)


def _varied(table: pd.DataFrame) -> list[str]:
    """Columns that tell the points of a table apart, seeds left out."""
    candidates = [*POINT, "order", "activation", "norm", "residual", "model", "width", "lr", "dataset", "match"]
    return [*POINT, *(c for c in candidates[3:] if c in table and table[c].nunique(dropna=False) > 1)]


def point_label(row: pd.Series) -> str:
    """What a row is called: its segments, and whether the 1×1 is left out."""
    return segments_label(row["segments"], row["segment_width"], bool(row["pointwise"]))


def _scored(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    table = results[results[metric].notna()] if metric in results else results.iloc[:0]
    if table.empty:
        raise ValueError(f"no row has {metric}; nothing to draw")
    return table


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

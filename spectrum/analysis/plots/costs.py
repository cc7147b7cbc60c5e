"""What points cost and what they give for it; how fast they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from spectrum.analysis.fronts import pareto_table
from spectrum.analysis.plots.drawing import (
    METRIC_LABELS,
    axes_or_new,
    captioned,
    drawable,
    error_bars,
    figure_of,
    look_of,
    say,
    setting_label,
    shades_of,
    styled,
    wrapped,
)
from spectrum.analysis.table import IMAGES, SPLIT, split_labels, varied_settings

if TYPE_CHECKING:  # it needs torch, which reading and drawing a table do not
    from spectrum.cost.count import Cost, LayerCost

COST_LABELS = {
    "params": "parameters",
    "macs": "MACs of one image, forward",
    "train_seconds": "training time in seconds",
}
COUNTS = {
    "macs": "MACs of one image, forward",
    "params": "parameters",
    "backward_macs": "MACs of one image, backward",
    "activations": "activations of one image",
}
PARTS = {
    "spatial": "spatial half",
    "pointwise": "1×1 half",
    "Conv2d": "other convolutions",
    "Linear": "linear layers",
    "BatchNormAct2d": "batch normalisation",
    "BatchNorm2d": "batch normalisation",
}
HATCHES = ("", "//", "", "..", "\\\\")
MOST_LABELS = 12


@styled
def accuracy_against(
    results: pd.DataFrame, cost: str = "macs", *, ax: Axes | None = None, metric: str = "test_accuracy"
) -> Figure:
    """Mean accuracy against a cost on a log axis, the Pareto front of the means drawn, and which points are off it.

    Args:
        results: from `load_results`.
        cost: "params", "macs" or "train_seconds".
        ax: where to draw; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in per cent.

    Open marks are off the front: a point that costs no more is shown to be better (`stats.pareto_table`). Full marks
    may lie on it. Points are labelled by their segments; where that would be crowded, shades tell them apart instead,
    light to dark along the spectrum. Raises ValueError when no row has the metric.
    """
    table = drawable(results, metric, [cost])
    new = ax is None
    ax = axes_or_new(ax)
    names = varied_settings(table)
    runs = pareto_table(table, cost, metric=metric)
    kinds = list(runs.groupby(names, sort=False, dropna=False)) if names else [((), runs)]
    crowded = len(runs) > (MOST_LABELS if len(kinds) == 1 else MOST_LABELS // 2)
    if crowded and new:
        figure_of(ax).set_size_inches(7.6, 3.6)  # room for the legend of the shades
    shades = shades_of(table) if crowded else {}
    for number, (values, part) in enumerate(kinds):
        look = look_of(number)
        _marks(ax, part, look, shades)
        if names:
            look = look | {"color": "0.35"} if crowded else look
            ax.plot([], [], ls="", marker=look["marker"], color=look["color"], label=setting_label(names, values))
    _fronts(ax, runs, tasks=[name for name in IMAGES if name in names])
    for label, shade in shades.items():
        ax.plot([], [], ls="", marker="s", color=shade, label=label)
    if crowded:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        _label(ax, runs)
        ax.legend()
    ax.set_xscale("log")
    ax.margins(x=0.1, y=0.1)
    _engineering_axis(ax)
    ax.set_xlabel(COST_LABELS.get(cost, cost))
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    say(ax, table, names, "shades: segments" if crowded else "labels: segments", "bars: 95 % t-interval")
    return figure_of(ax)


def _marks(ax: Axes, runs: pd.DataFrame, look: Mapping[str, Any], shades: Mapping[str, Any]) -> None:
    """Means with their intervals, open where they are shown to be off the front."""
    for _, run in runs.iterrows():
        color = shades.get(run["label"], look["color"])
        face = "white" if run["beaten_by"] else color
        bar = error_bars(run.to_frame().T)
        at = run["cost"], 100 * run["mean"]
        ax.errorbar(*at, bar, fmt=look["marker"], color=color, mfc=face, capsize=2, lw=1, zorder=3)


def _fronts(ax: Axes, runs: pd.DataFrame, tasks: list[str]) -> None:
    """The Pareto front of the means; one for each task."""
    fronts = [part for _, part in runs.groupby(tasks, dropna=False, sort=False)] if tasks else [runs]
    for part in fronts:
        front = part[part["on_front"]].sort_values("cost")
        label = "Pareto front of the means" if part is fronts[0] else None
        ax.plot(front["cost"], 100 * front["mean"], ls="--", color="0.35", marker="", label=label)
    if (runs["beaten_by"] != "").any():
        ax.plot([], [], ls="", marker="o", color="0.35", mfc="white", label="shown to be off the front")


@styled
def time_against_macs(results: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """Training time of an image against its MACs, both on log axes: what arithmetic does not say about speed.

    Args:
        results: from `load_results`.
        ax: where to draw; by default a figure of its own.

    Marks are medians over seeds. Along the dashed line time is in proportion to the MACs, at the rate of the point that
    does most of them a second; what lies far above it pays for more than arithmetic. Times rank points only where they
    were measured alike: see a study's README. Raises ValueError when no run has a speed.
    """
    table = drawable(results, "images_per_second", ["macs"])
    ax = axes_or_new(ax)
    names = varied_settings(table)
    table = table.assign(ms=1000 / table["images_per_second"])
    by = [*SPLIT, *names]
    runs = table.groupby(by, sort=False, dropna=False)[["macs", "ms"]].median().reset_index()
    runs["label"] = split_labels(runs)
    fastest = runs["ms"].div(runs["macs"]).min()
    ends = np.array([runs["macs"].min(), runs["macs"].max()])
    ax.plot(ends, fastest * ends, ls="--", color="0.35", marker="", label="in proportion to the MACs")
    kinds = list(runs.groupby(names, sort=False, dropna=False)) if names else [((), runs)]
    for number, (values, part) in enumerate(kinds):
        look = look_of(number)
        label = setting_label(names, values) or None
        ax.plot(part["macs"], part["ms"], ls="", marker=look["marker"], color=look["color"], label=label)
    if len(runs) <= MOST_LABELS:
        _label(ax, runs.assign(cost=runs["macs"], top=runs["ms"]))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.1, y=0.12)
    _engineering_axis(ax)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(COST_LABELS["macs"])
    ax.set_ylabel("training time of an image, ms")
    ax.legend()
    say(ax, table, names, "marks: medians over seeds", "labels: segments" if len(runs) <= MOST_LABELS else "")
    return figure_of(ax)


@styled
def cost_by_layer(costs: Mapping[str, Cost], count: str = "macs", *, ax: Axes | None = None) -> Figure:
    """Where networks spend: a bar a network, a block a layer from input to output, coloured by what the layer is.

    Args:
        costs: what each network is called, and what `measure_cost` counts of it.
        count: "macs", "params", "backward_macs" or "activations".
        ax: where to draw; by default a figure of its own.

    Totals with products that are not counted say "at least", and the caption names what is missing.

    Raises ValueError for no network or a count that is not there.

    >>> from spectrum import build_model, measure_cost
    >>> costs = {s: measure_cost(build_model("probe", segments=s), (3, 32, 32)) for s in (1, 4, "per_channel")}
    >>> figure = cost_by_layer({f"{s}": cost for s, cost in costs.items()})
    """
    if count not in COUNTS:
        raise ValueError(f"count={count!r}: try {', '.join(COUNTS)}")
    if not costs:
        raise ValueError("cost_by_layer: no network to draw")
    new = ax is None
    ax = axes_or_new(ax)
    if new:
        figure_of(ax).set_size_inches(6.4, 1.5 + 0.42 * len(costs))
    layers = [layer for cost in costs.values() for layer in cost.layers if getattr(layer, count)]
    parts = {part: _block(number) for number, part in enumerate(dict.fromkeys(map(_part, layers)))}
    for place, cost in enumerate(costs.values()):
        total = _bar(ax, place, cost, count, parts)
        bound = "at least " if cost.not_counted and count != "params" else ""
        ax.text(total, place, f"  {bound}{_rounded(total)}", va="center", fontsize=8)
    for part, look in parts.items():
        ax.bar(0, 0, edgecolor="white", label=part, **look)
    ax.set_yticks(range(len(costs)), [wrapped(name, 24) for name in costs])
    ax.set_ylim(len(costs) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_formatter(FuncFormatter(engineering))
    ax.set_xlabel(COUNTS[count])
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = "a bar a network · a block a layer, from input to output"
    missing = [f"{name}: {cost.caveat}" for name, cost in costs.items() if cost.caveat and count != "params"]
    ax.set_title(captioned(ax, caption, *missing) if missing else caption, color="0.25", fontsize=7.5)
    return figure_of(ax)


def _bar(ax: Axes, place: int, cost: Cost, count: str, parts: Mapping[str, dict[str, Any]]) -> int:
    """A network's layers side by side, as its bar; their total."""
    total = 0
    for layer in cost.layers:
        size = getattr(layer, count)
        if size:
            look = parts[_part(layer)]
            ax.barh(place, size, left=total, height=0.7, edgecolor="white", linewidth=0.8, **look)
            total += size
    return total


def _block(number: int) -> dict[str, Any]:
    return {"color": look_of(number)["color"], "hatch": HATCHES[number % 5]}


def _part(layer: LayerCost) -> str:
    """What a layer is, in the words of the spectrum; of other layers, their class."""
    half = layer.name.rpartition(".")[2]
    if half in PARTS:
        return PARTS[half]
    return PARTS.get(layer.kind, layer.kind)


def _label(ax: Axes, runs: pd.DataFrame) -> None:
    """What each point is called, above its bar, or above its mark where there is no bar."""
    for _, run in runs.iterrows():
        if "top" in run:
            top, offset = run["top"], 5
        elif run["high"] == run["high"] and run["high"] > run["mean"]:
            top, offset = 100 * run["high"], 2
        else:
            top, offset = 100 * run["mean"], 5
        text = ax.annotate(
            run["label"],
            (run["cost"], top),
            xytext=(0, offset),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
            zorder=2.5,
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # legible across bars, below marks


def _engineering_axis(ax: Axes) -> None:
    low, high = ax.get_xlim()
    few = MaxNLocator(nbins=4, steps=[1, 2, 5, 10])
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else few)
    ax.xaxis.set_major_formatter(FuncFormatter(engineering))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _rounded(value: float) -> str:
    """Three digits, as in 1.59 M."""
    return engineering(float(f"{value:.3g}"))


@styled
def roofline_curve(
    table: pd.DataFrame, *, ax: Axes | None = None, shape: str | None = None, ours: str = "spectrum"
) -> Figure:
    """Speed along the spectrum: per cent of the roofline, one line a way to compute, on a log₂ axis.

    Args:
        table: of `spectrum bench op`, read from its CSV.
        ax: where to draw; by default a figure of its own.
        shape: one of its shapes; by default the first.
        ours: the way that is drawn first and thick.

    Numbers of segments that leave uneven ones are left out. Raises ValueError for a shape that is not there.
    """
    if table.empty:
        raise ValueError("roofline_curve: the table has no rows; read one that spectrum bench op wrote")
    ax = axes_or_new(ax)
    shape = table["shape"].iloc[0] if shape is None else shape
    part = table[(table["shape"] == shape) & (table["channels_per_segment"] % 1 == 0)]
    if part.empty:
        raise ValueError(f"shape={shape}: not measured; try {', '.join(table['shape'].unique())}")
    for number, way in enumerate(sorted(part["way"].unique(), key=lambda way: (way != ours, way))):
        line, look = part[part["way"] == way], look_of(number)
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
    ax.set_ylabel("speed, % of the roofline")
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.set_title(f"3×3, {shape}, forward and backward; line: median, band: quartiles", fontsize="small")
    return figure_of(ax)


def engineering(value: float, _position: int | None = None) -> str:
    """A count with its unit, as in 1.6 M."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"

"""What configurations cost, what they give for it, and how fast they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from spectrum.analysis.fronts import pareto_table
from spectrum.analysis.plots.accuracy import along_label, telling_apart
from spectrum.analysis.plots.drawing import (
    BUDGET_LOOKS,
    NARROW,
    ShownFigure,
    axes_or_new,
    drawable,
    error_bars,
    figure_of,
    inches_of,
    look_of,
    metric_axis,
    shares_of,
    small,
    styled,
    wished_shades,
    wrapped,
)
from spectrum.analysis.plots.frame import frame, inches_of_text, legend_beside, name_curves, sample, say
from spectrum.analysis.plots.words import Wishes
from spectrum.analysis.table import IMAGES, SPLIT, budget_name, check_source, having, split_labels, varied_settings
from spectrum.analysis.words import setting_label

if TYPE_CHECKING:  # it needs torch, which reading and drawing a table do not
    from spectrum.cost.count import Cost, LayerCost

COST_LABELS = {
    "params": "parameters",
    "macs": "MACs per image, forward",
    "train_seconds": "training time, s",
}
COUNTS = {
    "macs": "MACs per image, forward",
    "params": "parameters",
    "backward_macs": "MACs per image, backward",
    "activations": "activations per image",
}
PARTS = {
    "spatial": "3×3 of a pair",
    "pointwise": "1×1 of a pair",
    "Conv2d": "other convolutions",
    "Linear": "linear layers",
    "BatchNormAct2d": "batch normalisation",
    "BatchNorm2d": "batch normalisation",
}
ROOFLINE_COLUMNS = ("shape", "channels_per_segment", "segments", "way", "percent", "yardstick_ms", "ms_q1", "ms_q3")
HATCHES = ("", "//", "", "..", "\\\\")
MOST_LABELS = 12
MOST_WAYS = 6  # implementations whose names stand at the ends of their lines
ROOFLINE = (
    "100%: a matrix product with as many multiply-adds, or a copy of as many bytes, whichever takes longer; "
    "a reference, not a limit"
)


@styled
def accuracy_against(
    results: pd.DataFrame,
    cost: str = "macs",
    *,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Mean accuracy against a cost on a log axis, with the Pareto frontier of the means.

    Args:
        results: from `load_results`.
        cost: "params", "macs" or "train_seconds".
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in percent.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the splits, in their order along the spectrum or by their labels.
        labels: your words for labels, such as {"per-channel": "depthwise"}.

    Colours say the split, light to dark along the spectrum, and markers what else varies. All configurations are named
    where there is room, else those on the frontier. Open marks are off the frontier: a configuration that costs no
    more is shown to be better (`stats.pareto_table`). Where several budgets are drawn, configurations for which this
    very cost is matched are left out. Raises ValueError when no row has the metric.
    """
    table = drawable(results, metric, [cost])
    table, left_out = _without_matched(table, cost)
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, colors, labels)
    names = varied_settings(table)
    found = pareto_table(table, cost, metric=metric)
    kinds = list(found.groupby(names, sort=False, dropna=False)) if names else [((), found)]
    shades = wished_shades(table, wishes)
    tasks = [name for name in IMAGES if name in names]
    telling, along = telling_apart(names, [values for values, _ in kinds])
    _frontiers(ax, found, tasks)
    entries = []
    for number, (values, part) in enumerate(kinds):
        look = BUDGET_LOOKS[str(values[0])] if names == ["match"] else look_of(number)
        _marks(ax, part, look["marker"], shades)
        if names:
            label = wishes.called(setting_label(telling, [values[names.index(name)] for name in telling]))
            entries.append(sample(label, {"marker": look["marker"], "color": "0.35", "linestyle": ""}))
    narrow = inches_of(ax)[0] < NARROW
    crowded = len(found) > (MOST_LABELS if len(kinds) == 1 else MOST_LABELS // 2)
    if crowded and not narrow:  # at a column's width colours go from light to dark, and the frontier has names
        entries += [
            sample(wishes.called(label), {"marker": "s", "color": shade, "linestyle": ""})
            for label, shade in shades.items()
        ]
    ax.set_xscale("log")
    ax.margins(x=0.1, y=0.2 if narrow else 0.12)  # names above the highest marks need room
    _engineering_axis(ax)
    ax.set_xlabel(wishes.called(COST_LABELS.get(cost, cost)))
    metric_axis(ax, metric, table, wishes)
    drawn = ax.get_legend_handles_labels()[0]
    _label(ax, found, wishes, only_front=crowded)
    marks = "mean and 95% CI"
    if len(drawn) + len(entries) > 1:
        legend_beside(ax, [*drawn, *entries])
    else:
        marks += "; dashed: Pareto frontier of the means"
    cost_word = "MACs" if cost == "macs" else COST_LABELS.get(cost, cost).partition(",")[0]
    foot = f"{budget_name(cost)} configurations are left out" if left_out else along_label(telling, along)
    say(ax, table, names, marks, wishes=wishes, title=f"Accuracy against {cost_word}", foot=foot)
    return figure_of(ax)


def _without_matched(table: pd.DataFrame, cost: str) -> tuple[pd.DataFrame, bool]:
    """Rows of budgets that do not match this very cost, where there are others; and whether any are left out."""
    matched = table["match"].eq(cost)
    left_out = bool(matched.any() and not matched.all())
    return (table[~matched] if left_out else table), left_out


def _marks(ax: Axes, configurations: pd.DataFrame, marker: str, shades: Mapping[str, Any]) -> None:
    """Means with their intervals, open where they are shown to be off the frontier."""
    for _, one in configurations.iterrows():
        color = shades[one["label"]]
        face = "white" if one["beaten_by"] else color
        bar = error_bars(one.to_frame().T)
        at = one["cost"], 100 * one["mean"]
        ax.errorbar(*at, bar, fmt=marker, color=color, mfc=face, capsize=0, elinewidth=1, zorder=3)


def _frontiers(ax: Axes, configurations: pd.DataFrame, tasks: list[str]) -> None:
    """The Pareto frontier of the means as steps, since what lies between two networks is no network; one per task."""
    parts = [part for _, part in configurations.groupby(tasks, dropna=False, sort=False)] if tasks else [configurations]
    for part in parts:
        front = part[part["on_front"]].sort_values("cost")
        label = "Pareto frontier of the means" if part is parts[0] else None
        steps: Any = {"drawstyle": "steps-post", "ls": "--", "lw": 1.2, "color": "0.5", "marker": "", "zorder": 2}
        ax.plot(front["cost"], 100 * front["mean"], label=label, **steps)
    if (configurations["beaten_by"] != "").any():
        ax.plot([], [], ls="", marker="o", color="0.35", mfc="white", label="shown to be off it")


@styled
def time_against_macs(
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Training time per image against its MACs, both on log axes: what arithmetic does not say about speed.

    Args:
        results: from `load_results`.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the settings, in their order or by their labels.
        labels: your words for labels, such as {"per-channel": "depthwise"}.

    Marks are medians over seeds. Along the dashed line time is in proportion to the MACs, at the rate of the
    configuration that does most of them per second; what lies far above it pays for more than arithmetic. Times rank
    configurations only where they were measured alike: see a study's README. Raises ValueError when no run has a speed.
    """
    table = having(drawable(results, needs=["macs"]), "images_per_second")
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, colors, labels)
    names = varied_settings(table)
    table = table.assign(ms=1000 / table["images_per_second"])
    by = [*SPLIT, *names]
    found = table.groupby(by, sort=False, dropna=False)[["macs", "ms"]].median().reset_index()
    found["label"] = split_labels(found)
    fastest = found["ms"].div(found["macs"]).min()
    ends = np.array([found["macs"].min(), found["macs"].max()])
    ax.plot(ends, fastest * ends, ls="--", color="0.35", marker="", label="proportional to MACs")
    kinds = list(found.groupby(names, sort=False, dropna=False)) if names else [((), found)]
    for number, (values, part) in enumerate(kinds):
        label = setting_label(names, values)
        look = look_of(number, label, wishes) | {"linestyle": ""}
        ax.plot(part["macs"], part["ms"], label=wishes.called(label) or None, **look)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.1, y=0.12)
    _engineering_axis(ax)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(wishes.called(COST_LABELS["macs"]))
    ax.set_ylabel(wishes.called("training time per image, ms"))
    if len(found) <= MOST_LABELS:
        _label(ax, found.assign(cost=found["macs"], top=found["ms"]), wishes)
    if names:
        legend_beside(ax, ax.get_legend_handles_labels()[0])
    marks = "medians over seeds; dashed: proportional to MACs"
    say(ax, table, names, marks, wishes=wishes, title="Training time against MACs")
    return figure_of(ax)


@styled
def cost_by_layer(
    costs: Mapping[str, Cost],
    count: str = "macs",
    *,
    ax: Axes | None = None,
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Where networks spend: a bar per network, a block per layer from input to output, coloured by what the layer is.

    Args:
        costs: what each network is called, and what `measure_cost` counts of it.
        count: "macs", "params", "backward_macs" or "activations".
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        title: what the picture answers or finds; by default its task.
        caption: whether to say how to read it, and what is not counted.
        colors: of the kinds of layers, in their order or by their labels.
        labels: your words for labels, such as {"linear layers": "classifier"}.

    Totals with products that are not counted say "at least", and the caption names what is missing.

    Raises ValueError for no network or a count that is not there.

    >>> from spectrum import build_model, measure_cost
    >>> costs = {s: measure_cost(build_model("probe", segments=s), (3, 32, 32)) for s in (1, 4, "per_channel")}
    >>> figure = cost_by_layer({f"{s}": cost for s, cost in costs.items()})
    """
    if count not in COUNTS:
        raise ValueError(f"count={count!r}: try {', '.join(COUNTS)}")
    if not isinstance(costs, Mapping) or not all(hasattr(cost, "layers") for cost in costs.values()):
        raise ValueError(
            "cost_by_layer: expected the costs of networks by their names, as in "
            '{"mine": measure_cost(model, (3, 32, 32))}'
        )
    if not costs:
        raise ValueError("cost_by_layer: no network to draw")
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, colors, labels)
    if isinstance(figure_of(ax), ShownFigure):
        figure_of(ax).set_size_inches(6.4, 0.9 + 0.4 * len(costs))
    layers = [layer for cost in costs.values() for layer in cost.layers if getattr(layer, count)]
    parts = {part: _block(number, part, wishes) for number, part in enumerate(dict.fromkeys(map(_part, layers)))}
    for place, cost in enumerate(costs.values()):
        total = _bar(ax, place, cost, count, parts)
        bound = "at least " if cost.not_counted and count != "params" else ""
        ax.text(total, place, f"  {bound}{_rounded(total)}", va="center", fontsize=small())
    for part, look in parts.items():
        ax.bar(0, 0, edgecolor="white", label=wishes.called(part), **look)
    ax.set_yticks(range(len(costs)), [wrapped(wishes.called(name), 24) for name in costs])
    ax.set_ylim(len(costs) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_formatter(FuncFormatter(engineering))
    ax.set_xlabel(wishes.called(COUNTS[count]))
    legend_beside(ax, ax.get_legend_handles_labels()[0])
    missing = [f"{name}: {cost.caveat}" for name, cost in costs.items() if cost.caveat and count != "params"]
    facts = "a bar per network, a block per layer from input to output"
    frame(ax, facts, " · ".join(missing), wishes, f"Where networks spend their {COUNTS[count].partition(' per')[0]}")
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


def _block(number: int, part: str, wishes: Wishes) -> dict[str, Any]:
    return {"color": look_of(number, part, wishes)["color"], "hatch": HATCHES[number % 5]}


def _part(layer: LayerCost) -> str:
    """What a layer is, in the words of the spectrum; of other layers, their class."""
    half = layer.name.rpartition(".")[2]
    if half in PARTS:
        return PARTS[half]
    return PARTS.get(layer.kind, layer.kind)


Box = tuple[float, float, float, float]  # left, right, bottom and top, in points from the corner of the axes
MARK = 3.0  # points from the middle of a mark to its edge
NEARBY = 45.0  # points within which one name is enough for marks of one split


def _label(ax: Axes, configurations: pd.DataFrame, wishes: Wishes, *, only_front: bool = False) -> None:
    """Name each configuration above its bar; beside its mark or below where that would lie on a name or on a mark.

    Where no place is free, a name stands above its bar; of many configurations, it is left out, and so is a name that
    stands nearby already.
    """
    named = configurations[configurations["on_front"]] if only_front else configurations
    rows = sorted(((*_top(one), one) for _, one in named.iterrows()), key=lambda row: -row[0])
    heights = configurations["top"] if "top" in configurations else 100 * configurations["mean"]
    marks = [_points(ax, x, y) for x, y in zip(configurations["cost"], heights, strict=True)]
    taken: list[Box] = [(x - MARK, x + MARK, y - MARK, y + MARK) for x, y in marks]
    said: list[tuple[str, float, float]] = []
    for top, offset, one in rows:
        name = wishes.called(one["label"])
        places = _places(ax, one, top, offset, 72 * inches_of_text(name, small()))
        free = next((place for place in places if not any(_overlap(place[0], box) for box in taken)), None)
        x, y = _points(ax, one["cost"], top)
        nearby = any(name == other and max(abs(x - at), abs(y - up)) < NEARBY for other, at, up in said)
        if only_front and (nearby or free is None):
            continue
        box, at, how = free or places[0]
        taken.append(box)
        said.append((name, x, y))
        text = ax.annotate(name, at, textcoords="offset points", fontsize=small(), zorder=4, **how)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # legible across bars


def _places(ax: Axes, one: pd.Series, top: float, offset: int, length: float) -> list[tuple[Box, Any, dict[str, Any]]]:
    """Where the name of a mark may stand: above its bar, right of it, left of it and below; those within the axes."""
    cost, size = one["cost"], small()
    middle = top if "top" in one else 100 * one["mean"]
    foot = 2 * middle - top if one.get("high", float("nan")) == one.get("high") else middle
    (x, y), (_, mid), (_, low) = (_points(ax, cost, height) for height in (top, middle, foot))
    end, gap = _points(ax, ax.get_xlim()[1], top)[0], MARK + 2
    inwards = max(0.0, length / 2 - x) - max(0.0, x + length / 2 - end)
    left, right = x + inwards - length / 2, x + inwards + length / 2
    found = [
        ((left, right, y + offset, y + offset + size), (cost, top), (inwards, offset), "center", "bottom"),
        ((x + gap, x + gap + length, mid - size / 2, mid + size / 2), (cost, middle), (gap, 0), "left", "center"),
        ((x - gap - length, x - gap, mid - size / 2, mid + size / 2), (cost, middle), (-gap, 0), "right", "center"),
        ((left, right, low - offset - size, low - offset), (cost, foot), (inwards, -offset), "center", "top"),
    ]
    return [
        (box, at, {"xytext": away, "ha": ha, "va": va})
        for box, at, away, ha, va in found
        if box[0] > -1 and box[1] < end + 1 and box[2] > 0
    ] or [(found[0][0], found[0][1], {"xytext": found[0][2], "ha": "center", "va": "bottom"})]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _points(ax: Axes, x: float, y: float) -> tuple[float, float]:
    """About where a place lies, in points from the corner of the axes."""
    (across, up), (width, height) = shares_of(ax, x, y), inches_of(ax)
    return 72 * 0.85 * width * across, 72 * 0.85 * height * up


def _top(one: pd.Series) -> tuple[float, int]:
    """Above what a name stands, and how far."""
    if "top" in one:
        return float(one["top"]), 5
    if one["high"] == one["high"] and one["high"] > one["mean"]:
        return 100 * float(one["high"]), 2
    return 100 * float(one["mean"]), 5


def _engineering_axis(ax: Axes) -> None:
    low, high = ax.get_xlim()
    room = max(2, int(inches_of(ax)[0] / 0.62))  # labels such as 1.65 M
    choices = [LogLocator(subs=subs) for subs in ((1, 2, 5), (1, 3), (1,))]
    shown = [sum(low <= tick <= high for tick in one.tick_values(low, high)) for one in choices]
    if high <= 4 * low or shown[0] < 2:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=min(4, room - 1), steps=[1, 2, 5, 10]))
    else:
        ax.xaxis.set_major_locator(next((one for one, n in zip(choices, shown, strict=True) if n <= room), choices[-1]))
    ax.xaxis.set_major_formatter(FuncFormatter(engineering))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _rounded(value: float) -> str:
    """Three digits, as in 1.59 M."""
    return engineering(float(f"{value:.3g}"))


# tables of earlier versions have this layer only, and no such columns
PLAIN_LAYER = {"kernel": 3, "stride": 1, "dilation": 1, "layout": "channels_last"}


@styled
def roofline_curve(
    table: pd.DataFrame,
    *,
    ax: Axes | None = None,
    shape: str | None = None,
    ours: str = "spectrum",
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Speed along the spectrum: percent of the roofline, one line per implementation, on a log₂ axis.

    Args:
        table: of `spectrum bench op`, read from its CSV.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        shape: one of its shapes; by default the first.
        ours: the implementation that is drawn first and thick.
        title: what the picture answers or finds; by default its task.
        caption: whether to say shape and marks.
        colors: of the implementations, in their order or by their labels.
        labels: your words for labels, such as {"torch": "PyTorch"}.

    Drawn is the 3×3 with stride 1, in channels_last. Numbers of segments that leave uneven ones are left out, and so is
    the layer with a measured choice, since its backend is one of the others. Raises ValueError for a shape that is not
    there.
    """
    check_source(table, (), "spectrum bench op")
    if table.empty:
        raise ValueError("roofline_curve: the table has no rows; read one that spectrum bench op wrote")
    check_source(table, ROOFLINE_COLUMNS, "spectrum bench op")
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, colors, labels)
    for name, value in PLAIN_LAYER.items():
        table = table[table[name] == value] if name in table else table
    table = table[table["way"] != "spectrum, measured choice"]
    shape = table["shape"].iloc[0] if shape is None else shape
    part = table[(table["shape"] == shape) & (table["channels_per_segment"] % 1 == 0)]
    if part.empty:
        raise ValueError(f"shape={shape}: not measured; try {', '.join(table['shape'].unique())}")
    for number, way in enumerate(sorted(part["way"].unique(), key=lambda way: (way != ours, way))):
        line, look = part[part["way"] == way], look_of(number, way, wishes)
        low, high = (100 * line["yardstick_ms"] / line[q] for q in ("ms_q3", "ms_q1"))
        ax.fill_between(line["segments"], low, high, color=look["color"], alpha=0.2, linewidth=0)
        ax.plot(
            line["segments"],
            line["percent"],
            color=look["color"],
            marker=look["marker"],
            linewidth=2.2 if way == ours else 1.0,
            zorder=3 if way == ours else 2,
            label=wishes.called(way),
        )
    ax.axhline(100, color="0.6", linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel(wishes.called("segments of the 3×3 convolution"))
    ax.set_ylabel(wishes.called("speed, % of the roofline"))
    ax.set_ylim(bottom=0)
    name_curves(ax, most=MOST_WAYS)
    facts = f"3×3, {_input(shape)}, forward and backward; line: median, band: quartiles"
    frame(ax, facts, ROOFLINE, wishes, "Speed along the spectrum, relative to the roofline")
    return figure_of(ax)


def _input(shape: str) -> str:
    """An input in words, from "32×128×16×16"."""
    images, channels, *pixels = shape.split("×")
    return f"{images} images of {channels} channels, {'×'.join(pixels)} pixels"


def engineering(value: float, _position: int | None = None) -> str:
    """A count with its unit, as in 1.6 M."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"

"""What all pictures share: the style, the axes, what stands above them, how they are saved."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.lines
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from spectrum._files import write_whole
from spectrum.analysis.inference import t_interval
from spectrum.analysis.table import (
    SPLIT,
    budget_name,
    scored,
    segments_label,
    spectrum_position,
    split_labels,
    studies_of,
    worst_mismatch,
)

STYLE = Path(__file__).with_name("spectrum.mplstyle")
CAPTION_CHARACTERS = 17.5  # of a caption, an inch
ORDERS = {"pointwise_first": "1×1 first", "spatial_first": "spatial first"}
LETTERS_WITHIN = 200  # of all labels; a legend of more is put below the axes
METRIC_LABELS = {"test_accuracy": "test accuracy, %", "val_accuracy": "validation accuracy, %"}
P = ParamSpec("P")


class ShownFigure(Figure):
    """A figure that a notebook shows as the value of a cell, without `%matplotlib inline` and without pyplot."""

    def __repr__(self) -> str:
        width, height = (self.get_size_inches() * self.dpi).tolist()
        return f"<Figure size {width:g}x{height:g} with {len(self.axes)} Axes>"  # as matplotlib says it

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture, and the size in pixels at which it is shown; a display of high resolution has more to show."""
        png = io.BytesIO()
        with style():
            self.savefig(png, format="png", metadata={"Software": None})
        width, height = (round(inches * mpl.rcParams["figure.dpi"]) for inches in self.get_size_inches())
        return png.getvalue(), {"width": width, "height": height}


@contextmanager
def style() -> Iterator[None]:
    """The project's style, for figures of one's own: `with plots.style(): …`.

    It stands on matplotlib's defaults, not on the settings of the moment, so that a study looks the same everywhere.
    """
    with mpl.style.context(STYLE, after_reset=True):
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return styled


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write stem.svg and stem.png, and return their paths; the same figure gives the same bytes.

    Args:
        figure: from any function of this module.
        stem: path without the ending; its folder is made.
    """
    paths = [Path(f"{stem}.{kind}") for kind in ("svg", "png")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with style():
        for path, omitted in zip(paths, ("Date", "Software"), strict=True):
            drawn = BytesIO()
            figure.savefig(drawn, format=path.suffix[1:], metadata={omitted: None})
            write_whole(path, drawn.getvalue())
    return paths


def drawable(results: pd.DataFrame, metric: str | None = None, needs: Iterable[str] = ()) -> pd.DataFrame:
    """The rows that a picture can be drawn of and can say what they are. Raises ValueError as `scored` does."""
    return scored(results, metric, needs=["dataset", "match", "realised_segments", *needs])


def say(ax: Axes, table: pd.DataFrame, names: Sequence[str], *what: str) -> None:
    """What a reader must know to judge the picture: data set, seeds, budget, and what the marks are.

    Lines are broken where the axes end, so that what is drawn side by side keeps its own caption.
    """
    table = table[table["status"] != "failed"]
    n = seeds_label(table, names)
    data = ", ".join(dict.fromkeys(table["dataset"]))
    separator = "\n" if table["match"].nunique() > 1 else " · "
    caption = f"{data} · {n} a point{separator}budget: {budgets_label(table)}"
    diverged = int(table["status"].eq("diverged").sum())
    lost = f"{diverged} {'run' if diverged == 1 else 'runs'} diverged, drawn at chance" if diverged else ""
    marks = " · ".join(filter(None, [*what, lost]))
    ax.set_title(captioned(ax, caption, marks, whence(table)), color="0.25", fontsize=7.5)


def captioned(ax: Axes, *parts: str) -> str:
    """Lines that are broken to the width of the axes: beside others, as they are; alone, what their labels leave."""
    figure = figure_of(ax)
    if len(figure.axes) > 1:
        inches = ax.get_position().width * figure.get_figwidth()
    else:
        labels = [line for tick in ax.get_yticklabels() for line in tick.get_text().splitlines()]
        inches = figure.get_figwidth() - 0.6 - 0.06 * max(map(len, labels), default=0)
    width = max(30, round(inches * CAPTION_CHARACTERS))
    return "\n".join(line for part in parts if part for line in wrapped(part, width).splitlines())


def seeds_label(table: pd.DataFrame, names: Sequence[str]) -> str:
    """How many seeds the points of a picture have; of rows without failed runs."""
    seeds = table.groupby([*SPLIT, *names], sort=False, dropna=False)["seed"].nunique()
    return f"n = {span(seeds.min(), seeds.max())} {'seed' if seeds.max() == 1 else 'seeds'}"


def budgets_label(table: pd.DataFrame) -> str:
    return ", ".join(budget_label(table[table["match"] == match]) for match in dict.fromkeys(table["match"]))


def whence(table: pd.DataFrame) -> str:
    """The studies that a table has rows of."""
    studies = studies_of(table)
    return f"{'studies' if ',' in studies else 'study'} {studies}" if studies else ""


def span(few: int, many: int) -> str:
    return f"{few}" if few == many else f"{few}–{many}"


def budget_label(table: pd.DataFrame) -> str:
    match = table["match"].iloc[0]
    if match == "none":
        return "unmatched"
    worst = worst_mismatch(table)
    return f"{budget_name(match)} (within {worst:.2%})" if worst == worst else budget_name(match)


def setting_label(names: Sequence[str], values: Sequence[Any]) -> str:
    """What a curve is called: the values of the settings that vary, if set; a budget in the words of the title."""
    pairs = list(zip(names, values, strict=True))
    have = [(name, value) for name, value in pairs if value is not None and value == value]
    return ", ".join(value_label(name, value) for name, value in have or pairs)


def value_label(name: str, value: Any) -> str:
    """A setting and its value in words."""
    if name == "match":
        return budget_name(value)
    if name == "order":
        return ORDERS.get(value, str(value))
    if isinstance(value, bool | np.bool_):
        return name.replace("_", " ") if value else f"no {name}".replace("_", " ")
    if isinstance(value, float) and value == value and value == int(value) and abs(value) >= 1:
        value = int(value)
    if isinstance(value, tuple | list):
        value = ":".join(map(str, value)) if name == "segment_shares" else ", ".join(map(str, value))
    value = "not set" if value is None or value != value else value
    return f"{name} {value}".replace("_", " ")


def look_of(number: int) -> dict[str, Any]:
    """Colour, line and marker of one curve; where the palette ends, it begins again with other lines and markers."""
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    look = dict(cycle[number % len(cycle)])
    if number >= len(cycle):
        look |= {"linestyle": (0, (1, 1, 4, 1)), "marker": "*pHh8d<>"[number % 8]}
    return look


def shades_of(table: pd.DataFrame) -> dict[str, Any]:
    """A shade a point, light to dark along the spectrum, by label."""
    places = table.assign(place=spectrum_position(table), label=split_labels(table)).groupby("label")["place"].mean()
    labels = list(places.sort_values(kind="stable").index)
    shades = np.linspace(0.1, 1, len(labels)) if len(labels) > 1 else [0.7]
    return dict(zip(labels, mpl.colormaps["viridis_r"](shades), strict=True))


def axes_or_new(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    return ShownFigure().add_subplot()


def figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure()
    assert figure is not None
    return figure.figure if isinstance(figure, SubFigure) else figure


def wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))


def shortened(text: str, width: int, most: int) -> str:
    """Text on at most so many lines; what is beyond becomes an ellipsis."""
    lines = wrapped(text, width).splitlines()
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: width - 2]} …"])


def error_bars(groups: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Lengths of the error bars in per cent, below and above the mean; 0 where there is no interval."""
    ends = groups[["low", "high"]].sub(groups["mean"], axis=0).abs()
    return np.asarray(100 * ends.fillna(0.0)).T


def draw_intervals(ax: Axes, by_place: Mapping[float, Any], number: int, label: str | None) -> None:
    """One curve along the spectrum: mean and 95 % t-interval of the values at each place."""
    places = sorted(by_place)
    intervals = [t_interval(np.asarray(by_place[place], dtype=float)) for place in places]
    means = [mean for mean, _, _ in intervals]
    halves = [high - mean if high == high else 0.0 for mean, _, high in intervals]
    ax.errorbar(places, means, halves, capsize=2.5, elinewidth=1, zorder=3, label=label, **look_of(number))


def places_axis(ax: Axes, labels: Sequence[str]) -> None:
    """An axis of places that have no order along the spectrum, such as schedules by stage: a label each."""
    inches = ax.get_position().width * figure_of(ax).get_figwidth() / len(labels)
    room = inches > max(_label_inches(part) for label in labels for part in label.split(", "))
    shown = labels if room else [label.replace("per channel", "per ch.") for label in labels]
    ax.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in shown], fontsize=None if room else 7)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xlabel("segments; by stage, the first on top")


def spectrum_axis(ax: Axes, table: pd.DataFrame) -> None:
    """The log₂ axis of the segments, with as many labels as its width has room for; the ends have theirs always."""
    positions = spectrum_position(table)
    names: dict[float, str] = {}
    for position, segments, width in zip(positions, table["segments"], table["segment_width"], strict=True):
        name = "per\nchannel" if segments == "per_channel" else segments_label(segments, width)
        if position not in names or name.startswith("per"):
            names[position] = name
    ends = [position for position, name in names.items() if name.startswith("per")]
    if len(ends) > 1:  # of one meaning, at widths that a budget solved
        names = {position: name for position, name in names.items() if position not in ends}
        names[float(np.exp(np.log(ends).mean()))] = "per\nchannel"
    if np.isfinite(positions).all() and len(names):
        ax.set_xscale("log", base=2)
        least, most = positions.min() * 2**-0.5, positions.max() * 2**0.5
        ax.set_xlim(least, most)
        shown = _with_room(ax, names, np.log2(most / least))
        ax.set_xticks(shown, [names[place] for place in shown])
        ax.minorticks_off()
    ax.set_xlabel("segments of the spatial convolution")


def _with_room(ax: Axes, names: dict[float, str], doublings: float) -> list[float]:
    """The places whose labels do not lie on each other: the first and the last, then what has room between."""
    inches = ax.get_position().width * figure_of(ax).get_figwidth() / doublings
    places = sorted(names)

    def apart(one: float, other: float) -> bool:
        room = 0.5 * (_label_inches(names[one]) + _label_inches(names[other]))
        return bool(abs(np.log2(one / other)) * inches > room)

    shown = [places[0], *([places[-1]] if len(places) > 1 and apart(places[0], places[-1]) else [])]
    for place in places[1:-1]:
        if all(apart(place, other) for other in shown):
            shown.append(place)
    return sorted(shown)


def _label_inches(name: str) -> float:
    return 0.1 + 0.055 * max(map(len, name.splitlines()))


def add_legend(ax: Axes, *, bare: bool) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if bare:
        handles += [mpl.lines.Line2D([], [], color="0.3", ls="", marker="*", ms=9, mfc="white", label="no 1×1 (bare)")]
    if handles and not legend_below(ax, handles):
        if len(ax.get_xticks()) == 1:  # marks stand in the middle, and nothing is free
            ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
        else:
            ax.legend(handles=handles, ncols=2 if len(handles) > 8 else 1)


def share_legend(panels: Sequence[Axes]) -> None:
    """One legend below all panels, where one in each would hide what is drawn."""
    legends = [legend for ax in panels if (legend := ax.get_legend()) is not None]
    labels = [text.get_text() for text in legends[0].get_texts()] if legends else []
    if sum(map(len, labels)) * len(panels) < LETTERS_WITHIN:
        return
    drawn, _ = panels[0].get_legend_handles_labels()
    handles = [*drawn, *legends[0].legend_handles[len(drawn) :]]
    _put_below(figure_of(panels[0]), handles, labels, None)
    for legend in legends:
        legend.remove()


def legend_below(ax: Axes, handles: Sequence[Any], title: str | None = None) -> bool:
    """Whether a legend that would hide what is drawn was put below the axes, for which the figure grows."""
    labels = [str(handle.get_label()) for handle in handles]
    if len(figure_of(ax).axes) > 1 or max(map(len, labels)) * len(labels) < LETTERS_WITHIN:
        return False
    _put_below(figure_of(ax), handles, labels, title)
    return True


def _put_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str | None) -> None:
    columns = max(1, int(figure.get_figwidth() / (0.55 + 0.062 * max(map(len, labels)))))
    lines = -(-len(labels) // columns) + (title is not None)
    figure.set_figheight(figure.get_figheight() + 0.17 * lines)
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns, fontsize=7.5)


def offset_of(number: int, count: int) -> float:
    """Curves of one picture stand a little apart, so that their bars do not hide each other."""
    return float(2 ** (0.06 * (number - (count - 1) / 2)))

"""What all pictures share: the style, the axes, how a series looks and is called, how they are saved."""

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
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from spectrum._files import write_whole
from spectrum.analysis.inference import t_interval
from spectrum.analysis.plots.words import Wishes
from spectrum.analysis.table import scored, segments_label, spectrum_position, split_labels
from spectrum.analysis.words import data_name
from spectrum.models.position import PLAIN

STYLE = Path(__file__).with_name("spectrum.mplstyle")
LEAST_POINTS = 7.0  # of type
NARROW = 3.2  # inches of axes: a column's width, at which nothing has room beside them
KINDS = ("svg", "png", "pdf")
OTHER_KINDS = ("jpg", "jpeg", "gif", "tif", "tiff", "webp", "bmp", "eps", "ps", "pgf", "emf", "svgz", "raw", "rgba")
METRIC_LABELS = {"test_accuracy": "test accuracy, %", "val_accuracy": "validation accuracy, %"}
LOOKS: list[dict[str, Any]] = [  # of the curves of a picture; colour-blind safe (Okabe and Ito), and apart in grey
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#E69F00", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (3, 1, 1, 1))},
    {"color": "#000000", "marker": "X", "linestyle": (0, (1, 1))},
]
BUDGET_LOOKS: dict[str, dict[str, Any]] = {  # a budget looks the same in every picture
    "none": {"color": "#595959", "marker": "s", "linestyle": "--"},
    "params": LOOKS[0],
    "macs": LOOKS[2] | {"linestyle": "-"},
    "step_time": LOOKS[3] | {"linestyle": "-"},
}
PLAIN_COLOR = "#cc79a7"  # of the plain 3×3 where shades tell splits apart
CAPTION_CHARACTERS = 17.5  # of a caption, an inch
PLAIN_PLACE = 0.35  # of the plain 3×3 on the log₂ axis: left of 1 segment
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
    """The project's style, for figures of your own: `with plots.style(): …`.

    It stands on matplotlib's defaults, not on the settings of the moment, so that a study looks the same everywhere.
    """
    with mpl.style.context(STYLE, after_reset=True):
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the project's style; on axes that the caller gives, in the caller's settings."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        if kwargs.get("ax") is not None:
            return draw(*args, **kwargs)
        with style():
            return draw(*args, **kwargs)

    return styled


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write stem.svg and stem.png, or the one file that is named, and return the paths.

    Args:
        figure: from any function of this module.
        stem: path without the ending; its folder is made. A path that ends in .svg, .png or .pdf is written alone.

    The same figure gives the same bytes. Raises ValueError for the ending of another kind of picture.
    """
    if not isinstance(figure, Figure):
        raise ValueError(f"save_figure: expected a figure, then its path (got {type(figure).__name__})")
    named = Path(stem).suffix.removeprefix(".").lower()
    if named in OTHER_KINDS:
        raise ValueError(
            f"save_figure: {stem}: cannot write .{named}; name a path that ends in .svg, .png or .pdf, or one without "
            "an ending"
        )
    paths = [Path(stem)] if named in KINDS else [Path(f"{stem}.{kind}") for kind in ("svg", "png")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    omitted = {"svg": "Date", "png": "Software", "pdf": "CreationDate"}
    with style():
        for path in paths:
            drawn, kind = BytesIO(), path.suffix[1:].lower()
            figure.savefig(drawn, format=kind, metadata={omitted[kind]: None})
            write_whole(path, drawn.getvalue())
    return paths


def drawable(results: pd.DataFrame, metric: str | None = None, needs: Iterable[str] = ()) -> pd.DataFrame:
    """The rows that a picture can be drawn of and can say what they are. Raises ValueError as `scored` does."""
    return scored(results, metric, needs=["dataset", "match", "realised_segments", *needs])


def axes_or_new(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    return ShownFigure().add_subplot()


def figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure()
    assert figure is not None
    return figure.figure if isinstance(figure, SubFigure) else figure


def inches_of(ax: Axes) -> tuple[float, float]:
    """Width and height of the axes, before labels take their room."""
    dpi = figure_of(ax).dpi
    return float(ax.bbox.width / dpi), float(ax.bbox.height / dpi)


def shares_of(ax: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a place lies in the axes: parts of their width and height."""
    ax.get_xlim(), ax.get_ylim()  # makes matplotlib reckon the limits, which it puts off
    across, up = ax.transLimits.transform(ax.transScale.transform((x, y)))
    return float(across), float(up)


def small() -> float:
    """Size in points of what is less than a label, in proportion to the type of the figure."""
    return max(LEAST_POINTS, 0.85 * float(mpl.rcParams["font.size"]))


def look_of(number: int, label: str = "", wishes: Wishes | None = None) -> dict[str, Any]:
    """Colour, line and marker of one curve; where the palette ends, it begins again with other lines and markers.

    Args:
        number: of the curve, from 0.
        label: what it is called, by which a caller may have given it a colour.
        wishes: of the caller.
    """
    look = dict(LOOKS[number % len(LOOKS)])
    if number >= len(LOOKS):
        look |= {"linestyle": (0, (1, 1, 4, 1)), "marker": "*pHh8d<>"[number % 8]}
    return _coloured(look, number, label, wishes)


def looks_of(matches: Sequence[str | None], labels: Sequence[str], wishes: Wishes) -> list[dict[str, Any]]:
    """How the curves of a picture look: budgets as everywhere, where they alone tell curves apart; else in order."""
    budgets = len(set(matches)) == len(matches) and all(match in BUDGET_LOOKS for match in matches)
    if budgets:
        found = [dict(BUDGET_LOOKS[str(match)]) for match in matches]
        return [_coloured(*one, wishes) for one in zip(found, range(len(found)), labels, strict=True)]
    return [look_of(number, label, wishes) for number, label in enumerate(labels)]


def _coloured(look: dict[str, Any], number: int, label: str, wishes: Wishes | None) -> dict[str, Any]:
    color = None if wishes is None else wishes.color(number, label)
    return look if color is None else look | {"color": color}


def shades_of(table: pd.DataFrame) -> dict[str, Any]:
    """A shade a split, light to dark along the spectrum, by label; the plain 3×3 has a colour of its own."""
    places = table.assign(place=spectrum_position(table), label=split_labels(table)).groupby("label")["place"].mean()
    labels = [label for label in places.sort_values(kind="stable").index if label != PLAIN]
    shades = np.linspace(0.15, 1, len(labels)) if len(labels) > 1 else [0.7]
    plain = {PLAIN: mpl.colors.to_rgba(PLAIN_COLOR)} if PLAIN in set(places.index) else {}
    colors = [tuple(map(float, color)) for color in mpl.colormaps["viridis_r"](shades)]
    return plain | dict(zip(labels, colors, strict=True))


def wished_shades(table: pd.DataFrame, wishes: Wishes) -> dict[str, Any]:
    """The same, in the caller's colours where there are some."""
    shades = shades_of(table)
    for number, label in enumerate(shades):
        own = wishes.color(number, label)
        shades[label] = shades[label] if own is None else own
    return shades


def wrapped(text: str, width: int) -> str:
    """Text on lines of at most so many characters."""
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))


def error_bars(groups: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Lengths of the error bars in percent, below and above the mean; 0 where there is no interval."""
    ends = groups[["low", "high"]].sub(groups["mean"], axis=0).abs()
    return np.asarray(100 * ends.fillna(0.0)).T


def draw_intervals(ax: Axes, by_place: Mapping[float, Any], look: Mapping[str, Any], label: str | None) -> None:
    """One curve along the spectrum: mean and 95% CI of the values at each place."""
    places = sorted(by_place)
    intervals = [t_interval(np.asarray(by_place[place], dtype=float)) for place in places]
    means = [mean for mean, _, _ in intervals]
    halves = [high - mean if high == high else 0.0 for mean, _, high in intervals]
    ax.errorbar(places, means, halves, capsize=2, elinewidth=1, zorder=3, label=label, **look)


def metric_axis(ax: Axes, metric: str, table: pd.DataFrame, wishes: Wishes) -> None:
    """The title of the axis of accuracy; with the data set, where there is one and room for it."""
    ax.set_ylabel(wishes.called(metric_label(metric, table if inches_of(ax)[1] > 2.3 else None)))


def metric_label(metric: str, table: pd.DataFrame | None = None) -> str:
    label = METRIC_LABELS.get(metric, metric)
    names = [] if table is None else list(dict.fromkeys(table["dataset"]))
    return f"{data_name(names[0])} {label}" if len(names) == 1 and metric in METRIC_LABELS else label


def places_of(table: pd.DataFrame) -> pd.Series:
    """Where on the log₂ axis each row stands: at the segments that its widest layer really has.

    Per-channel stands at one place, whatever widths a budget gave it, and the plain 3×3 left of 1 segment.
    """
    places = spectrum_position(table)
    pointwise = table["pointwise"].astype(bool)
    ends = table["segments"].eq("per_channel")
    if (ends & pointwise).any():
        places = places.mask(ends, round(float(np.exp(np.log(places[ends & pointwise]).mean())), 6))
    plain = ~pointwise & table["segments"].map(lambda asked: asked == 1)
    return places.mask(~pointwise, places * 2**-0.2).mask(plain, PLAIN_PLACE)


def spectrum_axis(ax: Axes, table: pd.DataFrame, wishes: Wishes) -> None:
    """The log₂ axis of the segments, with as many labels as its width has room for; the ends have theirs always."""
    places = places_of(table)
    names: dict[float, str] = {}
    rows = zip(places, table["segments"], table["segment_width"], table["pointwise"].astype(bool), strict=True)
    for place, segments, width, pointwise in rows:
        if pointwise or place == PLAIN_PLACE:
            name = "per-\nchannel" if segments == "per_channel" else segments_label(segments, width)
            name = name if pointwise else PLAIN.replace(" ", "\n")
            if place not in names or name.startswith("per"):
                names[place] = wishes.called(name)
    if np.isfinite(places).all() and len(names):
        ax.set_xscale("log", base=2)
        least, most = places.min() * 2**-0.5, places.max() * 2**0.5
        ax.set_xlim(least, most)
        doublings = np.log2(most / least)
        shown = _with_room(ax, names, doublings)
        lower = names | {max(names): f"\n{names[max(names)]}"} if "\n" in names[max(names)] else names
        if len(_with_room(ax, lower, doublings)) > len(shown):  # a line lower, the last leaves room for another
            names, shown = lower, _with_room(ax, lower, doublings)
        ax.set_xticks(shown, [names[place] for place in shown])
        ax.minorticks_off()
    ax.set_xlabel(wishes.called("segments of the 3×3 convolution" if inches_of(ax)[0] > 2.4 else "segments"))


def _with_room(ax: Axes, names: dict[float, str], doublings: float) -> list[float]:
    """The places whose labels do not lie on each other: both ends, then what has room between, powers of two first."""
    inches = 0.92 * max(0.8, inches_of(ax)[0] - _inches_beside(ax)) / doublings
    places = sorted(names)

    def apart(one: float, other: float) -> bool:
        if names[one].startswith("\n") != names[other].startswith("\n"):
            return True  # they stand on different lines
        room = 0.5 * (_label_inches(names[one]) + _label_inches(names[other]))
        return bool(abs(np.log2(one / other)) * inches > room)

    first = next((place for place in places if place >= 1), places[0])
    shown = [first]
    between = sorted(places[1:-1], key=lambda place: not np.log2(place).is_integer())
    for place in (places[-1], places[0], *between):
        if place not in shown and all(apart(place, other) for other in shown):
            shown.append(place)
    return sorted(shown)


def _inches_beside(ax: Axes) -> float:
    """What names of curves take right of axes of the caller, whose figure does not grow for them."""
    labels = ax.get_legend_handles_labels()[1]
    if isinstance(figure_of(ax), ShownFigure) or not labels or inches_of(ax)[0] < NARROW:
        return 0.0
    return max(map(_label_inches, labels))


def _label_inches(name: str) -> float:
    return 0.06 + 0.0068 * float(mpl.rcParams["font.size"]) * max(map(len, name.splitlines()))


def listed_axis(ax: Axes, labels: Sequence[str]) -> None:
    """An axis of places that have no order along the spectrum, such as schedules by stage: a label each."""
    inches = 0.92 * inches_of(ax)[0] / len(labels)
    room = inches > max(_label_inches(part) for label in labels for part in label.split(", "))
    shown = labels if room else [label.replace("per-channel", "per-ch.") for label in labels]
    ax.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in shown], fontsize=None if room else 7)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xlabel("segments by stage, the first on top")


def offset_of(number: int, count: int) -> float:
    """Curves of one picture stand a little apart, so that their bars do not hide each other."""
    return float(2 ** (0.06 * (number - (count - 1) / 2)))

"""What stands round a picture: its title, a line of facts, the foot, and the names of its curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import matplotlib.lines
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextToPath
from matplotlib.transforms import ScaledTranslation

from spectrum.analysis.plots.drawing import LEAST_POINTS, NARROW, ShownFigure, figure_of, inches_of, shares_of, small
from spectrum.analysis.plots.words import (
    Wishes,
    budgets_of,
    data_label,
    diverged_label,
    seeds_label,
    tolerances_of,
    whence,
)

MOST_NAMED = 5  # curves whose names stand at their ends; more are told by a legend, or stand in panels
GREY, FAINT = "0.3", "0.45"
AIR = 12.0  # points that the ticks of an axis take, and the gaps between their labels, its title and a legend
EDGE = 0.06  # inches between the figure's edge and its text


def say(
    ax: Axes, table: pd.DataFrame, names: Sequence[str], *marks: str, wishes: Wishes, title: str, foot: str = ""
) -> None:
    """What a reader must know to judge the picture: data set, seeds, budget, marks; small, the tolerances and study.

    Args:
        ax: of the picture; where the caller gave it, all stands above it and nothing grows.
        table: that is drawn.
        names: settings that tell the configurations apart.
        marks: what is drawn of them.
        wishes: of the caller.
        title: of the picture, where the caller wants no other.
        foot: what else is said small.
    """
    table = table[table["status"] != "failed"]
    facts = _joined(
        data_label(table), seeds_label(table, names), budgets_of(table) if table["match"].nunique() < 3 else "", *marks
    )
    frame(ax, facts, _joined(diverged_label(table), tolerances_of(table), foot, whence(table)), wishes, title)


def say_of_all(figure: Figure, table: pd.DataFrame, facts: str, *, wishes: Wishes, title: str, foot: str = "") -> None:
    """The same of several panels, each of which says its own seeds and budget."""
    table = table[table["status"] != "failed"]
    low = _joined(diverged_label(table), tolerances_of(table), foot, whence(table))
    frame(figure.axes[0], _joined(data_label(table), facts), low, wishes, title)


def frame(ax: Axes, facts: str, foot: str, wishes: Wishes, title: str) -> None:
    """Title, facts and foot of a picture; a figure of the package's own grows for them.

    Raises ValueError for words or colours of the caller that nothing in the picture has.
    """
    wishes.check()
    figure = figure_of(ax)
    if not isinstance(figure, ShownFigure):
        _above(ax, _joined(facts, foot) if wishes.caption else "", wishes.title)
        return
    for old in list(figure.texts):
        old.remove()
    width, size = figure.get_figwidth() - 2 * EDGE, small()
    blocks = [(broken(wishes.title or title, width, 1.2 * size + 1, "bold"), 1.2 * size + 1, "bold", "black")]
    if wishes.caption:
        blocks.append((broken(facts, width, size), size, "normal", GREY))
    low = broken(foot, width, LEAST_POINTS) if wishes.caption else ""
    top = sum(_height(text, size) for text, size, *_ in blocks) + 0.1
    bottom = _height(low, LEAST_POINTS) + 0.04 if low else 0.0
    height = figure.get_figheight() + top + bottom
    figure.set_figheight(height)
    down = 0.05
    for text, size, weight, color in blocks:
        left = EDGE / figure.get_figwidth()
        figure.text(left, 1 - down / height, text, fontsize=size, weight=weight, color=color, va="top", in_layout=False)
        down += _height(text, size)
    if low:
        figure.text(left, 0.04 / height, low, fontsize=LEAST_POINTS, color=FAINT, va="bottom", in_layout=False)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, bottom / height, 1, 1 - (top + bottom) / height))


def _above(ax: Axes, caption: str, title: str | None) -> None:
    """On axes of the caller: the title and the caption above them, broken where the axes end."""
    size = LEAST_POINTS
    caption = broken(caption, max(1.5, inches_of(ax)[0]), size)
    if title is None:
        if caption:
            ax.set_title(caption, loc="left", color=GREY, fontsize=size, fontweight="normal")
        return
    lines = len(caption.splitlines())
    if caption:
        ax.annotate(
            caption, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", fontsize=size, color=GREY
        )
    pad = 6 + 1.3 * size * lines if lines else None
    size = float(FontProperties(size=mpl.rcParams["axes.titlesize"]).get_size_in_points())
    ax.set_title(broken(title, inches_of(ax)[0], size, "bold"), loc="left", weight="bold", pad=pad)


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))


def _height(text: str, size: float) -> float:
    """Inches that lines of text take, with a little air below."""
    return len(text.splitlines()) * 1.22 * size / 72 + 0.05


LONGEST_WORD = 24  # letters


@lru_cache(maxsize=4096)
def inches_of_text(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(family=mpl.rcParams["font.family"], size=size, weight=weight)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def broken(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Text on lines that are no longer than so many inches, as it is printed; only very long words are broken."""
    lines: list[str] = []
    for part in text.splitlines():
        line = ""
        for word in (piece for whole in part.split() for piece in _pieces(whole, inches, size, weight)):
            longer = f"{line} {word}".strip()
            if line and inches_of_text(longer, size, weight) > inches:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return "\n".join(lines)


def _pieces(word: str, inches: float, size: float, weight: str) -> list[str]:
    """A word; of one longer than any of a language, parts that fit on a line each."""
    pieces = [""]
    for letter in word if len(word) > LONGEST_WORD and inches_of_text(word, size, weight) > inches else ():
        if pieces[-1] and inches_of_text(pieces[-1] + letter, size, weight) > inches:
            pieces.append("")
        pieces[-1] += letter
    return pieces if pieces[0] else [word]


def shortened(text: str, inches: float, size: float, most: int) -> str:
    """Text on at most so many lines; what is beyond becomes an ellipsis."""
    lines = broken(text, inches, size).splitlines()
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"])


def name_curves(ax: Axes, *, title: str | None = None, most: int = MOST_NAMED) -> None:
    """Say what the curves are: at their ends, up to five; else in a legend, never over what is drawn.

    A legend stands beside the axes; below those of the caller's that are as narrow as a column, however few the curves.

    Args:
        ax: where curves with labels are drawn, with their final limits.
        title: of the legend.
        most: curves that are named at their ends.
    """
    handles = ax.get_legend_handles_labels()[0]
    if not handles:
        return
    column = not isinstance(figure_of(ax), ShownFigure) and inches_of(ax)[0] < NARROW
    if len(handles) > most or (column and len(handles) > 1):
        legend_beside(ax, handles, title)
    else:
        name_at_ends(ax)


def name_at_ends(ax: Axes) -> None:
    """Name every curve that has a label right of the axes, at the height of its end."""
    handles, labels = ax.get_legend_handles_labels()
    ends = [(*_end_of(handle), label) for handle, label in zip(handles, labels, strict=True)]
    name_ends(ax, [(y, label, color) for _, y, color, label in ends])


def _end_of(handle: Any) -> tuple[float, float, Any]:
    line = handle[0] if isinstance(handle, tuple) else handle
    x, y = (np.asarray(line.get_data()[i], dtype=float) for i in (0, 1))
    last = np.flatnonzero(np.isfinite(y))
    return (x[last[-1]], y[last[-1]], line.get_color()) if len(last) else (0.0, np.nan, line.get_color())


def name_ends(ax: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Names right of the axes, each at the height of its curve's end, moved apart where they would touch."""
    size = small()
    room = max(0.75, 0.24 * inches_of(ax)[0])
    named = sorted(
        ((y, broken(label, room, size), color) for y, label, color in ends if y == y), key=lambda one: one[0]
    )
    height = 72 * 0.92 * inches_of(ax)[1]
    wanted = [height * shares_of(ax, 1.0, y)[1] for y, _, _ in named]
    pitches = [1.25 * size * len(text.splitlines()) for _, text, _ in named]
    found = spread(wanted, pitches)
    above = max(0.0, found[-1] + pitches[-1] / 2 - height) if found else 0.0  # where title and caption stand
    for (y, text, color), want, at in zip(named, wanted, (at - above for at in found), strict=True):
        ax.annotate(
            text, (1, y), (5, at - want), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=color, fontsize=size, va="center", annotation_clip=False,
        )  # fmt: skip


def spread(wanted: Sequence[float], pitches: Sequence[float]) -> list[float]:
    """Heights as near as possible to those wanted, in their rising order, at which labels do not touch.

    >>> spread([0, 1, 50], [10, 10, 10])
    [-4.5, 5.5, 50.0]
    """
    groups: list[tuple[float, list[float]]] = []  # middle and pitches of labels that stand together
    for want, pitch in zip(wanted, pitches, strict=True):
        groups.append((float(want), [pitch]))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < (sum(groups[-1][1]) + sum(groups[-2][1])) / 2:
            (high, above), (low, below) = groups.pop(), groups.pop()
            middle = (low * len(below) + high * len(above)) / (len(below) + len(above))
            groups.append((middle, [*below, *above]))
    found = []
    for middle, together in groups:
        at = middle - sum(together) / 2
        for pitch in together:
            found.append(at + pitch / 2)
            at += pitch
    return found


def legend_beside(ax: Axes, handles: Sequence[Any], title: str | None = None) -> None:
    """A legend right of the axes; the package's own figure grows for it, and below narrow axes of the caller's."""
    labels = [handle.get_label() for handle in handles]
    longest = max(inches_of_text(str(label), small()) for label in labels)
    figure = figure_of(ax)
    if isinstance(figure, ShownFigure) and len(figure.axes) == 1:
        figure.set_figwidth(figure.get_figwidth() + max(0.0, longest - 0.4))
        figure.set_figheight(max(figure.get_figheight(), 0.9 + 0.17 * len(labels)))
    elif inches_of(ax)[0] < NARROW:
        widths = [inches_of_text(str(label), small()) + 0.4 for label in labels]
        columns = _columns_within(widths, 1.2 * inches_of(ax)[0])  # it may begin below the ticks of the other axis
        below = ax.transAxes + ScaledTranslation(0, -_inches_below(ax), figure.dpi_scale_trans)
        ax.legend(
            handles, labels, title=title, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=small(),
            bbox_transform=below, frameon=False, handlelength=1.6, columnspacing=1.0, borderaxespad=0,
        )  # fmt: skip
        return
    ax.legend(
        handles, labels, title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=small()
    )


def _inches_below(ax: Axes) -> float:
    """What the labels of ticks and the title of the axis take below the axes."""
    ticks = ax.get_xticklabels()
    lines = max([1, *(len(tick.get_text().splitlines()) for tick in ticks)])
    size = float(ticks[0].get_fontsize() if ticks else mpl.rcParams["font.size"])
    return (1.2 * (lines * size + float(ax.xaxis.label.get_fontsize())) + AIR) / 72


def _columns_within(widths: Sequence[float], room: float) -> int:
    """In how many columns entries have room that are filled in one after the other."""
    for columns in range(len(widths), 1, -1):
        parts = np.array_split(np.asarray(widths), columns)
        if sum(part.max() for part in parts) <= room:
            return columns
    return 1


def title_panel(panel: Axes, title: str) -> None:
    """The title of one of several panels, on lines no longer than the panel is wide."""
    size = 9.0
    panel.set_title(broken(title, inches_of(panel)[0], size), fontsize=size)


def share_legend(figure: Figure, handles: Sequence[Any], title: str | None = None) -> None:
    """One legend right of all panels; the figure grows for names that would take more than an inch from them."""
    longest = max(inches_of_text(str(handle.get_label()), small()) for handle in handles)
    figure.set_figwidth(figure.get_figwidth() + max(0.0, longest - 1.0))
    figure.legend(handles=list(handles), title=title, loc="outside right center", frameon=False, fontsize=small())


def sample(label: str, look: dict[str, Any], **more: Any) -> matplotlib.lines.Line2D:
    """A line for a legend."""
    return mpl.lines.Line2D([], [], label=label, **(look | more))

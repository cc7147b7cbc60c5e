"""What all pictures share: the style, the axes, what stands above them, how they are saved."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
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

from spectrum.analysis.table import SPLIT, budget_name, segments_label, spectrum_position, studies_of, worst_mismatch

STYLE = Path(__file__).with_name("spectrum.mplstyle")
METRIC_LABELS = {"test_accuracy": "test accuracy, %", "val_accuracy": "validation accuracy, %"}
P = ParamSpec("P")


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
    """Write stem.svg and stem.png; the same figure gives the same bytes."""
    paths = [Path(f"{stem}.{kind}") for kind in ("svg", "png")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], metadata={"Software": None})
    return paths


def say(ax: Axes, table: pd.DataFrame, names: Sequence[str], *what: str) -> None:
    """What a reader must know to judge the picture: data set, seeds, budget, and what the marks are."""
    runs = table.groupby([*SPLIT, *names], sort=False, dropna=False).size()
    few, many = runs.min(), runs.max()
    n = f"n = {span(few, many)}"
    data = ", ".join(dict.fromkeys(table["dataset"]))
    budget = ", ".join(budget_said(table[table["match"] == match]) for match in dict.fromkeys(table["match"]))
    seeds = "seed" if many == 1 else "seeds"
    separator = "\n" if table["match"].nunique() > 1 else " · "
    said = f"{data} · {n} {seeds} a point{separator}budget: {budget}"
    studies = studies_of(table)
    whence = f"{'studies' if ',' in studies else 'study'} {studies}" if studies else ""
    lines = [*wrapped(said, 92).splitlines(), " · ".join(filter(None, what)), *textwrap.wrap(whence, 92)]
    ax.set_title("\n".join(lines), color="0.25", fontsize=7.5)


def span(few: int, many: int) -> str:
    return f"{few}" if few == many else f"{few}–{many}"


def budget_said(table: pd.DataFrame) -> str:
    match = table["match"].iloc[0]
    if match == "none":
        return "unmatched"
    return f"{budget_name(match)} (within {worst_mismatch(table):.2%})"


def setting_said(names: Sequence[str], values: Sequence[Any]) -> str:
    """What a curve is called: the values of the settings that vary; a budget in the words of the title."""
    pairs = zip(names, values, strict=True)
    said = [budget_name(value) if name == "match" else f"{name} {value}".replace("_", " ") for name, value in pairs]
    return ", ".join(said)


def look_of(number: int) -> dict[str, Any]:
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    return dict(cycle[number % len(cycle)])


def axes_or_new(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    figure = Figure()
    return figure.add_subplot()


def figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure()
    assert figure is not None
    return figure.figure if isinstance(figure, SubFigure) else figure


def wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))


def error_bars(groups: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Lengths of the error bars in per cent, below and above the mean; 0 where there is no interval."""
    ends = groups[["low", "high"]].sub(groups["mean"], axis=0).abs()
    return np.asarray(100 * ends.fillna(0.0)).T


def spectrum_axis(ax: Axes, table: pd.DataFrame) -> None:
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


def add_legend(ax: Axes, *, bare: bool) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if bare:
        handles += [mpl.lines.Line2D([], [], color="0.3", ls="", marker="*", ms=9, mfc="white", label="no 1×1 (bare)")]
    if handles:
        ax.legend(handles=handles)


def offset_of(number: int, count: int) -> float:
    """Curves of one picture stand a little apart, so that their bars do not hide each other."""
    return float(2 ** (0.06 * (number - (count - 1) / 2)))

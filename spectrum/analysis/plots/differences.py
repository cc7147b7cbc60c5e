"""Differences between settings, with the margin below which they count as equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrum.analysis.pairing import NoRunsError, differences_by_seed
from spectrum.analysis.plots.drawing import (
    ShownFigure,
    axes_or_new,
    draw_intervals,
    drawable,
    figure_of,
    inches_of,
    look_of,
    metric_label,
    offset_of,
    places_of,
    small,
    spectrum_axis,
    styled,
)
from spectrum.analysis.plots.frame import broken, inches_of_text, legend_beside, name_curves, say, shortened
from spectrum.analysis.plots.words import Wishes
from spectrum.analysis.sentences import SHOWN, comparison_labels, pp, verdict_in_words, verdict_of
from spectrum.analysis.table import SPLIT, check, has, varied_settings
from spectrum.analysis.words import side_words
from spectrum.design.margins import check_margin

VERDICTS = {  # what a verdict is called beside its values, and how it looks
    "higher": ("better", "#0072B2", True),
    "lower": ("worse", "#D55E00", True),
    "negligibly higher": ("better, within the margin", "#0072B2", True),
    "negligibly lower": ("worse, within the margin", "#D55E00", True),
    "equivalent": ("equivalent", "#007355", True),
}
OPEN = ("inconclusive", "0.4", False)
UNKNOWN = ("not known", "0.4", True)  # without a spread, and so without an interval: a cross
LABEL = 2.5  # inches of the names of comparisons


@styled
def forest(
    contrasts: pd.DataFrame,
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """All comparisons of a study: mean difference and 95% CI, in numbers too, with margin and verdict.

    Args:
        contrasts: from `stats.contrasts`.
        results: the table that they were judged by; says data set, seeds and budget.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the comparisons, in their order or by their names.
        labels: your words for labels; for a comparison by its name, such as {"ReLU or none": "with − without ReLU"}.

    Each comparison is labelled by its sides, "A − B", and by what they share, as in tables; so the label says what was
    compared, in the words of today, whatever a plan called it when it was frozen. Its name stands only where sides do
    not tell it: where they have no words, or the same as another comparison. A name that says more than the sides, such
    as that of a published design, comes by `labels`.

    A difference is of A minus B; "better" says that A has the higher accuracy. A slope rises or falls, and an
    interaction is higher for one of its settings. Open marks are inconclusive; crosses have no interval, as with one
    seed. Comparisons without runs, or that are not complete, are left out, and the caption counts them. Raises
    ValueError when none is left.
    """
    if not isinstance(contrasts, pd.DataFrame) or not {"n", "verdict"} <= set(contrasts):
        raise ValueError("forest: expected a table of stats.contrasts first, then the results that it is of")
    check(results, ["dataset", "match"])
    table = contrasts[contrasts["n"] > 0]
    if table.empty:
        raise ValueError("forest: no contrast has a run on every side")
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, colors, labels)
    names = [shortened(name, LABEL, small(), 4) for name in _called(contrasts, wishes)]
    if isinstance(figure_of(ax), ShownFigure):
        lines = max(len(name.splitlines()) for name in names)
        figure_of(ax).set_size_inches(7.2, 0.9 + max(0.36, 0.1 + 0.0167 * small() * lines) * len(table))
    for place, (_, row) in enumerate(table.iterrows()):
        _comparison(ax, place, row, wishes)
    ax.set_yticks(range(len(table)), names, fontsize=small())
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(wishes.called("A − B, percentage points"))
    marks = "; ".join(word for word, is_drawn in _key(contrasts).items() if is_drawn)
    say(ax, results, varied_settings(results), marks, wishes=wishes, title="Comparisons, with their verdicts")
    return figure_of(ax)


def _key(contrasts: pd.DataFrame) -> dict[str, bool]:
    """What a mark stands for → whether it is in the picture."""
    left_out = int(contrasts["n"].eq(0).sum())
    table = contrasts[contrasts["n"] > 0]
    return {
        "bars: 95% CI": bool(table["low"].notna().any()),
        "grey: margin": bool(table["margin"].notna().any()),
        "open: inconclusive": bool(table["verdict"].eq("inconclusive").any()),
        "cross: not known": bool(table["verdict"].eq("unknown").any()),
        f"{left_out} not shown, for lack of runs": left_out > 0,
    }


def _verdict(row: pd.Series) -> tuple[str, str, bool]:
    """What the verdict on one comparison is called, its color, and whether its mark is full."""
    if row["verdict"] == "unknown":
        return UNKNOWN
    word, color, full = VERDICTS.get(row["verdict"], OPEN)
    if row["kind"] != "difference" and verdict_of(row) in SHOWN:
        word = verdict_in_words(row, confounded=False)
    return word, color, full


def _called(contrasts: pd.DataFrame, wishes: Wishes) -> list[str]:
    """What each comparison that has runs is called, on lines: its sides, what they share, and what else to know."""
    found = []
    for label, (_, row) in zip(comparison_labels(contrasts), contrasts.iterrows(), strict=True):
        own = wishes.called(row["name"])
        by_name = own != row["name"] or label == (row["name"], "")
        per_doubling = "(per doubling)" if by_name and row["kind"] == "slope" else ""
        sides = label[0] if inches_of_text(label[0], small()) < LABEL else label[0].replace(" − ", " −\n")
        lines = [own if by_name else sides, "" if by_name else label[1], per_doubling]
        if row["n"]:
            found.append("\n".join(filter(None, [*lines, "(confounded)" if row["confounded"] else ""])))
    return found


def _comparison(ax: Axes, place: int, row: pd.Series, wishes: Wishes) -> None:
    """One row: margin, interval, mean, and at the right the values and the verdict."""
    word, color, full = _verdict(row)
    own = wishes.color(place, row["name"])
    color = color if own is None else own
    if row["margin"] == row["margin"]:
        band = (place - 0.32, place + 0.32)
        ax.fill_betweenx(band, -100 * row["margin"], 100 * row["margin"], color="0.9", lw=0, zorder=1)
    values = pp(row["mean"], sign=True)
    if row["low"] == row["low"]:
        ax.plot([100 * row["low"], 100 * row["high"]], [place, place], color=color, marker="", ls="-", lw=2, zorder=3)
        values += f" [{pp(row['low'], sign=True)}, {pp(row['high'], sign=True)}]"
    face = color if full else "white"
    mark = "X" if row["verdict"] == "unknown" else "o"
    ax.plot(100 * row["mean"], place, marker=mark, ms=6, mfc=face, mec=color, ls="", zorder=4)
    size = small()
    beside: Any = {
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "va": "center",
        "fontsize": size,
    }
    ax.annotate(values, (1, place), (8, 0), annotation_clip=False, **beside)
    at = (14 + 11.5 * size, 0)
    ax.annotate(wishes.called(word), (1, place), at, color=color, weight="bold", annotation_clip=False, **beside)


Sides = Sequence[Mapping[str, Any]]


@styled
def difference_curve(
    results: pd.DataFrame,
    between: Sides | Sequence[Sides],
    *,
    margin: float | None = None,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """The difference of two settings along the spectrum, paired by seed, with a band of equivalence.

    Args:
        results: from `load_results`.
        between: two sides, such as [{"order": "pointwise_first"}, {"order": "spatial_first"}]; or several such pairs, a
            curve each.
        margin: a difference below which they count as equivalent, a share of 1, at most 0.2: 0.005 is half a
            percentage point. It is drawn as a band.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in percentage points.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the curves, in their order or by their labels.
        labels: your words for labels, such as {"no activation": "linear"}.

    An interval that lies within the band shows equivalence at that place, at 2.5% and by itself. The pairs of runs are
    drawn as dots where there is one curve. Convolutions without a 1×1 are left out, and so are places where no
    seed has both sides. Raises ValueError where there is no other, and for a margin that cannot be meant.
    """
    check_margin("difference_curve", margin)
    pairs: list[Any] = [between] if not between or isinstance(between[0], Mapping) else list(between)
    drawable(results, metric, [name for pair in pairs for side in pair for name in side])  # refuses what would mislead
    table = results[results["pointwise"].astype(bool)]  # failed runs too: they leave gaps
    table = table.reset_index(drop=True)
    table = table.assign(place=places_of(table))
    wishes = Wishes(title, caption, colors, labels)
    found = [_by_place(table, pair, metric) for pair in pairs]
    ax = axes_or_new(ax)
    if margin is not None:
        band = None if isinstance(figure_of(ax), ShownFigure) else f"margin, ±{100 * margin:g} pp"
        ax.axhspan(-100 * margin, 100 * margin, color="0.9", lw=0, zorder=0, label=band)
    ax.axhline(0, color="0.4", lw=0.8)
    words_of = [list(map(side_words, pair)) for pair in pairs]
    for number, (differences, words) in enumerate(zip(found, words_of, strict=True)):
        label = wishes.called(words[0]) if len(pairs) > 1 else None
        moved = {place * offset_of(number, len(pairs)): one for place, one in differences.items()}
        _draw(ax, moved, look_of(number, words[0], wishes), label)
    sided = table[np.logical_or.reduce([has(table, side) for pair in pairs for side in pair])]
    spectrum_axis(ax, sided, wishes)
    first, second = (" or ".join(dict.fromkeys(words)) for words in zip(*words_of, strict=True))
    less = f"{first} − {second}" if len(pairs) == 1 else f"each − {second}"
    less = f"{less},\npp of {metric_label(metric).removesuffix(', %')}"
    ax.set_ylabel(broken(wishes.called(less), inches_of(ax)[1], float(ax.yaxis.label.get_fontsize())))
    marks = _marks(ax, margin, len(pairs))
    task = f"{first} minus {second}, along the spectrum" if len(pairs) == 1 else f"Effects over {second}"
    say(ax, sided, varied_settings(sided), marks, wishes=wishes, title=task)
    return figure_of(ax)


def _marks(ax: Axes, margin: float | None, pairs: int) -> str:
    """What is drawn, in words; several curves have names, and on axes of the caller's, with the margin, a legend."""
    own = isinstance(figure_of(ax), ShownFigure)
    if own and pairs > 1:
        name_curves(ax)
    elif not own and (margin is not None or pairs > 1):
        legend_beside(ax, ax.get_legend_handles_labels()[0])
    dots = "; dots: pairs of runs" if pairs == 1 else ""
    band = f"; grey: ±{100 * margin:g} pp" if own and margin is not None else ""
    return f"mean and 95% CI{dots}{band}"


def _by_place(table: pd.DataFrame, pair: Sides, metric: str) -> dict[float, pd.Series]:
    """The differences at each place where both sides are, in percentage points."""
    with suppress(NoRunsError):
        differences_by_seed(table, pair, metric=metric)  # that there are two sides, and that they pair
    found = {}
    sided = table[has(table, pair[0]) | has(table, pair[1])]
    for _, at in sided.groupby([*SPLIT], sort=False, dropna=False):
        try:
            values = differences_by_seed(at, pair, metric=metric)
        except NoRunsError:
            continue
        found[round(float(np.exp(np.log(at["place"]).mean())), 6)] = 100 * values
    if not found:
        differences_by_seed(table, pair, metric=metric)  # says why
    return found


def _draw(ax: Axes, differences: Mapping[float, pd.Series], look: Mapping[str, Any], label: str | None) -> None:
    """One curve, with the pairs of runs as dots where it is the only one."""
    draw_intervals(ax, differences, look, label)
    if label is None:
        for place in differences:
            xs = [place * 2**-0.1] * len(differences[place])
            ax.plot(xs, differences[place], ls="", marker=".", ms=3.5, color="0.35", zorder=2)

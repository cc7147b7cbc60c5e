"""Comparisons of runs from anywhere, as a forest plot."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrum.analysis.compare import Comparisons
from spectrum.analysis.plots.drawing import ShownFigure, axes_or_new, figure_of, small, styled
from spectrum.analysis.plots.frame import shortened
from spectrum.analysis.sentences import PP, verdict_in_words

LABEL = 2.5  # inches of the names of comparisons
SHOWN = ("higher", "lower", "negligibly higher", "negligibly lower", "equivalent")


@styled
def compared(found: Comparisons, *, ax: Axes | None = None, title: str | None = None) -> Figure:
    """Draw each comparison of `compare`: the mean difference A − B and its 95% CI, with margin and verdict.

    Args:
        found: from `compare`.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        title: what the picture answers or finds; by default its task.

    Open marks are comparisons without a shown verdict. Comparisons without runs on both sides are left out. Raises
    ValueError when none is left.
    """
    if not isinstance(found, Comparisons):
        raise ValueError(f"compared: expected what spectrum.compare returns, got {type(found).__name__}")
    table = found.judged[found.judged["n"] > 0]
    if table.empty:
        raise ValueError("compared: no comparison has a run on both sides")
    ax = axes_or_new(ax)
    if isinstance(figure_of(ax), ShownFigure):
        figure_of(ax).set_size_inches(7.2, 1.1 + 0.36 * len(table))
    scale, unit = found.unit.scale, found.unit
    for place, (_, row) in enumerate(table.iterrows()):
        color = "#0072B2" if row["verdict"] in SHOWN else "0.4"
        if row["margin"] == row["margin"]:
            ends = (-scale * row["margin"], scale * row["margin"])
            ax.fill_betweenx((place - 0.32, place + 0.32), *ends, color="0.9", lw=0, zorder=1)
        values = unit.number(row["mean"], sign=True)
        if row["low"] == row["low"]:
            ax.plot([scale * row["low"], scale * row["high"]], [place, place], color=color, marker="", ls="-", lw=2)
            values += f" [{unit.number(row['low'], sign=True)}, {unit.number(row['high'], sign=True)}]"
        face = color if row["verdict"] in SHOWN else "white"
        ax.plot(scale * row["mean"], place, marker="o", ms=6, mfc=face, mec=color, ls="", zorder=4)
        said = f"{values}  {verdict_in_words(row)}"
        ax.annotate(
            said,
            (1, place),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=small(),
            annotation_clip=False,
        )
    names = [shortened(row["name"], LABEL, small(), 2) for _, row in table.iterrows()]
    ax.set_yticks(range(len(table)), names, fontsize=small())
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"A − B, {found.metric}{', percentage points' if unit == PP else ''}")
    paired = (
        "paired" if table["paired"].all() else "unpaired" if not table["paired"].any() else "paired where they pair"
    )
    ax.set_title(title or f"Comparisons by {found.metric}: {paired}, bars 95% CI", loc="left")
    return figure_of(ax)

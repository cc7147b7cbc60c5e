"""Accuracy by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spectrum.analysis.plots.accuracy import along_label, combinations, grid_of, telling_apart, tidy
from spectrum.analysis.plots.drawing import (
    axes_or_new,
    drawable,
    figure_of,
    look_of,
    metric_axis,
    styled,
    wished_shades,
)
from spectrum.analysis.plots.frame import name_curves, sample, say, say_of_all, share_legend, title_panel
from spectrum.analysis.plots.words import Wishes, budgets_of, seeds_label
from spectrum.analysis.table import check_shares, check_source, spectrum_position, split_labels, varied_settings
from spectrum.analysis.words import setting_label
from spectrum.models.position import PLAIN

MOST_LINES = 12  # in one picture
MARKS = "mean over seeds"


@styled
def learning_curves(
    history: pd.DataFrame,
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    metric: str = "val_accuracy",
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Validation accuracy by epoch, mean over seeds, one line per configuration, light to dark along the spectrum.

    Args:
        history: from `load_history`.
        results: from `load_results`; says which configuration each run is of.
        ax: where to draw, at any size and in your own settings; by default a figure of its own, with a panel for each
            value of the settings that vary where one would be crowded.
        metric: a column of the history, from 0 to 1; shown in percent.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the splits, in their order along the spectrum or by their labels.
        labels: your words for labels, such as {"per-channel": "depthwise"}.

    Raises ValueError when the history has no epoch of these results, or not this column.
    """
    check_source(history, ["id", "epoch", metric], "load_history")
    check_shares(history[metric], metric, history)
    table = drawable(results, needs=["id", "status"])
    varied = varied_settings(table)
    names, along = telling_apart(varied, combinations(table, varied))
    foot = along_label(names, along)
    known = table.assign(position=spectrum_position(table), label=split_labels(table))
    joined = history[["id", "epoch", metric]].merge(known[["id", "status", "position", "label", *names]], on="id")
    if joined.empty:
        raise ValueError("learning_curves: no epoch of these results is in the history")
    wishes = Wishes(title, caption, colors, labels)
    shades = wished_shades(known, wishes)
    order: list[Any] = combinations(known, names) if names else [()]
    groups = dict(iter(joined.groupby(names, sort=False, dropna=False))) if names else {(): joined}
    kinds = sorted(groups.items(), key=lambda kind: order.index(kind[0]) if kind[0] in order else len(order))
    if ax is not None or joined.groupby([*names, "label"], dropna=False, sort=False).ngroups <= MOST_LINES:
        ax = axes_or_new(ax)
        for number, (values, kind) in enumerate(kinds):
            _lines(ax, kind, metric, shades, look_of(number), setting_label(names, values), wishes)
        metric_axis(ax, metric, table, wishes)
        name_curves(ax, title="segments")
        say(ax, table, names, MARKS, wishes=wishes, title="Learning curves", foot=foot)
        return figure_of(ax)
    figure, panels = grid_of(len(kinds), 2.35, 1.9)
    for (values, kind), panel in zip(kinds, panels, strict=True):
        _lines(panel, kind, metric, shades, look_of(0), "", wishes)
        metric_axis(panel, metric, table, wishes)
        title_panel(panel, wishes.called(setting_label(names, values)))
    tidy(panels)
    handles = [
        sample(wishes.called(label), {"color": shade, "linestyle": ":" if label == PLAIN else "-", "marker": ""})
        for label, shade in shades.items()
    ]
    share_legend(figure, handles, "segments")
    budget = f"{budgets_of(table)} · " if "match" not in names else ""
    facts = f"{seeds_label(table, names)} · {budget}{MARKS}"
    say_of_all(figure, table, facts, wishes=wishes, title="Learning curves", foot=foot)
    return figure


def _lines(
    ax: Axes,
    kind: pd.DataFrame,
    metric: str,
    shades: Mapping[str, Any],
    look: Mapping[str, Any],
    setting: str,
    wishes: Wishes,
) -> None:
    """A line per split, of one combination of settings; of a study of one split, in the colours of its settings."""
    for label, group in kind.sort_values("position", kind="stable").groupby("label", sort=False):
        mean = _mean_by_epoch(group, metric)
        ax.plot(
            mean.index,
            100 * mean,
            color=shades[str(label)] if len(shades) > 1 else look["color"],
            marker="" if len(mean) > 1 else look["marker"],
            ls=":" if str(label) == PLAIN else look["linestyle"],
            label=", ".join(filter(None, [wishes.called(str(label)), wishes.called(setting)])),
        )
    ax.set_xlabel(wishes.called("epoch"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mean_by_epoch(epochs: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over runs at every epoch. A diverged run stays in it, at chance, after its last epoch."""
    runs = epochs.pivot_table(index="epoch", columns="id", values=metric)
    diverged = epochs.loc[epochs["status"] == "diverged", "id"].unique().tolist()
    runs[diverged] = runs[diverged].ffill()
    return runs.mean(axis=1)

"""Accuracy against a cost: which configurations no other beats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from spectrum.analysis.inference import shown_better
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import IMAGES, SPLIT, scored, scored_metric, split_labels, varied_settings

SAME_COST = 1.01  # costs within 1% count as equal, which is the tolerance of a budget


def configurations_against(table: pd.DataFrame, cost: str, metric: str, confidence: float = 0.95) -> pd.DataFrame:
    """`summarise` of every configuration of a table, with the mean over seeds of its cost in the column `cost`."""
    by = [*SPLIT, *varied_settings(table)]
    costs = table.groupby(by, sort=False, dropna=False)[cost].mean().to_numpy()
    return summarise(table, by, metric, confidence).assign(cost=costs)


def pareto_table(
    results: pd.DataFrame, cost: str = "macs", *, metric: str | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Which configurations may lie on the Pareto frontier of accuracy against a cost: a row each.

    Args:
        results: from `load_results`.
        cost: "params", "macs" or "train_seconds".
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the intervals, and of `beaten_by`.

    Columns: n, cost, mean, low and high (95% CI), `on_front` (none that costs as little has a higher mean) and
    `beaten_by`, the label of a configuration that costs no more and is shown to be better, by one-sided t-tests paired
    by seed at a level divided by the number of such configurations; empty where none is. Costs within 1% count as
    equal. Different images, or labels by different teachers, have frontiers of their own. Raises ValueError for a
    cost that is no number and for a table that would mislead.

    >>> from spectrum import load_results
    >>> results = load_results("results/curve")
    >>> found = pareto_table(results[results["match"] == "macs"], "params")
    >>> found.loc[found["on_front"], ["label", "cost", "mean"]].round(3).values.tolist()
    [['plain 3×3', 46915.0, 0.88], ['per-channel', 49962.0, 0.889]]
    """
    metric = scored_metric(results) if metric is None else metric
    table = scored(results, metric, needs=[cost])
    if not pd.api.types.is_numeric_dtype(table[cost]):
        raise ValueError(f"{cost}: is no number; a cost is one of params, macs, train_seconds")
    groups = configurations_against(table, cost, metric, confidence)
    by = [*SPLIT, *varied_settings(table)]
    parts = [part.set_index("seed")[metric] for _, part in table.groupby(by, sort=False, dropna=False)]
    groups["label"] = split_labels(groups)
    tasks = [name for name in IMAGES if name in by]
    for _, task in groups.groupby(tasks, dropna=False, sort=False) if tasks else [((), groups)]:
        for place in task.index:
            cheap = task["cost"] <= SAME_COST * task["cost"][place]
            groups.loc[place, "on_front"] = not (task["mean"][cheap] > task["mean"][place]).any()
            groups.loc[place, "beaten_by"] = _beaten_by(place, task, parts, 1 - confidence)
    return groups.astype({"on_front": bool}).drop(columns=["sd", "half", "seconds"])


def _beaten_by(place: int, groups: pd.DataFrame, parts: Sequence[pd.Series], alpha: float) -> str:
    costs, means = groups["cost"], groups["mean"]
    rivals = [i for i in groups.index if i != place and costs[i] <= SAME_COST * costs[place]]
    for rival in sorted((i for i in rivals if means[i] > means[place]), key=lambda i: -means[i]):
        one, other = parts[rival].align(parts[place], join="inner")
        if shown_better(one.to_numpy(dtype=float), other.to_numpy(dtype=float)) <= alpha / len(rivals):
            return str(groups["label"][rival])
    return ""


def pareto_front(cost: ArrayLike, value: ArrayLike) -> list[int]:
    """Positions, by rising cost, of what nothing else beats: none costs as little and is worth more.

    Args:
        cost: of each configuration.
        value: of each configuration.

    >>> pareto_front([1, 2, 3, 4], [0.5, 0.8, 0.7, 0.9])
    [0, 1, 3]
    """
    costs, values = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    front: list[int] = []
    for position in np.lexsort((-values, costs)):
        if not front or values[position] > values[front[-1]]:
            front.append(int(position))
    return front

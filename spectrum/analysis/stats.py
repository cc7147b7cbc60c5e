"""Statistics of a table of results, one row a training run. Pure functions; `spectrum.stats` is this module.

    from spectrum import load_results, stats
    results = load_results("results/ablate_order")
    stats.contrast(results, [{"order": "pointwise_first"}, {"order": "spatial_first"}], margin=0.005)

Runs of one seed see the same images in the same order, so differences are taken seed by seed, and seeds are what
counts as n. A seed with a missing run is left out of a comparison. A diverged run counts, at chance, as its row has it;
a failed one has no accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from spectrum.analysis.inference import (
    ALPHA,
    Difference,
    bootstrap_interval,
    difference,
    difference_power,
    equivalence_power,
    holm,
    noise_floor,
    seeds_for_difference,
    seeds_for_equivalence,
    shown_better,
    t_interval,
    upper_sd,
)
from spectrum.analysis.table import (
    IMAGES,
    PER_CHANNEL,
    SETTINGS,
    SPLIT,
    check,
    has,
    point_label,
    point_labels,
    scored,
    scored_metric,
    segments_label,
    spectrum_position,
    varied_settings,
    worst_mismatch,
)

__all__ = [
    "ALPHA", "PER_CHANNEL", "SETTINGS", "SPLIT", "Difference", "NoRunsError", "bootstrap_interval", "check",
    "contrast", "contrasts", "difference", "difference_power", "differences_by_seed", "equivalence_power", "holm",
    "noise_floor", "optimum", "pareto_front", "pareto_table", "point_label", "scored", "scored_metric",
    "seeds_for_difference", "seeds_for_equivalence", "segments_label", "spectrum_position", "summarise",
    "t_interval", "trend", "upper_sd", "varied_settings", "worst_mismatch",
]  # fmt: skip

Side = Mapping[str, Any]
Across = Sequence[Side] | Literal["segments"] | None
SAME_COST = 1.01  # costs within one per cent count as equal, as budgets hold them


def summarise(
    results: pd.DataFrame, by: Sequence[str], metric: str = "test_accuracy", confidence: float = 0.95
) -> pd.DataFrame:
    """One row a group: n, mean, sd, the t-interval's half width and ends, and the group's params, macs and seconds.

    Groups come in the order of the table, with the columns `by` first; `params` and `macs` where all rows of a group
    agree. The ends of an interval for an accuracy are cut at 0 and 1, which it cannot leave; `half` is not.
    """
    rows = []
    for key, group in results[results[metric].notna()].groupby(list(by), sort=False, dropna=False):
        mean, low, high = t_interval(group[metric], confidence)
        row = dict(zip(by, key, strict=True))
        row |= {"n": len(group), "mean": mean, "sd": group[metric].std(ddof=1), "half": high - mean}
        row |= {"low": low, "high": high}
        if metric.endswith("accuracy"):
            row |= {"low": max(low, 0.0) if low == low else low, "high": min(high, 1.0) if high == high else high}
        row |= {name: group[name].iloc[0] for name in ("params", "macs") if group[name].nunique() == 1}
        row["seconds"] = group["train_seconds"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


class NoRunsError(ValueError):
    """What is to be compared has no runs, or not yet."""


def differences_by_seed(
    results: pd.DataFrame, between: Sequence[Side], across: Across = None, metric: str | None = None
) -> pd.Series:
    """The first side less the second, one value a seed, each the mean over all that the sides have in common.

    Args:
        results: from `load_results`.
        between: two sides: the values that pick a side's rows, such as {"segments": 4}.
        across: two settings, such as [{"segments": 1}, {"segments": "per_channel"}]: the difference at the first less
            that at the second; or "segments": by how much the difference grows when the segments double.
        metric: a column of accuracies from 0 to 1; by default the one that the points are scored on.

    Columns with the same values on both sides pair the rows; the others are what is compared. Seeds for which a run is
    missing are left out. Raises ValueError where a side has no row, or no seed has all runs.
    """
    metric = scored_metric(results) if metric is None else metric
    return _differences(scored(results, metric), between, across, metric)


def _differences(table: pd.DataFrame, between: Sequence[Side], across: Across, metric: str) -> pd.Series:
    """`differences_by_seed` of a table that is checked."""
    if len(between) != 2:
        raise ValueError(f"between: expected two sides, got {len(between)}")
    if across is None:
        return _mean_difference(table, between, metric)
    if across == "segments":
        return _slope_of_differences(table, between, metric)
    if len(across) != 2 or not all(isinstance(at, Mapping) for at in across):
        raise ValueError(f'across: expected two settings or "segments", got {across!r}')
    one, other = (_mean_difference(_side(table, at), between, metric) for at in across)
    return _complete(one.sub(other).to_frame()).iloc[:, 0]


def _mean_difference(table: pd.DataFrame, between: Sequence[Side], metric: str) -> pd.Series:
    return _complete(_paired(table, between, metric)).mean(axis=1)


def _paired(table: pd.DataFrame, between: Sequence[Side], metric: str) -> pd.DataFrame:
    """Differences, a row a seed and a column each thing that the sides have in common; NaN where a run is missing."""
    first, second = (_side(table, side) for side in between)
    names = [name for name in (*SPLIT, *varied_settings(pd.concat([first, second]))) if name in table]
    shared = [name for name in names if set(first[name].map(repr)) == set(second[name].map(repr))]

    def by_seed(side: pd.DataFrame) -> pd.DataFrame:
        cells = side.assign(cell=_keys(side, shared), kind=_keys(side, names))
        runs = cells.pivot_table(index="seed", columns=["cell", "kind"], values=metric, sort=False)
        return runs.T.groupby(level="cell", sort=False).mean().where(runs.notna().T.groupby(level="cell").all()).T

    one, other = by_seed(first), by_seed(second)
    columns = [name for name in one.columns if name in set(other.columns)]
    return one[columns].sub(other[columns])  # seeds of one side only become NaN


def _keys(side: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    return side[list(names)].map(repr).agg(" ".join, axis=1) if names else pd.Series("", index=side.index)


def _side(table: pd.DataFrame, side: Side) -> pd.DataFrame:
    """Rows that have all values of a side."""
    for name, value in side.items():
        if name not in table:
            raise ValueError(f"{name}: no such column; a side names settings, as in {{'segments': 4}}")
        found = table[has(table, {name: value})]
        if found.empty:
            there = ", ".join(dict.fromkeys(map(repr, table[name])))
            raise NoRunsError(f"{name} = {value!r}: no row has it; try {there}")
        table = found
    return table


def _complete(by_seed: pd.DataFrame) -> pd.DataFrame:
    """The seeds for which no run is missing."""
    complete = by_seed.dropna()
    if complete.empty:
        raise NoRunsError("no seed has a run on every side; see which failed: spectrum status")
    return complete


def _slope_of_differences(table: pd.DataFrame, between: Sequence[Side], metric: str) -> pd.Series:
    table = table.assign(place=_places(table))
    curves = {place: _paired(at, between, metric).mean(axis=1, skipna=False) for place, at in table.groupby("place")}
    complete = _complete(pd.DataFrame(curves))
    if len(complete.columns) < 2:
        raise NoRunsError('across = "segments": needs at least two numbers of segments')
    return pd.Series(_leading(complete, 1), index=complete.index)


def _places(table: pd.DataFrame) -> pd.Series:
    """Where on the log₂ axis a row stands: one place for all rows that ask for the same, whatever a budget makes of it.

    One segment a channel is another number of segments in a network of another width; the mean of the logarithms then.
    """
    logs = np.log2(spectrum_position(table))
    return table.assign(log=logs, key=_keys(table, SPLIT)).groupby("key")["log"].transform("mean")


def _leading(curves: pd.DataFrame, degree: int) -> NDArray[np.float64]:
    """The first coefficient of each row's polynomial over the columns' places."""
    return np.asarray(np.polyfit(curves.columns.to_numpy(dtype=float), curves.to_numpy(dtype=float).T, degree)[0])


def contrast(
    results: pd.DataFrame,
    between: Sequence[Side],
    across: Across = None,
    *,
    margin: float | None = None,
    metric: str | None = None,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two sides of a study, paired by seed, with interval and tests.

    Args:
        results, between, across, metric: as for `differences_by_seed`.
        margin: a difference below which the sides count as equivalent, set before the runs.
        confidence: of the interval.

    For several contrasts of one study take `contrasts`, which corrects for their number.
    """
    return difference(differences_by_seed(results, between, across, metric), margin, confidence)


def contrasts(
    results: pd.DataFrame,
    asked: Sequence[Mapping[str, Any]],
    *,
    metric: str | None = None,
    alpha: float = ALPHA,
    power: float = 0.8,
) -> pd.DataFrame:
    """All contrasts of a study as one family: a row each, in their order.

    Args:
        results: from `load_results`.
        asked: name, between, and if wanted across and margin; as a study's file and its plan.json have them.
        metric: a column of accuracies from 0 to 1; by default the one that the points are scored on.
        alpha: the rate of any false claim in the whole family.
        power: for which `more_seeds` is reckoned.

    Columns: name, n, `left_out` (seeds that lack a run), `diverged` (runs), mean, sd, low, high (95 % t-interval of
    this contrast by itself), `per_doubling` (of the segments: a slope), `confounded` (as the plan says), margin, p and
    p_equivalent, both adjusted by Holm's method, verdict, and `more_seeds` that it would take to decide an undecided
    one: enough to show a difference of the margin's size if there is one, and equivalence if there is none; without a
    margin, a difference as large as the one observed. `more_seeds_at_most` is the same if the spread is as large as its
    80 % upper limit. A contrast whose sides have no rows yet has n = 0.

    Verdicts: "higher", "lower" (the first side), "equivalent", "undecided"; "negligibly higher" and "negligibly lower"
    for a difference that is shown, and shown to be less than the margin; "unknown" below two seeds or where all
    differences are equal.
    """
    metric = scored_metric(results) if metric is None else metric
    table = scored(results, metric)
    rows = [_asked(table, one, metric) for one in asked]
    tests = [(number, row[name]) for number, row in enumerate(rows) for name in ("p", "p_equivalent")]
    # of a contrast's two hypotheses, "no difference" and "at least the margin", at most one is true
    both = holm([p for _, p in tests], [number for number, _ in tests])
    judged = []
    for row, (p, p_equivalent) in zip(rows, both.reshape(-1, 2), strict=True):
        row |= {"p": p, "p_equivalent": p_equivalent}
        row["verdict"] = _verdict(row, alpha)
        undecided = row["verdict"] == "undecided"
        for name, sd in (("more_seeds", row["sd"]), ("more_seeds_at_most", upper_sd(row["sd"], row["n"]))):
            row[name] = _more_seeds(row, sd, power, alpha / len(rows)) if undecided else None
        judged.append(row)
    columns = """name n left_out diverged mean sd low high per_doubling confounded margin p p_equivalent verdict
    more_seeds more_seeds_at_most""".split()
    return pd.DataFrame(judged, columns=columns).astype({"more_seeds": "Int64", "more_seeds_at_most": "Int64"})


def _asked(table: pd.DataFrame, asked: Mapping[str, Any], metric: str) -> dict[str, Any]:
    between, across, margin = asked["between"], asked.get("across"), asked.get("margin")
    row: dict[str, Any] = {"name": asked["name"], "margin": margin if margin is not None else float("nan")}
    row |= {"per_doubling": across == "segments", "confounded": bool(asked.get("confounded", False))}
    try:
        sides = pd.concat([_side(table, side) for side in between])
        values = _differences(table, between, across, metric)
    except NoRunsError:
        nothing = dict.fromkeys(("mean", "sd", "low", "high", "p", "p_equivalent"), float("nan"))
        return row | nothing | {"n": 0, "left_out": tuple(sorted(set(table["seed"]))), "diverged": 0}
    left_out = tuple(sorted(set(sides["seed"]) - set(values.index)))
    diverged = int((sides["status"] == "diverged").sum())
    return row | vars(difference(values, margin)) | {"left_out": left_out, "diverged": diverged}


def _verdict(row: Mapping[str, Any], alpha: float) -> str:
    if np.isnan(row["p"]):
        return "unknown"
    side = "higher" if row["mean"] > 0 else "lower"
    if row["p_equivalent"] <= alpha:
        return f"negligibly {side}" if row["p"] <= alpha else "equivalent"
    return side if row["p"] <= alpha else "undecided"


def _more_seeds(row: Mapping[str, Any], sd: float, power: float, alpha: float) -> int | None:
    """How many seeds more than there are; for the first of a family of tests, whose level is α over their number."""
    margin = row["margin"]
    if np.isnan(margin):
        needed = [seeds_for_difference(row["mean"], sd, power=power, alpha=alpha)]
    else:
        needed = [
            seeds_for_difference(margin, sd, power=power, alpha=alpha),
            seeds_for_equivalence(margin, sd, power=power, alpha=alpha),
        ]
    found = [n for n in needed if n is not None]
    return max(1, max(found) - row["n"]) if len(found) == len(needed) else None


def trend(results: pd.DataFrame, *, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """How accuracy changes when the segments double: a row a curve, its settings first.

    Each seed has its own straight line over log₂ of the segments, and what is averaged is its slope; `curvature` is
    likewise the coefficient of the square in a parabola, below zero where the middle lies above the ends. Both are in
    accuracy, from 0 to 1, and have t-intervals over seeds (`low`, `high`, `curvature_low`, `curvature_high`). Bare
    convolutions, without a 1×1, are left out. With two places there is no curvature, NaN.
    """
    metric = scored_metric(results) if metric is None else metric
    rows = []
    for settings, curve in _curves(scored(results, metric, needs=["realised_segments"]), metric):
        if len(curve.columns) < 2:
            continue
        slope, low, high = t_interval(_leading(curve, 1), confidence)
        row = settings | {"n": len(curve), "slope": slope, "low": low, "high": high, "curvature": float("nan")}
        if len(curve.columns) > 2:
            bent = t_interval(_leading(curve, 2), confidence)
            row |= dict(zip(("curvature", "curvature_low", "curvature_high"), bent, strict=True))
        rows.append(row)
    if not rows:
        raise ValueError("trend: needs at least two numbers of segments")
    return pd.DataFrame(rows)


def optimum(results: pd.DataFrame, *, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Which numbers of segments may be the best: a row a point, with its settings and label.

    Columns: n, mean, `best` (the highest mean of its curve) and `in_set`. Of each curve the points with `in_set` are a
    confidence set: the truly best one is among them with this confidence. A point is out only if some other is shown to
    be better, by one-sided t-tests of differences paired by seed, at a level divided by the number of rivals. With few
    seeds the set is large, and that is the answer; with one it is everything.
    """
    metric = scored_metric(results) if metric is None else metric
    table = scored(results, metric, needs=["realised_segments"])
    rows = []
    for settings, curve in _curves(table, metric, bare=True):
        values = curve.to_numpy(dtype=float)
        level = (1 - confidence) / max(1, values.shape[1] - 1)
        means = values.mean(axis=0)
        for place, label in enumerate(curve.columns):
            beaten = any(shown_better(values[:, other], values[:, place]) <= level for other in range(len(means)))
            best = bool(place == means.argmax())
            rows.append(
                settings | {"label": label, "n": len(curve), "mean": means[place], "best": best, "in_set": not beaten}
            )
    return pd.DataFrame(rows)


def _curves(table: pd.DataFrame, metric: str, *, bare: bool = False) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Of every combination of settings: accuracies, a row a complete seed, a column a place on the log₂ axis.

    With `bare` columns are labels, and bare convolutions are there too.
    """
    names = varied_settings(table)
    table = table.assign(place=_places(table), label=point_labels(table))
    table = table.sort_values("place", kind="stable")
    if not bare:
        table = table[table["pointwise"].astype(bool)]
    column = "label" if bare else "place"
    curves = []
    for values, part in table.groupby(names, sort=False, dropna=False) if names else [((), table)]:
        curve = part.pivot_table(index="seed", columns=column, values=metric, sort=False).dropna()
        if len(curve):
            curves.append((dict(zip(names, values, strict=True)), curve))
    return curves


def points_against(table: pd.DataFrame, cost: str, metric: str, confidence: float = 0.95) -> pd.DataFrame:
    """`summarise` of every point of a table, with the mean over seeds of its cost in the column `cost`."""
    by = [*SPLIT, *varied_settings(table)]
    costs = table.groupby(by, sort=False, dropna=False)[cost].mean().to_numpy()
    return summarise(table, by, metric, confidence).assign(cost=costs)


def pareto_table(
    results: pd.DataFrame, cost: str = "macs", *, metric: str | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Which points may lie on the front of accuracy against a cost: a row a point, with its settings and label.

    Args:
        results: from `load_results`.
        cost: "params", "macs" or "train_seconds".

    Columns: n, cost, mean, low and high (95 % t-interval), `on_front` (no point that costs as little has a higher mean)
    and `beaten_by`, the label of a point that costs no more and is shown to be better, by one-sided t-tests paired by
    seed at a level divided by the number of such points; empty where none is. Costs within 1 % count as equal.
    Points of different images, or of labels by different teachers, have fronts of their own.
    """
    metric = scored_metric(results) if metric is None else metric
    table = scored(results, metric, needs=[cost])
    groups = points_against(table, cost, metric, confidence)
    by = [*SPLIT, *varied_settings(table)]
    parts = [part.set_index("seed")[metric] for _, part in table.groupby(by, sort=False, dropna=False)]
    groups["label"] = point_labels(groups)
    tasks = [name for name in IMAGES if name in by]
    for _, task in groups.groupby(tasks, dropna=False) if tasks else [((), groups)]:
        front = task.index[pareto_front(task["cost"], task["mean"])]
        groups.loc[task.index, "on_front"] = task.index.isin(front)
        for place in task.index:
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
    """Positions, by rising cost, of the points that no other beats: none costs as little and is worth more.

    >>> pareto_front([1, 2, 3, 4], [0.5, 0.8, 0.7, 0.9])
    [0, 1, 3]
    """
    costs, values = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    front: list[int] = []
    for position in np.lexsort((-values, costs)):
        if not front or values[position] > values[front[-1]]:
            front.append(int(position))
    return front

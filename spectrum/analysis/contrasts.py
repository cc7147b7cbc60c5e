"""Comparisons of a table's runs: differences paired by seed, judged as one family.

Runs of one seed see the same images in the same order, so differences are taken seed by seed, and seeds are what
counts as n. A seed with a missing run is left out of a comparison.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from spectrum.analysis.along import leading, places
from spectrum.analysis.inference import (
    ALPHA,
    Difference,
    difference,
    holm,
    seeds_for_difference,
    seeds_for_equivalence,
    upper_sd,
    zero_crossing,
)
from spectrum.analysis.table import SPLIT, has, keys, scored, scored_metric, varied_settings

Side = Mapping[str, Any]
Across = Sequence[Side] | Literal["segments"] | None


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

    What the sides do not name must be the same on both and pairs their rows, except where each side has a single value
    throughout, which then is compared too. Seeds for which a run is missing are left out. Raises ValueError where sides
    share runs, where one has no row, or where no seed has all runs, as when the sides do not pair.

    >>> from spectrum import load_results
    >>> orders = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> differences_by_seed(load_results("results/order"), orders).head(3).round(4).to_dict()
    {0: 0.0051, 1: 0.0029, 2: 0.0052}
    """
    metric = scored_metric(results) if metric is None else metric
    return _differences(scored(results, metric), between, across, metric)


def _differences(
    table: pd.DataFrame, between: Sequence[Side], across: Across, metric: str, changed: Collection[str] | None = None
) -> pd.Series:
    """`differences_by_seed` of a table that is checked."""
    if len(between) != 2:
        raise ValueError(f"between: expected two sides, got {len(between)}")
    if across is None:
        return _mean_difference(table, between, metric, changed)
    if across == "segments":
        curve = _by_place(table, between, metric, changed)
        return pd.Series(leading(curve, 1), index=curve.index)
    if len(across) != 2 or not all(isinstance(at, Mapping) for at in across):
        raise ValueError(f'across: expected two settings or "segments", got {across!r}')
    one, other = (_mean_difference(_side(table, at), between, metric, changed) for at in across)
    return _complete(one.sub(other).to_frame()).iloc[:, 0]


def _mean_difference(
    table: pd.DataFrame, between: Sequence[Side], metric: str, changed: Collection[str] | None
) -> pd.Series:
    return _complete(_paired(table, between, metric, changed)).mean(axis=1)


def _paired(
    table: pd.DataFrame, between: Sequence[Side], metric: str, changed: Collection[str] | None = None
) -> pd.DataFrame:
    """Differences, a row a seed and a column each thing that the sides have in common; NaN where a run is missing.

    What the sides do not name must be the same on both, cell by cell; a cell that one side lacks is missing at every
    seed. Only where a side has a single value throughout, and the other another, is that taken for what is compared;
    with `changed`, only if it is one of these names.
    """
    first, second = (_side(table, side) for side in between)
    both = first.index.intersection(second.index)
    if len(both):
        raise ValueError(f"between: {len(both)} runs are on both sides, {dict(between[0])} and {dict(between[1])}")
    named = {name for side in between for name in side}
    names = [name for name in (*SPLIT, *varied_settings(pd.concat([first, second]))) if name in table]
    shared = [name for name in names if name not in named and not _compared(first[name], second[name], changed)]

    def by_seed(side: pd.DataFrame) -> pd.DataFrame:
        cells = side.assign(cell=keys(side, shared), kind=keys(side, names))
        runs = cells.pivot_table(index="seed", columns=["cell", "kind"], values=metric, sort=False)
        return runs.T.groupby(level="cell", sort=False).mean().where(runs.notna().T.groupby(level="cell").all()).T

    one, other = by_seed(first), by_seed(second)
    paired = one.sub(other)  # seeds and cells of one side only become NaN
    if paired.isna().all().any():
        raise NoRunsError(f"no seed has a run on every side{_unlike(first, second, shared)}")
    return paired


def _compared(first: pd.Series, second: pd.Series, changed: Collection[str] | None) -> bool:
    """Whether the sides differ in a column as a whole."""
    one, other = set(first.map(repr)), set(second.map(repr))
    if changed is not None and first.name not in changed:
        return False
    return len(one) == len(other) == 1 and one != other


def _unlike(first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> str:
    """In what settings, beside those that are compared, the sides have not the same values."""
    said = []
    for name in names:
        one, other = (list(dict.fromkeys(side[name].map(repr))) for side in (first, second))
        if set(one) != set(other):
            said.append(f"{name} is {', '.join(one)} on the first side and {', '.join(other)} on the second")
    return f": {'; '.join(said)}. Pick the rows that compare, or name it on both sides" if said else ""


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
        raise NoRunsError("no seed has a run on every side")
    return complete


def _by_place(
    table: pd.DataFrame, between: Sequence[Side], metric: str, changed: Collection[str] | None = None
) -> pd.DataFrame:
    """Differences, a row a complete seed, a column a place on the log₂ axis of the segments."""
    sides = pd.concat([_side(table, side) for side in between])
    sides = sides.assign(place=places(sides))
    curves = {
        place: _paired(at, between, metric, changed).mean(axis=1, skipna=False) for place, at in sides.groupby("place")
    }
    complete = _complete(pd.DataFrame(curves))
    if len(complete.columns) < 2:
        raise NoRunsError('across = "segments": needs at least two numbers of segments')
    return complete


@dataclass(frozen=True)
class Crossing:
    """Where along the spectrum a difference changes its sign, in segments, and where it may."""

    n: int  # seeds
    segments: float  # where the line through the mean differences crosses zero; NaN where not within the spectrum
    possible: tuple[tuple[float, float], ...]  # stretches of the spectrum that the data leave possible


def crossing(
    results: pd.DataFrame, between: Sequence[Side], *, metric: str | None = None, confidence: float = 0.95
) -> Crossing:
    """Where along the spectrum the difference of two sides crosses zero, with a confidence set.

    Args:
        results: from `load_results`.
        between: two sides, such as [{"activation": "relu"}, {"activation": "none"}].
        metric: a column of accuracies from 0 to 1; by default the one that the points are scored on.
        confidence: of the set.

    Each seed has its own straight line of the difference over log₂ of the segments. A place is possible if the
    t-interval of these lines' heights there holds zero (Fieller 1954), and `possible` are the stretches of the studied
    spectrum where it does: one stretch, two with a gap, all of it where no slope is shown, or none where one side is
    better throughout. Raises ValueError as `differences_by_seed` does, and below two seeds.
    """
    metric = scored_metric(results) if metric is None else metric
    curve = _by_place(scored(results, metric, needs=["realised_segments"]), between, metric)
    if len(curve) < 2:
        raise NoRunsError("crossing: needs at least two complete seeds")
    logs = curve.columns.to_numpy(dtype=float)
    at, stretches = zero_crossing(logs, curve.to_numpy(dtype=float), confidence)
    return Crossing(n=len(curve), segments=float(2**at), possible=tuple((2**low, 2**high) for low, high in stretches))


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
        results: from `load_results`.
        between: two sides, as for `differences_by_seed`.
        across: of an interaction, as there.
        margin: a difference below which the sides count as equivalent, set before the runs.
        metric: a column of accuracies from 0 to 1; by default the one that the points are scored on.
        confidence: of the interval.

    For several contrasts of one study take `contrasts`, which corrects for their number. Raises ValueError as
    `differences_by_seed` does.

    >>> from spectrum import load_results
    >>> orders = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> found = contrast(load_results("results/order"), orders, margin=0.005)
    >>> print(f"{found.mean:+.4f}, {found.low:+.4f} to {found.high:+.4f}, n = {found.n}")
    +0.0031, +0.0022 to +0.0039, n = 14
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

    Columns: name, n, `left_out` (seeds that lack a run), `diverged` (runs that count), mean, sd, low, high (95 %
    t-interval of this contrast by itself), `kind` ("difference", "interaction", or "slope", which is of a doubling of
    the segments), `confounded` (as the plan says), margin, p and
    p_equivalent, both adjusted by Holm's method, verdict, and `more_seeds` that it would take to decide an undecided
    one: enough to show a difference of the margin's size if there is one, and equivalence if there is none; without a
    margin, a difference as large as the one observed. `more_seeds_at_most` is the same if the spread is as large as its
    80 % upper limit. A contrast whose sides have no rows yet, or do not pair, has n = 0 and a `reason`.

    Verdicts: "higher", "lower" (the first side), "equivalent", "undecided"; "negligibly higher" and "negligibly lower"
    for a difference that is shown, and shown to be less than the margin; "unknown" below two seeds or where all
    differences are equal. Raises ValueError for a table that would mislead, and for what is no contrast.

    >>> from spectrum import load_results
    >>> sides = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> asked = [{"name": "order", "between": sides, "margin": 0.005}]
    >>> contrasts(load_results("results/order"), asked)[["n", "mean", "verdict"]].round(4)
        n    mean            verdict
    0  14  0.0031  negligibly higher
    """
    metric = scored_metric(results) if metric is None else metric
    table = scored(results, metric)
    for one in asked:
        if not {"name", "between"} <= one.keys():
            raise ValueError(f"contrasts: {dict(one)} lacks a name, or the two sides in between")
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
    columns = """name n left_out diverged mean sd low high kind confounded margin p p_equivalent verdict
    more_seeds more_seeds_at_most reason""".split()
    return pd.DataFrame(judged, columns=columns).astype({"more_seeds": "Int64", "more_seeds_at_most": "Int64"})


def _asked(table: pd.DataFrame, asked: Mapping[str, Any], metric: str) -> dict[str, Any]:
    between, across, margin = asked["between"], asked.get("across"), asked.get("margin")
    row: dict[str, Any] = {"name": asked["name"], "margin": margin if margin is not None else float("nan")}
    kind = "difference" if across is None else "slope" if across == "segments" else "interaction"
    row |= {"kind": kind, "confounded": bool(asked.get("confounded", False))}
    try:
        sides = _rows_of(table, between, across)
    except NoRunsError:
        return row | _nothing(table, "no seed has a run on every side")
    try:
        values = _differences(table, between, across, metric, _changed(asked))
    except NoRunsError as error:
        return row | _nothing(table, str(error))
    left_out = tuple(sorted(set(sides["seed"]) - set(values.index)))
    diverged = int((sides["status"].eq("diverged") & sides["seed"].isin(values.index)).sum())
    return row | vars(difference(values, margin)) | {"left_out": left_out, "diverged": diverged, "reason": ""}


def _nothing(table: pd.DataFrame, reason: str) -> dict[str, Any]:
    """What is known of a contrast without a seed."""
    unknown = dict.fromkeys(("mean", "sd", "low", "high", "p", "p_equivalent"), float("nan"))
    return unknown | {"n": 0, "left_out": tuple(sorted(set(table["seed"]))), "diverged": 0, "reason": reason}


def _rows_of(table: pd.DataFrame, between: Sequence[Side], across: Across) -> pd.DataFrame:
    """The runs that a comparison takes, if it is complete."""
    settings = across if across is not None and across != "segments" else [{}]
    return pd.concat([_side(table, {**side, **at}) for at in settings for side in between])


def _changed(asked: Mapping[str, Any]) -> set[str] | None:
    """The fields that a plan says a contrast changes; None where no plan says it."""
    if "factors" not in asked:
        return None
    changed = {str(factor).partition(":")[0] for factor in asked["factors"]}
    return (
        changed
        | ({"segments", "segment_width", "stage_segments"} if "segments" in changed else set())
        | ({"match"} if "budget" in changed else set())
    )


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

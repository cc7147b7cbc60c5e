"""Comparisons of a table's runs, judged as one family, and where along the spectrum they change their sign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from spectrum.analysis.inference import ALPHA, Difference, check_parts, difference, zero_crossing
from spectrum.analysis.judging import MORE_SEEDS, judge_family
from spectrum.analysis.pairing import (
    Across,
    NoRunsError,
    Side,
    differences_by_place,
    differences_by_seed,
    paired_differences,
    rows_of_side,
)
from spectrum.analysis.sides import SIDE_COLUMNS, name_sides
from spectrum.analysis.table import scored, scored_metric
from spectrum.analysis.unfinished import NOT_COMPLETE, planned_table, runs_there
from spectrum.design.margins import check_margin
from spectrum.design.plan import Plan, PlannedContrast


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
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the set.

    A straight line of the difference over log₂ of the segments is fitted to each seed. A crossing is possible where the
    t-interval of the lines' heights contains zero (Fieller 1954), and `possible` lists these stretches of the studied
    spectrum: one stretch, two with a gap, all of it where no slope is shown, or none where one side is better
    throughout. Plain convolutions are left out. Raises ValueError as `differences_by_seed` does, and below two seeds.
    """
    metric = scored_metric(results) if metric is None else metric
    scored(results, metric, needs=["realised_segments"])
    curve = differences_by_place(results.reset_index(drop=True), between, metric)
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
    """The difference A − B of two sides of a study, paired by seed, with its interval and tests.

    Args:
        results: from `load_results`.
        between: two sides, as for `differences_by_seed`.
        across: of an interaction, as there.
        margin: a difference below which the sides count as equivalent, set before the runs: a share of 1, at most 0.2;
            0.005 is half a percentage point.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the interval.

    For several comparisons of one study take `contrasts`, which corrects for their number. Raises ValueError as
    `differences_by_seed` does, and for a margin that cannot be meant.

    >>> from spectrum import load_results
    >>> orders = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> found = contrast(load_results("results/order"), orders, margin=0.005)
    >>> print(f"{found.mean:+.4f}, {found.low:+.4f} to {found.high:+.4f}, n = {found.n}")
    +0.0031, +0.0022 to +0.0039, n = 14
    """
    check_margin("contrast", margin)
    return difference(differences_by_seed(results, between, across, metric), margin, confidence)


def contrasts(
    results: pd.DataFrame,
    asked: Sequence[PlannedContrast | Mapping[str, Any]],
    *,
    plan: Plan | None = None,
    metric: str | None = None,
    alpha: float = ALPHA,
    power: float = 0.8,
) -> pd.DataFrame:
    """All comparisons of a study as one family: a row each, in their order.

    Args:
        results: from `load_results`.
        asked: name, between, and if wanted across and margin, as a study's file has them; or
            `read_plan(folder).contrasts`.
        plan: of the study. With it, a comparison is judged only once all its planned runs have ended.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        alpha: the rate of any false claim in the whole family.
        power: that `more_seeds` is computed for.

    Columns: name, n, `left_out` (seeds that lack a run), `diverged` (runs that count), mean, sd, low, high (the 95%
    CI of this comparison by itself), `kind` ("difference", "interaction", or "slope", which is per doubling of the
    segments), `confounded` (as the plan says), margin, p and p_equivalent, both adjusted by Holm's method, verdict,
    `more_seeds`, and the sides in words: `side_a`, `side_b`, `where` (what they share), `setting_1` and `setting_2`
    (between which an interaction compares).

    `more_seeds` would decide an inconclusive comparison: enough to show a difference of the margin's size if there is
    one, and equivalence if there is none; without a margin, a difference as large as the one observed.
    `more_seeds_at_most` is the same if the spread is as large as its 80% upper limit, and `more_seeds_to_show` is for
    a difference as large as the one observed. Each is 0 where n seeds have that power. They plan a new study of n and
    so many more seeds: added to the present ones, they would be a second look.

    A comparison whose sides have no rows yet, or do not pair, has n = 0 and a `reason`. The others are adjusted for it
    all the same, as if its p were 1: the family is all that was asked, whatever has run so far.

    Verdicts: "higher", "lower" (the first side), "equivalent", "inconclusive"; "negligibly higher" and "negligibly
    lower" for a difference that is shown, and shown to be less than the margin; "unknown" below two seeds or where all
    differences are equal; "not complete" where a planned run has not ended. Raises ValueError for a table that would
    mislead, for a comparison without name or sides, and for a margin that cannot be meant.

    >>> from spectrum import load_results
    >>> sides = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> asked = [{"name": "order", "between": sides, "margin": 0.005}]
    >>> contrasts(load_results("results/order"), asked)[["n", "mean", "verdict"]].round(4)
        n    mean            verdict
    0  14  0.0031  negligibly higher
    """
    check_parts("contrasts", alpha=alpha, power=power)
    metric = scored_metric(results) if metric is None else metric
    scored(results, metric)  # refuses what would mislead
    results = results.reset_index(drop=True)
    if isinstance(asked, str | Mapping | pd.DataFrame) or not isinstance(asked, Iterable):
        raise ValueError(
            f"contrasts: expected a list of comparisons, each with name and between (got {type(asked).__name__}), or "
            "read_plan(FOLDER).contrasts"
        )
    named = [one.entry() if isinstance(one, PlannedContrast) else one for one in asked]
    for one in named:
        if not {"name", "between"} <= one.keys():
            raise ValueError(f"contrasts: {dict(one)} lacks a name, or the two sides in between")
    for given in asked:
        if not isinstance(given, PlannedContrast):  # a plan may be older than the largest margin
            check_margin(f"contrasts: {given['name']!r}", given.get("margin"))
    planned = pd.DataFrame() if plan is None else planned_table(plan)
    rows = [_asked(results, one, metric, planned) for one in named]
    judged = judge_family(rows, alpha=alpha, power=power)
    columns = f"""name n left_out diverged mean sd low high kind confounded margin p p_equivalent verdict
    {" ".join((*MORE_SEEDS, *SIDE_COLUMNS))} reason""".split()
    return pd.DataFrame(judged, columns=columns).astype(dict.fromkeys(MORE_SEEDS, "Int64"))


def _asked(table: pd.DataFrame, asked: Mapping[str, Any], metric: str, planned: pd.DataFrame) -> dict[str, Any]:
    between, across, margin = asked["between"], asked.get("across"), asked.get("margin")
    row: dict[str, Any] = {"name": asked["name"], "margin": margin if margin is not None else float("nan")}
    kind = "difference" if across is None else "slope" if across == "segments" else "interaction"
    row |= {"kind": kind, "confounded": bool(asked.get("confounded", False))}
    ended, due = runs_there(table, planned, lambda rows: _rows_of(rows, between, across))
    row |= name_sides(planned if ended < due else table, between, across, _changed(asked) or ())
    if ended < due:
        reason = f"{NOT_COMPLETE}, {ended} of {due} runs have ended"
        return row | _nothing(table, reason) | {"verdict": NOT_COMPLETE, "left_out": ()}
    try:
        sides = _rows_of(table, between, across)
    except NoRunsError:
        return row | _nothing(table, "no seed has a run on every side")
    try:
        values = paired_differences(table, between, across, metric, _changed(asked))
    except NoRunsError as error:
        return row | _nothing(table, str(error))
    left_out = tuple(sorted(set(sides["seed"]) - set(values.index)))
    diverged = int((sides["status"].eq("diverged") & sides["seed"].isin(values.index)).sum())
    return row | vars(difference(values, margin)) | {"left_out": left_out, "diverged": diverged, "reason": ""}


def _nothing(table: pd.DataFrame, reason: str) -> dict[str, Any]:
    """The row of a comparison without a seed."""
    unknown = dict.fromkeys(("mean", "sd", "low", "high", "p", "p_equivalent"), float("nan"))
    return unknown | {"n": 0, "left_out": tuple(sorted(set(table["seed"]))), "diverged": 0, "reason": reason}


def _rows_of(table: pd.DataFrame, between: Sequence[Side], across: Across) -> pd.DataFrame:
    """The runs that a comparison takes, if it is complete."""
    settings = across if across is not None and across != "segments" else [{}]
    rows = pd.concat([rows_of_side(table, {**side, **at}) for at in settings for side in between])
    return rows[rows["pointwise"].astype(bool)] if across == "segments" else rows  # as `differences_by_place` does


def _changed(asked: Mapping[str, Any]) -> set[str] | None:
    """The options that a plan says a comparison changes; None where no plan says it."""
    if "factors" not in asked:
        return None
    changed = {str(factor).partition(":")[0] for factor in asked["factors"]}
    return (
        changed
        | ({"segments", "segment_width", "stage_segments"} if "segments" in changed else set())
        | ({"match"} if "budget" in changed else set())
    )

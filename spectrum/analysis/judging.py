"""Verdicts of a family of comparisons, corrected together, and the seeds that would decide the inconclusive ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrum.analysis.inference import holm, paired_freedom, seeds_for_difference, seeds_for_equivalence, upper_sd

MORE_SEEDS = ("more_seeds", "more_seeds_at_most", "more_seeds_to_show")


def judge_family(rows: Sequence[Mapping[str, Any]], *, alpha: float, power: float) -> list[dict[str, Any]]:
    """The rows with p-values corrected by Holm's method, with verdicts, and with the seeds that would decide.

    Args:
        rows: comparisons, each with n, mean, sd, margin (NaN if it has none), p and p_equivalent; and `freedom`, the
            degrees of freedom with n seeds, where they are not those of paired differences; and `verdict`, where one
            stands already, such as "not complete".
        alpha: the rate of any false claim in the whole family.
        power: that the seeds are computed for.
    """
    both = _adjusted([(row["p"], row["p_equivalent"]) for row in rows])
    judged = []
    for row, (p, p_equivalent) in zip(rows, both, strict=True):
        corrected = {**row, "p": p, "p_equivalent": p_equivalent}
        corrected["verdict"] = row.get("verdict") or _verdict(corrected, alpha)
        judged.append(corrected | _seeds_to_decide(corrected, power, alpha / len(rows)))
    return judged


def _adjusted(p_values: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Both p-values of each comparison, adjusted for all; those of one without a test stay NaN, and count as 1."""
    raw = np.asarray(p_values, dtype=float).reshape(-1, 2)
    counted = raw.copy()
    counted[np.isnan(raw[:, 0]), 0] = 1.0
    # of a comparison's two hypotheses, "no difference" and "at least the margin", at most one is true
    adjusted = holm(counted.ravel(), np.repeat(np.arange(len(raw)), 2).tolist()).reshape(-1, 2)
    return np.where(np.isnan(raw), np.nan, adjusted)


def _verdict(row: Mapping[str, Any], alpha: float) -> str:
    if np.isnan(row["p"]):
        return "unknown"
    side = "higher" if row["mean"] > 0 else "lower"
    if row["p_equivalent"] <= alpha:
        return f"negligibly {side}" if row["p"] <= alpha else "equivalent"
    return side if row["p"] <= alpha else "inconclusive"


def _seeds_to_decide(row: Mapping[str, Any], power: float, alpha: float) -> dict[str, int | None]:
    """How many more seeds would decide an inconclusive comparison, at the level of the first of its family."""
    if row["verdict"] != "inconclusive":
        return dict.fromkeys(MORE_SEEDS)

    def more(*needed: int | None) -> int | None:
        found = [n for n in needed if n is not None]
        return max(0, max(found) - row["n"]) if len(found) == len(needed) else None

    freedom = row.get("freedom", paired_freedom)

    def to_show(difference: float, sd: float) -> int | None:
        return seeds_for_difference(difference, sd, power=power, alpha=alpha, freedom=freedom)

    def to_decide(sd: float) -> int | None:
        if np.isnan(row["margin"]):
            return more(to_show(row["mean"], sd))
        equivalence = seeds_for_equivalence(row["margin"], sd, power=power, alpha=alpha, freedom=freedom)
        return more(to_show(row["margin"], sd), equivalence)

    sds = row["sd"], upper_sd(row["sd"], freedom(row["n"]) + 1)
    return dict(zip(MORE_SEEDS, [*map(to_decide, sds), more(to_show(row["mean"], row["sd"]))], strict=True))

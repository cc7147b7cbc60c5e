"""Comparisons for the pages: which configurations are better, and by how much.

A configuration is given by its number of segments, "per_channel", or "plain" for the plain 3×3 without a 1×1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from spectrum import stats
from spectrum.analysis.export import markdown_rows, runs_table
from spectrum.analysis.inference import Difference
from spectrum.analysis.sentences import comparison_names, pp
from spectrum.analysis.table import has
from spectrum.design.plan import PlannedContrast


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95% CI."""

    mean: float
    low: float
    high: float

    @property
    def reversed(self) -> Interval:
        """The interval with its sides exchanged."""
        return Interval(-self.mean, -self.high, -self.low)


@dataclass(frozen=True)
class Judged(Interval):
    """Result of a prespecified comparison, named in plain words; `kind` is difference, slope or interaction."""

    sides: str
    kind: str
    n: int
    margin: float | None
    p: float
    p_equivalent: float
    verdict: str
    is_confounded: bool
    new_study: str


@dataclass(frozen=True)
class Best:
    """Best configuration of a curve: the label with the highest mean, and the 95% set of possible optima."""

    label: str
    mean: float
    set: list[str]


class Comparisons:
    """Comparisons of one study's rows. All except `judged` and `contrast` are exploratory, not prespecified."""

    def __init__(self, results: pd.DataFrame, contrasts: Sequence[PlannedContrast]) -> None:
        self.results, self.planned = results, contrasts

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """All prespecified comparisons, by their names in the plan."""
        table = stats.contrasts(self.results, self.planned)
        rows = zip(comparison_names(table), table.iterrows(), strict=True)
        return {row["name"]: _judged(row, sides) for sides, (_, row) in rows}

    def contrast(self, name: str) -> Judged:
        """A prespecified comparison by its name in the plan."""
        return self.judged[name]

    def verdicts(self, within: str) -> list[str]:
        """Verdicts of all comparisons whose names in the plan contain `within`."""
        return [found.verdict for name, found in self.judged.items() if within in name]

    @property
    def margins(self) -> list[float]:
        """Margins of equivalence of the prespecified comparisons."""
        return sorted({found.margin for found in self.judged.values() if found.margin and found.margin > 0})

    @property
    def tells_from_zero(self) -> bool:
        """Whether the new study of any inconclusive comparison would tell no difference from one like the margin."""
        return any("to tell 0" in found.new_study for found in self.judged.values())

    @property
    def is_inconclusive(self) -> bool:
        """Whether any prespecified comparison is inconclusive."""
        return any(found.verdict == "inconclusive" for found in self.judged.values())

    @property
    def largest(self) -> float:
        """Largest absolute difference within the 95% CI of any prespecified comparison."""
        return max(max(-found.low, found.high) for found in self.judged.values() if found.kind == "difference")

    def difference(
        self, first: Mapping[str, Any], second: Mapping[str, Any], among: Sequence[Any] | None = None
    ) -> Difference:
        """One side minus another, optionally restricted to some numbers of segments."""
        return stats.contrast(self._among(among), [first, second])

    def at(self, match: str, first: Any, second: Any) -> Difference:
        """One configuration minus another at one budget."""
        return self.difference(_side(first, match), _side(second, match))

    def ends(self, match: str) -> Difference:
        """Per-channel minus 1 segment, both with their 1×1, at one budget."""
        return self.at(match, "per_channel", 1)

    def is_ahead(self, first: Any, others: Sequence[Any], matches: Sequence[str]) -> bool:
        """Whether one configuration beats all others at all budgets, with every interval above zero."""
        return all(self.at(match, first, other).low > 0 for match in matches for other in others)

    def highest_means(self, matches: Sequence[str]) -> list[str]:
        """Labels with the highest mean at some of the budgets."""
        return list(dict.fromkeys(self.best(match=match).label for match in matches))

    def interaction(self, between: Sequence[Any], across: Any, among: Sequence[Any] | None = None) -> Interval:
        """Change of a difference between two settings or, with across "segments", per doubling of the segments."""
        asked = [{"name": "interaction", "between": between, "across": across}]
        (row,) = stats.contrasts(self._among(among), asked).to_dict("records")
        return Interval(row["mean"], row["low"], row["high"])

    def crossing(self, between: Sequence[Mapping[str, Any]]) -> stats.Crossing:
        """The crossing of zero by the difference of two sides."""
        return stats.crossing(self.results, between)

    def slope(self, **side: Any) -> pd.Series:
        """Accuracy per doubling of the segments, along one curve."""
        return stats.trend(self._rows(side)).iloc[0]

    def rises(self, **side: Any) -> bool:
        """Whether the mean accuracy of one curve rises with every step along the spectrum."""
        return bool(stats.optimum(self._rows(side))["mean"].is_monotonic_increasing)

    def best(self, **side: Any) -> Best:
        """Best configuration of one curve."""
        found = stats.optimum(self._rows(side))
        first = found[found["best"]].iloc[0]
        return Best(first["label"], first["mean"], found.loc[found["in_set"], "label"].tolist())

    def table(self, **side: Any) -> str:
        """The summary of the rows that have these values."""
        return markdown_rows(runs_table(self._rows(side)))

    def _rows(self, side: Mapping[str, Any]) -> pd.DataFrame:
        return self.results[has(self.results, side)]

    def _among(self, segments: Sequence[Any] | None) -> pd.DataFrame:
        return self.results if segments is None else self.results[self.results["segments"].isin(segments)]


def _side(which: Any, match: str) -> dict[str, Any]:
    """Values of the rows of a configuration at a budget."""
    if which == "plain":
        return {"match": match, "pointwise": False}
    return {"match": match, "pointwise": True, "segments": which}


def _judged(row: pd.Series, sides: str) -> Judged:
    return Judged(
        mean=row["mean"],
        low=row["low"],
        high=row["high"],
        sides=sides,
        kind=row["kind"],
        n=row["n"],
        margin=row["margin"],
        p=row["p"],
        p_equivalent=row["p_equivalent"],
        verdict=row["verdict"],
        is_confounded=row["confounded"],
        new_study=_new_study(row),
    )


def _new_study(row: pd.Series) -> str:
    """Seeds with which a new study would settle an inconclusive comparison with 80% power, and what it would show.

    The second number is for a spread at its 80% upper limit.
    """
    if row["verdict"] != "inconclusive":
        return ""
    is_beyond = pd.isna(row["margin"]) or abs(row["mean"]) > row["margin"]
    more = row["more_seeds_to_show" if is_beyond else "more_seeds"]
    if pd.isna(more):
        return "more than 10,000"
    aim = f"to show a difference of {pp(abs(row['mean']))}" if is_beyond else f"to tell 0 from ±{pp(row['margin'])}"
    if is_beyond and not pd.isna(row["margin"]):
        return f"{row['n'] + more:,}, {aim}"
    most = row["more_seeds_at_most"]
    safe = "more than 10,000" if pd.isna(most) else f"{row['n'] + most:,}"
    return f"{row['n'] + more:,} to {safe}, {aim}"

"""Which places on the spectrum are better than which, and by how much.

A place is a number of segments, "per_channel", or "plain": the regular convolution without a 1×1.
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
from spectrum.analysis.sentences import sentence
from spectrum.analysis.table import has
from spectrum.design.plan import PlannedContrast


@dataclass(frozen=True)
class Judged:
    """What a contrast that was written down beforehand shows."""

    name: str
    mean: float
    low: float
    high: float
    n: int
    margin: float | None
    verdict: str
    sentence: str

    @property
    def reversed(self) -> Interval:
        """With its sides exchanged."""
        return Interval(-self.mean, -self.high, -self.low)


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """Of one curve: the place with the highest mean, and all that may be the best."""

    label: str
    mean: float
    set: list[str]


class Comparisons:
    """Of one study's rows. All but `contrast` are exploratory: the study did not ask for them beforehand."""

    def __init__(self, results: pd.DataFrame, contrasts: Sequence[PlannedContrast]) -> None:
        self.results, self.planned = results, contrasts

    @cached_property
    def judged(self) -> pd.DataFrame:
        """All contrasts, a row each."""
        return stats.contrasts(self.results, self.planned).set_index("name", drop=False)

    def contrast(self, name: str) -> Judged:
        """A contrast by its name."""
        row = self.judged[self.judged["name"] == name].iloc[0]
        return Judged(
            name, row["mean"], row["low"], row["high"], row["n"], row["margin"], row["verdict"], sentence(row)
        )

    def difference(
        self, first: Mapping[str, Any], second: Mapping[str, Any], among: Sequence[Any] | None = None
    ) -> Difference:
        """One side less another; among some segments alone."""
        return stats.contrast(self._among(among), [first, second])

    def at(self, match: str, first: Any, second: Any) -> Difference:
        """One place less another under a budget."""
        return self.difference(_side(first, match), _side(second, match))

    def ends(self, match: str) -> Difference:
        """1 segment less one a channel, both with their 1×1, under one budget."""
        return self.at(match, 1, "per_channel")

    def highest(self, first: Any, second: Any, matches: Sequence[str]) -> float:
        """The highest end of the intervals of a difference under several budgets."""
        return max(self.at(match, first, second).high for match in matches)

    def lowest(self, first: Any, others: Sequence[Any], match: str) -> float:
        """The lowest end of the intervals of the differences from several places."""
        return min(self.at(match, first, other).low for other in others)

    def interaction(self, between: Sequence[Any], across: Any, among: Sequence[Any] | None = None) -> Interval:
        """By how much a difference changes across two settings or, across "segments", a doubling of them."""
        asked = [{"name": "interaction", "between": between, "across": across}]
        (row,) = stats.contrasts(self._among(among), asked).to_dict("records")
        return Interval(row["mean"], row["low"], row["high"])

    def crossing(self, between: Sequence[Mapping[str, Any]]) -> stats.Crossing:
        """Where the difference of two sides crosses zero."""
        return stats.crossing(self.results, between)

    def slope(self, **side: Any) -> pd.Series:
        """Of one curve: points a doubling of the segments."""
        return stats.trend(self._rows(side)).iloc[0]

    def best(self, **side: Any) -> Best:
        """Of one curve."""
        found = stats.optimum(self._rows(side))
        first = found[found["best"]].iloc[0]
        return Best(first["label"], first["mean"], list(found.loc[found["in_set"], "label"]))

    def table(self, **side: Any) -> str:
        """The summary of the rows that have these values."""
        return markdown_rows(runs_table(self._rows(side)))

    def _rows(self, side: Mapping[str, Any]) -> pd.DataFrame:
        return self.results[has(self.results, side)]

    def _among(self, segments: Sequence[Any] | None) -> pd.DataFrame:
        return self.results if segments is None else self.results[self.results["segments"].isin(segments)]


def _side(place: Any, match: str) -> dict[str, Any]:
    """A place on the spectrum under a budget, as the values that its rows have."""
    if place == "plain":
        return {"match": match, "pointwise": False}
    return {"match": match, "pointwise": True, "segments": place}

"""What a study's networks cost, and how near they are to their budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from spectrum import stats
from spectrum.analysis.table import has

ORDERS = ("pointwise_first", "spatial_first")


class Costs:
    """Of one study's rows. `cost` is a column of them, such as "params" or "macs"."""

    def __init__(self, results: pd.DataFrame) -> None:
        self.results = results

    def of(self, cost: str, **side: Any) -> float:
        """Of the first row that has these values."""
        return float(self.results[has(self.results, side)][cost].iloc[0])

    def times(self, cost: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
        """How many times the cost of the second network the first has."""
        return self.of(cost, **first) / self.of(cost, **second)

    def plain_times(self, cost: str, match: str) -> float:
        """How many times the cost of one segment a channel the regular convolution without a 1×1 has."""
        return self.times(cost, {"pointwise": False, "match": match}, {"segments": "per_channel", "match": match})

    def ratio(self, cost: str, **side: Any) -> float:
        """How many times the cost of the cheapest point the dearest has."""
        costs = self.results[has(self.results, side)][cost]
        return float(costs.max() / costs.min())

    def more_params(self, segments: Any) -> float:
        """By how many per cent the network with the 1×1 first has more parameters."""
        first, second = ({"segments": segments, "order": order} for order in ORDERS)
        return 100 * (self.times("params", first, second) - 1)

    def worst_mismatch(self, *matches: str) -> float:
        """The largest distance of a point from its budget, as a part of it, under some budgets."""
        return stats.worst_mismatch(self.results[self.results["match"].isin(matches)])

    def realised(self, **side: Any) -> list[int]:
        """The different numbers of segments that the layers of a network really have, from input to output."""
        return list(dict.fromkeys(self.results[has(self.results, side)]["realised_segments"].iloc[0]))

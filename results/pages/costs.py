"""Costs of a study's networks, and how closely they meet their budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pages.width import channels_of_stages
from spectrum import stats
from spectrum.analysis.table import has

ORDERS = ("pointwise_first", "spatial_first")


class Costs:
    """Costs of one study's networks. `cost` is a column of its rows, such as "params" or "macs"."""

    def __init__(self, results: pd.DataFrame) -> None:
        self.results = results

    def of(self, cost: str, **side: Any) -> float:
        """Cost of the first row with these values."""
        return float(self.results[has(self.results, side)][cost].iloc[0])

    def times(self, cost: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
        """Cost of the first network divided by the cost of the second."""
        return self.of(cost, **first) / self.of(cost, **second)

    def plain_times(self, cost: str, match: str) -> float:
        """Cost of the plain 3×3 divided by the cost of per-channel."""
        return self.times(cost, {"pointwise": False, "match": match}, {"segments": "per_channel", "match": match})

    def ratio(self, cost: str, **side: Any) -> float:
        """Highest cost divided by the lowest."""
        costs = self.results[has(self.results, side)][cost]
        return float(costs.max() / costs.min())

    def more_params(self, segments: Any) -> float:
        """How many percent more parameters pointwise-first has than spatial-first."""
        first, second = ({"segments": segments, "order": order} for order in ORDERS)
        return 100 * (self.times("params", first, second) - 1)

    def worst_mismatch(self, *matches: str) -> float:
        """Largest relative mismatch of a network with its budget, among some budgets."""
        return stats.worst_mismatch(self.results[self.results["match"].isin(matches)])

    def widths(self, **side: Any) -> list[int]:
        """Channels of the stages of the first network that has these values."""
        row = self.results[has(self.results, side)].iloc[0]
        return list(channels_of_stages(row["model"], row["width"], row["widths"]))

    def realised(self, **side: Any) -> list[int]:
        """Distinct actual numbers of segments in the layers of a network, from input to output."""
        return list(dict.fromkeys(self.results[has(self.results, side)]["realised_segments"].iloc[0]))

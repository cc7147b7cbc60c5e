"""Budgets that a study can match along its axes, by changing the stage widths of its runs.

To add one, add its name to `Match` and its entry here; add to `_count_of` in `study/planning.py` how to count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Match = Literal["none", "params", "macs", "step_time"]


@dataclass(frozen=True)
class BudgetKind:
    """A kind of budget."""

    words: str
    """Name of its comparisons, in tables and captions."""
    is_timed: bool = False
    """Whether it is measured on the CPU. Otherwise the budget is named after the count that it matches, except for
    "none"."""


BUDGETS: dict[Match, BudgetKind] = {
    "none": BudgetKind("width-matched"),
    "params": BudgetKind("parameter-matched"),
    "macs": BudgetKind("MAC-matched"),
    "step_time": BudgetKind("time-matched", is_timed=True),
}


COUNTS = {"params": "parameters", "macs": "MACs"}  # what networks are counted by, in words
EQUAL = 0.01  # counts that differ by no more are matched


def same_counts(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the networks of two sides have the same counts: each of a side has one on the other within 1%.

    >>> same_counts([50_000, 14_000], [14_100, 50_100]), same_counts([50_000, 14_000], [50_000])
    (True, False)
    """
    pairs = ((first, second), (second, first))
    return all(any(abs(b / a - 1) <= EQUAL for b in others) for ones, others in pairs for a in ones)


def count_range(counts: Sequence[int]) -> str:
    """Counts of several networks in words: the least and the most, or one number where all are equal.

    >>> count_range([49_962, 49_962]), count_range([14_234, 49_962])
    ('49,962', '14,234 … 49,962')
    """
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} … {most:,}"


def budget_name(match: str) -> str:
    """Name of a budget for readers; an unknown name is returned unchanged.

    >>> budget_name("macs")
    'MAC-matched'
    """
    return {str(known): kind.words for known, kind in BUDGETS.items()}.get(match, match)


def timed(matches: tuple[Match, ...]) -> list[Match]:
    """Budgets in `matches` that are measured on the CPU."""
    return [match for match in matches if BUDGETS[match].is_timed]

"""What a study can hold equal along its axes, by changing the stage widths of its runs: each budget, listed once.

To add one: its name in `Match` and its entry here; in `study/planning.py`, `_count_of`, how a network's count is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Match = Literal["none", "params", "macs", "step_time"]


@dataclass(frozen=True)
class BudgetKind:
    """What one budget is of."""

    words: str
    """Of its comparisons, in tables and captions."""
    is_timed: bool = False
    """Whether it is measured on the CPU; else, but for "none", its name is that of the count that it holds equal."""


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
    """A budget in words; of a name that is none, the name.

    >>> budget_name("macs")
    'MAC-matched'
    """
    return {str(known): kind.words for known, kind in BUDGETS.items()}.get(match, match)


def timed(matches: tuple[Match, ...]) -> list[Match]:
    """Those among some budgets that are measured on the CPU."""
    return [match for match in matches if BUDGETS[match].is_timed]

"""Budgets that a study can match along its axes, by changing the stage widths of its runs.

To add one, add its name to `Match` and its entry here; add to `_count_of` in `study/planning.py` how to count it.
"""

from __future__ import annotations

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


def budget_name(match: str) -> str:
    """Name of a budget for readers; an unknown name is returned unchanged.

    >>> budget_name("macs")
    'MAC-matched'
    """
    return {str(known): kind.words for known, kind in BUDGETS.items()}.get(match, match)


def timed(matches: tuple[Match, ...]) -> list[Match]:
    """Budgets in `matches` that are measured on the CPU."""
    return [match for match in matches if BUDGETS[match].is_timed]

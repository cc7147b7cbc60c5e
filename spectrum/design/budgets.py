"""What a study can hold equal along its axes, by changing the stage widths of its runs: each budget, listed once.

To add one: its name in `Match` and its entry here; in `study/planning.py`, `_count_of`, how a network's count is taken.
"""

from __future__ import annotations

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


def budget_name(match: str) -> str:
    """A budget in words; of a name that is none, the name.

    >>> budget_name("macs")
    'MAC-matched'
    """
    return {str(known): kind.words for known, kind in BUDGETS.items()}.get(match, match)


def timed(matches: tuple[Match, ...]) -> list[Match]:
    """Those among some budgets that are measured on the CPU."""
    return [match for match in matches if BUDGETS[match].is_timed]

"""Margins of equivalence: which differences in accuracy can count as none."""

from __future__ import annotations

import math

LARGEST_MARGIN = 0.2  # 20 percentage points; a larger number is likely meant in percent
EXAMPLE = "0.005 is half a percentage point"


def margin_fault(margin: object) -> str | None:
    """Say what is wrong with a margin of accuracies; None for one that can be meant.

    >>> margin_fault(0.5)
    '0.5 would be 50 percentage points; write a share of 1 up to 0.2: 0.005 is half a percentage point'
    >>> margin_fault(0.005)
    """
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        return f"{margin!r} is not a difference in accuracy; write a share of 1: {EXAMPLE}"
    if margin <= 0:
        return f"{margin!r} is not above 0; write a share of 1: {EXAMPLE}"
    if margin > LARGEST_MARGIN:
        points = f"{100 * float(margin):,.4g} percentage points"
        return f"{margin!r} would be {points}; write a share of 1 up to {LARGEST_MARGIN}: {EXAMPLE}"
    return None


def check_margin(who: str, margin: float | None) -> None:
    """Raise ValueError for a margin of accuracies that cannot be meant; `who` is the function that was given it."""
    fault = None if margin is None else margin_fault(margin)
    if fault is not None:
        raise ValueError(f"{who}: margin: {fault}")


def margin_words(margin: float) -> str:
    """A margin in percentage points, as reports give it.

    >>> margin_words(0.005)
    '±0.50 pp'
    """
    return f"±{100 * margin:.2f} pp"

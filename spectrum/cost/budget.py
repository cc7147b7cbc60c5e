"""Find stage widths at which a network meets a budget.

    solve_count   for a count, such as parameters or MACs; deterministic
    solve_ratio   for a measured ratio, such as of step times

Widths keep the ratios of a base: for some scale s every stage is within 10% of s times its base width, or is the
nearest whole number to it. They need not be divisible by anything. Pure functions; the caller gives a function that
returns the cost of a network of given widths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Widths = tuple[int, ...]

LEEWAY = 0.1  # tolerance of a width, relative to its share
COUNT_BOUND = 0.01  # tolerance of a budget
COUNT_AIM = 0.005  # target that ends the trials, while there are widths to try
TIME_BOUND = 0.03
WIDEST = 65_536
_MOST_TRIED = 4_000


class BudgetError(ValueError):
    """A budget that no widths meet; the message names the closest that can be met."""


@dataclass(frozen=True)
class Solution:
    """Widths, their cost, and the relative mismatch: cost / budget − 1."""

    widths: Widths
    cost: float
    mismatch: float


def solve_count(count: Callable[[Widths], int], base: Widths, budget: int) -> Solution:
    """Find the widths whose count is closest to a budget.

    Bisection finds the scale. Then whole-number neighbours are tried, in the order predicted by a linear model of the
    count, until one is within 0.5%. If none is, all widths near the scale are tried, up to some thousand, and the
    closest is taken.

    Args:
        count: function from stage widths to the network's count; about monotone in each, 0 if it cannot be built.
        base: widths whose ratios are kept.
        budget: target count, at least 1.

    Raises BudgetError if the closest count is more than 1% off.
    """
    counts: dict[Widths, int] = {}

    def miss(widths: Widths) -> float:
        if widths not in counts:
            counts[widths] = count(widths)
        return counts[widths] / budget - 1

    scale = _crossing(miss, base)
    middle = scaled(base, scale)
    best = min(counts, key=lambda widths: (abs(miss(widths)), widths))
    slopes = [miss(_moved(middle, stage, 1)) - miss(middle) for stage in range(len(base))]
    for candidates in _rings(base, middle):
        likely = sorted(candidates, key=lambda widths: abs(_predicted(miss(middle), slopes, middle, widths)))
        for widths in likely[:12]:
            best = min(best, widths, key=lambda widths: (abs(miss(widths)), widths))
        if abs(miss(best)) <= COUNT_AIM:
            break
    else:  # few whole numbers are close, or the count is far from linear: try them all
        for widths in itertools.islice(_allowed(base, scale), _MOST_TRIED):
            best = min(best, widths, key=lambda widths: (abs(miss(widths)), widths))
    if abs(miss(best)) > COUNT_BOUND:
        raise BudgetError(
            f"{budget:,} cannot be met within {COUNT_BOUND:.0%}; the nearest that can is {counts[best]:,}, "
            f"with widths {list(best)}"
        )
    return Solution(best, counts[best], miss(best))


def solve_ratio(ratio: Callable[[Widths], float], base: Widths, *, tries: int = 30) -> Solution:
    """Find widths whose measured ratio to the budget is within 3% of 1.

    The secant method on logarithms finds the scale; when it stops improving, single stages are changed by one channel.
    Widths that seem to match are measured again, and the mean decides.

    Args:
        ratio: function from widths to the measured ratio, budget = 1; it may vary from call to call.
        base: widths whose ratios are kept.
        tries: maximum number of measurements.

    Raises BudgetError if no mean of two measurements is within 3%.
    """
    measured: dict[Widths, list[float]] = {}

    def mean(widths: Widths) -> float:
        return math.exp(sum(map(math.log, measured[widths])) / len(measured[widths]))

    scale, known = 1.0, list[tuple[float, float]]()
    widths = scaled(base, scale)
    for _ in range(tries):
        measured.setdefault(widths, []).append(ratio(widths))
        miss = mean(widths) - 1
        if abs(miss) <= TIME_BOUND and len(measured[widths]) > 1:
            return Solution(widths, 1 + miss, miss)
        if abs(miss) <= TIME_BOUND:
            continue  # the same again
        if widths == scaled(base, scale):
            known.append((math.log(scale), math.log(1 + miss)))
            scale = max(math.exp(_zero(known)), smallest_scale(base))
        proposed = [scaled(base, scale), *_neighbours(base, min(measured, key=lambda w: abs(mean(w) - 1)))]
        widths = next((w for w in proposed if w not in measured), widths)
    best = min(measured, key=lambda w: abs(mean(w) - 1))
    raise BudgetError(
        f"cannot be met within {TIME_BOUND:.0%}; the nearest that was found takes {mean(best):.3f} times as long, "
        f"with widths {list(best)}"
    )


def _neighbours(base: Widths, widths: Widths) -> list[Widths]:
    """Widths with one stage one channel wider or narrower, within the tolerance."""
    moved = [_moved(widths, stage, by) for stage in range(len(widths)) for by in (1, -1)]
    return [near for near in moved if min(near) >= 1 and keeps_ratios(base, near)]


def scaled(base: Widths, scale: float) -> Widths:
    """The whole numbers nearest to `scale` times the base widths, at least 1."""
    return tuple(max(1, math.floor(scale * width + 0.5)) for width in base)


def smallest_scale(base: Widths) -> float:
    """The smallest scale; below it the narrowest stage would have less than half a channel."""
    return 0.5 / min(base)


def keeps_ratios(base: Widths, widths: Widths) -> bool:
    """Whether for some scale every width is within 10% of its share, or the nearest whole number to it."""
    low = max(min(w / (b * (1 + LEEWAY)), (w - 0.5) / b) for w, b in zip(widths, base, strict=True))
    high = min(max(w / (b * (1 - LEEWAY)), (w + 0.5) / b) for w, b in zip(widths, base, strict=True))
    return low <= high * (1 + 1e-12)


def _crossing(miss: Callable[[Widths], float], base: Widths) -> float:
    """The scale at which the rounded widths cross the budget, or the nearer end of the range."""
    low, high = smallest_scale(base), 1.0
    if miss(scaled(base, low)) >= 0:
        return low
    while miss(scaled(base, high)) < 0:
        low, high = high, 2 * high
        if high * max(base) > WIDEST:
            raise BudgetError(f"widths of up to {WIDEST:,} channels do not reach it")
    while scaled(base, low) != scaled(base, high) and high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if miss(scaled(base, middle)) < 0 else (low, middle)
    return min(low, high, key=lambda scale: abs(miss(scaled(base, scale))))


def _rings(base: Widths, middle: Widths) -> Iterator[list[Widths]]:
    """Neighbours within the tolerance that differ by 1, then 2, 3, 4 channels in some stage."""
    for radius in (1, 2, 3, 4):
        if (2 * radius + 1) ** len(base) > 50_000 and radius > 1:
            return
        offsets = itertools.product(range(-radius, radius + 1), repeat=len(base))
        ring = (
            tuple(w + offset for w, offset in zip(middle, change, strict=True))
            for change in offsets
            if max(map(abs, change)) == radius
        )
        yield [widths for widths in ring if min(widths) >= 1 and keeps_ratios(base, widths)]


def _allowed(base: Widths, scale: float) -> Iterator[Widths]:
    """All widths within the tolerance whose scale is within a fifth of `scale`."""
    ranges = [
        range(max(1, math.floor(scale * width / 1.2 - 0.5)), math.ceil(scale * width * 1.2 + 0.5) + 1) for width in base
    ]
    return (widths for widths in itertools.product(*ranges) if keeps_ratios(base, widths))


def _moved(widths: Widths, stage: int, by: int) -> Widths:
    return (*widths[:stage], widths[stage] + by, *widths[stage + 1 :])


def _predicted(miss: float, slopes: Sequence[float], middle: Widths, widths: Widths) -> float:
    return miss + sum(slope * (w - m) for slope, w, m in zip(slopes, widths, middle, strict=True))


def _zero(known: Sequence[tuple[float, float]]) -> float:
    """The zero of the line through two measurements around zero, or the last two; slope 1.5 for one measurement."""
    below = max((run for run in known if run[1] < 0), default=None)
    above = min((run for run in known if run[1] >= 0), default=None)
    if below is not None and above is not None and below[0] < above[0]:
        (x0, y0), (x1, y1) = below, above
    elif len(known) > 1 and (known[-1][1] - known[-2][1]) / (known[-1][0] - known[-2][0]) > 0.3:
        (x0, y0), (x1, y1) = known[-2], known[-1]
    else:
        x, y = known[-1]
        return x - y / 1.5
    return x0 - y0 * (x1 - x0) / (y1 - y0)

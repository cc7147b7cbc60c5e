"""Estimate the remaining training time, in seconds of one worker.

Runs of one configuration take similar times, so a configuration with finished runs uses their mean. Other runs are
estimated from their cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from spectrum.study.planning import CostedRun

MACS_PER_ACTIVATION = 50  # MACs that take as long as moving one activation through memory; a rough fit on CPUs
APART = {"seed": 0, "lr": 0.1, "weight_decay": 0.0}  # options that do not affect a run's time, set to one value


class Pace:
    """Runs of one phase, and the times of those that have ended.

    >>> pace = Pace([])
    >>> pace.is_known, pace.ended, pace.left
    (False, 0, 0)
    """

    def __init__(self, runs: Sequence[CostedRun]) -> None:
        self.costs = {one.run.id: _cost(one) for one in runs}
        self.kinds = {one.run.id: one.run.model_copy(update=APART).id for one in runs}
        self.waiting = set(self.costs)
        self.failed: set[str] = set()
        self.seconds: dict[str, list[float]] = {}  # by configuration
        self.per_cost: list[float] = []

    def end(self, id: str, seconds: float | None) -> None:
        """Count a run as ended; a failed run has no seconds."""
        self.waiting.discard(id)
        if seconds is None:
            self.failed.add(id)
            return
        self.seconds.setdefault(self.kinds[id], []).append(seconds)
        self.per_cost.append(seconds / self.costs[id])

    @property
    def is_known(self) -> bool:
        """Whether a run has ended with a result; before that, no time is known."""
        return bool(self.per_cost)

    @property
    def ended(self) -> float:
        """Seconds of the runs that have ended."""
        return sum(map(sum, self.seconds.values())) + sum(map(self._expected, self.failed))

    @property
    def left(self) -> float:
        """Expected seconds of the runs that have not ended."""
        return sum(map(self._expected, self.waiting))

    def _expected(self, id: str) -> float:
        seen = self.seconds.get(self.kinds[id])
        if seen is not None:
            return fmean(seen)
        return self.costs[id] * (fmean(self.per_cost) if self.per_cost else 1.0)


def _cost(one: CostedRun) -> float:
    """Cost of training a run, in MACs; at least 1."""
    images = one.run.train_images or 1
    return max(1.0, float(one.macs + MACS_PER_ACTIVATION * one.activations) * one.run.epochs * images)

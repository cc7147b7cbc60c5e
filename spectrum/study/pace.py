"""How much training is left, in seconds of one worker: from the runs that have ended, and the cost of the others.

Runs of one configuration take about as long as each other, so a configuration that has been seen is taken at its own
pace. The time of one that has not been seen is estimated from its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from spectrum.study.planning import CostedRun

MACS_PER_ACTIVATION = 50  # moving an activation through memory takes as long as so many MACs; a rough fit on CPUs
APART = {"seed": 0, "lr": 0.1, "weight_decay": 0.0}  # options that change no run's time, all at one value


class Pace:
    """The runs of one stage, and how long those took that have ended.

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
        """Count a run as ended; one that failed has no seconds."""
        self.waiting.discard(id)
        if seconds is None:
            self.failed.add(id)
            return
        self.seconds.setdefault(self.kinds[id], []).append(seconds)
        self.per_cost.append(seconds / self.costs[id])

    @property
    def is_known(self) -> bool:
        """Whether a run has ended with a result; before that, nothing is known in seconds."""
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
    """What training a run costs, in MACs of one image; 1 or more."""
    images = one.run.train_images or 1
    return max(1.0, float(one.macs + MACS_PER_ACTIVATION * one.activations) * one.run.epochs * images)

"""How often a run is tried whose worker died, and what is said of one that failed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from spectrum.design.run import RunConfig
from spectrum.engines.saving import Saving
from spectrum.training.checkpoint_files import latest_step

ATTEMPTS = 3
GRACE = 10.0  # seconds in which workers that are stopped may save where they stand


def died(attempts: int, how: str) -> str:
    """Why a run has failed whose worker died again and again."""
    in_vain = f", the last {ATTEMPTS} without a newer checkpoint" if attempts > ATTEMPTS else ""
    return f"the worker process died {attempts} times{in_vain}, last with {how}"


@dataclass
class Attempts:
    """Attempts at one run, within one call of `run_study`.

    One that leaves a newer checkpoint than all before is no sign of a faulty run.
    """

    begun: int = 1
    in_vain: int = 0  # those in a row that died and left no newer checkpoint
    step: int = 0  # of the latest checkpoint so far

    @classmethod
    def at(cls, run: RunConfig, saving: Saving | None) -> Attempts:
        """The first of a run, which may go on from a checkpoint of an earlier one."""
        return cls(step=_step(run, saving))

    def again(self, run: RunConfig, saving: Saving | None) -> bool:
        """Whether the run is to be tried again, now that its worker has died; that attempt is counted then."""
        step = _step(run, saving)
        self.in_vain = 0 if step > self.step else self.in_vain + 1
        self.step = max(self.step, step)
        if self.in_vain >= ATTEMPTS:
            return False
        self.begun += 1
        return True


def _step(run: RunConfig, saving: Saving | None) -> int:
    return 0 if saving is None else latest_step(saving.checkpoints_of(run.id))


def took_too_long(minutes: float | None, saving: Saving | None, run: RunConfig) -> str:
    """Why a run has failed that took more than its time."""
    reason = f"took more than {minutes:g} minutes"
    if saving is not None and latest_step(saving.checkpoints_of(run.id)):
        reason += "; the next run goes on from its checkpoint"
    return reason


def with_log(reason: str, saving: Saving | None, run: RunConfig) -> str:
    """The reason, and where there is more to read."""
    log = None if saving is None else saving.log_of(run.id)
    if log is not None and os.path.exists(log):  # or it cannot be looked for
        reason += f"; see {log.relative_to(log.parent.parent)}"
    return reason

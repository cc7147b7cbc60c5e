"""Count attempts at a run whose worker died, and give the reason of a failed run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from spectrum.design.run import RunConfig
from spectrum.engines.saving import Saving
from spectrum.training.checkpoint_files import latest_step

ATTEMPTS = 3
GRACE = 10.0  # seconds that stopped workers have to save a checkpoint


def died(attempts: int, how: str) -> str:
    """Reason of a run that failed because its worker died repeatedly."""
    in_vain = f", the last {ATTEMPTS} without a newer checkpoint" if attempts > ATTEMPTS else ""
    return f"the worker process died {attempts} times{in_vain}, last with {how}"


@dataclass
class Attempts:
    """Attempts at one run, within one call of `run_study`.

    An attempt that leaves a newer checkpoint than all earlier ones does not count as a sign of a faulty run.
    """

    begun: int = 1
    in_vain: int = 0  # consecutive attempts that died and left no newer checkpoint
    step: int = 0  # step of the latest checkpoint so far

    @classmethod
    def at(cls, run: RunConfig, saving: Saving | None) -> Attempts:
        """First attempt at a run, which may resume from a checkpoint of an earlier study."""
        return cls(step=_step(run, saving))

    def again(self, run: RunConfig, saving: Saving | None) -> bool:
        """Count the attempt that died; return whether to try the run again."""
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
    """Reason of a run that failed because it exceeded its time limit."""
    reason = f"took more than {minutes:g} minutes"
    if saving is not None and latest_step(saving.checkpoints_of(run.id)):
        reason += "; the next run resumes from its checkpoint"
    return reason


def with_log(reason: str, saving: Saving | None, run: RunConfig) -> str:
    """The reason, followed by the path of the run's log if there is one."""
    log = None if saving is None else saving.log_of(run.id)
    if log is not None and os.path.exists(log):  # false too if the path cannot be read
        reason += f"; see {log.relative_to(log.parent.parent)}"
    return reason

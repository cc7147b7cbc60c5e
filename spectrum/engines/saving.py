"""Where runs of a study save where they stand, and where they log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectrum.training.checkpoint_files import CHECKPOINTS

LOGS = "logs"  # below a study's folder


@dataclass(frozen=True)
class Saving:
    """Where and how often runs save where they stand, and where they log."""

    folder: Path  # of the study
    minutes: float = 1.0  # between two checkpoints, at least

    def checkpoints_of(self, id: str) -> Path:
        """The folder of one run's checkpoints."""
        return self.folder / CHECKPOINTS / id

    def log_of(self, id: str) -> Path:
        """What a run printed, and how it failed; there only if there is something to read."""
        return self.folder / LOGS / f"{id}.log"

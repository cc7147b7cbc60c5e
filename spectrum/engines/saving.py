"""Folders and frequency of a study's checkpoints, and the files of its logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectrum.training.checkpoint_files import CHECKPOINTS

LOGS = "logs"  # subfolder of a study's folder


@dataclass(frozen=True)
class Saving:
    """Folder and frequency of checkpoints, and the folder of logs."""

    folder: Path  # the study's folder
    minutes: float = 1.0  # shortest time between two checkpoints

    def checkpoints_of(self, id: str) -> Path:
        """Folder of one run's checkpoints."""
        return self.folder / CHECKPOINTS / id

    def log_of(self, id: str) -> Path:
        """File with a run's output and the traceback of its failure; it exists only if there is something to read."""
        return self.folder / LOGS / f"{id}.log"

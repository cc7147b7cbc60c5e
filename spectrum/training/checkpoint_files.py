"""Names of checkpoint files, and the check of a file against its name. Needs no torch.

checkpoints/<id of the run>/<step>-<SHA-256 of the bytes>.safetensors     below a study's folder
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"(\d+)-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file, with the step and the hash in its name."""

    path: Path
    step: int
    sha256: str

    def read(self) -> bytes:
        """Read the bytes. Raises OSError, and ValueError if their hash differs from the one in the name."""
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ValueError("its bytes have changed")
        return data


class Interrupted(Exception):
    """A run was asked to stop, and has saved a checkpoint."""


def name_of(step: int, data: bytes) -> str:
    """File name of a checkpoint with these bytes after `step` steps."""
    return f"{step:012}-{hashlib.sha256(data).hexdigest()}.safetensors"


def checkpoint_files(folder: Path) -> Iterator[CheckpointFile]:
    """Checkpoint files of one run, the latest first."""
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            yield CheckpointFile(path, int(match[1]), match[2])


def latest_step(folder: Path) -> int:
    """Step of a run's latest checkpoint; 0 if none is found."""
    try:
        return next((file.step for file in checkpoint_files(folder)), 0)
    except OSError:
        return 0


def half_written(folder: Path) -> list[Path]:
    """Partial files, left by a process that was killed while writing."""
    return sorted(folder.glob(".*"))

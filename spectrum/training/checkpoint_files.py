"""Names of checkpoint files, and whether a file is what its name says. Without torch, for what only looks at a folder.

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
    """A file, and what its name says of it."""

    path: Path
    step: int
    sha256: str

    def read(self) -> bytes:
        """Its bytes. Raises OSError, and ValueError where they have another hash than the name says."""
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ValueError("its bytes have changed")
        return data


class Interrupted(Exception):
    """A run that was asked to stop, and has saved where it stands."""


def name_of(step: int, data: bytes) -> str:
    """The name of a file of these bytes, of a checkpoint after so many steps."""
    return f"{step:012}-{hashlib.sha256(data).hexdigest()}.safetensors"


def checkpoint_files(folder: Path) -> Iterator[CheckpointFile]:
    """Those of one run, the latest first."""
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            yield CheckpointFile(path, int(match[1]), match[2])


def latest_step(folder: Path) -> int:
    """After how many steps the latest checkpoint of a run was written; 0 where there is none to be found."""
    try:
        return next((file.step for file in checkpoint_files(folder)), 0)
    except OSError:
        return 0


def half_written(folder: Path) -> list[Path]:
    """What a process left that was killed while it wrote."""
    return sorted(folder.glob(".*"))

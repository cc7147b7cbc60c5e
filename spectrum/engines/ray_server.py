"""Actor of a Ray cluster that stores a study's checkpoints, for tasks on any node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from spectrum._files import write_whole
from spectrum.engines.saving import Saving
from spectrum.training.checkpoint_files import NAME, checkpoint_files


class CheckpointServer:
    """A study's checkpoints, for tasks on any node, and the order to stop."""

    def __init__(self, folder: Path | None) -> None:
        self.saving = None if folder is None else Saving(folder)
        self.stops = False
        self.meetings: dict[str, tuple[str, int]] = {}
        self.began: dict[str, float] = {}

    def begin(self, id: str) -> None:
        """Record that a task begins this run."""
        self.began[id] = time.monotonic()

    def age(self, id: str) -> float | None:
        """Seconds since a task last began this run; None if unknown."""
        return time.monotonic() - self.began[id] if id in self.began else None

    def meet(self, at: str, place: tuple[str, int]) -> None:
        """Record the address at which the ranks of one attempt meet, given by the first rank."""
        self.meetings[at] = place

    def meeting(self, at: str) -> tuple[str, int] | None:
        """Address at which the ranks of an attempt meet; None until the first rank has given it."""
        return self.meetings.get(at)

    def fetch(self, id: str) -> dict[str, bytes]:
        """Checkpoints of a run, by file name. The task verifies them."""
        if self.saving is None or not id.isalnum():
            return {}
        found = {}
        with suppress(OSError):  # skip files that cannot be read
            for file in checkpoint_files(self.saving.checkpoints_of(id)):
                with suppress(OSError):
                    found[file.path.name] = file.path.read_bytes()
        return found

    def keep(self, id: str, name: str, data: bytes, kept: Sequence[str]) -> None:
        """Write a checkpoint, and remove those of this run that are not in `kept`. Raises OSError and ValueError."""
        if self.saving is None:
            return
        if not (id.isalnum() and NAME.fullmatch(name)):
            raise ValueError(f"{id}/{name}: not the name of a checkpoint; expected STEP-SHA256.safetensors")
        folder = self.saving.checkpoints_of(id)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, data)
        for file in checkpoint_files(folder):
            if file.path.name not in kept:
                with suppress(OSError):  # an old file left behind is harmless
                    file.path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Order all tasks to save and end."""
        self.stops = True

    def stopped(self) -> bool:
        """Whether tasks were ordered to stop."""
        return self.stops

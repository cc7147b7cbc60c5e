"""The actor of a Ray cluster that has a study's checkpoints, for tasks on any node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from spectrum._files import write_whole
from spectrum.engines.saving import Saving
from spectrum.training.checkpoint_files import NAME, checkpoint_files


class CheckpointServer:
    """The study's checkpoints, for tasks on any node; and whether they are to stop."""

    def __init__(self, folder: Path | None) -> None:
        self.saving = None if folder is None else Saving(folder)
        self.stops = False
        self.meetings: dict[str, tuple[str, int]] = {}
        self.began: dict[str, float] = {}

    def begin(self, id: str) -> None:
        """Note that a task begins this run."""
        self.began[id] = time.monotonic()

    def age(self, id: str) -> float | None:
        """Seconds since it did, last; None where that is not known."""
        return time.monotonic() - self.began[id] if id in self.began else None

    def meet(self, at: str, place: tuple[str, int]) -> None:
        """Where the ranks of one attempt at a run meet, from the first of them."""
        self.meetings[at] = place

    def meeting(self, at: str) -> tuple[str, int] | None:
        """The same, for the others; None as long as the first has not said."""
        return self.meetings.get(at)

    def fetch(self, id: str) -> dict[str, bytes]:
        """A run's checkpoints, by file name. Whether they are whole, the task finds out."""
        if self.saving is None or not id.isalnum():
            return {}
        found = {}
        with suppress(OSError):  # what cannot be read is passed over
            for file in checkpoint_files(self.saving.checkpoints_of(id)):
                with suppress(OSError):
                    found[file.path.name] = file.path.read_bytes()
        return found

    def keep(self, id: str, name: str, data: bytes, kept: Sequence[str]) -> None:
        """Write one, and remove those of this run that are not among `kept`. Raises OSError and ValueError."""
        if self.saving is None:
            return
        if not (id.isalnum() and NAME.fullmatch(name)):
            raise ValueError(f"{id}/{name}: not the name of a checkpoint")
        folder = self.saving.checkpoints_of(id)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, data)
        for file in checkpoint_files(folder):
            if file.path.name not in kept:
                with suppress(OSError):  # it is kept too long, and harms nobody
                    file.path.unlink(missing_ok=True)

    def stop(self) -> None:
        """From here on all tasks are to save and end."""
        self.stops = True

    def stopped(self) -> bool:
        """Whether that was said."""
        return self.stops

"""Points that each take several devices: all ranks that torchrun has started train one point after the other together.

The first rank is the driver: it has the study's folder, writes rows and checkpoints, and tells the others which point
is next. A point that fails alike on every rank, as one does whose network cannot be built, has failed, and the next one
follows. A rank that fails alone would leave the others waiting for it: it ends, torchrun ends the others, and the next
run goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from spectrum.study.checkpoint_files import Interrupted
from spectrum.study.engines import ATTEMPTS, EngineError, Outcome, available_cores, died, with_log
from spectrum.study.parallel import Ranks, ended, started
from spectrum.study.point import Point
from spectrum.study.worker import Saving, train_one


class RankEngine:
    """The first of the ranks.

    Args:
        ranks: from `join`.
        device: of this rank.
        imports: modules to import first, for models of one's own.
        saving: where and how often runs save where they stand, and where they log; by default not at all.
    """

    def __init__(self, ranks: Ranks, device: str, *, imports: Sequence[str] = (), saving: Saving | None = None) -> None:
        self.ranks, self.device, self.imports, self.saving = ranks, device, tuple(imports), saving

    def run(self, points: Iterable[Point]) -> Generator[Outcome, None, None]:
        """Train all points, one after the other."""
        for point in points:
            attempt = self._attempt(point)
            if attempt > ATTEMPTS:
                self._mark(point).unlink()
                yield Outcome(point, None, died(ATTEMPTS, "all ranks, of which one had failed alone"), ATTEMPTS)
                continue
            self.ranks.from_first(point.model_dump_json().encode())
            result, reason = _together(self.ranks, point, self.device, self.imports, self.saving)
            if self.saving is not None:
                self._mark(point).unlink(missing_ok=True)
            yield Outcome(point, result, reason and with_log(reason, self.saving, point), attempt)

    def _attempt(self, point: Point) -> int:
        """Which one this is, counted over runs, since a rank that fails alone ends all of them without a row."""
        if self.saving is None:
            return 1
        mark = self._mark(point)
        mark.parent.mkdir(parents=True, exist_ok=True)
        attempt = int(mark.read_text() or 0) + 1 if mark.exists() else 1
        mark.write_text(str(attempt))
        return attempt

    def _mark(self, point: Point) -> Path:
        assert self.saving is not None
        return self.saving.checkpoints_of(point.id) / "attempt"


def join(device: str) -> tuple[Ranks, str]:
    """This process among the ranks, and its device. Raises EngineError where torchrun has started none."""
    try:
        ranks = started(device)
    except ValueError as error:
        raise EngineError(str(error)) from None
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    return ranks


def _end_with(torchrun: int) -> None:
    """No rank outlives the process that started it, however that one ended."""
    while os.getppid() == torchrun:
        time.sleep(0.5)
    os._exit(1)


def leave(ranks: Ranks) -> None:
    """Let the other ranks end, from the first."""
    if ranks.rank == 0:
        ranks.from_first(b"")
    ended()


def follow(ranks: Ranks, device: str, imports: Sequence[str] = ()) -> None:
    """What the other ranks do: train what the first one says, until it says no more."""
    while said := ranks.from_first(b""):
        _together(ranks, Point.model_validate_json(said), device, tuple(imports), None)


def _together(
    ranks: Ranks, point: Point, device: str, imports: tuple[str, ...], saving: Saving | None
) -> tuple[dict[str, Any] | None, str | None]:
    """The result, or the reason of a failure that all ranks have in common."""
    threads = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        return train_one(point, device, threads, imports, saving, ranks=ranks), None
    except Interrupted:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if ranks.all_failed():
            return None, reason
        sys.stderr.write(f"spectrum: rank {ranks.rank} failed alone, and ends: {reason}\n")
        sys.stderr.flush()
        os._exit(1)

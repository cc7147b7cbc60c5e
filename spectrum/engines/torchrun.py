"""Engine of torchrun, for runs that each take several devices: all ranks train one run after the other together.

The first rank is the driver: it owns the study's folder, writes rows and checkpoints, and announces the next run. If
every rank fails with a run, as with a network that cannot be built, the run has failed and the next one follows. If one
rank fails alone, it ends, since the others would wait for it. torchrun then ends the others, and the next call resumes
from the last checkpoint. A signal to stop, received by any rank, ends all of them after the same step; the first saves
a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

from spectrum._files import write_whole
from spectrum._records import SpecError
from spectrum.design.run import RunConfig
from spectrum.engines.attempts import ATTEMPTS, died, with_log
from spectrum.engines.cores import available_cores
from spectrum.engines.interface import Engine, EngineError, Outcome, Work
from spectrum.engines.saving import Saving
from spectrum.engines.worker import train_one
from spectrum.training.checkpoint_files import Interrupted, latest_step
from spectrum.training.ranks import Ranks, ended, started


class RankEngine(Engine):
    """First rank of the study. The other ranks `follow` it; `leave` lets them end.

    Args:
        ranks: from `join`.
        device: device of this rank, from `join`.

    Raises SpecError without ranks: torchrun starts them, and each has to join.
    """

    starts_processes = False
    unused = ("run_minutes", "memory_gb", "workers")

    def __init__(self, ranks: Ranks | None = None, device: str = "cpu") -> None:
        if ranks is None:
            raise SpecError(
                'engine = "torchrun": it needs ranks; start torchrun -m spectrum run FILE --engine torchrun, or give '
                "RankEngine(*join(device)) in each process that torchrun starts"
            )
        self.ranks, self.own_device = ranks, device

    def device(self, asked: str) -> str:
        """Device of this rank, whatever the settings ask for."""
        return self.own_device

    def run(self, runs: Iterable[RunConfig], work: Work) -> Generator[Outcome, None, None]:
        """Train all runs, one after the other."""
        yield from First(self.ranks, work).run(runs)


class First:
    """Driver of one study, on the first rank."""

    def __init__(self, ranks: Ranks, work: Work) -> None:
        self.ranks, self.work, self.saving = ranks, work, work.saving
        self.mark = ""  # content of the file that marks the current attempt

    def run(self, runs: Iterable[RunConfig]) -> Generator[Outcome, None, None]:
        current: list[RunConfig] = []

        def not_counted() -> None:
            for one in current:
                self._unmark(one)

        with _Signals(not_counted) as signals:
            ranks = replace(self.ranks, told_to_stop=lambda: signals.told is not None)
            for run in runs:
                signals.obey()
                attempt = self._attempt(run)
                if attempt > ATTEMPTS:
                    self._unmark(run)
                    yield Outcome(run, None, died(ATTEMPTS, "a rank that failed alone"), ATTEMPTS)
                    continue
                current[:] = [run]
                self.ranks.broadcast(run.model_dump_json().encode())
                try:
                    result, reason = _together(ranks, run, self.work)
                except Interrupted:
                    self._unmark(run)
                    signals.stopped()
                except _FailedAlone as failed:
                    # when one rank ends, torchrun stops this one with the signal of a user's stop
                    self._write_mark(run)
                    failed.end(self.ranks)
                self._unmark(run)
                yield Outcome(run, result, reason and with_log(reason, self.saving, run), attempt)
            signals.obey()

    def _attempt(self, run: RunConfig) -> int:
        """Number of this attempt, counted in a file, since a rank that fails alone ends all ranks without a row.

        Attempts that left a newer checkpoint or were asked to stop do not count.
        """
        if self.saving is None:
            return 1
        step = latest_step(self.saving.checkpoints_of(run.id))
        attempt, before = self._marked(run)
        attempt = 1 if step > before else attempt + 1
        self.mark = f"{attempt} {step}" if step else f"{attempt}"
        self._write_mark(run)
        return attempt

    def _write_mark(self, run: RunConfig) -> None:
        if self.saving is not None:
            with suppress(OSError):  # on failure this attempt is not counted
                path = self._mark(run, self.saving)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, self.mark)

    def _marked(self, run: RunConfig) -> tuple[int, int]:
        """Number of attempts that ended without a row or a newer checkpoint, and the step of the latest checkpoint."""
        assert self.saving is not None
        try:
            attempt, *step = map(int, self._mark(run, self.saving).read_text().split())
        except (OSError, ValueError):
            return 0, 0
        return attempt, step[0] if step else 0

    def _unmark(self, run: RunConfig) -> None:
        if self.saving is not None:
            with suppress(OSError):
                self._mark(run, self.saving).unlink()

    def _mark(self, run: RunConfig, saving: Saving) -> Path:
        return saving.checkpoints_of(run.id) / "attempt"


class _Signals:
    """SIGTERM and Ctrl-C, delayed to the end of a step inside the block. A second signal is not delayed."""

    def __init__(self, on_signal: Callable[[], None] = lambda: None) -> None:
        self.on_signal = on_signal
        self.told: tuple[int, Any] | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: Any) -> None:
        self.told = (number, frame)
        self.on_signal()
        self.__exit__()

    def obey(self) -> None:
        """Call the handler of a delayed signal, if one came."""
        handler = self.handlers.get(self.told[0]) if self.told is not None else None
        if self.told is not None and callable(handler):
            handler(*self.told)

    def stopped(self) -> NoReturn:
        """End after a signal that this rank or another one received."""
        self.obey()
        raise SystemExit(143)


def join(device: str) -> tuple[Ranks, str]:
    """Join the ranks of torchrun; return them and this rank's device. Raises EngineError if there are none."""
    try:
        ranks = started(device)
    except ValueError as error:
        raise EngineError(str(error)) from None
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    return ranks


def _end_with(torchrun: int) -> None:
    """End this rank when the process that started it ends, for whatever reason."""
    while os.getppid() == torchrun:
        time.sleep(0.5)
    os._exit(1)


def leave(ranks: Ranks) -> None:
    """Let the other ranks end; called by all, and announced by the first."""
    if ranks.rank == 0:
        ranks.broadcast(b"")
    ended()


def follow(ranks: Ranks, device: str, imports: Sequence[str] = ()) -> None:
    """Train what the first rank announces, until it announces the end. Called by all other ranks."""
    with _Signals() as signals:
        stoppable = replace(ranks, told_to_stop=lambda: signals.told is not None)
        try:
            work = Work(device=device, imports=tuple(imports))  # type: ignore[arg-type]
            while run_json := ranks.broadcast(b""):
                _together(stoppable, RunConfig.model_validate_json(run_json), work)
        except Interrupted:
            signals.stopped()
        except _FailedAlone as failed:
            failed.end(ranks)


class _FailedAlone(Exception):
    """This rank failed, and not all of the others did."""

    def end(self, ranks: Ranks) -> NoReturn:
        """End this process at once; torchrun then ends the others."""
        sys.stderr.write(f"spectrum: rank {ranks.rank} failed alone and ends; torchrun will end the others: {self}\n")
        sys.stderr.flush()
        os._exit(1)


def _together(ranks: Ranks, run: RunConfig, work: Work) -> tuple[dict[str, Any] | None, str | None]:
    """The result, or the reason of a failure that all ranks have in common.

    Raises _FailedAlone if this rank fails alone, or waits for another rank that did.
    """
    threads = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        return train_one(run, work, threads, ranks=ranks), None
    except Interrupted:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if ranks.all_failed():
            return None, reason
        raise _FailedAlone(reason) from error

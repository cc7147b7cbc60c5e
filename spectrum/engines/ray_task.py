"""Task of a Ray cluster: one run on some node, in a temporary folder."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from spectrum.design.run import RunConfig
from spectrum.engines.attempts import GRACE
from spectrum.engines.interface import Work
from spectrum.engines.saving import Saving
from spectrum.engines.worker import limit_memory, train_one
from spectrum.training.checkpoint_files import Interrupted, checkpoint_files

if TYPE_CHECKING:
    from spectrum.training.ranks import Ranks

FOLDER = "spectrum-run-"  # prefix of a task's folder, in its node's folder of temporary files
ASK = 1.0  # seconds between two questions of a task whether to stop
LOG_BYTES = 200_000  # largest part of a run's log that is sent, from its end


@dataclass(frozen=True)
class Orders:
    """Instructions for a task, besides its run."""

    work: Work
    threads: int
    paths: tuple[str, ...]
    environment: dict[str, str]
    ranks: int


class TookTooLong(BaseException):
    """The run exceeded its time limit. Not an Exception, which a failing checkpoint would handle as its own."""


def train_on_node(
    server: Any, orders: Orders, run: RunConfig, rank: int = 0, meeting: str = "", *, resumes: bool
) -> dict[str, Any]:
    """Train a run in a worker. Returns `result`, or `reason` (None if it exceeded its time limit), and `log`."""
    sys.path.extend(place for place in orders.paths if place not in sys.path)
    os.environ.update(orders.environment)
    limit_memory(orders.work.memory_gb)
    result, reason = None, None
    with _folder_of_its_own() as root:
        work = orders.work.model_copy(update={"folder": root})
        saves = orders.work.folder is not None and rank == 0
        here = Saving(root)
        if saves and resumes:
            _fetch(server, run.id, here.checkpoints_of(run.id))
        try:
            if work.run_minutes is not None and rank == 0:
                server.begin.remote(run.id)
            with _time_limit(work.run_minutes), _ranks(server, orders, rank, meeting) as ranks:
                result = train_one(
                    run,
                    work if saves else work.model_copy(update={"folder": None}),
                    orders.threads,
                    stop=_Stop(server),
                    on_saved=partial(_send, server, run.id),
                    ranks=ranks,
                )
        except TookTooLong:
            pass
        except Interrupted:
            reason = "stopped"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        return {"result": result, "reason": reason, "log": _end_of(here.log_of(run.id))}


def _end_of(log: Path) -> bytes:
    """The end of a log; empty if there is none or it cannot be read."""
    try:
        return log.read_bytes()[-LOG_BYTES:]
    except OSError:
        return b""


@cache
def _sweep(place: str) -> None:
    """Remove folders of killed tasks; runs once per process."""
    for lock in Path(place).glob(f"{FOLDER}*/lock"):
        with suppress(OSError), lock.open() as file:  # skip folders of other users and folders that are gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def _folder_of_its_own() -> Iterator[Path]:
    """A temporary folder, removed afterwards together with those of killed tasks.

    Each task holds a kernel lock in its folder, which the system releases when the task dies.
    """
    _sweep(gettempdir())
    with TemporaryDirectory(prefix=FOLDER) as root, Path(root, "lock.new").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Path(root, "lock.new").rename(Path(root, "lock"))  # the lock is held before it gets its name
        yield Path(root)


@contextmanager
def _ranks(server: Any, orders: Orders, rank: int, meeting: str) -> Iterator[Ranks | None]:
    """Join the ranks of this task's run; None if it is the only rank.

    A failure common to all ranks is raised. A rank that fails alone ends its process, which ends the others.
    """
    if orders.ranks == 1:
        yield None
        return
    import ray

    from spectrum.training import ranks as parallel

    if rank == 0:
        store, port = parallel.open_meeting(orders.ranks)
        here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        ray.get(server.meet.remote(meeting, (here, port)))
        ranks = parallel.met(orders.work.device, 0, orders.ranks, store=store)
    else:
        waited_until = time.monotonic() + parallel.MEET.total_seconds()
        while (place := ray.get(server.meeting.remote(meeting))) is None:
            if time.monotonic() > waited_until:
                os._exit(1)
            time.sleep(0.05)
        ranks = parallel.met(orders.work.device, rank, orders.ranks, host=place[0], port=place[1])
    try:
        yield ranks
    except Exception as error:
        if not isinstance(error, Interrupted) and not ranks.all_failed():
            os._exit(1)
        raise
    finally:
        parallel.ended()


def _fetch(server: Any, id: str, folder: Path) -> None:
    import ray

    for name, data in ray.get(server.fetch.remote(id)).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _send(server: Any, id: str, folder: Path) -> None:
    """Send the latest checkpoint to the checkpoint server."""
    import ray

    files = list(checkpoint_files(folder))
    kept = [file.path.name for file in files]
    ray.get(server.keep.remote(id, files[0].path.name, files[0].path.read_bytes(), kept))


class _Stop:
    """Whether the driver ordered a stop: asked every second, without waiting for the answer."""

    def __init__(self, server: Any) -> None:
        self.server, self.asked = server, time.monotonic()
        self.answer: Any = None
        self.stops = False

    def __call__(self) -> bool:
        import ray

        now = time.monotonic()
        if self.stops or now - self.asked < ASK:
            return self.stops
        # the checkpoint server is unreachable; a later question will find it again
        with suppress(ray.exceptions.RayError):
            if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
                answer, self.answer = self.answer, None
                self.stops = bool(ray.get(answer))
            if self.answer is None:
                self.answer = self.server.stopped.remote()
        self.asked = now
        return self.stops


@contextmanager
def _time_limit(minutes: float | None) -> Iterator[None]:
    """Raise TookTooLong inside, in the main thread, where tasks run.

    Native code that never returns to Python does not see the signal. A thread that needs no interpreter therefore ends
    the process shortly afterwards.
    """
    if minutes is None:
        yield
        return

    def end(*_: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 5.0)  # repeated, in case something suppresses the first
    faulthandler.dump_traceback_later(60 * minutes + GRACE, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Where points are trained. An engine takes points and gives back one outcome a point, in the order they end.

`LocalEngine` keeps N worker processes of this machine busy, `RayEngine` (ray.py) those of a cluster. A worker
that dies is replaced and its point tried again, from its latest checkpoint. It is given up once that has happened a few
times without a newer checkpoint between. An exception in a point is that point's failure and no other's.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_handles
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from spectrum.design.point import Point
from spectrum.engines.worker import Saving, limit_memory, train_one
from spectrum.training.checkpoint_files import latest_step

ATTEMPTS = 3
LOOK = 0.5  # seconds between two looks at which points have had their time
GRACE = 10.0  # seconds in which workers that are stopped may save where they stand


@dataclass(frozen=True)
class Limits:
    """What one point may take. One that takes more has failed, and is not tried again in the same run."""

    minutes: float | None = None  # from its start or its latest checkpoint on
    memory_gb: float | None = None  # of a worker's private memory; images that are kept in memory count too


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what of it each point takes."""

    address: str | None = (
        None  # HOST:PORT, or "auto" for the one that this machine is part of; None: one is started here
    )
    cpus: float = 1.0
    gpus: float = 0.0
    ranks: int = 1  # that train a point together, each with so much


@dataclass(frozen=True)
class Outcome:
    """How one point ended: with a result and its provenance, or with the reason why there is none."""

    point: Point
    result: dict[str, Any] | None  # fields of train.Result, and "provenance"
    reason: str | None
    attempts: int


class Engine(Protocol):
    """What trains points."""

    def run(self, points: Iterable[Point]) -> Generator[Outcome, None, None]:
        """One outcome a point, as they end. Closing it ends what runs, which saves where it stands.

        Raises EngineError where no workers can be had.
        """
        ...


def died(attempts: int, how: str) -> str:
    """Why a point has failed whose worker died again and again."""
    in_vain = f", the last {ATTEMPTS} without a newer checkpoint" if attempts > ATTEMPTS else ""
    return f"the worker process died {attempts} times{in_vain}, last with {how}"


@dataclass
class Attempts:
    """Those at one point in a run. One that leaves a newer checkpoint than all before is no sign of a faulty point."""

    begun: int = 1
    in_vain: int = 0  # those in a row that died and left no newer checkpoint
    step: int = 0  # of the latest checkpoint so far

    @classmethod
    def at(cls, point: Point, saving: Saving | None) -> Attempts:
        """The first of a run, which may go on from a checkpoint of an earlier one."""
        return cls(step=_step(point, saving))

    def again(self, point: Point, saving: Saving | None) -> bool:
        """Whether the point is to be tried again, now that its worker has died; that attempt is counted then."""
        step = _step(point, saving)
        self.in_vain = 0 if step > self.step else self.in_vain + 1
        self.step = max(self.step, step)
        if self.in_vain >= ATTEMPTS:
            return False
        self.begun += 1
        return True


def _step(point: Point, saving: Saving | None) -> int:
    return 0 if saving is None else latest_step(saving.checkpoints_of(point.id))


def took_too_long(minutes: float | None, saving: Saving | None, point: Point) -> str:
    """Why a point has failed that took more than its time."""
    reason = f"took more than {minutes:g} minutes"
    if saving is not None and latest_step(saving.checkpoints_of(point.id)):
        reason += "; the next run goes on from its checkpoint"
    return reason


def with_log(reason: str, saving: Saving | None, point: Point) -> str:
    """The reason, and where there is more to read."""
    log = None if saving is None else saving.log_of(point.id)
    if log is not None and os.path.exists(log):  # or it cannot be looked for
        reason += f"; see {log.relative_to(log.parent.parent)}"
    return reason


class _Clock:
    """Which points have had their time. pebble's own limits go by the time of day, which may jump."""

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.look = None if minutes is None else LOOK
        self.began: dict[Future[Any], float] = {}

    def late(self, running: Iterable[Future[Any]]) -> list[Future[Any]]:
        """Those whose worker has had them for longer than the limit."""
        if self.seconds is None:
            return []
        now = time.monotonic()
        self.began = {future: self.began.get(future, now) for future in running if future.running()}
        return [future for future, began in self.began.items() if now - began > self.seconds]


def _error(future: Future[Any]) -> BaseException | None:
    return None if future.cancelled() else future.exception()


_stop: Any = None  # in a worker: its value is 1 where it is to save and end


class LocalEngine:
    """Worker processes on this machine, each with an equal share of the cores.

    Args:
        workers: processes; by default one a core, or one a GPU, which sees no other. At most one a point.
        device: "cpu", "cuda" or "mps".
        imports: modules to import in every worker first, for models of one's own.
        saving: where and how often runs save where they stand, and where they log; by default not at all.
        limits: what one point may take.
        points: of the whole study, those included that have a result; by default those of a run. Where they are fewer
            than the workers, each has more cores. It does not go by the points that are left: the number of threads
            decides the last bits of the weights, and must not hang on where a study was interrupted.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        device: str = "cpu",
        imports: Sequence[str] = (),
        saving: Saving | None = None,
        limits: Limits = NO_LIMITS,
        points: int | None = None,
    ) -> None:
        cores = available_cores()
        self.workers = workers or (cores if device == "cpu" else len(visible_gpus()) if device == "cuda" else 1)
        self.points = points
        self.device = device
        self.imports = tuple(imports)
        self.saving, self.limits = saving, limits
        self.context = multiprocessing.get_context("spawn")

    @property
    def threads(self) -> int:
        """Of each worker, where there are as many points as workers."""
        return self._threads(self.points or self.workers)

    def _threads(self, points: int) -> int:
        return max(1, available_cores() // min(self.workers, points))

    def run(self, points: Iterable[Point]) -> Generator[Outcome, None, None]:
        """Train all points.

        Closing the iterator, or Ctrl-C, lets the workers save where they stand and ends them, after ten seconds at the
        latest; another Ctrl-C ends them at once.

        Raises EngineError when workers die again and again before they take a point.
        """
        with TemporaryDirectory(prefix="spectrum-gpus-") if self.device == "cuda" else nullcontext() as slots:
            yield from self._run(points, slots)

    def _run(self, points: Iterable[Point], slots: str | None) -> Generator[Outcome, None, None]:
        # long: one loop whose steps all change what waits, what runs and the pool, and whose end must stop that pool
        waiting = deque((point, Attempts.at(point, self.saving)) for point in points)
        workers = min(self.workers, len(waiting)) or 1
        threads = self._threads(max(self.points or 0, len(waiting), 1))
        running: dict[Future[Any], tuple[Point, Attempts]] = {}
        broken = 0  # times in a row
        clock = _Clock(self.limits.minutes)
        if self.device == "cpu":
            _build_kernels()
        stop = self.context.RawValue("b", 0)  # no lock, which a worker that is killed might take along
        pool = self._pool(workers, slots, stop)
        try:
            while waiting or running:
                with _interrupts_blocked():  # what the pool starts inherits it: Ctrl-C is for the driver to handle
                    while waiting and len(running) < workers:
                        point, attempts = waiting.popleft()
                        running[self._schedule(pool, point, threads)] = (point, attempts)
                ended = wait(running, timeout=clock.look, return_when=FIRST_COMPLETED).done
                for late in clock.late(running.keys() - ended):
                    late.cancel()  # which ends the process
                    ended.add(late)
                if any(isinstance(_error(future), BrokenProcessPool) for future in ended):
                    broken += 1
                    if broken > ATTEMPTS:
                        raise EngineError(
                            "worker processes die before they take a point. Is there memory for them? A script that "
                            'calls run_study must do so below `if __name__ == "__main__":`'
                        )
                    waiting.extendleft(running.values())
                    running.clear()
                    pool.stop()
                    pool.join()
                    pool = self._pool(workers, slots, stop)
                    continue
                broken = 0 if ended else broken
                for future in ended:
                    point, attempts = running.pop(future)
                    error = TimeoutError() if future.cancelled() else future.exception()
                    if isinstance(error, ProcessExpired) and attempts.again(point, self.saving):
                        waiting.append((point, attempts))
                    else:
                        yield self._outcome(point, attempts.begun, future, error)
            pool.close()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            stop.value = 1
            wait(running, timeout=GRACE if self.saving is not None else 0)
            raise
        finally:
            pool.stop()
            pool.join()

    def _schedule(self, pool: ProcessPool, point: Point, threads: int) -> Future[Any]:
        args = [point, self.device, threads, self.imports, self.saving]
        return pool.schedule(_train_in_pool, args=args)

    def _outcome(self, point: Point, attempt: int, future: Future[Any], error: BaseException | None) -> Outcome:
        if error is None:
            return Outcome(point, future.result(), None, attempt)
        if isinstance(error, ProcessExpired):
            reason = died(attempt, f"exit code {error.exitcode}")
        elif isinstance(error, TimeoutError):
            reason = took_too_long(self.limits.minutes, self.saving, point)
        else:
            reason = f"{type(error).__name__}: {error}"
        return Outcome(point, None, with_log(reason, self.saving, point), attempt)

    def _pool(self, workers: int, slots: str | None, stop: Any) -> ProcessPool:
        with _interrupts_blocked():
            initargs = [stop, self.limits.memory_gb, slots]
            return ProcessPool(workers, initializer=_start_worker, initargs=initargs, context=self.context)


class EngineError(RuntimeError):
    """Workers that cannot be kept alive."""


def _build_kernels() -> None:
    """Once, before several workers would each do it."""
    from spectrum.conv.lowering import lowering_name

    lowering_name()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; at least one."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [one for one in said.split(",") if one] or ["0"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())] or ["0"]


def take_slot(folder: Path, count: int) -> int:
    """A number from 0 to count − 1 that no other process has taken and that lives; kept until this one ends.

    By kernel locks, which a killed process gives back. Where all are taken, they are shared.
    """
    for number in range(count):
        slot = os.open(folder / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(slot)
            continue
        return number
    return os.getpid() % count


def _start_worker(stop: Any, memory_gb: float | None, slots: str | None) -> None:
    global _stop
    _stop = stop
    limit_memory(memory_gb)
    if slots is not None:
        gpus = visible_gpus()
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[take_slot(Path(slots), len(gpus))]
    _end_with_driver()


def _end_with_driver() -> None:
    """No worker outlives the process that started it, however that one ended, and whatever the worker does then."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # No thread of Python's runs while native code keeps the interpreter's lock. On Linux the kernel sends the signal as
    # the driver's end of the pipe closes.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:  # where the kernel cannot, or the driver had ended before
        wait_for_handles([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_in_pool(
    point: Point, device: str, threads: int, imports: tuple[str, ...], saving: Saving | None
) -> dict[str, Any]:
    try:
        return train_one(point, device, threads, imports, saving, stop=lambda: _stop is not None and bool(_stop.value))
    except TimeoutError as error:  # which is the pool's own word for the limit
        raise RuntimeError(f"TimeoutError: {error}") from None

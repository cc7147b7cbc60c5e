"""Engine of this machine: a pool of worker processes.

A worker that dies is replaced, and its run is tried again from its latest checkpoint. The run fails after several
deaths in a row without a newer checkpoint. An exception fails only its own run.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import wait as wait_for_handles
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pebble import ProcessExpired, ProcessPool

from spectrum.design.run import RunConfig
from spectrum.engines.attempts import ATTEMPTS, GRACE, Attempts, died, took_too_long, with_log
from spectrum.engines.cores import available_cores, take_slot, thread_limit, visible_gpus
from spectrum.engines.interface import Engine, EngineError, Outcome, Work
from spectrum.engines.worker import limit_memory, train_one

LOOK = 0.5  # seconds between two checks of the time limit


class _Clock:
    """Find runs that exceeded their time limit. pebble's own limits use the time of day, which may jump."""

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.look = None if minutes is None else LOOK
        self.began: dict[Future[Any], float] = {}

    def late(self, running: Iterable[Future[Any]]) -> list[Future[Any]]:
        """Runs that a worker has had for longer than the limit."""
        if self.seconds is None:
            return []
        now = time.monotonic()
        self.began = {future: self.began.get(future, now) for future in running if future.running()}
        return [future for future, began in self.began.items() if now - began > self.seconds]


def _error(future: Future[Any]) -> BaseException | None:
    return None if future.cancelled() else future.exception()


_stop: Any = None  # in a worker: its value becomes 1 when the worker should save and end


class LocalEngine(Engine):
    """Worker processes on this machine, which share its cores equally; OMP_NUM_THREADS limits the threads of each.

    There is one per core, or one per GPU, and each then sees only its own GPU.
    """

    def threads(self, work: Work) -> int | None:
        """On the CPU; workers with a GPU of their own measure on it, and this process does not touch it."""
        return Workers(work).threads if work.device == "cpu" else None

    def run(self, runs: Iterable[RunConfig], work: Work) -> Generator[Outcome, None, None]:
        """Train all runs, as described in `Engine.run`.

        Closing the iterator, or Ctrl-C, lets the workers save a checkpoint and ends them within ten seconds; a second
        Ctrl-C ends them at once. Raises EngineError if workers repeatedly die before they take a run.
        """
        yield from Workers(work).run(runs)


class Workers:
    """The worker processes of one study."""

    def __init__(self, work: Work) -> None:
        cores = available_cores()
        device = work.device
        self.workers = work.workers or (cores if device == "cpu" else len(visible_gpus()) if device == "cuda" else 1)
        self.work, self.saving = work, work.saving
        self.context = multiprocessing.get_context("spawn")

    @property
    def threads(self) -> int:
        """Threads of each worker, if there are as many runs as workers."""
        return self._threads(self.work.runs or self.workers)

    def _threads(self, runs: int) -> int:
        shared = max(1, available_cores() // min(self.workers, runs))
        return min(shared, thread_limit() or shared)

    def run(self, runs: Iterable[RunConfig]) -> Generator[Outcome, None, None]:
        """Train all runs."""
        with TemporaryDirectory(prefix="spectrum-gpus-") if self.work.device == "cuda" else nullcontext() as slots:
            yield from self._run(runs, slots)

    def _run(self, runs: Iterable[RunConfig], slots: str | None) -> Generator[Outcome, None, None]:
        # long: every step of the loop changes the queue, the running futures and the pool, and its end must stop that
        # pool
        waiting = deque((run, Attempts.at(run, self.saving)) for run in runs)
        workers = min(self.workers, len(waiting)) or 1
        threads = self._threads(max(self.work.runs or 0, len(waiting), 1))
        running: dict[Future[Any], tuple[RunConfig, Attempts]] = {}
        broken = 0  # consecutive breaks of the pool
        clock = _Clock(self.work.run_minutes)
        if self.work.device == "cpu":
            _build_kernels()
        stop = self.context.RawValue("b", 0)  # without a lock, which a killed worker could hold for ever
        pool = self._pool(workers, slots, stop)
        try:
            while waiting or running:
                with _interrupts_blocked():  # inherited by workers: only the driver handles Ctrl-C
                    while waiting and len(running) < workers:
                        run, attempts = waiting.popleft()
                        running[self._schedule(pool, run, threads)] = (run, attempts)
                ended = wait(running, timeout=clock.look, return_when=FIRST_COMPLETED).done
                for late in clock.late(running.keys() - ended):
                    late.cancel()  # ends the process
                    ended.add(late)
                if any(isinstance(_error(future), BrokenProcessPool) for future in ended):
                    broken += 1
                    if broken > ATTEMPTS:
                        raise EngineError(
                            "workers die before they take a run; free memory or use fewer workers. A script that "
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
                    run, attempts = running.pop(future)
                    error = TimeoutError() if future.cancelled() else future.exception()
                    if isinstance(error, ProcessExpired) and attempts.again(run, self.saving):
                        waiting.append((run, attempts))
                    else:
                        yield self._outcome(run, attempts.begun, future, error)
            pool.close()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            stop.value = 1
            wait(running, timeout=GRACE if self.saving is not None else 0)
            raise
        finally:
            pool.stop()
            pool.join()

    def _schedule(self, pool: ProcessPool, run: RunConfig, threads: int) -> Future[Any]:
        return pool.schedule(_train_in_pool, args=[run, self.work, threads])

    def _outcome(self, run: RunConfig, attempt: int, future: Future[Any], error: BaseException | None) -> Outcome:
        if error is None:
            return Outcome(run, future.result(), None, attempt)
        if isinstance(error, ProcessExpired):
            reason = died(attempt, f"exit code {error.exitcode}")
        elif isinstance(error, TimeoutError):
            reason = took_too_long(self.work.run_minutes, self.saving, run)
        else:
            reason = f"{type(error).__name__}: {error}"
        return Outcome(run, None, with_log(reason, self.saving, run), attempt)

    def _pool(self, workers: int, slots: str | None, stop: Any) -> ProcessPool:
        with _interrupts_blocked():
            initargs = [stop, self.work.memory_gb, slots]
            return ProcessPool(workers, initializer=_start_worker, initargs=initargs, context=self.context)


def _build_kernels() -> None:
    """Build kernels once, before several workers would each do it."""
    from spectrum.conv.backends.choice import choice_for

    choice_for(None, prepare=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(stop: Any, memory_gb: float | None, slots: str | None) -> None:
    global _stop
    _stop = stop
    limit_memory(memory_gb)
    if slots is not None:
        gpus = visible_gpus()
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[take_slot(Path(slots), len(gpus))]
    _end_with_driver()


def _end_with_driver() -> None:
    """End this worker when the process that started it ends, for whatever reason and whatever the worker is doing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # Python threads do not run while native code holds the interpreter's lock. On Linux the kernel therefore sends a
    # signal when the driver's end of the pipe closes.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:  # for systems without that signal, and for a driver that had already ended
        wait_for_handles([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_in_pool(run: RunConfig, work: Work, threads: int) -> dict[str, Any]:
    try:
        return train_one(run, work, threads, stop=lambda: _stop is not None and bool(_stop.value))
    except TimeoutError as error:  # pebble would take it for its own time limit
        raise RuntimeError(f"TimeoutError: {error}") from None

"""Where points are trained. An engine takes points and gives back one outcome a point, in the order they end.

`LocalEngine` keeps N worker processes of this machine busy. A worker that dies is replaced and its point tried again a
few times, from its latest checkpoint; an exception in a point is that point's failure and no other's.
"""

from __future__ import annotations

import faulthandler
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from multiprocessing.connection import wait as wait_for_handles
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pebble import ProcessExpired, ProcessPool

from spectrum.study.checkpoint_files import CHECKPOINTS, Interrupted
from spectrum.study.point import Point

ATTEMPTS = 3
LOGS = "logs"  # below a study's folder
OUT_OF_MEMORY = "oom: not enough memory for this point"
GRACE = 10.0  # seconds in which workers that are stopped may save where they stand


@dataclass(frozen=True)
class Saving:
    """Where and how often runs save where they stand, and where they log."""

    folder: Path  # of the study
    minutes: float = 1.0  # between two checkpoints, at least

    def checkpoints_of(self, id: str) -> Path:
        """The folder of one point's checkpoints."""
        return self.folder / CHECKPOINTS / id

    def log_of(self, id: str) -> Path:
        """What a point printed, and how it failed; there only if there is something to read."""
        return self.folder / LOGS / f"{id}.log"


@dataclass(frozen=True)
class Limits:
    """What one point may take. One that takes more has failed, and is not tried again in the same run."""

    minutes: float | None = None  # from its start or its latest checkpoint on
    memory_gb: float | None = None  # of a worker's private memory; images that are kept in memory count too


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """How one point ended: with a result and its provenance, or with the reason why there is none."""

    point: Point
    result: dict[str, Any] | None  # fields of train.Result, and "provenance"
    reason: str | None
    attempts: int


_stop: Any = None  # in a worker: its value is 1 where it is to save and end


class LocalEngine:
    """Worker processes on this machine, each with an equal share of the cores.

    Args:
        workers: processes; by default one a core, or one a GPU, which sees no other. At most one a point.
        device: "cpu", "cuda" or "mps".
        imports: modules to import in every worker first, for models of one's own.
        saving: where and how often runs save where they stand, and where they log; by default not at all.
        limits: what one point may take.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        device: str = "cpu",
        imports: Sequence[str] = (),
        saving: Saving | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        cores = available_cores()
        self.workers = workers or (cores if device == "cpu" else len(visible_gpus()) if device == "cuda" else 1)
        self.threads = max(1, cores // self.workers)
        self.device = device
        self.imports = tuple(imports)
        self.saving, self.limits = saving, limits
        self.context = multiprocessing.get_context("spawn")
        self.stop = self.context.RawValue("b", 0)  # no lock, which a worker that is killed might take along

    def run(self, points: Iterable[Point]) -> Generator[Outcome, None, None]:
        """Train all points.

        Closing the iterator, or Ctrl-C, lets the workers save where they stand and ends them, after ten seconds at the
        latest; another Ctrl-C ends them at once.

        Raises EngineError when workers die again and again before they take a point.
        """
        with TemporaryDirectory(prefix="spectrum-gpus-") as slots:
            yield from self._run(points, slots)

    def _run(self, points: Iterable[Point], slots: str) -> Generator[Outcome, None, None]:
        waiting = deque((point, 1) for point in points)
        workers = min(self.workers, len(waiting)) or 1
        running: dict[Future[Any], tuple[Point, int]] = {}
        broken = 0
        pool = self._pool(workers, slots)
        try:
            while waiting or running:
                with _interrupts_blocked():  # what the pool starts inherits it: Ctrl-C is for the driver to handle
                    while waiting and len(running) < workers:
                        point, attempt = waiting.popleft()
                        running[self._schedule(pool, point)] = (point, attempt)
                ended = wait(running, return_when=FIRST_COMPLETED).done
                if any(isinstance(future.exception(), BrokenProcessPool) for future in ended):
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
                    pool = self._pool(workers, slots)
                    continue
                for future in ended:
                    point, attempt = running.pop(future)
                    error = future.exception()
                    if isinstance(error, ProcessExpired) and attempt < ATTEMPTS:
                        waiting.append((point, attempt + 1))
                    else:
                        yield self._outcome(point, attempt, future, error)
            pool.close()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self.stop.value = 1
            wait(running, timeout=GRACE if self.saving is not None else 0)
            raise
        finally:
            pool.stop()
            pool.join()

    def _schedule(self, pool: ProcessPool, point: Point) -> Future[Any]:
        seconds = None if self.limits.minutes is None else 60 * self.limits.minutes
        args = [point, self.device, self.threads, self.imports, self.saving]
        return pool.schedule(_train_one, args=args, timeout=seconds)

    def _outcome(self, point: Point, attempt: int, future: Future[Any], error: BaseException | None) -> Outcome:
        if error is None:
            return Outcome(point, future.result(), None, attempt)
        if isinstance(error, ProcessExpired):
            reason = f"the worker process died {attempt} times, last with exit code {error.exitcode}"
        elif isinstance(error, TimeoutError):
            reason = f"took more than {self.limits.minutes:g} minutes"
            if self.saving is not None and self.saving.checkpoints_of(point.id).exists():
                reason += "; the next run goes on from its checkpoint"
        else:
            reason = f"{type(error).__name__}: {error}"
        log = None if self.saving is None else self.saving.log_of(point.id)
        if log is not None and log.exists():
            reason += f"; see {log.relative_to(log.parent.parent)}"
        return Outcome(point, None, reason, attempt)

    def _pool(self, workers: int, slots: str) -> ProcessPool:
        with _interrupts_blocked():
            initargs = [self.stop, self.limits.memory_gb, slots if self.device == "cuda" else None]
            return ProcessPool(workers, initializer=_start_worker, initargs=initargs, context=self.context)


class EngineError(RuntimeError):
    """Workers that cannot be kept alive."""


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
    if memory_gb is not None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = int(memory_gb * 1e9)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    if slots is not None:
        gpus = visible_gpus()
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[take_slot(Path(slots), len(gpus))]
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    """No worker outlives the process that started it, however that one ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_handles([parent.sentinel])
        os._exit(1)


@cache
def _prepare(threads: int, imports: tuple[str, ...]) -> None:
    """What a worker does before its first point; an error here is that point's."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from spectrum.study.provenance import code_revision

    torch.set_num_threads(threads)
    code_revision()  # of the code as it is now, not as it is when the first point ends
    for module in imports:
        import_module(module)


def _train_one(
    point: Point, device: str, threads: int, imports: tuple[str, ...], saving: Saving | None
) -> dict[str, Any]:
    try:
        with _logged(None if saving is None else saving.log_of(point.id)):
            _prepare(threads, imports)
            return _trained(point, device, saving)
    except Exception as error:
        one: BaseException | None = error
        while one is not None:  # or the pool keeps the network of a failed point until the next one has ended
            traceback.clear_frames(one.__traceback__)
            one = one.__cause__ or one.__context__
        if isinstance(error, TimeoutError):  # which is the pool's own word for the limit
            raise RuntimeError(f"TimeoutError: {error}") from None
        raise


@contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """What is printed meanwhile, by C too, goes to the end of a file, and so does how it fails or crashes."""
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab", buffering=0)
    except OSError:  # no room for a log is no reason not to train
        yield
        return
    before = [os.dup(number) for number in (1, 2)]
    with log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        faulthandler.enable(2)
        try:
            yield
        except Exception as error:
            if not isinstance(error, Interrupted):
                traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, number)
                os.close(kept)
    if path.stat().st_size == 0:
        path.unlink(missing_ok=True)


def _trained(point: Point, device: str, saving: Saving | None) -> dict[str, Any]:
    from spectrum.study.checkpoint import Checkpoints
    from spectrum.study.images import images_of
    from spectrum.study.provenance import provenance
    from spectrum.study.train import train

    images = images_of(point)
    environment = provenance(images, device)
    checkpoints = None
    if saving is not None:
        identity = {"point": point.id, "images": images.fingerprint}
        stop = (lambda: bool(_stop.value)) if _stop is not None else (lambda: False)
        checkpoints = Checkpoints(
            saving.checkpoints_of(point.id), identity, environment, minutes=saving.minutes, stop=stop
        )
    _reset_peak_memory()
    try:
        result = train(point, images, device=device, checkpoints=checkpoints)
    except MemoryError as error:
        raise MemoryError(OUT_OF_MEMORY) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error) or "out of memory" in str(error):
            raise MemoryError(OUT_OF_MEMORY) from error
        raise RuntimeError(f"{error} ({_innermost(error)})") from error
    seen = {"lowerings": result.lowerings, "resumed": result.resumed, "troubles": result.troubles}
    return {
        **asdict(result),
        "peak_memory_mb": _peak_memory_mb(),
        "provenance": environment | {name: what for name, what in seen.items() if what or name == "lowerings"},
    }


def _innermost(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is over the worker's life


def _peak_memory_mb() -> float:
    """Largest resident memory of this process in MB, since the last reset where the system can reset it."""
    try:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1000
    except (OSError, StopIteration):
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere

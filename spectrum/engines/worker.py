"""Train one run in a worker, for any engine: its logs, memory, checkpoints and result."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spectrum.design.run import RunConfig
from spectrum.engines.interface import Work
from spectrum.engines.saving import Saving
from spectrum.models.named import permit
from spectrum.training.checkpoint_files import Interrupted
from spectrum.training.weight_files import KEPT

if TYPE_CHECKING:
    from spectrum.training.ranks import Ranks

OUT_OF_MEMORY = "oom: not enough memory for this run"


T = TypeVar("T")


@cache
def _prepare(threads: int, imports: tuple[str, ...]) -> None:
    """Prepare a worker before its first run; an error here fails that run."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from spectrum.training.provenance import code_revision

    torch.set_num_threads(threads)
    code_revision()  # cached now, since the code may change before the first run ends
    for module in imports:
        import_module(module)
        permit(module)


def train_one(
    run: RunConfig,
    work: Work,
    threads: int,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_saved: Callable[[Path], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train a run. Returns the fields of its `Result`, its peak memory and its provenance.

    Args:
        run: the run to train.
        work: device, modules to import first, and where and how often to save checkpoints.
        threads: threads that torch may use.
        stop: asked after every step; true saves a checkpoint and raises Interrupted.
        on_saved: called with the folder of the checkpoints after each one.
        ranks: ranks that train the run together, if there are several; this process is one of them.
    """
    saving = work.saving
    try:
        with _logged(None if saving is None else saving.log_of(run.id)):
            _prepare(threads, work.imports)
            return _trained(run, work, saving, stop, on_saved, ranks)
    except Exception as error:
        one: BaseException | None = error
        while one is not None:  # else the process keeps the network of a failed run until the next one ends
            traceback.clear_frames(one.__traceback__)
            one = one.__cause__ or one.__context__
        raise


def limit_memory(gigabytes: float | None) -> None:
    """Limit the private memory of this process, in GB."""
    if gigabytes is None:
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = int(gigabytes * 1e9)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


@contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """Append to a file what is printed meanwhile, by C code too, and the traceback of a failure or crash.

    An error of the file or its folder neither stops training nor loses a result.
    """
    log = None if path is None else _opened(path)
    if path is None or log is None:
        yield
        return
    with log:
        try:
            with _redirected(log):
                yield
        finally:
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()


def _opened(path: Path) -> io.FileIO | None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return io.FileIO(path, "ab")
    return None


@contextmanager
def _redirected(log: io.FileIO) -> Iterator[None]:
    """Redirect standard output and errors of Python and of C code to the log."""
    streams = sys.stdout, sys.stderr
    _flush(*streams)  # earlier output belongs to other runs
    before = {number: kept for number in (1, 2) if (kept := _duplicate(number)) is not None}
    for number in before:
        os.dup2(log.fileno(), number)
    sys.stdout, sys.stderr = (_stream(n) if n in before else stream for n, stream in zip((1, 2), streams, strict=True))
    if 2 in before:
        faulthandler.enable(2)
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted):
            traceback.print_exc()
        raise
    finally:
        _flush(sys.stdout, sys.stderr, *streams)
        sys.stdout, sys.stderr = streams
        for number, kept in before.items():
            os.dup2(kept, number)
            os.close(kept)


class _TakesWhatItCan(io.FileIO):
    """A file that ignores write errors, so that a print in a network does not fail on a full disk."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


@cache
def _stream(number: int) -> io.TextIOWrapper:
    """Text stream of a descriptor, whatever file it points to; cached, since code that keeps it may print later."""
    raw = _TakesWhatItCan(number, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _duplicate(number: int) -> int | None:
    """Another descriptor of the same file; None if the descriptor is closed."""
    try:
        return os.dup(number)
    except OSError:
        return None


def _flush(*streams: Any) -> None:
    for stream in streams:
        with suppress(OSError, ValueError, AttributeError):  # full disk; closed stream; no stream
            stream.flush()


def _trained(
    run: RunConfig,
    work: Work,
    saving: Saving | None,
    stop: Callable[[], bool],
    on_saved: Callable[[Path], None] | None,
    ranks: Ranks | None,
) -> dict[str, Any]:
    from spectrum.data.images import images_of
    from spectrum.design.own_modules import code_of
    from spectrum.models.converted import CONVERSION
    from spectrum.training.checkpoint import Checkpoints
    from spectrum.training.loop import train
    from spectrum.training.provenance import provenance
    from spectrum.training.ranks import ALONE
    from spectrum.training.tuned import choices_for

    device, together = work.device, ranks or ALONE
    images = _or_out_of_memory(lambda: images_of(run))
    code = code_of(run.model)
    environment = provenance(images, device) | ({} if ranks is None else {"ranks": ranks.count})
    environment |= {} if code is None else {"model_code": code}
    choices = choices_for(run, images, device, work.choices, measures=work.tune == "on", ranks=together)
    environment["machine"] = choices.machine
    checkpoints = None
    if saving is not None:
        identity = {"point": run.id, "images": images.fingerprint} | ({} if code is None else {"model": code})
        folder = saving.checkpoints_of(run.id)
        checkpoints = Checkpoints(folder, identity, environment, minutes=saving.minutes, stop=stop, on_saved=on_saved)
    _reset_peak_memory()
    result = _or_out_of_memory(
        lambda: train(
            run,
            images,
            device=device,
            checkpoints=checkpoints,
            ranks=together,
            choices=choices,
            keep_weights=work.keep_weights,
        )
    )
    seen = {name: getattr(result, name) for name in ("lowerings", "choices", "resumed", "troubles", KEPT, CONVERSION)}
    return {
        **asdict(result),
        "peak_memory_mb": _peak_memory_mb(),
        "provenance": environment | {name: what for name, what in seen.items() if what or name == "lowerings"},
    }


def _or_out_of_memory(work: Callable[[], T]) -> T:
    """The result of `work`; every error for lack of memory becomes one MemoryError."""
    try:
        return work()
    except MemoryError as error:
        raise MemoryError(OUT_OF_MEMORY) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error) or "out of memory" in str(error):
            raise MemoryError(OUT_OF_MEMORY) from error
        raise RuntimeError(f"{error} ({_innermost(error)})") from error


def _innermost(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak then covers the worker's whole life


def _peak_memory_mb() -> float:
    """Largest resident memory of this process in MB, since the last reset if the system can reset it."""
    try:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1000
    except (OSError, StopIteration):
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / (1e6 if sys.platform == "darwin" else 1e3)  # in bytes on macOS, in kilobytes elsewhere

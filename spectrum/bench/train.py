"""Benchmark a whole training step, including data and update, of the network `probe` at the size of CIFAR-10.

Each implementation runs in its own process, since allocators and compilers are settings of a process, and the processes
take turns. Images are random, since their content does not change the times.

    default loop               NCHW, eager, DataLoader with flips and crops
    channels_last              eager, batches as in `spectrum run`, torch's own operations
    channels_last, compiled    the same with torch.compile
    spectrum                   as in `spectrum run`
    triton                     the same with the backend "triton"; on CUDA only

On CUDA, times are those of CUDA events around whole steps, data included.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import pandas as pd
import torch

from spectrum.bench.default_loop import DefaultLoop
from spectrum.bench.rounds import clock_of, spread
from spectrum.conv.backends.choice import prefer_backend
from spectrum.conv.clocks import Clock
from spectrum.data.augment import batches
from spectrum.data.splits import Images, split
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.training.optimisation import make_optimizer
from spectrum.training.step import keep_freed_memory, training_step

DEFAULT, OURS = "default loop", "spectrum"
NATIVE = "torch's kernels"  # as in `spectrum run` with SPECTRUM_BACKEND=native
TUNED = ("channels_last", "channels_last, compiled")
WAYS = (DEFAULT, *TUNED, OURS)
CURVE: tuple[dict[str, int], ...] = ({"segments": 1}, *({"segment_width": width} for width in (32, 16, 8, 4, 2, 1)))
TRITON = "triton"
ON_CUDA = (DEFAULT, *TUNED, TRITON, OURS)
CURVE_ON_CUDA: tuple[dict[str, int], ...] = ({"segment_width": 4}, {"segment_width": 1})  # compilers take most time
CIFAR_SHAPE = (3, 32, 32)
RECIPE: dict[str, Any] = {"dataset": "cifar10", "flip": True, "shift": 4}


def measure(
    curve: Sequence[dict[str, Any]] | None = None,
    ways: Sequence[str] | None = None,
    *,
    threads: int = 2,
    device: str = "cpu",
    rounds: int = 9,
    steps: int = 5,
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per configuration and implementation: milliseconds per step, and the share spent on data.

    Args:
        curve: configurations to measure, each with the fields of a RunConfig that set its segments; by default CURVE,
            on CUDA CURVE_ON_CUDA.
        ways: implementations; by default WAYS, on CUDA ON_CUDA.
        threads: threads that torch may use in each process; one process works at a time.
        device: "cpu" or "cuda".
        rounds: number of rounds; in each, every implementation takes `steps` steps.
    """
    curve = curve or (CURVE if device == "cpu" else CURVE_ON_CUDA)
    ways = ways or (WAYS if device == "cpu" else ON_CUDA)
    if TRITON in ways and find_spec("triton") is None:
        on_row('Triton is not installed, so it is left out; to include it: pip install "convolution-spectrum[triton]"')
        ways = [way for way in ways if way != TRITON]
    rows = []
    for where in curve:
        run = RunConfig(**RECIPE, **where)
        with Workers(run, ways, threads, device=device) as workers:
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way in ways:
                    times[way].append(workers.take(way, steps))
        for way in ways:
            whole = [seconds for seconds, _ in times[way]]
            row = {
                "segments": run.segments,
                "segment_width": run.segment_width,
                "way": way,
                **spread(whole),
                "images_per_second": run.batch_size / pd.Series(whole).median(),
                "data_percent": 100 * pd.Series([data / seconds for seconds, data in times[way]]).median(),
            }
            rows.append(row)
            on_row(f"{where} · {way:24} {row['ms']:7.1f} ms per step")
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Speedup over each other implementation, for each configuration."""
    found: dict[str, Any] = {}
    for where, row in along_the_curve(table, "ms").iterrows():
        found[f"{where}: speedup over the default loop"] = float(row[DEFAULT] / row[OURS])
        if tuned := _tuned(row):
            found[f"{where}: speedup over the best tuned loop"] = min(tuned) / float(row[OURS])
        if TRITON in row:
            found[f"{where}: speedup by Triton"] = float(row[OURS] / row[TRITON])
    found["highest share of a step spent on data, percent"] = float(table[table.way == OURS].data_percent.max())
    return found


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: one row per configuration, with each implementation's milliseconds and our speedups."""
    wide = along_the_curve(table, "ms")
    ways = [way for way in ON_CUDA if way in wide]
    lines = [
        f"| segments | {' | '.join(f'{way}, ms' for way in ways)} | data, % "
        "| speedup vs default loop | speedup vs best tuned loop |"
    ]
    lines.append("|" + "---|" * (len(ways) + 4))
    data = table[table.way == OURS].data_percent
    for (where, row), share in zip(wide.iterrows(), data, strict=True):
        tuned = _tuned(row)
        best = f"{min(tuned) / row[OURS]:.2f}" if tuned else ""
        times = " | ".join(f"{row[way]:.1f}" for way in ways)
        lines.append(f"| {where} | {times} | {share:.1f} | {row[DEFAULT] / row[OURS]:.2f} | {best} |")
    return "\n".join(lines)


def along_the_curve(table: pd.DataFrame, values: str) -> pd.DataFrame:
    """Pivot one column of a table: one labelled row per configuration, in order, and one column per implementation."""
    where = table.segment_width.map(_segments_in_words)
    wide = table.assign(where=where).pivot(index="where", columns="way", values=values)
    return wide.loc[list(dict.fromkeys(where))]


def _segments_in_words(width: Any) -> str:
    """A configuration of the curve in words: its channels per segment, or 1 segment."""
    if pd.isna(width):
        return "1 segment"
    return "per-channel" if width == 1 else f"{width:.0f} channels per segment"


def _tuned(row: pd.Series) -> list[float]:
    """Milliseconds of the tuned loops that were measured."""
    return [float(row[way]) for way in TUNED if way in row]


class Workers:
    """One process per implementation, which trains on request, on random images (channels, height, width)."""

    def __init__(
        self,
        run: RunConfig,
        ways: Sequence[str],
        threads: int,
        shape: tuple[int, int, int] = CIFAR_SHAPE,
        device: str = "cpu",
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        self.processes = []
        for way in ways:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, way, run, threads, shape, device), daemon=True)
            process.start()
            self.pipes[way] = here
            self.processes.append(process)
            here.recv()  # ready

    def take(self, way: str, steps: int) -> tuple[float, float]:
        """Run steps; return the mean seconds of a step, and of its data."""
        self.pipes[way].send(steps)
        answer: tuple[float, float] = self.pipes[way].recv()
        return answer

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe, process in zip(self.pipes.values(), self.processes, strict=True):
            pipe.send(0)
            process.join()


def _serve(pipe: Connection, way: str, run: RunConfig, threads: int, shape: tuple[int, int, int], device: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, y = torch.randint(256, (6000, *shape), dtype=torch.uint8), torch.randint(10, (6000,))
    images = Images(x, y, x[:500], y[:500], classes=10, fingerprint="random")
    steps = _default_steps(run, images, device) if way == DEFAULT else _steps(run, images, way, device)
    clock = clock_of(device)
    for _ in islice(steps, 4):  # warm up; compile
        pass
    pipe.send("ready")
    while count := pipe.recv():
        pipe.send(_timed(steps, count, clock))


def _timed(steps: Iterator[float], count: int, clock: Clock) -> tuple[float, float]:
    """Mean seconds of a step, and of its data."""
    data: list[float] = []
    seconds = clock(lambda: data.append(next(steps)), count)
    return seconds, sum(data) / count


def _default_steps(run: RunConfig, images: Images, device: str) -> Iterator[float]:
    loop = DefaultLoop(run, images, device)
    while True:
        clock = _Clocked(loop.loader)
        for x_nchw, y_n in clock:
            loop.step(x_nchw, y_n)
            yield clock.take()


class _Clocked:
    """An iterable that sums the time spent producing its items."""

    def __init__(self, source: Any) -> None:
        self.source, self.seconds = source, 0.0

    def __iter__(self) -> Iterator[Any]:
        giver = iter(self.source)
        while True:
            started = time.perf_counter()
            try:
                given = next(giver)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - started
            yield given

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _steps(run: RunConfig, images: Images, way: str, device: str) -> Iterator[float]:
    if way in (OURS, NATIVE, TRITON):
        keep_freed_memory()
    data = split(images, run.validation_fraction)
    with prefer_backend({OURS: "auto", TRITON: "triton"}.get(way, "native")):
        model = build_model(run.model, run.network_options(images.shape[0], images.classes, images.shape[1]))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    called = torch.compile(model) if way.endswith("compiled") else model
    optimizer = make_optimizer(run, model)
    model.train()
    epoch = 0
    while True:
        drawn: dict[str, Any] = {"flip": run.flip, "shift": run.shift, "device": device}
        clock = _Clocked(batches(data, batch_size=run.batch_size, seed=0, epoch=epoch, **drawn))
        for x_nchw, y_n in clock:
            training_step(run, called, optimizer, x_nchw, y_n)
            yield clock.take()
        epoch += 1

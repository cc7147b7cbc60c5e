"""Forecast how long a study takes: its training steps, the work around them, and the workers that share the machine.

All costs are CPU times, measured or counted during planning. Each worker's share of a core converts them to elapsed
time.
"""

from __future__ import annotations

import heapq
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from time import perf_counter, process_time, thread_time
from typing import TYPE_CHECKING

from spectrum.design.run import RunConfig

if TYPE_CHECKING:
    from spectrum.data.splits import Images

LOOK = 0.3  # seconds per measurement
USUAL_START = 3.0  # seconds to load torch and this package, assumed if this process has already loaded them
REPORT = 3.0  # seconds to draw the figures and write the page of a small study
OF_DATA = ("validation_fraction", "train_images", "normalisation", "batch_size", "flip", "shift", "cutout")
FORWARD = 1 / 3  # fraction of a training step: a backward pass does twice the work of a forward pass


def cpu_seconds(function: Callable[[], object], threads: int) -> float:
    """CPU time of one call, the median of several."""
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": function}, num_threads=threads, timer=process_time)
    return float(timer.blocked_autorange(min_run_time=LOOK).median)


def data_seconds(run: RunConfig, images: Images) -> tuple[float, float]:
    """CPU time to split and normalise the images of a run, and to make one batch of them."""
    with _one_thread():  # several threads wait for each other actively, which counts as CPU time
        return _data_seconds(run, images)


def _data_seconds(run: RunConfig, images: Images) -> tuple[float, float]:
    from spectrum.data.augment import batches
    from spectrum.data.splits import split

    started = process_time()
    data = split(images, run.validation_fraction, run.train_images, run.normalisation)
    split_seconds = process_time() - started
    started = process_time()
    made = batches(data, batch_size=run.batch_size, seed=0, epoch=0, flip=run.flip, shift=run.shift, cutout=run.cutout)
    count = sum(1 for _ in takewhile(lambda _: process_time() - started < LOOK, made))
    return split_seconds, (process_time() - started) / max(1, count)


def run_seconds(
    run: RunConfig, sizes: tuple[int, int], test_images: int, step: float, data: tuple[float, float]
) -> float:
    """CPU time of one run on one worker: its steps, its evaluations and its data.

    Args:
        run: the run, of which epochs, batch size and scoring count.
        sizes: numbers of training images, and of images validated after every epoch.
        test_images: number of images scored at the end.
        step: seconds per training step.
        data: seconds to split the images, and seconds to make a batch.
    """
    train, validation = sizes
    batch = min(run.batch_size, train)
    steps = train // batch * run.epochs
    scored = run.epochs * validation + (test_images if run.scored_on == "test" else 0)
    split_seconds, batch_seconds = data
    return split_seconds + steps * (step + batch_seconds) + scored / batch * step * FORWARD


def start_seconds() -> float:
    """CPU time to load torch and this package, measured if this process has just done so."""
    is_fresh = "torch" not in sys.modules
    import torch  # noqa: F401

    import spectrum.training.loop  # noqa: F401

    return process_time() if is_fresh else USUAL_START


def share_of_a_core(workers: int) -> float:
    """Share of a core that each of several workers gets now, between 0 and 1: below 1 on a busy machine."""
    import torch

    square = torch.ones(256, 256)
    shares: list[float] = []

    def work() -> None:
        started, busy = perf_counter(), thread_time()
        while perf_counter() - started < LOOK:
            torch.mm(square, square)
        shares.append((thread_time() - busy) / (perf_counter() - started))

    with _one_thread():
        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return min(1.0, sum(shares) / workers)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Elapsed time of workers that each begin the next run as soon as they are free.

    >>> makespan([3, 1, 1, 1], workers=2), makespan([2, 2, 2], workers=2)
    (3, 4)
    """
    free: list[float] = [0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)

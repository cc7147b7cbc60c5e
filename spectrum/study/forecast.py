"""How long a study takes: its training steps, what stands around them, and how many workers share the machine.

Everything is CPU time, measured or counted while a study is planned; the share of a core that each worker gets turns
it into time on the clock.
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

LOOK = 0.3  # seconds for which each thing is measured
USUAL_START = 3.0  # seconds to load torch and this package, for a process that has them already
REPORT = 3.0  # seconds to draw the figures and write the page of a small study
OF_DATA = ("validation_fraction", "train_images", "normalisation", "batch_size", "flip", "shift", "cutout")
FORWARD = 1 / 3  # of a training step: a backward pass does twice the work of a forward pass


def cpu_seconds(function: Callable[[], object], threads: int) -> float:
    """CPU time of one call, the median of several."""
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": function}, num_threads=threads, timer=process_time)
    return float(timer.blocked_autorange(min_run_time=LOOK).median)


def data_seconds(run: RunConfig, images: Images) -> tuple[float, float]:
    """CPU time to split and normalise the images of a run, and to make one batch of them."""
    with _one_thread():  # several wait for each other by spinning, which is CPU time too
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
        run: whose epochs, batch size and scoring count.
        sizes: images that it trains on, and those that it validates on after every epoch.
        test_images: that it is scored on at the end.
        step: seconds of a training step.
        data: seconds to split the images, and to make the batch of a step.
    """
    train, validation = sizes
    batch = min(run.batch_size, train)
    steps = train // batch * run.epochs
    scored = run.epochs * validation + (test_images if run.scored_on == "test" else 0)
    split_seconds, batch_seconds = data
    return split_seconds + steps * (step + batch_seconds) + scored / batch * step * FORWARD


def start_seconds() -> float:
    """CPU time in which a process loads torch and this package: of this process, if it has just done so."""
    is_fresh = "torch" not in sys.modules
    import torch  # noqa: F401

    import spectrum.training.loop  # noqa: F401

    return process_time() if is_fresh else USUAL_START


def share_of_a_core(workers: int) -> float:
    """The share of a core that each of several workers gets now, between 0 and 1: below 1 on a busy machine."""
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
    """How long workers take that each begin the next run as soon as they are free.

    >>> makespan([3, 1, 1, 1], workers=2), makespan([2, 2, 2], workers=2)
    (3, 4)
    """
    free: list[float] = [0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)

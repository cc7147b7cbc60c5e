"""Time calls in a row: by elapsed time, or on CUDA between two events."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Clock = Callable[[Callable[[], object], int], float]
"""Times a function that is called a number of times; returns seconds per call."""


def by_wall(run: Callable[[], object], calls: int) -> float:
    """Seconds per call, by elapsed time."""
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def by_events(run: Callable[[], object], calls: int) -> float:
    """Seconds per call on the current CUDA card, between two of its events."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / calls

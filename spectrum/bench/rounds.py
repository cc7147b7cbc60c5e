"""Time several functions in alternating rounds until each has enough measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def alternate(
    things: Mapping[str, Callable[[], Any]],
    *,
    least: int = 5,
    most: int = 31,
    seconds: float = 1.5,
    block_seconds: float = 0.02,
) -> dict[str, list[float]]:
    """Time functions; return seconds per call, one value per round and function.

    In a round a function is called as often as fits into `block_seconds`, as in a loop: its own operands may be in the
    cache, those of the others are not. A function is done after `most` rounds, or after `least` rounds that took
    `seconds` in total.
    """
    calls = {}
    for name, run in things.items():
        run()
        started = time.perf_counter()
        run()
        calls[name] = max(1, min(50, round(block_seconds / (time.perf_counter() - started))))
    times: dict[str, list[float]] = {name: [] for name in things}
    active = dict(things)
    while active:
        for name, run in list(active.items()):
            started = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - started) / calls[name])
            enough = len(times[name]) >= least and sum(times[name]) * calls[name] >= seconds
            if enough or len(times[name]) >= most:
                del active[name]
    return times


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, and the number of rounds."""
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e3
    return {"ms": float(median), "ms_q1": float(low), "ms_q3": float(high), "rounds": len(seconds)}

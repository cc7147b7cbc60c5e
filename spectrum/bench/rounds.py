"""Time several functions in alternating rounds until each has enough measurements, by the clock of their device."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from spectrum.conv.clocks import Clock, by_events, by_wall


def clock_of(device: str) -> Clock:
    """The clock of a device, "cpu" or "cuda"; on CUDA, cuDNN tries its algorithms from now on and keeps the fastest."""
    if device == "cpu":
        return by_wall
    torch.backends.cudnn.benchmark = True
    return by_events


def alternate(
    things: Mapping[str, Callable[[], Any]],
    *,
    least: int = 5,
    most: int = 31,
    seconds: float = 1.5,
    block_seconds: float = 0.02,
    clock: Clock = by_wall,
) -> dict[str, list[float]]:
    """Time functions in a new order each round; return seconds per call, one value per round and function.

    In a round a function is called as often as fits into `block_seconds`, as in a loop: its own operands may be in the
    cache, those of the others are not. A function is done after `most` rounds, or after `least` rounds that took
    `seconds` in total.
    """
    calls = {}
    for name, run in things.items():
        run()
        calls[name] = max(1, min(50, round(block_seconds / clock(run, 1))))
    times: dict[str, list[float]] = {name: [] for name in things}
    active, order = list(things), random.Random(0)
    while active:
        order.shuffle(active)  # one that always follows another finds what that left in the cache
        for name in list(active):
            times[name].append(clock(things[name], calls[name]))
            enough = len(times[name]) >= least and sum(times[name]) * calls[name] >= seconds
            if enough or len(times[name]) >= most:
                active.remove(name)
    return times


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds, and the number of rounds."""
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1e3
    return {"ms": float(median), "ms_q1": float(low), "ms_q3": float(high), "rounds": len(seconds)}

"""Cores and GPUs of this machine, and how workers divide them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_limit() -> int | None:
    """Most threads of a worker that the user asks for by OMP_NUM_THREADS; None without a number there."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has a number for each nested level
    return int(first) if first.isdecimal() and int(first) > 0 else None


def visible_gpus() -> list[str]:
    """CUDA devices that this process may use, as in CUDA_VISIBLE_DEVICES; at least one."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        return [one for one in devices.split(",") if one] or ["0"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())] or ["0"]


def take_slot(folder: Path, count: int) -> int:
    """Reserve a number from 0 to count − 1 until this process ends.

    Reservations are kernel locks, which the system releases when a process is killed. If all numbers are taken, they
    are shared.
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

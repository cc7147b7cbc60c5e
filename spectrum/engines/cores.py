"""What this machine has for workers: cores, GPUs, and who of them takes which."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; at least one."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        return [one for one in devices.split(",") if one] or ["0"]
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

"""One step of training, as the loop, the width solver and the benchmarks take it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrum.design.run import RunConfig


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network by torch.compile, as it would be in a process of its own, whatever this one compiled before.

    Without the reset torch gives up after eight networks of one class, without an error, and runs the next ones
    eagerly; and another batch or image than the last network's would get code for any size, with other last bits.
    """
    torch.compiler.reset()
    run: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return run


def training_step(
    run: RunConfig, model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x_nchw: Tensor, y_n: Tensor
) -> Tensor:
    """Forward pass, backward pass, update. Returns the loss, in nats, as a tensor without a gradient."""
    with torch.autocast(x_nchw.device.type, torch.bfloat16, enabled=run.autocast):
        loss = cross_entropy(model(x_nchw), y_n, label_smoothing=run.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def keep_freed_memory() -> None:
    """Ask the C library to keep for the next step what this one frees, for the rest of the process.

    By default large blocks go back to the system at once and come again as empty pages, each at the price of a fault: a
    thousand of them in a step of the probe network. Does nothing where the C library has no such switch.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h of glibc
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)

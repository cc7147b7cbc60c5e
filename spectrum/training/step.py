"""One training step, shared by the loop, the width solver and the benchmarks."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrum.design.run import RunConfig


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile the network by torch.compile, independently of what this process compiled before.

    Without the reset, torch silently stops compiling after eight networks of one class. It would also compile for any
    size once batch or image size changes, which changes the last bits of results.
    """
    torch.compiler.reset()
    run: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return run


def training_step(
    run: RunConfig, model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x_nchw: Tensor, y_n: Tensor
) -> Tensor:
    """Run forward pass, backward pass and update. Returns the loss in nats, as a tensor without a gradient."""
    with torch.autocast(x_nchw.device.type, torch.bfloat16, enabled=run.autocast):
        loss = cross_entropy(model(x_nchw), y_n, label_smoothing=run.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next step, for the rest of the process.

    By default, large blocks are returned to the system and come back as empty pages, each with a page fault; a step of
    the probe network has a thousand of these. Does nothing if the C library has no such switch.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # constants of glibc's malloc.h
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)

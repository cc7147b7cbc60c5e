"""Measured time of a network on this machine."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.benchmark import Timer


def time_training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_shape: tuple[int, int, int, int],
    classes: int,
    *,
    threads: int = 1,
) -> float:
    """Median seconds of one forward pass, backward pass and update, in channels_last, on the CPU.

    Args:
        model: a classifier; its weights change.
        optimizer: of its parameters.
        batch_shape: (images, channels, height, width).
        classes: number of classes of the network's output.
        threads: that torch may use.
    """
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    x_nchw = torch.randn(batch_shape).contiguous(memory_format=torch.channels_last)
    y_n = torch.randint(classes, batch_shape[:1])

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x_nchw), y_n).backward()
        optimizer.step()

    timer = Timer("step()", globals={"step": step}, num_threads=threads)
    return float(timer.blocked_autorange(min_run_time=0.3).median)

"""Learning-rate schedule, optimiser, and exponential average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spectrum.design.run import RunConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


def in_epochs(run: RunConfig, images_per_epoch: int) -> RunConfig:
    """The run with its schedule in epochs, converted from images if necessary."""
    if run.decay_images is None:
        return run
    return run.model_copy(update={"decay_epochs": run.decay_images / images_per_epoch, "decay_images": None})


def learning_rate(run: RunConfig, epoch: float) -> float:
    """Learning rate at a time, in epochs since the start.

    Linear warm-up from 0 over `warmup_epochs`. Then, with t from 0 to 1 over the rest:
    cosine: lr · (1 + cos πt) / 2 (Loshchilov & Hutter 2017);
    exponential: lr · decay^⌊epochs since warm-up / decay_epochs⌋ (Chollet 2017: 0.94 every 2 epochs);
    one_cycle: up from lr/25 to lr in the first 30%, then down to lr/10⁴, both along cosines (Smith & Topin 2018).
    """
    if epoch < run.warmup_epochs:
        return run.lr * epoch / run.warmup_epochs
    since = epoch - run.warmup_epochs
    t = since / (run.epochs - run.warmup_epochs)
    if run.schedule == "exponential":
        return run.lr * run.decay ** math.floor(since / run.decay_epochs + 1e-9)  # the sum is for 0.3 / 0.1 < 3
    if run.schedule == "cosine":
        return _along_cosine(run.lr, 0.0, t)
    peak = 0.3
    if t < peak:
        return _along_cosine(run.lr / 25, run.lr, t / peak)
    return _along_cosine(run.lr, run.lr / 1e4, (t - peak) / (1 - peak))


def _along_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


def make_optimizer(run: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of a run. Weights of two or more dimensions have weight decay; batch norm and biases have
    none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": run.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if run.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=run.lr, momentum=run.momentum, nesterov=run.nesterov and run.momentum > 0, fused=True
        )
    if run.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=run.lr, betas=(run.momentum, 0.999), fused=True)
    return torch.optim.RMSprop(groups, lr=run.lr, alpha=0.9, eps=1e-3, momentum=run.momentum)


def exponential_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential average with decay (1 + n) / (10 + n) at first, which soon forgets the first weights."""

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        n = int(count)
        keep = min(decay, (1 + n) / (10 + n))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - keep)
            else:
                average.copy_(weight)

    return update

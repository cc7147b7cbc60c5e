"""What a step does to the weights: the schedule of the learning rate, the optimiser, the exponential average."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spectrum.design.point import Point

Tensors = tuple[Tensor, ...] | list[Tensor]


def in_epochs(point: Point, images_per_epoch: int) -> Point:
    """The point, its schedule in epochs where it has it in images."""
    if point.decay_images is None:
        return point
    return point.model_copy(update={"decay_epochs": point.decay_images / images_per_epoch, "decay_images": None})


def learning_rate(point: Point, epoch: float) -> float:
    """The learning rate at a moment, in epochs from the start.

    Linear warm-up from 0 over `warmup_epochs`; then, with t from 0 to 1 over the rest,
    cosine: lr · (1 + cos πt) / 2 (Loshchilov & Hutter 2017); exponential: lr · decay^⌊epochs since / decay_epochs⌋
    (Chollet 2017: 0.94 every 2 epochs); one_cycle: up from lr/25 to lr in the first 30 %, then down to lr/10⁴, both
    along cosines (Smith & Topin 2018).
    """
    if epoch < point.warmup_epochs:
        return point.lr * epoch / point.warmup_epochs
    since = epoch - point.warmup_epochs
    t = since / (point.epochs - point.warmup_epochs)
    if point.schedule == "exponential":
        return point.lr * point.decay ** math.floor(since / point.decay_epochs + 1e-9)  # 0.3 / 0.1 is less than 3
    if point.schedule == "cosine":
        return _along_cosine(point.lr, 0.0, t)
    peak = 0.3
    if t < peak:
        return _along_cosine(point.lr / 25, point.lr, t / peak)
    return _along_cosine(point.lr, point.lr / 1e4, (t - peak) / (1 - peak))


def _along_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


def make_optimizer(point: Point, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a point; weight decay goes to weights of two and more dimensions, not to BN or bias."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": point.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if point.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=point.lr, momentum=point.momentum, nesterov=point.nesterov and point.momentum > 0, fused=True
        )
    if point.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=point.lr, betas=(point.momentum, 0.999), fused=True)
    return torch.optim.RMSprop(groups, lr=point.lr, alpha=0.9, eps=1e-3, momentum=point.momentum)


def exponential_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential average whose decay grows as (1 + n) / (10 + n), so that the first weights are soon forgotten."""

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

"""Parameters, MACs, FLOPs and activations of a built network.

One MAC is one multiply-add; FLOPs are 2 × MACs. Counted are convolutions and matrix products of one forward pass in
evaluation mode, for one image: what papers quote. Batch normalisation, biases, activations and pools are left out.
The counter is fvcore's, which follows the traced graph; it calls MACs "flops".
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

_COUNTED = ("conv", "addmm", "linear", "matmul", "bmm", "einsum")


@dataclass(frozen=True)
class Cost:
    """What one network costs at one input size."""

    params: int  # trainable numbers
    macs: int  # multiply-adds of a forward pass, one image
    activations: int  # numbers that convolutions and matrix products put out, one image

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass, one image: 2 × MACs."""
        return 2 * self.macs


def measure_cost(model: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Count a network's parameters and the arithmetic of one forward pass.

    Args:
        model: eager (not compiled), on any device but "meta"; its mode is restored.
        input_shape: (channels, height, width) of one image.

    Raises ValueError for a shape that is not three positive numbers.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape={input_shape!r}: expected (channels, height, width)")
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    training = {module: module.training for module in model.modules()}
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its "unsupported operator" lines name what is left out by design
    try:
        model.eval()
        macs = FlopCountAnalysis(model, image).by_operator()
        activations = ActivationCountAnalysis(model, image).total()
    finally:
        logger.setLevel(level)
        for module, was_training in training.items():
            module.training = was_training
    return Cost(
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=int(sum(macs[name] for name in _COUNTED)),
        activations=int(activations),
    )

"""Exact ways to run a segmented convolution, and which one is used.

Every lowering computes the same function of (input, one weight a run of equal segments); they differ in speed only.
`groups`, torch's word for equal segments, appears nowhere else.

Shapes: x (N, C_in, H, W); weights one tensor a run, (count·out_size, in_size, kh, kw); result (N, C_out, H', W').
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spectrum.conv.segments import Run

Pair = tuple[int, int]
Lowering = Callable[[Tensor, Sequence[Tensor], Sequence[Run], Pair, Pair, Pair], Tensor]


def native(
    x_nchw: Tensor,
    weights: Sequence[Tensor],
    runs: Sequence[Run],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """The library's own grouped convolution, one call a run of equal segments."""
    if len(runs) == 1:
        return F.conv2d(x_nchw, weights[0], None, stride, padding, dilation, runs[0].count)
    slices = x_nchw.split([run.count * run.in_size for run in runs], dim=1)
    return torch.cat(
        [
            F.conv2d(part, weight, None, stride, padding, dilation, run.count)
            for part, weight, run in zip(slices, weights, runs, strict=True)
        ],
        dim=1,
    )


LOWERINGS: dict[str, Lowering] = {"native": native}


def lowering_name() -> str:
    """The lowering in use: `$SPECTRUM_LOWERING` or "native". Raises ValueError for one that does not exist."""
    name = os.environ.get("SPECTRUM_LOWERING", "native")
    if name not in LOWERINGS:
        raise ValueError(f"SPECTRUM_LOWERING={name}: no such lowering; try {', '.join(LOWERINGS)}")
    return name

"""torch's own grouped convolution, one call per run of equal segments. It computes every geometry and input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.segments import Run

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by spatial axes


class Native(Backend):
    """The backend of torch's own convolution: one `F.conv2d` per run. Also takes (C_in, H, W)."""

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return native(x_nchw, weights, geometry)


def native(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """Convolve (N, C_in, H, W) to (N, C_out, H', W'); or both without N. One or three spatial axes work too."""
    g, convolution = geometry, _CONVOLUTIONS[len(geometry.kernel_size)]
    return by_run(
        x_nchw,
        weights,
        geometry,
        lambda part, weight, run: convolution(part, weight, None, g.stride, g.padding, g.dilation, run.count),
    )


def by_run(
    x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry, convolve: Callable[[Tensor, Tensor, Run], Tensor]
) -> Tensor:
    """Apply `convolve` to the channels of each run, and concatenate the results."""
    runs, channel_axis = geometry.runs, -1 - len(geometry.kernel_size)
    if len(runs) == 1:
        return convolve(x_nchw, weights[0], runs[0])
    slices = x_nchw.split([run.count * run.in_size for run in runs], dim=channel_axis)
    parts = [convolve(slices[i], weights[i], run) for i, run in enumerate(runs)]  # by index, which fx can trace
    return torch.cat(parts, dim=channel_axis)

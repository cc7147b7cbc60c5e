"""Several narrow segments joined into one wider group, whose kernel has zeros between them.

This does several times the arithmetic, but torch computes wide groups many times faster than narrow ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectrum.conv.backends.derived import Blocks, Window, convolve
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import by_run
from spectrum.conv.segments import Run

WIDTHS = {2: 8, 3: 9, 4: 8}  # channels per segment: channels of the group that joins several (`spectrum bench op`)


class Coalesced(Backend):
    """The backend for segments of 2 to 4 channels on the CPU."""

    def refusal_of(self, geometry: Geometry) -> str | None:
        if any(_together(run) > 1 for run in geometry.runs):
            return None
        return "it needs segments of 2 to 4 input channels, several of which fill a group"

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        if can_derive(x_nchw):
            return None
        return "it takes floating-point tensors on the CPU only"

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return coalesced(x_nchw, weights, geometry)


def coalesced(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """Convolve (N, C_in, H, W) to (N, C_out, H', W')."""
    return by_run(x_nchw, weights, geometry, lambda part, weight, run: _coalesced_run(part, weight, run, geometry))


def can_derive(x_nchw: Tensor) -> bool:
    """Whether a derived kernel is exact and faster for this tensor: floating point, on the CPU."""
    return x_nchw.device.type == "cpu" and x_nchw.is_floating_point()


def _coalesced_run(part: Tensor, weight: Tensor, run: Run, geometry: Geometry) -> Tensor:
    window = Window(geometry.stride, geometry.padding, geometry.dilation)
    blocks = Blocks(run, _together(run), window)
    if blocks.together == 1 or (part.dtype != weight.dtype and not torch.is_autocast_enabled("cpu")):
        return blocks.by_definition(part, [weight])
    return convolve(blocks, part, [weight], blocks.kernel(weight))


def _together(run: Run) -> int:
    """How many segments of a run one group joins: up to the table's width, and a divisor of their number."""
    most = WIDTHS.get(run.in_size, run.in_size) // run.in_size
    return next(n for n in range(most, 0, -1) if run.count % n == 0)

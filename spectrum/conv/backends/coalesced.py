"""Neighbouring narrow segments side by side in one group, with zeros between them in its kernel.

It does several times the arithmetic of the segments, at many times the speed that torch has on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectrum.conv.backends.derived import Blocks, Window, convolve
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import by_run
from spectrum.conv.segments import Run

WIDTHS = {2: 8, 3: 9, 4: 8}  # channels a segment: channels of the group that takes several in (`spectrum bench op`)


class Coalesced(Backend):
    """Segments of 2 to 4 channels, on the CPU."""

    def refusal_of(self, geometry: Geometry) -> str | None:
        if any(_together(run) > 1 for run in geometry.runs):
            return None
        return "no segments lie together: it takes segments of 2 to 4 inputs, in a number that a group can divide"

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        if can_derive(x_nchw):
            return None
        return "it takes floating numbers on the CPU"

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return coalesced(x_nchw, weights, geometry)


def coalesced(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """(N, C_in, H, W) to (N, C_out, H', W')."""
    return by_run(x_nchw, weights, geometry, lambda part, weight, run: _coalesced_run(part, weight, run, geometry))


def can_derive(x_nchw: Tensor) -> bool:
    """Whether a kernel that derives from others is exact and pays: floating numbers on the CPU."""
    return x_nchw.device.type == "cpu" and x_nchw.is_floating_point()


def _coalesced_run(part: Tensor, weight: Tensor, run: Run, geometry: Geometry) -> Tensor:
    window = Window(geometry.stride, geometry.padding, geometry.dilation)
    blocks = Blocks(run, _together(run), window)
    if blocks.together == 1 or (part.dtype != weight.dtype and not torch.is_autocast_enabled("cpu")):
        return blocks.by_definition(part, [weight])
    return convolve(blocks, part, [weight], blocks.kernel(weight))


def _together(run: Run) -> int:
    """How many segments of a run one group takes in: up to the table's width, and a divisor of their number."""
    most = WIDTHS.get(run.in_size, run.in_size) // run.in_size
    return next(n for n in range(most, 0, -1) if run.count % n == 0)

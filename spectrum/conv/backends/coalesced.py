"""Several segments joined into one wider group, whose kernel has zeros between them.

This does several times the arithmetic, but torch computes wide groups many times faster than narrow ones.

    Coalesced        some narrow segments in each group
    BlockDiagonal    all segments of a run in one group: a dense convolution
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from spectrum.conv.backends.derived import Blocks, Window, can_derive, convolve, types_fit
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import by_run
from spectrum.conv.segments import Run

WIDTHS = {2: 8, 3: 9, 4: 8}  # channels per segment: channels of the group that joins several (`spectrum bench op`)
MOST_TOGETHER = 16  # segments in a block-diagonal kernel, which takes as many times the arithmetic


class _Derived(Backend):
    """A backend whose kernel is derived from the weights."""

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        if can_derive(x_nchw):
            return None
        return "it takes floating-point tensors on the CPU only"


class Coalesced(_Derived):
    """The backend for segments of 2 to 4 channels on the CPU."""

    def refusal_of(self, geometry: Geometry) -> str | None:
        if any(_together(run) > 1 for run in geometry.runs):
            return None
        return "it needs segments of 2 to 4 input channels, several of which fill a group"

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return _joined(x_nchw, weights, geometry, _together)


class BlockDiagonal(_Derived):
    """The backend for a few segments on the CPU, where a dense convolution with zeros is faster than a grouped one."""

    def refusal_of(self, geometry: Geometry) -> str | None:
        if 1 < max(run.count for run in geometry.runs) <= MOST_TOGETHER:
            return None
        return f"it needs 2 to {MOST_TOGETHER} segments of equal size"

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        return _joined(x_nchw, weights, geometry, lambda run: run.count)


def _joined(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry, together: Callable[[Run], int]) -> Tensor:
    """Convolve (N, C_in, H, W) to (N, C_out, H', W'), as many segments of a run in each group as `together` says."""
    return by_run(
        x_nchw, weights, geometry, lambda part, weight, run: _joined_run(part, weight, run, together(run), geometry)
    )


def _joined_run(part: Tensor, weight: Tensor, run: Run, together: int, geometry: Geometry) -> Tensor:
    window = Window(geometry.stride, geometry.padding, geometry.dilation)
    blocks = Blocks(run, together, window)
    if blocks.together == 1 or not types_fit(part, weight):
        return blocks.by_definition(part, [weight])
    return convolve(blocks, part, [weight], blocks.kernel(weight))


def _together(run: Run) -> int:
    """How many segments of a run one group joins: up to the table's width, and a divisor of their number."""
    most = WIDTHS.get(run.in_size, run.in_size) // run.in_size
    return next(n for n in range(most, 0, -1) if run.count % n == 0)

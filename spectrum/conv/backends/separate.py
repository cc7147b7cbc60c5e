"""One convolution of torch per segment, as Inception modules are often written."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spectrum.conv.backends.derived import OneByOne, Window, can_derive, convolve, types_fit
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import by_run
from spectrum.conv.segments import Run

MOST = 32  # segments of one size; with more, so many calls are never the fastest


class Separate(Backend):
    """The backend for a few wide segments, where torch's dense convolution is faster than its grouped one."""

    def refusal_of(self, geometry: Geometry) -> str | None:
        if 1 < max(run.count for run in geometry.runs) <= MOST:
            return None
        return f"it needs 2 to {MOST} segments of equal size"

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Convolve (N, C_in, H, W) to (N, C_out, H', W')."""
        return by_run(x_nchw, weights, geometry, lambda part, weight, run: _one_by_one(part, weight, run, geometry))


def _one_by_one(part: Tensor, weight: Tensor, run: Run, geometry: Geometry) -> Tensor:
    form = OneByOne(run, Window(geometry.stride, geometry.padding, geometry.dilation))
    if not types_fit(part, weight):
        return form.by_definition(part, [weight])
    # Elsewhere than on the CPU, asking whether a result is finite would make the device wait.
    return convolve(form, part, [weight], weight.detach()) if can_derive(part) else form.by_kernel(part, weight)

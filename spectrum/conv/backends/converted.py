"""torch's own grouped convolution in the layout that the input does not have, converted there and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectrum.conv.backends.derived import Turned, Window, can_derive, convolve, types_fit
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import by_run, native
from spectrum.conv.backends.tracing import is_channels_last, layout_of
from spectrum.conv.segments import Run


class Converted(Backend):
    """The backend for shapes that torch computes faster in the other layout, both conversions included."""

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Convolve in the other layout; the result has the layout of the input."""
        if x_nchw.dim() != 4:
            return native(x_nchw, weights, geometry)  # it raises the error
        last = is_channels_last(x_nchw)
        y_nchw = by_run(x_nchw, weights, geometry, lambda part, weight, run: _turned(part, weight, run, geometry, last))
        return y_nchw.contiguous(memory_format=layout_of(x_nchw))


def _turned(part: Tensor, weight: Tensor, run: Run, geometry: Geometry, last: bool) -> Tensor:
    form = Turned(run, last, Window(geometry.stride, geometry.padding, geometry.dilation))
    if not types_fit(part, weight):
        return form.by_definition(part, [weight])
    other = torch.contiguous_format if last else torch.channels_last
    # The weight is converted too: torch computes in channels_last if either of the two is in it.
    there, kernel = part.contiguous(memory_format=other), weight.contiguous(memory_format=other)
    # Elsewhere than on the CPU, asking whether a result is finite would make the device wait.
    return convolve(form, there, [weight], kernel.detach()) if can_derive(part) else form.by_kernel(there, kernel)

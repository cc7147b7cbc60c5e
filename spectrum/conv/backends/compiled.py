"""The compiled kernels of `conv/kernels/` as a backend: 3×3, stride 1, float32, CPU; and batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import native
from spectrum.conv.backends.tracing import layout_of
from spectrum.conv.kernels import batch_norm
from spectrum.conv.kernels.build import binding, library
from spectrum.conv.kernels.convolution import segmented_conv2d


class Compiled(Backend):
    """The backend of compiled kernels, for any number and size of segments."""

    def prepare(self) -> None:
        if library() is None:
            raise ValueError("the kernels could not be built here; try auto")
        binding()  # now, so that the first step does not wait, and before several processes would all build it

    def refusal_of(self, geometry: Geometry) -> str | None:
        if _is_3x3(geometry):
            return None
        return "it computes only 3×3 kernels with stride 1, dilation 1 and at most 2 pixels of padding"

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        if takes_kernels(x_nchw):
            return None
        return "it takes float32 on the CPU, without autocast" if _has_kernels() else "it could not be built here"

    def can_normalise(self, x_nchw: Tensor) -> bool:
        return takes_kernels(x_nchw)

    normalise = staticmethod(batch_norm.batch_norm_act)
    normalise_by = staticmethod(batch_norm.batch_norm_act_evaluate)

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Convolve in any layout; the result has the layout of the input."""
        if not geometry.fits(x_nchw, weights):
            return native(x_nchw, weights, geometry)  # it raises the error
        y_nchw = segmented_conv2d(x_nchw, weights, geometry.runs, geometry.padding)
        return y_nchw.contiguous(memory_format=layout_of(x_nchw))


def takes_kernels(x_nchw: Tensor) -> bool:
    """Whether the kernels are built and can take this tensor: float32 on the CPU, without autocast."""
    takes = x_nchw.device.type == "cpu" and x_nchw.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return takes and _has_kernels()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernels() -> bool:
    """Whether there are kernels; builds them for a module that was made on `meta` and loaded later."""
    return library() is not None


def _is_3x3(geometry: Geometry) -> bool:
    return (
        geometry.kernel_size == (3, 3) and geometry.stride == geometry.dilation == (1, 1) and max(geometry.padding) <= 2
    )

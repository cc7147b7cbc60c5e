"""The compiled kernels of `conv/kernels/` as a backend, on the CPU: convolutions, and batch normalisation.

They compute in float32. bfloat16, also that of autocast, is converted there and back, and is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectrum._torch import assume_constant_result
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import native
from spectrum.conv.backends.tracing import layout_of
from spectrum.conv.kernels import batch_norm
from spectrum.conv.kernels.build import binding, library
from spectrum.conv.kernels.convolution import KERNELS, segmented_conv2d

WIDEST = 32  # channels per segment; above it torch is as fast
WIDEST_BFLOAT16 = 4  # the same for bfloat16, in which torch is faster and the kernels convert


class Compiled(Backend):
    """The backend of compiled kernels, for any number and size of segments."""

    def prepare(self) -> None:
        if library() is None:
            raise ValueError("the kernels could not be built here; try auto")
        binding()  # now, so that the first step does not wait, and before several processes would all build it

    def refusal_of(self, geometry: Geometry) -> str | None:
        if not _is_computed(geometry):
            return (
                "it computes only square kernels of 1, 3, 5 or 7 pixels with stride 1 or 2, dilation 1 or 2, and "
                "padding up to dilation · (k − 1)"
            )
        if geometry.kernel_size == (1, 1) and geometry.segment_channels > WIDEST:
            return f"it computes 1×1 kernels only for segments of up to {WIDEST} channels"
        return None

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        if takes_convolution(x_nchw):
            return None
        return "it takes float32 and bfloat16 on the CPU" if _has_kernels() else "it could not be built here"

    def can_normalise(self, x_nchw: Tensor) -> bool:
        return takes_kernels(x_nchw)

    normalise = staticmethod(batch_norm.batch_norm_act)
    normalise_by = staticmethod(batch_norm.batch_norm_act_evaluate)

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Convolve in any layout; the result has the layout of the input, and torch's type for it."""
        casts = torch.is_autocast_enabled("cpu")
        if not geometry.fits(x_nchw, weights, any_type=casts):
            return native(x_nchw, weights, geometry)  # it raises the error
        result = torch.bfloat16 if casts else x_nchw.dtype
        y_nchw = segmented_conv2d(
            x_nchw.float(),
            [weight.float() for weight in weights],
            geometry.runs,
            (geometry.padding[0], geometry.padding[1]),
            geometry.stride[0],
            geometry.dilation[0],
        )
        return y_nchw.to(result).contiguous(memory_format=layout_of(x_nchw))


def takes_kernels(x_nchw: Tensor) -> bool:
    """Whether the kernels are built and can take this tensor as it is: float32 on the CPU, without autocast."""
    return x_nchw.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and takes_convolution(x_nchw)


def takes_convolution(x_nchw: Tensor) -> bool:
    """Whether the kernels are built and can convolve this tensor: float32 or bfloat16 on the CPU.

    bfloat16 is also what autocast may ask for; another type of autocast is torch's.
    """
    takes = x_nchw.device.type == "cpu" and x_nchw.dtype in (torch.float32, torch.bfloat16)
    if takes and torch.is_autocast_enabled("cpu"):
        takes = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return takes and _has_kernels()


def is_fastest(geometry: Geometry, x_nchw: Tensor, *, widest: int = WIDEST) -> bool:
    """Whether the kernels beat torch's own convolutions, for a geometry that they compute, a type and a layout.

    Measured on a processor with AVX-512 (docs/performance.md). widest: channels per segment up to which they do for
    3×3 with stride 1 in channels_last, which depends on the processor's maker.
    """
    least, most = _sizes_won(geometry, layout_of(x_nchw) == torch.channels_last, widest)
    if x_nchw.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"):
        most = min(most, WIDEST_BFLOAT16)
    return least <= geometry.segment_channels <= most


def _sizes_won(geometry: Geometry, last: bool, widest: int) -> tuple[int, int]:
    """The least and most channels per segment for which the kernels beat torch in float32; (1, 0) if there are none.

    last: whether the input is in channels_last. Another layout must be converted there and back, which pays only where
    torch is slowest.
    """
    (k, _), (stride, _), (dilation, _) = geometry.kernel_size, geometry.stride, geometry.dilation
    if (k, stride, dilation) == (3, 1, 1):
        return (1, widest) if last else (2, 8)
    least = 2 if k == 1 or (k == 3 and dilation == 1) else 1  # torch is as fast at 1 channel with so few products
    if not last:
        return (least, 7) if k > 1 else (1, 0)
    return least, WIDEST if stride == dilation == 2 and k > 1 else 8


@assume_constant_result
def _has_kernels() -> bool:
    """Whether there are kernels; builds them for a module that was made on `meta` and loaded later."""
    return library() is not None


def _is_computed(geometry: Geometry) -> bool:
    """Whether the kernels have this geometry."""
    pairs = (geometry.kernel_size, geometry.stride, geometry.dilation)
    (k, stride, dilation), others = zip(*pairs, strict=True)
    known = k in KERNELS and (k, stride, dilation) == others and max(stride, dilation) <= 2
    return known and max(geometry.padding) <= dilation * (k - 1)

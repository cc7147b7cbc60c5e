"""The Triton kernels of `conv/kernels/` as a backend, on CUDA. Needs the extra "triton", imported on first use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from spectrum._torch import assume_constant_result
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import native
from spectrum.conv.backends.tracing import layout_of

TYPES = (torch.float32, torch.float16, torch.bfloat16)
SIDES, STEPS = frozenset({1, 3, 5, 7}), frozenset({1, 2})  # tested sides of a kernel; tested strides and dilations
MOST_PIXELS = 2**30  # the kernels count pixels, and those of a last tile that are none, in 32 bits
ABSENT = 'triton is not installed; pip install "convolution-spectrum[triton]"'


class Triton(Backend):
    """The backend of Triton kernels, for any number and size of segments."""

    def prepare(self) -> None:
        if not _is_installed():
            raise ValueError(ABSENT)

    def refusal_of(self, geometry: Geometry) -> str | None:
        if geometry.kernel_size == (1, 1) and [run.count for run in geometry.runs] == [1]:
            return "a 1×1 in one segment is a matrix product, which it leaves to torch"
        if SIDES.issuperset(geometry.kernel_size) and STEPS.issuperset((*geometry.stride, *geometry.dilation)):
            return None
        return "it computes only kernels with sides of 1, 3, 5 or 7, with strides and dilations of 1 or 2"

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        if not _is_installed():
            return ABSENT
        if x_nchw.device.type not in _devices():
            return "it takes tensors on CUDA only"
        if _computed_in(x_nchw) not in TYPES:
            return "it takes float32, float16 and bfloat16 only"
        shape = geometry.output_shape(x_nchw.shape)
        if x_nchw.dim() == 4 and max(_pixels(x_nchw.shape), _pixels(shape)) >= MOST_PIXELS:
            return f"it takes fewer than {MOST_PIXELS} pixels at once; give smaller batches"
        return None

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Convolve in any layout; the result has the layout of the input."""
        if torch.is_autocast_enabled(x_nchw.device.type):
            dtype = _computed_in(x_nchw)
            x_nchw, weights = x_nchw.to(dtype), [weight.to(dtype) for weight in weights]
        if not geometry.fits(x_nchw, weights):
            return native(x_nchw, weights, geometry)  # it raises the error
        from spectrum.conv.kernels.triton_convolution import segmented_conv2d

        y_nchw = segmented_conv2d(x_nchw, weights, geometry)
        return y_nchw.contiguous(memory_format=layout_of(x_nchw))


def _pixels(shape: Sequence[int]) -> int:
    return shape[0] * shape[-2] * shape[-1]


def _computed_in(x_nchw: Tensor) -> torch.dtype:
    """The type in which torch's convolution would compute this tensor: under autocast, autocast's."""
    kind = x_nchw.device.type
    if torch.is_autocast_enabled(kind) and x_nchw.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x_nchw.dtype


@assume_constant_result
def _devices() -> tuple[str, ...]:
    """Kinds of devices on which the kernels run: the CPU only under Triton's interpreter."""
    from spectrum.conv.kernels.triton_convolution import DEVICES

    return DEVICES


@assume_constant_result
def _is_installed() -> bool:
    return _is_found()


@cache
def _is_found() -> bool:
    return find_spec("triton") is not None

"""Compiled kernels for the spatial convolution: 1×1 to 7×7, stride and dilation 1 or 2; float32 on the CPU.

They work in channels_last; other layouts are converted. They use as many threads as torch, and are deterministic for a
fixed number of threads. They are differentiable to any order.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectrum.conv.kernels import torch_operation
from spectrum.conv.kernels.derivatives import derivatives
from spectrum.conv.kernels.torch_operation import LAST, operation
from spectrum.conv.segments import Run

KERNELS = (1, 3, 5, 7)  # sides of square kernels


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("images", "height", "width", "out_height", "out_width", "in_channels", "out_channels"),
            *("count", "in_size", "out_size", "kernel", "stride", "dilation", "pad_h", "pad_w"),
            *("w_out", "w_in", "w_tap"),
        )
    ]


def segmented_conv2d(
    x_nchw: Tensor,
    weights: Sequence[Tensor],
    runs: Sequence[Run],
    padding: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Convolve with a square kernel inside each segment.

    Args:
        x_nchw: input (N, C_in, H, W), float32, CPU.
        weights: one tensor per run, (count·out_size, in_size, k, k), where k is one of `KERNELS`.
        runs: runs of equal segments, in channel order.
        padding: zeros (above and below, left and right), 0 to dilation·(k − 1).
        stride: 1 or 2.
        dilation: 1 or 2.

    Returns (N, C_out, H', W') in channels_last.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat([weight.flatten() for weight in weights])
    sizes = [number for run in runs for number in (run.count, run.in_size, run.out_size)]
    # Concatenated, weights lose their layout, on which torch's own result depends for infinities at the border.
    last = len(weights) > 1 and not all(weight.is_contiguous() for weight in weights)
    window = [weights[0].shape[-1], stride, dilation, *padding, int(last)]
    y_nchw: Tensor = _convolve(x_nchw, weight, sizes, window)
    return y_nchw


# The convolution. `weight`: of the one run, or of all runs concatenated; `sizes`: count, in_size, out_size of each;
# `window`: kernel, stride, dilation, vertical and horizontal padding, and whether the weights of several runs were in
# channels_last.


def _convolve_kernel(given: Tensor, weight: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    x, weight = given.contiguous(memory_format=LAST), _evenly_laid(weight)
    y = _result_of(x, sizes, window)
    if y.numel() and x.numel():
        forward, threads = torch_operation.loaded_kernels().spectrum_forward, torch.get_num_threads()
        x_at, w_at, y_at = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        for shape, x_past, w_past, y_past in _run_shapes(x.shape, weight.stride(), tuple(sizes), tuple(window)):
            if not forward(shape, x_at + x_past, w_at + w_past, y_at + y_past, threads):
                return _by_library(given, weight, sizes, window).contiguous(memory_format=LAST)
    return y


def _convolve_like(x: Tensor, weight: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    return _result_of(x, sizes, window)


def _convolve_backward_kernel(
    given: Tensor, weight: Tensor, given_gy: Tensor, sizes: list[int], window: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    x, weight, gy = given.contiguous(memory_format=LAST), _evenly_laid(weight), given_gy.contiguous(memory_format=LAST)
    gx, gw = _gradients_of(x, weight, needs_x, needs_w)
    if gy.numel() == 0 or x.numel() == 0:
        return gx.zero_(), gw.zero_()
    backward, threads = torch_operation.loaded_kernels().spectrum_backward, torch.get_num_threads()
    x_at, w_at, gy_at, gx_at, gw_at = (tensor.data_ptr() for tensor in (x, weight, gy, gx, gw))
    for shape, x_past, w_past, y_past in _run_shapes(x.shape, weight.stride(), tuple(sizes), tuple(window)):
        made = backward(
            shape,
            x_at + x_past,
            w_at + w_past,
            gy_at + y_past,
            gx_at + x_past if needs_x else None,
            gw_at + w_past if needs_w else None,
            threads,
        )
        if not made:
            return _gradients_by_library(given, weight, given_gy, sizes, window, needs_x, needs_w)
    return gx, gw


def _convolve_backward_like(
    x: Tensor, weight: Tensor, gy: Tensor, sizes: list[int], window: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    return _gradients_of(x, weight, needs_x, needs_w)


def _by_library(x: Tensor, weight: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    """The same with torch's own convolution, one call per run."""
    runs = zip(*_runs(x, weight, sizes, window), strict=True)
    _, stride, dilation, *padding, _ = window
    with torch.autocast("cpu", enabled=False):  # the caller has converted what autocast would
        return torch.cat([F.conv2d(part, w, None, stride, padding, dilation, n) for part, w, n in runs], dim=1)


def _gradients_by_library(
    x: Tensor, weight: Tensor, gy: Tensor, sizes: list[int], window: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    gx, gw = _gradients_of(x, weight, needs_x, needs_w)
    _, stride, dilation, *padding, _ = window
    steps = [stride] * 2, padding, [dilation] * 2
    runs = zip(*_runs(x, weight, sizes, window), gy.split(_out_channels(sizes), dim=1), strict=True)
    found = [
        torch.ops.aten.convolution_backward(gy_part, part, w, None, *steps, False, [0, 0], n, [needs_x, needs_w, False])
        for part, w, n, gy_part in runs
    ]
    if needs_x:
        gx.copy_(torch.cat([gradients[0] for gradients in found], dim=1))
    if needs_w:
        gw.copy_(found[0][1] if weight.dim() == 4 else torch.cat([gradients[1].flatten() for gradients in found]))
    return gx, gw


def _runs(
    x: Tensor, weight: Tensor, sizes: list[int], window: list[int]
) -> tuple[Sequence[Tensor], Sequence[Tensor], list[int]]:
    """The input, weights and number of segments of each run."""
    counts, in_sizes = sizes[::3], sizes[1::3]
    parts = x.split([count * size for count, size in zip(counts, in_sizes, strict=True)], dim=1)
    if weight.dim() == 4:
        return parts, [weight], counts
    shapes = [(out, size, *window[:1] * 2) for out, size in zip(_out_channels(sizes), in_sizes, strict=True)]
    flat = weight.split([math.prod(shape) for shape in shapes])
    layout = LAST if window[-1] else torch.contiguous_format
    return parts, [w.view(s).clone(memory_format=layout) for w, s in zip(flat, shapes, strict=True)], counts


def _out_channels(sizes: list[int]) -> list[int]:
    """Output channels of each run."""
    return [count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True)]


def _forward(x: Tensor, weight: Tensor, *numbers: list[int]) -> Tensor:
    y: Tensor = _convolve(x, weight, *numbers)
    return y


def _backward(x: Tensor, weight: Tensor, gy: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    gx, gw = _convolve_backward(x, weight, gy, *rest)
    return gx, gw


_autograd = derivatives(_forward, _backward)
_convolve = operation("segmented_conv2d", _convolve_kernel, _convolve_like, _autograd.save, _autograd.backward)
_convolve_backward = operation(
    "segmented_conv2d_backward",
    _convolve_backward_kernel,
    _convolve_backward_like,
    _autograd.save_backward,
    _autograd.backward_of_backward,
)


def _result_of(x: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    out_channels = sum(count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True))
    shape = (x.shape[0], out_channels, *_out_sides(x.shape, window))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)


def _out_sides(x_shape: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """Height and width of the output."""
    kernel, stride, dilation, *padding = window
    reach = dilation * (kernel - 1) + 1
    height, width = ((side + 2 * pad - reach) // stride + 1 for side, pad in zip(x_shape[2:], padding, strict=False))
    return height, width


def _gradients_of(x: Tensor, weight: Tensor, needs_x: bool, needs_w: bool) -> tuple[Tensor, Tensor]:
    """Allocate both gradients; one that is not needed is empty."""
    gx = torch.empty_like(x, memory_format=LAST) if needs_x else x.new_empty(0)
    return gx, torch.empty_like(weight) if needs_w else weight.new_empty(0)


def _evenly_laid(weight: Tensor) -> Tensor:
    """The weights, copied unless the kernels can read them in place."""
    if weight.dim() == 4 and weight.stride(2) == weight.shape[3] * weight.stride(3) and _is_dense(weight):
        return weight
    return weight.contiguous()


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=LAST)


@lru_cache(maxsize=1024)
def _run_shapes(
    x_shape: tuple[int, ...], strides: tuple[int, ...], sizes: tuple[int, ...], window: tuple[int, ...]
) -> list[tuple[Any, int, int, int]]:
    """The shape of each run, with the byte offsets of its first channel of x, first weight and first channel of y.

    strides: those of the weight, which has four dimensions, or one if the weights of all runs are concatenated.
    """
    images, in_channels, height, width = x_shape
    out_height, out_width = _out_sides(x_shape, window)
    kernel = window[0]
    out_channels = sum(count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True))
    shapes, x_past, w_past, y_past = [], 0, 0, 0
    for count, in_size, out_size in zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True):
        out_step, in_step, _, tap_step = strides if len(strides) == 4 else (kernel**2 * in_size, kernel**2, kernel, 1)
        shape = _Shape(
            *(images, height, width, out_height, out_width, in_channels, out_channels),
            *(count, in_size, out_size, *window[:5], out_step, in_step, tap_step),
        )
        shapes.append((ctypes.byref(shape), 4 * x_past, 4 * w_past, 4 * y_past))
        x_past, y_past, w_past = (
            x_past + count * in_size,
            y_past + count * out_size,
            w_past + kernel**2 * count * in_size * out_size,
        )
    return shapes

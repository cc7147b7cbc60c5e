"""The compiled kernels as torch operations: differentiable to any order, and known to torch.compile.

    segmented_conv2d   the spatial half: 3×3, stride 1, dilation 1
    batch_norm_act     batch normalisation in training with what follows it

and `batch_norm_act_evaluate`, the same by given statistics, for evaluation without gradients.

Both take float32 tensors on the CPU and work in channels_last; other layouts are converted. They use as many threads as
torch does, and give the same bits again for the same number of them.

Both are there twice: as `torch.library` operations, which torch.compile sees, and bound to torch in C++ (binding.cpp)
for the eager mode, where a call from Python would cost as much as a small kernel.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectrum._torch import is_in_transform
from spectrum.conv.kernels.build import binding, library
from spectrum.conv.segments import Run

LAST = torch.channels_last


def _operation(
    name: str,
    kernel: Callable[..., Any],
    like: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """A torch operation from its kernel, what allocates its results, and its derivative."""
    operation = torch.library.custom_op(f"spectrum::{name}", kernel, mutates_args=(), device_types="cpu")
    operation.register_fake(like)
    operation.register_autograd(backward, setup_context=save)

    def call(x: Tensor, *others: Any) -> Any:
        plain = type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
        plain = plain and not is_in_transform()
        bound = _bound(name) if plain else None
        return (bound or operation)(x, *others)

    return call


@cache
def _bound(name: str) -> Callable[..., Any] | None:
    """The operation as the binding has it, if there is one."""
    packet = getattr(torch.ops.spectrum_eager, name, None) if binding() else None
    return None if packet is None else packet.default


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("images", "height", "width", "out_height", "out_width", "in_channels", "out_channels"),
            *("count", "in_size", "out_size", "pad_h", "pad_w", "w_out", "w_in", "w_tap"),
        )
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("pixels", "channels")),
        *((name, ctypes.c_int32) for name in ("relu", "threads")),
        ("eps", ctypes.c_float),
    ]


def segmented_conv2d(
    x_nchw: Tensor, weights: Sequence[Tensor], runs: Sequence[Run], padding: tuple[int, int]
) -> Tensor:
    """A 3×3 convolution inside each segment.

    Args:
        x_nchw: (N, C_in, H, W), float32, CPU.
        weights: one tensor a run, (count·out_size, in_size, 3, 3).
        runs: of equal segments, in channel order.
        padding: zeros (above and below, left and right), 0 to 2.

    Returns (N, C_out, H + 2·padding − 2, W + 2·padding − 2) in channels_last.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat([weight.flatten() for weight in weights])
    sizes = [number for run in runs for number in (run.count, run.in_size, run.out_size)]
    # In a row they lose their layout, on which torch's own result depends where infinities meet the border.
    last = len(weights) > 1 and not all(weight.is_contiguous() for weight in weights)
    y_nchw: Tensor = _convolve(x_nchw, weight, sizes, [*padding, int(last)])
    return y_nchw


def batch_norm_act(
    x_nchw: Tensor, added_nchw: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """act(batch norm of x [+ added]), with this batch's mean and biased variance, (C,) each, which carry no gradient.

    Returns (y, mean, variance); y like x in channels_last.
    """
    y_nchw, mean, variance, _ = _norm(x_nchw, added_nchw, weight, bias, eps, relu)
    return y_nchw, mean.detach(), variance.detach()


# The convolution. `weight`: of the one run, or of all runs in a row; `sizes`: count, in_size, out_size of each;
# `padding`: vertical, horizontal, and whether the weights of several runs were in channels_last.


def _convolve_kernel(given: Tensor, weight: Tensor, sizes: list[int], padding: list[int]) -> Tensor:
    x, weight = given.contiguous(memory_format=LAST), _evenly_laid(weight)
    y = _result_of(x, sizes, padding)
    if y.numel() and x.numel():
        forward, threads = _kernels().spectrum_forward, torch.get_num_threads()
        x_at, w_at, y_at = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        for shape, x_past, w_past, y_past in _run_shapes(x.shape, weight.stride(), tuple(sizes), tuple(padding)):
            if not forward(shape, x_at + x_past, w_at + w_past, y_at + y_past, threads):
                return _by_library(given, weight, sizes, padding).contiguous(memory_format=LAST)
    return y


def _convolve_like(x: Tensor, weight: Tensor, sizes: list[int], padding: list[int]) -> Tensor:
    return _result_of(x, sizes, padding)


def _convolve_backward_kernel(
    given: Tensor, weight: Tensor, given_gy: Tensor, sizes: list[int], padding: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    x, weight, gy = given.contiguous(memory_format=LAST), _evenly_laid(weight), given_gy.contiguous(memory_format=LAST)
    gx, gw = _gradients_of(x, weight, needs_x, needs_w)
    if gy.numel() == 0 or x.numel() == 0:
        return gx.zero_(), gw.zero_()
    backward, threads = _kernels().spectrum_backward, torch.get_num_threads()
    x_at, w_at, gy_at, gx_at, gw_at = (tensor.data_ptr() for tensor in (x, weight, gy, gx, gw))
    for shape, x_past, w_past, y_past in _run_shapes(x.shape, weight.stride(), tuple(sizes), tuple(padding)):
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
            return _gradients_by_library(given, weight, given_gy, sizes, padding, needs_x, needs_w)
    return gx, gw


def _convolve_backward_like(
    x: Tensor, weight: Tensor, gy: Tensor, sizes: list[int], padding: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    return _gradients_of(x, weight, needs_x, needs_w)


def _by_library(x: Tensor, weight: Tensor, sizes: list[int], padding: list[int]) -> Tensor:
    """The convolution by torch's own, one call a run."""
    runs = zip(*_runs(x, weight, sizes, padding), strict=True)
    return torch.cat([F.conv2d(part, w, None, 1, padding[:2], 1, n) for part, w, n in runs], dim=1)


def _gradients_by_library(
    x: Tensor, weight: Tensor, gy: Tensor, sizes: list[int], padding: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    gx, gw = _gradients_of(x, weight, needs_x, needs_w)
    runs = zip(*_runs(x, weight, sizes, padding), gy.split(_out_channels(sizes), dim=1), strict=True)
    found = [
        torch.ops.aten.convolution_backward(
            gy_part, part, w, None, [1, 1], padding[:2], [1, 1], False, [0, 0], n, [needs_x, needs_w, False]
        )
        for part, w, n, gy_part in runs
    ]
    if needs_x:
        gx.copy_(torch.cat([gradients[0] for gradients in found], dim=1))
    if needs_w:
        gw.copy_(found[0][1] if weight.dim() == 4 else torch.cat([gradients[1].flatten() for gradients in found]))
    return gx, gw


def _runs(
    x: Tensor, weight: Tensor, sizes: list[int], padding: list[int]
) -> tuple[Sequence[Tensor], Sequence[Tensor], list[int]]:
    """Each run's input, weights and number of segments."""
    counts, in_sizes = sizes[::3], sizes[1::3]
    parts = x.split([count * size for count, size in zip(counts, in_sizes, strict=True)], dim=1)
    if weight.dim() == 4:
        return parts, [weight], counts
    shapes = [(out, size, 3, 3) for out, size in zip(_out_channels(sizes), in_sizes, strict=True)]
    flat = weight.split([math.prod(shape) for shape in shapes])
    layout = LAST if padding[2:] == [1] else torch.contiguous_format
    return parts, [w.view(s).clone(memory_format=layout) for w, s in zip(flat, shapes, strict=True)], counts


def _out_channels(sizes: list[int]) -> list[int]:
    """Of each run."""
    return [count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.sizes, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_w = ctx.needs_input_grad[:2]
    gx, gw = _convolve_backward(x, weight, gy, ctx.sizes, ctx.padding, needs_x, needs_w)
    return gx if needs_x else None, gw if needs_w else None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, gy, ctx.sizes, ctx.padding, ctx.needs_x, ctx.needs_w = inputs
    ctx.save_for_backward(x, weight, gy)


def _backward_of_backward(ctx: Any, ggx: Tensor, ggw: Tensor) -> tuple[Tensor | None, ...]:
    # gx is linear in (gy, w) and gw in (x, gy), so their derivatives are the same three operations.
    x, weight, gy = ctx.saved_tensors
    grad_x = grad_w = grad_gy = None
    needs_x, needs_w, needs_gy = ctx.needs_input_grad[:3]
    if ctx.needs_x:
        if needs_w:
            grad_w = _convolve_backward(ggx, weight, gy, ctx.sizes, ctx.padding, False, True)[1]
        if needs_gy:
            grad_gy = _convolve(ggx, weight, ctx.sizes, ctx.padding)
    if ctx.needs_w:
        if needs_x:
            grad_x = _convolve_backward(x, ggw, gy, ctx.sizes, ctx.padding, True, False)[0]
        if needs_gy:
            more = _convolve(x, ggw, ctx.sizes, ctx.padding)
            grad_gy = more if grad_gy is None else grad_gy + more
    return grad_x, grad_w, grad_gy, None, None, None, None


_convolve = _operation("segmented_conv2d", _convolve_kernel, _convolve_like, _save, _backward)
_convolve_backward = _operation(
    "segmented_conv2d_backward",
    _convolve_backward_kernel,
    _convolve_backward_like,
    _save_backward,
    _backward_of_backward,
)


def _result_of(x: Tensor, sizes: list[int], padding: list[int]) -> Tensor:
    out_channels = sum(count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True))
    height, width = x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2
    shape = (x.shape[0], out_channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)


def _gradients_of(x: Tensor, weight: Tensor, needs_x: bool, needs_w: bool) -> tuple[Tensor, Tensor]:
    """Room for both gradients; what is not wanted is empty."""
    gx = torch.empty_like(x, memory_format=LAST) if needs_x else x.new_empty(0)
    return gx, torch.empty_like(weight) if needs_w else weight.new_empty(0)


def _evenly_laid(weight: Tensor) -> Tensor:
    """The weights, copied unless the kernels can walk through them where they are."""
    if weight.dim() == 4 and weight.stride(2) == 3 * weight.stride(3) and _is_dense(weight):
        return weight
    return weight.contiguous()


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=LAST)


@lru_cache(maxsize=1024)
def _run_shapes(
    x_shape: tuple[int, ...], strides: tuple[int, ...], sizes: tuple[int, ...], padding: tuple[int, ...]
) -> list[tuple[Any, int, int, int]]:
    """Each run's shape, and how far its first channel of x, its first weight and its first channel of y lie, in bytes.

    strides: of the weight, whose dimensions are four or, with the weights of all runs in a row, one.
    """
    images, in_channels, height, width = x_shape
    out_height, out_width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    out_channels = sum(count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True))
    shapes, x_past, w_past, y_past = [], 0, 0, 0
    for count, in_size, out_size in zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True):
        out_step, in_step, _, tap_step = strides if len(strides) == 4 else (9 * in_size, 9, 3, 1)
        shape = _Shape(
            *(images, height, width, out_height, out_width, in_channels, out_channels),
            *(count, in_size, out_size, *padding[:2], out_step, in_step, tap_step),
        )
        shapes.append((ctypes.byref(shape), 4 * x_past, 4 * w_past, 4 * y_past))
        x_past, y_past, w_past = (
            x_past + count * in_size,
            y_past + count * out_size,
            w_past + 9 * count * in_size * out_size,
        )
    return shapes


# Normalisation


def _norm_kernel(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given, given_added = x, added
    x, weight, bias = x.contiguous(memory_format=LAST), weight.contiguous(), bias.contiguous()
    added = None if added is None else added.contiguous(memory_format=LAST)
    y, mean, variance, rstd = _normed(x, weight)
    made = _kernels().spectrum_norm_forward(
        _norm_shape(x.shape, eps, relu, torch.get_num_threads()),
        x.data_ptr(),
        None if added is None else added.data_ptr(),
        *(tensor.data_ptr() for tensor in (weight, bias, y, mean, variance, rstd)),
    )
    return (y, mean, variance, rstd) if made else _normed_by_library(given, given_added, weight, bias, eps, relu)


def _norm_like(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _normed(x, weight)


def _normed_by_library(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same by torch's own operations."""
    mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)  # of which it makes running statistics
    y, _, rstd = torch.native_batch_norm(x, weight, bias, mean, variance, True, 1.0, eps)
    pixels = x.numel() // x.shape[1]
    y = _then(y, added, relu).contiguous(memory_format=LAST)
    return y, mean, variance * ((pixels - 1) / pixels), rstd


def _norm_backward_kernel(
    given: Tensor, y: Tensor, given_gy: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, relu: bool, added: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, gy = (tensor.contiguous(memory_format=LAST) for tensor in (given, y, given_gy))
    weight, mean, rstd = weight.contiguous(), mean.contiguous(), rstd.contiguous()
    gx, gadded, gweight, gbias = _normed_gradients(x, weight, added and relu)
    made = _kernels().spectrum_norm_backward(
        _norm_shape(x.shape, 0.0, relu, torch.get_num_threads()),
        *(tensor.data_ptr() for tensor in (x, y, gy, weight, mean, rstd, gx)),
        gadded.data_ptr() if added and relu else None,
        gweight.data_ptr(),
        gbias.data_ptr(),
    )
    if not made:
        through = torch.where(y <= 0, 0.0, given_gy) if relu else given_gy
        found = _norm_gradients_by_library(through, given, weight, mean, rstd)
        for room, gradient in zip((gx, gweight, gbias), found, strict=True):
            room.copy_(gradient)
        if added and relu:
            gadded.copy_(through)
    return gx, gadded, gweight, gbias


def _norm_gradients_by_library(
    gy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Over (N, C, H·W), since in four dimensions torch's own may be wrong (see `spectrum.conv.norm`)."""
    shape, gy, x = x.shape, gy.flatten(2).contiguous(), x.flatten(2).contiguous()
    nothing = torch.zeros_like(mean), torch.ones_like(mean)
    gx, gweight, gbias = torch.ops.aten.native_batch_norm_backward(
        gy, x, weight, *nothing, mean, rstd, True, 0.0, [True, True, True]
    )
    return gx.view(shape), gweight, gbias


def _norm_backward_like(
    x: Tensor, y: Tensor, gy: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, relu: bool, added: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _normed_gradients(x, weight, added and relu)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, added, weight, bias, ctx.eps, ctx.relu = inputs
    ctx.has_added = added is not None
    y, mean, _, rstd = output
    ctx.set_materialize_grads(False)
    # y only where its sign is needed, and never what was added: both may be changed in place afterwards, as with torch.
    ctx.save_for_backward(x, weight, bias, y if ctx.relu else x, mean, rstd)


def _backward_of_norm(ctx: Any, gy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if gy is None:
        return (None,) * 6
    x, weight, bias, y, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():  # a derivative of this one is wanted: torch's own operations have it
        through = torch.where(y <= 0, 0.0, gy) if ctx.relu else gy
        inputs = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
        again = plain_batch_norm_act(x, None, weight, bias, ctx.eps, False)
        grads = iter(torch.autograd.grad(again, inputs, through, create_graph=True))
        gx, gweight, gbias = (next(grads) if tensor.requires_grad else None for tensor in (x, weight, bias))
        return gx, through if ctx.has_added else None, gweight, gbias, None, None
    gx, gadded, gweight, gbias = _norm_backward(x, y, gy, weight, mean, rstd, ctx.relu, ctx.has_added)
    if not ctx.has_added:
        return gx, None, gweight, gbias, None, None
    return gx, gadded if ctx.relu else gy, gweight, gbias, None, None


def _no_backward(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("batch_norm_act: a second derivative goes through plain_batch_norm_act")


_norm = _operation("batch_norm_act", _norm_kernel, _norm_like, _save_norm, _backward_of_norm)
_norm_backward = _operation(
    "batch_norm_act_backward",
    _norm_backward_kernel,
    _norm_backward_like,
    lambda ctx, inputs, output: None,
    _no_backward,
)


def batch_norm_act_evaluate(
    x_nchw: Tensor,
    added_nchw: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    relu: bool,
) -> Tensor:
    """act(batch norm of x by this mean and variance [+ added]), like x in channels_last; without any gradient."""
    bound = _bound("batch_norm_act_evaluate")
    if bound:
        evaluated: Tensor = bound(x_nchw, added_nchw, weight, bias, mean, variance, eps, relu)
        return evaluated
    x, added = (None if part is None else part.contiguous(memory_format=LAST) for part in (x_nchw, added_nchw))
    assert x is not None
    y = torch.empty_like(x, memory_format=LAST)
    parameters = [part.contiguous() for part in (weight, bias, mean, variance)]
    made = _kernels().spectrum_norm_evaluate(
        _norm_shape(x.shape, eps, relu, torch.get_num_threads()),
        x.data_ptr(),
        None if added is None else added.data_ptr(),
        *(part.data_ptr() for part in parameters),
        y.data_ptr(),
    )
    if not made:
        y = F.batch_norm(x_nchw, mean, variance, weight, bias, False, 0.0, eps)
        y = _then(y, added_nchw, relu).contiguous(memory_format=LAST)
    return y


def plain_batch_norm_act(
    x: Tensor, added: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> Tensor:
    """What `batch_norm_act` computes, by torch's own operations."""
    return _then(F.batch_norm(x, None, None, weight, bias, True, 0.0, eps), added, relu)


def _then(y: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    y = y if added is None else y + added
    return F.relu(y) if relu else y


def _normed(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    moments = (torch.empty_like(weight) for _ in range(3))
    return torch.empty_like(x, memory_format=LAST), *moments  # type: ignore[return-value]


def _normed_gradients(x: Tensor, weight: Tensor, added: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gx = torch.empty_like(x, memory_format=LAST)
    gadded = torch.empty_like(gx) if added else x.new_empty(0)
    return gx, gadded, torch.empty_like(weight), torch.empty_like(weight)


@lru_cache(maxsize=1024)
def _norm_shape(x_shape: tuple[int, ...], eps: float, relu: bool, threads: int) -> Any:
    images, channels, height, width = x_shape
    return ctypes.byref(_Norm(images * height * width, channels, relu, threads, eps))


def _kernels() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None, "callers ask first"
    return kernels

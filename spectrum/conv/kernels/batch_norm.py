"""Compiled kernels for batch normalisation, addition and ReLU in one pass, float32 on the CPU.

They work in channels_last; other layouts are converted. They use as many threads as torch, and are deterministic for a
fixed number of threads. `batch_norm_act`, for training, is differentiable to any order; `batch_norm_act_evaluate` uses
given statistics, for evaluation without gradients.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectrum.conv.kernels import torch_operation
from spectrum.conv.kernels.torch_operation import LAST, operation


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("pixels", "channels")),
        *((name, ctypes.c_int32) for name in ("relu", "threads")),
        ("eps", ctypes.c_float),
    ]


def batch_norm_act(
    x_nchw: Tensor, added_nchw: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute act(batch norm of x [+ added]) by the statistics of this batch.

    Returns y, like x in channels_last, and the batch's mean and biased variance, (C,) each, without a gradient.
    """
    y_nchw, mean, variance, _ = _norm(x_nchw, added_nchw, weight, bias, eps, relu)
    return y_nchw, mean.detach(), variance.detach()


def _norm_kernel(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given, given_added = x, added
    x, weight, bias = x.contiguous(memory_format=LAST), weight.contiguous(), bias.contiguous()
    added = None if added is None else added.contiguous(memory_format=LAST)
    y, mean, variance, rstd = _normed(x, weight)
    made = torch_operation.loaded_kernels().spectrum_norm_forward(
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
    """The same with torch's own operations."""
    mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)  # to update the running statistics
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
    made = torch_operation.loaded_kernels().spectrum_norm_backward(
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
    """Gradients over (N, C, H·W), since torch's own may be wrong in four dimensions (see `spectrum.conv.norm`)."""
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
    # y only where its sign is needed, and never `added`: both may be changed in place afterwards, as with torch.
    ctx.save_for_backward(x, weight, bias, y if ctx.relu else x, mean, rstd)


def _backward_of_norm(ctx: Any, gy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if gy is None:
        return (None,) * 6
    x, weight, bias, y, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a second derivative, use torch's own operations
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


_norm = operation("batch_norm_act", _norm_kernel, _norm_like, _save_norm, _backward_of_norm)
_norm_backward = operation(
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
    """Compute act(batch norm of x [+ added]) by a given mean and variance; channels_last, without a gradient."""
    found = torch_operation.bound("batch_norm_act_evaluate")
    if found:
        evaluated: Tensor = found(x_nchw, added_nchw, weight, bias, mean, variance, eps, relu)
        return evaluated
    x, added = (None if part is None else part.contiguous(memory_format=LAST) for part in (x_nchw, added_nchw))
    assert x is not None
    y = torch.empty_like(x, memory_format=LAST)
    parameters = [part.contiguous() for part in (weight, bias, mean, variance)]
    made = torch_operation.loaded_kernels().spectrum_norm_evaluate(
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
    """The result of `batch_norm_act`, computed with torch's own operations."""
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

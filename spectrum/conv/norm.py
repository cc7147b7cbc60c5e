"""Batch normalisation, addition and ReLU in one pass over memory.

At the per-channel end of the spectrum, normalisation, activation and the residual addition take as long as the
convolutions: each reads and writes whole activations for a few operations per number. Fused, they read them half as
often. Shapes: x_nchw is (N, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spectrum.conv.backends.choice import BACKENDS, choice_for
from spectrum.conv.backends.interface import Backend
from spectrum.conv.backends.tracing import is_channels_last, is_of_fx, is_plain, is_traced, layout_of


class BatchNormAct2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, then the addition of a second tensor if one is given, then ReLU if `relu`.

    Args:
        channels: number of channels, C.
        relu: whether to apply max(0, ·) at the end.
        backend: preferred backend, as for `SegmentedConv2d`; torch computes what it cannot.
        device, dtype: device and type of parameters and buffers, as for torch's own layers.

    Normalises as in Ioffe & Szegedy 2015, arXiv:1502.03167. Function, parameters, buffers and state_dict equal those of
    `nn.BatchNorm2d` followed by `+` and `nn.ReLU`. On the CPU in channels_last it runs as one kernel, in training and
    in evaluation without gradients. Do not use `nn.SyncBatchNorm.convert_sync_batchnorm`: its layer neither adds nor
    applies ReLU. Runs of several ranks share their statistics through `total` instead.

    >>> norm = BatchNormAct2d(16, relu=True)
    >>> x_nchw = torch.randn(8, 16, 4, 4)
    >>> y_nchw = norm(x_nchw, added_nchw=torch.ones(8, 16, 4, 4))
    >>> y_nchw.shape, bool(y_nchw.min() >= 0)
    (torch.Size([8, 16, 4, 4]), True)
    """

    def __init__(
        self,
        channels: int,
        *,
        relu: bool = False,
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, device=device, dtype=dtype)
        self.relu = relu
        self.total: Callable[[Tensor], Tensor] | None = None  # sums over all processes that share a batch
        self.backend = choice_for(backend, prepare=self.weight.device.type == "cpu").name

    def forward(self, x_nchw: Tensor, added_nchw: Tensor | None = None) -> Tensor:
        """Normalise x, add `added_nchw` if given, apply ReLU if asked for; all tensors are (N, C, H, W)."""
        if is_of_fx(x_nchw):
            return self._as_a_whole(x_nchw, () if added_nchw is None else (added_nchw,))
        if self._takes(x_nchw) and (added_nchw is None or _alike(added_nchw, x_nchw)):
            return self._trained(x_nchw, added_nchw) if self.training else self._evaluated(x_nchw, added_nchw)
        y_nchw = self._by_torch(x_nchw)
        y_nchw = y_nchw if added_nchw is None else y_nchw + added_nchw
        return torch.relu(y_nchw) if self.relu else y_nchw

    def _as_a_whole(self, proxy: Any, added: tuple[Any, ...]) -> Tensor:
        """Trace the layer as a leaf of fx, like torch's own layers, so that a traced network follows the mode."""
        called: Tensor = proxy.tracer.create_proxy(
            "call_module", proxy.tracer.path_of_module(self), (proxy, *added), {}
        )
        return called

    def _by_torch(self, x_nchw: Tensor) -> Tensor:
        if self.training and self.total is not None:
            return self._of_all(x_nchw, self.total)
        if self.training and x_nchw.dim() == 4 and 1 in (x_nchw.shape[0], *x_nchw.shape[2:]):
            y_nchw = _in_order(super().forward(_in_order(x_nchw)))
            return y_nchw.contiguous(memory_format=layout_of(x_nchw))
        return super().forward(x_nchw)

    def _of_all(self, x_nchw: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Normalise by the moments over the images of all processes."""
        x, sides = x_nchw if x_nchw.dtype == torch.float64 else x_nchw.float(), (0, 2, 3)
        count = total(x.new_tensor(x.numel() / self.num_features))
        mean = (total(x.sum(sides)) / count).view(1, -1, 1, 1)
        variance = total((x - mean).square().sum(sides)) / count
        self._follow(mean.flatten(), variance * (count / (count - 1)))
        scale = (self.weight * torch.rsqrt(variance + self.eps)).view(1, -1, 1, 1)
        y_nchw: Tensor = (x - mean) * scale + self.bias.view(1, -1, 1, 1)
        return y_nchw.to(x_nchw.dtype)

    def _takes(self, x_nchw: Tensor) -> bool:
        if not self._backend().can_normalise(x_nchw) or is_traced(x_nchw):
            return False
        in_this_mode = self._learns_alone() if self.training else self._only_evaluates()
        return in_this_mode and self._fits(x_nchw)

    def _backend(self) -> Backend:
        return BACKENDS["compiled" if self.backend == "auto" else self.backend]

    def _fits(self, x_nchw: Tensor) -> bool:
        least = self.num_features if self.training else 0  # torch refuses one value per channel with its own message
        of_channels = x_nchw.dim() == 4 and x_nchw.shape[1] == self.num_features
        if not of_channels or x_nchw.numel() <= least or not is_channels_last(x_nchw):
            return False
        shape, kind = x_nchw.shape[1:2], (x_nchw.dtype, x_nchw.device)
        for one in (self.weight, self.bias, self.running_mean, self.running_var):
            # One value per channel, as a kernel reads them; otherwise torch raises its own error.
            if one is None or one.shape != shape or (one.dtype, one.device) != kind or not is_plain(one):
                return False
        return True

    def _learns_alone(self) -> bool:
        """Whether it trains on this process's images alone, with running statistics and a momentum."""
        return self.total is None and self.track_running_stats and self.momentum is not None

    def _only_evaluates(self) -> bool:
        """Whether it evaluates without gradients and outside torch.compile, which fuses these by itself."""
        return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or self.running_var is None)

    def _evaluated(self, x_nchw: Tensor, added_nchw: Tensor | None) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        statistics = self.running_mean, self.running_var
        return self._backend().normalise_by(
            x_nchw, added_nchw, self.weight, self.bias, *statistics, self.eps, self.relu
        )

    def _trained(self, x_nchw: Tensor, added_nchw: Tensor | None) -> Tensor:
        y_nchw, mean, variance = self._backend().normalise(
            x_nchw, added_nchw, self.weight, self.bias, self.eps, self.relu
        )
        count = x_nchw.numel() // self.num_features
        self._follow(mean, variance * (count / (count - 1)))
        return y_nchw

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, if any, with a batch's mean and unbiased variance, (C,) each."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self._momentum()
        plain = not torch.compiler.is_compiling() and mean.device.type == "cpu"
        plain = plain and _are_finite(self.running_mean, self.running_var)
        plain = plain and (momentum < 0.5 or _are_finite(mean, variance))
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            if plain:
                running.lerp_(new, momentum)
            else:  # interpolating between infinities gives NaN, which torch's batch norm avoids
                by_parts = (1 - momentum) * running + momentum * new
                finite = running.isfinite() & new.isfinite()
                running.copy_(torch.where(finite, running.lerp(new, momentum), by_parts))

    def _momentum(self) -> float:
        """The weight of the new batch; without a momentum, that of the mean over all batches, as in torch."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1 / float(self.num_batches_tracked)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"  # type: ignore[no-untyped-call]


def _are_finite(first: Tensor, second: Tensor) -> bool:
    """Whether all values of two vectors are finite, in one call."""
    return math.isfinite(torch.dot(first, second).item())


def _in_order(x_nchw: Tensor) -> Tensor:
    """Copy to the default layout with torch's own strides; the gradient gets them too.

    If a side or the batch is 1, torch's checks of memory layout contradict each other. The backward pass of torch's
    batch norm on the CPU then silently reads one of its inputs in the wrong order.
    """
    return x_nchw.reshape(-1).reshape(x_nchw.shape)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and is_plain(a)

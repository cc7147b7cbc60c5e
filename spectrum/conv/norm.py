"""Batch normalisation with what follows it in one pass over memory.

At the per-channel end of the spectrum normalisation, activation and the residual's addition take as long as the
convolutions: each reads and writes whole activations for a few operations a number. Joined they read them half as
often.
Shapes: x_nchw is (N, C, H, W).
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
    """`nn.BatchNorm2d`, then the addition of a second tensor if one is given, then ReLU if asked for.

    Args:
        channels: C.
        relu: whether max(0, ·) follows.
        backend: what computes it, where it can, as for `SegmentedConv2d`; torch elsewhere.
        device, dtype: of parameters and buffers, as torch's own layers take them.

    Normalisation is that of Ioffe & Szegedy 2015, arXiv:1502.03167. The same function, parameters, buffers and
    state_dict as `nn.BatchNorm2d` followed by `+` and `nn.ReLU`; on the CPU in channels_last it runs as one kernel, in
    training and in evaluation without gradients. `nn.SyncBatchNorm.convert_sync_batchnorm` puts a layer in its place
    that neither adds nor has a ReLU; runs of several ranks share their statistics through `total` instead.

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
        self.total: Callable[[Tensor], Tensor] | None = None  # of sums over all processes that share a batch
        self.backend = choice_for(backend, prepare=self.weight.device.type == "cpu").name

    def forward(self, x_nchw: Tensor, added_nchw: Tensor | None = None) -> Tensor:
        """Both (N, C, H, W), and so is the result."""
        if is_of_fx(x_nchw):
            return self._as_a_whole(x_nchw, () if added_nchw is None else (added_nchw,))
        if self._takes(x_nchw) and (added_nchw is None or _alike(added_nchw, x_nchw)):
            return self._trained(x_nchw, added_nchw) if self.training else self._evaluated(x_nchw, added_nchw)
        y_nchw = self._by_torch(x_nchw)
        y_nchw = y_nchw if added_nchw is None else y_nchw + added_nchw
        return torch.relu(y_nchw) if self.relu else y_nchw

    def _as_a_whole(self, proxy: Any, added: tuple[Any, ...]) -> Tensor:
        """fx is told of the layer as it is of torch's own, so that what it traced follows the mode."""
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
        """By the moments of all processes' images."""
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
        least = self.num_features if self.training else 0  # torch refuses one value per channel, and says why
        of_channels = x_nchw.dim() == 4 and x_nchw.shape[1] == self.num_features
        if not of_channels or x_nchw.numel() <= least or not is_channels_last(x_nchw):
            return False
        shape, kind = x_nchw.shape[1:2], (x_nchw.dtype, x_nchw.device)
        for one in (self.weight, self.bias, self.running_mean, self.running_var):
            # A number for each channel, as a kernel reads them; else torch says what is wrong.
            if one is None or one.shape != shape or (one.dtype, one.device) != kind or not is_plain(one):
                return False
        return True

    def _learns_alone(self) -> bool:
        """From this process's images, with an average that is kept and has a momentum."""
        return self.total is None and self.track_running_stats and self.momentum is not None

    def _only_evaluates(self) -> bool:
        """Gradients are torch's own; a compiler joins these by itself."""
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
        """Move the running statistics, if any are kept, towards a batch's, (C,) each; the variance unbiased."""
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
            else:  # between infinities there is no way half-way, which torch's batch norm does not look for
                by_parts = (1 - momentum) * running + momentum * new
                finite = running.isfinite() & new.isfinite()
                running.copy_(torch.where(finite, running.lerp(new, momentum), by_parts))

    def _momentum(self) -> float:
        """How far the statistics move; without a momentum they are the mean over all batches, as torch has it."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1 / float(self.num_batches_tracked)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"  # type: ignore[no-untyped-call]


def _are_finite(first: Tensor, second: Tensor) -> bool:
    """Of two vectors, in one call."""
    return math.isfinite(torch.dot(first, second).item())


def _in_order(x_nchw: Tensor) -> Tensor:
    """The same numbers in the default layout, with the strides that torch itself gives it; so is the gradient.

    Where a side is 1, or the batch, a tensor may be of both layouts by one of torch's tests and of neither by another,
    and then the backward of torch's batch norm on the CPU reads one of its inputs in the wrong order, silently.
    """
    return x_nchw.reshape(-1).reshape(x_nchw.shape)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and is_plain(a)

"""The interface of a backend: one exact implementation of the operation, and the inputs that it can compute.

Geometry    everything about a convolution except its input and weights
Backend     the class to subclass for your own backend
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from spectrum.conv.arguments import Sides
from spectrum.conv.segments import Run


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution except its input and weights. Two numbers per size, for (height, width)."""

    runs: tuple[Run, ...]
    kernel_size: Sides
    stride: Sides = (1, 1)
    padding: Sides = (0, 0)
    dilation: Sides = (1, 1)

    @property
    def segment_channels(self) -> int:
        """Channels of the widest segment, input or output."""
        return max(max(run.in_size, run.out_size) for run in self.runs)

    @cached_property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each run's weight, (count·out_size, in_size, kh, kw)."""
        return tuple((run.count * run.out_size, run.in_size, *self.kernel_size) for run in self.runs)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The output shape (N, C_out, H', W') for an input (N, C_in, H, W); or both without N."""
        axes, channels = len(self.kernel_size), sum(run.count * run.out_size for run in self.runs)
        sides = zip(shape[-axes:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        size = [(side + 2 * pad - dilation * (k - 1) - 1) // step + 1 for side, k, step, pad, dilation in sides]
        return (*shape[: -1 - axes], channels, *size)

    def fits(self, x_nchw: Tensor, weights: Sequence[Tensor], *, any_type: bool = False) -> bool:
        """Whether a batch and weights fit this geometry and each other; if not, torch's convolution raises the error.

        An image may also be smaller than the kernel, or have no batch. Under autocast types may differ (`any_type`).
        """
        channels = sum(run.count * run.in_size for run in self.runs)
        if x_nchw.dim() != 4 or x_nchw.shape[1] != channels or 0 in x_nchw.shape[2:]:
            return False
        same_type = any_type or all(weight.dtype == x_nchw.dtype for weight in weights)
        alike = same_type and all(weight.device == x_nchw.device for weight in weights)
        return alike and min(self.output_shape(x_nchw.shape)[2:]) > 0


class Backend(ABC):
    """An exact implementation of a segmented convolution. Subclass it for your own; only `convolve` is required.

    All backends compute the same function, also for infinities and NaN; they differ in speed and in the last bits.

    >>> import torch
    >>> from spectrum import SegmentedConv2d, register_backend
    >>> class OneByOne(Backend):
    ...     def convolve(self, x_nchw, weights, geometry):
    ...         g, outputs, channel = geometry, [], 0
    ...         for run, weight in zip(g.runs, weights):
    ...             for kernel in weight.split(run.out_size):
    ...                 part = x_nchw[:, channel : channel + run.in_size]
    ...                 outputs.append(torch.conv2d(part, kernel, None, g.stride, g.padding, g.dilation))
    ...                 channel += run.in_size
    ...         return torch.cat(outputs, dim=1)
    >>> register_backend("one by one", OneByOne)
    >>> conv = SegmentedConv2d(8, 8, segments=3, backend="one by one")
    >>> conv(torch.ones(1, 8, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    def prepare(self) -> None:  # noqa: B027 most backends need nothing
        """Build or load what the backend needs. Raises ValueError if that fails.

        Called once per process: when the first layer that may use it is made on the CPU, or before its first result.
        """

    def refusal_of(self, geometry: Geometry) -> str | None:
        """Why this geometry cannot be computed, as text; None if it can."""
        return None

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        """Why this input cannot be computed although its geometry can, as text; None if it can."""
        return None

    @abstractmethod
    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Convolve inside each segment.

        Args:
            x_nchw: input (N, C_in, H, W).
            weights: one per run of equal segments, (count·out_size, in_size, kh, kw).
            geometry: a geometry that `refusal_of` accepts.

        Returns (N, C_out, H', W'), with the input's type (or autocast's) and device, differentiable. The caller
        converts it to the input's memory layout.
        """

    def can_normalise(self, x_nchw: Tensor) -> bool:
        """Whether `normalise` and `normalise_by` can compute batch normalisation of this input, in channels_last."""
        return False

    def normalise(
        self, x_nchw: Tensor, added_nchw: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise by the batch, in training; then add `added_nchw` if given, then apply ReLU if asked for.

        Returns y (differentiable, shaped like x, channels_last) and the batch's mean and biased variance, (C,)
        each, without a gradient.
        """
        raise NotImplementedError(f"{type(self).__name__}: can_normalise is True without a normalise; define it")

    def normalise_by(
        self,
        x_nchw: Tensor,
        added_nchw: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        relu: bool,
    ) -> Tensor:
        """Normalise by a given mean and variance, for evaluation, without a gradient; then as `normalise`."""
        raise NotImplementedError(f"{type(self).__name__}: can_normalise is True without a normalise_by; define it")

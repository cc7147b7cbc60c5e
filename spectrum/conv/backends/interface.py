"""What a backend is: one exact way to compute the operation, and what it can compute.

Geometry    what of a convolution is known before its input
Backend     to subclass for a backend of one's own
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from spectrum.conv.arguments import Pair
from spectrum.conv.segments import Run


@dataclass(frozen=True)
class Geometry:
    """What of a convolution is known before its input."""

    runs: tuple[Run, ...]
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def segment_channels(self) -> int:
        """Channels of the widest segment, on either side."""
        return max(max(run.in_size, run.out_size) for run in self.runs)

    @cached_property
    def weight_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(count·out_size, in_size, kh, kw) of each run."""
        return tuple((run.count * run.out_size, run.in_size, *self.kernel_size) for run in self.runs)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(N, C_in, H, W) to (N, C_out, H', W'), or both without N."""
        channels = sum(run.count * run.out_size for run in self.runs)
        sides = zip(shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        size = [(side + 2 * pad - dilation * (k - 1) - 1) // step + 1 for side, k, step, pad, dilation in sides]
        return (*shape[:-3], channels, *size)


class Backend(ABC):
    """An exact way to compute a segmented convolution. For one of your own, subclass it; only `convolve` is needed.

    All backends compute the same function, for infinite inputs and NaN too; they differ in speed and in the last bits.

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
        """Build or load what is needed. Raises ValueError where that cannot be had.

        Called once per process: when the first layer that may use it is made on the CPU, or before its first result.
        """

    def refusal_of(self, geometry: Geometry) -> str | None:
        """Why no convolution of this geometry can be computed, as text; None for what can."""
        return None

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        """Why this input cannot be taken, beside its geometry; None for what can."""
        return None

    @abstractmethod
    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """The convolution inside each segment.

        Args:
            x_nchw: (N, C_in, H, W).
            weights: one per run of equal segments, (count·out_size, in_size, kh, kw).
            geometry: that was not refused.

        Returns (N, C_out, H', W'), of the input's type (or that of autocast) and on its device; another memory layout
        than the input's is converted. Differentiable.
        """

    def can_normalise(self, x_nchw: Tensor) -> bool:
        """Whether it computes batch normalisation of this input, in channels_last, by the next two methods."""
        return False

    def normalise(
        self, x_nchw: Tensor, added_nchw: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Batch normalisation in training, then the addition of a tensor, then ReLU, where asked for; differentiable.

        Returns y like x in channels_last, and the batch's mean and biased variance, (C,) each, without a gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} says that it can normalise, and has no normalise")

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
        """The same by a given mean and variance, in evaluation; without a gradient."""
        raise NotImplementedError(f"{type(self).__name__} says that it can normalise, and has no normalise_by")

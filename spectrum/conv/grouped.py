"""One convolution of the operation, spatial or 1×1: a grouped convolution whose groups may differ in size."""

# Annotations are not strings here: modules traced by fx keep them, and are pickled with them.

import math

import torch
from torch import Tensor, nn

from spectrum.conv.arguments import LARGEST, InputError
from spectrum.conv.backends.choice import BACKENDS, Choice, choose, refusal
from spectrum.conv.backends.derived import Folded, Window, convolve, fold
from spectrum.conv.backends.interface import Geometry
from spectrum.conv.backends.native import native
from spectrum.conv.backends.table import NOTHING, Measured
from spectrum.conv.backends.tracing import is_of_fx, is_plain, is_traced


class GroupedConvNd(nn.Module):
    """A convolution inside each segment, by torch; segments may differ in size. One weight per run of equal segments.

    It has one, two or three spatial axes, as many as the kernel.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        shapes = self.geometry.weight_shapes
        if any(math.prod(shape) > LARGEST for shape in shapes):  # torch may count further, but no machine would hold it
            raise ValueError(
                f"in_channels, out_channels, kernel_size: a weight of shape {max(shapes, key=math.prod)} has more than "
                f"{LARGEST} numbers; give smaller ones, or more segments"
            )
        self.weights = nn.ParameterList(torch.empty(shape, device=device, dtype=dtype) for shape in shapes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights anew, as at construction."""
        for weight in self.weights:
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound)

    @property
    def largest_fan_in(self) -> int:
        return max(int(weight[0].numel()) for weight in self.weights)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C_in, …) to (N, C_out, …), with as many spatial axes as the kernel has."""
        return native(x, self._checked_weights(x), self.geometry)

    def _checked_weights(self, x: Tensor) -> list[Tensor]:
        """The weights. Raises InputError for weights of the wrong shape."""
        weights = list(self.weights)
        if not (is_of_fx(x) or torch.jit.is_tracing()):  # type: ignore[attr-defined, no-untyped-call]
            for weight, shape in zip(weights, self.geometry.weight_shapes, strict=True):
                if weight.shape != shape:  # kernels would read beyond its end
                    raise InputError(f"a weight has shape {tuple(weight.shape)}; expected {shape}")
        return weights

    def extra_repr(self) -> str:
        return _described(self.geometry)


class GroupedConv2d(GroupedConvNd):
    """The same with two spatial axes, computed by the backend that `choice` chooses."""

    measured: Measured = NOTHING  # by `tune`, for this layer

    def __init__(
        self,
        geometry: Geometry,
        *,
        choice: Choice,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        why = BACKENDS[choice.name].refusal_of(geometry) if choice.binding else None
        if why is not None:
            raise ValueError(
                f"backend={choice.name!r}: {why}; this layer is {_described(geometry, choice)}; leave backend out"
            )
        super().__init__(geometry, device=device, dtype=dtype)
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C_in, H, W) to (N, C_out, H', W').

        Raises InputError for an input that a binding backend cannot compute, and for weights of the wrong shape.
        """
        weights = self._checked_weights(x)
        return BACKENDS[self._chosen(x, weights)].convolve(x, weights, self.geometry)

    def backend_for(self, x_nchw: Tensor) -> str:
        """The name of the backend that computes this input. Raises InputError if a binding one cannot."""
        return self._chosen(x_nchw, list(self.weights))

    def _chosen(self, x_nchw: Tensor, weights: list[Tensor]) -> str:
        name, binding = self.choice
        if not all(map(is_plain, weights)):
            return "native"
        if not binding or is_traced(x_nchw) or x_nchw.is_meta:
            return choose(name, x_nchw, self.geometry, self.measured)
        why = refusal(name, x_nchw, self.geometry)
        if why is not None:
            raise InputError(
                f"input of type {x_nchw.dtype} on {x_nchw.device}: backend={name!r} cannot compute it: {why}; "
                "leave backend out, or use prefer_backend"
            )
        return name

    def folded(self, x_nchw: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Convolve with `first`, then `second`, as one; dense weights (mid, in, ·, ·) and (out, mid, ·, ·), one 1×1."""
        g = self.geometry
        with torch.no_grad():
            kernel = fold(first, second)
        return convolve(Folded(Window(g.stride, g.padding, g.dilation)), x_nchw, (first, second), kernel)

    def extra_repr(self) -> str:
        return _described(self.geometry, self.choice)


def _described(g: Geometry, choice: Choice | None = None) -> str:
    runs = " + ".join(f"{run.count}×({run.in_size}→{run.out_size})" for run in g.runs)
    backend = f", backend={choice.name!r}" if choice is not None and choice.binding else ""
    return f"{runs}, stride={g.stride}, padding={g.padding}, dilation={g.dilation}{backend}"

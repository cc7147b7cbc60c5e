"""The modules between the 1×1 and the spatial convolution: batch normalisation, activation, channel shuffle."""

# Annotations are not strings here: modules traced by fx keep them, and are pickled with them.

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from spectrum.conv.arguments import choice
from spectrum.conv.backends.tracing import is_of_fx, layout_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class Elementwise(nn.Module):
    """A module that applies a function of a tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_nchw: Tensor) -> Tensor:
        return self.function(x_nchw)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def named_activation(activation: Any) -> str | nn.Module:
    """The module for an activation, given by name, module, class or function. Raises ValueError for anything else."""
    if activation is None or isinstance(activation, nn.Identity):
        return "none"
    if isinstance(activation, str):
        return choice("activation", activation, tuple(ACTIVATIONS))
    makes = activation.func if isinstance(activation, partial) else activation
    if isinstance(makes, type) and issubclass(makes, nn.Module):
        by_class = {kind: name for name, kind in ACTIVATIONS.items()}
        if activation in by_class:
            return by_class[activation]
        try:
            activation = activation()
        except TypeError as error:
            raise ValueError(
                f"activation={makes.__name__}: cannot be made without arguments ({error}); give an instance of it"
            ) from None
    if isinstance(activation, nn.Module):
        return activation
    if isinstance(makes, type) or not callable(activation):
        raise ValueError(
            f"activation={activation!r}: expected a name ({', '.join(map(repr, ACTIVATIONS))}), a module such as "
            "nn.ReLU(), or a function of a tensor"
        )
    return Elementwise(activation)


def between(
    channels: int, norm: bool, activation: str | nn.Module, make_norm: Callable[[int, bool], tuple[nn.Module, ...]]
) -> nn.Module:
    """The module between the 1×1 and the spatial convolution.

    `make_norm(channels, relu)` makes batch normalisation, with ReLU after it if asked for.
    """
    if norm and activation == "relu":
        return nn.Sequential(*make_norm(channels, True))
    last = ACTIVATIONS[activation]() if isinstance(activation, str) else activation
    return nn.Sequential(*(make_norm(channels, False) if norm else (nn.Identity(),)), last)


def shuffled(x: Tensor, permutation: Tensor, channel_axis: int) -> Tensor:
    """Reorder the channels, keeping the memory layout."""
    y = x.index_select(channel_axis, permutation)
    if is_of_fx(x):
        return y
    return y.contiguous(memory_format=layout_of(x))  # index_select loses the layout

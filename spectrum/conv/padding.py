"""Padding that torch's convolutions do not apply themselves: TensorFlow's "same", and anything but zeros."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from spectrum.conv.arguments import Pair, Sides
from spectrum.conv.backends.tracing import layout_of

Amounts = tuple[Pair, ...]
"""Pixels before and after each spatial axis, in the order of the axes."""


def same_padding(side: int, kernel_size: int, stride: int, dilation: int = 1) -> Pair:
    """Pixels of padding before and after each side, for ⌈side/stride⌉ windows.

    >>> same_padding(74, 3, 2), same_padding(37, 3, 2), same_padding(8, 3, 1)
    ((0, 1), (1, 1), (1, 1))
    """
    windows = -(-side // stride)
    needed = max((windows - 1) * stride + dilation * (kernel_size - 1) + 1 - side, 0)
    return needed // 2, needed - needed // 2


def is_as_torchs(kernel_size: Sides, stride: Sides) -> bool:
    """Whether that padding is symmetric for inputs of every size, like torch's own."""
    return all(step == 1 for step in stride) and all(k % 2 for k in kernel_size)


def same_amounts(x: Tensor, kernel_size: Sides, stride: Sides, dilation: Sides) -> Amounts:
    """TensorFlow's "same" padding of an input (…, its spatial axes): zeros that the windows need, an odd one last."""
    windows = zip(x.shape[-len(kernel_size) :], kernel_size, stride, dilation, strict=True)
    return tuple(same_padding(*one) for one in windows)


def pad_same(x_nchw: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair = (1, 1), value: float = 0.0) -> Tensor:
    """Pad (N, C, H, W) to (N, C, H', W') in this manner, filled with `value`."""
    vertical, horizontal = same_amounts(x_nchw, kernel_size, stride, dilation)
    return pad(x_nchw, (*horizontal, *vertical), value=value)


def pad_in_mode(x: Tensor, amounts: Amounts, mode: str) -> Tensor:
    """Pad the last axes by `amounts`, with a mode of `nn.Conv2d`, in the input's memory layout."""
    flat = [pixels for before_and_after in reversed(amounts) for pixels in before_and_after]
    y = pad(x, flat, mode="constant" if mode == "zeros" else mode)
    return y.contiguous(memory_format=layout_of(x)) if mode == "circular" else y  # which loses the layout


def pad_same_in_mode(x: Tensor, kernel_size: Sides, stride: Sides, dilation: Sides, mode: str) -> Tensor:
    """Pad (N, C, …) as TensorFlow's "same" does, with a mode of `nn.Conv2d`."""
    return pad_in_mode(x, same_amounts(x, kernel_size, stride, dilation), mode)


def padding_refusal(sides: Sides, amounts: Amounts, mode: str) -> str | None:
    """Why an input with these sides cannot be padded in this mode, as text; None if it can."""
    spare = {"reflect": 1, "circular": 0}.get(mode)
    if spare is None:
        return None
    for side, (before, after) in zip(sides, amounts, strict=True):
        if max(before, after) > side - spare:
            least = max(before, after) + spare
            return (
                f"padding_mode={mode!r} with padding {max(before, after)} needs sides of at least {least}, not {side}"
            )
    return None

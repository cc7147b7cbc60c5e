"""TensorFlow's "same" padding: as many zeros as the windows need, an odd one at the bottom and the right."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from spectrum.conv.arguments import Pair


def same_padding(side: int, kernel_size: int, stride: int, dilation: int = 1) -> Pair:
    """Pixels of padding before and after each side, for ⌈side/stride⌉ windows.

    >>> same_padding(74, 3, 2), same_padding(37, 3, 2), same_padding(8, 3, 1)
    ((0, 1), (1, 1), (1, 1))
    """
    windows = -(-side // stride)
    needed = max((windows - 1) * stride + dilation * (kernel_size - 1) + 1 - side, 0)
    return needed // 2, needed - needed // 2


def is_as_torchs(kernel_size: Pair, stride: Pair) -> bool:
    """Whether that padding is symmetric for inputs of every size, like torch's own."""
    return stride == (1, 1) and all(k % 2 for k in kernel_size)


def pad_same(x_nchw: Tensor, kernel_size: Pair, stride: Pair, dilation: Pair = (1, 1), value: float = 0.0) -> Tensor:
    """Pad (N, C, H, W) to (N, C, H', W') in this manner, filled with `value`."""
    sides = zip(x_nchw.shape[-2:], kernel_size, stride, dilation, strict=True)
    vertical, horizontal = (same_padding(*side) for side in sides)
    return pad(x_nchw, (*horizontal, *vertical), value=value)

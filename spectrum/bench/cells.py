"""Layers that `spectrum bench op` measures: inputs, segments, windows and layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

Shape = tuple[int, int, int, int]
Layout = Literal["channels_last", "contiguous"]
STANDARD: tuple[Shape, ...] = ((32, 128, 16, 16), (16, 256, 16, 16), (64, 64, 32, 32), (8, 728, 19, 19))
ON_CUDA: tuple[Shape, ...] = ((256, 128, 32, 32), (64, 728, 19, 19))
WIDTHS = (32, 16, 8, 4, 2, 1)  # channels per segment
WIDTHS_ON_CUDA = (8, 4, 2, 1)  # besides 1 segment: fewer, since compilers take most of the time
UNEVEN = (3, 100)  # segments of 128 channels
LAYOUTS: dict[Layout, torch.memory_format] = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}


@dataclass(frozen=True)
class Window:
    """Side of the kernel, stride and dilation."""

    kernel: int = 3
    stride: int = 1
    dilation: int = 1

    def __str__(self) -> str:
        """In words.

        >>> str(Window()), str(Window(5, 2)), str(Window(3, 1, 2))
        ('3×3', '5×5, stride 2', '3×3, dilation 2')
        """
        steps = [f"stride {self.stride}"] if self.stride > 1 else []
        spread = [f"dilation {self.dilation}"] if self.dilation > 1 else []
        return ", ".join([f"{self.kernel}×{self.kernel}", *steps, *spread])


PLAIN = Window()
OTHERS = (Window(3, 2), Window(3, 1, 2), Window(5), Window(7))  # besides the plain 3×3, in the standard set
EVERY = tuple(  # a 1×1 has no dilation
    Window(*sizes) for sizes in product((1, 3, 5, 7), (1, 2), (1, 2)) if sizes[0] > 1 or sizes[2] == 1
)


@dataclass(frozen=True)
class Cell:
    """One layer of the benchmark: C channels in and out, without a 1×1."""

    shape: Shape
    segments: int
    window: Window = PLAIN
    layout: Layout = "channels_last"

    @property
    def channels(self) -> int:
        """Channels of input and output."""
        return self.shape[1]

    def __str__(self) -> str:
        layout = "" if self.layout == "channels_last" else ", default layout"
        return f"{'×'.join(map(str, self.shape))} {self.window}{layout} {self.segments:4d} segments"


def standard(device: str = "cpu", shapes: Sequence[Shape] | None = None) -> list[Cell]:
    """The standard cells, in channels_last.

    Args:
        device: "cpu" or "cuda".
        shapes: shapes of the input, (N, C, H, W); by default the standard ones of the device.

    The 3×3 is measured at every divisor of C, and at a few numbers of segments that give uneven sizes; on CUDA at a few
    divisors. Other windows are measured on the first standard shape of the CPU only.
    """
    asked = shapes or (STANDARD if device == "cpu" else ON_CUDA)
    plain = [Cell(shape, count) for shape in asked for count in _counts(shape[1], device)]
    if device != "cpu" or shapes is not None:
        return plain
    return plain + [Cell(STANDARD[0], STANDARD[0][1] // width, window) for window in OTHERS for width in WIDTHS]


def every(shapes: Sequence[Shape] | None = None) -> Iterator[Cell]:
    """Every combination of kernel (1, 3, 5, 7), stride (1, 2), dilation (1, 2), channels per segment and layout.

    Args:
        shapes: shapes of the input, (N, C, H, W); by default one of 128 channels and one of 64. Numbers of channels per
            segment, from 32 down to 1, are those that divide C.
    """
    for shape in shapes or (STANDARD[0], STANDARD[2]):
        widths = [width for width in WIDTHS if shape[1] % width == 0]
        for window, layout, width in product(EVERY, LAYOUTS, widths):
            yield Cell(shape, shape[1] // width, window, layout)


def _counts(channels: int, device: str) -> list[int]:
    """Numbers of segments of the 3×3."""
    counts = {s for s in range(1, channels + 1) if channels % s == 0}
    if device != "cpu":
        counts &= {1, *(channels // width for width in WIDTHS_ON_CUDA)}
    return sorted(counts | {*UNEVEN} if channels == 128 else counts)

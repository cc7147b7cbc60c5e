"""Shape classes, for which a measured choice of backend is kept, and the choice for an input. Nothing is timed here.

A choice depends on everything that changes which backend is fastest: the layer's geometry, the height and width of its
input, its memory layout, types and device; and the number of images, to the nearest power of two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from spectrum.conv.arguments import Pair
from spectrum.conv.backends.interface import Geometry
from spectrum.conv.backends.tracing import is_channels_last
from spectrum.conv.segments import Run

Case = tuple[int, int, bool, torch.dtype, torch.dtype | None, str]
"""Of an input: height, width, whether in channels_last, its type, the type of autocast if active, kind of device."""

Measured = Mapping[Case, tuple[tuple[int, str], ...]]
"""Of one layer: for each case, numbers of images and the backend that was fastest for each."""

NOTHING: Measured = {}

_PAIRS = r"k(\d+)x(\d+) s(\d+)x(\d+) p(\d+)x(\d+) d(\d+)x(\d+)"
_TEXT = re.compile(
    rf"(?P<runs>\S+) {_PAIRS}, (?P<images>\d+) of (?P<height>\d+)x(?P<width>\d+), "
    r"(?P<layout>channels_last|contiguous), (?P<dtype>\w+)(?: as (?P<autocast>\w+))?, (?P<device>[a-z]+)"
)
_RUN = re.compile(r"(\d+)x\((\d+)-(\d+)\)")


@dataclass(frozen=True)
class ShapeClass:
    """What a measured choice is kept for. `str` gives the text by which files name it.

    >>> layer = Geometry((Run(64, 2, 2),), (3, 3), padding=(1, 1))
    >>> one = ShapeClass(layer, 32, (16, 16, True, torch.float32, None, "cpu"))
    >>> str(one)
    '64x(2-2) k3x3 s1x1 p1x1 d1x1, 32 of 16x16, channels_last, float32, cpu'
    >>> ShapeClass.of_text(str(one)) == one
    True
    """

    geometry: Geometry
    images: int
    """A power of two."""
    case: Case

    def __str__(self) -> str:
        g, (height, width, last, dtype, autocast, device) = self.geometry, self.case
        runs = "+".join(f"{run.count}x({run.in_size}-{run.out_size})" for run in g.runs)
        pairs = zip("kspd", (g.kernel_size, g.stride, g.padding, g.dilation), strict=True)
        sizes = " ".join(f"{letter}{a}x{b}" for letter, (a, b) in pairs)
        types = _named(dtype) if autocast is None else f"{_named(dtype)} as {_named(autocast)}"
        layout = "channels_last" if last else "contiguous"
        return f"{runs} {sizes}, {self.images} of {height}x{width}, {layout}, {types}, {device}"

    @classmethod
    def of_text(cls, text: str) -> Self:
        """The class that `str` wrote. Raises ValueError for any other text."""
        found = _TEXT.fullmatch(text)
        types = [] if found is None else [getattr(torch, found[name] or "", None) for name in ("dtype", "autocast")]
        runs = [] if found is None else [_RUN.fullmatch(run) for run in found["runs"].split("+")]
        if found is None or None in runs or not isinstance(types[0], torch.dtype):
            raise ValueError(f"{text!r}: not a shape class")
        numbers = [int(number) for number in found.groups()[1:9]]
        kernel, stride, padding, dilation = ((numbers[i], numbers[i + 1]) for i in range(0, 8, 2))
        geometry = Geometry(
            tuple(Run(*map(int, run.groups())) for run in runs if run is not None), kernel, stride, padding, dilation
        )
        last = found["layout"] == "channels_last"
        case = (int(found["height"]), int(found["width"]), last, types[0], types[1], found["device"])
        return cls(geometry, int(found["images"]), case)

    @property
    def side(self) -> Pair:
        """Height and width of the input."""
        return self.case[:2]

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return sum(run.count * run.in_size for run in self.geometry.runs)

    @property
    def numbers(self) -> int:
        """How many numbers the input has."""
        return self.images * self.channels * math.prod(self.side)


def class_of(x_nchw: Tensor, geometry: Geometry) -> ShapeClass:
    """The shape class of an input (N, C, H, W) of a layer."""
    images = max(1, int(x_nchw.shape[0]))
    return ShapeClass(geometry, 2 ** round(math.log2(images)), case_of(x_nchw))


def case_of(x_nchw: Tensor) -> Case:
    """Everything about an input (N, C, H, W) that decides a choice, but the number of its images."""
    kind = x_nchw.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return x_nchw.shape[2], x_nchw.shape[3], is_channels_last(x_nchw), x_nchw.dtype, autocast, kind


def of_layer(geometry: Geometry, backends: Mapping[ShapeClass, str]) -> Measured:
    """The part of a table that is about one layer, as `lookup` takes it."""
    found: dict[Case, list[tuple[int, str]]] = {}
    for one, backend in backends.items():
        if one.geometry == geometry:
            found.setdefault(one.case, []).append((one.images, backend))
    return {case: tuple(sorted(entries)) for case, entries in found.items()}


def lookup(measured: Measured, x_nchw: Tensor) -> str | None:
    """The backend that was measured for an input; None if nothing was.

    If several numbers of images were measured, the nearest by ratio counts, so that evaluation, whose batches have
    another size, has the backend of training.
    """
    entries = measured.get(case_of(x_nchw)) if x_nchw.dim() == 4 else None
    if not entries:
        return None
    if len(entries) == 1:  # as in a network that trains on one size of batch: the number of images is not looked at
        return entries[0][1]
    images = max(1, x_nchw.shape[0])
    return min(entries, key=lambda entry: max(entry[0] / images, images / entry[0]))[1]


# The shipped guess for the CPU, measured by `spectrum bench op` on processors of these two makers: up to how many
# channels per segment the compiled kernels are at least as fast as torch. On small inputs torch is faster above them.
WIDEST_COMPILED = {"AuthenticAMD": 32, "GenuineIntel": 12}
WIDEST_ELSEWHERE = 8


def widest_compiled(maker: str) -> int:
    """Most channels per segment for which the compiled kernels are the guess, by the processor's maker.

    >>> widest_compiled("AuthenticAMD"), widest_compiled("")
    (32, 8)
    """
    return WIDEST_COMPILED.get(maker, WIDEST_ELSEWHERE)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

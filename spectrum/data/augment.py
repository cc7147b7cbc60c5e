"""Batches of a training run: shuffled, augmented, normalised.

The order depends only on seed and epoch, the augmentation of an image only on seed, epoch and image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrum.data.pixels import in_turn
from spectrum.data.splits import Split


def batches(
    data: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first: int = 0,
    flip: bool = False,
    shift: int = 0,
    cutout: int = 0,
    device: torch.device | str = "cpu",
    part: Callable[[Tensor], Tensor] = lambda chosen: chosen,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch: float32 (N, C, H, W) in channels_last, and labels (N,).

    The order depends only on (seed, epoch), the augmentation of an image only on (seed, epoch, image). The last,
    smaller batch is left out, unless it is the only one. The epoch starts with batch number `first`, from 0. `part`
    selects images of each batch; only these are read.
    """
    count = len(data.train_y)
    batch_size = min(batch_size, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    height, width = data.train_x.shape[2:]
    drawn = draw_augmentation(seed, epoch, count, (height, width), shift=shift)
    mean, std = (t.repeat(height * width).to(device) for t in (data.mean, data.std))  # one long loop, not many
    parts = [part(whole) for whole in order[: count - count % batch_size].split(batch_size)[first:]]
    for chosen, x_nhwc in zip(parts, in_turn(data.train_x, parts), strict=True):
        if flip or shift:
            x_nhwc = move(x_nhwc, drawn.mirrored[chosen] & flip, drawn.down[chosen], drawn.right[chosen], shift)
        pixels = x_nhwc.view(len(chosen), -1).to(device).to(torch.float32)  # faster than torch's mixed subtraction
        x_nhwc = pixels.sub_(mean).div_(std).view(x_nhwc.shape)
        if cutout:
            cut = square((height, width), drawn.cut_row[chosen], drawn.cut_column[chosen], cutout)
            x_nhwc.masked_fill_(cut.unsqueeze(3).to(device), 0.0)
        yield x_nhwc.permute(0, 3, 1, 2), data.train_y[chosen].to(device, non_blocking=True)


@dataclass(frozen=True)
class Drawn:
    """The augmentation of each image in one epoch: (N,) each."""

    mirrored: Tensor  # whether, if images are flipped at all
    down: Tensor  # first row of the window in the padded image, 0 to 2 · shift
    right: Tensor  # first column
    cut_row: Tensor  # centre of the cutout
    cut_column: Tensor


def draw_augmentation(seed: int, epoch: int, count: int, size: tuple[int, int], *, shift: int) -> Drawn:
    """Draw the augmentation of the images 0 … count − 1, of `size` (H, W)."""
    choices = (2, 2 * shift + 1, 2 * shift + 1, *size)
    numbers = torch.arange(count)
    mirrored, *others = (_draw(seed, epoch, numbers, stream, most) for stream, most in enumerate(choices))
    return Drawn(mirrored == 1, *others)


def move(x_nhwc: Tensor, mirrored: Tensor, down: Tensor, right: Tensor, shift: int) -> Tensor:
    """Pad images by `shift` zeros on each side, crop windows of the old size, and mirror some.

    Copies row by row, from a view in which each pixel of the images starts a window's row; then mirrors whole windows.
    """
    count, height, width, channels = x_nhwc.shape
    padded = torch.nn.functional.pad(x_nhwc, (0, 0, *(shift,) * 4))
    padded_height, padded_width = height + 2 * shift, width + 2 * shift
    rows = padded.as_strided((count * padded_height * padded_width - width + 1, width * channels), (channels, 1))
    first = (torch.arange(count) * padded_height + down) * padded_width + right
    starts = first.view(-1, 1) + torch.arange(0, height * padded_width, padded_width)
    moved = rows.index_select(0, starts.flatten()).view(count, -1)
    which = mirrored.nonzero().flatten()
    turned = moved.index_select(0, which).view(len(which), *x_nhwc.shape[1:]).flip(2).flatten(1)
    # torch copies single bytes four times as slowly as whole numbers
    unit = torch.int32 if moved.shape[1] % 4 == 0 and moved.dtype == torch.uint8 else moved.dtype
    moved.view(unit).index_copy_(0, which, turned.view(unit))
    return moved.view(x_nhwc.shape)


def square(size: tuple[int, int], row: Tensor, column: Tensor, side: int) -> Tensor:
    """A mask (N, H, W), true in the square of `side` pixels around (row, column), cropped to the image.

    For cutout (DeVries & Taylor 2017, arXiv:1708.04552), whose squares may also cross the border.
    """
    inside = []
    for length, middle in zip(size, (row, column), strict=True):
        offset = torch.arange(length) - middle.view(-1, 1) + side // 2
        inside.append((offset >= 0) & (offset < side))
    return inside[0].unsqueeze(2) & inside[1].unsqueeze(1)


def _draw(seed: int, epoch: int, numbers: Tensor, stream: int, choices: int) -> Tensor:
    """Draw one whole number below `choices` per image, by hashing (seed, epoch, image, stream).

    The mixing is SplitMix64's finaliser (Steele, Lea & Flood 2014), on int64, whose products wrap.
    """
    h = numbers.to(torch.int64)
    for part in (seed, epoch, stream):
        h = h + _wrapped((part + 1) * 0x9E3779B97F4A7C15)
        h = (h ^ ((h >> 30) & (2**34 - 1))) * _wrapped(0xBF58476D1CE4E5B9)
        h = (h ^ ((h >> 27) & (2**37 - 1))) * _wrapped(0x94D049BB133111EB)
        h = h ^ ((h >> 31) & (2**33 - 1))
    return ((h >> 16) & 0xFFFFFFFF) % choices


def _wrapped(value: int) -> int:
    """A whole number modulo 2^64, as a signed one."""
    return (value + 2**63) % 2**64 - 2**63

"""Split C channels into S independent segments.

A segment is a run of neighbouring channels that the spatial convolution mixes only with each other. 1 segment is a
regular convolution, one segment per channel a depthwise convolution, 3 or 4 an Inception module. C need not be
divisible by S; sizes then differ by at most one, the larger ones first. Pure functions, without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from spectrum.conv.arguments import as_tuple, as_whole

PER_CHANNEL: Literal["per_channel"] = "per_channel"

Segments = int | Literal["per_channel"] | Sequence[int]
"""A number of segments, `"per_channel"`, or the explicit sizes of all segments."""


@dataclass(frozen=True)
class Run:
    """`count` neighbouring segments of equal shape, computed by one grouped convolution."""

    count: int
    in_size: int  # input channels of each segment
    out_size: int  # output channels of each segment


def segment_sizes(channels: int, segments: Segments) -> tuple[int, ...]:
    """Sizes of the segments into which `channels` are split, in channel order.

    Args:
        channels: number of channels, C.
        segments: a number from 1 to C, `"per_channel"`, or the sizes themselves.

    >>> segment_sizes(128, 3)
    (43, 43, 42)
    >>> segment_sizes(4, "per_channel")
    (1, 1, 1, 1)
    >>> segment_sizes(256, (96, 96, 64))
    (96, 96, 64)

    Raises ValueError when there are fewer than 1 or more than `channels` segments, or sizes do not sum to `channels`.
    """
    asked = plain_segments(segments)
    if asked == PER_CHANNEL:
        return (1,) * channels
    if not isinstance(asked, int):
        return _explicit_sizes(channels, asked)
    _check_count(channels, asked)
    size, larger = divmod(channels, asked)
    return (size + 1,) * larger + (size,) * (asked - larger)


def plain_segments(segments: Segments) -> int | Literal["per_channel"] | tuple[int, ...]:
    """The segments in Python's own types; numpy's integers and arrays are converted, True and False are refused.

    >>> plain_segments([96, 96, 64])
    (96, 96, 64)

    Raises ValueError for anything but a number, `"per_channel"` or a list of sizes.
    """
    if isinstance(segments, str) and segments == PER_CHANNEL:
        return PER_CHANNEL
    number, sizes = as_whole(segments), as_tuple(segments)
    if number is not None:
        return number
    if sizes is None:
        raise ValueError(f'segments={segments!r}: expected a number, "per_channel", or a list of sizes')
    wholes = [as_whole(size) for size in sizes]
    plain = tuple(whole for whole in wholes if whole is not None and whole >= 1)
    if not sizes or len(plain) != len(sizes):
        raise ValueError(f"segments={list(sizes)}: a list of sizes needs whole numbers of at least 1")
    return plain


def clamp_segments(channels: int, segments: int | Literal["per_channel"]) -> int:
    """The number of segments limited to what a layer can have: at most one per channel.

    >>> clamp_segments(32, 8), clamp_segments(32, 64), clamp_segments(32, "per_channel")
    (8, 32, 32)
    """
    return channels if segments == PER_CHANNEL else min(segments, channels)


def segments_of_width(channels: int, width: int) -> int:
    """The number of segments of about `width` channels each: channels / width rounded to nearest, at least 1.

    >>> segments_of_width(128, 4), segments_of_width(42, 4), segments_of_width(2, 4)
    (32, 11, 1)

    Raises ValueError for a width below 1.
    """
    if width < 1:
        raise ValueError(f"segment_width={width}: a segment has at least 1 channel; try 1, 2 or 4")
    return max(1, (2 * channels + width) // (2 * width))


def segment_runs(in_sizes: Sequence[int], out_sizes: Sequence[int]) -> tuple[Run, ...]:
    """Join neighbouring segments of equal shape into runs."""
    assert len(in_sizes) == len(out_sizes)
    shapes = groupby(zip(in_sizes, out_sizes, strict=True))
    return tuple(Run(len(list(same)), *shape) for shape, same in shapes)


def proportional_sizes(channels: int, shares: Sequence[int]) -> tuple[int, ...]:
    """Sizes of segments in given proportions, in channel order: the nearest whole numbers, at least 1 channel each.

    The largest remainders are rounded up first, ties by position. With fewer channels than shares, one segment per
    channel.

    >>> proportional_sizes(128, (6, 3, 2, 1)), proportional_sizes(8, (6, 3, 2, 1)), proportional_sizes(2, (6, 3, 2, 1))
    ((64, 32, 21, 11), (4, 2, 1, 1), (1, 1))

    Raises ValueError for an empty list of shares, or a share below 1.
    """
    if not shares or min(shares) < 1:
        raise ValueError(f"segment_shares={list(shares)}: expected whole numbers of at least 1, such as [3, 2, 1]")
    if channels <= len(shares):
        return (1,) * channels
    whole, spare = sum(shares), channels - len(shares)  # one channel each first
    quotas = [channels * share / whole - 1 for share in shares]
    sizes = [max(0, int(quota)) for quota in quotas]
    while sum(sizes) > spare:  # if several had less than one channel
        sizes[max((s for s in range(len(sizes)) if sizes[s]), key=lambda s: sizes[s] - quotas[s])] -= 1
    while sum(sizes) < spare:
        sizes[max(range(len(sizes)), key=lambda s: quotas[s] - sizes[s])] += 1
    return tuple(size + 1 for size in sizes)


def interleaved(channels: int, segments: int) -> tuple[int, ...]:
    """The channel shuffle as a permutation: position c gets a channel of segment c mod `segments`.

    As in ShuffleNet (Zhang et al. 2018, arXiv:1707.01083), also for segments of unequal size. Entry c is the channel
    that moves to position c. Sizes are those of `segment_sizes`, so any number of segments works.

    >>> interleaved(6, 2)
    (0, 3, 1, 4, 2, 5)
    """
    sizes = segment_sizes(channels, segments)
    starts = [sum(sizes[:s]) for s in range(segments)]
    return tuple(starts[c % segments] + c // segments for c in range(channels))


def _check_count(channels: int, segments: int) -> None:
    if segments < 1:
        raise ValueError(f'segments={segments}: at least 1 segment is needed; try 1 … {channels} or "per_channel"')
    if segments > channels:
        raise ValueError(f'segments={segments}: more than the {channels} channels; try 1 … {channels} or "per_channel"')


def _explicit_sizes(channels: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if sum(sizes) != channels:
        rest = channels - sum(sizes[:-1])
        hint = f"; try {[*sizes[:-1], rest]}" if rest > 0 else ""
        raise ValueError(f"segments={list(sizes)}: the sizes sum to {sum(sizes)}, not to {channels} channels{hint}")
    return sizes


def spatial_sizes(in_channels: int, out_channels: int, segments: Segments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the segments at the input and output of the spatial convolution; equal unless it has no 1×1."""
    segments = plain_segments(segments)
    if in_channels == out_channels:
        sizes = segment_sizes(in_channels, segments)
        return sizes, sizes
    if segments == PER_CHANNEL:
        if out_channels < in_channels:
            raise ValueError(
                f'segments="per_channel": {in_channels} inputs need as many outputs or more, not {out_channels}; '
                f"try segments={out_channels}"
            )
        segments = in_channels
    if isinstance(segments, int):
        smaller = min(in_channels, out_channels)
        segment_sizes(smaller, segments)  # raises where there are too many
        return segment_sizes(in_channels, segments), segment_sizes(out_channels, segments)
    in_sizes = segment_sizes(in_channels, segments)
    if any(size * out_channels % in_channels for size in in_sizes):
        raise ValueError(
            f"segments={list(in_sizes)}: these sizes of {in_channels} inputs do not scale to {out_channels} outputs "
            "in whole numbers; give a number of segments"
        )
    return in_sizes, tuple(size * out_channels // in_channels for size in in_sizes)

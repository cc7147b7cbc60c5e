"""The whole spectrum from regular to depthwise separable convolution as one module.

A segmented convolution is a pointwise half (1×1, across channels) and a spatial half (k×k, inside each of S segments
of its channels), in either order, with or without something between them:

    segments            pointwise_first                        spatial_first
    1                   1×1, then a regular convolution        a regular convolution, then 1×1
    3 or 4              an Inception module's 1×1→k×k towers
    "per_channel"       extreme Inception                      a depthwise separable convolution

Shapes: x_nchw is (N, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrum.conv.lowering import (
    LOWERINGS,
    Geometry,
    Pair,
    choose,
    fold,
    layout_of,
    lowering_name,
    still_there,
    worth_folding,
)
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.padding import pad_same
from spectrum.conv.segments import (
    PER_CHANNEL,
    Run,
    Segments,
    interleaved,
    segment_runs,
    segment_sizes,
)

Order = Literal["pointwise_first", "spatial_first"]
ORDERS: tuple[Order, ...] = ("pointwise_first", "spatial_first")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class SegmentedConv2d(nn.Module):
    """A convolution whose spatial half runs independently in each of `segments` channel segments.

    Args:
        in_channels: channels of the input; also those between the halves if the spatial half is first.
        out_channels: channels of the output; also those between the halves if the 1×1 is first. The channels between
            the halves are the C that falls into segments.
        kernel_size: side of the spatial kernel, or (height, width).
        stride: of the spatial half, one number or (vertical, horizontal); the 1×1 always has stride 1.
        dilation: of the spatial half, likewise.
        padding: of the spatial half. "same" pads dilation·(k−1)/2 zeros on each side; "tf_same" what ⌈H/stride⌉ outputs
            need, the odd pixel at the bottom and the right, as Keras' "same"; or a number of pixels, 0 being Keras'
            "valid", or (vertical, horizontal).
        segments: 1 … C, divisible or not (sizes then differ by at most one), `"per_channel"`, or explicit sizes
            that sum to C.
        order: which half runs first, `"pointwise_first"` (Inception) or `"spatial_first"` (depthwise separable).
        activation: non-linearity between the halves: None (or "none"), "relu", "elu", "gelu", "silu".
        norm: whether batch normalisation stands between the halves, before the activation.
        pointwise: False leaves out the 1×1, which gives the bare spatial convolution; `segments=1` is then
            `nn.Conv2d`. Input and output channels both fall into the segments, so C is the smaller of the two.
        pointwise_segments: segments of the 1×1 itself.
        shuffle: interleave channels between the halves, so that neighbouring channels of the spatial half belong to
            different segments of the 1×1. Needs pointwise_segments > 1: after a dense 1×1 it only relabels rows.
        bias: add one bias a channel to the output (Keras' `SeparableConv2D` does the same).

    Input (N, in_channels, H, W); output (N, out_channels, H', W') with
    H' = ⌊(H + 2·padding − dilation·(k−1) − 1) / stride⌋ + 1, or ⌈H/stride⌉ with "tf_same".

    Parameters are plain tensors, one a run of neighbouring segments of one size (a number that divides C makes one run,
    another number two, explicit sizes as many as they have runs): `spatial.weights.i` (outputs of the run, inputs of
    one segment, kh, kw); `pointwise.weights.i` likewise for the segments of the 1×1, so (out, in, 1, 1) where it has
    one; `bias` (out,). Initialised like `nn.Conv2d`, uniform in ±1/√fan_in, with the fan-in that a segment really has,
    k²·C/S.

    From F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, arXiv:1610.02357,
    sections 1.1 and 1.2.

    Raises ValueError with the argument's name and what would work.

    >>> conv = SegmentedConv2d(64, 128, segments=3)
    >>> conv
    SegmentedConv2d(
      64, 128, segments=3, order='pointwise_first'
      (spatial): SegmentedHalf(
        2×(43→43) + 1×(42→42), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
        ...
    )
    >>> conv(torch.zeros(8, 64, 32, 32)).shape
    torch.Size([8, 128, 32, 32])
    >>> SegmentedConv2d(64, 128, segments=(64, 32, 32)).segment_sizes
    (64, 32, 32)
    >>> separable = SegmentedConv2d(64, 128, segments="per_channel", order="spatial_first")
    >>> {name: tuple(weight.shape) for name, weight in separable.named_parameters()}
    {'spatial.weights.0': (64, 1, 3, 3), 'pointwise.weights.0': (128, 64, 1, 1)}
    >>> SegmentedConv2d(64, 128, segments=200)
    Traceback (most recent call last):
    ValueError: segments=200: more than the 128 channels; try 1 … 128 or "per_channel"
    """

    pads_first = False  # of modules that were stored by an earlier version
    clamped_options: tuple[str, ...] = ()  # of a network, which asked this layer for more than its channels allow

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair = 3,
        *,
        stride: int | Pair = 1,
        dilation: int | Pair = 1,
        padding: Literal["same", "tf_same"] | int | Pair = "same",
        segments: Segments = 1,
        order: Order = "pointwise_first",
        activation: str | None = None,
        norm: bool = False,
        pointwise: bool = True,
        pointwise_segments: int = 1,
        shuffle: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        activation = activation or "none"
        kernel_size = _pair("kernel_size", kernel_size)
        stride, dilation = _pair("stride", stride), _pair("dilation", dilation)
        _check_channels(in_channels, out_channels)
        _check_choices(order, activation)
        if not pointwise:
            _check_bare(norm, activation, pointwise_segments)
        if shuffle and pointwise_segments == 1:
            raise ValueError("shuffle=True: after a dense 1×1 it only relabels rows; use pointwise_segments > 1")

        self.in_channels, self.out_channels = in_channels, out_channels
        self.order = order

        spatial_in = out_channels if pointwise and order == "pointwise_first" else in_channels
        spatial_out = out_channels if not pointwise else spatial_in
        in_sizes, out_sizes = _spatial_sizes(spatial_in, spatial_out, segments)
        self.segments, self.segment_sizes = len(in_sizes), in_sizes
        if padding == "tf_same" and stride == (1, 1) and all(k % 2 for k in kernel_size):
            padding = "same"  # which then is the same
        self.pads_first = padding == "tf_same"
        self.spatial = SegmentedHalf(
            segment_runs(in_sizes, out_sizes),
            kernel_size,
            stride=stride,
            padding=(0, 0) if self.pads_first else _padding(padding, kernel_size, dilation),
            dilation=dilation,
        )

        self.pointwise: SegmentedHalf | None = None
        self.between: nn.Module = nn.Identity()
        if pointwise:
            smaller = min(in_channels, out_channels)
            if not 1 <= pointwise_segments <= smaller:
                raise ValueError(f"pointwise_segments={pointwise_segments}: expected 1 … {smaller}")
            halves = (segment_sizes(c, pointwise_segments) for c in (in_channels, out_channels))
            self.pointwise = SegmentedHalf(segment_runs(*halves), (1, 1))
            self.between = _between(spatial_in, norm, activation)

        # Nothing stands between two dense halves: together they are one convolution.
        self.folds = pointwise and not norm and activation == "none" and stride == (1, 1)
        self.folds = self.folds and self.segments == pointwise_segments == 1 and not self.pads_first

        self.shuffle: Tensor | None
        self.register_buffer("shuffle", None, persistent=False)
        if shuffle:
            # Position c of the spatial half belongs to segment c mod P of the 1×1, whichever of the two comes first.
            permutation = torch.tensor(interleaved(spatial_in, pointwise_segments))
            self.shuffle = permutation if order == "pointwise_first" else permutation.argsort()

        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        if self.bias is not None:
            last = self.spatial if self.pointwise is None or order == "pointwise_first" else self.pointwise
            bound = 1 / math.sqrt(last.largest_fan_in)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W'), in the input's memory layout."""
        if self.pointwise is None:
            x_nchw = self._half(self.spatial, x_nchw)
        else:
            pointwise_first = self.order == "pointwise_first"
            first, second = (self.pointwise, self.spatial) if pointwise_first else (self.spatial, self.pointwise)
            if self.folds and worth_folding(self.spatial.lowering, x_nchw, first.weights[0], second.weights[0]):
                x_nchw = self.spatial.convolve(x_nchw, fold(first.weights[0], second.weights[0]))
            else:
                x_nchw = self.between(self._half(first, x_nchw))
                if self.shuffle is not None:
                    layout = layout_of(x_nchw)  # which index_select forgets
                    x_nchw = x_nchw.index_select(1, self.shuffle).contiguous(memory_format=layout)
                x_nchw = self._half(second, x_nchw)
        return x_nchw if self.bias is None else x_nchw + self.bias.view(1, -1, 1, 1)

    def _half(self, half: SegmentedHalf, x_nchw: Tensor) -> Tensor:
        if self.pads_first and half is self.spatial:
            g = half.geometry
            x_nchw = pad_same(x_nchw, g.kernel_size, g.stride, g.dilation)
        y_nchw: Tensor = half(x_nchw)
        return y_nchw

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, segments={self.segments}, order={self.order!r}"


class SegmentedHalf(nn.Module):
    """One linear half: a convolution inside each segment, one weight tensor a run of equal segments."""

    def __init__(
        self,
        runs: tuple[Run, ...],
        kernel_size: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
    ) -> None:
        super().__init__()
        self.geometry = Geometry(runs, kernel_size, stride, padding, dilation)
        self.lowering = lowering_name()
        self.used: str | None = None  # the lowering of the last call, a key of LOWERINGS or "folded"
        self.weights = nn.ParameterList(
            torch.empty(run.count * run.out_size, run.in_size, *kernel_size) for run in runs
        )
        for weight in self.weights:
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound)

    @property
    def largest_fan_in(self) -> int:
        return max(int(weight[0].numel()) for weight in self.weights)

    def forward(self, x_nchw: Tensor) -> Tensor:
        used = choose(self.lowering, x_nchw, self.geometry)
        self._note(used)
        return LOWERINGS[used](x_nchw, list(self.weights), self.geometry)

    def _note(self, used: str) -> None:
        if not torch.compiler.is_compiling():
            self.__dict__["used"] = used  # past nn.Module, which would look whether it is a parameter

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.lowering = still_there(self.lowering)
        self.__dict__.setdefault("used", None)  # stored by an earlier version

    def convolve(self, x_nchw: Tensor, weight: Tensor) -> Tensor:
        """This half's convolution, dense, with another weight (out, in, kh, kw)."""
        self._note("folded")
        run = Run(1, weight.shape[1], weight.shape[0])
        return LOWERINGS["native"](x_nchw, [weight], replace(self.geometry, runs=(run,)))

    def extra_repr(self) -> str:
        g = self.geometry
        runs = " + ".join(f"{run.count}×({run.in_size}→{run.out_size})" for run in g.runs)
        return f"{runs}, stride={g.stride}, padding={g.padding}, dilation={g.dilation}"


def used_lowerings(model: nn.Module) -> dict[str, str]:
    """By which lowering each segmented convolution of a network, named as its module, computed its spatial half last.

    Those that have not run yet, or only under torch.compile, are not there.
    """
    return {
        name: module.spatial.used
        for name, module in model.named_modules()
        if isinstance(module, SegmentedConv2d) and module.spatial.used is not None
    }


def _between(channels: int, norm: bool, activation: str) -> nn.Module:
    if norm and activation == "relu":
        return nn.Sequential(BatchNormAct2d(channels, relu=True))
    return nn.Sequential(BatchNormAct2d(channels) if norm else nn.Identity(), ACTIVATIONS[activation]())


def _spatial_sizes(in_channels: int, out_channels: int, segments: Segments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the segments on both sides of the spatial half; they differ only in the bare operation."""
    if in_channels == out_channels:
        sizes = segment_sizes(in_channels, segments)
        return sizes, sizes
    if segments == PER_CHANNEL:
        if out_channels < in_channels:
            raise ValueError(
                f'segments="per_channel": {in_channels} channels cannot each give some of {out_channels} outputs; '
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


def _pair(name: str, value: int | Pair) -> Pair:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(f"{name}={value!r}: expected a whole number of at least 1, or two of them")
    return pair


def _padding(padding: Any, kernel_size: Pair, dilation: Pair) -> Pair:
    if padding != "same":
        pair = padding if isinstance(padding, tuple) else (padding, padding)
        if len(pair) != 2 or any(isinstance(p, bool) or not isinstance(p, int) or p < 0 for p in pair):
            raise ValueError(f'padding={padding!r}: expected "same", "tf_same", a number of pixels, or two of them')
        return pair
    vertical, horizontal = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
    if vertical % 2 or horizontal % 2:
        raise ValueError(
            f'padding="same": an even kernel_size={kernel_size} has no middle; use an odd one or give pixels'
        )
    return vertical // 2, horizontal // 2


def _check_channels(in_channels: int, out_channels: int) -> None:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")


def _check_choices(order: str, activation: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: unknown; try {' or '.join(map(repr, ORDERS))}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: unknown; try {', '.join(map(repr, ACTIVATIONS))}")


def _check_bare(norm: bool, activation: str, pointwise_segments: int) -> None:
    given = {
        "norm": norm,
        "activation": activation != "none",
        "pointwise_segments": pointwise_segments != 1,
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(f"{name}: there is no second half with pointwise=False; leave {name} at its default")

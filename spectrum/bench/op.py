"""Benchmark the spatial convolution of `SegmentedConv2d`, forward and backward, against all of torch's implementations.

The roofline is 3 × the larger of two times of a forward pass, since forward and backward do 3 × its arithmetic: its
operations over the measured rate of a matrix product (torch's `@` or a 1×1 convolution, whichever is faster), and its
bytes (input and output once) over the measured copy bandwidth. Both rates are measured in the same rounds as
everything else. A tensor that stays in the cache can beat the bandwidth.

On CUDA the backend "triton" and joined segments are measured too, times are those of CUDA events, and cuDNN may try its
algorithms before the first one. float32 convolutions round to TF32 unless torch is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from spectrum.bench.rounds import alternate, clock_of, spread
from spectrum.conv.backends.choice import choose, prefer_backend, refusal
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.training.step import keep_freed_memory

Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = ((32, 128, 16, 16), (16, 256, 16, 16), (64, 64, 32, 32), (8, 728, 19, 19))
ON_CUDA: tuple[Shape, ...] = ((256, 128, 32, 32), (64, 728, 19, 19))
WIDTHS_ON_CUDA = (8, 4, 2, 1)  # channels per segment, besides 1 segment: fewer, since compilers take most of the time
UNEVEN = (3, 100)  # segments of 128 channels
JOINED = 8  # channels per group, of narrower segments that are joined
OURS, TRITON = "spectrum", "triton"
PEERS = ("grouped, NCHW", "grouped", "torch.compile", "block-diagonal", "separate")
IN_WORDS = {"grouped, NCHW": "grouped, default layout", "grouped": "grouped, channels_last"}
PEERS_ON_CUDA = (*PEERS, "coalesced", TRITON)


@dataclass(frozen=True)
class Setting:
    """Device and type of the measured operation, and sizes of the operands of the measured rates."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def side(self) -> int:
        """Side of the square matrices of the product."""
        return 1024 if self.device == "cpu" else 8192

    @property
    def copied(self) -> int:
        """Number of values that are copied, too many for any cache."""
        return 2**24 if self.device == "cpu" else 2**27

    def normal(self, *shape: int) -> Tensor:
        """Random numbers of this type on this device."""
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def placed(self, module: nn.Module, layout: torch.memory_format = torch.channels_last) -> nn.Module:
        """The module, moved to the device and converted to the type."""
        return module.to(self.device, self.dtype, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def measure(
    shapes: Iterable[Shape] | None = None,
    segments: Sequence[int] | None = None,
    *,
    threads: int = 2,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per shape, number of segments and implementation: milliseconds, and percent of the roofline.

    Args:
        shapes: shapes of the input, (N, C, H, W); by default the standard ones of the device.
        segments: numbers of segments; by default every divisor of C, and a few that give uneven sizes; on CUDA a few.
        threads: threads that torch may use.
        device: "cpu" or "cuda".
        dtype: type of all tensors.
        on_row: called with one line of text for each shape and number of segments.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    setting = Setting(device, dtype)
    rows: list[dict[str, Any]] = []
    for shape in shapes or (SHAPES if device == "cpu" else ON_CUDA):
        for count in segments or _counts(shape[1], device):
            rows += _measure_one(shape, count, setting)
            ours = rows[-1]
            on_row(f"{shape} {count:4d} segments · {ours['ms']:8.3f} ms · {ours['percent']:4.0f}% of the roofline")
    return pd.DataFrame(rows)


def _counts(channels: int, device: str) -> list[int]:
    """Numbers of segments to measure."""
    counts = {s for s in range(1, channels + 1) if channels % s == 0}
    if device != "cpu":
        counts &= {1, *(channels // width for width in WIDTHS_ON_CUDA)}
    return sorted(counts | {*UNEVEN} if channels == 128 else counts)


def _measure_one(shape: Shape, segments: int, setting: Setting) -> list[dict[str, Any]]:
    images, channels, height, width = shape
    torch.manual_seed(0)
    side, itemsize = setting.side, setting.dtype.itemsize
    a, source = setting.normal(side, side), setting.normal(setting.copied)
    target = torch.empty_like(source)
    rows_nchw, kernel = (a.view(shape) for shape in ((1, side // 32, 32, side), (side, 1, 1, side)))
    rows_nchw, kernel = rows_nchw.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2)
    things: dict[str, Callable[[], Any]] = {
        "product": lambda: a @ a,
        "product by convolution": lambda: nn.functional.conv2d(rows_nchw, kernel),
        "copy": lambda: target.copy_(source),
    }
    ways = _ways(shape, segments, setting)
    things |= {name: way for name, (way, _) in ways.items()}
    enough = 0.5 if setting.device == "cpu" else 0.1
    measured = alternate(things, least=3, most=15, seconds=enough, clock=clock_of(setting.device))
    times = {name: spread(seconds) for name, seconds in measured.items()}
    product_ms = min(times[name]["ms"] for name in ("product", "product by convolution"))
    product = 2 * side**3 / (product_ms / 1e3)  # operations per second
    bandwidth = 2 * itemsize * setting.copied / (times["copy"]["ms"] / 1e3)  # bytes per second, read and written
    weights = ways[OURS][1]
    macs = images * height * width * weights
    roofline = 3e3 * max(2 * macs / product, 2 * itemsize * images * channels * height * width / bandwidth)
    return [
        {
            "shape": "×".join(map(str, shape)),
            "segments": segments,
            "channels_per_segment": channels / segments,
            "way": name,
            **times[name],
            "yardstick_ms": roofline,  # the name in committed tables
            "percent": 100 * roofline / times[name]["ms"],
            "gflops": 6 * macs / times[name]["ms"] / 1e6,
            "product_gflops": product / 1e9,
            "copy_gbs": bandwidth / 1e9,
            "lowering": _backend(shape, segments, setting) if name == OURS else "",
        }
        for name in (*[peer for peer in PEERS_ON_CUDA if peer in ways], OURS)
    ]


def _ways(shape: Shape, segments: int, setting: Setting) -> dict[str, tuple[Callable[[], Any], int]]:
    """Forward and backward of each implementation, with its true number of weights."""
    channels = shape[1]
    ours = _operation(channels, segments, "auto")
    plain = setting.placed(_operation(channels, segments, "native"), torch.contiguous_format)
    weights = sum(weight.numel() for weight in ours.parameters())
    last, first = (_pass_of(shape, layout, setting) for layout in (torch.channels_last, torch.contiguous_format))
    grouped = _operation(channels, segments, "native")
    plain_last = setting.placed(grouped)
    ways = {"grouped, NCHW": first(plain), "grouped": last(plain_last), OURS: last(setting.placed(ours))}
    torch.compiler.reset()  # else it stops compiling a function after several sizes
    with suppress(Exception):  # without a working torch.compile, leave this one out
        compiled = torch.compile(plain_last)
        last(compiled)()
        ways["torch.compile"] = last(compiled)
    if segments > 1:
        ways["block-diagonal"] = last(setting.placed(_operation(channels, 1, "native")))
        ways["separate"] = last(setting.placed(_Separate(grouped)))
    if setting.device != "cpu":
        ways |= {name: last(setting.placed(module)) for name, module in _on_cuda(shape, ours, setting).items()}
    return {name: (way, weights) for name, way in ways.items()}


def _on_cuda(shape: Shape, ours: SegmentedConv2d, setting: Setting) -> dict[str, nn.Module]:
    """Implementations that are measured on CUDA only: joined narrow segments, and Triton where it supports them."""
    channels, sizes = shape[1], set(ours.segment_sizes)
    found: dict[str, nn.Module] = {}
    if max(sizes) < JOINED and all(JOINED % size == 0 for size in sizes) and channels % JOINED == 0:
        found["coalesced"] = _operation(channels, channels // JOINED, "native")
    if refusal(TRITON, setting.normal(*shape), ours.spatial.geometry) is None:
        found[TRITON] = _operation(channels, len(ours.segment_sizes), TRITON)
    return found


class _Separate(nn.Module):
    """A list of convolutions, one per segment, as Inception modules are often written."""

    def __init__(self, grouped: SegmentedConv2d) -> None:
        super().__init__()
        self.sizes = list(grouped.segment_sizes)
        self.branches = nn.ModuleList(nn.Conv2d(size, size, 3, padding=1, bias=False) for size in self.sizes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        parts = x_nchw.split(self.sizes, dim=1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=1)


def _pass_of(shape: Shape, layout: torch.memory_format, setting: Setting) -> Callable[[Any], Callable[[], Any]]:
    x_nchw = setting.normal(*shape).to(memory_format=layout).requires_grad_()
    gradient_nchw = setting.normal(*shape).to(memory_format=layout)

    def of(module: Any) -> Callable[[], Any]:
        inputs = [x_nchw, *module.parameters()]
        return lambda: torch.autograd.grad(module(x_nchw), inputs, gradient_nchw)

    return of


def _operation(channels: int, segments: int, backend: str) -> SegmentedConv2d:
    with prefer_backend(backend):
        return SegmentedConv2d(channels, channels, segments=segments, pointwise=False)


def _backend(shape: Shape, segments: int, setting: Setting) -> str:
    spatial = _operation(shape[1], segments, "auto").spatial
    x_nchw = torch.empty(shape, dtype=setting.dtype, device=setting.device).to(memory_format=torch.channels_last)
    return choose(spatial.choice.name, x_nchw, spatial.geometry)


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the table: the lowest and the highest value of each comparison, from the medians."""
    by = ["shape", "segments"]
    ours = table[table.way == OURS].set_index(by)
    best = table[table.way != OURS].groupby(by).ms.min()
    even = ours[ours.channels_per_segment % 1 == 0]
    speedup = (best / ours.ms).rename("speedup")
    found: dict[str, Any] = {
        "lowest percent of the roofline": float(even.percent.min()),
        "median percent of the roofline": float(even.percent.median()),
        "measurements below 50%": int((even.percent < 50).sum()),
        "measurements with equal segments": len(even),
        "largest slowdown vs the best other implementation": float(1 / speedup.min()),
    }
    for width in (1, 2, 4, 8, 16):
        chosen = speedup[ours.channels_per_segment == width]
        if len(chosen):
            found[f"speedup over the best other at {width} per segment"] = [float(chosen.min()), float(chosen.max())]
    for shape, count, ms in ours[ours.channels_per_segment % 1 != 0].ms.reset_index().to_numpy().tolist():
        neighbours = even.ms.loc[shape]
        below, above = neighbours[neighbours.index < count], neighbours[neighbours.index > count]
        slower = max(float(side.iloc[at]) for side, at in ((below, -1), (above, 0)) if len(side))
        found[f"{count} unequal segments: time relative to the slower equal neighbour"] = ms / slower
    times = {(shape, count): ms for shape, count, ms in even.ms.reset_index().to_numpy().tolist()}
    doubled = [times[shape, 2 * count] / ms for (shape, count), ms in times.items() if (shape, 2 * count) in times]
    if doubled:
        found["largest time ratio when segments double"] = float(max(doubled))
    return found


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: one row per shape and number of segments, ours next to the best other implementation."""
    lines = [
        "| input, N×C×H×W | segments | channels per segment | median ms | quartiles | % of the roofline "
        "| fastest other implementation | median ms | speedup |"
    ]
    lines.append("|" + "---|" * 9)
    for (shape, segments), group in table.groupby(["shape", "segments"], sort=False):
        ours = group[group.way == OURS].iloc[0]
        best = group[group.way != OURS].sort_values("ms").iloc[0]
        lines.append(
            f"| {shape} | {segments} | {_channels(ours.channels_per_segment)} "
            f"| {ours.ms:.2f} | {ours.ms_q1:.2f} to {ours.ms_q3:.2f} | {ours.percent:.0f} "
            f"| {IN_WORDS.get(best.way, best.way)} | {best.ms:.2f} | {best.ms / ours.ms:.2f} |"
        )
    return "\n".join(lines)


def _channels(mean: float) -> str:
    """Channels per segment; the two sizes where segments are uneven.

    >>> _channels(4.0), _channels(42.67)
    ('4', '42 or 43')
    """
    return f"{mean:.0f}" if mean % 1 == 0 else f"{int(mean)} or {int(mean) + 1}"

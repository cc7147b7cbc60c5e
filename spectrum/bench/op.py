"""Benchmark the spatial convolution of `SegmentedConv2d`, forward and backward, against all of torch's implementations.

The roofline is 3 × the larger of two times of a forward pass, since forward and backward do 3 × its arithmetic: its
operations over the measured rate of a matrix product (torch's `@` or a 1×1 convolution, whichever is faster), and its
bytes (input and output once) over the measured copy bandwidth. Both rates are measured in the same rounds as
everything else. A tensor that stays in the cache can beat the bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from spectrum.bench.rounds import alternate, spread
from spectrum.conv.backends.choice import choose, prefer_backend
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.training.step import keep_freed_memory

Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = ((32, 128, 16, 16), (16, 256, 16, 16), (64, 64, 32, 32), (8, 728, 19, 19))
UNEVEN = (3, 100)  # segments of 128 channels
OURS = "spectrum"
PEERS = ("grouped, NCHW", "grouped", "torch.compile", "block-diagonal", "separate")


def measure(
    shapes: Iterable[Shape] = SHAPES,
    segments: Sequence[int] | None = None,
    *,
    threads: int = 2,
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per shape, number of segments and implementation: milliseconds, and percent of the roofline.

    Args:
        shapes: shapes of the input, (N, C, H, W).
        segments: numbers of segments; by default every divisor of C, and a few that give uneven sizes.
        threads: threads that torch may use.
        on_row: called with one line of text for each shape and number of segments.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        channels = shape[1]
        counts = [s for s in range(1, channels + 1) if channels % s == 0] if segments is None else list(segments)
        if segments is None and channels == 128:
            counts = sorted({*counts, *UNEVEN})
        for count in counts:
            rows += _measure_one(shape, count)
            ours = rows[-1]
            on_row(f"{shape} {count:4d} segments · {ours['ms']:8.3f} ms · {ours['percent']:4.0f}% of the roofline")
    return pd.DataFrame(rows)


def _measure_one(shape: Shape, segments: int) -> list[dict[str, Any]]:
    images, channels, height, width = shape
    torch.manual_seed(0)
    a, source = torch.randn(1024, 1024), torch.randn(2**24)
    target = torch.empty_like(source)
    rows_nchw, kernel = (a.view(shape) for shape in ((1, 32, 32, 1024), (1024, 1, 1, 1024)))
    rows_nchw, kernel = rows_nchw.permute(0, 3, 1, 2), kernel.permute(0, 3, 1, 2)
    things: dict[str, Callable[[], Any]] = {
        "product": lambda: a @ a,
        "product by convolution": lambda: nn.functional.conv2d(rows_nchw, kernel),
        "copy": lambda: target.copy_(source),
    }
    ways = _ways(shape, segments)
    things |= {name: way for name, (way, _) in ways.items()}
    times = {name: spread(seconds) for name, seconds in alternate(things, least=3, most=15, seconds=0.5).items()}
    product_ms = min(times[name]["ms"] for name in ("product", "product by convolution"))
    product = 2 * 1024**3 / (product_ms / 1e3)  # operations per second
    bandwidth = 2 * 4 * 2**24 / (times["copy"]["ms"] / 1e3)  # bytes per second, read and written
    weights = ways[OURS][1]
    macs = images * height * width * weights
    roofline = 3e3 * max(2 * macs / product, 2 * 4 * images * channels * height * width / bandwidth)
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
            "lowering": _backend(shape, segments) if name == OURS else "",
        }
        for name in (*[peer for peer in PEERS if peer in ways], OURS)
    ]


def _ways(shape: Shape, segments: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """Forward and backward of each implementation, with its true number of weights."""
    channels = shape[1]
    ours = _operation(channels, segments, "auto")
    plain = _operation(channels, segments, "native")
    weights = sum(weight.numel() for weight in ours.parameters())
    last, first = (_pass_of(shape, layout) for layout in (torch.channels_last, torch.contiguous_format))
    plain_last = _operation(channels, segments, "native").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ways = {
        "grouped, NCHW": first(plain),
        "grouped": last(plain_last),
        OURS: last(ours.to(memory_format=torch.channels_last)),  # type: ignore[call-overload]
    }
    torch.compiler.reset()  # else it stops compiling a function after several sizes
    with suppress(Exception):  # without a working torch.compile, leave this one out
        compiled = torch.compile(plain_last)
        last(compiled)()
        ways["torch.compile"] = last(compiled)
    if segments > 1:
        dense = _operation(channels, 1, "native").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ways["block-diagonal"] = last(dense)
        ways["separate"] = last(_Separate(plain_last))
    return {name: (way, weights) for name, way in ways.items()}


class _Separate(nn.Module):
    """A list of convolutions, one per segment, as Inception modules are often written."""

    def __init__(self, grouped: SegmentedConv2d) -> None:
        super().__init__()
        self.sizes = list(grouped.segment_sizes)
        self.branches = nn.ModuleList(
            nn.Conv2d(size, size, 3, padding=1, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for size in self.sizes
        )

    def forward(self, x_nchw: Tensor) -> Tensor:
        parts = x_nchw.split(self.sizes, dim=1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=1)


def _pass_of(shape: Shape, layout: torch.memory_format) -> Callable[[Any], Callable[[], Any]]:
    x_nchw = torch.randn(shape).to(memory_format=layout).requires_grad_()
    gradient_nchw = torch.randn(shape).to(memory_format=layout)

    def of(module: Any) -> Callable[[], Any]:
        inputs = [x_nchw, *module.parameters()]
        return lambda: torch.autograd.grad(module(x_nchw), inputs, gradient_nchw)

    return of


def _operation(channels: int, segments: int, backend: str) -> SegmentedConv2d:
    with prefer_backend(backend):
        return SegmentedConv2d(channels, channels, segments=segments, pointwise=False)


def _backend(shape: Shape, segments: int) -> str:
    spatial = _operation(shape[1], segments, "auto").spatial
    return choose(spatial.choice.name, torch.empty(shape).to(memory_format=torch.channels_last), spatial.geometry)


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
        "| shape | segments | median ms | quartiles | % of the roofline "
        "| best other implementation | median ms | speedup |"
    ]
    lines.append("|" + "---|" * 8)
    for (shape, segments), group in table.groupby(["shape", "segments"], sort=False):
        ours = group[group.way == OURS].iloc[0]
        best = group[group.way != OURS].sort_values("ms").iloc[0]
        lines.append(
            f"| {shape} | {segments} | {ours.ms:.2f} | {ours.ms_q1:.2f} to {ours.ms_q3:.2f} | {ours.percent:.0f} "
            f"| {best.way} | {best.ms:.2f} | {best.ms / ours.ms:.2f} |"
        )
    return "\n".join(lines)

"""Benchmark the spatial convolution of `SegmentedConv2d`, forward and backward, against all of torch's implementations.

The roofline is 3 × the larger of two times of a forward pass, since forward and backward do 3 × its arithmetic: its
operations over the measured rate of a matrix product (torch's `@` or a 1×1 convolution, whichever is faster), and its
bytes (input and output once) over the measured copy bandwidth. Both rates are measured in the same rounds as
everything else. A tensor that stays in the cache can beat the bandwidth.

"spectrum" is the layer as it is without measurements, with the guessed backend. "spectrum, measured choice" is the same
layer after `tune`, which is tried in channels_last only; `$SPECTRUM_TUNE=off` leaves it out.

On CUDA the backend "triton" and joined segments are measured too, times are those of CUDA events, and cuDNN may try its
algorithms before the first one. float32 convolutions round to TF32 unless torch is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from spectrum.bench.cells import LAYOUTS, Cell, Layout, Window, standard
from spectrum.bench.op_table import MEASURED, OURS, as_markdown, compared, findings, printed
from spectrum.bench.rounds import alternate, clock_of, spread
from spectrum.conv.backends.choice import choose, prefer_backend, refusal
from spectrum.conv.backends.environment import tune_of_environment
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.conv.tuning import tune
from spectrum.training.step import keep_freed_memory

JOINED = 8  # channels per group, of narrower segments that are joined
TRITON = "triton"
PEERS = ("grouped, NCHW", "grouped", "torch.compile", "block-diagonal", "separate")
PEERS_ON_CUDA = (*PEERS, "coalesced", TRITON)

__all__ = ["MEASURED", "OURS", "PEERS", "as_markdown", "compared", "findings", "measure", "printed"]


@dataclass(frozen=True)
class Setting:
    """Device and type of the measured operation, and sizes of the operands of the measured rates."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    seconds: float = 0.5  # shortest time for each implementation of a cell
    compiles: bool = True  # whether torch.compile is one of the implementations

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
    cells: Iterable[Cell] | None = None,
    *,
    threads: int = 2,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float | None = None,
    compiles: bool = True,
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per cell and implementation: milliseconds, and percent of the roofline.

    Args:
        cells: layers to measure; by default the standard ones of the device.
        threads: threads that torch may use.
        device: "cpu" or "cuda".
        dtype: type of all tensors.
        seconds: shortest time for each implementation of a cell; by default 0.5, on CUDA 0.1.
        compiles: whether torch.compile is one of the implementations; compiling takes seconds for each cell.
        on_row: called with one line of text for each cell.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    setting = Setting(device, dtype, seconds or (0.5 if device == "cpu" else 0.1), compiles)
    rows: list[dict[str, Any]] = []
    for cell in standard(device) if cells is None else cells:
        rows += _measure_one(cell, setting)
        ours = rows[-1]
        on_row(f"{cell} · {ours['ms']:8.3f} ms · {ours['percent']:4.0f}% of the roofline")
    return pd.DataFrame(rows)


def _measure_one(cell: Cell, setting: Setting) -> list[dict[str, Any]]:
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
    modules = _modules(cell, setting)
    things |= _passes(cell, modules, setting)
    measured = alternate(things, least=3, most=15, seconds=setting.seconds, clock=clock_of(setting.device))
    times = {name: spread(seconds) for name, seconds in measured.items()}
    product_ms = min(times[name]["ms"] for name in ("product", "product by convolution"))
    product = 2 * side**3 / (product_ms / 1e3)  # operations per second
    bandwidth = 2 * itemsize * setting.copied / (times["copy"]["ms"] / 1e3)  # bytes per second, read and written
    inputs, outputs, macs = _sizes(cell, modules[OURS])
    roofline = 3e3 * max(2 * macs / product, itemsize * (inputs + outputs) / bandwidth)
    return [
        {
            "shape": "×".join(map(str, cell.shape)),
            "segments": cell.segments,
            "channels_per_segment": cell.channels / cell.segments,
            "way": name,
            **times[name],
            "yardstick_ms": roofline,  # the name in committed tables
            "percent": 100 * roofline / times[name]["ms"],
            "gflops": 6 * macs / times[name]["ms"] / 1e6,
            "product_gflops": product / 1e9,
            "copy_gbs": bandwidth / 1e9,
            "lowering": _backend(cell, modules[name], setting) if name in (OURS, MEASURED) else "",
            **vars(cell.window),
            "layout": cell.layout,
        }
        for name in (*PEERS_ON_CUDA, MEASURED, OURS)
        if name in times
    ]


def _sizes(cell: Cell, ours: SegmentedConv2d) -> tuple[int, int, int]:
    """Numbers of input values, of output values and of multiply-adds."""
    weights = sum(weight.numel() for weight in ours.parameters())
    images, _, height, width = output = _output_shape(cell)
    return torch.Size(cell.shape).numel(), output.numel(), images * height * width * weights


def _output_shape(cell: Cell) -> torch.Size:
    with torch.device("meta"):
        output: Tensor = _operation(cell, 1, "native")(torch.empty(cell.shape))
    return output.shape


def _modules(cell: Cell, setting: Setting) -> dict[str, Any]:
    """A module for each implementation. In the default layout "grouped" is left out: it is "grouped, NCHW"."""
    last = cell.layout == "channels_last"
    modules: dict[str, Any] = {
        "grouped, NCHW": setting.placed(_operation(cell, cell.segments, "native"), torch.contiguous_format),
        OURS: setting.placed(_operation(cell, cell.segments, "auto"), LAYOUTS[cell.layout]),
    }
    grouped = _operation(cell, cell.segments, "native")
    setting.placed(grouped, LAYOUTS[cell.layout])
    if last:
        modules["grouped"] = grouped
    if setting.compiles:
        modules["torch.compile"] = grouped
    if cell.segments > 1:
        modules["block-diagonal"] = setting.placed(_operation(cell, 1, "native"), LAYOUTS[cell.layout])
        modules["separate"] = setting.placed(_Separate(grouped, cell.window), LAYOUTS[cell.layout])
    if setting.device != "cpu":
        modules |= {name: setting.placed(module) for name, module in _on_cuda(cell, setting).items()}
    if last and tune_of_environment() != "off":
        modules[MEASURED] = setting.placed(_operation(cell, cell.segments, "auto"))
        tune(modules[MEASURED], cell.shape)
    return modules


def _passes(cell: Cell, modules: dict[str, Any], setting: Setting) -> dict[str, Callable[[], Any]]:
    """Forward and backward pass of each module."""
    by_layout = {layout: _pass_of(cell, layout, setting) for layout in LAYOUTS}
    passes = {
        name: by_layout["contiguous" if name == "grouped, NCHW" else cell.layout](module)
        for name, module in modules.items()
        if name != "torch.compile"
    }
    if "torch.compile" in modules:
        torch.compiler.reset()  # else it stops compiling a function after several sizes
        with suppress(Exception):  # without a working torch.compile, leave this one out
            compiled = by_layout[cell.layout](torch.compile(modules["torch.compile"]))
            compiled()
            passes["torch.compile"] = compiled
    return passes


def _on_cuda(cell: Cell, setting: Setting) -> dict[str, nn.Module]:
    """Implementations that are measured on CUDA only: joined narrow segments, and Triton where it supports them."""
    ours = _operation(cell, cell.segments, "auto")
    channels, sizes = cell.channels, set(ours.segment_sizes)
    found: dict[str, nn.Module] = {}
    if max(sizes) < JOINED and all(JOINED % size == 0 for size in sizes) and channels % JOINED == 0:
        found["coalesced"] = _operation(cell, channels // JOINED, "native")
    if refusal(TRITON, setting.normal(*cell.shape), ours.spatial.geometry) is None:
        found[TRITON] = _operation(cell, cell.segments, TRITON)
    return found


class _Separate(nn.Module):
    """A list of convolutions, one per segment, as Inception modules are often written."""

    def __init__(self, grouped: SegmentedConv2d, window: Window) -> None:
        super().__init__()
        self.sizes = list(grouped.segment_sizes)
        padding = window.dilation * (window.kernel // 2)
        self.branches = nn.ModuleList(
            nn.Conv2d(size, size, window.kernel, window.stride, padding, window.dilation, bias=False)
            for size in self.sizes
        )

    def forward(self, x_nchw: Tensor) -> Tensor:
        parts = x_nchw.split(self.sizes, dim=1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], dim=1)


def _pass_of(cell: Cell, layout: Layout, setting: Setting) -> Callable[[Any], Callable[[], Any]]:
    x_nchw = setting.normal(*cell.shape).to(memory_format=LAYOUTS[layout]).requires_grad_()
    gradient_nchw = setting.normal(*_output_shape(cell)).to(memory_format=LAYOUTS[layout])

    def of(module: Any) -> Callable[[], Any]:
        inputs = [x_nchw, *module.parameters()]
        return lambda: torch.autograd.grad(module(x_nchw), inputs, gradient_nchw)

    return of


def _operation(cell: Cell, segments: int, backend: str) -> SegmentedConv2d:
    with prefer_backend(backend):
        return SegmentedConv2d(
            cell.channels,
            cell.channels,
            segments=segments,
            pointwise=False,
            kernel_size=cell.window.kernel,
            stride=cell.window.stride,
            dilation=cell.window.dilation,
        )


def _backend(cell: Cell, module: SegmentedConv2d, setting: Setting) -> str:
    """Name of the backend that computes the layer."""
    x_nchw = torch.empty(cell.shape, dtype=setting.dtype, device=setting.device)
    spatial = module.spatial
    return choose(
        spatial.choice.name, x_nchw.to(memory_format=LAYOUTS[cell.layout]), spatial.geometry, spatial.measured
    )

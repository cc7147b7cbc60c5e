"""Exact ways to run a segmented convolution, and which one is used where.

Every lowering computes the same function of (input, one weight a run of equal segments), for infinite inputs and those
that are not a number too; they differ in speed only, and in the last bits.

    native      the library's grouped convolution, one call a run
    coalesced   several narrow segments as one wider group with a block-diagonal kernel
    compiled    kernels of our own (kernels/): 3×3, stride 1, float32, CPU
    folded      both halves as one convolution, where nothing stands between them and that is cheaper

`$SPECTRUM_LOWERING` says how to choose: "auto" (the table below), "native" (always), or one of "coalesced" and
"compiled" (wherever it can serve, for measurements). While a counter or an exporter traces a network, native is used,
so that it sees the true convolutions. `groups`, torch's word for equal segments, appears here and in derived.py only.

Shapes: x (N, C_in, H, W); weights one tensor a run, (count·out_size, in_size, kh, kw); result (N, C_out, H', W').
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

from spectrum._torch import is_in_forward_mode, is_in_torch_dispatch_mode, is_in_transform
from spectrum.conv.arguments import Pair as Pair
from spectrum.conv.derived import Blocks, Window, convolve
from spectrum.conv.derived import fold as fold
from spectrum.conv.kernels import ops
from spectrum.conv.kernels.build import binding, library
from spectrum.conv.segments import Run

CHOICES = ("auto", "native", "coalesced", "compiled")

# The table, measured by `spectrum bench op` on CPUs (results/bench/). On other devices all is native: nothing was
# measured there, and asking whether a result is finite would make a GPU wait.
WIDEST_COMPILED = 32  # channels a segment; from there on the library is as fast
COALESCED = {2: 8, 3: 9, 4: 8}  # channels a segment: channels of the group that takes several of them in


@dataclass(frozen=True)
class Geometry:
    """What of a convolution is known before its input."""

    runs: tuple[Run, ...]
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


Lowering = Callable[[Tensor, Sequence[Tensor], Geometry], Tensor]


def native(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """The library's own grouped convolution, one call a run of equal segments. Also takes (C_in, H, W)."""
    g = geometry
    return _by_run(
        x_nchw,
        weights,
        geometry,
        lambda part, weight, run: F.conv2d(part, weight, None, g.stride, g.padding, g.dilation, run.count),
    )


def coalesced(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """Neighbouring narrow segments side by side in one group, with zeros between them in its kernel.

    Does several times the arithmetic of the segments, at many times the library's speed on them.
    """
    return _by_run(x_nchw, weights, geometry, lambda part, weight, run: _coalesced_run(part, weight, run, geometry))


def _coalesced_run(part: Tensor, weight: Tensor, run: Run, geometry: Geometry) -> Tensor:
    window = Window(geometry.stride, geometry.padding, geometry.dilation)
    blocks = Blocks(run, _together(run), window)
    if blocks.together == 1 or (part.dtype != weight.dtype and not torch.is_autocast_enabled("cpu")):
        return blocks.by_definition(part, [weight])
    return convolve(blocks, part, [weight], blocks.kernel(weight))


def compiled(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """The kernels of this project. Input in any layout; the result has the input's."""
    channels = sum(run.count * run.in_size for run in geometry.runs)
    fits = x_nchw.dim() == 4 and x_nchw.shape[1] == channels
    sides = zip(x_nchw.shape[2:], geometry.padding, strict=True) if fits else ()
    fits = fits and all(side and side + 2 * pad >= 3 for side, pad in sides)
    if not fits or any(weight.dtype != x_nchw.dtype or weight.device != x_nchw.device for weight in weights):
        return native(x_nchw, weights, geometry)  # which says what is wrong
    y_nchw = ops.segmented_conv2d(x_nchw, weights, geometry.runs, geometry.padding)
    return y_nchw.contiguous(memory_format=layout_of(x_nchw))


LOWERINGS: dict[str, Lowering] = {"native": native, "coalesced": coalesced, "compiled": compiled}


def lowering_name(*, build: bool = True) -> str:
    """How lowerings are chosen from here on: `$SPECTRUM_LOWERING`, or "auto"; "library" is "auto" without kernels.

    Builds the kernels if they are not there yet, unless `build` says that they may wait. Raises ValueError for a name
    that does not exist.
    """
    name = os.environ.get("SPECTRUM_LOWERING", "auto")
    if name not in CHOICES:
        raise ValueError(f"SPECTRUM_LOWERING={name}: no such lowering; try {', '.join(CHOICES)}")
    if name not in ("auto", "compiled") or not build:
        return name
    if library() is not None:
        binding()  # now, lest the first step wait for it, and once before processes start that would all build it
        return name
    if name == "compiled":
        raise ValueError("SPECTRUM_LOWERING=compiled: the kernels could not be built here; try auto")
    return "library"


def still_there(name: str) -> str:
    """A choice that was made elsewhere, for a module that was stored: without kernels here, "auto" is "library"."""
    return "library" if name in ("auto", "compiled") and library() is None else name


def choose(name: str, x_nchw: Tensor, geometry: Geometry) -> str:
    """The lowering that serves this input, a key of LOWERINGS; `name` as `lowering_name` gives it."""
    if name == "native" or is_traced(x_nchw):
        return "native"
    if name in ("auto", "compiled") and _can_compile(x_nchw, geometry):
        sizes = [size for run in geometry.runs for size in (run.in_size, run.out_size)]
        # Another layout has to be converted there and back, which pays where the library is slowest.
        if name == "compiled" or (
            max(sizes) <= WIDEST_COMPILED and (_is_channels_last(x_nchw) or 2 <= max(sizes) <= 8)
        ):
            return "compiled"
    derives = name != "compiled" and _can_derive(x_nchw) and _is_channels_last(x_nchw)
    return "coalesced" if derives and any(_together(run) > 1 for run in geometry.runs) else "native"


def is_traced(x_nchw: Tensor) -> bool:
    """Whether something looks on that should see the library's own operations: a counter, an exporter,
    a function transform, forward-mode differentiation, fake tensors."""
    if torch.compiler.is_compiling():
        return bool(getattr(torch.compiler, "is_exporting", lambda: False)())
    in_a_mode = is_in_torch_dispatch_mode() or is_in_forward_mode() or is_in_transform()
    of_a_tracer = type(x_nchw) not in (Tensor, torch.nn.Parameter)
    return in_a_mode or of_a_tracer or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_of_fx(x_nchw: object) -> bool:
    """Whether fx looks on, which knows neither shape nor layout."""
    return isinstance(x_nchw, Proxy)


def takes_kernels(x_nchw: Tensor) -> bool:
    """Whether the kernels can work on this tensor at all: float32 on the CPU, not under autocast; and there are any."""
    takes = x_nchw.device.type == "cpu" and x_nchw.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return takes and _has_kernels()


def worth_folding(name: str, x_nchw: Tensor, first: Tensor, second: Tensor) -> bool:
    """Whether the folded convolution, with the folding and its gradient, takes fewer MACs than the two.

    Assumes stride 1 and "same" padding, where every pixel costs alike.
    """
    if name == "native" or is_traced(x_nchw) or not _can_derive(x_nchw):
        return False
    pixels = x_nchw.shape[0] * x_nchw.shape[2] * x_nchw.shape[3]
    (out, mid), taps = second.shape[:2], (first[0, 0].numel() * second[0, 0].numel())
    inputs = first.shape[1]
    return pixels * taps * out * inputs + taps * out * mid * inputs < pixels * (first.numel() + second.numel())


def _by_run(
    x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry, convolve: Callable[[Tensor, Tensor, Run], Tensor]
) -> Tensor:
    runs = geometry.runs
    if len(runs) == 1:
        return convolve(x_nchw, weights[0], runs[0])
    slices = x_nchw.split([run.count * run.in_size for run in runs], dim=-3)
    parts = [convolve(slices[i], weights[i], run) for i, run in enumerate(runs)]  # by number, as fx can follow
    return torch.cat(parts, dim=-3)


def _together(run: Run) -> int:
    """How many segments of a run one group takes in: up to the table's width, and a divisor of their number."""
    most = COALESCED.get(run.in_size, run.in_size) // run.in_size
    return next(n for n in range(most, 0, -1) if run.count % n == 0)


def _can_derive(x_nchw: Tensor) -> bool:
    return x_nchw.device.type == "cpu" and x_nchw.is_floating_point()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernels() -> bool:
    """Built by now, but for a module that was made on `meta` and got its numbers later."""
    return library() is not None


def _can_compile(x_nchw: Tensor, geometry: Geometry) -> bool:
    return (
        takes_kernels(x_nchw)
        and geometry.kernel_size == (3, 3)
        and geometry.stride == geometry.dilation == (1, 1)
        and max(geometry.padding) <= 2
    )


def layout_of(x_nchw: Tensor) -> torch.memory_format:
    """channels_last where the tensor is laid out so, else contiguous."""
    return torch.channels_last if _is_channels_last(x_nchw) else torch.contiguous_format


def _is_channels_last(x_nchw: Tensor) -> bool:
    return x_nchw.is_contiguous(memory_format=torch.channels_last)

"""The Triton kernels as a torch operation: tiles, launches, and results. Importing this module imports triton.

It computes kernels with sides of any length, any stride, padding and dilation, and any number and size of segments, in
float32, float16 and bfloat16. Channels_last; other layouts are converted. One launch per run of equal segments. Sums
are made in a fixed order, so a rerun gives the same bits. Differentiable to any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from spectrum.conv.backends.interface import Geometry
from spectrum.conv.kernels import triton_kernels as kernels
from spectrum.conv.kernels.derivatives import derivatives

LAST = torch.channels_last
INTERPRETED = not isinstance(kernels.sum_of_parts, triton.JITFunction)  # TRITON_INTERPRET=1: on the CPU, for tests
DEVICES: tuple[str, ...] = ("cuda", "cpu") if INTERPRETED else ("cuda",)
BY_PRODUCTS = 4  # most source channels per segment that multiply-adds compute; above, matrix products do
PER_THREAD, THREADS = 8, 128  # sums by multiply-adds: 16 bytes of a half type are read at once
NARROWEST = 16  # of a matrix product's tile
WIDEST_TARGET, WIDEST_SOURCE = 64, 32  # channels of a tile; wider segments take several
LEAST_PIXELS, MOST_PARTS, MOST_PARTIAL = 1024, 256, 2**24  # per part of a gradient; parts; their weights together


def segmented_conv2d(x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """Convolve inside each segment.

    Args:
        x_nchw: input (N, C_in, H, W), float32, float16 or bfloat16, on CUDA (on the CPU under Triton's interpreter).
        weights: one tensor per run, (count·out_size, in_size, kh, kw), of the input's type and device.
        geometry: everything else.

    Returns (N, C_out, H', W') in channels_last.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat([weight.flatten() for weight in weights])
    sizes = [number for run in geometry.runs for number in (run.count, run.in_size, run.out_size)]
    window = [*geometry.kernel_size, *geometry.stride, *geometry.padding, *geometry.dilation]
    y_nchw: Tensor = _convolve(x_nchw, weight, sizes, window)
    return y_nchw


@dataclass(frozen=True)
class Tiles:
    """Sizes of the tiles of a program, as the kernels name them, and how many programs one run of segments takes.

    together: segments joined in a tile, 0 where multiply-adds compute; pixels, target, source: sides of the tile.
    """

    together: int
    pixels: int
    target: int
    source: int

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' constants."""
        found = {"BLOCK_P": self.pixels, "BLOCK_C": self.target}
        return found if not self.together else found | {"BLOCK_S": self.source, "TOGETHER": self.together}

    def blocks(self, count: int, target: int, source: int | None = None) -> int:
        """Programs per tile of pixels, for `count` segments of `target` channels; of a gradient, `source` as well."""
        if not self.together:
            return _up(count * target, self.target) * (source or 1)
        over_source = _up(self.together * source, self.source) if source else 1
        return _up(count, self.together) * _up(self.together * target, self.target) * over_source


def tiles_of(count: int, source: int, target: int, itemsize: int) -> Tiles:
    """The tiles for a run of segments.

    Args:
        count: segments of the run.
        source: channels of each segment that are read; the sums are over them.
        target: channels of each segment that are written.
        itemsize: bytes of a number.
    """
    if source <= BY_PRODUCTS:
        block = min(64, max(NARROWEST, triton.next_power_of_2(count * target)))
        return Tiles(0, PER_THREAD * THREADS // block, block, 1)
    together = max(1, min(count, NARROWEST // max(source, target)))
    width = min(WIDEST_TARGET, max(NARROWEST, triton.next_power_of_2(together * target)))
    depth = min(WIDEST_SOURCE, max(NARROWEST, triton.next_power_of_2(together * source)))
    return Tiles(together, 64 if itemsize == 4 or width == WIDEST_TARGET else 128, width, depth)


def options_of(tiles: Tiles, itemsize: int) -> dict[str, int]:
    """Warps of a program, and stages of its pipeline of loads."""
    warps = 8 if tiles.together and tiles.target == WIDEST_TARGET else THREADS // 32  # else sums spill
    return {"num_warps": warps, "num_stages": 3 if tiles.together and itemsize == 2 else 2}


def parts_of(pixels: int, weights: int, tile: int) -> tuple[int, int]:
    """In how many parts the pixels are summed, and pixels per part, a multiple of `tile`. No card changes them."""
    most = min(MOST_PARTS, max(1, MOST_PARTIAL // weights), _up(pixels, LEAST_PIXELS))
    each = _up(_up(pixels, most), tile) * tile
    return _up(pixels, each), each


def _convolve_kernel(x: Tensor, weight: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    x, weight = x.contiguous(memory_format=LAST), _dense(weight)
    y = _result_of(x, sizes, window)
    if y.numel():
        _launch_convolution(x, weight, y, sizes, window, is_gradient=False)
    return y


def _convolve_like(x: Tensor, weight: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    return _result_of(x, sizes, window)


def _convolve_backward_kernel(
    x: Tensor, weight: Tensor, gy: Tensor, sizes: list[int], window: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    x, weight, gy = x.contiguous(memory_format=LAST), _dense(weight), gy.contiguous(memory_format=LAST)
    gx, gw = _gradients_of(x, weight, needs_x, needs_w)
    if not gy.numel():
        return gx.zero_(), gw.zero_()
    if needs_x:
        _launch_convolution(gy, weight, gx, sizes, window, is_gradient=True)
    if needs_w:
        _launch_gradient(x, gy, gw, sizes, window)
    return gx, gw


def _convolve_backward_like(
    x: Tensor, weight: Tensor, gy: Tensor, sizes: list[int], window: list[int], needs_x: bool, needs_w: bool
) -> tuple[Tensor, Tensor]:
    return _gradients_of(x, _dense(weight), needs_x, needs_w)


def _operations() -> tuple[Any, Any]:
    """Both operations, registered with torch."""
    how: dict[str, Any] = {"mutates_args": (), "device_types": DEVICES}
    forward = torch.library.custom_op("spectrum::triton_conv2d", _convolve_kernel, **how)
    backward = torch.library.custom_op("spectrum::triton_conv2d_backward", _convolve_backward_kernel, **how)
    forward.register_fake(_convolve_like)
    backward.register_fake(_convolve_backward_like)
    found = derivatives(forward, backward)
    forward.register_autograd(found.backward, setup_context=found.save)
    backward.register_autograd(found.backward_of_backward, setup_context=found.save_backward)
    return forward, backward


_convolve, _convolve_backward = _operations()


@dataclass(frozen=True)
class _Part:
    """A run of segments: its number of segments, their sizes, first channels, and where its weights lie."""

    count: int
    in_size: int
    out_size: int
    in_first: int
    out_first: int
    w_first: int
    w_out: int  # from one output channel to the next
    w_in: int
    w_taps: tuple[int, int]


def _parts(weight: Tensor, sizes: list[int], kernel: list[int]) -> Iterator[_Part]:
    taps = math.prod(kernel)
    in_first = out_first = w_first = 0
    for count, in_size, out_size in zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True):
        w_out, w_in, *w_taps = weight.stride() if weight.dim() == 4 else (taps * in_size, taps, kernel[1], 1)
        yield _Part(count, in_size, out_size, in_first, out_first, w_first, w_out, w_in, (w_taps[0], w_taps[1]))
        in_first, out_first = in_first + count * in_size, out_first + count * out_size
        w_first += count * out_size * in_size * taps


def _launch_convolution(
    source: Tensor, weight: Tensor, target: Tensor, sizes: list[int], window: list[int], *, is_gradient: bool
) -> None:
    pixels = target.shape[0] * target.shape[2] * target.shape[3]
    for part in _parts(weight, sizes, window[:2]):
        of_input, of_output = (part.in_size, part.in_first, part.w_in), (part.out_size, part.out_first, part.w_out)
        read, written = (of_output, of_input) if is_gradient else (of_input, of_output)
        tiles = tiles_of(part.count, read[0], written[0], source.element_size())
        kernel = kernels.convolve_by_tiles if tiles.together else kernels.convolve_by_products
        grid = (_up(pixels, tiles.pixels) * tiles.blocks(part.count, written[0]),)
        with torch.cuda.device_of(source):
            kernel[grid](
                *(source, weight, target, pixels, *source.shape[2:], *target.shape[2:]),
                *(source.shape[1], target.shape[1], read[1], written[1], part.count),
                *(part.w_first, part.out_size * part.w_out, written[2], read[2], *part.w_taps, *window[4:6]),
                **constants_of(window, read[0], written[0], tiles, source.dtype),
                IS_GRADIENT=is_gradient,
                **options_of(tiles, source.element_size()),
            )


def _launch_gradient(x: Tensor, gy: Tensor, gw: Tensor, sizes: list[int], window: list[int]) -> None:
    pixels, weights = gy.shape[0] * gy.shape[2] * gy.shape[3], gw.numel()
    number, each = parts_of(pixels, weights, 128)
    parts = torch.empty((number, weights), dtype=torch.float32, device=gw.device)
    with torch.cuda.device_of(gw):
        for part in _parts(gw, sizes, window[:2]):
            tiles = tiles_of(part.count, part.in_size, part.out_size, x.element_size())
            kernel = kernels.gradient_by_tiles if tiles.together else kernels.gradient_by_products
            blocks = tiles.blocks(part.count, part.out_size, part.in_size)
            kernel[(blocks * window[0] * window[1], number)](
                *(x, gy, parts, pixels, *x.shape[2:], *gy.shape[2:], x.shape[1], gy.shape[1]),
                *(part.in_first, part.out_first, part.count, part.w_first, part.out_size * part.w_out),
                *(part.w_out, part.w_in, *part.w_taps, *window[4:6], weights, each),
                **constants_of(window, part.in_size, part.out_size, tiles, x.dtype),
                **options_of(tiles, x.element_size()),
            )
        block = 256
        kernels.sum_of_parts[(_up(weights, block),)](parts, gw, weights, number, BLOCK=block)


def constants_of(window: list[int], source: int, target: int, tiles: Tiles, dtype: torch.dtype) -> dict[str, Any]:
    """What the kernels are compiled for.

    Args:
        window: kernel, stride, padding and dilation, vertical and horizontal.
        source: channels of a segment that are read.
        target: channels of a segment that are written.
        tiles: what `tiles_of` gives for them.
        dtype: type of the tensors.
    """
    names = ("KH", "KW", "SH", "SW", "DH", "DW")
    found = dict(zip(names, (*window[:4], *window[6:]), strict=True), SOURCE=source, TARGET=target, **tiles.constants)
    if not tiles.together:
        return found
    widen = INTERPRETED and dtype == torch.bfloat16  # the interpreter multiplies the bits of bfloat16
    rounds = dtype == torch.float32 and torch.backends.cudnn.allow_tf32  # as torch's own convolution
    return found | {"PRECISION": "tf32" if rounds else "ieee", "WIDEN": widen}


def _result_of(x: Tensor, sizes: list[int], window: list[int]) -> Tensor:
    channels = sum(count * out for count, out in zip(sizes[::3], sizes[2::3], strict=True))
    sides = zip(x.shape[2:], window[:2], window[2:4], window[4:6], window[6:], strict=True)
    height, width = ((side + 2 * pad - far * (k - 1) - 1) // step + 1 for side, k, step, pad, far in sides)
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)


def _gradients_of(x: Tensor, weight: Tensor, needs_x: bool, needs_w: bool) -> tuple[Tensor, Tensor]:
    """Allocate both gradients; one that is not needed is empty."""
    gx = torch.empty_like(x, memory_format=LAST) if needs_x else x.new_empty(0)
    return gx, torch.empty_like(weight) if needs_w else weight.new_empty(0)


def _dense(weight: Tensor) -> Tensor:
    """The weights, copied unless they fill their memory in one of torch's two layouts."""
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=LAST)
    return weight if last else weight.contiguous()


def _up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)

"""Trained kernels as a 1×1 and a segmented convolution: the best approximation, and how much of the kernel it keeps.

For each segment this is a low-rank problem, which a truncated singular value decomposition solves (Eckart and Young
1936). Pointwise-first, a segment's kernels, unfolded to outputs·k² × inputs, are approximated by a matrix whose rank is
the segment's middle channels; spatial-first, outputs × inputs·k². Per-channel and spatial-first this is Network
Decoupling (Guo et al. 2018, arXiv:1808.05517), exact with k² middle channels per input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrum.conv.segmented import SegmentedConv2d


@torch.no_grad()
def approximate(new: SegmentedConv2d, kernel: Tensor) -> None:
    """Set the weights of a linear layer to the best approximation of a kernel (out, in, kh, kw), or to its blocks."""
    if new.pointwise is None:
        blocks = [kernel[rows, columns] for rows, columns in _blocks(new)]
    else:
        blocks, matrices = _factors(new, kernel)
        joined = torch.cat(matrices, dim=0 if new.order == "pointwise_first" else 1)
        new.pointwise.weights[0].copy_(joined[:, :, None, None])
    for weight, run in zip(new.spatial.weights, new.spatial.geometry.runs, strict=True):
        weight.copy_(torch.cat(blocks[: run.count]))
        blocks = blocks[run.count :]


def _blocks(new: SegmentedConv2d) -> list[tuple[slice, slice]]:
    """The output and input channels of each segment of the spatial convolution."""
    found, out, first = [], 0, 0
    for run in new.spatial.geometry.runs:
        for _ in range(run.count):
            found.append((slice(out, out + run.out_size), slice(first, first + run.in_size)))
            out, first = out + run.out_size, first + run.in_size
    return found


def _factors(new: SegmentedConv2d, kernel: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The spatial kernel of each segment, and its rows (pointwise-first) or columns of the 1×1, computed in float64."""
    outputs, inputs, height, width = kernel.shape
    spatial, matrices = [], []
    for rows, columns in _blocks(new):
        middle = columns if new.order == "pointwise_first" else rows
        rank = middle.stop - middle.start
        if new.order == "pointwise_first":
            part = kernel[rows].double().permute(0, 2, 3, 1)
            left, right = _truncated(part.reshape(-1, inputs), rank)
            spatial.append(left.reshape(-1, height, width, rank).permute(0, 3, 1, 2).to(kernel))
            matrices.append(right.to(kernel))
        else:
            part = kernel[:, columns].double()
            left, right = _truncated(part.reshape(outputs, -1), rank)
            spatial.append(right.reshape(rank, -1, height, width).to(kernel))
            matrices.append(left.to(kernel))
    return spatial, matrices


def _truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors (rows, rank) and (rank, columns) of a matrix, each with half of every singular value.

    Beyond the matrix's own rank they are zero.
    """
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    left, right = matrix.new_zeros(matrix.shape[0], rank), matrix.new_zeros(rank, matrix.shape[1])
    left[:, :kept], right[:kept] = u[:, :kept] * root, root[:, None] * v[:kept]
    return left, right


def kernel_of(layer: SegmentedConv2d) -> Tensor:
    """The dense kernel (out, in, kh, kw) that a linear layer amounts to, without its bias.

    Raises ValueError for a layer with something between its two convolutions.
    """
    between = [part for part in layer.between.modules() if not isinstance(part, nn.Identity | nn.Sequential)]
    if between or layer.shuffle is not None:
        raise ValueError(f"{layer}: is not linear, or reorders channels between its convolutions")
    weights: list[Tensor] = [
        block
        for run, one in zip(layer.spatial.geometry.runs, layer.spatial.weights, strict=True)
        for block in one.split(run.out_size)
    ]
    places = _blocks(layer)
    dense: Tensor = weights[0].new_zeros(places[-1][0].stop, places[-1][1].stop, *layer.spatial.geometry.kernel_size)
    for (rows, columns), block in zip(places, weights, strict=True):
        dense[rows, columns] = block
    if layer.pointwise is None:
        return dense
    matrix: Tensor = layer.pointwise.weights[0][:, :, 0, 0]
    if layer.order == "pointwise_first":
        return dense.permute(0, 2, 3, 1).matmul(matrix).permute(0, 3, 1, 2)
    return matrix.matmul(dense.flatten(1)).view(-1, *dense.shape[1:])


def energy_of(layer: nn.Conv2d) -> float:
    """The sum of a kernel's squared weights."""
    return float(layer.weight.detach().double().square().sum())


@torch.no_grad()
def energy_kept(layer: nn.Conv2d, new: SegmentedConv2d) -> float:
    """The part of a kernel's squared weights that a new layer reproduces: 1 − ‖W − Ŵ‖² / ‖W‖²; NaN for zeros."""
    energy = energy_of(layer)
    lost = float((layer.weight.double() - kernel_of(new).double()).square().sum())
    return 1 - lost / energy if energy else float("nan")

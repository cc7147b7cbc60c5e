"""A slow, obvious segmented convolution: sums over kernel offsets, one segment after another."""

import torch
from torch.nn.functional import pad

from spectrum.conv.segments import segment_sizes


def dense_convolution(x_nchw, weight_oikk, stride, padding, dilation):
    """A convolution as the sum of its kernel's shifted products."""
    (sv, sh), (pv, ph), (dv, dh) = stride, padding, dilation
    kh, kw = weight_oikk.shape[2:]
    x_nchw = pad(x_nchw, (ph, ph, pv, pv))
    height = (x_nchw.shape[2] - dv * (kh - 1) - 1) // sv + 1
    width = (x_nchw.shape[3] - dh * (kw - 1) - 1) // sh + 1
    total = 0
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dv, i * dv + (height - 1) * sv + 1, sv)
            columns = slice(j * dh, j * dh + (width - 1) * sh + 1, sh)
            total = total + torch.einsum("nchw,oc->nohw", x_nchw[:, :, rows, columns], weight_oikk[:, :, i, j])
    return total


def kernels_by_segment(half):
    """The kernel of each segment, in channel order, from the tensors that serve runs of equal segments."""
    return [
        kernel
        for run, weight in zip(half.geometry.runs, half.weights, strict=True)
        for kernel in weight.split(run.out_size)
    ]


def segmented_half(x_nchw, half, kernels):
    """Each segment's own channels convolved with its own kernel, then concatenated."""
    start, parts = 0, []
    for kernel in kernels:
        part = x_nchw[:, start : start + kernel.shape[1]]
        parts.append(
            dense_convolution(part, kernel, half.geometry.stride, half.geometry.padding, half.geometry.dilation)
        )
        start += kernel.shape[1]
    assert start == x_nchw.shape[1]
    return torch.cat(parts, dim=1)


def block_diagonal(kernels):
    """The dense kernel that is zero between channels of different segments."""
    out_channels, in_channels = (sum(kernel.shape[d] for kernel in kernels) for d in (0, 1))
    dense = kernels[0].new_zeros(out_channels, in_channels, *kernels[0].shape[2:])
    o = i = 0
    for kernel in kernels:
        dense[o : o + kernel.shape[0], i : i + kernel.shape[1]] = kernel
        o, i = o + kernel.shape[0], i + kernel.shape[1]
    return dense


def deal_round(x_nchw, segments):
    """Channel shuffle, one channel at a time: from each segment in turn its next channel."""
    segments_of_x = list(x_nchw.split(list(segment_sizes(x_nchw.shape[1], segments)), dim=1))
    rounds = max(part.shape[1] for part in segments_of_x)
    dealt = [part[:, r : r + 1] for r in range(rounds) for part in segments_of_x if r < part.shape[1]]
    return torch.cat(dealt, dim=1)


def collect(x_nchw, segments):
    """The inverse of `deal_round`: channel c goes to segment c mod `segments`."""
    return torch.cat([x_nchw[:, s::segments] for s in range(segments)], dim=1)


def segmented_conv2d(module, x_nchw):
    """Result of a SegmentedConv2d by its definition."""
    spatial = (
        segmented_half(x_nchw, module.spatial, kernels_by_segment(module.spatial)) if module.pointwise is None else None
    )
    if module.pointwise is not None:
        segments = sum(run.count for run in module.pointwise.geometry.runs)
        first, second = module.pointwise, module.spatial
        rearrange = deal_round
        if module.order == "spatial_first":
            first, second = second, first
            rearrange = collect
        between = module.between(segmented_half(x_nchw, first, kernels_by_segment(first)))
        if module.shuffle is not None:
            between = rearrange(between, segments)
        spatial = segmented_half(between, second, kernels_by_segment(second))
    return spatial if module.bias is None else spatial + module.bias[:, None, None]

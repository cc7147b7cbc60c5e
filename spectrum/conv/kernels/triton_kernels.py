"""Kernels in Triton: a convolution inside segments, its gradients, and the sum of partial gradients.

Importing this module imports triton. Every tensor of pixels is in channels_last. A convolution and the gradient of its
input are one kernel: each *target* pixel sums what the taps read from *source* pixels, the input's or the output
gradient's. Sums are in float32.

    convolve_by_products    multiply-adds, for few source channels per segment
    convolve_by_tiles       matrix products of tiles that join narrow segments, with zeros between them
    gradient_by_products    partial gradients of the weights, one source channel of each segment per program
    gradient_by_tiles       the same by matrix products
    sum_of_parts            the sum of partial gradients, always in the same order

Zero times infinity is NaN, so the zeros of a joined tile would carry an infinity into the neighbouring segments. A tile
whose sums are not all finite is therefore computed again by multiply-adds within segments. Zeros that pad the input are
multiplied, as in a convolution of the padded input; what lies outside of an output gradient is left out.
"""

import triton
import triton.language as tl


@triton.jit
def _pixels(first, count, height, width, BLOCK_P: tl.constexpr):
    """Image, row and column of BLOCK_P pixels from `first` on, and whether each is below `count`."""
    pixel = first + tl.arange(0, BLOCK_P)
    row = pixel // width
    return row // height, row % height, pixel % width, pixel < count


@triton.jit
def _source(
    image,
    row,
    column,
    i,
    j,
    source_h,
    source_w,
    pad_h,
    pad_w,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    IS_GRADIENT: tl.constexpr,
):
    """Number of the source pixel that tap (i, j) of each target pixel reads, and whether there is one."""
    if IS_GRADIENT:
        down, right = row + pad_h - i * DH, column + pad_w - j * DW
        source_row, source_column = down // SH, right // SW
        inside = (down >= 0) & (right >= 0) & (down % SH == 0) & (right % SW == 0)
    else:
        source_row, source_column = row * SH - pad_h + i * DH, column * SW - pad_w + j * DW
        inside = (source_row >= 0) & (source_column >= 0)
    inside = inside & (source_row < source_h) & (source_column < source_w)
    return (image * source_h + source_row) * source_w + source_column, inside


@triton.jit
def _sum_of_products(
    x,
    w,
    image,
    row,
    column,
    is_pixel,
    segment,
    within,
    is_channel,
    source_h,
    source_w,
    source_channels,
    source_first,
    w_segment,
    w_target,
    w_source,
    w_row,
    w_column,
    pad_h,
    pad_w,
    SOURCE: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    IS_GRADIENT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums (BLOCK_P, BLOCK_C) of target channels: number `within` of segment `segment` of the run."""
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for i in range(KH):
        for j in range(KW):
            pixel, inside = _source(
                image, row, column, i, j, source_h, source_w, pad_h, pad_w, SH, SW, DH, DW, IS_GRADIENT
            )
            inside = (inside & is_pixel)[:, None]
            x_at = x + (pixel.to(tl.int64) * source_channels + source_first)[:, None] + (segment * SOURCE)[None, :]
            w_at = w + segment * w_segment + within * w_target + i * w_row + j * w_column
            for s in range(SOURCE):
                value = tl.load(x_at + s, mask=inside & is_channel[None, :], other=0.0).to(tl.float32)
                weight = tl.load(w_at + s * w_source, mask=is_channel, other=0.0).to(tl.float32)
                product = value * weight[None, :]
                if IS_GRADIENT:
                    product = tl.where(inside, product, 0.0)
                total += product
    return total


@triton.jit
def convolve_by_products(
    x,
    w,
    y,
    pixels,
    source_h,
    source_w,
    target_h,
    target_w,
    source_channels,
    target_channels,
    source_first,
    target_first,
    count,
    w_first,
    w_segment,
    w_target,
    w_source,
    w_row,
    w_column,
    pad_h,
    pad_w,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    IS_GRADIENT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_P target pixels × BLOCK_C target channels of a run."""
    # long: Triton takes numbers one by one
    blocks = tl.cdiv(count * TARGET, BLOCK_C)
    block = tl.program_id(0) % blocks
    image, row, column, is_pixel = _pixels(tl.program_id(0) // blocks * BLOCK_P, pixels, target_h, target_w, BLOCK_P)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < count * TARGET
    total = _sum_of_products(
        x,
        w + w_first,
        image,
        row,
        column,
        is_pixel,
        channel // TARGET,
        channel % TARGET,
        is_channel,
        source_h,
        source_w,
        source_channels,
        source_first,
        w_segment,
        w_target,
        w_source,
        w_row,
        w_column,
        pad_h,
        pad_w,
        SOURCE,
        KH,
        KW,
        SH,
        SW,
        DH,
        DW,
        IS_GRADIENT,
        BLOCK_P,
        BLOCK_C,
    )
    pixel = (image * target_h + row) * target_w + column
    y_at = y + (pixel.to(tl.int64) * target_channels + target_first)[:, None] + channel[None, :]
    tl.store(y_at, total, mask=is_pixel[:, None] & is_channel[None, :])


@triton.jit
def convolve_by_tiles(
    x,
    w,
    y,
    pixels,
    source_h,
    source_w,
    target_h,
    target_w,
    source_channels,
    target_channels,
    source_first,
    target_first,
    count,
    w_first,
    w_segment,
    w_target,
    w_source,
    w_row,
    w_column,
    pad_h,
    pad_w,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    IS_GRADIENT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One program: BLOCK_P target pixels × BLOCK_C target channels of TOGETHER segments, from BLOCK_S at a time."""
    # long: Triton takes numbers one by one
    tiles: tl.constexpr = (TOGETHER * TARGET + BLOCK_C - 1) // BLOCK_C
    steps: tl.constexpr = (TOGETHER * SOURCE + BLOCK_S - 1) // BLOCK_S
    blocks = tl.cdiv(count, TOGETHER) * tiles
    block = tl.program_id(0) % blocks
    image, row, column, is_pixel = _pixels(tl.program_id(0) // blocks * BLOCK_P, pixels, target_h, target_w, BLOCK_P)
    first = block // tiles * TOGETHER  # segment
    target = block % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    target_segment = first + target // TARGET
    is_target = (target < TOGETHER * TARGET) & (target_segment < count)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in range(KH * KW * steps):
        i, j = step // steps // KW, step // steps % KW
        source = step % steps * BLOCK_S + tl.arange(0, BLOCK_S)
        source_segment = first + source // SOURCE
        is_source = (source < TOGETHER * SOURCE) & (source_segment < count)
        pixel, inside = _source(image, row, column, i, j, source_h, source_w, pad_h, pad_w, SH, SW, DH, DW, IS_GRADIENT)
        x_at = x + (pixel.to(tl.int64) * source_channels + source_first + first * SOURCE)[:, None] + source[None, :]
        values = tl.load(x_at, mask=(inside & is_pixel)[:, None] & is_source[None, :], other=0.0)
        w_at = w + w_first + i * w_row + j * w_column
        w_at += (source % SOURCE * w_source)[:, None] + (target_segment * w_segment + target % TARGET * w_target)[
            None, :
        ]
        own = (source_segment[:, None] == target_segment[None, :]) & is_source[:, None] & is_target[None, :]
        weights = tl.load(w_at, mask=own, other=0.0)
        if WIDEN:
            values, weights = values.to(tl.float32), weights.to(tl.float32)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
    if tl.max(tl.max(((total - total) != 0.0).to(tl.int32), 1), 0) > 0:  # NaN for infinities and NaN
        total = _sum_of_products(
            x,
            w + w_first,
            image,
            row,
            column,
            is_pixel,
            target_segment,
            target % TARGET,
            is_target,
            source_h,
            source_w,
            source_channels,
            source_first,
            w_segment,
            w_target,
            w_source,
            w_row,
            w_column,
            pad_h,
            pad_w,
            SOURCE,
            KH,
            KW,
            SH,
            SW,
            DH,
            DW,
            IS_GRADIENT,
            BLOCK_P,
            BLOCK_C,
        )
    pixel = (image * target_h + row) * target_w + column
    y_at = y + (pixel.to(tl.int64) * target_channels + target_first + first * TARGET)[:, None] + target[None, :]
    tl.store(y_at, total, mask=is_pixel[:, None] & is_target[None, :])


@triton.jit
def gradient_by_products(
    x,
    gy,
    parts,
    pixels,
    source_h,
    source_w,
    target_h,
    target_w,
    source_channels,
    target_channels,
    source_first,
    target_first,
    count,
    w_first,
    w_segment,
    w_target,
    w_source,
    w_row,
    w_column,
    pad_h,
    pad_w,
    weights,
    pixels_of_part,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one part of the pixels, one tap and source channel, BLOCK_C target channels."""
    # long: Triton takes numbers one by one
    blocks = tl.cdiv(count * TARGET, BLOCK_C)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < count * TARGET
    rest = tl.program_id(0) // blocks
    s, i, j = rest % SOURCE, rest // SOURCE // KW, rest // SOURCE % KW
    segment = channel // TARGET
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    part = tl.program_id(1)
    for start in range(0, pixels_of_part, BLOCK_P):
        image, row, column, is_pixel = _pixels(part * pixels_of_part + start, pixels, target_h, target_w, BLOCK_P)
        pixel, inside = _source(image, row, column, i, j, source_h, source_w, pad_h, pad_w, SH, SW, DH, DW, False)
        inside = (inside & is_pixel)[:, None] & is_channel[None, :]
        x_at = x + (pixel.to(tl.int64) * source_channels + source_first + s)[:, None] + (segment * SOURCE)[None, :]
        own = (image * target_h + row) * target_w + column
        gy_at = gy + (own.to(tl.int64) * target_channels + target_first)[:, None] + channel[None, :]
        gradient = tl.load(gy_at, mask=is_pixel[:, None] & is_channel[None, :], other=0.0).to(tl.float32)
        total += gradient * tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    at = parts + part * weights + w_first + s * w_source + i * w_row + j * w_column
    tl.store(at + segment * w_segment + channel % TARGET * w_target, tl.sum(total, 0), mask=is_channel)


@triton.jit
def gradient_by_tiles(
    x,
    gy,
    parts,
    pixels,
    source_h,
    source_w,
    target_h,
    target_w,
    source_channels,
    target_channels,
    source_first,
    target_first,
    count,
    w_first,
    w_segment,
    w_target,
    w_source,
    w_row,
    w_column,
    pad_h,
    pad_w,
    weights,
    pixels_of_part,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One program: one part of the pixels, one tap, BLOCK_C target × BLOCK_S source channels of TOGETHER segments."""
    # long: Triton takes numbers one by one
    tiles: tl.constexpr = (TOGETHER * TARGET + BLOCK_C - 1) // BLOCK_C
    steps: tl.constexpr = (TOGETHER * SOURCE + BLOCK_S - 1) // BLOCK_S
    tap, rest = tl.program_id(0) % (KH * KW), tl.program_id(0) // (KH * KW)
    i, j = tap // KW, tap % KW
    first = rest // (tiles * steps) * TOGETHER  # segment
    target = rest % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    source = rest // tiles % steps * BLOCK_S + tl.arange(0, BLOCK_S)
    target_segment, source_segment = first + target // TARGET, first + source // SOURCE
    is_target = (target < TOGETHER * TARGET) & (target_segment < count)
    is_source = (source < TOGETHER * SOURCE) & (source_segment < count)
    total = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    part = tl.program_id(1)
    for start in range(0, pixels_of_part, BLOCK_P):
        image, row, column, is_pixel = _pixels(part * pixels_of_part + start, pixels, target_h, target_w, BLOCK_P)
        pixel, inside = _source(image, row, column, i, j, source_h, source_w, pad_h, pad_w, SH, SW, DH, DW, False)
        x_at = x + (pixel.to(tl.int64) * source_channels + source_first + first * SOURCE)[:, None] + source[None, :]
        values = tl.load(x_at, mask=(inside & is_pixel)[:, None] & is_source[None, :], other=0.0)
        own = (image * target_h + row) * target_w + column
        gy_at = gy + (own.to(tl.int64) * target_channels + target_first + first * TARGET)[:, None] + target[None, :]
        gradient = tl.load(gy_at, mask=is_pixel[:, None] & is_target[None, :], other=0.0)
        if WIDEN:
            values, gradient = values.to(tl.float32), gradient.to(tl.float32)
        total = tl.dot(tl.trans(gradient), values, total, input_precision=PRECISION)
    at = parts + part * weights + w_first + i * w_row + j * w_column
    at += (target_segment * w_segment + target % TARGET * w_target)[:, None] + (source % SOURCE * w_source)[None, :]
    own = (target_segment[:, None] == source_segment[None, :]) & is_target[:, None] & is_source[None, :]
    tl.store(at, total, mask=own)


@triton.jit
def sum_of_parts(parts, gw, weights, count, BLOCK: tl.constexpr):
    """One program: BLOCK weights, summed over all `count` parts in their order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_weight = at < weights
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(count):
        total += tl.load(parts + part * weights + at, mask=is_weight, other=0.0)
    tl.store(gw + at, total, mask=is_weight)

"""Parts that several architectures share: the operation, the classifier, and the block of Xception's middle flow.

Shapes: x_nchw is (N, C, H, W); blocks with stride 1 keep H and W.
"""

from collections import Counter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.padding import same_padding
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.models.options import NetworkOptions
from spectrum.models.position import Position


def segmented(
    arch: NetworkOptions, in_channels: int, out_channels: int, stride: int = 1, stage: int = 0
) -> SegmentedConv2d:
    """Make the operation with a 3×3 from a network's options, its segments clamped to the number of channels.

    Args:
        arch: options of the network: segments, segment_width, stage_segments or segment_shares; order, activation,
            norm, pointwise, pointwise_segments and shuffle.
        in_channels: channels of the operation's input.
        out_channels: channels of its output.
        stride: stride of the 3×3.
        stage: number of the stage, which selects the entry of `stage_segments`.

    >>> segmented(NetworkOptions(segments=32), 16, 24).segments
    24
    """
    order = arch.order or "pointwise_first"
    if not arch.pointwise:
        channels = min(in_channels, out_channels)
    elif order == "pointwise_first":
        channels = out_channels
    else:
        channels = in_channels
    position = Position.of(arch)
    pointwise_segments = min(arch.pointwise_segments, in_channels, out_channels)
    too_many = "pointwise_segments" if arch.pointwise_segments > pointwise_segments else None
    made = SegmentedConv2d(
        in_channels,
        out_channels,
        stride=stride,
        segments=position.segments_of(channels, stage),
        order=order,
        activation=arch.activation,
        norm=bool(arch.norm),
        pointwise=arch.pointwise,
        pointwise_segments=pointwise_segments,
        shuffle=arch.shuffle and pointwise_segments > 1,
    )
    mark_clamped(made, position.clamped_by(channels, stage), too_many)
    for module in made.modules():
        if isinstance(module, BatchNormAct2d):
            _set_norm(arch, module)
    return made


def mark_clamped(module: nn.Module, *options: str | None) -> None:
    """Record, for `clamped_layers`, the options that ask a layer for more segments than it has channels."""
    module.clamped_options = tuple(filter(None, options))  # type: ignore[assignment]


def clamped_layers(model: nn.Module) -> dict[str, int]:
    """Count, for each option, the layers that have too few channels for it.

    Counts modules made by `segmented` or marked by `mark_clamped`.

    >>> from spectrum import build_model
    >>> clamped_layers(build_model("probe", stage_segments=(64, 8, 64)))
    {'stage_segments': 2}
    """
    marks = (getattr(module, "clamped_options", ()) for module in model.modules())
    return dict(Counter(option for options in marks for option in options))


def unreachable_options(model: nn.Module) -> list[str]:
    """Options that every operation of a network has too few channels for, so they apply nowhere as given.

    >>> from spectrum import build_model
    >>> unreachable_options(build_model("probe", segment_width=200))
    ['segment_width']
    """
    layers = len(realised_segments(model))
    return [option for option, count in clamped_layers(model).items() if count == layers]


def realised_segments(model: nn.Module) -> list[int]:
    """The actual number of segments of each segmented convolution of a network, in the order of its modules.

    >>> from spectrum import build_model
    >>> realised_segments(build_model("probe", segments=64))
    [32, 32, 64, 64, 64, 64]
    """
    return [module.segments for module in model.modules() if isinstance(module, SegmentedConv2d)]


def norm(arch: NetworkOptions, channels: int, *, relu: bool = False) -> BatchNormAct2d:
    """Make batch normalisation with the network's eps and momentum, and ReLU if `relu`."""
    made = BatchNormAct2d(channels, relu=relu)
    _set_norm(arch, made)
    return made


def _set_norm(arch: NetworkOptions, made: BatchNormAct2d) -> None:
    made.eps = made.eps if arch.norm_eps is None else arch.norm_eps
    made.momentum = made.momentum if arch.norm_momentum is None else arch.norm_momentum


def classifier(arch: NetworkOptions, channels: int) -> nn.Sequential:
    """Make the classifier: global average pool, fully connected layers with ReLU, dropout, logistic regression."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for hidden in arch.hidden:
        layers += [nn.Linear(channels, hidden), nn.ReLU()]
        channels = hidden
    return nn.Sequential(*layers, nn.Dropout(arch.dropout), nn.Linear(channels, arch.num_classes))


class PaddedMaxPool2d(nn.Module):
    """Max pooling with a stride of 2 or more to ⌈H/stride⌉ pixels, padded as in torch or as in TensorFlow's SAME.

    torch pads (k−1)/2 on both sides. SAME pads what the windows need, an odd pixel at the bottom and the right, so for
    an even number of pixels its windows are shifted by one pixel.
    """

    def __init__(self, kernel_size: int, stride: int, *, padding: Literal["tf_same", "torch"]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x_nchw: Tensor) -> Tensor:
        if self.padding == "torch":
            return max_pool2d(x_nchw, self.kernel_size, self.stride, self.kernel_size // 2)
        return max_pool_same(x_nchw, self.kernel_size, self.stride)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding!r}"


@torch.fx.wrap  # it reads the size of its input, which fx does not know
def max_pool_same(x_nchw: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pool the maximum to ⌈H/stride⌉ pixels, padded as in TensorFlow's SAME."""
    before = [same_padding(side, kernel_size, stride)[0] for side in x_nchw.shape[-2:]]
    return max_pool2d(x_nchw, kernel_size, stride, before, ceil_mode=True)  # without a padded copy


def skip(arch: NetworkOptions, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Make the skip connection of a block; None without residual connections.

    It is the identity, or a 1×1 and BN if channels or pixels change. Its input is the block's input after `every_pixel`
    with the block's stride.
    """
    if not arch.residual:
        return None
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), norm(arch, out_channels))


def stem_stride(arch: NetworkOptions) -> int:
    """Stride of the first convolution of small networks: by default 2 from 16 pixels up, else 1."""
    return arch.stem_stride or (2 if arch.image_size >= 16 else 1)


def check_size(arch: NetworkOptions, name: str, least: int) -> None:
    """Raise ValueError if the images have fewer than `least` pixels per side."""
    if arch.image_size < least:
        at = "" if arch.stem_stride is None else f" with stem_stride = {arch.stem_stride}"
        raise ValueError(f"image_size={arch.image_size}: {name} needs at least {least} pixels per side{at}")


class MiddleFlowBlock(nn.Module):
    """Twice ReLU, operation, BN; added to the input (through a 1×1 and BN if channels or pixels change).

    A block of Xception's middle flow repeats these three layers three times (Chollet 2017, Fig. 5). The first operation
    has the stride. The skip takes every stride-th pixel, then its 1×1, which equals a 1×1 with that stride.
    """

    def __init__(
        self, arch: NetworkOptions, in_channels: int, out_channels: int, stride: int = 1, stage: int = 0
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            segmented(arch, in_channels, out_channels, stride, stage),
            norm(arch, out_channels, relu=True),
            segmented(arch, out_channels, out_channels, stage=stage),
        )
        self.norm = norm(arch, out_channels)
        self.stride, self.skip = stride, skip(arch, in_channels, out_channels, stride)

    def forward(self, x_nchw: Tensor) -> Tensor:
        added_nchw = None if self.skip is None else self.skip(every_pixel(x_nchw, self.stride))
        y_nchw: Tensor = self.norm(self.body(x_nchw), added_nchw)
        return y_nchw


def every_pixel(x_nchw: Tensor, stride: int) -> Tensor:
    """Take every stride-th pixel in both directions, starting with the first.

    A strided 1×1 would do this by itself, but oneDNN's gradient of its weights over few channels_last channels writes
    past its workspace (uxlfoundation/oneDNN, issue 6035). The mean over one pixel is that pixel; unlike slicing, it
    keeps the memory layout in both passes.
    """
    return x_nchw if stride == 1 else avg_pool2d(x_nchw, 1, stride)

"""ResNeXt (Xie et al. 2017, arXiv:1611.05431), whose cardinality is the number of segments, and a small version.

    stem    7×7 of 64, stride 2; BN, ReLU; max pool 3×3, stride 2
    stage i depths[i] bottlenecks: the operation (1×1, BN, ReLU, 3×3 in segments), BN, ReLU, 1×1, BN; added to the input
    exit    global average pool, logistic regression

The paper's 32×4d network, ResNet-50's layout with 32 segments of 4 channels, has 25,028,904 parameters. Widths are the
widths of the bottlenecks; the output of a block has twice as many channels.

The small version, for images of 8 to 32 pixels, has three stages of two such blocks and the stem of `probe`: one 3×3,
with a stride of 2 from 16 pixels up. Shapes: x_nchw is (N, C, H, W).
"""

from torch import Tensor, nn

from spectrum.models.blocks import (
    PaddedMaxPool2d,
    check_size,
    classifier,
    every_pixel,
    norm,
    segmented,
    skip,
    stem_stride,
)
from spectrum.models.options import NetworkOptions

WIDTHS = (128, 256, 512, 1024)
DEPTHS = (3, 4, 6, 3)
STEM = 64
SMALL_WIDTHS = (16, 32, 64)
SMALL_DEPTHS = (2, 2, 2)


def build_resnext(arch: NetworkOptions) -> nn.Module:
    """Build the network. Raises ValueError for images of fewer than 32 pixels per side: 16 times the stem's stride."""
    stride = arch.stem_stride or 2
    check_size(arch, "resnext", 16 * stride)
    stem = nn.Sequential(
        nn.Conv2d(arch.in_channels, STEM, 7, stride, padding=3, bias=False),
        norm(arch, STEM, relu=True),
        PaddedMaxPool2d(3, 2, padding=arch.padding or "torch"),
    )
    return ResNeXt(arch, stem, STEM, resnext_widths(arch), DEPTHS)


def build_resnext_small(arch: NetworkOptions) -> nn.Module:
    """Build the small network. Raises ValueError for images of fewer pixels per side than 4 times the stem's stride."""
    check_size(arch, "resnext_small", 4 * stem_stride(arch))
    widths = resnext_small_widths(arch)
    stem = nn.Sequential(
        nn.Conv2d(arch.in_channels, 2 * widths[0], 3, stem_stride(arch), padding=1, bias=False),
        norm(arch, 2 * widths[0], relu=True),
    )
    return ResNeXt(arch, stem, 2 * widths[0], widths, SMALL_DEPTHS)


def resnext_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Four bottleneck widths in channels: `widths` if given, else the paper's times `width`, rounded."""
    return arch.scaled_widths(WIDTHS)


def resnext_small_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Three bottleneck widths in channels: `widths` if given, else the defaults times `width`, rounded."""
    return arch.scaled_widths(SMALL_WIDTHS)


class ResNeXt(nn.Module):
    """The network, from images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        arch: options of the network.
        stem: module before the bottlenecks.
        channels: channels of the stem's output.
        widths: widths of the bottlenecks in each stage.
        own_depths: default number of blocks in each stage.
    """

    def __init__(
        self,
        arch: NetworkOptions,
        stem: nn.Module,
        channels: int,
        widths: tuple[int, ...],
        own_depths: tuple[int, ...],
    ) -> None:
        super().__init__()
        depths = own_depths if arch.depth is None else (arch.depth,) * len(widths)
        self.stem = stem
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Bottleneck(arch, channels, width, stride, stage))
                channels = 2 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = classifier(arch, channels)

    def forward(self, x_nchw: Tensor) -> Tensor:
        logits_nk: Tensor = self.classifier(self.stages(self.stem(x_nchw)))
        return logits_nk


class Bottleneck(nn.Module):
    """The operation to `width` channels, BN, ReLU and a 1×1 to twice as many; added to the input, then ReLU."""

    def __init__(self, arch: NetworkOptions, in_channels: int, width: int, stride: int, stage: int) -> None:
        super().__init__()
        out_channels = 2 * width
        self.body = nn.Sequential(
            segmented(arch, in_channels, width, stride, stage),
            norm(arch, width, relu=True),
            nn.Conv2d(width, out_channels, 1, bias=False),
        )
        self.norm = norm(arch, out_channels, relu=True)
        self.stride, self.skip = stride, skip(arch, in_channels, out_channels, stride)

    def forward(self, x_nchw: Tensor) -> Tensor:
        added_nchw = None if self.skip is None else self.skip(every_pixel(x_nchw, self.stride))
        y_nchw: Tensor = self.norm(self.body(x_nchw), added_nchw)
        return y_nchw

"""ResNeXt (Xie et al. 2017, arXiv:1611.05431), whose cardinality is the number of segments.

    stem    7×7 of 64, stride 2; BN, ReLU; max pool 3×3, stride 2
    stage i depths[i] bottlenecks: the operation (1×1, BN, ReLU, 3×3 in segments), BN, ReLU, 1×1, BN; added to the input
    exit    global average pool, logistic regression

The paper's 32×4d network, ResNet-50's layout with 32 segments of 4 channels, has 25,028,904 parameters. Widths are the
widths of the bottlenecks; a block gives twice as many channels. Shapes: x_nchw is (N, C, H, W).
"""

from __future__ import annotations

from torch import Tensor, nn

from spectrum.models import Architecture
from spectrum.models.blocks import PaddedMaxPool2d, check_size, classifier, every_pixel, norm, segmented, skip

WIDTHS = (128, 256, 512, 1024)
DEPTHS = (3, 4, 6, 3)
STEM = 64


def build_resnext(arch: Architecture) -> nn.Module:
    """Build the network. Raises ValueError for images of less than 32 pixels a side."""
    check_size(arch, "resnext", 32)
    return ResNeXt(arch)


def resnext_widths(arch: Architecture) -> tuple[int, ...]:
    """Four bottleneck widths in channels: explicit ones, or the paper's times `width`, rounded to whole channels."""
    return arch.scaled_widths(WIDTHS)


class ResNeXt(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = resnext_widths(arch)
        depths = DEPTHS if arch.depth is None else (arch.depth,) * len(widths)
        self.stem = nn.Sequential(
            nn.Conv2d(arch.in_channels, STEM, 7, 2, padding=3, bias=False),
            norm(arch, STEM, relu=True),
            PaddedMaxPool2d(3, 2, padding=arch.padding or "torch"),
        )
        stages, channels = [], STEM
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
    """The operation to `width` channels, BN, ReLU, and a 1×1 to twice as many; added to the input, then ReLU."""

    def __init__(self, arch: Architecture, in_channels: int, width: int, stride: int, stage: int) -> None:
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

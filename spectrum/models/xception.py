"""Xception (Chollet 2017, Fig. 5), with any number of segments in its separable convolutions.

    entry   3×3 of 32, stride 2, and 3×3 of 64, unpadded; then modules of 128, 256 and 728 that halve the resolution
    middle  8 modules of 728, three operations each
    exit    a module of 728 → 1024 that halves it; operations of 1536 and 2048; global average pool; optional fully
            connected layers; dropout; logistic regression

    paper                                   here
    "separable convolution"                 segmented(arch, …); order="spatial_first", one segment per channel
    "ReLU", "BN" after every convolution    BatchNormAct2d, which joins the two if they are adjacent
    strided max pooling                     PaddedMaxPool2d, with TensorFlow's SAME unless padding="torch"

Widths are stage widths: (stem, stem, entry, entry, middle, exit, exit, exit). The paper's network has 22,855,952
parameters and 54,528 buffers of BN; at 299 pixels 8.36 billion MACs. Shapes: x_nchw is (N, C, H, W).
"""

from itertools import pairwise

from torch import Tensor, nn

from spectrum.conv.arguments import Pair
from spectrum.conv.norm import BatchNormAct2d
from spectrum.models.blocks import PaddedMaxPool2d, check_size, classifier, every_pixel, norm, segmented
from spectrum.models.options import NetworkOptions

WIDTHS = (32, 64, 128, 256, 728, 1024, 1536, 2048)
DEPTH = 8  # modules of the middle flow
MIDDLE = 2  # index of the middle flow among six stages: 128, 256, 728, 1024, 1536, 2048
SMALLEST = 71  # pixels per side, as in Keras


def build_xception(arch: NetworkOptions) -> nn.Module:
    """Build the network.

    Raises ValueError for images of fewer than 71 pixels per side, as Keras does. With a `stem_stride` the limit is
    lower: one pixel must remain after two unpadded convolutions and four pools, so 20 pixels at stride 1 and 37 at 2.
    """
    check_size(arch, "xception", SMALLEST if arch.stem_stride is None else 17 * arch.stem_stride + 3)
    return Xception(arch)


def xception_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Eight stage widths in channels: `widths` if given, else the paper's times `width`, rounded to whole channels."""
    return arch.scaled_widths(WIDTHS)


class Xception(nn.Module):
    """The network, from images (N, in_channels, H, W), scaled to ±1, to logits (N, num_classes)."""

    def __init__(self, arch: NetworkOptions) -> None:
        super().__init__()
        stem, second, *entry, middle, wide, wider, widest = xception_widths(arch)
        depth = DEPTH if arch.depth is None else arch.depth
        self.stem = nn.Sequential(
            nn.Conv2d(arch.in_channels, stem, 3, arch.stem_stride or 2, bias=False),
            norm(arch, stem, relu=True),
            nn.Conv2d(stem, second, 3, bias=False),
            norm(arch, second, relu=True),
        )
        entries = [second, *entry, middle]
        self.entry = nn.Sequential(
            *(
                ReducingModule(arch, before, (after, after), (number, number), leading_relu=number > 0)
                for number, (before, after) in enumerate(pairwise(entries))
            )
        )
        self.middle = nn.Sequential(*(MiddleModule(arch, middle, MIDDLE) for _ in range(depth)))
        self.exit = nn.Sequential(
            ReducingModule(arch, middle, (middle, wide), (MIDDLE, MIDDLE + 1), leading_relu=True),
            segmented(arch, wide, wider, stage=MIDDLE + 2),
            norm(arch, wider, relu=True),
            segmented(arch, wider, widest, stage=MIDDLE + 3),
            norm(arch, widest, relu=True),
        )
        self.classifier = classifier(arch, widest)

    def forward(self, x_nchw: Tensor) -> Tensor:
        logits_nk: Tensor = self.classifier(self.exit(self.middle(self.entry(self.stem(x_nchw)))))
        return logits_nk


class ReducingModule(nn.Module):
    """A module of the entry and exit flows: two operations and a max pool of stride 2; the skip is a 1×1 of stride 2.

    The first module has no ReLU of its own, since its input is already the output of one.
    """

    def __init__(
        self, arch: NetworkOptions, in_channels: int, widths: Pair, stages: Pair, *, leading_relu: bool
    ) -> None:
        super().__init__()
        first, second = widths
        self.body = nn.Sequential(
            nn.ReLU() if leading_relu else nn.Identity(),
            segmented(arch, in_channels, first, stage=stages[0]),
            norm(arch, first, relu=True),
            segmented(arch, first, second, stage=stages[1]),
            norm(arch, second),
            PaddedMaxPool2d(3, 2, padding=arch.padding or "torch"),
        )
        self.skip = nn.Conv2d(in_channels, second, 1, bias=False) if arch.residual else None
        self.skip_norm = norm(arch, second) if arch.residual else None

    def forward(self, x_nchw: Tensor) -> Tensor:
        y_nchw: Tensor = self.body(x_nchw)
        if self.skip is None or self.skip_norm is None:
            return y_nchw
        skipped_nchw: Tensor = self.skip_norm(self.skip(every_pixel(x_nchw, 2)), y_nchw)
        return skipped_nchw


class MiddleModule(nn.Module):
    """A module of the middle flow: three times ReLU, operation, BN; added to the input."""

    def __init__(self, arch: NetworkOptions, channels: int, stage: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            segmented(arch, channels, channels, stage=stage),
            norm(arch, channels, relu=True),
            segmented(arch, channels, channels, stage=stage),
            norm(arch, channels, relu=True),
            segmented(arch, channels, channels, stage=stage),
        )
        self.norm: BatchNormAct2d = norm(arch, channels)
        self.residual = arch.residual

    def forward(self, x_nchw: Tensor) -> Tensor:
        y_nchw: Tensor = self.norm(self.body(x_nchw), x_nchw if self.residual else None)
        return y_nchw

"""Networks without residual connections: MobileNet and VGG, as lists of widths.

    mobilenet_v1  3×3 of 32, stride 2; then 13 times the operation, BN, ReLU (Howard et al. 2017, arXiv:1704.04861)
    vgg           13 times the operation, BN, ReLU, with max pools between the stages (Simonyan & Zisserman 2015,
                  arXiv:1409.1556, configuration D), here with a global average pool in place of its first layers

MobileNet's own operation is spatial-first, with one segment per channel and BN and ReLU before the 1×1: 4,231,976
parameters. Pointwise-first and without BN and ReLU it is BSConv-U (Haase & Amthor 2020, arXiv:2003.13549). The paper's
VGG has plain 3×3 convolutions: segments=1, pointwise=False. Shapes: x_nchw is (N, C, H, W).
"""

from torch import Tensor, nn

from spectrum.models.blocks import check_size, classifier, norm, segmented
from spectrum.models.options import NetworkOptions

MOBILENET_WIDTHS = (64, 128, 256, 512, 1024)
MOBILENET_DEPTHS = (1, 2, 2, 6, 2)  # operations per stage; every stage but the first begins with a stride of 2
MOBILENET_STEM = 32
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_DEPTHS = (2, 2, 3, 3, 3)  # operations per stage; a max pool follows each


def build_mobilenet_v1(arch: NetworkOptions) -> nn.Module:
    """Build MobileNet. Raises ValueError for images of fewer than 32 pixels per side: 16 times the stem's stride."""
    stem_stride = arch.stem_stride or 2
    check_size(arch, "mobilenet_v1", 16 * stem_stride)
    stem = max(1, round(arch.width * MOBILENET_STEM))
    layers: list[nn.Module] = [
        nn.Conv2d(arch.in_channels, stem, 3, stem_stride, padding=1, bias=False),
        norm(arch, stem, relu=True),
    ]
    channels = stem
    for stage, (width, depth) in enumerate(zip(mobilenet_widths(arch), _depths(arch, MOBILENET_DEPTHS), strict=True)):
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            layers += [segmented(arch, channels, width, stride, stage), norm(arch, width, relu=True)]
            channels = width
    return Stack(layers, classifier(arch, channels))


def mobilenet_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Five stage widths in channels: `widths` if given, else the paper's times `width`, rounded to whole channels."""
    return arch.scaled_widths(MOBILENET_WIDTHS)


def build_vgg(arch: NetworkOptions) -> nn.Module:
    """Build VGG. Raises ValueError for images of fewer than 32 pixels per side."""
    check_size(arch, "vgg", 32)
    layers: list[nn.Module] = []
    channels = arch.in_channels
    for stage, (width, depth) in enumerate(zip(vgg_widths(arch), _depths(arch, VGG_DEPTHS), strict=True)):
        for _ in range(depth):
            layers += [segmented(arch, channels, width, stage=stage), norm(arch, width, relu=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return Stack(layers, classifier(arch, channels))


def vgg_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Five stage widths in channels: `widths` if given, else the paper's times `width`, rounded to whole channels."""
    return arch.scaled_widths(VGG_WIDTHS)


class Stack(nn.Module):
    """A sequence of layers and a classifier, from images (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(self, layers: list[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.classifier = classifier

    def forward(self, x_nchw: Tensor) -> Tensor:
        logits_nk: Tensor = self.classifier(self.features(x_nchw))
        return logits_nk


def _depths(arch: NetworkOptions, own: tuple[int, ...]) -> tuple[int, ...]:
    return own if arch.depth is None else (arch.depth,) * len(own)

"""The network `probe`: small, for images of 8 to 32 pixels, with blocks like those of Xception's middle flow.

    stem     3×3 convolution, BN            stride 2 from 16 px up
    stage i  max-pool (from the second on), then `depth` × MiddleFlowBlock(widths[i])
    exit     ReLU, global average pool, optional fully connected layers, dropout, logistic regression

Resolution changes only in the pools, never inside the operation, so that a change of order does not move the 1×1 across
a stride. With downsampling="stride" there are no pools: the first 3×3 of each later stage has the stride, as in
MobileNet, and a change of order does move the 1×1. At 28×28×1 and the default widths the network has 1.6 million MACs
with one segment per channel and 13.3 million with 1 segment.
"""

from itertools import pairwise

from torch import Tensor, nn

from spectrum.models.blocks import MiddleFlowBlock, classifier, norm, stem_stride
from spectrum.models.options import NetworkOptions

WIDTHS = (32, 64, 128)
DEPTH = 1


def build_probe(arch: NetworkOptions) -> nn.Module:
    """Build the probe network. Raises ValueError if the images are too small for its stages."""
    return Probe(arch, probe_widths(arch), DEPTH if arch.depth is None else arch.depth)


def probe_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Stage widths in channels: `widths` if given, else the defaults times `width`, rounded to whole channels."""
    return arch.scaled_widths(WIDTHS if arch.widths is None else arch.widths)


class Probe(nn.Module):
    """The network, from normalised images (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(self, arch: NetworkOptions, widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        stride = stem_stride(arch)
        smallest = arch.image_size // stride // 2 ** (len(widths) - 1)
        if smallest < 1:
            raise ValueError(
                f"image_size={arch.image_size}: too small for {len(widths)} stages; give fewer widths or larger images"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(arch.in_channels, widths[0], 3, stride, padding=1, bias=False),
            norm(arch, widths[0]),
        )
        pools = arch.downsampling == "pool"
        stages = [self._stage(arch, widths[0], widths[0], depth, stride=1, stage=0)]
        for stage, (before, after) in enumerate(pairwise(widths), 1):
            if pools:
                stages.append(nn.MaxPool2d(3, stride=2, padding=1))
            stages.append(self._stage(arch, before, after, depth, stride=1 if pools else 2, stage=stage))
        self.stages = nn.Sequential(*stages)
        self.exit = nn.Sequential(nn.ReLU(), *classifier(arch, widths[-1]))

    @staticmethod
    def _stage(arch: NetworkOptions, before: int, after: int, depth: int, stride: int, stage: int) -> nn.Module:
        return nn.Sequential(
            MiddleFlowBlock(arch, before, after, stride, stage),
            *(MiddleFlowBlock(arch, after, after, stage=stage) for _ in range(depth - 1)),
        )

    def forward(self, x_nchw: Tensor) -> Tensor:
        logits_nk: Tensor = self.exit(self.stages(self.stem(x_nchw)))
        return logits_nk

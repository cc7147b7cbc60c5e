"""Inception: the module in the four forms of the Xception paper (Figs 1 to 4), a small network of it, Inception V3.

    InceptionModule(form=…)   description
    "canonical"   Fig. 1      1×1 · 1×1→3×3 · 1×1→3×3→3×3 · pool→1×1, side by side
    "simplified"  Fig. 2      only towers of 1×1→3×3, each with its own 1×1
    "segments"    Fig. 3      equivalent: one large 1×1, then 3×3s on non-overlapping segments of its channels
    "extreme"     Fig. 4      one 3×3 per channel

Inception V3 is that of Szegedy et al. 2016 (arXiv:1512.00567), as reference implementations have it: 23,834,568
parameters and 34,432 buffers; 27,161,264 parameters with the auxiliary tower. Shapes: x_nchw is (N, C, H, W).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from spectrum.conv.segmented import SegmentedConv2d
from spectrum.conv.segments import PER_CHANNEL, Segments, segment_sizes
from spectrum.models.blocks import check_size, classifier, mark_clamped, norm
from spectrum.models.options import NetworkOptions
from spectrum.models.position import PLACES, Position

Form = Literal["canonical", "simplified", "segments", "extreme"]
FORMS: tuple[Form, ...] = ("canonical", "simplified", "segments", "extreme")


class InceptionModule(nn.Module):
    """An Inception module in one of the forms of the Xception paper's figures.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; in the canonical form each of the four branches gives a quarter.
        form: "canonical", "simplified", "segments" or "extreme".
        segments: number of towers ("simplified") or segments ("segments"), whose sizes differ by at most one; or sizes.

    Input (N, in_channels, H, W), output (N, out_channels, H, W). There is no activation or norm between the
    convolutions, as in the figures, whose equivalences hold for linear maps. `load_towers` copies the weights of the
    simplified form into the segments form. Raises ValueError for an unknown form, and as `SegmentedConv2d` does.

    >>> module = InceptionModule(64, 96, form="simplified", segments=3)
    >>> same = InceptionModule(64, 96, form="segments", segments=3)
    >>> same.load_towers(module)
    >>> x_nchw = torch.randn(2, 64, 8, 8)
    >>> torch.allclose(module(x_nchw), same(x_nchw), atol=1e-5)
    True
    """

    clamped_options: tuple[str, ...] = ()  # as of `SegmentedConv2d`

    def __init__(
        self, in_channels: int, out_channels: int, *, form: Form = "canonical", segments: Segments = 3
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form={form!r}: unknown; try {', '.join(map(repr, FORMS))}")
        self.form = form
        self.branches = nn.ModuleList()
        self.operation: SegmentedConv2d | None = None
        if form == "canonical":
            first, second, third, fourth = segment_sizes(out_channels, 4)
            self.branches.append(_conv(in_channels, first, 1))
            self.branches.append(nn.Sequential(_conv(in_channels, second, 1), _conv(second, second, 3)))
            towers = _conv(in_channels, third, 1), _conv(third, third, 3), _conv(third, third, 3)
            self.branches.append(nn.Sequential(*towers))
            pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
            self.branches.append(nn.Sequential(pool, _conv(in_channels, fourth, 1)))
        elif form == "simplified":
            for size in segment_sizes(out_channels, segments):
                self.branches.append(nn.Sequential(_conv(in_channels, size, 1), _conv(size, size, 3)))
        else:
            whole: Segments = PER_CHANNEL if form == "extreme" else segments
            self.operation = SegmentedConv2d(in_channels, out_channels, segments=whole)

    def forward(self, x_nchw: Tensor) -> Tensor:
        if self.operation is not None:
            y_nchw: Tensor = self.operation(x_nchw)
            return y_nchw
        return torch.cat([branch(x_nchw) for branch in self.branches], dim=1)

    @torch.no_grad()
    def load_towers(self, simplified: "InceptionModule") -> None:
        """Copy the weights of a simplified module's towers into one large 1×1 and the segments of the 3×3.

        Args:
            simplified: a module of the same channels, with as many towers as this module has segments.

        Raises ValueError if the forms do not match.
        """
        operation = self.operation
        towers = [(branch[0].weight, branch[1].weight) for branch in simplified.branches]  # type: ignore[index]
        sizes = tuple(spatial.shape[0] for _, spatial in towers)
        if simplified.form != "simplified" or operation is None or operation.segment_sizes != sizes:
            raise ValueError("load_towers: copies a simplified module into a segments module of the same segments")
        assert operation.pointwise is not None
        operation.pointwise.weights[0].copy_(torch.cat([pointwise for pointwise, _ in towers]))
        first = 0
        for weight, run in zip(operation.spatial.weights, operation.spatial.geometry.runs, strict=True):
            weight.copy_(torch.cat([spatial for _, spatial in towers[first : first + run.count]]))
            first += run.count


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding="same", bias=False)


WIDTHS = (32, 64, 128)
DEPTH = 2  # modules per stage


def build_inception(arch: NetworkOptions) -> nn.Module:
    """Build a small network of Inception modules in one form, with BN and ReLU after each and pools between stages.

    Raises ValueError if the images are too small for its stages.
    """
    check_size(arch, "inception", 8)
    depth = DEPTH if arch.depth is None else arch.depth
    widths = inception_widths(arch)
    layers: list[nn.Module] = [_conv(arch.in_channels, widths[0], 3), norm(arch, widths[0], relu=True)]
    channels = widths[0]
    for stage, width in enumerate(widths):
        layers += [nn.MaxPool2d(3, 2, 1)] if stage else []
        for _ in range(depth):
            layers += [_module(arch, channels, width, stage), norm(arch, width, relu=True)]
            channels = width
    return nn.Sequential(*layers, *classifier(arch, channels))


def inception_widths(arch: NetworkOptions) -> tuple[int, ...]:
    """Three stage widths in channels: `widths` if given, else the defaults times `width`, rounded to whole channels."""
    return arch.scaled_widths(WIDTHS)


def _module(arch: NetworkOptions, channels: int, width: int, stage: int) -> nn.Module:
    form: Form = arch.form or "segments"
    options = [name for name in PLACES if getattr(arch, name) not in (None, PER_CHANNEL)]
    if form in ("canonical", "extreme") and options:
        raise ValueError(f"{options[0]}: form = {form!r} fixes the segments; leave it out")
    position = Position.of(arch)
    made = InceptionModule(channels, width, form=form, segments=position.segments_of(width, stage))
    mark_clamped(made, position.clamped_by(width, stage))
    return made


# Inception V3

Step = tuple[int, int | tuple[int, int]]


class ConvNormAct(nn.Sequential):
    """Convolution, BN, ReLU."""

    def __init__(
        self,
        arch: NetworkOptions,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        same: bool = True,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (height // 2, width // 2) if same else (0, 0)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False),
            norm(arch, out_channels, relu=True),
        )


def chain(arch: NetworkOptions, channels: int, *steps: Step, reduce: bool = False) -> nn.Module:
    """Make a sequence of convolutions (channels, kernel); with `reduce` the last halves the resolution, unpadded."""
    layers = []
    for number, (width, kernel) in enumerate(steps):
        last = reduce and number == len(steps) - 1
        layers.append(ConvNormAct(arch, channels, width, kernel, stride=2 if last else 1, same=not last))
        channels = width
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Parallel branches, concatenated along channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x_nchw: Tensor) -> Tensor:
        return torch.cat([branch(x_nchw) for branch in self.branches], dim=1)


def _pooled(arch: NetworkOptions, channels: int, width: int) -> nn.Module:
    """Make an average pool, then a 1×1. TensorFlow's mean excludes padding; that of torch's reference includes it."""
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=arch.padding == "torch")
    return nn.Sequential(pool, ConvNormAct(arch, channels, width))


def _split(arch: NetworkOptions, channels: int) -> nn.Module:
    """Make a 1×3 and a 3×1 in parallel."""
    return Branches(ConvNormAct(arch, channels, channels, (1, 3)), ConvNormAct(arch, channels, channels, (3, 1)))


def _module_a(arch: NetworkOptions, channels: int, pooled: int) -> nn.Module:
    return Branches(
        ConvNormAct(arch, channels, 64),
        chain(arch, channels, (48, 1), (64, 5)),
        chain(arch, channels, (64, 1), (96, 3), (96, 3)),
        _pooled(arch, channels, pooled),
    )


def _module_b(arch: NetworkOptions, channels: int) -> nn.Module:
    return Branches(
        chain(arch, channels, (384, 3), reduce=True),
        chain(arch, channels, (64, 1), (96, 3), (96, 3), reduce=True),
        nn.MaxPool2d(3, 2),
    )


def _module_c(arch: NetworkOptions, channels: int, inner: int) -> nn.Module:
    across, down = (1, 7), (7, 1)
    return Branches(
        ConvNormAct(arch, channels, 192),
        chain(arch, channels, (inner, 1), (inner, across), (192, down)),
        chain(arch, channels, (inner, 1), (inner, down), (inner, across), (inner, down), (192, across)),
        _pooled(arch, channels, 192),
    )


def _module_d(arch: NetworkOptions, channels: int) -> nn.Module:
    return Branches(
        chain(arch, channels, (192, 1), (320, 3), reduce=True),
        chain(arch, channels, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), reduce=True),
        nn.MaxPool2d(3, 2),
    )


def _module_e(arch: NetworkOptions, channels: int) -> nn.Module:
    return Branches(
        ConvNormAct(arch, channels, 320),
        nn.Sequential(ConvNormAct(arch, channels, 384), _split(arch, 384)),
        nn.Sequential(chain(arch, channels, (448, 1), (384, 3)), _split(arch, 384)),
        _pooled(arch, channels, 192),
    )


class InceptionV3(nn.Module):
    """Images (N, in_channels, H, W), scaled to ±1, to logits (N, num_classes).

    In training with the auxiliary tower it returns a pair of logits, the tower's second.
    """

    def __init__(self, arch: NetworkOptions) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormAct(arch, arch.in_channels, 32, 3, stride=2, same=False),
            ConvNormAct(arch, 32, 32, 3, same=False),
            ConvNormAct(arch, 32, 64, 3),
            nn.MaxPool2d(3, 2),
            ConvNormAct(arch, 64, 80, 1),
            ConvNormAct(arch, 80, 192, 3, same=False),
            nn.MaxPool2d(3, 2),
        )
        inner = (128, 160, 160, 192)
        self.middle = nn.Sequential(
            *(_module_a(arch, channels, pooled) for channels, pooled in ((192, 32), (256, 64), (288, 64))),
            _module_b(arch, 288),
            *(_module_c(arch, 768, width) for width in inner),
        )
        self.exit = nn.Sequential(_module_d(arch, 768), _module_e(arch, 1280), _module_e(arch, 2048))
        self.classifier = classifier(arch, 2048)
        self.auxiliary: nn.Module | None = None
        if arch.auxiliary:
            self.auxiliary = nn.Sequential(
                nn.AvgPool2d(5, 3),
                ConvNormAct(arch, 768, 128),
                ConvNormAct(arch, 128, 768, 5, same=False),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(768, arch.num_classes),
            )

    def forward(self, x_nchw: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle_nchw = self.middle(self.stem(x_nchw))
        logits_nk: Tensor = self.classifier(self.exit(middle_nchw))
        if self.auxiliary is not None and self.training:
            return logits_nk, self.auxiliary(middle_nchw)
        return logits_nk


SMALLEST = 75  # pixels per side, as in Keras
SMALLEST_WITH_TOWER = 299  # its last convolution needs 5×5 pixels after the pool


def build_inception_v3(arch: NetworkOptions) -> nn.Module:
    """Build Inception V3. Raises ValueError for images that are too small, and for segments, which it does not use."""
    check_size(arch, "inception_v3", SMALLEST_WITH_TOWER if arch.auxiliary else SMALLEST)
    return InceptionV3(arch)

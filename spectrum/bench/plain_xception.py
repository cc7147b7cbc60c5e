"""Xception with `torch.nn` alone: depthwise by `nn.Conv2d(groups=C)`, every layer a separate module.

The baseline of `spectrum bench models`, and a reference in tests. Weights have the same order as ours.
"""

from __future__ import annotations

from torch import Tensor, nn


class PlainXception(nn.Module):
    """Xception, from images (N, 3, H, W), scaled to ±1, to logits (N, num_classes). Pools are padded on every side."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, bias=False), _norm(32), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 64, 3, bias=False), _norm(64), nn.ReLU(inplace=True)),
            Reducing([nn.Identity(), *_separable(64, 128), nn.ReLU(inplace=True), *_separable(128, 128)], 64, 128),
            Reducing([nn.ReLU(), *_separable(128, 256), nn.ReLU(inplace=True), *_separable(256, 256)], 128, 256),
            Reducing([nn.ReLU(), *_separable(256, 728), nn.ReLU(inplace=True), *_separable(728, 728)], 256, 728),
            *(Residual() for _ in range(8)),
            Reducing([nn.ReLU(), *_separable(728, 728), nn.ReLU(inplace=True), *_separable(728, 1024)], 728, 1024),
            *(*_separable(1024, 1536), nn.ReLU(inplace=True), *_separable(1536, 2048), nn.ReLU(inplace=True)),
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, num_classes))

    def forward(self, x_nchw: Tensor) -> Tensor:
        logits_nk: Tensor = self.classifier(self.features(x_nchw))
        return logits_nk


class Residual(nn.Module):
    """Three times ReLU, convolution, BN; added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.ReLU(), *_separable(728, 728)),  # not in place: the input is added below
            *(nn.ReLU(inplace=True), *_separable(728, 728)),
            *(nn.ReLU(inplace=True), *_separable(728, 728)),
        )

    def forward(self, x_nchw: Tensor) -> Tensor:
        y_nchw: Tensor = self.body(x_nchw) + x_nchw
        return y_nchw


class Reducing(nn.Module):
    """Layers and a pool of stride 2; added to a 1×1 of stride 2."""

    def __init__(self, layers: list[nn.Module], in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1))
        self.skip = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, 2, bias=False), _norm(out_channels))

    def forward(self, x_nchw: Tensor) -> Tensor:
        y_nchw: Tensor = self.body(x_nchw) + self.skip(x_nchw)
        return y_nchw


def _separable(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        _norm(out_channels),
    )


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

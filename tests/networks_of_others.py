"""Small networks as others write them, without this package: for studies that name their functions."""

import torch
from torch import nn


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.skip(x))


def resnet(num_classes=1000, in_channels=3):
    """A stem and three blocks of 16, 16 and 32 channels."""
    stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
    blocks = Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def vgg(num_classes, in_channels, image_size):
    """Three convolutions with bias, and a classifier of the pixels that are left."""
    layers, channels = [], in_channels
    for width in (16, 24, 24):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    side = image_size // 2
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * side * side, num_classes))


def of_a_thousand_classes():
    return resnet(in_channels=1)


def of_depthwise(num_classes, in_channels):
    conv = nn.Conv2d(in_channels, 16, 1), nn.Conv2d(16, 16, 3, groups=16)
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def broken():
    raise KeyError("weights")


def nothing():
    return None


NUMBER = 3

"""Your own networks, whose cost is more than convolutions of an image."""

from dataclasses import dataclass

import torch
from torch import nn

from spectrum import register_model


class Mixer(nn.Module):
    """Mixes pixels in the Fourier domain, which no counter knows; returns a dataclass."""

    @dataclass
    class Output:
        scores: torch.Tensor

    def __init__(self, arch):
        super().__init__()
        self.stem, self.head = nn.Conv2d(arch.in_channels, 4, 1), nn.Linear(4, arch.num_classes)

    def forward(self, x_nchw):
        x_nchw = torch.fft.ifft2(torch.fft.fft2(self.stem(x_nchw))).real
        return self.Output(self.head(x_nchw.mean((2, 3))))


class Scores(Mixer):
    """The same with the scores alone, as training expects."""

    def forward(self, x_nchw):
        return super().forward(x_nchw).scores


class Attention(nn.Module):
    """A layer whose MACs are a multiple of its weights by chance: one of them is no product with a weight."""

    def __init__(self, arch):
        super().__init__()
        width, last = stage_widths(arch)
        self.stem, self.mix = nn.Conv2d(arch.in_channels, width, 1), Gram(width)
        self.last, self.head = nn.Linear(width, last), nn.Linear(last, arch.num_classes)

    def forward(self, x_nchw):
        return self.head(self.last(self.mix(self.stem(x_nchw).flatten(2).transpose(1, 2))).mean(1))


class Gram(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, width))

    def forward(self, x):
        return (x @ self.weight) @ x.transpose(1, 2) @ x


def stage_widths(arch):
    return arch.widths or tuple(max(1, round(width * arch.width)) for width in (32, 24))


class Words(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.words = nn.Embedding(9, arch.num_classes)

    def forward(self, words):
        return self.words(words).mean(1)


def broken(arch):
    return [][arch.in_channels]


register_model("odd_mixer", Mixer)
register_model("odd_scores", Scores)
register_model("odd_attention", Attention, widths=stage_widths)
register_model("odd_words", Words)
register_model("odd_broken", broken)

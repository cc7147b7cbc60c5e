"""The baseline: a training loop as in most scripts, in NCHW, eager, with a `DataLoader` of random flips and crops.

It trains the same networks with torch's own operations, on the same images and with the same schedule.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from spectrum.conv.backends.choice import prefer_backend
from spectrum.data.pixels import in_memory
from spectrum.data.splits import Images, split
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.training.optimisation import learning_rate


class FlipsAndCrops(Dataset[tuple[Tensor, int]]):
    """A data set of normalised images, each mirrored with probability ½ and shifted by up to `shift` pixels."""

    def __init__(self, x_nchw: Tensor, y_n: Tensor, mean: Tensor, std: Tensor, *, flip: bool, shift: int) -> None:
        self.x_nchw, self.labels = x_nchw.contiguous(), y_n.tolist()
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self.flip, self.shift = flip, shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        x_chw = self.x_nchw[number]
        if self.shift:
            height, width = x_chw.shape[1:]
            top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
            padded = torch.nn.functional.pad(x_chw, (self.shift,) * 4)
            x_chw = padded[:, top : top + height, left : left + width]
        if self.flip and torch.rand(()) < 0.5:
            x_chw = x_chw.flip(2)
        return (x_chw.float() - self.mean) / self.std, self.labels[number]


class DefaultLoop:
    """Train a run in the baseline's loop, step by step or as a whole."""

    def __init__(self, run: RunConfig, images: Images, device: str = "cpu") -> None:
        torch.manual_seed(run.seed)
        self.run, self.images, self.device = run, images, device
        self.data = split(images, run.validation_fraction, run.train_images)
        channels, side, _ = images.shape
        with prefer_backend("native"):
            self.model = build_model(run.model, run.network_options(channels, images.classes, side)).to(device)
        trained = list(self.model.parameters())
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": run.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum, nesterov=True)
        dataset = FlipsAndCrops(
            in_memory(self.data.train_x),
            *(self.data.train_y, self.data.mean, self.data.std),
            flip=run.flip,
            shift=run.shift,
        )
        self.loader = DataLoader(dataset, batch_size=run.batch_size, shuffle=True, drop_last=True)

    def step(self, x_nchw: Tensor, y_n: Tensor) -> None:
        loss = cross_entropy(self.model(x_nchw.to(self.device)), y_n.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def train(self) -> dict[str, Any]:
        """Train all epochs, validate after each and test at the end; return seconds, and test accuracy from 0 to 1."""
        started, step = time.perf_counter(), 0
        for _ in range(self.run.epochs):
            self.model.train()
            for x_nchw, y_n in self.loader:
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(self.run, step / len(self.loader))
                self.step(x_nchw, y_n)
                step += 1
            self._accuracy(in_memory(self.data.validation_x), self.data.validation_y)
        accuracy = self._accuracy(in_memory(self.images.test_x), self.images.test_y)
        return {"seconds": time.perf_counter() - started, "test_accuracy": accuracy}

    @torch.no_grad()
    def _accuracy(self, x_nchw: Tensor, y_n: Tensor) -> float:
        self.model.eval()
        correct = 0
        for x, y in zip(x_nchw.split(500), y_n.split(500), strict=True):
            logits: Tensor = self.model(self.data.normalise(x.contiguous().to(self.device)))
            correct += int((logits.argmax(1) == y.to(self.device)).sum())
        return correct / len(y_n)

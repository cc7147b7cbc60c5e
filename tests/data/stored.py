"""Data sets of noise, written as the hub and as people store them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def random_pixels(count: int, side: int = 6, channels: int = 1, seed: int = 0) -> list[Pixels]:
    shape = (side, side) if channels == 1 else (side, side, channels)
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def encoded(pixels: Pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def as_nchw(pixels: Sequence[Pixels]) -> torch.Tensor:
    stacked = np.stack(pixels)
    return torch.from_numpy(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2).copy())


def write_parquet(
    path: Path,
    images: Sequence[Pixels | bytes],
    labels: Sequence[int],
    *,
    image: str = "image",
    label: str = "label",
    classes: int = 3,
) -> None:
    """One split as the hub stores it: encoded images in a column of their own type, and named classes."""
    files = [{"bytes": one if isinstance(one, bytes) else encoded(one), "path": None} for one in images]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(num_classes=classes)})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({image: files, label: list(labels)}, features=features).to_parquet(path)


def write_folder(folder: Path, images: Sequence[Pixels], classes: Sequence[str], kind: str = "png") -> None:
    """One folder a class, images numbered in order and dealt to the classes in turn."""
    for number, pixels in enumerate(images):
        target = folder / classes[number % len(classes)]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target / f"{number:03}.{kind}")


def in_class_order(images: Sequence[Pixels], classes: int) -> list[Pixels]:
    """Images that were dealt to the classes in turn, in the order of the classes."""
    return [pixels for first in range(classes) for pixels in images[first::classes]]

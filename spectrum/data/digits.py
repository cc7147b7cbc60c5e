"""The handwritten digits included in this package, so that a first study needs no network connection.

1,797 images of 8×8 pixels: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, UCI
Machine Learning Repository, CC BY 4.0), also part of scikit-learn. `digits.txt` next to the file names the source.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spectrum.data.splits import About, Images, carve, make_images

FILE = Path(__file__).with_name("digits.csv.gz")
INK = 16  # the largest value of a pixel


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8) from 0 to `INK` and labels (1797,) from 0 to 9, in the order of the source."""
    rows = np.loadtxt(FILE, delimiter=",", dtype=np.int64)
    return rows[:, :-1].reshape(-1, 8, 8).astype(np.float64), rows[:, -1].copy()


@lru_cache(maxsize=2)
def digit_images(image_size: int | None) -> Images:
    """The 1,797 handwritten digits of 8×8 pixels included in this package."""
    images, digits = read_digits()
    pixels = torch.from_numpy(images * (255 / INK)).round().unsqueeze(1)
    if image_size is not None:
        pixels = torch.nn.functional.interpolate(pixels, (image_size, image_size), mode="bilinear", antialias=True)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    labels = torch.from_numpy(digits)
    train, test = carve(labels, 1 / 6)
    about = About(
        read="the digits that come with spectrum",
        classes=tuple(map(str, range(10))),
        test="a fixed sixth of the images, carved off, since there is no test split",
    )
    return make_images(pixels[train], labels[train], pixels[test], labels[test], about)

"""The handwritten digits that come with this package, so that a first study needs no network.

1,797 images of 8×8 pixels: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, UCI
Machine Learning Repository, CC BY 4.0), as scikit-learn ships it too. `digits.txt` beside the file has the source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("digits.csv.gz")
INK = 16  # the largest value of a pixel


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8) from 0 to `INK` and labels (1797,) from 0 to 9, in the order of the source."""
    rows = np.loadtxt(FILE, delimiter=",", dtype=np.int64)
    return rows[:, :-1].reshape(-1, 8, 8).astype(np.float64), rows[:, -1].copy()

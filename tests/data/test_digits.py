"""The digits of the package are those that scikit-learn ships, number by number."""

import hashlib

import numpy as np
import pytest

from spectrum.data.digits import FILE, INK, read_digits

PIXELS = (
    "20def7f70a702f0af9732fbba4375e147a7d54fe70d8c45569b8e7c1c7010c10"  # sha256 of scikit-learn's arrays, version 1.9.1
)
LABELS = "a3c91c262eddcf7ba8f0e37507c30284493c9b20412ffe4af30d536401f7ba21"


def test_images_and_labels_are_the_known_ones() -> None:
    images, labels = read_digits()
    assert (images.shape, images.dtype, images.max()) == ((1797, 8, 8), np.float64, INK)
    assert (labels.shape, labels.dtype, set(labels)) == ((1797,), np.int64, set(range(10)))
    assert hashlib.sha256(images.tobytes()).hexdigest() == PIXELS
    assert hashlib.sha256(labels.tobytes()).hexdigest() == LABELS


def test_they_are_those_of_scikit_learn() -> None:
    original = pytest.importorskip("sklearn.datasets", reason="compares with scikit-learn").load_digits()
    images, labels = read_digits()
    assert (images.dtype, images.tobytes()) == (original.images.dtype, original.images.tobytes())
    assert (labels.dtype, labels.tobytes()) == (original.target.dtype, original.target.tobytes())


def test_source_and_licence_stand_beside_the_file() -> None:
    said = (FILE.parent / "digits.txt").read_text()
    assert all(word in said for word in ("Alpaydin", "Kaynak", "https://doi.org/10.24432/C50P49", "CC BY 4.0"))

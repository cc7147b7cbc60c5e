"""The images of a point: loaded by name or made, their labels replaced where the point has a teacher."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from spectrum.study.data import Images
from spectrum.study.load import load_images
from spectrum.study.pixels import DataError, Resize
from spectrum.study.point import GAUSSIAN, Point, images_said
from spectrum.study.teacher import gaussian_images, relabelled

GAUSSIAN_SIDE = 16  # pixels, unless the point has an image_size
GAUSSIAN_CHANNELS = 3
GAUSSIAN_TRAIN, GAUSSIAN_TEST = 20_000, 10_000
LARGEST_SIDE = 64  # whose 30,000 images take a few hundred megabytes
CLASSES = 10  # of a teacher


def images_of(point: Point) -> Images:
    """What a point is trained and scored on. Raises DataError for a data set that cannot be had."""
    if point.teacher_segments is None:
        return load_images(point.dataset, point.image_size, point.resize)
    return _taught(*images_said(dict(point)))


@lru_cache(maxsize=8)  # labels only: the pixels are shared
def _taught(
    dataset: str,
    image_size: int | None,
    resize: Resize,
    segments: int | Literal["per_channel"],
    label_noise: float,
    seed: int,
) -> Images:
    if dataset == GAUSSIAN:
        side = image_size or GAUSSIAN_SIDE
        if side > LARGEST_SIDE:
            raise DataError(f"image_size = {side}: images that are made here have up to {LARGEST_SIDE} pixels a side")
        images = gaussian_images(GAUSSIAN_TRAIN, GAUSSIAN_TEST, side, GAUSSIAN_CHANNELS, seed)
    else:
        images = load_images(dataset, image_size, resize)
    return relabelled(images, segments=segments, label_noise=label_noise, seed=seed, classes=CLASSES)

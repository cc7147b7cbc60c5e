"""The images of a run: loaded by name or generated, with a teacher's labels if the run has one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from spectrum.data.load import load_images
from spectrum.data.pixels import DataError
from spectrum.data.splits import About, Images, count_used, record
from spectrum.data.teacher import gaussian_images, relabelled
from spectrum.design.keys import IMAGES, images_key
from spectrum.design.run import GAUSSIAN, RunConfig

GAUSSIAN_SIDE = 16  # pixels, unless the run has an image_size
GAUSSIAN_CHANNELS = 3
GAUSSIAN_TRAIN, GAUSSIAN_TEST = 20_000, 10_000
LARGEST_SIDE = 64  # 30,000 such images take a few hundred megabytes
CLASSES = 10  # classes of a teacher
RELABELLED = "labels are those of a teacher"


def images_of(run: RunConfig) -> Images:
    """The images on which a run is trained and tested, from the current files. Raises DataError if unavailable."""
    if _held is None:
        return _images_of(run)
    key = images_key(dict(run))
    if key not in _held:
        _held[key] = _images_of(run)
    return _held[key]


@contextmanager
def read_once() -> Iterator[None]:
    """Read the files of each data set only once inside the block, so that all statements are about the same images."""
    global _held
    before = _held
    _held = {} if before is None else before
    try:
        yield
    finally:
        _held = before


def described(runs: Iterable[RunConfig]) -> list[dict[str, Any]]:
    """Describe each data set of the runs, with the fields that select it."""
    runs = list(runs)
    by_fields = {images_key(dict(run)): run for run in runs}
    found = []
    for key, run in by_fields.items():
        images = images_of(run)
        splits = {(one.validation_fraction, one.train_images) for one in runs if images_key(dict(one)) == key}
        used = sorted({count_used(images, *split) for split in splits})
        found.append(dict(zip(IMAGES, key, strict=True)) | record(images) | {"used": [list(one) for one in used]})
    return found


_held: dict[tuple[Any, ...], Images] | None = None


def _images_of(run: RunConfig) -> Images:
    if run.dataset == GAUSSIAN and run.teacher_segments is not None:
        return _taught(_Taught(images_key(dict(run)), "", None))
    images = load_images(run.dataset, run.image_size, run.resize)
    if run.teacher_segments is None:
        return images
    taught = _taught(_Taught(images_key(dict(run)), images.fingerprint, images))
    about = replace(images.about, classes=(), notes=(*images.about.notes, RELABELLED))
    return replace(taught, about=about)


@dataclass(frozen=True)
class _Taught:
    """Conditions of a teacher's labels: fields of the run, and the images."""

    key: tuple[Any, ...]
    fingerprint: str
    images: Images | None = field(compare=False)  # None: generated images


@lru_cache(maxsize=8)  # labels only: the pixels are shared
def _taught(asked: _Taught) -> Images:
    _, image_size, _, segments, label_noise, seed = asked.key
    images = asked.images
    if images is None:
        side = image_size or GAUSSIAN_SIDE
        if side > LARGEST_SIDE:
            raise DataError(f"image_size = {side}: generated images have at most {LARGEST_SIDE} pixels per side")
        images = gaussian_images(GAUSSIAN_TRAIN, GAUSSIAN_TEST, side, GAUSSIAN_CHANNELS, seed)
    taught = relabelled(images, segments=segments, label_noise=label_noise, seed=seed, classes=CLASSES)
    return replace(taught, about=About(read="Gaussian noise, made here", test="made as well", notes=(RELABELLED,)))

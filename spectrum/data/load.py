"""`load_images`: from the name of a data set to its images.

It looks in `$SPECTRUM_DATA/<name>/` first (a folder of images or Parquet files), then in the hub's cache, then
downloads. `layout.py` has the rules for folders, `tables.py` reads tables, `labels.py` their labels. The test set is
what the source calls "test", if it has labels, else its "validation" split, else a fixed sixth of its images.

Decoded images are kept in memory, and cached in `$SPECTRUM_CACHE` (~/.cache/spectrum by default). If their pixels
would take more than `$SPECTRUM_IMAGES_GB` (4 by default), they stay encoded and are decoded on demand.

Caches in memory and on disk use the content of the files as their key; the files are read on every call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from spectrum.data.arrays import npz_images, registered_images
from spectrum.data.digits import digit_images
from spectrum.data.kept import (
    cache_file,
    find_survey,
    gigabytes_of,
    most_gigabytes,
    read_cache,
    survey,
    with_shared,
    with_shared_noted,
    write_cache,
)
from spectrum.data.layout import LayoutError
from spectrum.data.pixels import (
    DataError,
    Decoder,
    Encoded,
    Resize,
    Stored,
    channels_of,
    decode_all,
)
from spectrum.data.sources import Parts, Source, find_source, own_folder
from spectrum.data.splits import About, Images, carve, make_images
from spectrum.design.own_data import loader_of

COLOURED = "training images are grey, so coloured test images are read as grey"


def load_images(name: str, image_size: int | None = None, resize: Resize = "stretch") -> Images:
    """Load a data set by name, hub id or folder.

    Args:
        name: "digits" (those of this package, unless $SPECTRUM_DATA/digits/ exists), "fashion_mnist", "cifar10",
            "cifar100", a hub id such as "owner/name", or a folder such as "./flowers" with Parquet files in the hub's
            layout or one folder per class (optionally below train/ and test/), or an .npz file such as "./mine.npz".
        image_size: side in pixels to resize to; None keeps the images, which must then have one size.
        resize: "stretch" images to a square, or "centre_crop": cut a square of 0.875 of the shorter side out of the
            middle.

    Every call reads the files, so changed images are never confused with those of an earlier call. Raises DataError (a
    ValueError) that says what is missing or wrong, and what to do.
    """
    loader = loader_of(name)
    if loader is not None:
        return with_shared_noted(registered_images(name, loader, image_size, resize))
    if name.endswith(".npz") and not Path(name).expanduser().is_dir():
        return with_shared_noted(npz_images(name, image_size, resize))
    if name == "digits" and own_folder(name) is None:
        if resize != "stretch":
            raise DataError(f"resize={resize!r}: digits are square already; leave it out")
        return digit_images(image_size)
    try:
        source = find_source(name)
        images = _loaded(_Request(source.key, name, image_size, resize, most_gigabytes(), source))
    except LayoutError as error:
        raise DataError(f"dataset={name!r}: {error}") from error
    about, layout = source.named_now(images.about), source.layout
    if layout is not None:
        about = replace(about, left_out=about.left_out + layout.left_out, notes=about.notes + layout.notes)
    return replace(images, about=about)


@dataclass(frozen=True)
class _Request:
    """Conditions of loading that determine the images."""

    content: str
    name: str
    image_size: int | None
    resize: Resize
    most_gigabytes: float
    source: Source = field(compare=False)


@lru_cache(maxsize=2)
def _loaded(request: _Request) -> Images:
    decoder = Decoder(request.image_size, request.resize)
    cache = cache_file(request.content, request.image_size, request.resize)
    images = read_cache(cache)
    if images is None:
        images = _read(request.source, decoder, cache)
    return with_shared_noted(images)


load_images.cache_clear = _loaded.cache_clear  # type: ignore[attr-defined] # returns memory to the system


def _read(source: Source, decoder: Decoder, cache: Path) -> Images:
    """Read the files; decode them if all fit into memory. Caches lie in the cache folder."""
    parts = source.parts()
    count = len(parts.train.labels) + (len(parts.test.labels) if parts.test else 0)
    if _stay_encoded(parts.train.stored("first", cache), count, decoder):
        return _read_encoded(source, parts, decoder, cache)
    return _read_decoded(source, parts, decoder, cache)


def _read_decoded(source: Source, parts: Parts, decoder: Decoder, cache: Path) -> Images:
    train = parts.train.stored("memory", cache)
    test = parts.test.stored("memory", cache) if parts.test else None
    train_x = _square(source, decode_all(train, decoder))
    decoder = replace(decoder, channels=train_x.shape[1])
    splits = _with_test(source, parts, train_x, decode_all(test, decoder) if test else None)
    about = _noting_colours(parts.about, test, decoder)
    _check_unchanged(source, cache)
    images = make_images(*splits, about)
    write_cache(cache, images)
    return images


def _read_encoded(source: Source, parts: Parts, decoder: Decoder, cache: Path) -> Images:
    known = find_survey(cache.with_suffix(".json"))  # then the cache is not changed
    train = parts.train.stored("mapped", cache)
    test = parts.test.stored("mapped", cache) if parts.test else None
    found = known or survey([train, test] if test else [train], decoder, cache.with_suffix(".json"))
    decoder = replace(decoder, channels=found.channels)
    splits = _with_test(source, parts, Encoded(train, decoder), Encoded(test, decoder) if test else None)
    about = _noting_colours(parts.about, test, decoder)
    if known is None:
        _check_unchanged(source, cache)
    labels, test_labels = splits[1], splits[3]
    content = f"{found.fingerprint} {labels.tolist()} {test_labels.tolist()}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return with_shared(Images(*splits, len(about.classes), fingerprint, about), found.shared)


AnyPixels = TypeVar("AnyPixels", Tensor, Encoded)


def _with_test(
    source: Source, parts: Parts, train_x: AnyPixels, test_x: AnyPixels | None
) -> tuple[AnyPixels, Tensor, AnyPixels, Tensor]:
    """Images and labels for training and test; without a test split, a sixth is split off."""
    labels = parts.train.labels
    if parts.test is None or test_x is None:
        keep, carved = _sixth(source, labels, parts.about.classes)
        return train_x[keep], labels[keep], train_x[carved], labels[carved]
    if test_x.shape[1:] != train_x.shape[1:]:
        raise DataError(f"dataset={source.name!r}: images of the test split have another size; set image_size")
    return train_x, labels, test_x, parts.test.labels


def _noting_colours(about: About, test: Stored | None, decoder: Decoder) -> About:
    """Add a note if training images are grey and test images are not."""
    if decoder.channels == 1 and test is not None and any(has > 1 for has in test.each(channels_of)):
        return replace(about, notes=(*about.notes, COLOURED))
    return about


def _check_unchanged(source: Source, cache: Path) -> None:
    """Raise DataError, and delete what was cached, if files changed while they were read."""
    if source.read_key() != source.key:
        for kept in cache.parent.glob(f"{cache.stem}.*"):
            kept.unlink(missing_ok=True)
        raise DataError(f"dataset={source.name!r}: its files changed while they were read; try again")


def _stay_encoded(train: Stored, count: int, decoder: Decoder) -> bool:
    """Whether the pixels of `count` images would take more memory than they may."""
    if not len(train):
        return False  # and no images, which is reported later
    (first,) = train.each(decoder, [0])
    gigabytes = gigabytes_of(count, *first.shape[:2])
    if gigabytes <= most_gigabytes():
        return False
    if decoder.image_size is None:
        raise DataError(
            f"dataset={train.dataset!r}: in memory its {count:,} images would take {gigabytes:.3g} GB. "
            "Set image_size, so that they are decoded on demand; or raise $SPECTRUM_IMAGES_GB"
        )
    return True


def _square(source: Source, x_nchw: Tensor) -> Tensor:
    height, width = x_nchw.shape[2:]
    if height != width:
        raise DataError(f"dataset={source.name!r}: images are {height}×{width}; set image_size to make them square")
    return x_nchw


def _sixth(source: Source, labels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Indices of the training and the test images of a source without a test split."""
    rare = [name for name, count in zip(names, labels.bincount().tolist(), strict=True) if count < 2]
    if rare:
        raise DataError(
            f"dataset={source.name!r}: class {rare[0]!r} has one image, and there is no test split; "
            "add images, or a test split"
        )
    return carve(labels, 1 / 6)

"""From the name of a data set to its images.

Where it is looked for: `$SPECTRUM_DATA/<name>/` first (a folder of images or of Parquet files), then the hub's cache or
a download. `layout.py` has the rules for folders, `tables.py` reads tables, `labels.py` their labels. The test set is
what the source calls "test", if it has labels, else its "validation" split, else a fixed sixth of its images.

Decoded images are kept in memory, and cached under `$SPECTRUM_CACHE` (~/.cache/spectrum otherwise). Where their pixels
would take more than `$SPECTRUM_IMAGES_GB` (4 by default), they stay encoded and are decoded as they are asked for.

Whatever is kept, in memory or on disk, is found by the content of the files, which are read on every call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from spectrum.data.arrays import registered_images
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
from spectrum.data.layout import (
    LayoutError,
)
from spectrum.data.pixels import (
    DataError,
    Decoder,
    Encoded,
    Pixels,
    Resize,
    Stored,
    channels_of,
    decode_all,
)
from spectrum.data.sources import Source, find_source, own_folder
from spectrum.data.splits import Images, carve, make_images
from spectrum.data.tables import How
from spectrum.design.own_data import loader_of

COLOURED = "training images are grey, so coloured test images are read as grey"


def load_images(name: str, image_size: int | None = None, resize: Resize = "stretch") -> Images:
    """Load a data set by name, hub id or folder.

    Args:
        name: "digits" (those of this package, unless $SPECTRUM_DATA/digits/ is there), "fashion_mnist", "cifar10",
            "cifar100", a hub id such as "owner/name", or a folder such as "./flowers": of Parquet files in the hub's
            layout, or of one folder per class (optionally below train/ and test/).
        image_size: side in pixels to resize to; None keeps the images, which must then have one size.
        resize: "stretch" images to a square, or "centre_crop": cut a square of 0.875 of the shorter side out of the
            middle.

    Every call reads the files, so that images that have changed are never taken for those of an earlier call. Raises
    DataError (a ValueError) that says what is missing or wrong, and what to do.
    """
    loader = loader_of(name)
    if loader is not None:
        return with_shared_noted(registered_images(name, loader, image_size, resize))
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
    """What decides which images are loaded."""

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


load_images.cache_clear = _loaded.cache_clear  # type: ignore[attr-defined] # gives memory back


def _read(source: Source, decoder: Decoder, cache: Path) -> Images:
    parts = source.parts()
    labels, part, about = parts.train.labels, parts.test, parts.about
    names = about.classes
    encoded = _stay_encoded(
        parts.train.stored("first", cache), len(labels) + (len(part.labels) if part else 0), decoder
    )
    known = find_survey(cache.with_suffix(".json")) if encoded else None  # then nothing new is kept
    how: How = "mapped" if encoded else "memory"
    train = parts.train.stored(how, cache)
    test = part.stored(how, cache) if part else None
    train_x: Pixels
    test_x: Pixels
    if encoded:
        found = known or survey([train, test] if test else [train], decoder, cache.with_suffix(".json"))
        decoder = replace(decoder, channels=found.channels)
        train_x = Encoded(train, decoder)
    else:
        train_x = _square(source, decode_all(train, decoder))
        decoder = replace(decoder, channels=train_x.shape[1])
    if part is None or test is None:
        keep, carved = _sixth(source, labels, names)
        train_x, labels, test_x, test_labels = train_x[keep], labels[keep], train_x[carved], labels[carved]
    else:
        test_labels = part.labels
        test_x = Encoded(test, decoder) if encoded else decode_all(test, decoder)
        if test_x.shape[1:] != train_x.shape[1:]:
            raise DataError(f"dataset={source.name!r}: images of the test split have another size; set image_size")
    if decoder.channels == 1 and test is not None and any(has > 1 for has in test.each(channels_of)):
        about = replace(about, notes=(*about.notes, COLOURED))
    if known is None and source.read_key() != source.key:
        for kept in cache.parent.glob(f"{cache.stem}.*"):
            kept.unlink(missing_ok=True)
        raise DataError(f"dataset={source.name!r}: its files changed while they were read; try again")
    if isinstance(train_x, Tensor) and isinstance(test_x, Tensor):
        images = make_images(train_x, labels, test_x, test_labels, about)
        write_cache(cache, images)
        return images
    content = f"{found.fingerprint} {labels.tolist()} {test_labels.tolist()}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    images = Images(train_x, labels, test_x, test_labels, len(names), fingerprint, about)
    return with_shared(images, found.shared)


def _stay_encoded(train: Stored, count: int, decoder: Decoder) -> bool:
    """Whether the pixels of `count` images would take more memory than they may."""
    if not len(train):
        return False  # and no images, which is said later
    (first,) = train.each(decoder, [0])
    gigabytes = gigabytes_of(count, *first.shape[:2])
    if gigabytes <= most_gigabytes():
        return False
    if decoder.image_size is None:
        raise DataError(
            f"dataset={train.dataset!r}: in memory its {count:,} images would take {gigabytes:.3g} GB. "
            "Set image_size, and they are decoded as they are asked for; or raise $SPECTRUM_IMAGES_GB"
        )
    return True


def _square(source: Source, x_nchw: Tensor) -> Tensor:
    height, width = x_nchw.shape[2:]
    if height != width:
        raise DataError(f"dataset={source.name!r}: images are {height}×{width}; set image_size to make them square")
    return x_nchw


def _sixth(source: Source, labels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Numbers of the images to train on and of those to test on, where the source has no test split."""
    rare = [name for name, count in zip(names, labels.bincount().tolist(), strict=True) if count < 2]
    if rare:
        raise DataError(
            f"dataset={source.name!r}: class {rare[0]!r} has one image, and there is no test split; "
            "add images, or a test split"
        )
    return carve(labels, 1 / 6)

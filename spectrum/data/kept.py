"""The cache of decoded images: pixels of small data sets, and a survey of the files of large ones.

The key is a hash of the data set's content. Without space for the cache, images are decoded every time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrum._cache import cache_folder, make_folder, usable_cache
from spectrum.data.pixels import (
    DataError,
    Decoder,
    Resize,
    Stored,
    channels_of,
    in_memory,
)
from spectrum.data.splits import About, Images, make_images

DECODING = 3  # version of the decoder; cached images of another version are ignored


def with_shared_noted(images: Images) -> Images:
    if isinstance(images.train_x, Tensor) and isinstance(images.test_x, Tensor):
        return with_shared(images, _shared(_hashes_of(images.train_x), _hashes_of(images.test_x)))
    return images


def _hashes_of(x_nchw: Tensor) -> Iterator[bytes]:
    return (hashlib.sha256(x_chw.contiguous().numpy().data).digest() for x_chw in x_nchw)


def _shared(train: Iterable[bytes], test: Iterable[bytes]) -> int:
    """Number of test images that are also training images, by their hashes."""
    known = set(train)
    return sum(hashed in known for hashed in test)


def with_shared(images: Images, shared: int) -> Images:
    """The images, with a note on test images that are also training images, since they reward memorisation."""
    if not shared:
        return images
    are = "image is a training image" if shared == 1 else "images are training images"
    note = f"{shared:,} of {len(images.test_y):,} test {are} too"
    return replace(images, about=replace(images.about, notes=(*images.about.notes, note)))


def gigabytes_of(count: int, height: int, width: int) -> float:
    """Gigabytes of so many images in memory, as if all had colours: only decoding tells which are grey."""
    return 3 * count * height * width / 1e9


def most_gigabytes() -> float:
    text = os.environ.get("SPECTRUM_IMAGES_GB", "4")
    try:
        most = float(text)
    except ValueError:
        most = math.nan
    if not most >= 0:
        raise DataError(f"SPECTRUM_IMAGES_GB={text!r}: expected a number of gigabytes, 0 or more")
    return most


@dataclass(frozen=True)
class _Survey:
    """Facts about images that stay encoded, after all files were read once."""

    channels: int  # channels of the training images
    fingerprint: str  # SHA-256 of all files
    shared: int  # files of the test split that are also in the training split


def find_survey(kept: Path) -> _Survey | None:
    """The survey in the cache, if there is one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text()) if usable_cache() else {}
        return _Survey(int(known["channels"]), str(known["fingerprint"]), int(known["shared"]))
    return None


def survey(splits: Sequence[Stored], decoder: Decoder, kept: Path) -> _Survey:
    """Read all files, and keep the survey in the cache."""
    digest = hashlib.sha256(f"{DECODING} {decoder.image_size} {decoder.resize}".encode())
    channels = 1
    hashes: list[list[bytes]] = [[], []]
    for number, stored in enumerate(splits):
        for hashed, has in stored.each(lambda data: (hashlib.sha256(data).digest(), channels_of(data))):
            digest.update(hashed)
            hashes[number].append(hashed)
            if number == 0:
                channels = max(channels, has)
    found = _Survey(channels, digest.hexdigest(), _shared(*hashes))
    keep(kept, lambda temporary: temporary.write_text(json.dumps(asdict(found))))
    return found


def cache_file(content: str, image_size: int | None, resize: Resize) -> Path:
    how = f"{image_size}" if resize == "stretch" else f"{image_size} {resize}"
    key = hashlib.sha256(f"{DECODING}\n{how}\n{content}".encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.safetensors"


def read_cache(path: Path) -> Images | None:
    if not usable_cache():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            count, _, height, width = file.get_slice("train_x").get_shape()
            count += file.get_slice("test_x").get_shape()[0]
            if gigabytes_of(count, height, width) > most_gigabytes():
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
            stored, about = _unsealed(file.metadata()["record"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        return None
    try:
        images = replace(
            make_images(*(tensors[name] for name in ("train_x", "train_y", "test_x", "test_y"))), about=about
        )
    except KeyError:
        return None
    return images if images.fingerprint == stored else None  # a flipped bit: decode again


def _sealed(images: Images) -> str:
    """The record of a cache file, after a hash of the record."""
    record = json.dumps([images.fingerprint, asdict(images.about)])
    return f"{hashlib.sha256(record.encode()).hexdigest()} {record}"


def _unsealed(record: str) -> tuple[str, About]:
    """The fingerprint and origin of the images. Raises ValueError for a damaged record."""
    seal, _, content = record.partition(" ")
    if hashlib.sha256(content.encode()).hexdigest() != seal:
        raise ValueError("the record is not whole")
    fingerprint, about = json.loads(content)
    tuples = {name: tuple(about[name]) for name in ("classes", "left_out", "notes")}
    return fingerprint, About(about["read"], test=about["test"], **tuples)


def write_cache(path: Path, images: Images) -> None:
    pixels = {"train_x": in_memory(images.train_x), "test_x": in_memory(images.test_x)}
    tensors = pixels | {"train_y": images.train_y, "test_y": images.test_y}
    metadata = {"record": _sealed(images)}
    keep(path, lambda temporary: save_file(tensors, str(temporary), metadata=metadata))


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache atomically, or not at all: without space, images are decoded every time."""
    if not usable_cache():
        return
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        make_folder(path.parent)
        write(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError, pa.ArrowException):
        with suppress(OSError):
            temporary.unlink()

"""From the name of a data set to its images.

Where it is looked for: `$SPECTRUM_DATA/<name>/` first (Parquet in the hub's layout, or a folder a class), then the
hub's cache or a download. The test set is whatever the source calls "test", if it has labels, else its "validation"
split, else a fixed sixth of its images.

Decoded images are kept in memory, and cached under `$SPECTRUM_CACHE` (~/.cache/spectrum otherwise). Where their pixels
would take more than `$SPECTRUM_IMAGES_GB` (4 by default), they stay encoded and are decoded as they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrum._cache import cache_folder
from spectrum.study.data import Images, carve, make_images
from spectrum.study.pixels import (
    DataError,
    Decoder,
    Encoded,
    Pixels,
    Resize,
    Stored,
    channels_of,
    decode_all,
    in_memory,
)

HUB_IDS = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
DATASETS = ("digits", *HUB_IDS)
IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class", "y")
TEST_SPLITS = ("test", "validation", "valid", "val")


@lru_cache(maxsize=2)
def load_images(name: str, image_size: int | None = None, resize: Resize = "stretch") -> Images:
    """Load a data set by name, hub id or folder.

    Args:
        name: "digits" (comes with scikit-learn), "fashion_mnist", "cifar10", "cifar100", a hub id such as
            "owner/name", or a folder such as "./flowers": of Parquet files in the hub's layout, or of one folder a
            class (optionally below train/ and test/).
        image_size: side in pixels to resize to; None keeps the images, which must then have one size.
        resize: "stretch" images to a square, or "centre_crop": cut a square of 0.875 of the shorter side out of the
            middle.

    Raises DataError (a ValueError) that says what is missing and both ways to get it.
    """
    if name == "digits":
        if resize != "stretch":
            raise DataError(f"resize={resize!r}: digits are square already; leave it out")
        return _digits(image_size)
    source = _find(name)
    cache = _cache_file(source, image_size, resize)
    images = _read_cache(cache)
    if images is None:
        images = _read(source, Decoder(image_size, resize), cache)
    return images


@dataclass(frozen=True)
class _Source:
    """Where images come from: a local folder, or a hub id."""

    name: str
    folder: Path | None
    hub_id: str | None

    @property
    def key(self) -> str:
        if self.folder is None:
            return f"hub:{self.hub_id}"
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return "\n".join(
            f"{path.relative_to(self.folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files
        )


def _find(name: str) -> _Source:
    root = os.environ.get("SPECTRUM_DATA")
    if root is not None and not name.startswith((".", "/", "~")):
        folder = Path(root).expanduser() / name
        if folder.is_dir():
            return _Source(name, folder, None)
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise DataError(f"dataset={name!r}: no such folder")
        return _Source(name, folder, None)
    if name not in HUB_IDS and "/" not in name:
        near = get_close_matches(name, DATASETS, n=1)
        meant = f"did you mean {near[0]!r}? Else try" if near else "try"
        raise DataError(
            f"dataset={name!r}: unknown; {meant} {', '.join(map(repr, DATASETS))}, 'gaussian' with teacher_segments, "
            f"a hub id (owner/name), a folder (./{name}), or put it at $SPECTRUM_DATA/{name}/"
        )
    return _Source(name, None, HUB_IDS.get(name, name))


def _read(source: _Source, decoder: Decoder, cache: Path) -> Images:
    parts = _tables(source)
    train_name = "train" if "train" in parts else next(iter(parts))
    image, label = _columns(source, parts[train_name])
    test_name = next((name for name in TEST_SPLITS if name != train_name and _has_labels(parts, name, label)), None)

    labels, names = _labels(parts[train_name][label])
    train = _stored(source, train_name, parts[train_name], image)
    test = _stored(source, test_name, parts[test_name], image) if test_name else None
    encoded = _stay_encoded(train, len(train) + (len(test) if test else 0), decoder)
    train_x: Pixels
    test_x: Pixels
    if encoded:
        version = [getattr(part, "_fingerprint", None) for part in parts.values()]  # a hub id names other files later
        splits = [train, test] if test else [train]
        channels, fingerprint = _survey(splits, decoder, version, cache.with_suffix(".json"))
        decoder = replace(decoder, channels=channels)
        train_x = Encoded(train, decoder)
    else:
        train_x = _square(source, decode_all(train, decoder))
        decoder = replace(decoder, channels=train_x.shape[1])
    if test is None:
        keep, part = _sixth(source, labels, names)
        train_x, labels, test_x, test_labels = train_x[keep], labels[keep], train_x[part], labels[part]
    else:
        test_labels, _ = _labels(parts[test_name][label], names)
        test_x = Encoded(test, decoder) if encoded else decode_all(test, decoder)
        if test_x.shape[1:] != train_x.shape[1:]:
            raise DataError(f"dataset={source.name!r}: images of the test split have another size; set image_size")
    if isinstance(train_x, Tensor) and isinstance(test_x, Tensor):
        images = make_images(train_x, labels, test_x, test_labels)
        _write_cache(cache, images)
        return images
    fingerprint = hashlib.sha256(f"{fingerprint} {labels.tolist()} {test_labels.tolist()}".encode()).hexdigest()[:16]
    return Images(train_x, labels, test_x, test_labels, classes=int(labels.max()) + 1, fingerprint=fingerprint)


def _tables(source: _Source) -> Any:
    if source.folder is None:
        _go_offline_without_network()
    with warnings.catch_warnings():  # in a notebook tqdm asks for widgets, for bars that are not shown
        warnings.filterwarnings("ignore", message="IProgress not found")
        import datasets

    datasets.disable_progress_bars()
    try:
        if source.folder is None:
            return datasets.load_dataset(source.hub_id)
        if files := _parquet_files(source.folder):
            return datasets.load_dataset("parquet", data_files=files)
        return datasets.load_dataset("imagefolder", data_dir=str(source.folder))
    except Exception as error:  # the library raises dozens of kinds, from offline hubs to broken files
        raise DataError(_missing(source, error)) from error


def _has_labels(parts: Any, split_name: str, label: str) -> bool:
    """Whether there is such a split with labels: where they are withheld, all are −1, as ImageNet's on the hub."""
    return split_name in parts and label in parts[split_name].features and set(parts[split_name][label]) != {-1}


def _stored(source: _Source, split_name: str, part: Any, column: str) -> Stored:
    import datasets

    if isinstance(part.features[column], datasets.Image):
        part = part.cast_column(column, datasets.Image(decode=False))
    return Stored(source.name, split_name, part.select_columns([column]), column)


def _stay_encoded(train: Stored, count: int, decoder: Decoder) -> bool:
    """Whether the pixels of `count` images would take more memory than they may."""
    if not len(train):
        return False  # and no images, which is said later
    (first,) = train.each(decoder, [0])
    gigabytes = _gigabytes(count, *first.shape[:2])
    if gigabytes <= _most_gigabytes():
        return False
    if decoder.image_size is None:
        raise DataError(
            f"dataset={train.dataset!r}: in memory its {count:,} images would take {gigabytes:.3g} GB. "
            "Set image_size, and they are decoded as they are asked for; or raise $SPECTRUM_IMAGES_GB"
        )
    return True


def _gigabytes(count: int, height: int, width: int) -> float:
    """Of so many images in memory, as if all were coloured: that the first one is grey says nothing of the others."""
    return 3 * count * height * width / 1e9


def _most_gigabytes() -> float:
    said = os.environ.get("SPECTRUM_IMAGES_GB", "4")
    try:
        most = float(said)
    except ValueError:
        most = math.nan
    if not most >= 0:
        raise DataError(f"SPECTRUM_IMAGES_GB={said!r}: expected a number of gigabytes, 0 or more")
    return most


def _survey(splits: Sequence[Stored], decoder: Decoder, version: list[Any], kept: Path) -> tuple[int, str]:
    """How many channels the training images have, and a SHA-256 of all files: read once, then kept beside the cache."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text())
        if known["version"] == version:
            return known["channels"], known["fingerprint"]
    digest = hashlib.sha256(f"{decoder.image_size} {decoder.resize}".encode())
    channels = 1
    for number, stored in enumerate(splits):
        for hashed, has in stored.each(lambda data: (hashlib.sha256(data).digest(), channels_of(data))):
            digest.update(hashed)
            if number == 0:
                channels = max(channels, has)
    found = {"channels": channels, "fingerprint": digest.hexdigest(), "version": version}
    _keep(kept, lambda temporary: temporary.write_text(json.dumps(found)))
    return channels, digest.hexdigest()


def _square(source: _Source, x_nchw: Tensor) -> Tensor:
    height, width = x_nchw.shape[2:]
    if height != width:
        raise DataError(f"dataset={source.name!r}: images are {height}×{width}; set image_size to make them square")
    return x_nchw


def _sixth(source: _Source, labels: Tensor, names: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Numbers of the images to train on and of those to test on, where the source has no test split."""
    if len(names) < 2:
        raise DataError(f"dataset={source.name!r}: needs at least two classes, got {len(names)}")
    rare = [name for name, count in zip(names, labels.bincount().tolist(), strict=True) if count < 2]
    if rare:
        raise DataError(
            f"dataset={source.name!r}: class {rare[0]!r} has one image, and there is no test split; "
            "add images, or a test split"
        )
    return carve(labels, 1 / 6)


def _go_offline_without_network() -> None:
    """Where the hub cannot be reached, look in its cache at once, instead of retrying for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=1.5).close()
    except OSError:
        import datasets

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        # train-00000-of-00001.parquet, or train/0000.parquet as the hub converts it
        words = [path.stem.split("-")[0], *reversed(path.relative_to(folder).parts[:-1])]
        split_name = next((word for word in words if word in ("train", *TEST_SPLITS)), words[0])
        files.setdefault(split_name, []).append(str(path))
    return files


def _missing(source: _Source, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if source.folder is not None:
        return f"dataset={source.name!r}: the files below its folder cannot be read: {reason}"
    return (
        f"dataset={source.name!r}: not found below $SPECTRUM_DATA and not to be had from the hub ({reason}).\n"
        f"Either put its Parquet files (or a folder an image class) at $SPECTRUM_DATA/{source.name}/,\n"
        f"or connect to the network once, and {source.hub_id} is downloaded and kept."
    )


def _columns(source: _Source, part: Any) -> tuple[str, str]:
    import datasets

    features = part.features
    images = [c for c in features if isinstance(features[c], datasets.Image)]
    images += [c for c in IMAGE_COLUMNS if c in features and c not in images]
    labels = [c for c in LABEL_COLUMNS if c in features]
    labels += [c for c in features if isinstance(features[c], datasets.ClassLabel) and c not in labels]
    if not images or not labels:
        raise DataError(
            f"dataset={source.name!r}: found the columns {', '.join(features)}; expected an image "
            f"({', '.join(IMAGE_COLUMNS)}) and a label ({', '.join(LABEL_COLUMNS)}). A folder of images needs two or "
            "more folders of classes, none of them called train, test or validation"
        )
    return images[0], labels[0]


def _labels(values: Sequence[Any], names: Sequence[Any] | None = None) -> tuple[Tensor, list[Any]]:
    values = list(values)
    names = sorted(set(values)) if names is None else list(names)
    number = {name: i for i, name in enumerate(names)}
    unknown = set(values) - set(names)
    if unknown:
        raise DataError(f"label {sorted(unknown)[0]!r} is in the test split but not in the training split")
    return torch.tensor([number[value] for value in values]), names


def _digits(image_size: int | None) -> Images:
    """1,797 handwritten digits of 8×8 pixels (Alpaydin & Kaynak 1998), as they come with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images * (255 / 16)).round().unsqueeze(1)
    if image_size is not None:
        pixels = torch.nn.functional.interpolate(pixels, (image_size, image_size), mode="bilinear", antialias=True)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = carve(labels, 1 / 6)
    return make_images(pixels[train], labels[train], pixels[test], labels[test])


# The cache of decoded images


def _cache_file(source: _Source, image_size: int | None, resize: Resize) -> Path:
    how = f"{image_size}" if resize == "stretch" else f"{image_size} {resize}"
    key = hashlib.sha256(f"2\n{how}\n{source.key}".encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.safetensors"


def _read_cache(path: Path) -> Images | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            count, _, height, width = file.get_slice("train_x").get_shape()
            count += file.get_slice("test_x").get_shape()[0]
            if _gigabytes(count, height, width) > _most_gigabytes():
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
            stored = file.metadata()["fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        return None
    try:
        images = make_images(*(tensors[name] for name in ("train_x", "train_y", "test_x", "test_y")))
    except KeyError:
        return None
    return images if images.fingerprint == stored else None  # a flipped bit: decode again


def _write_cache(path: Path, images: Images) -> None:
    pixels = {"train_x": in_memory(images.train_x), "test_x": in_memory(images.test_x)}
    tensors = pixels | {"train_y": images.train_y, "test_y": images.test_y}
    metadata = {"fingerprint": images.fingerprint}
    _keep(path, lambda temporary: save_file(tensors, str(temporary), metadata=metadata))


def _keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache whole, or not: without room for it, images are decoded every time."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            temporary.unlink()

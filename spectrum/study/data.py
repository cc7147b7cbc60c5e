"""Images, decoded once to uint8 tensors in memory; split, normalised and augmented in batches.

    load_images(name) → Images → split(…) → Split → batches(…) → (x_nchw, y_n) a step

Where a data set is looked for: `$SPECTRUM_DATA/<name>/` first (Parquet in the hub's layout, or a folder a class), then
the hub's cache or a download. Decoded images are cached under `$SPECTRUM_CACHE` (~/.cache/spectrum otherwise).
The test set is whatever the source calls "test", else its "validation" split, else a fixed sixth of its images.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrum._cache import cache_folder

HUB_IDS = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
DATASETS = ("digits", *HUB_IDS)
IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class", "y")
TEST_SPLITS = ("test", "validation", "valid", "val")


class DataError(ValueError):
    """Images that cannot be had: what is missing or broken, and what would work."""


@dataclass(frozen=True)
class Images:
    """A decoded data set. Pixels uint8 (N, C, H, W), labels int64 (N,) from 0 to classes − 1."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    fingerprint: str  # SHA-256 of pixels and labels, 16 hex digits

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Split:
    """The images of one run: what to train on, what to choose by, and how to normalise."""

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    mean: Tensor  # of the training split, from 0 to 255, one a channel
    std: Tensor

    def normalise(self, x_nchw: Tensor) -> Tensor:
        """uint8 pixels to float32 of mean 0 and standard deviation 1 over the training split."""
        mean, std = (t.to(x_nchw.device).view(1, -1, 1, 1) for t in (self.mean, self.std))
        return (x_nchw.float() - mean).div_(std)


# Loading


@lru_cache(maxsize=2)
def load_images(name: str, image_size: int | None = None) -> Images:
    """Load a data set by name, hub id or folder.

    Args:
        name: "digits" (comes with scikit-learn), "fashion_mnist", "cifar10", "cifar100", a hub id such as
            "owner/name", or a folder such as "./flowers": of Parquet files in the hub's layout, or of one folder a
            class (optionally below train/ and test/).
        image_size: side in pixels to resize to; None keeps the images, which must then have one size.

    Raises DataError (a ValueError) that says what is missing and both ways to get it.
    """
    if name == "digits":
        return _digits(image_size)
    source = _find(name)
    cache = _cache_file(source, image_size)
    images = _read_cache(cache)
    if images is None:
        images = _decode(source, image_size)
        _write_cache(cache, images)
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
        raise DataError(
            f"dataset={name!r}: unknown; try {', '.join(map(repr, DATASETS))}, a hub id (owner/name), "
            f"a folder (./{name}), or put it at $SPECTRUM_DATA/{name}/"
        )
    return _Source(name, None, HUB_IDS.get(name, name))


def _decode(source: _Source, image_size: int | None) -> Images:
    if source.folder is None:
        _go_offline_without_network()
    with warnings.catch_warnings():  # in a notebook tqdm asks for widgets, for bars that are not shown
        warnings.filterwarnings("ignore", message="IProgress not found")
        import datasets

    datasets.disable_progress_bars()
    try:
        if source.folder is None:
            parts = datasets.load_dataset(source.hub_id)
        elif files := _parquet_files(source.folder):
            parts = datasets.load_dataset("parquet", data_files=files)
        else:
            parts = datasets.load_dataset("imagefolder", data_dir=str(source.folder))
    except Exception as error:  # the library raises dozens of kinds, from offline hubs to broken files
        raise DataError(_missing(source, error)) from error
    train_name = "train" if "train" in parts else next(iter(parts))
    train = parts[train_name]
    test_name = next((split for split in TEST_SPLITS if split in parts and split != train_name), None)
    image, label = _columns(source, train)

    train_x, modes = _pixels(source, train_name, train, image, image_size, None)
    labels, names = _labels(train[label])
    if test_name is None:
        if len(names) < 2:
            raise DataError(f"dataset={source.name!r}: needs at least two classes, got {len(names)}")
        rare = [name for name, count in zip(names, labels.bincount().tolist(), strict=True) if count < 2]
        if rare:
            raise DataError(
                f"dataset={source.name!r}: class {rare[0]!r} has one image, and there is no test split; "
                "add images, or a test split"
            )
        keep, test = carve(labels, 1 / 6)
        return make_images(train_x[keep], labels[keep], train_x[test], labels[test])
    test_x, _ = _pixels(source, test_name, parts[test_name], image, image_size, modes)
    test_labels, _ = _labels(parts[test_name][label], names)
    if test_x.shape[1:] != train_x.shape[1:]:
        raise DataError(f"dataset={source.name!r}: images of the test split have another size; set image_size")
    return make_images(train_x, labels, test_x, test_labels)


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


def _pixels(
    source: _Source, split_name: str, part: Any, column: str, image_size: int | None, mode: str | None
) -> tuple[Tensor, str]:
    """Decode one split to uint8 (N, C, H, W); grey images stay one channel, all others become RGB."""
    import datasets
    from PIL import Image, UnidentifiedImageError

    if isinstance(part.features[column], datasets.Image):
        part = part.cast_column(column, datasets.Image(decode=False))
    pixels: list[np.ndarray[Any, Any]] = []
    for number, row in enumerate(part.select_columns([column])):
        stored = row[column]
        where = f"dataset={source.name!r}: image {number} of the {split_name} split"
        try:
            data = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
            encoded = Image.open(io.BytesIO(data))
            mode = mode or ("L" if encoded.mode in ("1", "L", "I") or encoded.mode.startswith("I;16") else "RGB")
            image = _eight_bits(encoded).convert(mode)
        except (OSError, SyntaxError, TypeError, KeyError, ValueError, Image.DecompressionBombError) as error:
            file = stored.get("path") if isinstance(stored, dict) else None
            why = "no known image format" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{where}{f' ({file})' if file else ''} cannot be decoded ({why}); mend or remove it"
            ) from error
        if image_size is not None:
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        pixels.append(np.asarray(image))
        if pixels[-1].shape != pixels[0].shape:
            sizes = ["×".join(map(str, p.shape[:2])) for p in (pixels[-1], pixels[0])]
            raise DataError(f"{where} has {sizes[0]} pixels, earlier ones {sizes[1]}; set image_size")
    if not pixels:
        raise DataError(f"dataset={source.name!r}: the {split_name} split has no images")
    height, width = pixels[0].shape[:2]
    if height != width:
        raise DataError(f"dataset={source.name!r}: images are {height}×{width}; set image_size to make them square")
    stacked = torch.from_numpy(np.stack(pixels)).view(len(pixels), height, width, -1)
    assert mode is not None
    return stacked.permute(0, 3, 1, 2).contiguous(), mode


def _eight_bits(image: Any) -> Any:
    """The image, scaled to 8 bits if it has 16 (where Pillow would cut off). Raises ValueError for numbers beyond."""
    from PIL import Image

    if image.mode != "F" and image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
        raise ValueError(f"pixels of mode {image.mode} have no known range; store them with 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _labels(values: Sequence[Any], names: Sequence[Any] | None = None) -> tuple[Tensor, list[Any]]:
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


def make_images(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Images:
    tensors = (train_x, train_y, test_x, test_y)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return Images(*tensors, classes=int(train_y.max()) + 1, fingerprint=digest.hexdigest()[:16])


# The cache of decoded images


def _cache_file(source: _Source, image_size: int | None) -> Path:
    key = hashlib.sha256(f"1\n{image_size}\n{source.key}".encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.safetensors"


def _read_cache(path: Path) -> Images | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
            stored = file.metadata()["fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    try:
        images = make_images(*(tensors[name] for name in ("train_x", "train_y", "test_x", "test_y")))
    except KeyError:
        return None
    return images if images.fingerprint == stored else None  # a flipped bit: decode again


def _write_cache(path: Path, images: Images) -> None:
    tensors = {name: getattr(images, name) for name in ("train_x", "train_y", "test_x", "test_y")}
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(temporary), metadata={"fingerprint": images.fingerprint})
        temporary.replace(path)
    except (OSError, SafetensorError):  # a cache is a convenience: without room for it, images are decoded every time
        with suppress(OSError):
            temporary.unlink()


# Splitting


def carve(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices (kept, carved): a fixed, class-balanced part of about `fraction` of the images, at least one a class.

    The same for every seed, so that nothing that was chosen on it ever sees training. At least one image of a class is
    kept, so that of a class with one image none is carved.
    """
    carved = [members[: min(max(1, round(fraction * len(members))), len(members) - 1)] for members in _by_class(labels)]
    part = torch.cat(carved).sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[part] = False
    return kept.nonzero().squeeze(1), part


def balanced(labels: Tensor, count: int) -> Tensor:
    """Indices of a fixed subset of `count` images with as equal classes as there are images for; smaller in larger."""
    order = torch.cat([torch.arange(len(members)) for members in _by_class(labels)])
    members = torch.cat(_by_class(labels))
    return members[order.argsort(stable=True)][:count].sort().values


def _by_class(labels: Tensor) -> list[Tensor]:
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(20170407))
    return [shuffled[labels[shuffled] == label] for label in labels.unique().tolist()]


def split(images: Images, validation_fraction: float, train_images: int | None = None) -> Split:
    """Carve the validation split off the training set, then take a balanced part of what is left.

    Raises DataError when there are fewer images than asked for.
    """
    train, validation = carve(images.train_y, validation_fraction)
    if not len(validation):
        raise DataError("the training set has one image a class, and so none to spare for validation")
    mean, std = _moments(images.train_x[train])
    if train_images is not None:
        if train_images > len(train):
            raise DataError(f"train_images={train_images}: only {len(train)} are left beside the validation split")
        train = train[balanced(images.train_y[train], train_images)]
    return Split(
        images.train_x[train].contiguous(memory_format=torch.channels_last),  # as batches want it
        images.train_y[train],
        images.train_x[validation],
        images.train_y[validation],
        mean,
        std,
    )


def _moments(x_nchw: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation a channel, from counts of the 256 grey levels."""
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([x_nchw[:, c].flatten().bincount(minlength=256) for c in range(x_nchw.shape[1])]).double()
    total = counts.sum(1)
    mean = counts @ levels / total
    variance = (counts @ levels.square() / total - mean.square()).clamp(min=0)
    std = variance.sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


# Batches


def batches(
    data: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    flip: bool = False,
    shift: int = 0,
    cutout: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, augmented, normalised batches: float32 (N, C, H, W) in channels_last, and labels (N,).

    The order depends on (seed, epoch); what happens to an image on (seed, epoch, image) and nothing else. The last,
    smaller batch is left out, unless there is no other.
    """
    count = len(data.train_y)
    batch_size = min(batch_size, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    train_nhwc = data.train_x.permute(0, 2, 3, 1)
    height, width = train_nhwc.shape[1:3]
    drawn = draw_augmentation(seed, epoch, count, (height, width), shift=shift)
    mean, std = (t.repeat(height * width).to(device) for t in (data.mean, data.std))  # one long loop, not many
    for start in range(0, count - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        x_nhwc = train_nhwc.index_select(0, chosen)
        if flip or shift:
            x_nhwc = move(x_nhwc, drawn.mirrored[chosen] & flip, drawn.down[chosen], drawn.right[chosen], shift)
        x_nhwc = torch.sub(x_nhwc.view(batch_size, -1).to(device), mean).div_(std).view(x_nhwc.shape)
        if cutout:
            cut = square((height, width), drawn.cut_row[chosen], drawn.cut_column[chosen], cutout)
            x_nhwc.masked_fill_(cut.unsqueeze(3).to(device), 0.0)
        yield x_nhwc.permute(0, 3, 1, 2), data.train_y[chosen].to(device, non_blocking=True)


@dataclass(frozen=True)
class Drawn:
    """What happens to each image in one epoch: (N,) each."""

    mirrored: Tensor  # whether, if images are flipped at all
    down: Tensor  # first row of the window in the padded image, 0 to 2 · shift
    right: Tensor  # first column
    cut_row: Tensor  # near the middle of what is cut out
    cut_column: Tensor


def draw_augmentation(seed: int, epoch: int, count: int, size: tuple[int, int], *, shift: int) -> Drawn:
    """Draw for the images 0 … count − 1, of `size` (H, W)."""
    choices = (2, 2 * shift + 1, 2 * shift + 1, *size)
    numbers = torch.arange(count)
    mirrored, *others = (_draw(seed, epoch, numbers, stream, most) for stream, most in enumerate(choices))
    return Drawn(mirrored == 1, *others)


def move(x_nhwc: Tensor, mirrored: Tensor, down: Tensor, right: Tensor, shift: int) -> Tensor:
    """Pad images by `shift` zeros on each side, cut windows of the old size out of them, and mirror some.

    Row by row, from a view in which each pixel of the images and of their mirror images begins a window's row.
    """
    count, height, width, channels = x_nhwc.shape
    both = torch.cat([x_nhwc, x_nhwc.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)])  # torch is fast on this flip
    padded = torch.nn.functional.pad(both, (0, 0, *(shift,) * 4))
    padded_height, padded_width = height + 2 * shift, width + 2 * shift
    rows = padded.as_strided((2 * count * padded_height * padded_width - width + 1, width * channels), (channels, 1))
    image = torch.arange(count) + count * mirrored
    row = (image * padded_height + down).view(-1, 1) + torch.arange(height)
    starts = row * padded_width + torch.where(mirrored, 2 * shift - right, right).view(-1, 1)
    return rows.index_select(0, starts.flatten()).view(x_nhwc.shape)


def square(size: tuple[int, int], row: Tensor, column: Tensor, side: int) -> Tensor:
    """(N, H, W), true inside the square of `side` pixels round (row, column), as far as it lies in the image.

    For cutout (DeVries & Taylor 2017, arXiv:1708.04552), whose squares may reach over the border too.
    """
    inside = []
    for length, middle in zip(size, (row, column), strict=True):
        offset = torch.arange(length) - middle.view(-1, 1) + side // 2
        inside.append((offset >= 0) & (offset < side))
    return inside[0].unsqueeze(2) & inside[1].unsqueeze(1)


def _draw(seed: int, epoch: int, numbers: Tensor, stream: int, choices: int) -> Tensor:
    """One whole number below `choices` an image, by hashing (seed, epoch, image, stream).

    The mixing is SplitMix64's finaliser (Steele, Lea & Flood 2014), on int64, whose products wrap.
    """
    h = numbers.to(torch.int64)
    for part in (seed, epoch, stream):
        h = h + _wrapped((part + 1) * 0x9E3779B97F4A7C15)
        h = (h ^ ((h >> 30) & (2**34 - 1))) * _wrapped(0xBF58476D1CE4E5B9)
        h = (h ^ ((h >> 27) & (2**37 - 1))) * _wrapped(0x94D049BB133111EB)
        h = h ^ ((h >> 31) & (2**33 - 1))
    return ((h >> 16) & 0xFFFFFFFF) % choices


def _wrapped(value: int) -> int:
    """A whole number modulo 2^64, as a signed one."""
    return (value + 2**63) % 2**64 - 2**63

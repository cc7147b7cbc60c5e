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
import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrum._cache import cache_folder, make_folder, usable_cache
from spectrum.data.digits import INK, read_digits
from spectrum.data.labels import LabelColumn
from spectrum.data.layout import (
    IN_ORDER,
    TEST_SPLITS,
    File,
    Layout,
    LayoutError,
    Split,
    alike_but_for_case,
    arrange,
    each_path,
    shown,
    split_named,
    walk,
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
    in_memory,
    in_threads,
)
from spectrum.data.splits import About, Images, carve, make_images
from spectrum.data.tables import How, HubTable, ParquetTable, Table, columns_of, hash_of

HUB_IDS = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
DATASETS = ("digits", *HUB_IDS)
DECODING = 3  # a version: what is kept of decoded images holds for one way to decode only
COLOURED = "training images are grey, so coloured test images are read as grey"
OF_THE_HUB = " of the hub"
CARVED = "a fixed sixth of the training files, carved off, since there is no test split with labels"


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
    if name == "digits" and _own_folder(name) is None:
        if resize != "stretch":
            raise DataError(f"resize={resize!r}: digits are square already; leave it out")
        return _digits(image_size)
    try:
        source = _find(name)
        images = _loaded(_Request(source.key, name, image_size, resize, _most_gigabytes(), source))
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
    source: _Source = field(compare=False)


@lru_cache(maxsize=2)
def _loaded(request: _Request) -> Images:
    decoder = Decoder(request.image_size, request.resize)
    cache = _cache_file(request.content, request.image_size, request.resize)
    images = _read_cache(cache)
    if images is None:
        images = _read(request.source, decoder, cache)
    if isinstance(images.train_x, Tensor) and isinstance(images.test_x, Tensor):
        images = _with_shared(images, _shared(_hashes_of(images.train_x), _hashes_of(images.test_x)))
    return images


def _hashes_of(x_nchw: Tensor) -> Iterator[bytes]:
    return (hashlib.sha256(x_chw.contiguous().numpy().data).digest() for x_chw in x_nchw)


def _shared(train: Iterable[bytes], test: Iterable[bytes]) -> int:
    """How many test images are training images too, by their hashes."""
    known = set(train)
    return sum(hashed in known for hashed in test)


def _with_shared(images: Images, shared: int) -> Images:
    """The images, with a note on those that are in both splits, which score what was learned by heart."""
    if not shared:
        return images
    are = "image is a training image" if shared == 1 else "images are training images"
    note = f"{shared:,} of {len(images.test_y):,} test {are} too"
    return replace(images, about=replace(images.about, notes=(*images.about.notes, note)))


load_images.cache_clear = _loaded.cache_clear  # type: ignore[attr-defined] # gives memory back


@dataclass(frozen=True)
class _Part:
    """One split: its labels, and its images in the ways in which they can be had."""

    labels: Tensor
    stored: Callable[[How, Path], Stored]  # "mapped" may write the file


@dataclass(frozen=True)
class _Parts:
    train: _Part
    test: _Part | None
    about: About


class _Source(Protocol):
    """Where images come from."""

    name: str

    @property
    def layout(self) -> Layout | None:
        """What the files of a folder mean."""

    @property
    def key(self) -> str:
        """A hash of the content that is used."""

    def read_key(self) -> str:
        """The same, from the files as they are now."""

    def parts(self) -> _Parts:
        """The splits that are used. Raises LayoutError for labels that are none."""

    def named_now(self, about: About) -> About:
        """The same in the names of today: what is kept is found by content, and may have had other names."""


@dataclass
class _ImageFolder:
    name: str
    folder: Path
    layout: Layout

    @cached_property
    def key(self) -> str:
        return self._key_of(self._hashes)

    def read_key(self) -> str:
        return self._key_of(self._read_hashes())

    @cached_property
    def _hashes(self) -> Mapping[Split, Sequence[bytes]]:
        """SHA-256 of each file, as it was when the data set was first read."""
        return self._read_hashes()

    def _read_hashes(self) -> Mapping[Split, Sequence[bytes]]:
        return {
            split: list(in_threads(hash_of, each_path(self.folder, files)))
            for split, files in self.layout.splits.items()
        }

    def _key_of(self, hashes: Mapping[Split, Sequence[bytes]]) -> str:
        digest = hashlib.sha256(b"folder of images")
        for split, files in self.layout.splits.items():
            for file, hashed in zip(files, hashes[split], strict=True):
                digest.update(
                    hashlib.sha256(f"{split} {file.label}".encode("utf-8", "surrogateescape")).digest() + hashed
                )
        return digest.hexdigest()

    def parts(self) -> _Parts:
        splits = self.layout.splits
        names = sorted({file.label for file in splits["train"]})
        number = {name: n for n, name in enumerate(names)}
        parts = {
            split: _Part(torch.tensor([number[file.label] for file in files]), self._images(split, files))
            for split, files in splits.items()
        }
        test = next((split for split in TEST_SPLITS if split in parts), None)
        about = self.named_now(About(read="a folder of images", classes=tuple(map(shown, names))))
        return _Parts(parts["train"], parts[test] if test else None, about)

    def named_now(self, about: About) -> About:
        folders = self.layout.folders
        test = next((split for split in TEST_SPLITS if split in folders), None)
        return replace(about, test=CARVED if test is None else f"those in {shown(folders[test])}/")

    def _images(self, split: Split, files: Sequence[File]) -> Callable[[How, Path], Stored]:
        paths = [str(self.folder.joinpath(*file.parts)) for file in files]
        return lambda how, kept: Stored(self.name, split, _Paths(paths, self._hashes[split]), "image")


@dataclass(frozen=True)
class _Paths:
    """Files, as rows of a table, with the SHA-256 of what they held."""

    paths: Sequence[str]
    hashes: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        rows = [{"bytes": None, "path": self.paths[number], "sha256": self.hashes[number]} for number in numbers]
        return {"image": rows}


@dataclass
class _ParquetFolder:
    name: str
    folder: Path
    layout: Layout

    @cached_property
    def key(self) -> str:
        return self.read_key()

    def read_key(self) -> str:
        digest = hashlib.sha256(b"Parquet")
        for split in IN_ORDER:
            known: dict[bytes, Path] = {}
            for path in self._paths(split):
                hashed = hash_of(path)
                other = known.setdefault(hashed, path)
                if other != path and len(ParquetTable([path])):
                    raise LayoutError(f"{other.name} and {path.name} of the {split} split are copies; remove one")
                digest.update(split.encode() + hashed)
        return digest.hexdigest()

    def parts(self) -> _Parts:
        tables: dict[Split, Table] = {
            split: ParquetTable(self._paths(split)) for split in IN_ORDER if split in self.layout.splits
        }
        return _of_tables(self.name, "Parquet files", tables, paths=False)

    def named_now(self, about: About) -> About:
        return about  # which has no names but those in the files

    def _paths(self, split: Split) -> list[Path]:
        return [self.folder.joinpath(*file.parts) for file in self.layout.splits.get(split, ())]


@dataclass
class _Hub:
    name: str
    hub_id: str
    layout: Layout | None = None

    @cached_property
    def tables(self) -> dict[str, HubTable]:
        return {split: HubTable(part) for split, part in _fetched(self.name, self.hub_id).items()}

    @cached_property
    def key(self) -> str:
        return self.read_key()

    def read_key(self) -> str:
        return "\n".join(["hub", *(f"{split} {table.key}" for split, table in self.tables.items())])

    def parts(self) -> _Parts:
        tables: dict[Split, Table] = {}
        left_out = []
        for name, table in self.tables.items():
            split = split_named(name)
            if split is None and len(self.tables) == 1:
                split = "train"
            if split is None or split in tables:
                left_out.append(f"{len(table):,} images of the split {name!r}, which is none of {', '.join(IN_ORDER)}")
            else:
                tables[split] = table
        if "train" not in tables:
            raise LayoutError(f"has the splits {', '.join(self.tables)}, and none to train on; expected train")
        parts = _of_tables(self.name, f"{self.hub_id}{OF_THE_HUB}", tables, paths=True)
        return replace(parts, about=replace(parts.about, left_out=(*parts.about.left_out, *left_out)))

    def named_now(self, about: About) -> About:
        _, of_the_hub, columns = about.read.partition(OF_THE_HUB)
        return replace(about, read=self.hub_id + of_the_hub + columns)


def _of_tables(name: str, kind: str, tables: Mapping[Split, Table], *, paths: bool) -> _Parts:
    """The training split of tables, and the first of test and validation that has labels."""
    image, label, said = columns_of(tables["train"])
    column = LabelColumn("train", label, tables["train"].values(label), tables["train"].names(label))
    classes = column.classes()
    train = _Part(column.numbers(classes), _images_of(name, "train", tables["train"], image, paths=paths))
    left_out, notes = [], alike_but_for_case(classes.names)
    unused = set(classes.declared or ()) - set(classes.names)
    if unused:
        notes.append(f"{len(unused)} of {len(classes.declared or ())} named classes without images")
    test: _Part | None = None
    from_where = CARVED
    for split in TEST_SPLITS:
        table = tables.get(split)
        if table is None:
            continue
        counted = f"{len(table):,} images of the {split} split"
        if test is not None:
            left_out.append(f"{counted}: validation images are carved off the training images")
            continue
        if not len(table):
            left_out.append(f"the {split} split, which is empty")
            continue
        if label not in table.columns:
            left_out.append(f"{counted}, without labels: it has no column {label!r}")
            continue
        labels = LabelColumn(split, label, table.values(label), table.names(label))
        why = labels.withheld(classes)
        if why is not None:
            left_out.append(f"{counted}, without labels: {why}")
            continue
        if image not in table.columns:
            raise LayoutError(f"the {split} split has no column {image!r}, which the train split has its images in")
        numbers = labels.numbers(classes)
        labels.raise_unless_all(classes, numbers)
        test, from_where = _Part(numbers, _images_of(name, split, table, image, paths=paths)), f"the {split} split"
    about = About(f"{kind}, {said}", tuple(map(shown, classes.names)), from_where, tuple(left_out), tuple(notes))
    return _Parts(train, test, about)


def _images_of(name: str, split: Split, table: Table, column: str, *, paths: bool) -> Callable[[How, Path], Stored]:
    def stored(how: How, kept: Path) -> Stored:
        path = kept.with_suffix(f".{split}.arrow")
        return Stored(name, split, table.rows(column, how, path, _keep), column, paths)

    return stored


def _find(name: str) -> _Source:
    own = _own_folder(name)
    if own is not None:
        return _folder(name, own)
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise DataError(f"dataset={name!r}: no such folder")
        return _folder(name, folder)
    if name not in HUB_IDS and "/" not in name:
        near = get_close_matches(name, DATASETS, n=1)
        meant = f"did you mean {near[0]!r}? Else try" if near else "try"
        raise DataError(
            f"dataset={name!r}: unknown; {meant} {', '.join(map(repr, DATASETS))}, 'gaussian' with teacher_segments, "
            f"a hub id (owner/name), a folder (./{name}), or put it at $SPECTRUM_DATA/{name}/"
        )
    if name not in HUB_IDS and Path(name).exists():  # the library that reads the hub would take it for a data set of it
        raise DataError(f"dataset={name!r}: is a folder here, and reads as a hub id; did you mean './{name}'?")
    return _Hub(name, HUB_IDS.get(name, name))


def _own_folder(name: str) -> Path | None:
    """The folder $SPECTRUM_DATA/<name>/, if there is one."""
    root = os.environ.get("SPECTRUM_DATA")
    if root is None or name.startswith((".", "/", "~")):
        return None
    folder = Path(root).expanduser() / name
    return folder if folder.is_dir() else None


def _folder(name: str, folder: Path) -> _ImageFolder | _ParquetFolder:
    layout = arrange(walk(folder))
    return (_ImageFolder if layout.kind == "images" else _ParquetFolder)(name, folder, layout)


def _read(source: _Source, decoder: Decoder, cache: Path) -> Images:
    parts = source.parts()
    labels, part, about = parts.train.labels, parts.test, parts.about
    names = about.classes
    encoded = _stay_encoded(
        parts.train.stored("first", cache), len(labels) + (len(part.labels) if part else 0), decoder
    )
    surveyed = _surveyed(cache.with_suffix(".json")) if encoded else None  # then nothing new is kept
    how: How = "mapped" if encoded else "memory"
    train = parts.train.stored(how, cache)
    test = part.stored(how, cache) if part else None
    train_x: Pixels
    test_x: Pixels
    if encoded:
        survey = surveyed or _survey([train, test] if test else [train], decoder, cache.with_suffix(".json"))
        decoder = replace(decoder, channels=survey.channels)
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
    if surveyed is None and source.read_key() != source.key:
        for kept in cache.parent.glob(f"{cache.stem}.*"):
            kept.unlink(missing_ok=True)
        raise DataError(f"dataset={source.name!r}: its files changed while they were read; try again")
    if isinstance(train_x, Tensor) and isinstance(test_x, Tensor):
        images = make_images(train_x, labels, test_x, test_labels, about)
        _write_cache(cache, images)
        return images
    said = f"{survey.fingerprint} {labels.tolist()} {test_labels.tolist()}"
    fingerprint = hashlib.sha256(said.encode()).hexdigest()[:16]
    images = Images(train_x, labels, test_x, test_labels, len(names), fingerprint, about)
    return _with_shared(images, survey.shared)


def _fetched(name: str, hub_id: str) -> Any:
    """The splits of a data set of the hub, by name."""
    _go_offline_without_network()
    with warnings.catch_warnings():  # in a notebook tqdm asks for widgets, for bars that are not shown
        warnings.filterwarnings("ignore", message="IProgress not found")
        import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub_id)
    except Exception as error:  # the library raises dozens of kinds, from offline hubs to broken files
        raise DataError(_missing(name, hub_id, error)) from error


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


@dataclass(frozen=True)
class _Survey:
    """What is known of images that stay encoded, after all files were read once."""

    channels: int  # that the training images have
    fingerprint: str  # SHA-256 of all files
    shared: int  # files of the test split that are in the training split too


def _surveyed(kept: Path) -> _Survey | None:
    """What was kept beside the cache, if it was."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text()) if usable_cache() else {}
        return _Survey(int(known["channels"]), str(known["fingerprint"]), int(known["shared"]))
    return None


def _survey(splits: Sequence[Stored], decoder: Decoder, kept: Path) -> _Survey:
    """Read all files, and keep what is found beside the cache."""
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
    _keep(kept, lambda temporary: temporary.write_text(json.dumps(asdict(found))))
    return found


def _square(source: _Source, x_nchw: Tensor) -> Tensor:
    height, width = x_nchw.shape[2:]
    if height != width:
        raise DataError(f"dataset={source.name!r}: images are {height}×{width}; set image_size to make them square")
    return x_nchw


def _sixth(source: _Source, labels: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Numbers of the images to train on and of those to test on, where the source has no test split."""
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


def _data_root_said() -> str:
    root = os.environ.get("SPECTRUM_DATA")
    if root is None:
        return "which is not set"
    return f"{root}, " + ("which has no such folder" if Path(root).expanduser().is_dir() else "which is no folder")


def _missing(name: str, hub_id: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"dataset={name!r}: not found below $SPECTRUM_DATA ({_data_root_said()}), "
        f"nor to be had from the hub ({reason}).\n"
        f"Either put its Parquet files (or a folder per class of images) at $SPECTRUM_DATA/{name}/,\n"
        f"or connect to the network once, and {hub_id} is downloaded and kept."
    )


@lru_cache(maxsize=2)
def _digits(image_size: int | None) -> Images:
    """1,797 handwritten digits of 8×8 pixels, as they come with this package."""
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


# The cache of decoded images


def _cache_file(content: str, image_size: int | None, resize: Resize) -> Path:
    how = f"{image_size}" if resize == "stretch" else f"{image_size} {resize}"
    key = hashlib.sha256(f"{DECODING}\n{how}\n{content}".encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.safetensors"


def _read_cache(path: Path) -> Images | None:
    if not usable_cache():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            count, _, height, width = file.get_slice("train_x").get_shape()
            count += file.get_slice("test_x").get_shape()[0]
            if _gigabytes(count, height, width) > _most_gigabytes():
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
    """What a file of the cache says of its images, after a hash of it."""
    record = json.dumps([images.fingerprint, asdict(images.about)])
    return f"{hashlib.sha256(record.encode()).hexdigest()} {record}"


def _unsealed(record: str) -> tuple[str, About]:
    """The fingerprint, and where the images come from. Raises ValueError for a record that is not whole."""
    seal, _, content = record.partition(" ")
    if hashlib.sha256(content.encode()).hexdigest() != seal:
        raise ValueError("the record is not whole")
    fingerprint, said = json.loads(content)
    tuples = {name: tuple(said[name]) for name in ("classes", "left_out", "notes")}
    return fingerprint, About(said["read"], test=said["test"], **tuples)


def _write_cache(path: Path, images: Images) -> None:
    pixels = {"train_x": in_memory(images.train_x), "test_x": in_memory(images.test_x)}
    tensors = pixels | {"train_y": images.train_y, "test_y": images.test_y}
    metadata = {"record": _sealed(images)}
    _keep(path, lambda temporary: save_file(tensors, str(temporary), metadata=metadata))


def _keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of the cache whole, or not: without room for it, images are decoded every time."""
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

"""Sources of images: a folder of images, a folder of Parquet files, or the hub.

`find_source` gives the source of a name; a source gives its splits, and a hash of the content that it uses.
"""

from __future__ import annotations

import hashlib
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from spectrum._registry import nearest
from spectrum.data.kept import keep
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
    Stored,
    in_threads,
)
from spectrum.data.splits import About
from spectrum.data.tables import How, HubTable, ParquetTable, Table, columns_of, hash_of
from spectrum.design.own_data import HUB_IDS, list_datasets

DATASETS = ("digits", *HUB_IDS)
OF_THE_HUB = " of the hub"
CARVED = "a fixed sixth of the training files, carved off, since there is no test split with labels"


@dataclass(frozen=True)
class Part:
    """One split: its labels, and functions that load its images."""

    labels: Tensor
    stored: Callable[[How, Path], Stored]  # "mapped" may write the file


@dataclass(frozen=True)
class Parts:
    train: Part
    test: Part | None
    about: About


class Source(Protocol):
    """A source of images: a folder of images, a folder of Parquet files, or the hub."""

    name: str

    @property
    def layout(self) -> Layout | None:
        """The splits and classes of a folder's files."""

    @property
    def key(self) -> str:
        """A hash of the used content."""

    def read_key(self) -> str:
        """The same hash, from the current files."""

    def parts(self) -> Parts:
        """The splits that are used. Raises LayoutError for invalid labels."""

    def named_now(self, about: About) -> About:
        """The description with current names: the cache goes by content, and files may have been renamed."""


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
        """SHA-256 of each file at the time when the data set was first read."""
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

    def parts(self) -> Parts:
        splits = self.layout.splits
        names = sorted({file.label for file in splits["train"]})
        number = {name: n for n, name in enumerate(names)}
        parts = {
            split: Part(torch.tensor([number[file.label] for file in files]), self._images(split, files))
            for split, files in splits.items()
        }
        test = next((split for split in TEST_SPLITS if split in parts), None)
        about = self.named_now(About(read="a folder of images", classes=tuple(map(shown, names))))
        return Parts(parts["train"], parts[test] if test else None, about)

    def named_now(self, about: About) -> About:
        folders = self.layout.folders
        test = next((split for split in TEST_SPLITS if split in folders), None)
        return replace(about, test=CARVED if test is None else f"those in {shown(folders[test])}/")

    def _images(self, split: Split, files: Sequence[File]) -> Callable[[How, Path], Stored]:
        paths = [str(self.folder.joinpath(*file.parts)) for file in files]
        return lambda how, kept: Stored(self.name, split, _Paths(paths, self._hashes[split]), "image")


@dataclass(frozen=True)
class _Paths:
    """Files as rows of a table, with the SHA-256 of their content."""

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

    def parts(self) -> Parts:
        tables: dict[Split, Table] = {
            split: ParquetTable(self._paths(split)) for split in IN_ORDER if split in self.layout.splits
        }
        return _of_tables(self.name, "Parquet files", tables, paths=False)

    def named_now(self, about: About) -> About:
        return about  # it has no names except those in the files

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

    def parts(self) -> Parts:
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


def _of_tables(name: str, kind: str, tables: Mapping[Split, Table], *, paths: bool) -> Parts:
    """The training split of tables, and the first of the test and validation splits that has labels."""
    image, label, columns = columns_of(tables["train"])
    column = LabelColumn("train", label, tables["train"].values(label), tables["train"].names(label))
    classes = column.classes()
    train = Part(column.numbers(classes), _images_of(name, "train", tables["train"], image, paths=paths))
    left_out, notes = [], alike_but_for_case(classes.names)
    unused = set(classes.declared or ()) - set(classes.names)
    if unused:
        notes.append(f"{len(unused)} of {len(classes.declared or ())} named classes without images")
    test: Part | None = None
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
        test, from_where = Part(numbers, _images_of(name, split, table, image, paths=paths)), f"the {split} split"
    about = About(f"{kind}, {columns}", tuple(map(shown, classes.names)), from_where, tuple(left_out), tuple(notes))
    return Parts(train, test, about)


def _images_of(name: str, split: Split, table: Table, column: str, *, paths: bool) -> Callable[[How, Path], Stored]:
    def stored(how: How, kept: Path) -> Stored:
        path = kept.with_suffix(f".{split}.arrow")
        return Stored(name, split, table.rows(column, how, path, keep), column, paths)

    return stored


def find_source(name: str) -> Source:
    own = own_folder(name)
    if own is not None:
        return _folder(name, own)
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            looked = "" if folder.is_absolute() else f" {folder.resolve()}; it is looked up in the current folder"
            raise DataError(f"dataset={name!r}: no such folder{looked}")
        return _folder(name, folder)
    if name not in HUB_IDS and "/" not in name:
        known = (*DATASETS, *list_datasets())
        near = nearest(name, known)
        meant = f"did you mean {near!r}? Else try" if near else "try"
        raise DataError(
            f"dataset={name!r}: unknown; {meant} {', '.join(map(repr, known))}, 'gaussian' with teacher_segments, "
            f"a hub id (owner/name), a folder (./{name}), or put it at $SPECTRUM_DATA/{name}/ "
            "(your own arrays: register_dataset, and name its module by import or --import)"
        )
    if name not in HUB_IDS and Path(name).exists():  # the library that reads the hub would look for it there
        raise DataError(f"dataset={name!r}: is a folder here, and reads as a hub id; did you mean './{name}'?")
    return _Hub(name, HUB_IDS.get(name, name))


def own_folder(name: str) -> Path | None:
    """The folder $SPECTRUM_DATA/<name>/, if there is one."""
    root = os.environ.get("SPECTRUM_DATA")
    if root is None or name.startswith((".", "/", "~")):
        return None
    folder = Path(root).expanduser() / name
    return folder if folder.is_dir() else None


def _folder(name: str, folder: Path) -> _ImageFolder | _ParquetFolder:
    layout = arrange(walk(folder))
    return (_ImageFolder if layout.kind == "images" else _ParquetFolder)(name, folder, layout)


def _fetched(name: str, hub_id: str) -> Any:
    """The splits of a data set of the hub, by name."""
    _go_offline_without_network()
    with warnings.catch_warnings():  # in a notebook tqdm needs widgets, even for hidden bars
        warnings.filterwarnings("ignore", message="IProgress not found")
        import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(hub_id)
    except Exception as error:  # the library raises dozens of kinds, from offline hubs to broken files
        raise DataError(_missing(name, hub_id, error)) from error


def _go_offline_without_network() -> None:
    """Use only the hub's cache if the hub cannot be reached, instead of retrying for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=1.5).close()
    except OSError:
        import datasets

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _data_root_state() -> str:
    root = os.environ.get("SPECTRUM_DATA")
    if root is None:
        return "which is not set"
    return f"{root}, " + ("which has no such folder" if Path(root).expanduser().is_dir() else "which is no folder")


def _missing(name: str, hub_id: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"dataset={name!r}: not found below $SPECTRUM_DATA ({_data_root_state()}), "
        f"and not available from the hub ({reason}).\n"
        f"Either put its Parquet files (or a folder per class of images) at $SPECTRUM_DATA/{name}/,\n"
        f"or connect to the network once, and {hub_id} is downloaded and kept."
    )

"""Tables of images and labels: Parquet files, and data sets that `datasets` has downloaded from the hub.

Parquet files are read by pyarrow directly, so no cache of another library can return old images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from spectrum.data.layout import LayoutError

IMAGE_COLUMNS = ("image", "img", "picture", "pixels")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class", "y")
BATCH = 1_000  # rows read at once

How = Literal["first", "memory", "mapped"]  # the first image only; all; all, in a file that is not kept in memory
Keep = Callable[[Path, Callable[[Path], object]], object]  # writes a file of the cache atomically, or not at all


class Table(Protocol):
    """One split."""

    columns: Sequence[str]
    image_columns: Sequence[str]  # columns known to hold images

    def __len__(self) -> int: ...

    def names(self, column: str) -> tuple[str, ...] | None:
        """The class names of the column's numbers; None if the table has none."""

    def values(self, column: str) -> list[Any]:
        """All values of a column."""

    def rows(self, column: str, how: How, kept: Path, keep: Keep) -> Any:
        """Encoded images, read as `rows[numbers][column]`. Raises LayoutError for a column without images."""


class Rows:
    """A column of an Arrow table, row by row, without joining its chunks."""

    def __init__(self, column: str, chunks: Sequence[pa.Array]) -> None:
        self.column, self.chunks = column, [chunk for chunk in chunks if len(chunk)]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        return {self.column: [self._row(number) for number in numbers]}

    def _row(self, number: int) -> Any:
        chunk = int(np.searchsorted(self.ends, number, side="right"))
        start = 0 if chunk == 0 else int(self.ends[chunk - 1])
        return self.chunks[chunk][number - start].as_py()


class ParquetTable:
    """Parquet files of one split, in order. Raises LayoutError for a file that cannot be read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.open = [_opened(file) for file in self.files]
        for file, opened in zip(self.files, self.open, strict=True):
            _raise_if_twice(file, opened.schema_arrow.names)
        self.schema = self.open[0].schema_arrow
        self.columns: Sequence[str] = self.schema.names
        self.image_columns: Sequence[str] = [name for name in self.columns if self._kind(name) == "Image"]

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self.open)

    def names(self, column: str) -> tuple[str, ...] | None:
        found = {tuple(_declared(file.schema_arrow, column).get("names") or ()) for file in self.open}
        if len(found) > 1:
            raise LayoutError(f"files such as {self.files[0].name} name the classes of column {column!r} differently")
        (names,) = found
        return names or None

    def values(self, column: str) -> list[Any]:
        return [value for batch in self._batches(column) for value in batch.to_pylist()]

    def rows(self, column: str, how: How, kept: Path, keep: Keep) -> Rows:
        kind = self.schema.field(column).type
        fields = {kind.field(n).name for n in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or {"bytes", "path"} <= fields):
            raise LayoutError(
                f"column {column!r} holds {kind!s:.60} values, not encoded images; write it with the Image type of "
                "`datasets`, or as bytes of PNG or JPEG files"
            )
        if how == "first":
            return Rows(column, [next((batch[:1] for batch in self._batches(column, 1) if len(batch)), pa.array([]))])
        if how == "memory":
            return Rows(column, list(self._batches(column)))
        mapped = _mapped(kept)
        if mapped is None:
            keep(kept, lambda path: self._write(column, path))
            mapped = _mapped(kept)
        return Rows(column, list(self._batches(column)) if mapped is None else mapped.column(0).chunks)

    def _kind(self, column: str) -> Any:
        return _declared(self.schema, column).get("_type")

    def _batches(self, column: str, size: int = BATCH) -> Iterator[pa.Array]:
        for path, file in zip(self.files, self.open, strict=True):
            if column not in file.schema_arrow.names or not file.schema_arrow.field(column).type.equals(
                self.schema.field(column).type
            ):
                raise LayoutError(f"{path.name} has no column {column!r} of the type that {self.files[0].name} has")
            try:
                for batch in file.iter_batches(size, columns=[column]):
                    yield batch.column(column)
            except (OSError, pa.ArrowException) as error:
                reason = str(error).splitlines()[0]
                raise LayoutError(f"column {column!r} of {path} cannot be read: {reason}; fix or remove it") from error

    def _write(self, column: str, path: Path) -> None:
        field = self.schema.field(column).with_metadata(None)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([field])) as writer:
            for array in self._batches(column):
                writer.write_batch(pa.record_batch([array], schema=pa.schema([field])))


class HubTable:
    """One split of a data set that `datasets` has downloaded."""

    def __init__(self, part: Any) -> None:
        import datasets

        self.part = part
        self.columns: Sequence[str] = list(part.features)
        images = [name for name in part.features if isinstance(part.features[name], datasets.Image)]
        self.image_columns: Sequence[str] = images

    def __len__(self) -> int:
        return len(self.part)

    def names(self, column: str) -> tuple[str, ...] | None:
        names = getattr(self.part.features[column], "names", None)
        return tuple(names) if names else None

    def values(self, column: str) -> list[Any]:
        return list(self.part[column])

    def rows(self, column: str, how: How, kept: Path, keep: Keep) -> Any:
        import datasets

        part = self.part
        if column in self.image_columns:
            part = part.cast_column(column, datasets.Image(decode=False))
        return part.select_columns([column])

    @property
    def key(self) -> str:
        """A hash of the files made by `datasets`; of its own fingerprint if it made none."""
        digest = hashlib.sha256(repr(self.part.features).encode())
        for one in self.part.cache_files:
            digest.update(hash_of(Path(one["filename"])))
        if not self.part.cache_files:
            digest.update(str(self.part._fingerprint).encode())
        return digest.hexdigest()


def columns_of(table: Table) -> tuple[str, str, str]:
    """Names of the image column and of the label column, and a sentence that names all columns.

    Raises LayoutError if one of the two is missing.
    """
    images = [*table.image_columns, *(c for c in IMAGE_COLUMNS if c in table.columns and c not in table.image_columns)]
    labels = [c for c in LABEL_COLUMNS if c in table.columns]
    labels += [c for c in table.columns if table.names(c) and c not in labels]
    if not images or not labels:
        raise LayoutError(
            f"found the columns {', '.join(table.columns)}; expected an image ({', '.join(IMAGE_COLUMNS)}) and a label "
            f"({', '.join(LABEL_COLUMNS)})"
        )
    others = ", ".join(map(repr, (*images[1:], *labels[1:])))
    columns = f"image column {images[0]!r}, label column {labels[0]!r}" + (f"; not read: {others}" if others else "")
    return images[0], labels[0], columns


def hash_of(file: Path) -> bytes:
    """SHA-256 of a file's bytes. Raises LayoutError for a file that cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        raise LayoutError(f"{file} cannot be read ({error.strerror}); fix or remove it") from error


def _opened(file: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LayoutError(f"{file} cannot be read: {reason}; fix or remove it") from error


def _raise_if_twice(file: Path, columns: Sequence[str]) -> None:
    twice = next((name for number, name in enumerate(columns) if name in columns[:number]), None)
    if twice is not None:
        raise LayoutError(f"{file} has two columns named {twice!r}; rename or remove one")


def _declared(schema: pa.Schema, column: str) -> dict[str, Any]:
    """The description of a column that `datasets` wrote into the file, if any."""
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        if isinstance(found, dict):
            return found
    return {}


def _mapped(path: Path) -> pa.Table | None:
    """Open a complete Arrow file of the cache, if there is one."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException):
        return None

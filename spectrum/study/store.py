"""A study's folder: rows that are only ever appended, by one writer.

    results.jsonl   one row per finished or failed run, written and synced at once
    history.jsonl   one row per epoch
    results.bad     torn or garbled rows, moved there by the next run
    plan.json       the frozen runs of the study
    weights/        the trained networks of runs, if they are kept

The writer holds a kernel lock on `.writer`, which records its process. A killed writer frees the lock. The file itself
means nothing, so it cannot become stale.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedRandom, FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from spectrum._files import reason_of, write_whole
from spectrum.design.plan import Plan, PlanError
from spectrum.training.weight_files import KEPT, SUFFIX, WEIGHTS, weights_of

ROWS, HISTORY, BAD, PLAN, WRITER = (
    "results.jsonl",
    "history.jsonl",
    "results.bad",
    "plan.json",
    ".writer",
)
FINISHED = ("done", "diverged")
FOLDER = "spectrum_folder"  # in a table's attrs: the folder of its rows
Row = dict[str, Any]


class StoreError(RuntimeError):
    """A results folder cannot be written or read."""


class WriteError(StoreError):
    """A file could not be written after work began, as on a full disk. Finished results are kept."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors that the user's input did not cause


class Store:
    """Exclusive writer of one study's folder. Use it in a `with` statement.

    Raises StoreError if the folder cannot be written, or if another process writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        with _told(self.folder, "written"):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            self._lock = self._open_lock()
            opened.callback(os.close, self._lock)
            self._take_lock()
            self._files: dict[str, FileIO] = {}
            opened.callback(self._close)
            for name in (ROWS, HISTORY):
                self._open(name)
            with _told(self.folder, "written"):
                self._remove_half_written()
            self.set_aside = self._set_bad_rows_aside()
            self._written: dict[str, list[bytes]] = {name: [] for name in self._files}
            self._ends = dict.fromkeys(self._files, 0)  # length of each file after our last line
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            try:
                for name in (ROWS, HISTORY):
                    self._follow(name)
            except StoreError:
                if error is None:  # else it would hide the earlier error
                    raise
            finally:
                with suppress(OSError):
                    os.ftruncate(self._lock, 0)

    def _open_lock(self) -> int:
        path = self.folder / WRITER
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            place = path if os.access(self.folder, os.W_OK) else self.folder
            raise StoreError(f"{place}: cannot be written ({reason_of(error)})") from error

    def _open(self, name: str) -> None:
        path = self.folder / name
        with _told(path, "written"):
            self._files[name] = FileIO(path, "a+")

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _take_lock(self) -> None:
        for tries_left in (2, 1, 0):  # `writer_of` holds the lock for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise StoreError(f"{self.folder}: another run is writing here{_who(self.folder)}") from None
                time.sleep(0.05)
            except OSError as error:
                raise StoreError(f"{self.folder}: its file system has no locks ({reason_of(error)})") from None
        with _told(self.folder / WRITER, "written"):
            os.ftruncate(self._lock, 0)
            os.write(self._lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def append(self, row: Row) -> None:
        """Write one row and wait until it is on disk. Strict JSON: NaN raises ValueError."""
        self._append(ROWS, [row])

    def keep_weights(self, id: str, data: bytes) -> None:
        """Write the weights of a run, before its row: a row that says so has them. An older file is replaced."""
        path = weights_of(self.folder, id)
        with _told(path, "written", begun=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)

    def append_history(self, rows: Iterable[Row]) -> None:
        """Write the epochs of one run."""
        self._append(HISTORY, rows)

    def freeze(self, plan: Plan) -> None:
        """Write plan.json; an earlier plan with another hash is kept as plan-<its hash>.json."""
        path = self.folder / PLAN
        old = find_plan(self.folder)
        if old is not None and old.to_json() == plan.to_json():
            return
        with _told(path, "written", begun=True):
            if old is not None and old.hash != plan.hash:
                # copied, so that plan.json never disappears
                write_whole(self.folder / _kept_as(old), path.read_bytes())
            write_whole(path, plan.to_json())

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        lines = [json.dumps(row, allow_nan=False, ensure_ascii=False).encode() for row in rows]
        self._follow(name)
        self._write(name, lines)
        self._written[name] += lines

    def _follow(self, name: str) -> None:
        """If the file was replaced or truncated, write to the new one, and add our rows that it lacks.

        git stash, git checkout and many editors replace a file; rows in the open one would be lost.
        """
        path, file = self.folder / name, self._files[name]
        with _told(path, "written", begun=True):
            ours = os.fstat(file.fileno())
            if path.exists() and os.path.samestat(path.stat(), ours) and ours.st_size >= self._ends[name]:
                return
            file.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open(name)
            kept = set(path.read_bytes().split(b"\n"))
        self._write(name, [line for line in self._written[name] if line not in kept])

    def _write(self, name: str, rows: Iterable[bytes]) -> None:
        lines = b"".join(row + b"\n" for row in rows)
        if not lines:
            return
        descriptor = self._files[name].fileno()
        with _told(self.folder / name, "written", begun=True):
            before = os.fstat(descriptor).st_size
            if before and os.pread(descriptor, 1, before - 1) != b"\n":
                lines = b"\n" + lines  # another writer's last line has no end and would swallow ours
            left = lines
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except OSError:
                _cut(descriptor, before, len(lines) - len(left))
                raise
            self._ends[name] = before + len(lines)

    def _remove_half_written(self) -> None:
        """Remove partial files of killed writers."""
        for name in (ROWS, HISTORY, PLAN, f"{Path(PLAN).stem}-*.json", f"{WEIGHTS}/*{SUFFIX}"):
            folder, _, last = name.rpartition("/")
            for left in (self.folder / folder).glob(f".{last}.*"):
                if left.suffix[1:].isdigit():
                    left.unlink(missing_ok=True)

    def _set_bad_rows_aside(self) -> int:
        """Move torn and garbled rows to results.bad, and return their number."""
        count = 0
        for name, read in READERS.items():
            good, bad = list[bytes](), list[bytes]()
            for line in _lines(self.folder / name):
                (bad if read(line) is None else good).append(line)
            if bad:
                with _told(self.folder / BAD, "written"), (self.folder / BAD).open("ab+") as file:
                    _end_line(file)  # left by a writer that was killed here
                    file.writelines(line + b"\n" for line in bad)
                    file.flush()
                    os.fsync(file.fileno())
                with _told(self.folder / name, "written"):
                    write_whole(self.folder / name, b"".join(line + b"\n" for line in good))
                self._files[name].close()
                self._open(name)
                count += len(bad)
        return count


def _cut(descriptor: int, before: int, written: int) -> None:
    """Remove the written part of a row, because a partial row is worse than none.

    If others wrote meanwhile, or the file may not be truncated, it stays, and the next row begins on its own line.
    """
    with suppress(OSError):
        if os.fstat(descriptor).st_size == before + written:
            os.ftruncate(descriptor, before)


@contextmanager
def _told(path: Path, what: str, *, begun: bool = False) -> Iterator[None]:
    """Convert an OSError in the block to a StoreError that names the file and the failed action.

    It is a WriteError after work began, and for a full or failing disk.
    """
    try:
        yield
    except OSError as error:
        kind = WriteError if what == "written" and (begun or error.errno in FULL) else StoreError
        raise kind(f"{path}: cannot be {what} ({reason_of(error)})") from error


def _kept_as(plan: Plan) -> str:
    """File name of an earlier plan: by its hash, if valid."""
    hash = plan.hash or "unknown"
    return f"{Path(PLAN).stem}-{hash if re.fullmatch('[0-9a-z]{1,64}', hash) else 'unknown'}.json"


def _end_line(file: BufferedRandom) -> None:
    """End the last line, if it has no end."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def is_own(path: Path) -> bool:
    """Whether a file is part of a study's folder, so that nothing else may overwrite it."""
    path = path.resolve()
    named = path.name in (ROWS, HISTORY, BAD, PLAN, WRITER) or path.match(f"{Path(PLAN).stem}-*.json")
    return named and any((path.parent / name).exists() for name in (ROWS, PLAN))


def writer_of(folder: Path) -> str | None:
    """Name the process that writes to a folder now; None if there is none, or if this cannot be determined."""
    try:
        lock = os.open(folder / WRITER, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released at once; a writer tries more than once
    except BlockingIOError:
        return _who(folder).strip(" ()") or "another process"
    except OSError:
        return None
    finally:
        os.close(lock)
    return None


def bad_lines(folder: Path) -> dict[str, int]:
    """Number of torn or garbled lines in each file."""
    counts = {name: sum(read(line) is None for line in _lines(folder / name)) for name, read in READERS.items()}
    return {name: count for name, count in counts.items() if count}


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause garbage collection while reading rows: searching millions of live objects takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@without_collection()
def read_rows(folder: Path) -> list[Row]:
    """All readable rows, in the order in which they were written."""
    return [row for row in map(_row, _lines(folder / ROWS)) if row is not None]


@without_collection()
def latest_rows(folder: Path) -> dict[str, Row]:
    """One row per run, by id: its finished one, else its last."""
    latest: dict[str, Row] = {}
    for row in read_rows(folder):
        earlier = latest.get(row["id"])
        if earlier is None or earlier["status"] not in FINISHED:
            latest[row["id"]] = row
    return latest


def kept_rows(folder: Path) -> dict[str, Row]:
    """Rows that say of a trained network beside them, by id."""
    rows = latest_rows(folder).items()
    return {id: row for id, row in rows if id.isalnum() and KEPT in (row.get("provenance") or {})}


def find_plan(folder: Path) -> Plan | None:
    """The frozen plan, or None if there is none yet. Raises StoreError if this version cannot read it."""
    path = folder / PLAN
    with _told(path, "read"):
        data = path.read_bytes() if path.exists() else None
    if data is None:
        return None
    try:
        return Plan.from_json(data)
    except PlanError as error:
        raise StoreError(
            f"{path}: garbled ({error}); read it with the version of spectrum that wrote it, or remove it "
            "so that the next run writes a new one"
        ) from None


def read_plan(folder: str | Path) -> Plan:
    """Read the frozen plan of a study's folder.

    Args:
        folder: where `spectrum run` wrote, such as "results/order".

    Raises StoreError if this is no results folder, or if its plan is missing or cannot be read.

    >>> read_plan("results/order").varied
    ('order', 'segments')
    """
    folder = results_folder(folder)
    plan = find_plan(folder)
    if plan is None:
        raise StoreError(f"{folder}: has no {PLAN}; run the study first: spectrum run FILE")
    return plan


def results_folder(folder: object) -> Path:
    """Check a results folder and return its path. Raises StoreError if it holds no study's results."""
    if not isinstance(folder, str | Path) or not str(folder):
        given = repr(folder) if isinstance(folder, str) else type(folder).__name__
        raise StoreError(f"expected the path of a results folder, such as results/quickstart (got {given})")
    path = Path(folder)
    if not path.is_dir():
        if path.exists():
            raise StoreError(f"{path}: is a file; give a folder that spectrum run wrote, such as results/quickstart")
        raise StoreError(
            f"{path}: no such folder; run the study first (spectrum run), or give the folder that it wrote"
        )
    if not any((path / name).exists() for name in (PLAN, ROWS, HISTORY)):
        raise StoreError(f"{path}: is not a results folder (no {PLAN}, no {ROWS}); run the study first: spectrum run")
    return path


def read_history(folder: Path) -> list[Row]:
    """Epochs of all runs, in the order in which they were written."""
    return [epoch for epoch in map(_epoch, _lines(folder / HISTORY)) if epoch is not None]


def _lines(path: Path) -> Iterator[bytes]:
    """Non-empty lines of a file, without their ends. Raises StoreError if they cannot be read."""
    with _told(path, "read"):
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        yield line.removesuffix(b"\n")


def _row(line: bytes) -> Row | None:
    row = _json_object(line)
    return row if isinstance(row.get("id"), str) and row.get("status") in (*FINISHED, "failed") else None


def _epoch(line: bytes) -> Row | None:
    epoch = _json_object(line)
    return epoch if isinstance(epoch.get("id"), str) and isinstance(epoch.get("epoch"), int) else None


READERS: Mapping[str, Callable[[bytes], Row | None]] = {ROWS: _row, HISTORY: _epoch}  # None for a torn or garbled line


def _json_object(line: bytes) -> Row:
    """The object in a line; an empty one if there is none."""
    try:
        value = orjson.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _who(folder: Path) -> str:
    try:
        writer = json.loads((folder / WRITER).read_text())
        return f" (process {writer['pid']} on {writer['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

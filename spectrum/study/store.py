"""A study's folder: rows that are only ever appended, by one writer.

    results.jsonl   one row a finished or failed point, written and synced at once
    history.jsonl   one row an epoch
    results.bad     rows that were torn or garbled, moved there by the next run
    plan.json       the points of the study as they were frozen

The writer holds a kernel lock on `.writer`, which says who it is. A killed writer frees the lock; that the file is
there means nothing, so nothing goes stale.
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
from contextlib import contextmanager
from io import BufferedRandom, BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

import orjson

ROWS, HISTORY, BAD, PLAN, WRITER = (
    "results.jsonl",
    "history.jsonl",
    "results.bad",
    "plan.json",
    ".writer",
)
FINISHED = ("done", "diverged")
Row = dict[str, Any]


class StoreError(RuntimeError):
    """A results folder that cannot be written or read."""


class WriteError(StoreError):
    """A file that could not be written once work had begun, as on a full disk. What was finished is kept."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # nobody's input is wrong


def unwritable(path: Path, error: OSError) -> StoreError:
    """What to raise where nothing was done yet: WriteError for a full or failing disk, else StoreError."""
    kind = WriteError if error.errno in FULL else StoreError
    return kind(f"{path}: cannot be written ({error.strerror})")


class Store:
    """Exclusive writer of one study's folder. Use it in a `with` statement.

    Raises StoreError when the folder cannot be written, or another process writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / WRITER, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(self.folder, error) from None
        try:
            self._take_lock()
            self._remove_half_written()
            self.set_aside = self._set_bad_rows_aside()
            self._files = {name: (self.folder / name).open("ab", buffering=0) for name in (ROWS, HISTORY)}
        except OSError as error:
            os.close(self._lock)
            raise unwritable(self.folder, error) from None
        except StoreError:
            os.close(self._lock)
            raise
        self._written: dict[str, list[bytes]] = {name: [] for name in self._files}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._files:
            self._follow(name)
            self._files[name].close()
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def _take_lock(self) -> None:
        for tries_left in (2, 1, 0):  # `writer_of` holds it for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise StoreError(f"{self.folder}: another run is writing here{_who(self.folder)}") from None
                time.sleep(0.05)
            except OSError as error:
                raise StoreError(f"{self.folder}: its file system has no locks ({error.strerror})") from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def append(self, row: Row) -> None:
        """Write one row and wait until it is on disk. Strict JSON: NaN raises ValueError."""
        self._append(ROWS, [row])

    def append_history(self, rows: Iterable[Row]) -> None:
        """Write the epochs of one point."""
        self._append(HISTORY, rows)

    def freeze(self, plan: Mapping[str, Any]) -> None:
        """Write plan.json; an earlier plan of another study is kept as plan-<its hash>.json."""
        path = self.folder / PLAN
        old = read_plan(self.folder)
        if old == json.loads(json.dumps(plan)):
            return
        try:
            if old is not None and old.get("hash") != plan["hash"]:
                write_whole(self.folder / _kept_as(old), path.read_bytes())  # a copy: the plan is never away
            write_whole(path, json.dumps(plan, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise WriteError(f"{path}: cannot be written ({error.strerror})") from error

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        lines = [json.dumps(row, allow_nan=False, ensure_ascii=False).encode() for row in rows]
        self._follow(name)
        self._write(name, lines)
        self._written[name] += lines

    def _follow(self, name: str) -> None:
        """Where the file was replaced under this writer, write to the new one, and what it lacks of ours too.

        git stash, git checkout and many editors put another file under the name; the open one is then seen by nobody.
        """
        path, file = self.folder / name, self._files[name]
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return
        file.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files[name] = path.open("ab", buffering=0)
        there = path.read_bytes()
        if there and not there.endswith(b"\n"):
            self._files[name].write(b"\n")
        kept = set(there.split(b"\n"))
        self._write(name, [line for line in self._written[name] if line not in kept])

    def _write(self, name: str, rows: Iterable[bytes]) -> None:
        descriptor = self._files[name].fileno()
        before = os.fstat(descriptor).st_size
        lines = b"".join(row + b"\n" for row in rows)
        try:
            while lines:
                lines = lines[os.write(descriptor, lines) :]
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)  # half a row is worse than none
            raise WriteError(f"{self.folder / name}: cannot be written ({error.strerror})") from error

    def _remove_half_written(self) -> None:
        """What writers left that were killed while they wrote a whole file."""
        for name in (ROWS, HISTORY, PLAN, f"{Path(PLAN).stem}-*.json"):
            for left in self.folder.glob(f".{name}.*"):
                if left.suffix[1:].isdigit():
                    left.unlink(missing_ok=True)

    def _set_bad_rows_aside(self) -> int:
        """Move torn and garbled rows to results.bad; how many there were."""
        count = 0
        for name, read in READERS.items():
            good, bad = list[bytes](), list[bytes]()
            for line in _lines(self.folder / name):
                (bad if read(line) is None else good).append(line)
            if bad:
                with (self.folder / BAD).open("ab+") as file:
                    _end_line(file)  # of a writer that was killed here
                    file.writelines(line + b"\n" for line in bad)
                    file.flush()
                    os.fsync(file.fileno())
                write_whole(self.folder / name, b"".join(line + b"\n" for line in good))
                count += len(bad)
            elif good:
                with (self.folder / name).open("ab+") as file:
                    _end_line(file)
        return count


def _kept_as(plan: Mapping[str, Any]) -> str:
    """What an earlier plan is called: by its hash, if that is one."""
    hash = str(plan.get("hash", "unknown"))
    return f"{Path(PLAN).stem}-{hash if re.fullmatch('[0-9a-z]{1,64}', hash) else 'unknown'}.json"


def _end_line(file: BufferedRandom) -> None:
    """Write the end of the last line, if it has none."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def is_own(path: Path) -> bool:
    """Whether a file is one that a study's folder lives on, and nobody else may write."""
    path = path.resolve()
    named = path.name in (ROWS, HISTORY, BAD, PLAN, WRITER) or path.match(f"{Path(PLAN).stem}-*.json")
    return named and any((path.parent / name).exists() for name in (ROWS, PLAN))


def writer_of(folder: Path) -> str | None:
    """Which process writes to a folder at this moment, in words; None where none does, or where it cannot be told."""
    try:
        lock = os.open(folder / WRITER, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # freed at once; a writer tries more than once
    except BlockingIOError:
        return _who(folder).strip(" ()") or "another process"
    except OSError:
        return None
    finally:
        os.close(lock)
    return None


def bad_lines(folder: Path) -> dict[str, int]:
    """How many torn or garbled lines each file has."""
    counts = {name: sum(read(line) is None for line in _lines(folder / name)) for name, read in READERS.items()}
    return {name: count for name, count in counts.items() if count}


@contextmanager
def without_collection() -> Iterator[None]:
    """Millions of small objects are made inside, none of them garbage: to look for some takes half of the time."""
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
    """One row a point, by id: its finished one, else its last."""
    latest: dict[str, Row] = {}
    for row in read_rows(folder):
        earlier = latest.get(row["id"])
        if earlier is None or earlier["status"] not in FINISHED:
            latest[row["id"]] = row
    return latest


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The frozen plan, or None where there is none yet. Raises StoreError when it is garbled."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        plan = orjson.loads(path.read_bytes())
    except ValueError:
        raise StoreError(f"{path}: garbled; remove it, and the next run writes it anew") from None
    if not _is_plan(plan):
        raise StoreError(f"{path}: garbled; remove it, and the next run writes it anew")
    return plan


SHAPES = {"contrasts": list, "varied": list, "imports": list, "overrides": dict, "budget": dict, "tuning": dict}


def _is_plan(plan: object) -> TypeGuard[dict[str, Any]]:
    """Whether it has points, and what else it has is of the kind that a plan has there."""
    if not isinstance(plan, dict) or not isinstance(plan.get("points"), list):
        return False
    entries = [*plan["points"], *(plan.get("contrasts") or ())] if isinstance(plan.get("contrasts", []), list) else [0]
    return all(isinstance(plan[name], kind) for name, kind in SHAPES.items() if name in plan) and all(
        isinstance(entry, dict) for entry in entries
    )


def planned_ids(plan: Mapping[str, Any]) -> list[str]:
    """Of a plan's points and of its search; a network that serves several budgets once."""
    entries = [*plan.get("tuning", {}).get("points", []), *plan["points"]]
    return list(dict.fromkeys(entry["id"] for entry in entries))


def read_history(folder: Path) -> list[Row]:
    """The epochs of all points, in the order in which they were written."""
    return [epoch for epoch in map(_epoch, _lines(folder / HISTORY)) if epoch is not None]


def _lines(path: Path) -> Iterator[bytes]:
    """Lines that hold something, without their ends."""
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
    """The object that a line holds; an empty one where it holds none."""
    try:
        value = orjson.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a whole file: the old one or the new one is there at any moment, never a mix."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _write_all(file, content.encode() if isinstance(content, str) else content)
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _write_all(file: BufferedWriter, data: bytes) -> None:
    file.write(data)
    file.flush()


def _who(folder: Path) -> str:
    try:
        writer = json.loads((folder / WRITER).read_text())
        return f" (process {writer['pid']} on {writer['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

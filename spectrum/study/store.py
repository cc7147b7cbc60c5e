"""A study's folder: rows that are only ever appended, by one writer.

    results.jsonl   one row a finished or failed point, written and synced at once
    history.jsonl   one row an epoch
    results.bad     rows that were torn or garbled, moved there by the next run
    plan.json       the points of the study as they were frozen

The writer holds a kernel lock on `.writer`, which says who it is. A killed writer frees the lock; that the file is
there means nothing, so nothing goes stale.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pandas as pd

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
            raise StoreError(f"{self.folder}: cannot be written ({error.strerror})") from None
        try:
            self._take_lock()
            self.set_aside = self._set_bad_rows_aside()
            self._files = {name: (self.folder / name).open("ab", buffering=0) for name in (ROWS, HISTORY)}
        except OSError as error:
            os.close(self._lock)
            raise StoreError(f"{self.folder}: cannot be written ({error.strerror})") from None
        except StoreError:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{self.folder}: another run is writing here{_who(self.folder)}") from None
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
        if old is not None and old.get("hash") != plan["hash"]:
            path.replace(self.folder / f"plan-{old.get('hash', 'unknown')}.json")
        _replace(path, json.dumps(plan, indent=1, allow_nan=False) + "\n")

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        lines = "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows).encode()
        descriptor = self._files[name].fileno()
        before = os.fstat(descriptor).st_size
        try:
            while lines:
                lines = lines[os.write(descriptor, lines) :]
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)  # half a row is worse than none
            raise StoreError(f"{self.folder / name}: cannot be written ({error.strerror})") from error

    def _set_bad_rows_aside(self) -> int:
        """Move torn and garbled rows to results.bad; how many there were."""
        count = 0
        for name, check in ((ROWS, _is_row), (HISTORY, _is_epoch)):
            good, bad = _read_lines(self.folder / name, check)
            if bad:
                with (self.folder / BAD).open("ab") as file:
                    file.writelines(line + b"\n" for line in bad)
                    file.flush()
                    os.fsync(file.fileno())
                _replace(self.folder / name, b"".join(line + b"\n" for line in good))
                count += len(bad)
            elif good and not (self.folder / name).read_bytes().endswith(b"\n"):
                with (self.folder / name).open("ab") as file:
                    file.write(b"\n")
        return count


def read_rows(folder: Path) -> list[Row]:
    """All readable rows, in the order in which they were written."""
    good, _ = _read_lines(folder / ROWS, _is_row)
    return [json.loads(line) for line in good]


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
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise StoreError(f"{path}: garbled; remove it, and the next run writes it anew") from None
    if not isinstance(plan, dict) or not isinstance(plan.get("points"), list):
        raise StoreError(f"{path}: garbled; remove it, and the next run writes it anew")
    return plan


def load_results(folder: str | Path, *, all_points: bool = False) -> pd.DataFrame:
    """A study's rows as a table, one row a point.

    Args:
        folder: where `spectrum run` wrote, such as "results/quickstart".
        all_points: also those of its search, and points that an earlier version of the study had.

    Columns: every field of `Point`; `status` (done, diverged, failed), `study_hash` (of its plan), accuracies from 0 to
    1, params, macs, seconds, provenance. A failed point has no accuracy; a diverged one is scored at chance. Raises
    StoreError where there is no such folder or no row.

    >>> results = load_results("results/equal_params")
    >>> results.groupby("segments", sort=False)["test_accuracy"].mean().round(4)
    segments
    1              0.8853
    2              0.8898
    4              0.8921
    8              0.8918
    16             0.8922
    per_channel    0.8932
    Name: test_accuracy, dtype: float64
    """
    folder = Path(folder)
    if not (folder / ROWS).exists():
        raise StoreError(f"{folder}: has no {ROWS}; run the study first: spectrum run FILE")
    by_id = latest_rows(folder)
    plan = read_plan(folder)
    if plan is None:
        rows = list(by_id.values())
    else:
        entries = [entry for entry in plan["points"] if entry["id"] in by_id]
        rows = [_planned(by_id[entry["id"]], entry, tuned="tuning" in plan) for entry in entries]
        if all_points:
            listed = {entry["id"] for entry in entries}
            rows += [row for id, row in by_id.items() if id not in listed]
    if not rows and plan is not None and "tuning" in plan and by_id:
        raise StoreError(f"{folder}: has the rows of a search only; run the study on: spectrum run FILE --confirm")
    if not rows:
        raise StoreError(f"{folder}: has no rows yet; run the study first: spectrum run FILE")
    return _as_table(row | {"study_hash": None if plan is None else plan["hash"]} for row in rows)


def load_tuning(folder: str | Path) -> pd.DataFrame:
    """The rows of a study's search, as `load_results` gives those of its points, and whether each was `chosen`.

    `val_accuracy` is what decides; the columns of the test set are empty. Raises StoreError where there is none.

    >>> search = load_tuning("results/tuned_params")
    >>> dict(search.loc[search["chosen"], ["segments", "lr"]].values.tolist())
    {4: 0.05, 1: 0.1, 'per_channel': 0.2, 16: 0.4}
    """
    tuning = (read_plan(Path(folder)) or {}).get("tuning")
    if tuning is None:
        raise StoreError(f"{folder}: its study has no [tune], or was not run yet")
    by_id = latest_rows(Path(folder))
    chosen = {id for choice in tuning["choices"] for id in choice["searched"]}
    entries = [entry for entry in tuning["points"] if entry["id"] in by_id]
    return _as_table([_planned(by_id[entry["id"]], entry) | {"chosen": entry["id"] in chosen} for entry in entries])


def _as_table(rows: Iterable[Row]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(list(rows))
    for name in table:  # lists cannot be grouped by
        if table[name].map(lambda value: isinstance(value, list)).any():
            table[name] = table[name].map(lambda value: tuple(value) if isinstance(value, list) else value)
    return table


def _planned(row: Row, entry: Mapping[str, Any], *, tuned: bool = False) -> Row:
    """A row as one point of a plan has it, since one network may serve several budgets."""
    if "match" not in entry:  # a plan of an earlier version
        return row | {"tuned": tuned}
    asked = {"match": entry["match"], "budget_mismatch": entry["mismatch"], "width": entry["width"]}
    return row | asked | {"tuned": tuned}


def load_history(folder: str | Path) -> pd.DataFrame:
    """The epochs of all points: id, epoch, lr, train_loss (nats), val_loss, val_accuracy (0 to 1), train_seconds.

    An empty table where there are none yet.

    >>> history = load_history("results/equal_params")
    >>> list(history.columns)
    ['id', 'epoch', 'lr', 'train_loss', 'val_loss', 'val_accuracy', 'train_seconds']
    >>> int(history["epoch"].max())
    5
    """
    import pandas as pd

    good, _ = _read_lines(Path(folder) / HISTORY, _is_epoch)
    history = pd.DataFrame([json.loads(line) for line in good])
    return history.drop_duplicates(["id", "epoch"], keep="last") if len(history) else history


def _read_lines(path: Path, check: Any) -> tuple[list[bytes], list[bytes]]:
    if not path.exists():
        return [], []
    good: list[bytes] = []
    bad: list[bytes] = []
    for line in path.read_bytes().split(b"\n"):
        if line.strip():
            (good if check(line) else bad).append(line)
    return good, bad


def _is_row(line: bytes) -> bool:
    row = _json_object(line)
    return isinstance(row.get("id"), str) and row.get("status") in (*FINISHED, "failed")


def _is_epoch(line: bytes) -> bool:
    row = _json_object(line)
    return isinstance(row.get("id"), str) and isinstance(row.get("epoch"), int)


def _json_object(line: bytes) -> Row:
    """The object that a line holds; an empty one where it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _replace(path: Path, content: str | bytes) -> None:
    """Write a whole file: the old one or the new one is there at any moment, never a mix."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _who(folder: Path) -> str:
    try:
        writer = json.loads((folder / WRITER).read_text())
        return f" (process {writer['pid']} on {writer['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

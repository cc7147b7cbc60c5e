"""Find what is wrong in a study's folder, what readers of its rows should know, and what can be repaired.

Needs neither torch nor the study's file. Only `repair` writes.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrum._text import bytes_in_words
from spectrum.design.keys import images_key
from spectrum.study.store import (
    BAD,
    FINISHED,
    HISTORY,
    Row,
    Store,
    StoreError,
    bad_lines,
    find_plan,
    kept_rows,
    read_history,
    read_rows,
    writer_of,
)
from spectrum.training.checkpoint_files import CHECKPOINTS, CheckpointFile, checkpoint_files, half_written
from spectrum.training.weight_files import SUFFIX, WEIGHTS, fault_of_weights

# on CPUs, weights are identical between runs that share these
ENVIRONMENT = ("torch", "processor", "device", "card", "threads", "layout", "lowering", "machine")


@dataclass(frozen=True)
class Finding:
    """An observation about a folder.

    A fault is lost or repeated work, or rows that do not belong together; all else is information. `remove` lists files
    without any use.
    """

    message: str
    fault: bool
    torn: bool = False  # lines that the next writer moves to results.bad
    remove: tuple[Path, ...] = ()

    @property
    def can_be_mended(self) -> bool:
        """Whether `repair` can repair this."""
        return self.torn or bool(self.remove)


def look_at(folder: Path) -> list[Finding]:
    """All findings, faults first. Raises StoreError for a folder that holds no study."""
    rows = read_rows(folder)
    found = [
        *_of_writer(folder),
        *_of_plan(folder, rows),
        *_of_lines(folder),
        *_of_ids(rows),
        *_of_history(folder, rows),
    ]
    found += [
        *_of_weights(rows),
        *_of_images(rows),
        *_of_checkpoints(folder, rows),
        *_of_kept_weights(folder),
        *_of_environments(rows),
        *_of_troubles(rows),
    ]
    return sorted(found, key=lambda one: not one.fault)


def repair(folder: Path, found: Sequence[Finding]) -> None:
    """Move torn lines to results.bad and remove useless files. Raises StoreError while a run writes to the folder."""
    with Store(folder):  # opening the store moves torn lines
        for path in (path for one in found for path in one.remove):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _of_writer(folder: Path) -> Iterator[Finding]:
    if (writer := writer_of(folder)) is not None:
        yield Finding(f"{writer} is writing here now, so the runs that it has begun look unfinished", fault=False)


def _of_plan(folder: Path, rows: Sequence[Row]) -> Iterator[Finding]:
    try:
        plan = find_plan(folder)
    except StoreError as error:
        yield Finding(str(error), fault=True)
        return
    if plan is None:
        yield Finding("plan.json is missing; the rows are read without it", fault=bool(rows))
        return
    planned = set(plan.ids)
    others = {row["id"] for row in rows} - planned
    if others:
        yield Finding(f"{_runs(others)} not in the plan, so from an earlier version of the study", fault=False)
    failed = {row["id"] for row in rows if row["status"] == "failed"} - _finished(rows)
    if failed & planned:
        yield Finding(f"{_runs(failed & planned)} failed; run the study again to retry", fault=True)


def _of_lines(folder: Path) -> Iterator[Finding]:
    for name, count in bad_lines(folder).items():
        yield Finding(f"{name}: {_count(count, 'torn or garbled line')}", fault=True, torn=True)
    if (folder / BAD).exists():
        count = len((folder / BAD).read_bytes().splitlines())
        yield Finding(f"{BAD}: {_count(count, 'line')} set aside earlier", fault=False)


def _of_ids(rows: Sequence[Row]) -> Iterator[Finding]:
    hashes = defaultdict(list)
    for row in rows:
        if row["status"] in FINISHED:
            hashes[row["id"]].append(row.get("weights_sha256"))
    twice = {id for id, seen in hashes.items() if len(seen) > 1}
    unlike = {id for id in twice if len(set(hashes[id])) > 1}
    if twice:
        message = f"{_runs(twice)} finished more than once; the first row counts"
        yield Finding(message + (f", {len(unlike)} of them with different weights" if unlike else ""), fault=True)


def _of_weights(rows: Sequence[Row]) -> Iterator[Finding]:
    """Runs of one seed with the same final weights under several ids. Diverged runs are left out: they are all NaN."""
    ids = defaultdict(set)
    for row in rows:
        if row["status"] == "done" and row.get("weights_sha256") is not None:
            ids[row.get("seed"), row["weights_sha256"]].add(row["id"])
    alike = [seen for seen in ids.values() if len(seen) > 1]
    if alike:
        first, second = sorted(alike[0])[:2]
        yield Finding(
            f"{_runs(id for seen in alike for id in seen)} share their weights with another of the same seed, "
            f"such as {first} with {second}; the options in which they differ had no effect",
            fault=False,
        )


def _of_history(folder: Path, rows: Sequence[Row]) -> Iterator[Finding]:
    epochs = Counter({(epoch["id"], epoch["epoch"]): 1 for epoch in read_history(folder)})
    counted = Counter(id for id, _ in epochs)
    done = {row["id"]: row for row in rows if row["status"] == "done"}
    short = {id for id, row in done.items() if counted[id] < row.get("epochs", 0)}
    if short:
        yield Finding(f"{HISTORY} lacks epochs of {_runs(short)}; their rows are complete", fault=True)


def _of_images(rows: Sequence[Row]) -> Iterator[Finding]:
    prints = defaultdict(set)
    for row in rows:
        if "data_fingerprint" in _provenance(row):
            prints[images_key(row)].add(_provenance(row)["data_fingerprint"])
    for named, seen in prints.items():
        if len(seen) > 1:
            yield Finding(f"rows come from {len(seen)} versions of the data set {named[0]!r}", fault=True)


def _of_checkpoints(folder: Path, rows: Sequence[Row]) -> Iterator[Finding]:
    finished = _finished(rows)
    root, writing = folder / CHECKPOINTS, writer_of(folder)  # while a run writes, folders come and go
    for below in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        named = f"{CHECKPOINTS}/{below.name}"
        if below.name in finished:
            yield Finding(f"{named}: left over from a finished run", fault=False, remove=(below,))
            continue
        states = {file: _state_of(file) for file in checkpoint_files(below)}
        if not states and writing is None and _is_empty(below):
            yield Finding(f"{named}: empty, so the run starts anew", fault=True, remove=(below,))
        yield from _of_states(named, states)
        if halves := half_written(below):
            yield Finding(f"{named}: a partly written file", fault=False, remove=tuple(halves))


def _of_kept_weights(folder: Path) -> Iterator[Finding]:
    """Findings about the trained networks; none is removed, since another copy may not exist."""
    kept, root = kept_rows(folder), folder / WEIGHTS
    if kept and not root.is_dir():
        yield Finding(f"{WEIGHTS}/ is missing, with the trained networks of {_runs(kept)}", fault=False)
        return
    sizes, missing = [], set(kept)
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        row = kept.get(path.stem) if path.suffix == SUFFIX else None
        if row is None:
            if writer_of(folder) is None:  # a run writes its weights before its row
                yield Finding(f"{WEIGHTS}/{path.name}: belongs to no run with a row that says of it", fault=False)
            continue
        missing.discard(path.stem)
        fault = fault_of_weights(path, row)
        if fault is None:
            sizes.append(path.stat().st_size)
        else:
            yield Finding(f"{WEIGHTS}/{path.name}: {fault}", fault=True)
    if missing:
        yield Finding(f"{WEIGHTS}/ lacks the trained networks of {_runs(missing)}", fault=True)
    if sizes:
        yield Finding(f"{WEIGHTS}/ holds {_count(len(sizes), 'trained network')}, {bytes_in_words(sum(sizes))}", False)


def _is_empty(folder: Path) -> bool:
    """Whether the folder exists and is empty."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return False


def _of_environments(rows: Sequence[Row]) -> Iterator[Finding]:
    seen = [_provenance(row) for row in rows if row["status"] in FINISHED and _provenance(row)]
    for name in (*ENVIRONMENT, "revision"):
        counts = Counter(str(record.get(name)) for record in seen)
        if len(counts) > 1:
            each = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
            yield Finding(f"rows have more than one {name}: {each}; their weights may differ slightly", fault=False)


def _of_troubles(rows: Sequence[Row]) -> Iterator[Finding]:
    resumed = [row["id"] for row in rows if any(one["before"] for one in _provenance(row).get("resumed", ()))]
    if resumed:
        yield Finding(f"{_runs(resumed)} resumed in a different environment", fault=False)
    for row in rows:
        for trouble in _provenance(row).get("troubles", ()):
            yield Finding(f"{row['id']}: {trouble}", fault=False)


def _of_states(named: str, states: Mapping[CheckpointFile, str]) -> Iterator[Finding]:
    """Findings about the checkpoints of one run, the newest first."""
    left = "whole" in states.values()
    for file in (file for file, state in states.items() if state == "damaged"):
        message = f"{named}: the checkpoint at step {file.step} is damaged"
        yield Finding(message + ("" if left else ", so the run starts anew"), fault=True, remove=(file.path,))
    for file in (file for file, state in states.items() if state == "unreadable"):
        yield Finding(f"{named}: the checkpoint at step {file.step} cannot be read", fault=True)


def _state_of(file: CheckpointFile) -> str:
    try:
        file.read()
    except FileNotFoundError:
        return "gone"  # removed by a run meanwhile
    except OSError:
        return "unreadable"
    except ValueError:
        return "damaged"
    return "whole"


def _finished(rows: Sequence[Row]) -> set[str]:
    return {row["id"] for row in rows if row["status"] in FINISHED}


def _provenance(row: Row) -> dict[str, Any]:
    provenance = row.get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def _runs(ids: Iterable[str]) -> str:
    """Number of runs, with the first few ids."""
    ids = sorted(ids)
    more = ", …" if len(ids) > 3 else ""
    return f"{_count(len(ids), 'run')} ({', '.join(ids[:3])}{more})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

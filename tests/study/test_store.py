"""The results folder: rows are complete or absent, one writer, nothing lost. Every fault here is a real one."""

import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spectrum.design.plan import Plan, PlannedRun
from spectrum.results import load_results
from spectrum.study.store import (
    BAD,
    HISTORY,
    PLAN,
    ROWS,
    WRITER,
    Store,
    StoreError,
    bad_lines,
    find_plan,
    latest_rows,
    read_history,
    read_rows,
)


def row(id: str, status: str = "done", **more: Any) -> dict[str, Any]:
    return {"id": id, "status": status, **more}


def plan_of(*ids: str, hash: str) -> Plan:
    return Plan(hash=hash, runs=tuple(PlannedRun(id=id) for id in ids))


def write(folder: Path, *rows: dict[str, Any]) -> None:
    with Store(folder) as store:
        for one in rows:
            store.append(one)


ROOT = Path(__file__).parents[2]


def in_another_process(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process on `script`; its output is piped."""
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# Rows


def test_rows_come_back_as_they_were_written_and_in_order(tmp_path: Path) -> None:
    rows = [
        row("a", accuracy=0.1 + 0.2, params=2**60, none=None, widths=[8, 16]),
        row("b", "failed", reason="two\nlines, \u2028 another, a \x00, ünïcödé 🦉 and \x85"),
        row("c", "diverged", tiny=5e-324),
    ]
    write(tmp_path / "new" / "folder", *rows)
    assert read_rows(tmp_path / "new" / "folder") == rows


def test_a_row_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for count, id in enumerate("abc", start=1):
            store.append(row(id))
            assert len(read_rows(tmp_path)) == count


@pytest.mark.parametrize("name", [ROWS, HISTORY])
def test_what_is_appended_is_synced_before_it_is_called_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []  # which file, and how long it was

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))

    with Store(tmp_path) as store:
        monkeypatch.setattr(os, "fsync", fsync)
        if name == ROWS:
            store.append(row("a"))
        else:
            store.append_history([{"id": "a", "epoch": 1}])
        status = (tmp_path / name).stat()
    assert synced == [(status.st_ino, status.st_size)]


def test_a_second_run_appends_and_changes_nothing_that_is_there(tmp_path: Path) -> None:
    write(tmp_path, row("a"), row("b"))
    before = (tmp_path / ROWS).read_bytes()
    write(tmp_path, row("c"))
    after = (tmp_path / ROWS).read_bytes()
    assert after.startswith(before)
    assert [one["id"] for one in read_rows(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {"deep": [float("nan")]}, "\ud800"])
def test_what_is_not_strict_json_raises_and_leaves_no_trace(tmp_path: Path, value: object) -> None:
    with Store(tmp_path) as store:
        store.append(row("a"))
        with pytest.raises(ValueError, match=r"JSON|surrogates"):
            store.append(row("b", loss=value))
        with pytest.raises(ValueError, match=r"JSON|surrogates"):
            store.append_history([{"id": "b", "epoch": 1}, {"id": "b", "epoch": 2, "loss": value}])
        store.append(row("c"))
    assert read_rows(tmp_path) == [row("a"), row("c")]
    assert (tmp_path / HISTORY).read_bytes() == b""


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["failed"], 0),
        (["failed", "failed"], 1),
        (["failed", "done"], 1),
        (["done", "failed"], 0),
        (["failed", "diverged", "failed"], 1),
        (["failed", "failed", "done", "failed"], 2),
    ],
)
def test_a_runs_latest_row_is_its_finished_one_else_its_last(
    tmp_path: Path, statuses: list[str], expected: int
) -> None:
    rows = [row("a", status, number=number) for number, status in enumerate(statuses)]
    write(tmp_path, row("other"), *rows)
    assert latest_rows(tmp_path) == {"other": row("other"), "a": rows[expected]}


# Torn and garbled rows

JUNK = {
    "half a row": b'{"id": "b", "status": "do',
    "random bytes": bytes(range(256)) * 3,
    "zeros": b"\x00" * 512,
    "a list": b"[1, 2, 3]",
    "a number": b"3",
    "an empty record": b"{}",
    "a record without id": b'{"status": "done"}',
    "an id that is no text": b'{"id": 3, "status": "done"}',
    "an unknown status": b'{"id": "b", "status": "almost"}',
    "no JSON": b"id,status",
    "deep nesting": b"[" * 100_000,
    "a number of 5,000 digits": b'{"id": "b", "status": "done", "params": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
@pytest.mark.parametrize("where", ["first", "between", "last", "last, without a line end"])
def test_a_bad_row_is_left_out_at_once_and_set_aside_by_the_next_run(tmp_path: Path, junk: bytes, where: str) -> None:
    write(tmp_path, row("a"), row("c"))
    lines = (tmp_path / ROWS).read_bytes().splitlines(keepends=True)
    lines.insert({"first": 0, "between": 1}.get(where, 2), junk + (b"" if "without" in where else b"\n"))
    (tmp_path / ROWS).write_bytes(b"".join(lines))
    bad_lines = [line for line in junk.split(b"\n") if line.strip()]

    assert read_rows(tmp_path) == [row("a"), row("c")]
    assert list(latest_rows(tmp_path)) == ["a", "c"]
    assert not (tmp_path / BAD).exists(), "reading moves nothing"

    with Store(tmp_path) as store:
        assert store.set_aside == len(bad_lines)
        store.append(row("d"))
    assert (tmp_path / ROWS).read_bytes() == b"".join(json.dumps(row(id)).encode() + b"\n" for id in "acd")
    assert (tmp_path / BAD).read_bytes().split(b"\n") == [*bad_lines, b""]

    with Store(tmp_path) as store:
        assert store.set_aside == 0


@given(junk=st.lists(st.binary(min_size=1, max_size=40), max_size=5))
@example(junk=[b"\xef\xbb\xbf", b"\xff\xfe{\x00}\x00"])
@settings(max_examples=40)
def test_no_bytes_between_rows_lose_a_row(junk: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row(str(number)) for number in range(len(junk) + 1)]
        lines = [json.dumps(one).encode() for one in rows]
        mixed = [lines[0], *(line for pair in zip(junk, lines[1:], strict=True) for line in pair)]
        (folder / ROWS).write_bytes(b"\n".join(mixed) + b"\n")
        bad_lines = [line for line in b"\n".join(junk).split(b"\n") if line.strip()]
        assert read_rows(folder) == rows
        with Store(folder) as store:
            assert store.set_aside == len(bad_lines)
        assert read_rows(folder) == rows


def test_a_whole_last_row_without_a_line_end_is_kept_and_not_glued_to_the_next(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text('{"id": "a", "status": "done"}')
    with Store(tmp_path) as store:
        assert store.set_aside == 0
        store.append(row("b"))
    assert read_rows(tmp_path) == [row("a"), row("b")]


def test_rows_that_were_set_aside_are_kept_for_good(tmp_path: Path) -> None:
    for junk in (b"first", b"second"):
        with (tmp_path / ROWS).open("ab") as file:
            file.write(junk)
        with Store(tmp_path) as store:
            assert store.set_aside == 1
    assert (tmp_path / BAD).read_bytes() == b"first\nsecond\n"


def test_a_torn_line_of_the_history_is_set_aside_too(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append_history([{"id": "a", "epoch": 1}, {"id": "a", "epoch": 2}])
    with (tmp_path / HISTORY).open("ab") as file:
        file.write(b'{"id": "a", "epo')
    assert [epoch["epoch"] for epoch in read_history(tmp_path)] == [1, 2]
    with Store(tmp_path) as store:
        assert store.set_aside == 1
        store.append_history([{"id": "a", "epoch": 3}])
    assert [epoch["epoch"] for epoch in read_history(tmp_path)] == [1, 2, 3]
    assert (tmp_path / BAD).read_bytes() == b'{"id": "a", "epo\n'


# One writer

HOLD = """
import sys
from pathlib import Path
from spectrum.study.store import Store
with Store(Path(sys.argv[1])) as store:
    store.append({"id": "held", "status": "done"})
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until the block ends, at the latest."""
    holder = in_another_process(HOLD, folder, stdin=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_second_process_is_refused_with_pid_and_host_of_the_first(tmp_path: Path) -> None:
    with another_writer(tmp_path) as holder:
        with pytest.raises(StoreError, match="another run is writing here") as refused, Store(tmp_path):
            pass
        assert f"process {holder.pid} on {socket.gethostname()}" in str(refused.value)
        assert read_rows(tmp_path) == [row("held")], "reading is free"
        holder.communicate("")
    write(tmp_path, row("next"))
    assert read_rows(tmp_path) == [row("held"), row("next")]


def test_a_killed_writer_frees_the_folder(tmp_path: Path) -> None:
    with another_writer(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(10) == -signal.SIGKILL
        write(tmp_path, row("next"))
    assert read_rows(tmp_path) == [row("held"), row("next")]


def test_a_refused_writer_leaves_the_first_one_alone(tmp_path: Path) -> None:
    with Store(tmp_path) as first:
        first.append(row("a"))
        for _ in range(2):
            with pytest.raises(StoreError, match=f"process {os.getpid()} on"), Store(tmp_path):
                pass
        first.append(row("b"))
    assert read_rows(tmp_path) == [row("a"), row("b")]


def test_a_finished_run_leaves_only_its_rows_and_history(tmp_path: Path) -> None:
    write(tmp_path, row("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [WRITER, HISTORY, ROWS]
    assert (tmp_path / WRITER).read_bytes() == b"", "nobody writes"


def test_an_exception_in_the_run_frees_the_folder(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Store(tmp_path) as store:
            store.append(row("a"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    write(tmp_path, row("b"))
    assert read_rows(tmp_path) == [row("a"), row("b")]


# Disk full, folder read-only, process killed

FILL = """
import resource, signal, sys
from pathlib import Path
from spectrum.study.store import Store, StoreError

folder, size, then = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
try:
    with Store(folder) as store:
        for id in "abc":
            store.append({"id": id, "status": "done", "text": "x" * 100})
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        if then == "give up":
            store.append({"id": "large", "status": "done", "text": "y" * size})
        try:
            store.append({"id": "large", "status": "done", "text": "y" * size})
        except StoreError as error:
            print(error)
        if then == "room again":
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            store.append({"id": "later", "status": "done"})
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("size", [400, 3_000, 100_000])
@pytest.mark.parametrize("then", ["give up", "go on", "room again"])
def test_a_full_disk_is_a_clear_error_and_tears_no_row(tmp_path: Path, size: int, then: str) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here already")
    with in_another_process(FILL, tmp_path, size, then) as writer:
        said, error = writer.communicate()
    assert (error, writer.returncode) == ("", 0)
    assert said == f"{tmp_path / ROWS}: cannot be written (File too large)\n"
    ids = ["a", "b", "c", *(["later"] if then == "room again" else [])]
    assert [json.loads(line)["id"] for line in (tmp_path / ROWS).read_bytes().splitlines()] == ids
    with Store(tmp_path) as store:
        assert store.set_aside == 0


FILL_BY_A_PLAN = """
import resource, signal, sys
from pathlib import Path
from spectrum.design.plan import Plan, PlannedRun
from spectrum.study.store import Store, StoreError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Store(Path(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        store.freeze(Plan(hash="new", runs=(PlannedRun(id="b"),) * int(sys.argv[2])))
    except StoreError as error:
        print(error)
"""


@pytest.mark.parametrize(("old", "new"), [(1, 100), (100, 1)], ids=["new one too large", "copy of old one too large"])
def test_a_disk_that_is_full_when_a_plan_is_frozen_is_a_clear_error_and_keeps_the_old_plan(
    tmp_path: Path, old: int, new: int
) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here already")
    plan = plan_of(*["a"] * old, hash="old")
    with Store(tmp_path) as store:
        store.freeze(plan)
    with in_another_process(FILL_BY_A_PLAN, tmp_path, new) as writer:
        said, error = writer.communicate()
    assert (error, writer.returncode) == ("", 0)
    assert said == f"{tmp_path / PLAN}: cannot be written (File too large)\n"
    assert find_plan(tmp_path) == plan
    assert not list(tmp_path.glob(".*.[0-9]*")), "no part of a file is left"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be written"), Store(folder):
            pass
    assert (tmp_path / "file").read_text() == "in the way"


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without the rights of root, whom no read-only folder stops."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_read_only_folder_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        with (
            ordinary_user(),
            pytest.raises(StoreError, match=r"cannot be written \(Permission denied\)"),
            Store(folder),
        ):
            pass
        assert list(folder.iterdir()) == []


def test_a_folder_whose_rows_cannot_be_opened_is_refused_and_freed(tmp_path: Path) -> None:
    (tmp_path / HISTORY).mkdir()
    for _ in range(2):  # the second time would say "another run" if the first had kept the lock
        with pytest.raises(StoreError, match=r"cannot be written \(Is a directory\)"), Store(tmp_path):
            pass


@contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Files that nobody may change, root included; the test is skipped where the file system knows no such thing."""
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", *paths], capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *paths], check=True)


@pytest.mark.parametrize("name", [ROWS, HISTORY, WRITER])
def test_a_file_that_may_not_be_changed_is_named_when_a_run_starts(tmp_path: Path, name: str) -> None:
    write(tmp_path, row("a"))
    refused = re.escape(f"{tmp_path / name}: cannot be written (Operation not permitted)")
    with immutable(tmp_path / name):
        for _ in range(2):  # the second time would say "another run" if the first had kept the lock
            with pytest.raises(StoreError, match=refused), Store(tmp_path):
                pass
    write(tmp_path, row("b"))


@pytest.mark.parametrize("name", [ROWS, HISTORY])
def test_a_file_that_may_not_be_changed_any_more_is_named_during_a_run(tmp_path: Path, name: str) -> None:
    refused = re.escape(f"{tmp_path / name}: cannot be written (Operation not permitted)")
    with Store(tmp_path) as store:
        store.append(row("a"))
        store.append_history([{"id": "a", "epoch": 1}])
        with immutable(tmp_path / name), pytest.raises(StoreError, match=refused):
            store.append(row("b")) if name == ROWS else store.append_history([{"id": "b", "epoch": 1}])
        store.append(row("c"))
        store.append_history([{"id": "c", "epoch": 1}])
    assert [one["id"] for one in read_rows(tmp_path)] == ["a", "c"]
    assert [one["id"] for one in read_history(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("name", [PLAN, BAD, ROWS])
def test_a_file_that_cannot_be_replaced_or_added_to_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, row("a"))
    (tmp_path / PLAN).write_text(plan_of("a", hash="old").to_json())
    (tmp_path / BAD).touch()
    if name != PLAN:
        with (tmp_path / ROWS).open("ab") as file:
            file.write(b"torn")
    refused = re.escape(f"{tmp_path / name}: cannot be written (Operation not permitted)")
    with immutable(tmp_path / name), pytest.raises(StoreError, match=refused), Store(tmp_path) as store:
        store.freeze(plan_of("b", hash="new"))
    assert read_rows(tmp_path) == [row("a")]
    assert find_plan(tmp_path) == plan_of("a", hash="old")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that gives EIO is needed")
@pytest.mark.parametrize(
    ("name", "read"),
    [(ROWS, read_rows), (HISTORY, read_history), (PLAN, find_plan), (ROWS, latest_rows), (ROWS, load_results)],
)
def test_a_disk_that_does_not_give_a_file_back_is_said_with_its_name(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    (tmp_path / name).symlink_to("/proc/self/mem")  # whose first byte is nowhere: EIO, as of a broken disk
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path / name}: cannot be read (Input/output error)")):
        read(tmp_path)


# Somebody else's torn line


@pytest.mark.parametrize("torn", [b'{"id": "theirs", "st', b"x", b"\xff\x00", b'{"id": "theirs", "status": "done"}'])
@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_row_behind_somebodys_torn_line_is_not_lost_with_it(tmp_path: Path, torn: bytes, moment: str) -> None:
    def tear() -> None:
        for name in (ROWS, HISTORY):
            with (tmp_path / name).open("ab") as file:
                file.write(torn)

    if moment == "before":
        tear()
    with Store(tmp_path) as store:
        for number in (1, 2, 3):
            store.append(row(f"{number}"))
            store.append_history([{"id": f"{number}", "epoch": 1}])
            if moment == "during" and number < 3:
                tear()
        whole = b"done" in torn
        assert [one["id"] for one in read_rows(tmp_path) if one["id"] != "theirs"] == ["1", "2", "3"]
        assert [one["id"] for one in read_history(tmp_path)] == ["1", "2", "3"]
        count = 0 if moment == "before" else 2
        assert bad_lines(tmp_path).get(ROWS, 0) == (0 if whole else count)
    assert b"\n\n" not in (tmp_path / ROWS).read_bytes()


TAKES_TURNS = """
import resource, signal, sys
from pathlib import Path
from spectrum.study.store import ROWS, Store, StoreError

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Store(folder) as store:
    store.append({"id": "a", "status": "done"})
    with (folder / ROWS).open("ab") as file:
        file.write(b"theirs, tor")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        store.append({"id": "b", "status": "done", "text": "x" * 200})
    except StoreError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.append({"id": "c", "status": "done"})
"""


def test_a_full_disk_takes_back_our_half_row_and_not_somebodys_line(tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here already")
    with in_another_process(TAKES_TURNS, tmp_path) as writer:
        said, error = writer.communicate()
    assert (error, writer.returncode) == ("", 0)
    assert said == f"{tmp_path / ROWS}: cannot be written (File too large)\n"
    lines = (tmp_path / ROWS).read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in (lines[0], lines[2])] == ["a", "c"]
    assert lines[1] == b"theirs, tor"


KILLED = """
import os, sys
from pathlib import Path
from spectrum import _files
from spectrum.design.plan import Plan, PlannedRun
from spectrum.study import store
from tests.failpoint import die_at

folder, doing, step, number, moment = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]), sys.argv[5]
owner, name = {
    "write": (os, "write"), "write whole": (_files, "_write_all"), "sync": (os, "fsync"), "rename": (Path, "replace")
}[step]
if doing == "open":
    die_at(owner, name, number, moment)
with store.Store(folder) as opened:
    die_at(owner, name, number, moment)
    if doing == "freeze":
        opened.freeze(Plan(hash="new", runs=(PlannedRun(id="b"),)))
    elif doing == "results.jsonl":
        opened.append({"id": "b", "status": "done"})
    elif doing == "history.jsonl":
        opened.append_history([{"id": "b", "epoch": 1}])
os._exit(0)
"""


def kill(folder: Path, doing: str, step: str, number: int, moment: str) -> bool:
    """Kill a writer of the folder at a call; False where it has not made so many."""
    with in_another_process(KILLED, folder, doing, step, number, moment, cwd=ROOT) as writer:
        said, error = writer.communicate(timeout=60)
    assert (said, error) == ("", "")
    assert writer.returncode in (0, 9)
    return writer.returncode == 9


WHOLE_FILE = [
    ("write whole", "before"),
    ("write whole", "half"),
    ("write whole", "after"),
    ("sync", "before"),
    ("sync", "after"),
    ("rename", "before"),
    ("rename", "after"),
]


@pytest.mark.parametrize(("step", "moment"), WHOLE_FILE)
def test_a_process_killed_while_freezing_leaves_the_old_plan_or_the_new(tmp_path: Path, step: str, moment: str) -> None:
    old, new = plan_of("a", hash="old"), plan_of("b", hash="new")
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        with Store(folder) as store:
            store.freeze(old)
        if not kill(folder, "freeze", step, number, moment):
            break
        assert find_plan(folder) in (old, new)
        with Store(folder) as store:
            assert not list(folder.glob(".*.[0-9]*")), "what was half written is gone"
            store.freeze(new)
        assert find_plan(folder) == new
        assert Plan.from_json((folder / "plan-old.json").read_text()) == old
    assert number > 1, "it was killed at all"


@pytest.mark.parametrize(("step", "moment"), WHOLE_FILE)
def test_a_process_killed_while_it_sets_a_torn_row_aside_loses_neither_it_nor_a_row(
    tmp_path: Path, step: str, moment: str
) -> None:
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        write(folder, row("a"))
        with (folder / ROWS).open("ab") as file:
            file.write(b'{"id": "b", "sta')
        if not kill(folder, "open", step, number, moment):
            break
        assert read_rows(folder) == [row("a")]
        write(folder, row("b"))
        assert (folder / ROWS).read_text() == '{"id": "a", "status": "done"}\n{"id": "b", "status": "done"}\n'
        assert set((folder / BAD).read_bytes().splitlines()) == {b'{"id": "b", "sta'}
        assert not list(folder.glob(".*.[0-9]*")), "what was half written is gone"
    assert number > 1, "it was killed at all"


@pytest.mark.parametrize(("name", "read"), [(ROWS, read_rows), (HISTORY, read_history)])
@pytest.mark.parametrize(
    ("step", "moment", "ids", "torn"),
    [
        ("write", "before", "a", 0),
        ("write", "half", "a", 1),
        ("write", "after", "ab", 0),
        ("sync", "before", "ab", 0),
        ("sync", "after", "ab", 0),
    ],
)
def test_a_process_killed_while_appending_leaves_the_row_whole_or_absent(
    tmp_path: Path,
    name: str,
    read: Callable[[Path], list[dict[str, Any]]],
    step: str,
    moment: str,
    ids: str,
    torn: int,
) -> None:
    with Store(tmp_path) as store:
        store.append(row("a"))
        store.append_history([{"id": "a", "epoch": 1}])
    assert kill(tmp_path, name, step, 1, moment)
    assert [one["id"] for one in read(tmp_path)] == list(ids)
    with Store(tmp_path) as store:
        assert store.set_aside == torn
        store.append(row("c"))
        store.append_history([{"id": "c", "epoch": 1}])
    assert [one["id"] for one in read(tmp_path)] == [*ids, "c"]


# A file that is replaced under its writer


def replace(path: Path, content: bytes) -> None:
    """As git checkout and most editors do it: another file takes the name."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)


def test_rows_come_back_where_the_file_was_emptied_in_place(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(row("a"))
        (tmp_path / ROWS).write_bytes(b"")
        store.append(row("b"))
        (tmp_path / ROWS).write_bytes(b"x")
    assert sorted(latest_rows(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("name", [ROWS, HISTORY])
def test_rows_go_to_the_file_that_has_the_name(tmp_path: Path, name: str) -> None:
    def line(number: int) -> dict[str, Any]:
        return row(f"{number}", epoch=number)

    with Store(tmp_path) as store:

        def add(number: int) -> None:
            store.append(line(number))
            store.append_history([line(number)])

        add(1)
        before = (tmp_path / name).read_bytes()
        add(2)
        replace(tmp_path / name, before + b'{"id": "theirs", "epoch": 1, "status": "done"}')  # without a line end
        add(3)
        (tmp_path / name).unlink()
        add(4)
        replace(tmp_path / name, b"")
    read = [json.loads(text)["id"] for text in (tmp_path / name).read_text().splitlines()]
    assert sorted(read) == ["1", "2", "3", "4"]


def test_what_git_stash_takes_away_comes_back(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    with Store(tmp_path) as store:
        store.append(row("a"))
        git("add", ROWS)
        git("commit", "-qm", "one")
        store.append(row("b"))
        git("stash", "-q")
        store.append(row("c"))
    assert sorted(latest_rows(tmp_path)) == ["a", "b", "c"]


# The plan


def test_an_earlier_plan_is_kept_under_its_hash(tmp_path: Path) -> None:
    plans = [plan_of("a", hash="111"), plan_of("a", "b", hash="222"), plan_of("c", hash="333")]
    with Store(tmp_path) as store:
        for plan in plans:
            store.freeze(plan)
    assert find_plan(tmp_path) == plans[2]
    kept = {path.name: Plan.from_json(path.read_text()) for path in tmp_path.glob("plan-*.json")}
    assert kept == {"plan-111.json": plans[0], "plan-222.json": plans[1]}


def test_the_same_plan_is_not_written_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.freeze(plan_of("a", hash="111"))
        inode = (tmp_path / PLAN).stat().st_ino
        store.freeze(plan_of("a", hash="111"))
        assert (tmp_path / PLAN).stat().st_ino == inode
        store.freeze(plan_of("a", "b", hash="111"))  # an extended sweep belongs to the same study
    assert find_plan(tmp_path) == plan_of("a", "b", hash="111")
    assert list(tmp_path.glob("plan-*.json")) == []


@pytest.mark.parametrize("text", ["", '{"hash": "1', "[]", "null", "\udcff"])
def test_a_garbled_plan_is_said_with_its_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match=r"plan\.json: garbled \(.*or remove it"):
        find_plan(tmp_path)


def test_there_is_no_plan_before_the_first_run(tmp_path: Path) -> None:
    assert find_plan(tmp_path) is None

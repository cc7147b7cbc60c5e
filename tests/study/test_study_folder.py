"""Folders that cannot be written, and rows that are torn or hostile: real file systems."""

import json
import re
import subprocess
import sys

import pytest

from spectrum import load_study, run_study
from spectrum.cli import main
from spectrum.study import doctor
from spectrum.study.doctor import look_at
from spectrum.study.store import Store, read_rows
from spectrum.training.checkpoint_files import name_of
from tests.plans import plan_of
from tests.runs import (
    IMPORTS,
    hashes_of,
    slow_study,
    tiny,
)

BASE = '[base]\nmodel = "linear"\ndataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 2\n'


@pytest.fixture
def mount(study_folder):
    """Starts the command in a name space of its own, in which a script has mounted something on results/."""
    (study_folder / "results").mkdir()
    (study_folder / "kept").mkdir()

    def start(script, *words):
        words = ["unshare", "-rm", "sh", "-euc", script, "sh", sys.executable, "-m", "spectrum", *words]
        return subprocess.run(words, cwd=study_folder, capture_output=True, text=True, timeout=250)

    try:
        permitted = start("mount -t tmpfs none results").returncode == 0
    except OSError:
        permitted = False
    if not permitted:
        pytest.skip("no mounts without rights here")
    return start


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True], ids=["a new folder", "a folder with rows"])
def test_a_read_only_file_system_is_refused_before_anything_is_trained(study_folder, mount, begun):
    slow_study(study_folder)
    folder = study_folder / "results" / "slow"
    if begun:
        with Store(folder) as store:
            store.append({"id": "a", "status": "done"})
    script = 'mount --bind results results; mount -o remount,bind,ro results; exec "$@"'
    done = mount(script, "run", "slow.toml", "--workers", "1", "--import", IMPORTS[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "spectrum: results/slow: cannot be written (Read-only file system)\n"
    assert not list(study_folder.glob("worker-*"))
    assert [row["id"] for row in read_rows(folder)] == ["a"] * begun


FILL = """
mount -t tmpfs -o size=1m none results
cat /dev/zero >results/zeros 2>results/said || rm results/said
truncate -s -$((4096 * PAGES)) results/zeros
status=0
"$@" || status=$?
rm results/zeros
cp -r results/. kept
exit $status
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "pages", [0, 2, 4, 12], ids=["for nothing", "for a plan", "for two rows", "for all but the report"]
)
def test_a_full_file_system_ends_the_run_and_tears_no_row(study_folder, mount, pages):
    (study_folder / "tiny.toml").write_text(f"{BASE}[axes]\nseed = [0, 1, 2, 3]\n")
    said = ["run", "tiny.toml", "--workers", "1", "--import", IMPORTS[0]]
    done = mount(FILL.replace("PAGES", str(pages)), *said)
    assert done.returncode == 3, done
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(r"spectrum: results/tiny\S*: .*No space left on device\)?", last)
    folder = study_folder / "kept" / "tiny"
    whole = read_rows(folder)
    summary = run_study(load_study(study_folder / "tiny.toml"), folder, workers=1, imports=IMPORTS)
    assert (summary.set_aside, summary.reused, summary.trained) == (0, len(whole), 4 - len(whole))
    assert [found.message for found in look_at(folder) if found.fault] == []


@pytest.mark.slow
def test_a_row_torn_in_half_is_set_aside_and_trained_again(study_folder, capsys):
    (study_folder / "tiny.toml").write_text(f"{BASE}[axes]\nseed = [0, 1]\n")
    words = ["run", "tiny.toml", "--workers", "2", "--import", IMPORTS[0]]
    assert main(words) == 0
    path = study_folder / "results" / "tiny" / "results.jsonl"
    whole = hashes_of(path.parent)
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: len(last) // 2])
    capsys.readouterr()

    assert main(words) == 0
    shown = capsys.readouterr()
    assert "1 torn or garbled line moved to results/tiny/results.bad" in shown.err
    assert "1 of 2 runs had a result already and were reused" in shown.out
    assert len(read_rows(path.parent)) == 2
    assert hashes_of(path.parent) == whole
    assert [found.message for found in look_at(path.parent) if found.fault] == []
    assert (path.parent / "results.bad").read_bytes() == last[: len(last) // 2] + b"\n"


def folders_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_dir())


@pytest.mark.parametrize("id", ["{victim}", "../..", "..", ".", "", "../../../victim", "a\0b", "x" * 5000])
def test_a_row_that_calls_itself_by_a_path_removes_nothing(study_folder, id):
    victim = study_folder / "victim"
    study = tiny(base={"model": "linear", "width": 1.0}, axes={"segments": [1]})
    folder = study_folder / "results" / "tiny"
    for path in (victim / "below", folder / "checkpoints" / "part-way", study_folder / "results" / "other"):
        path.mkdir(parents=True)
        (path / "file").touch()
    hostile, reused = ({"id": one, "status": "done"} for one in (id.format(victim=victim), study.runs()[0].id))
    (folder / "results.jsonl").write_text(f"{json.dumps(hostile)}\n{json.dumps(reused)}\n")
    before = folders_below(study_folder)
    summary = run_study(study, imports=IMPORTS)
    assert (summary.total, summary.reused) == (1, 1)
    assert folders_below(study_folder) == before
    assert {path.parent.name for path in study_folder.rglob("file")} == {"below", "part-way", "other"}
    assert read_rows(folder) == [hostile, reused]


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "being removed"])
def test_a_run_that_ends_while_its_folder_is_looked_at_is_no_fault(tmp_path, monkeypatch, gone):
    first, second = (tmp_path / "checkpoints" / id / name_of(1, b"state") for id in "ab")
    for path in (first, second):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"state")

    def end_the_second(file):
        second.unlink(missing_ok=True)
        if gone and second.parent.exists():
            second.parent.rmdir()
        return state_of(file)

    state_of = doctor._state_of
    monkeypatch.setattr(doctor, "_state_of", end_the_second)
    with Store(tmp_path) as store:
        store.freeze(plan_of({"hash": "h", "points": [{"id": "a"}, {"id": "b"}]}))
        assert [found.message for found in look_at(tmp_path) if found.fault] == []
    assert first.exists()
    assert second.parent.exists() != gone

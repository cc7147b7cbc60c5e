"""The exit status of every command: what each means, under real faults and under misuse."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spectrum import RunConfig
from spectrum.cli import COMMANDS, main
from spectrum.cli.arguments import Run
from spectrum.study.store import FULL, Store, StoreError, WriteError, _told
from tests.runs import tiny
from tests.study.test_identity import hold

ROOT = Path(__file__).parents[1]
STUDY = '[base]\ndataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 1\nwidth = 0.25\n'


@pytest.fixture
def study(study_folder):
    (study_folder / "tiny.toml").write_text(STUDY)
    return study_folder


def run(*words):
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


WRONG = {
    "a folder": ["plan", "."],
    "a nameless file": ["run", ""],
    "below a file": ["plan", "tiny.toml/x.toml"],
    "an empty file": ["plan", "empty.toml"],
    "an empty file's status": ["status", "empty.toml"],
    "only comments": ["run", "comments.toml"],
    "bytes": ["plan", "bytes.toml"],
    "UTF-16": ["plan", "utf16.toml"],
    "a file as --out": ["plan", "tiny.toml", "--out", "empty.toml"],
    "a file as --out of a run": ["run", "tiny.toml", "--out", "empty.toml"],
    "below a file as --out": ["status", "tiny.toml", "--out", "empty.toml/x"],
    "--out of a folder": ["report", "held", "--out", "other"],
    "a module that leaves": ["plan", "tiny.toml", "--import", "leaves"],
    "an unknown family": ["audit", "prob"],
    "segments that no layer has": ["audit", "probe", "--segments", "1000"],
    "a width that no layer has": ["audit", "probe", "--segment-width", "1000"],
    "no ranks": ["run", "tiny.toml", "--engine", "torchrun"],
    "a file for a bench": ["bench", "op", "--out", "empty.toml"],
    "a shape of three": ["bench", "op", "--shape", "1", "2", "3"],
    "another word for completion": ["--tyro-print-completion", "bash", "more"],
    "an ending": ["export", "held", "--to", "rows.xlsx"],
    "a folder to export to": ["export", "held", "--to", "folder.csv"],
    "a garbled plan": ["report", "garbled"],
    "a plan of numbers": ["status", "numbers"],
    "half a plan": ["report", "half"],
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_misuse_ends_in_status_2_and_writes_nothing(study, capsys, monkeypatch, words):
    for name, content in {
        "empty.toml": b"",
        "comments.toml": b"# nothing yet\n",
        "bytes.toml": bytes(range(128, 256)),
        "utf16.toml": STUDY.encode("utf-16"),
        "leaves.py": b"raise SystemExit(0)\n",
    }.items():
        (study / name).write_bytes(content)
    (study / "folder.csv").mkdir()
    hold(study / "held", tiny())
    for name, plan in {"garbled": "{", "numbers": '{"points": [3]}', "half": '{"points": []}'}.items():
        hold(study / name, tiny())
        (study / name / "plan.json").write_text(plan)
    monkeypatch.syspath_prepend(study)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = {path: path.is_dir() or path.read_bytes() for path in study.rglob("*")}
    assert run(*words) == 2
    assert {path: path.is_dir() or path.read_bytes() for path in study.rglob("*")} == before
    assert capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny.toml", "bom.toml"])
def test_a_byte_order_mark_is_no_part_of_a_study(study, capsys, name):
    (study / "bom.toml").write_text(STUDY, encoding="utf-8-sig")
    assert run("plan", name, "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["points"]
    assert entry["id"] == RunConfig(dataset="digits", train_images=100, batch_size=50, epochs=1, width=0.25).id


def limited(folder, *words, size=4096):
    """The command in a process that may write no file beyond a size, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, "-m", "spectrum", *words], cwd=folder, capture_output=True, text=True, timeout=250,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )  # fmt: skip


@pytest.mark.medium
def test_an_export_that_cannot_be_written_has_a_status_of_its_own(study):
    hold(study / "held", tiny(axes={"seed": list(range(20))}))
    done = limited(study, "export", "held", "--to", "rows.json")
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stderr


@pytest.mark.medium
def test_a_report_that_cannot_be_written_has_a_status_of_its_own(study):
    assert run("run", "tiny.toml", "--workers", "1") == 0
    rows = (study / "results/tiny/results.jsonl").read_bytes()
    done = limited(study, "report", "tiny.toml")
    assert done.returncode == 3, done.stderr
    assert "results/tiny/figures/spectrum.svg: the report cannot be written (File too large)" in done.stderr
    assert (study / "results/tiny/results.jsonl").read_bytes() == rows


def test_a_standard_output_that_is_full_is_no_wrong_input(study):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "spectrum", "status", "tiny.toml"], cwd=study, stdout=full,
            stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 3


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_told_from_a_folder_that_may_not_be_written(tmp_path, number):
    with pytest.raises(WriteError), _told(tmp_path, "written"):
        raise OSError(number, "full")
    with pytest.raises(StoreError) as refused, _told(tmp_path, "written"):
        raise PermissionError(13, "Permission denied")
    assert type(refused.value) is StoreError


def test_a_row_that_cannot_be_written_is_a_write_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(tmp_path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        try:
            with pytest.raises(WriteError, match=r"results\.jsonl: cannot be written"):
                store.append({"id": "a", "status": "done"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", ["plan", "report", "run"])
def test_what_is_said_after_ctrl_c_is_true_of_the_command(study, capsys, monkeypatch, command):
    def stop(command):
        raise KeyboardInterrupt

    hold(study / "held", tiny())
    kind = next(kind for kind in COMMANDS if kind.__name__.lower() == command)
    monkeypatch.setitem(COMMANDS, kind, stop)
    assert run(command, "tiny.toml") == 130
    kept = "; finished runs are kept; run the same command again to resume"
    assert capsys.readouterr().err == f"stopped{kept if command == 'run' else ''}\n"


def test_a_run_that_is_terminated_says_what_is_kept(study, capsys, monkeypatch):
    def stop(command):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(COMMANDS, Run, stop)
    assert run("run", "tiny.toml") == 143
    assert capsys.readouterr().err == "stopped; finished runs are kept; run the same command again to resume\n"


def test_ctrl_c_in_a_plan_says_nothing_of_runs(study):
    (study / "waits.py").write_text("import time\nprint('waiting', flush=True)\ntime.sleep(100)\n")
    words = [sys.executable, "-m", "spectrum", "plan", "tiny.toml", "--import", "waits"]
    plan = subprocess.Popen(
        words, cwd=study, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert plan.stdout.readline() == "waiting\n"
    plan.send_signal(signal.SIGINT)
    assert (plan.communicate(timeout=60)[1], plan.returncode) == ("stopped\n", 130)


def test_an_error_of_the_program_is_no_failed_run(study, capsys, monkeypatch):
    def fail(command):
        raise RuntimeError("a bug")

    monkeypatch.setitem(COMMANDS, next(kind for kind in COMMANDS if kind.__name__ == "Plan"), fail)
    assert run("plan", "tiny.toml") == 70
    assert "RuntimeError: a bug" in capsys.readouterr().err

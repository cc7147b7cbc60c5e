"""Runs that take too much time or memory, and the GPUs that workers share."""

import os
import subprocess
import sys
import threading
import time

import pytest

from spectrum import run_study
from spectrum._records import SpecError
from spectrum.design.study_file import parse_study
from spectrum.engines.cores import visible_gpus
from spectrum.engines.interface import Work
from spectrum.engines.local import Workers
from spectrum.study.store import read_rows
from tests.runs import IMPORTS, ROOT, TINY, tiny


@pytest.mark.slow
def test_a_run_that_takes_too_much_memory_or_time_has_failed_and_no_other(study_folder):
    cases = [{"model": "greedy"}, {"model": "slow", "epochs": 400}, {"model": "linear"}]
    study = parse_study({"base": TINY, "cases": cases}, "limits")
    limits = {"run_minutes": 0.4, "memory_gb": 2.0}
    summary = run_study(study, workers=2, imports=IMPORTS, checkpoint_minutes=0.01, **limits)
    rows = {row["model"]: row for row in read_rows(summary.folder)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "greedy": "failed",
        "slow": "failed",
        "linear": "done",
    }
    assert rows["greedy"]["reason"].startswith("MemoryError: oom: not enough memory")
    assert rows["slow"]["reason"].startswith("took more than 0.4 minutes; the next run resumes from its checkpoint")
    assert {row["attempts"] for row in rows.values()} == {1}, "what would only happen again is not tried again"
    assert len(list((summary.folder / "checkpoints" / rows["slow"]["id"]).glob("*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "minutes", "epochs", "status"),
    [(86_400, 10, 20, "done"), (-86_400, 0.25, 400, "failed")],  # two seconds, and forty
    ids=["a day ahead is no time taken", "a day back is no time given"],
)
def test_a_limit_goes_by_a_clock_that_does_not_jump(study_folder, monkeypatch, seconds, minutes, epochs, status):
    real, shift = time.time, 0
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    ended = threading.Event()

    def jump():
        nonlocal shift
        while not ended.wait(0.02):
            if list(study_folder.glob("worker-*")):
                shift = seconds

    jumper = threading.Thread(target=jump)
    jumper.start()
    try:
        study = parse_study({"base": TINY | {"model": "slow", "epochs": epochs}}, "clock")
        summary = run_study(study, workers=1, imports=IMPORTS, run_minutes=minutes)
    finally:
        ended.set()
        jumper.join()
    (row,) = read_rows(summary.folder)
    assert shift == seconds
    assert row["status"] == status
    assert status == "done" or row["reason"].startswith("took more than 0.25 minutes")


@pytest.mark.parametrize("limits", [{"run_minutes": 0}, {"memory_gb": -1}, {"run_minutes": float("nan")}])
def test_limits_that_cannot_be_are_refused(study_folder, limits):
    with pytest.raises(SpecError, match=r"(run_minutes|memory_gb): input should be greater than 0"):
        run_study(tiny(), **limits)


SLOT = """
import sys, time
from pathlib import Path
from spectrum.engines.cores import take_slot
print(take_slot(Path(sys.argv[1]), 2), flush=True)
time.sleep(60)
"""


def test_a_gpu_is_taken_by_one_worker_and_given_back_by_its_death(tmp_path):
    def start():
        said = [sys.executable, "-c", SLOT, str(tmp_path)]
        process = subprocess.Popen(said, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return process, int(process.stdout.readline())

    (first, one), (second, other) = start(), start()
    try:
        assert {one, other} == {0, 1}
        first.kill()
        first.communicate()
        third, again = start()
        third.kill()
        third.communicate()
        assert again == one
    finally:
        second.kill()
        second.communicate()


@pytest.mark.parametrize(("said", "gpus"), [("", ["0"]), ("2", ["2"]), ("3,GPU-a", ["3", "GPU-a"])])
def test_gpus_are_those_that_may_be_seen(monkeypatch, said, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_gpus() == gpus
    assert Workers(Work(device="cuda")).workers == len(gpus)

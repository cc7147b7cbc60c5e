"""`make soak`: two hundred random kills over a study of sixty runs. Takes a quarter of an hour.

Workers and drivers are killed at random moments; a killed driver is started again. At the end every run has one
finished row, with the weights of an undisturbed run, and nothing is left over.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from spectrum import load_study, run_study
from spectrum.study.doctor import look_at
from spectrum.study.store import FINISHED, read_rows
from tests import faulty_models
from tests.runs import is_alive

KILLS = int(os.environ.get("SPECTRUM_SOAK_KILLS", "200"))
SEED = int(os.environ.get("SPECTRUM_SOAK_SEED", "0"))
STUDY = """
[base]
dataset = "digits"
model = "{model}"
epochs = 20
[axes]
seed = [{seeds}]
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    said = ["run", "soak.toml", "--workers", "2", "--import", faulty_models.__name__, "--checkpoint-minutes", "0.002"]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "spectrum", *said], cwd=folder, stdout=log, stderr=log)


def workers_of(driver: int) -> list[int]:
    """The processes that train; not the one that watches over shared memory."""
    found = []
    children = (listed.read_text() for listed in Path(f"/proc/{driver}/task").glob("*/children"))  # of any thread
    for child in " ".join(children).split():
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in command:
            found.append(int(child))
    return found


@pytest.mark.timeout(3600)
def test_kills_lose_nothing_and_repeat_nothing(study_folder: Path) -> None:
    seeds = ", ".join(map(str, range(60)))
    for name, model in (("soak", "slow"), ("undisturbed", "linear")):
        (study_folder / f"{name}.toml").write_text(STUDY.format(model=model, seeds=seeds))
    choose = random.Random(SEED)
    kills: Counter[str] = Counter()
    run = start(study_folder)
    while run.poll() != 0:
        if run.poll() is not None:  # runs that were killed three times in one run have failed in it
            run = start(study_folder)
        time.sleep(choose.uniform(0.1, 3.0))
        workers = workers_of(run.pid) if run.poll() is None else []
        if kills.total() >= KILLS or not workers:
            continue
        if choose.random() < 0.2:
            run.kill()
            run.wait()
            kills["driver"] += 1
            deadline = time.monotonic() + 1
            while any(map(is_alive, workers)):
                assert time.monotonic() < deadline, "a worker outlives its driver by a second"
                time.sleep(0.02)
            run = start(study_folder)
        else:
            os.kill(choose.choice(workers), signal.SIGKILL)
            kills["worker"] += 1
    assert kills.total() == KILLS, "the study ended too early for as many"

    folder = study_folder / "results" / "soak"
    rows = [row for row in read_rows(folder) if row["status"] in FINISHED]
    assert sorted(row["seed"] for row in rows) == list(range(60)), "each exactly once"
    undisturbed = run_study(load_study("undisturbed.toml"), workers=2, imports=[faulty_models.__name__])
    expected = {row["seed"]: row["weights_sha256"] for row in read_rows(undisturbed.folder)}
    assert {row["seed"]: row["weights_sha256"] for row in rows} == expected
    assert not (folder / "checkpoints").exists()
    assert [one.message for one in look_at(folder) if one.fault] == []
    resumed = sum("resumed" in row["provenance"] for row in rows)
    print(f"killed {dict(kills)}; {resumed} of 60 runs went on from a checkpoint")  # noqa: T201
    assert resumed > 0

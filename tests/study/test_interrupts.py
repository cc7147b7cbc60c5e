"""Runs that are stopped, killed, started twice or looked at: real signals to real processes."""

import fcntl
import os
import signal
import socket
import time
from importlib import import_module

import pytest

from spectrum import load_study, run_study
from spectrum.design.study_file import parse_study
from spectrum.engines.cores import available_cores
from spectrum.engines.interface import Work
from spectrum.engines.local import Workers
from spectrum.results import load_history
from spectrum.study.doctor import look_at
from spectrum.study.store import read_rows
from tests.runs import (
    IMPORTS,
    children_of,
    command,
    hashes_of,
    slow_study,
    start_slow_run,
    wait_until,
    wait_until_gone,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The hashes that the runs of slow_study(epochs=6) end with; a quick model with the same weights."""
    base, axes = {"dataset": "digits", "epochs": 6, "model": "linear"}, {"seed": [0, 1, 2, 3]}
    study = parse_study({"base": base, "axes": axes}, "undisturbed")
    return hashes_of(run_study(study, tmp_path_factory.mktemp("undisturbed"), workers=2, imports=IMPORTS).folder)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGKILL], -signal.SIGKILL),
    ],
    ids=["Ctrl-C", "Ctrl-C twice", "terminated", "killed"],
)
def test_a_stopped_driver_leaves_no_worker_and_its_study_goes_on_to_the_same_weights(
    study_folder, undisturbed, signals, status
):
    killed = signal.SIGKILL in signals  # its workers have no time to save
    folder = study_folder / "results" / "slow"
    run, workers = start_slow_run(study_folder, *(["--checkpoint-minutes", 0] if killed else []), epochs=6)
    if killed:
        wait_until(lambda: len({path.parent for path in folder.glob("checkpoints/*/*.safetensors")}) == 2, seconds=60)
    children = children_of(run.pid)
    assert set(workers) <= set(children)
    for number in signals:
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            run.send_signal(number)
        time.sleep(0.02)
    assert run.wait(timeout=30) == status
    wait_until_gone(children, seconds=5)
    _, said = run.communicate(timeout=5)
    assert "Traceback" not in said
    rows_before = read_rows(folder)

    summary = run_study(load_study(study_folder / "slow.toml"), folder, workers=2, imports=IMPORTS)
    rows = read_rows(folder)
    assert (summary.reused, summary.trained) == (len(rows_before), 4 - len(rows_before))
    assert sorted(row["seed"] for row in rows) == [0, 1, 2, 3]
    resumed = [row["provenance"]["resumed"] for row in rows if "resumed" in row["provenance"]]
    assert all(len(times) == 1 and times[0]["step"] > 0 and not times[0]["before"] for times in resumed)
    assert len(resumed) == 2 or len(signals) == 2, "a second Ctrl-C waits for nobody"
    assert hashes_of(folder) == undisturbed
    assert len(load_history(folder)) == 4 * 6
    assert not (folder / "checkpoints").exists(), "nothing is kept of runs that have ended"
    assert [found.message for found in look_at(folder) if found.fault] == []


@pytest.mark.slow
def test_ctrl_c_twice_waits_for_nobody(study_folder):
    run, workers = start_slow_run(study_folder, model="stuck")
    run.send_signal(signal.SIGINT)
    time.sleep(1)
    assert run.poll() is None, "it waits for the workers to save"
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=3) == 130
    wait_until_gone(workers, seconds=1)
    _, said = run.communicate(timeout=3)
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(fcntl, "F_SETSIG"), reason="asks the kernel, as Linux lets one")
def test_a_killed_driver_takes_workers_along_that_hang_in_native_code(study_folder):
    run, workers = start_slow_run(study_folder, model="stuck_in_native_code")
    run.kill()
    run.communicate(timeout=30)  # which ends with the last process that has its pipes
    wait_until_gone(workers, seconds=1)


@pytest.mark.slow
@pytest.mark.skipif(available_cores() < 2, reason="one worker has as many threads as two")
def test_a_row_says_with_how_many_threads_it_began(study_folder, undisturbed):
    run, _ = start_slow_run(study_folder, epochs=6)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    folder = study_folder / "results" / "slow"
    run_study(load_study(study_folder / "slow.toml"), folder, workers=1, imports=IMPORTS)
    resumed = [row["provenance"]["resumed"] for row in read_rows(folder) if "resumed" in row["provenance"]]
    began = Workers(Work(workers=2, device="cpu")).threads
    assert [times[0]["before"]["threads"] for times in resumed] == [began] * 2
    assert {row["provenance"]["threads"] for row in read_rows(folder)} == {
        Workers(Work(workers=1, device="cpu")).threads
    }
    assert any("resumed in a different environment" in found.message for found in look_at(folder))


DYING = """
from spectrum import build_model, register_model
from tests.faulty_models import die_at_step

def dying_probe(arch):
    model, count = build_model("probe", arch), die_at_step(13)
    model.register_forward_pre_hook(lambda module, inputs: count() if module.training else None)
    return model

register_model("dying_probe", dying_probe)
"""


@pytest.mark.slow
def test_a_worker_killed_in_an_epoch_is_replaced_and_goes_on_from_its_checkpoint(study_folder, monkeypatch):
    (study_folder / "dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(study_folder)
    import_module("dying")
    base = {"dataset": "digits", "epochs": 2, "train_images": 400, "batch_size": 50, "width": 0.25, "segments": 3}
    base |= {"flip": True, "shift": 1, "ema": 0.9, "dropout": 0.2}
    dies, quick = (parse_study({"base": base | {"model": name}}, name) for name in ("dying_probe", "probe"))
    summary = run_study(dies, workers=1, imports=["dying"], checkpoint_minutes=0)
    (row,) = read_rows(summary.folder)
    assert (row["status"], row["attempts"]) == ("done", 2)
    assert row["provenance"]["resumed"] == [{"step": 12, "before": {}}], "of eight steps an epoch"
    assert hashes_of(summary.folder) == hashes_of(run_study(quick, workers=1).folder)
    assert not (summary.folder / "checkpoints").exists()


@pytest.mark.slow
def test_of_two_runs_of_a_study_started_at_once_one_is_refused_with_the_pid_of_the_other(study_folder):
    path = slow_study(study_folder, epochs=6)
    runs = [command(study_folder, "run", path.name, "--workers", 2, "--import", IMPORTS[0]) for _ in range(2)]
    said = [run.communicate(timeout=200) for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], said
    winner, loser = sorted(range(2), key=lambda number: runs[number].returncode)
    assert f"another run is writing here (process {runs[winner].pid} on {socket.gethostname()})" in said[loser][1]
    rows = read_rows(study_folder / "results" / "slow")
    assert sorted(row["seed"] for row in rows) == [0, 1, 2, 3], "each once"


@pytest.mark.slow
def test_a_run_may_be_looked_at_from_another_shell(study_folder):
    run, workers = start_slow_run(study_folder, "--checkpoint-minutes", 0, epochs=20)
    try:
        for name, told in (
            ("status", f"training now: process {run.pid} on"),
            ("doctor", f"process {run.pid} on {socket.gethostname()} is writing here now"),
        ):
            look = command(study_folder, name, "slow.toml", "--import", IMPORTS[0])
            said, error = look.communicate(timeout=60)
            assert (look.returncode, error) == (0, ""), said
            assert told in said
        folder, looks = study_folder / "results" / "slow", 0
        while run.poll() is None:  # however often, and whatever comes and goes meanwhile
            assert [found.message for found in look_at(folder) if found.fault] == []
            looks += 1
        assert looks > 10
        assert run.returncode == 0, run.communicate()
    finally:
        run.kill()
        run.communicate()
        wait_until_gone(workers, seconds=5)
    assert sorted(row["seed"] for row in read_rows(folder)) == [0, 1, 2, 3]
    assert look_at(folder) == []

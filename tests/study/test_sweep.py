"""A study from points to rows, with real worker processes and real faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectrum import load_results, run_study
from spectrum.results import load_history
from spectrum.study.engines import Limits, LocalEngine, available_cores, visible_gpus
from spectrum.study.planning import plan_study
from spectrum.study.point import SpecError
from spectrum.study.spec import parse_study
from spectrum.study.store import StoreError, read_rows
from spectrum.study.sweep import in_random_blocks
from tests import faulty_models

TINY = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 2, "width": 0.25}
ROOT = Path(__file__).parents[2]
IMPORTS = (faulty_models.__name__,)


def tiny(name="tiny", **said):
    base = TINY | said.pop("base", {})
    return parse_study({"base": base, "axes": {"segments": [1, "per_channel"]}} | said, name)


def test_a_plan_knows_costs_and_clamps_before_training(study_folder):
    planned = plan_study(tiny(axes={"segments": [1, 3, 32, "per_channel"]}))
    assert [cost.realised_segments for cost in planned] == [
        (1,) * 6,
        (3,) * 6,
        (8, 8, 16, 16, 32, 32),
        (8, 8, 16, 16, 32, 32),
    ]
    assert [cost.clamped_layers for cost in planned] == [0, 0, 4, 0]
    assert planned[0].macs > planned[1].macs > planned[2].macs == planned[3].macs
    assert not list(study_folder.iterdir())


def test_more_segments_than_any_layer_has_channels_are_refused(study_folder):
    with pytest.raises(SpecError, match="segments = 33: no layer of 'probe' has so many channels; the widest has 32"):
        run_study(tiny(axes={"segments": [1, 33]}))
    assert not list(study_folder.iterdir())


def test_an_engine_shares_the_cores_between_its_workers():
    assert (LocalEngine().workers, LocalEngine().threads) == (available_cores(), 1)
    assert LocalEngine(device="cuda").workers == 1
    assert LocalEngine(1).threads == available_cores()
    assert LocalEngine(10_000).threads == 1


def test_points_are_trained_in_blocks_of_a_seed_in_random_order_that_can_be_repeated():
    study = tiny(axes={"segments": [1, 2, 3, 4, 5, 6, 7, 8], "seed": [2, 0, 1]})
    points = [one.point for one in study.wanted()]
    ordered = in_random_blocks(points)
    blocks = [[point.segments for point in ordered[start : start + 8]] for start in (0, 8, 16)]
    assert [point.seed for point in ordered] == sorted(point.seed for point in points)
    assert all(sorted(block) == list(range(1, 9)) and block != sorted(block) for block in blocks)
    assert len(set(map(tuple, blocks))) == 3
    assert in_random_blocks(points[::-1]) == ordered


@pytest.mark.slow
def test_a_study_runs_once_and_is_reused_then(study_folder):
    study = tiny(axes={"segments": [1, "per_channel"], "seed": [0, 1]})
    seen = []
    first = run_study(study, workers=2, on_progress=seen.append)
    assert (first.total, first.reused, first.trained, first.failed) == (4, 0, 4, 0)
    assert [standing.left for standing in seen] == [4, 3, 2, 1, 0]

    folder = study_folder / "results" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"plan.json", "results.jsonl", "history.jsonl", ".writer"}
    rows = read_rows(folder)
    assert {row["id"] for row in rows} == {point.id for point in study.points()}
    needed = (
        "id study status dataset model width segments segment_width pointwise order activation norm residual lr seed "
        "match params macs budget_mismatch train_seconds val_accuracy test_accuracy weights_sha256"
    ).split()
    table = load_results(folder)
    assert set(needed) <= set(table.columns)
    assert table["test_accuracy"].between(0, 1).all()
    assert set(table["provenance"][0]) >= {"torch", "threads", "device", "lowering", "revision", "data_fingerprint"}
    assert set(table["provenance"][0]["lowerings"].values()) <= {"native", "coalesced", "compiled", "folded"}
    assert len(table["provenance"][0]["lowerings"]) == len(table["realised_segments"][0])
    assert len(load_history(folder)) == 4 * 2

    before = (folder / "results.jsonl").read_bytes()
    again = run_study(study, workers=2)
    assert (again.total, again.reused, again.trained) == (4, 4, 0)
    assert (folder / "results.jsonl").read_bytes() == before

    grown = tiny(axes={"segments": [1, 3], "seed": [0, 1]})
    changed = run_study(grown, workers=1)
    assert (changed.total, changed.reused, changed.trained) == (4, 2, 2)
    assert (folder / "results.jsonl").read_bytes().startswith(before)
    assert len(load_results(folder)) == 4
    assert len(load_results(folder, all_points=True)) == 6
    assert len(list(folder.glob("plan*.json"))) == 2

    # The same point gives the same weights, in whichever process and beside whatever else it is trained.
    elsewhere = run_study(study, study_folder / "elsewhere", workers=2)
    assert elsewhere.trained == 4
    hashes = [{row["id"]: row["weights_sha256"] for row in read_rows(f)} for f in (folder, study_folder / "elsewhere")]
    assert hashes[1].items() <= hashes[0].items()


@pytest.mark.slow
def test_one_bad_point_stops_no_other(study_folder):
    names = ("linear", "dies", "dies_once", "out_of_memory", "fails", "talks", "times_out")
    study = parse_study({"base": TINY, "cases": [{"model": name} for name in names]}, "faults")
    summary = run_study(study, workers=2, imports=IMPORTS)
    rows = {row["model"]: row for row in read_rows(summary.folder)}
    assert summary.failed == 4
    assert {name: row["status"] for name, row in rows.items()} == {
        "linear": "done",
        "dies": "failed",
        "dies_once": "done",
        "out_of_memory": "failed",
        "fails": "failed",
        "talks": "done",
        "times_out": "failed",
    }
    assert "died 3 times" in rows["dies"]["reason"]
    assert rows["dies_once"]["attempts"] == 2
    assert "oom" in rows["out_of_memory"]["reason"]
    assert rows["out_of_memory"]["attempts"] == rows["fails"]["attempts"] == 1
    assert "this model never works" in rows["fails"]["reason"]
    log = summary.folder / "logs" / f"{rows['fails']['id']}.log"
    assert rows["fails"]["reason"].endswith(f"; see logs/{log.name}")
    assert "line" in log.read_text()
    assert "TimeoutError: a file system that does not answer" in rows["times_out"]["reason"]
    assert "in fail\n" in log.read_text(), "the traceback reaches to where it happened"
    assert "of a talkative model" in (summary.folder / "logs" / f"{rows['talks']['id']}.log").read_text()
    assert not (summary.folder / "logs" / f"{rows['linear']['id']}.log").exists(), "nothing to say, no file"
    assert load_results(summary.folder).set_index("model")["test_accuracy"].isna().sum() == 4

    (study_folder / "died").touch()
    again = run_study(study, workers=2, imports=IMPORTS)
    assert (again.reused, again.failed) == (3, 4)  # what failed is tried again


@pytest.mark.slow
def test_a_diverged_run_is_a_result(study_folder):
    study = tiny(base={"lr": 1e30}, axes={"segments": [1]})
    summary = run_study(study, workers=1)
    (row,) = read_rows(summary.folder)
    assert (summary.diverged, summary.failed) == (1, 0)
    assert row["status"] == "diverged"
    assert row["test_accuracy"] == row["val_accuracy"] == 0.1
    assert row["test_loss"] is None
    assert run_study(study, workers=1).reused == 1


@pytest.mark.slow
def test_workers_that_die_while_they_start_are_given_up_with_the_reason(study_folder, monkeypatch):
    monkeypatch.setenv("SPECTRUM_TEST_IMPORT", "dies")
    study = parse_study({"base": TINY | {"model": "linear"}, "axes": {"seed": [0, 1]}}, "dying")
    summary = run_study(study, workers=2, imports=IMPORTS)
    assert summary.failed == 2
    assert all("died 3 times" in row["reason"] for row in read_rows(summary.folder))
    monkeypatch.delenv("SPECTRUM_TEST_IMPORT")
    assert run_study(study, workers=2, imports=IMPORTS).trained == 2


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(study_folder):
    (study_folder / "script.py").write_text(
        f"from spectrum import Point, Study, run_study\nrun_study(Study(name='x', base=Point(**{TINY!r})), workers=1)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=250)
    assert done.returncode != 0
    assert 'below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.slow
def test_an_axis_of_lists_gives_a_report(study_folder):
    from spectrum.analysis.summary import summary_table

    summary = run_study(tiny(axes={"widths": [[4, 8], [8, 16]]}, base={"width": 1.0}), workers=2)
    assert list(summary_table(load_results(summary.folder))["widths"]) == [(4, 8), (8, 16)]


def start_slow_run(folder, model="slow", epochs=100):
    """A run of slow points in a process of its own, started; returns when both workers train."""
    (folder / "slow.toml").write_text(
        f'[base]\nmodel = "{model}"\ndataset = "digits"\nepochs = {epochs}\n[axes]\nseed = [0, 1, 2, 3]\n'
    )
    command = [sys.executable, "-m", "spectrum", "run", "slow.toml", "--workers", "2", "--import", IMPORTS[0]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, cwd=folder, text=True, start_new_session=True, **pipes)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("worker-*"))) < 2:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return run, [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]


def wait_until_gone(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_driver_leaves_no_worker_and_a_folder_that_goes_on(study_folder, number, status):
    run, workers = start_slow_run(study_folder)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does
    else:
        run.send_signal(number)
    _, said = run.communicate(timeout=30)
    assert run.returncode == status
    assert "Traceback" not in said
    wait_until_gone(workers, seconds=1)
    folder = study_folder / "results" / "slow"
    assert read_rows(folder) == []
    saved = list(folder.glob("checkpoints/*/*.safetensors"))
    assert len(saved) == (0 if number == signal.SIGKILL else 2)  # killed, they had no time, and their minute was not up
    study = parse_study({"base": TINY | {"model": "linear"}, "axes": {"seed": [0]}}, "slow")
    assert run_study(study, folder, workers=1, imports=IMPORTS).trained == 1


def hashes_of(folder):
    return {row["seed"]: row["weights_sha256"] for row in read_rows(folder)}


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_where_it_was_to_the_same_weights(study_folder):
    run, _ = start_slow_run(study_folder, epochs=6)
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode == 130
    base, axes = {"dataset": "digits", "epochs": 6}, {"seed": [0, 1, 2, 3]}
    slow, quick = (parse_study({"base": base | {"model": name}, "axes": axes}, "slow") for name in ("slow", "linear"))
    folder = study_folder / "results" / "slow"
    assert len(list(folder.glob("checkpoints/*"))) == 2
    summary = run_study(slow, folder, workers=2, imports=IMPORTS)
    assert summary.trained == 4
    resumed = [row["provenance"]["resumed"] for row in read_rows(folder) if "resumed" in row["provenance"]]
    assert [len(times) for times in resumed] == [1, 1]
    assert all(times[0]["step"] > 0 and not times[0]["before"] for times in resumed)
    assert not (folder / "checkpoints").exists(), "nothing is kept of points that have ended"
    assert len(load_history(folder)) == 4 * 6
    undisturbed = run_study(quick, study_folder / "undisturbed", workers=2, imports=IMPORTS)
    assert hashes_of(folder) == hashes_of(undisturbed.folder)


@pytest.mark.slow
def test_ctrl_c_twice_waits_for_nobody(study_folder):
    run, workers = start_slow_run(study_folder, model="stuck")
    run.send_signal(signal.SIGINT)
    time.sleep(1)
    assert run.poll() is None, "it waits for the workers to save"
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=3)
    assert run.returncode == 130
    assert "Traceback" not in said
    wait_until_gone(workers, seconds=1)


@pytest.mark.slow
def test_a_worker_killed_in_an_epoch_is_replaced_and_goes_on_from_its_checkpoint(study_folder):
    base = {"dataset": "digits", "epochs": 2, "train_images": 400, "batch_size": 100}
    dies, quick = (parse_study({"base": base | {"model": name}}, name) for name in ("dies_at_step_5", "linear"))
    summary = run_study(dies, workers=1, imports=IMPORTS, checkpoint_minutes=0)
    (row,) = read_rows(summary.folder)
    assert (row["status"], row["attempts"]) == ("done", 2)
    assert row["provenance"]["resumed"] == [{"step": 4, "before": {}}]
    assert hashes_of(summary.folder) == hashes_of(run_study(quick, workers=1, imports=IMPORTS).folder)
    assert not (summary.folder / "checkpoints").exists()


def test_a_number_of_minutes_that_cannot_be_is_refused(study_folder):
    with pytest.raises(SpecError, match="checkpoint_minutes = -1: expected 0 or more"):
        run_study(tiny(), checkpoint_minutes=-1)
    assert not list(study_folder.iterdir())


@pytest.mark.slow
def test_a_point_that_takes_too_much_memory_or_time_has_failed_and_no_other(study_folder):
    cases = [{"model": "greedy"}, {"model": "slow", "epochs": 400}, {"model": "linear"}]
    study = parse_study({"base": TINY, "cases": cases}, "limits")
    limits = Limits(minutes=0.2, memory_gb=2.0)
    summary = run_study(study, workers=2, imports=IMPORTS, limits=limits, checkpoint_minutes=0.01)
    rows = {row["model"]: row for row in read_rows(summary.folder)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "greedy": "failed",
        "slow": "failed",
        "linear": "done",
    }
    assert rows["greedy"]["reason"].startswith("MemoryError: oom: not enough memory")
    assert rows["slow"]["reason"].startswith("took more than 0.2 minutes; the next run goes on from its checkpoint")
    assert {row["attempts"] for row in rows.values()} == {1}, "what would only happen again is not tried again"
    assert len(list((summary.folder / "checkpoints" / rows["slow"]["id"]).glob("*.safetensors"))) == 2


SLOT = """
import sys, time
from pathlib import Path
from spectrum.study.engines import take_slot
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
    assert LocalEngine(device="cuda").workers == len(gpus)


@pytest.mark.parametrize("limits", [Limits(minutes=0), Limits(memory_gb=-1), Limits(minutes=float("nan"))])
def test_limits_that_cannot_be_are_refused(study_folder, limits):
    with pytest.raises(SpecError, match=r"limits: .* expected more than 0"):
        run_study(tiny(), limits=limits)


@pytest.mark.slow
def test_a_second_run_of_a_study_is_refused_with_the_pid_of_the_first(study_folder):
    run, workers = start_slow_run(study_folder)
    try:
        with pytest.raises(StoreError, match=f"another run is writing here .process {run.pid} on"):
            run_study(tiny(), study_folder / "results" / "slow", workers=1)
    finally:
        run.kill()
        run.communicate()
        wait_until_gone(workers, seconds=5)


@pytest.mark.slow
def test_rows_of_other_images_are_not_mixed_in(study_folder):
    study = tiny()
    summary = run_study(study, workers=2)
    path = summary.folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["provenance"]["data_fingerprint"] = "0" * 16
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(StoreError, match="trained on other images of 'digits'"):
        run_study(tiny(axes={"segments": [1, 2, "per_channel"]}), summary.folder, workers=1)


def test_a_module_that_cannot_be_imported_is_named(study_folder):
    with pytest.raises(SpecError, match="--import no_such_module"):
        run_study(tiny(), imports=["no_such_module"])

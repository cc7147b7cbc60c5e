"""A study from points to rows, with real worker processes and real faults."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest

from spectrum import load_results, load_study, run_study
from spectrum.cli import main
from spectrum.results import load_history
from spectrum.study import doctor
from spectrum.study.checkpoint_files import name_of
from spectrum.study.doctor import look_at
from spectrum.study.engines import Limits, LocalEngine, available_cores, visible_gpus
from spectrum.study.planning import plan_study
from spectrum.study.point import SpecError
from spectrum.study.spec import parse_study
from spectrum.study.store import Store, StoreError, read_rows
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


def slow_study(folder, model="slow", epochs=100):
    """Writes slow.toml: four points, each a step of a twentieth of a second; its path."""
    path = folder / "slow.toml"
    path.write_text(f'[base]\nmodel = "{model}"\ndataset = "digits"\nepochs = {epochs}\n[axes]\nseed = [0, 1, 2, 3]\n')
    return path


def command(folder, *words):
    """The command `spectrum`, started in a folder, in a process group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [sys.executable, "-m", "spectrum", *map(str, words)]
    return subprocess.Popen(words, cwd=folder, text=True, start_new_session=True, **pipes)


def start_slow_run(folder, *more, model="slow", epochs=100):
    """A run of slow points in a process of its own, started; returns when both workers train."""
    path = slow_study(folder, model, epochs)
    run = command(folder, "run", path.name, "--workers", 2, "--import", IMPORTS[0], *more)
    wait_until(lambda: run.poll() is not None or len(list(folder.glob("worker-*"))) == 2, seconds=120)
    assert run.poll() is None, run.communicate()
    return run, [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def children_of(pid):
    """All processes that one has started, by any of its threads."""
    return [
        int(child) for listed in Path(f"/proc/{pid}/task").glob("*/children") for child in listed.read_text().split()
    ]


def hashes_of(folder):
    return {row["seed"]: row["weights_sha256"] for row in read_rows(folder)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The hashes that the points of slow_study(epochs=6) end with; a quick model with the same weights."""
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
    assert not (folder / "checkpoints").exists(), "nothing is kept of points that have ended"
    assert [found.said for found in look_at(folder) if found.fault] == []


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
@pytest.mark.skipif(available_cores() < 2, reason="one worker has as many threads as two")
def test_a_row_says_with_how_many_threads_it_began(study_folder, undisturbed):
    run, _ = start_slow_run(study_folder, epochs=6)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    folder = study_folder / "results" / "slow"
    run_study(load_study(study_folder / "slow.toml"), folder, workers=1, imports=IMPORTS)
    resumed = [row["provenance"]["resumed"] for row in read_rows(folder) if "resumed" in row["provenance"]]
    assert [times[0]["before"] for times in resumed] == [{"threads": LocalEngine(2).threads}] * 2
    assert {row["provenance"]["threads"] for row in read_rows(folder)} == {LocalEngine(1).threads}
    assert any("went on in another environment" in found.said for found in look_at(folder))


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
        summary = run_study(study, workers=1, imports=IMPORTS, limits=Limits(minutes=minutes))
    finally:
        ended.set()
        jumper.join()
    (row,) = read_rows(summary.folder)
    assert shift == seconds
    assert row["status"] == status
    assert status == "done" or row["reason"].startswith("took more than 0.25 minutes")


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
            ("status", f"a run is training: process {run.pid} on"),
            ("doctor", f"process {run.pid} on {socket.gethostname()} writes here now"),
        ):
            look = command(study_folder, name, "slow.toml", "--import", IMPORTS[0])
            said, error = look.communicate(timeout=60)
            assert (look.returncode, error) == (0, ""), said
            assert told in said
        folder, looks = study_folder / "results" / "slow", 0
        while run.poll() is None:  # however often, and whatever comes and goes meanwhile
            assert [found.said for found in look_at(folder) if found.fault] == []
            looks += 1
        assert looks > 10
        assert run.returncode == 0, run.communicate()
    finally:
        run.kill()
        run.communicate()
        wait_until_gone(workers, seconds=5)
    assert sorted(row["seed"] for row in read_rows(folder)) == [0, 1, 2, 3]
    assert look_at(folder) == []


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
    (study_folder / "tiny.toml").write_text(
        '[base]\nmodel = "linear"\ndataset = "digits"\ntrain_images = 100\nepochs = 2\n[axes]\nseed = [0, 1, 2, 3]\n'
    )
    said = ["run", "tiny.toml", "--workers", "1", "--import", IMPORTS[0]]
    done = mount(FILL.replace("PAGES", str(pages)), *said)
    assert done.returncode != 0, done
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(r"spectrum: results/tiny\S*: .*No space left on device\)?", last)
    folder = study_folder / "kept" / "tiny"
    whole = read_rows(folder)
    summary = run_study(load_study(study_folder / "tiny.toml"), folder, workers=1, imports=IMPORTS)
    assert (summary.set_aside, summary.reused, summary.trained) == (0, len(whole), 4 - len(whole))
    assert [found.said for found in look_at(folder) if found.fault] == []


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "being removed"])
def test_a_point_that_ends_while_its_folder_is_looked_at_is_no_fault(tmp_path, monkeypatch, gone):
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
        store.freeze({"hash": "h", "points": [{"id": "a"}, {"id": "b"}]})
        assert [found.said for found in look_at(tmp_path) if found.fault] == []
    assert first.exists()
    assert second.parent.exists() != gone


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
    hostile, reused = ({"id": one, "status": "done"} for one in (id.format(victim=victim), study.points()[0].id))
    (folder / "results.jsonl").write_text(f"{json.dumps(hostile)}\n{json.dumps(reused)}\n")
    before = folders_below(study_folder)
    summary = run_study(study, imports=IMPORTS)
    assert (summary.total, summary.reused) == (1, 1)
    assert folders_below(study_folder) == before
    assert {path.parent.name for path in study_folder.rglob("file")} == {"below", "part-way", "other"}
    assert read_rows(folder) == [hostile, reused]


@pytest.mark.slow
def test_a_row_torn_in_half_is_set_aside_and_trained_again(study_folder, capsys):
    (study_folder / "tiny.toml").write_text(
        '[base]\nmodel = "linear"\ndataset = "digits"\ntrain_images = 100\nepochs = 2\n[axes]\nseed = [0, 1]\n'
    )
    words = ["run", "tiny.toml", "--workers", "2", "--import", IMPORTS[0]]
    assert main(words) == 0
    path = study_folder / "results" / "tiny" / "results.jsonl"
    whole = hashes_of(path.parent)
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: len(last) // 2])
    capsys.readouterr()

    assert main(words) == 0
    shown = capsys.readouterr()
    assert "1 torn or garbled lines were moved to results/tiny/results.bad" in shown.err
    assert "1 of 2 points had a result already and were reused" in shown.out
    assert len(read_rows(path.parent)) == 2
    assert hashes_of(path.parent) == whole
    assert [found.said for found in look_at(path.parent) if found.fault] == []
    assert (path.parent / "results.bad").read_bytes() == last[: len(last) // 2] + b"\n"


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

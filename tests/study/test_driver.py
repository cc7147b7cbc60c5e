"""A study from runs to rows, with real worker processes."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spectrum import load_results, run_study
from spectrum._records import SpecError
from spectrum.data.pixels import DataError
from spectrum.design.run import RunConfig
from spectrum.design.study_file import parse_study
from spectrum.engines.attempts import Attempts, died
from spectrum.engines.cores import available_cores
from spectrum.engines.interface import Work
from spectrum.engines.local import LocalEngine, Workers
from spectrum.engines.saving import Saving
from spectrum.results import load_history
from spectrum.study.driver import in_random_blocks
from spectrum.study.planning import plan_study
from spectrum.study.store import StoreError, read_plan, read_rows
from spectrum.training.checkpoint_files import name_of
from tests.data.stored import random_pixels, write_folder
from tests.registries import restored
from tests.runs import (
    IMPORTS,
    TINY,
    tiny,
)


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


@pytest.mark.parametrize("said", [{"train_images": 10_000}, {"validation_fraction": 0.99}], ids=str)
def test_more_training_images_than_there_are_are_refused_before_anything_is_written(study_folder, said):
    with pytest.raises(DataError, match=r"train_images=\d+: only \d+ are left after the validation split"):
        run_study(tiny(base=said))
    assert not list(study_folder.iterdir())


def workers(**work):
    return Workers(Work(**{"device": "cpu"} | work))


@pytest.fixture
def unlimited(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("unlimited")
def test_an_engine_shares_the_cores_between_its_workers():
    assert (workers().workers, workers().threads) == (available_cores(), 1)
    assert workers(device="cuda").workers == 1
    assert workers(workers=1).threads == available_cores()
    assert workers(workers=10_000).threads == 1


@pytest.mark.parametrize(("asked", "limit"), [("1", 1), ("3", 3), ("1,4", 1), ("64", 8), ("", 8), ("0", 8), ("all", 8)])
def test_omp_num_threads_is_the_most_threads_of_a_worker(monkeypatch, asked, limit):
    monkeypatch.setattr("spectrum.engines.local.available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert workers(workers=1).threads == limit
    assert workers(workers=8).threads == 1


@pytest.mark.usefixtures("unlimited")
def test_cores_that_a_small_study_has_no_runs_for_go_to_its_runs():
    cores = available_cores()
    assert workers(runs=1).threads == cores
    assert workers(workers=4, runs=2).threads == max(1, cores // 2)
    assert workers(workers=2, runs=100).threads == workers(workers=2).threads


@pytest.mark.medium
@pytest.mark.skipif(available_cores() < 2, reason="one worker has as many threads as two")
def test_the_number_of_threads_goes_by_the_study_and_not_by_what_is_left_of_it(study_folder):
    cores = available_cores()
    base = {"model": "linear", "width": 1.0}
    run_study(tiny(base=base, axes={"seed": [0]}), "one", imports=IMPORTS)
    run_study(tiny(base=base, axes={"seed": list(range(cores))}), "all", imports=IMPORTS)
    (row,) = read_rows(study_folder / "one")
    assert row["provenance"]["threads"] == cores
    path = study_folder / "all" / "results.jsonl"
    *kept, _ = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept))
    run_study(tiny(base=base, axes={"seed": list(range(cores))}), "all", imports=IMPORTS)
    assert [row["provenance"]["threads"] for row in read_rows(study_folder / "all")] == [1] * cores


@pytest.mark.medium
def test_an_engine_can_be_used_again_after_a_stop(tmp_path, study_folder):
    engine, work = LocalEngine(), Work(workers=1, device="cpu", imports=IMPORTS, folder=tmp_path)
    slow, quick = (RunConfig(**TINY | {"model": name, "width": 1.0, "epochs": 100}) for name in ("slow", "linear"))
    stopped = engine.run([quick, slow], work)
    assert next(stopped).result is not None
    stopped.close()
    (outcome,) = engine.run([quick], work)
    assert outcome.reason is None
    assert outcome.result["status"] == "done"


def test_attempts_count_as_long_as_they_leave_no_newer_checkpoint(tmp_path):
    saving, run = Saving(tmp_path), RunConfig(**TINY)
    folder = saving.checkpoints_of(run.id)
    folder.mkdir(parents=True)

    def reach(step):
        (folder / name_of(step, b"")).touch()

    reach(5)
    attempts = Attempts.at(run, saving)
    assert [attempts.again(run, saving) for _ in range(3)] == [True, True, False], "an old checkpoint is no progress"
    attempts = Attempts.at(run, saving)
    for step in (6, 9, 12, 13):
        assert attempts.again(run, saving)
        assert attempts.again(run, saving)
        reach(step)
        assert attempts.again(run, saving)
    assert attempts.begun == 13
    assert [attempts.again(run, saving) for _ in range(3)] == [True, True, False]
    assert died(attempts.begun, "a signal") == (
        "the worker process died 15 times, the last 3 without a newer checkpoint, last with a signal"
    )
    shutil.rmtree(folder)
    assert not attempts.again(run, saving), "what is gone is no progress"


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_but_gets_on_is_not_given_up(study_folder):
    study = tiny(base={"model": "dies_after_three_steps", "width": 1.0, "epochs": 8}, axes={"seed": [0]})  # 16 steps
    summary = run_study(study, "kept", workers=1, imports=IMPORTS, checkpoint_minutes=0)
    (row,) = read_rows(summary.folder)
    assert (row["status"], row["attempts"]) == ("done", 6)
    lost = run_study(study, "lost", workers=1, imports=IMPORTS, checkpoint_minutes=1e6)
    (row,) = read_rows(lost.folder)
    assert row["reason"].startswith("the worker process died 3 times, last with")


def test_runs_are_trained_in_blocks_of_a_seed_in_random_order_that_can_be_repeated():
    study = tiny(axes={"segments": [1, 2, 3, 4, 5, 6, 7, 8], "seed": [2, 0, 1]})
    runs = [one.run for one in study.wanted()]
    ordered = in_random_blocks(runs)
    blocks = [[run.segments for run in ordered[start : start + 8]] for start in (0, 8, 16)]
    assert [run.seed for run in ordered] == sorted(run.seed for run in runs)
    assert all(sorted(block) == list(range(1, 9)) and block != sorted(block) for block in blocks)
    assert len(set(map(tuple, blocks))) == 3
    assert in_random_blocks(runs[::-1]) == ordered


@pytest.mark.medium
def test_a_study_runs_once_and_is_reused_then(study_folder):
    study = tiny(axes={"segments": [1, "per_channel"], "seed": [0, 1]})
    seen = []
    first = run_study(study, workers=2, on_progress=seen.append)
    assert (first.total, first.reused, first.trained, first.failed) == (4, 0, 4, 0)
    assert [standing.left for standing in seen] == [4, 3, 2, 1, 0]

    folder = study_folder / "results" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"plan.json", "results.jsonl", "history.jsonl", ".writer"}
    rows = read_rows(folder)
    assert {row["id"] for row in rows} == {run.id for run in study.runs()}
    needed = (
        "id study status dataset model width segments segment_width pointwise order activation norm residual lr seed "
        "match params macs budget_mismatch train_seconds val_accuracy test_accuracy weights_sha256"
    ).split()
    table = load_results(folder)
    assert set(needed) <= set(table.columns)
    assert table["test_accuracy"].between(0, 1).all()
    assert set(table["provenance"][0]) >= {"torch", "threads", "device", "lowering", "revision", "data_fingerprint"}
    on_cuda = table["provenance"][0]["device"] == "cuda"
    assert ({"card", "cuda", "cudnn", "tf32"} <= set(table["provenance"][0])) == on_cuda
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
    assert len(load_results(folder, all_runs=True)) == 6
    assert len(list(folder.glob("plan*.json"))) == 2

    # The same run gives the same weights, in whichever process and beside whatever else it is trained.
    elsewhere = run_study(study, study_folder / "elsewhere", workers=2)
    assert elsewhere.trained == 4
    hashes = [{row["id"]: row["weights_sha256"] for row in read_rows(f)} for f in (folder, study_folder / "elsewhere")]
    assert hashes[1].items() <= hashes[0].items()


@pytest.mark.medium
def test_one_bad_run_stops_no_other(study_folder):
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


@pytest.mark.medium
def test_a_diverged_run_is_a_result(study_folder):
    study = tiny(base={"lr": 1e30}, axes={"segments": [1]})
    summary = run_study(study, workers=1)
    (row,) = read_rows(summary.folder)
    assert (summary.diverged, summary.failed) == (1, 0)
    assert row["status"] == "diverged"
    assert row["test_accuracy"] == row["val_accuracy"] == 0.1
    assert row["test_loss"] is None
    assert run_study(study, workers=1).reused == 1


@pytest.mark.medium
def test_workers_that_die_while_they_start_are_given_up_with_the_reason(study_folder, monkeypatch):
    monkeypatch.setenv("SPECTRUM_TEST_IMPORT", "dies")
    study = parse_study({"base": TINY | {"model": "linear"}, "axes": {"seed": [0, 1]}}, "dying")
    summary = run_study(study, workers=2, imports=IMPORTS)
    assert summary.failed == 2
    assert all("died 3 times" in row["reason"] for row in read_rows(summary.folder))
    monkeypatch.delenv("SPECTRUM_TEST_IMPORT")
    assert run_study(study, workers=2, imports=IMPORTS).trained == 2


@pytest.mark.medium
def test_a_script_without_a_guard_is_told_so(study_folder):
    (study_folder / "script.py").write_text(
        "from spectrum import RunConfig, Study, run_study\n"
        f"run_study(Study(name='x', base=RunConfig(**{TINY!r})), workers=1)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=250)
    assert done.returncode != 0
    assert 'below `if __name__ == "__main__":`' in done.stderr


@pytest.mark.medium
def test_an_axis_of_lists_gives_a_report(study_folder):
    from spectrum.analysis.summary import summary_table

    base = {name: value for name, value in TINY.items() if name != "width"}
    summary = run_study(parse_study({"base": base, "axes": {"widths": [[4, 8], [8, 16]]}}, "lists"), workers=2)
    assert list(summary_table(load_results(summary.folder))["widths"]) == [(4, 8), (8, 16)]


def test_a_number_of_minutes_that_cannot_be_is_refused(study_folder):
    with pytest.raises(SpecError, match="checkpoint_minutes: input should be greater than or equal to 0"):
        run_study(tiny(), checkpoint_minutes=-1)
    assert not list(study_folder.iterdir())


@pytest.mark.medium
def test_rows_of_other_images_are_not_mixed_in(study_folder):
    study = tiny()
    summary = run_study(study, workers=2)
    path = summary.folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["provenance"]["data_fingerprint"] = "0" * 16
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(StoreError, match="trained on other images of 'digits'"):
        run_study(tiny(axes={"segments": [1, 2, "per_channel"]}), summary.folder, workers=1)


@pytest.mark.medium
def test_a_folder_that_grew_since_its_plan_is_planned_anew(data_root):
    """The plan of a run that was interrupted before its first row, with the images of the next run."""

    def stop(progress):
        raise KeyboardInterrupt

    base = {"dataset": "./flowers", "image_size": 8, "train_images": 30, "batch_size": 10}
    study = tiny(base=base, axes={"segments": [1]})
    write_folder(Path("flowers"), random_pixels(60), ["a", "b"])
    with pytest.raises(KeyboardInterrupt):
        run_study(study, "out", on_progress=stop)
    before = read_plan(Path("out"))
    write_folder(Path("flowers"), random_pixels(90, seed=1), ["a", "b", "c"])
    assert run_study(study, "out", workers=1).failed == 0
    (row,), after = read_rows(Path("out")), read_plan(Path("out"))
    (network,) = plan_study(study)
    assert row["params"] == network.params == after.runs[0].params > before.runs[0].params
    (known,) = after.images
    assert known["fingerprint"] == row["provenance"]["data_fingerprint"] != before.images[0]["fingerprint"]
    assert known["classes"] == ["a", "b", "c"]
    assert known["test"].startswith("a fixed sixth of the training files")


def test_a_module_that_cannot_be_imported_is_named(study_folder):
    with pytest.raises(SpecError, match="--import no_such_module"):
        run_study(tiny(), imports=["no_such_module"])


@pytest.mark.slow
def test_images_that_change_during_a_run_stop_it_and_are_not_mixed_in(study_folder, monkeypatch):
    root = study_folder / "data"
    write_folder(root / "flowers" / "train", random_pixels(60), ["a", "b"])
    write_folder(root / "flowers" / "test", random_pixels(6, seed=1), ["a", "b"])
    monkeypatch.setenv("SPECTRUM_DATA", str(root))
    monkeypatch.setenv("SPECTRUM_CACHE", str(study_folder / "cache"))
    base = {"model": "linear", "dataset": "flowers", "train_images": 40, "batch_size": 20, "width": 1.0}
    cases = [{"seed": 0}, {"seed": 1, "model": "dies_once"}, {"seed": 2}, {"seed": 3}]  # a new process reads anew
    study = parse_study({"base": TINY | base, "cases": cases}, "changing")

    def change(standing):
        if standing.done == 1:
            write_folder(root / "flowers" / "train", random_pixels(60, seed=5), ["a", "b"])

    with pytest.raises(StoreError, match="images of 'flowers' changed during the run: fingerprint") as stopped:
        run_study(study, workers=1, imports=IMPORTS, on_progress=change)
    rows = read_rows(study_folder / "results" / "changing")
    assert all(row["status"] == "done" for row in rows[:-1])
    (known,) = {row["provenance"]["data_fingerprint"] for row in rows[:-1]}
    assert rows[-1]["status"] == "failed"
    assert rows[-1]["reason"] in str(stopped.value)
    before, now = re.search(r"fingerprint (\w+) before, (\w+) now", rows[-1]["reason"]).groups()
    assert before == known != now
    assert "provenance" not in rows[-1]


@pytest.mark.medium
def test_an_option_that_came_since_does_not_change_a_frozen_plan(study_folder):
    study, path = tiny(axes={"segments": [1]}), study_folder / "out" / "plan.json"
    run_study(study, "out", workers=1)
    plan = json.loads(path.read_text())
    del plan["base"]["stem_stride"]  # as a version without it wrote it
    path.write_text(text := json.dumps(plan, indent=1) + "\n")
    assert run_study(study, "out", workers=1).reused == 1
    assert path.read_text() == text


def test_a_preferred_backend_which_workers_would_not_know_of_is_refused(study_folder):
    from spectrum import prefer_backend

    with prefer_backend("native"), pytest.raises(SpecError, match="SPECTRUM_BACKEND=native"):
        run_study(tiny(), workers=1, device="cpu")
    assert not list(study_folder.iterdir())


OWN_BACKENDS = """
from spectrum import Backend, register_backend
from spectrum.conv.backends.native import native

class Mine(Backend):
    def convolve(self, x_nchw, weights, geometry):
        return native(x_nchw, weights, geometry)

class Wrong(Backend):
    def convolve(self, x_nchw, weights, geometry):
        return x_nchw[:, :1]

register_backend("mine", Mine)
register_backend("wrong", Wrong)
"""


@pytest.fixture
def own_backends(study_folder, monkeypatch):
    from spectrum.conv.backends.choice import BACKENDS

    restored(monkeypatch, BACKENDS)
    (study_folder / "own_backends.py").write_text(OWN_BACKENDS)
    monkeypatch.syspath_prepend(str(study_folder))
    importlib.import_module("own_backends")
    yield study_folder
    del sys.modules["own_backends"]


@pytest.mark.medium
def test_workers_find_the_backend_that_the_environment_names(own_backends, monkeypatch):
    monkeypatch.setenv("SPECTRUM_BACKEND", "mine")
    run_study(tiny(), "out", workers=1, device="cpu")
    rows = load_results("out")
    assert set(rows["status"]) == {"done"}
    assert {row["lowering"] for row in rows["provenance"]} == {"mine"}
    assert json.loads((own_backends / "out/plan.json").read_text())["imports"] == ["own_backends"]


@pytest.mark.medium
def test_a_backend_that_is_not_there_is_refused_before_anything_is_trained_plan_or_none(study_folder, monkeypatch):
    run_study(tiny(), "out", workers=1, device="cpu")
    rows = (study_folder / "out/results.jsonl").read_bytes()
    monkeypatch.setenv("SPECTRUM_BACKEND", "mine")
    for study, folder in [(tiny(axes={"segments": [1, 3, "per_channel"]}), "out"), (tiny(), "other")]:
        with pytest.raises(SpecError, match="SPECTRUM_BACKEND=mine: no such backend"):
            run_study(study, folder, workers=1, device="cpu")
    assert (study_folder / "out/results.jsonl").read_bytes() == rows
    assert not (study_folder / "other").exists()


def test_the_plan_says_what_is_wrong_with_a_backend_of_ones_own(own_backends, monkeypatch):
    monkeypatch.setenv("SPECTRUM_BACKEND", "wrong")
    with pytest.raises(SpecError, match="a training step fails: TypeError: backend 'wrong': its convolve gave shape"):
        plan_study(tiny(), time_steps=True)

"""One run on several ranks, with real processes and gloo, against the same run on one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from spectrum import load_model
from spectrum.data.images import images_of
from spectrum.design.run import RunConfig
from spectrum.engines.attempts import ATTEMPTS
from spectrum.engines.interface import Work
from spectrum.engines.torchrun import First
from spectrum.study.store import read_rows
from spectrum.training.checkpoint_files import latest_step, name_of
from spectrum.training.evaluation import hash_weights
from spectrum.training.loop import train
from spectrum.training.ranks import ALONE, share_moments
from spectrum.training.weight_files import WEIGHTS, sha256_of
from tests import faulty_models
from tests.runs import ROOT, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TINY = {"train_images": 200, "batch_size": 40, "epochs": 2, "width": 0.25, "shift": 1, "lr": 0.05}


def torchrun(*said: str, ranks: int = 2, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", *said]
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=cwd, env=os.environ | more, capture_output=True, text=True, check=False)


def trained(folder: Path, run: RunConfig, *more: str, ranks: int = 2) -> list[dict]:
    done = torchrun("tests.training.ranks", "train", str(folder / "out"), run.model_dump_json(), *more, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"out.{rank}.json").read_text()) for rank in range(ranks)]


def test_gradients_and_moments_of_two_ranks_are_those_of_the_whole_batch(tmp_path):
    done = torchrun("tests.training.ranks", "gradients", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("out.*.json"))) == 2


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (2, {"segments": 3, "norm": True}),
        pytest.param(2, {"ema": 0.9}, marks=pytest.mark.cluster),
        pytest.param(4, {"segments": 1, "activation": "relu"}, marks=pytest.mark.cluster),
    ],
)
def test_several_ranks_train_as_one_does_but_for_rounding(more, ranks, tmp_path):
    run = RunConfig(**TINY, **more)
    everyones = trained(tmp_path, run, ranks=ranks)
    assert len({each["weights_sha256"] for each in everyones}) == 1
    alone = train(run, images_of(run))
    for ours, theirs in zip(everyones[0]["history"], alone.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=2e-3)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=2e-2)
    assert everyones[0]["test_images"] == alone.test_images
    assert everyones[0]["test_accuracy"] == pytest.approx(alone.test_accuracy, abs=0.03)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.cluster)])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(ranks, tmp_path):
    run = RunConfig(**TINY, dropout=0.2, ema=0.9, seed=2**31 - 1)
    whole = trained(tmp_path, run, ranks=ranks)[0]
    done = torchrun(
        "tests.training.ranks",
        "train",
        str(tmp_path / "cut"),
        run.model_dump_json(),
        str(tmp_path / "c"),
        "3",
        ranks=ranks,
    )
    assert "Interrupted" in done.stderr
    assert len(list((tmp_path / "c").iterdir())) == 1
    resumed = trained(tmp_path, run, str(tmp_path / "c"), ranks=ranks)
    assert {each["weights_sha256"] for each in resumed} == {whole["weights_sha256"]}
    assert resumed[0]["resumed"][0]["step"] == 3


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    said = RunConfig(**TINY | {"batch_size": 25}).model_dump_json()
    done = torchrun("tests.training.ranks", "train", str(tmp_path / "out"), said)
    assert "batch_size: 25 images cannot be shared equally by 2 ranks" in done.stderr


def test_a_study_is_run_by_torchrun_and_a_run_that_fails_on_all_ranks_holds_up_none(study_folder):
    said = "[base]\n" + "".join(f"{name} = {value}\n" for name, value in TINY.items())
    (study_folder / "s.toml").write_text(
        f"{said}[axes]\nbatch_size = [40, 25]\nseed = [0, 1]\n".replace("batch_size = 40\n", "")
    )
    for tried in (1, 2):
        done = torchrun("spectrum", "run", "s.toml", "--engine", "torchrun", "--keep-weights", cwd=study_folder)
        assert done.returncode != 0  # since runs failed
        rows = read_rows(study_folder / "results/s")
        ended = Counter((row["batch_size"], row["seed"], row["status"]) for row in rows)
        assert ended == {(40, s, "done"): 1 for s in (0, 1)} | {(25, s, "failed"): tried for s in (0, 1)}
        assert {row["provenance"]["ranks"] for row in rows if row["status"] == "done"} == {2}
        assert all("cannot be shared equally" in row["reason"] for row in rows if row["status"] == "failed")
        done = {row["id"]: row["weights_sha256"] for row in rows if row["status"] == "done"}
        kept = (study_folder / "results/s" / WEIGHTS).iterdir()
        assert {path.stem: sha256_of(path.read_bytes()) for path in kept} == done, "the first rank's, once each"
        assert {id: hash_weights(load_model(id, study_folder / "results/s").network) for id in done} == done


@pytest.mark.medium
def test_the_first_failed_run_stops_all_ranks_if_asked_for(study_folder):
    (study_folder / "s.toml").write_text(
        '[base]\nmodel = "fails"\ndataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 1\n'
        "[axes]\nseed = [0, 1]\n"
    )
    words = ["spectrum", "run", "s.toml", "--engine", "torchrun", "--import", faulty_models.__name__]
    done = torchrun(*words, "--stop-on-failure", cwd=study_folder)
    assert done.returncode != 0
    assert "1 run failed, which stopped the study; 1 run left" in " ".join(done.stderr.split())
    assert len(read_rows(study_folder / "results/s")) == 1


@pytest.mark.cluster
def test_a_rank_that_fails_alone_ends_all_and_its_run_is_given_up_at_last(study_folder):
    said = "[base]\n" + "".join(f"{name} = {value}\n" for name, value in TINY.items())
    (study_folder / "s.toml").write_text(
        f'{said}model = "fails_on_rank_1"\n[axes]\nseed = [0]\n'.replace("width = 0.25\n", "")
    )
    words = ["spectrum", "run", "s.toml", "--engine", "torchrun", "--import", faulty_models.__name__]
    done = torchrun(*words, cwd=study_folder)
    assert done.returncode != 0
    assert "rank 1 failed alone and ends; torchrun will end the others: RuntimeError: only here" in done.stderr
    assert not read_rows(study_folder / "results/s")
    (mark,) = (study_folder / "results/s").glob("checkpoints/*/attempt")
    assert mark.read_text() == "1"
    mark.write_text("3")
    assert torchrun(*words, cwd=study_folder).returncode != 0
    (row,) = read_rows(study_folder / "results/s")
    assert row["reason"].startswith("the worker process died 3 times, last with a rank that failed alone")


@pytest.mark.parametrize(
    "layer", [torch.nn.BatchNorm2d(4, momentum=None), torch.nn.BatchNorm2d(4, affine=False), torch.nn.BatchNorm1d(4)]
)
def test_a_normalisation_that_ranks_cannot_share_is_refused(layer):
    with pytest.raises(ValueError, match="rank"):
        share_moments(torch.nn.Sequential(layer))


def test_a_normalisation_of_torchs_keeps_its_parameters_and_stays_one_under_two_names():
    layer = torch.nn.BatchNorm2d(4)
    layer.weight.requires_grad_(False)
    model = torch.nn.ModuleDict({"a": layer, "b": layer})
    share_moments(model)
    assert model["a"] is model["b"]
    assert model["a"].weight is layer.weight
    assert model["a"].running_mean is layer.running_mean


def test_without_torchrun_it_is_said_how_to_start_it(study_folder):
    (study_folder / "s.toml").write_text("[axes]\nseed = [0]\n")
    said = [sys.executable, "-m", "spectrum", "run", "s.toml", "--engine", "torchrun"]
    done = subprocess.run(said, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torchrun --nproc-per-node 2 -m spectrum run FILE" in " ".join(done.stderr.split())


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_ranks_that_are_preempted_again_and_again_save_each_time_and_finish(study_folder):
    (study_folder / "s.toml").write_text('[base]\ndataset = "digits"\nmodel = "slow"\nepochs = 6\n[axes]\nseed = [0]\n')
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spectrum"]
    words += ["run", "s.toml", "--engine", "torchrun", "--import", faulty_models.__name__]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = study_folder / "results/s"
    steps = [0]
    for _ in range(ATTEMPTS + 1):
        for marker in study_folder.glob("worker-*"):
            marker.unlink()
        with subprocess.Popen(words, cwd=study_folder, env=environment, stderr=subprocess.PIPE, text=True) as run:
            wait_until(lambda: run.poll() is not None or len(list(study_folder.glob("worker-*"))) == 2, seconds=200)
            assert run.poll() is None, run.communicate()
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=100)
        (checkpoints,) = (folder / "checkpoints").iterdir()
        steps.append(latest_step(checkpoints))
        assert not (checkpoints / "attempt").exists(), "it was asked to stop, and did not fail"
    assert steps == sorted(set(steps)), "each got on"
    done = torchrun(*words[7:], cwd=study_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = read_rows(folder)
    assert (row["status"], row["attempts"]) == ("done", 1)
    assert [time["step"] for time in row["provenance"]["resumed"]] == steps[1:]


def test_attempts_of_ranks_count_only_without_a_newer_checkpoint(tmp_path):
    run, work = RunConfig(**TINY), Work(device="cpu", folder=tmp_path)
    folder = work.saving.checkpoints_of(run.id)

    def attempts(count):
        return [First(ALONE, work)._attempt(run) for _ in range(count)]

    assert attempts(2) == [1, 2]
    (folder / name_of(10, b"")).touch()
    assert attempts(3) == [1, 2, 3]
    (folder / name_of(20, b"")).touch()
    assert attempts(4) == [1, 2, 3, 4]
    (folder / "attempt").write_text("garbled")
    assert attempts(1) == [1]
    shutil.rmtree(tmp_path)
    tmp_path.write_text("in the way of the folder")
    assert attempts(4) == [1] * 4, "what cannot be counted is not"

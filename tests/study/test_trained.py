"""Trained networks come back from a study as they were scored, and a missing or foreign file is noticed."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from spectrum import load_model, load_results, run_study
from spectrum._records import SpecError
from spectrum.cli import main
from spectrum.data.images import images_of
from spectrum.engines.interface import Engine, EngineError, Outcome
from spectrum.engines.worker import train_one
from spectrum.models.weights import weights_as_bytes
from spectrum.study.doctor import look_at, repair
from spectrum.study.store import StoreError, read_rows
from spectrum.training.evaluation import hash_weights
from spectrum.training.weight_files import KEPT, TYPES, WEIGHTS, sha256_of
from tests.runs import IMPORTS, tiny

TYPES_OF_TORCH = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


class OneByOne(Engine):
    """Runs in this process."""

    starts_processes = False

    def run(self, runs, work):
        for run in runs:
            yield Outcome(run, train_one(run, work, 1), None, 1)


@pytest.fixture
def kept(study_folder):
    """Four runs with their networks; two score an exponential average of their weights."""
    cases = ({"ema": 0.9}, {"ema": 0.0})
    run_study(tiny(cases=cases), "kept", engine=OneByOne(), device="cpu", keep_weights=True)
    return study_folder / "kept"


def of(folder, finding):
    return [one.message for one in look_at(folder) if one.fault == (finding == "fault") and "weights" in one.message]


def correct(model, run):
    images = images_of(run)
    x_nchw = images.test_x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return int((model(x_nchw).argmax(1) == images.test_y).sum())


def test_a_loaded_network_is_right_about_the_images_that_the_row_says(kept):
    results = load_results(kept)
    assert len(results) == 4
    for _, row in results.iterrows():
        before = torch.get_rng_state()
        model = load_model(row)
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(module.training for module in model.modules())
        assert correct(model, model.run) == round(row["test_accuracy"] * row["test_images"])
        assert hash_weights(model.network) == row["weights_sha256"]
        assert (model.input_shape, model.classes) == ((1, 8, 8), tuple("0123456789"))
        x_nchw = images_of(model.run).test_x[:3]
        assert torch.equal(model(x_nchw), model(x_nchw.float())), "pixels of any type"
        assert torch.equal(model(x_nchw), model.network(model.normalise(x_nchw)))


def test_keeping_weights_changes_no_id_hash_or_result(kept, study_folder):
    run_study(tiny(cases=({"ema": 0.9}, {"ema": 0.0})), "plain", engine=OneByOne(), device="cpu")
    plain = read_rows(study_folder / "plain")
    same = ("id", "weights_sha256", "test_accuracy", "val_loss")
    assert [[row[name] for name in same] for row in plain] == [[row[name] for name in same] for row in read_rows(kept)]
    plans = [json.loads((folder / "plan.json").read_text()) for folder in (kept, study_folder / "plain")]
    assert plans[0] == plans[1]
    assert not (study_folder / "plain" / WEIGHTS).exists()
    with pytest.raises(StoreError, match=r"kept no weights; train it with keep_weights=True \(spectrum run FILE"):
        load_model(plain[0]["id"], study_folder / "plain")


@pytest.mark.medium
def test_worker_processes_keep_the_same_networks_and_a_rerun_replaces_none(kept, study_folder):
    study = tiny(cases=({"ema": 0.9}, {"ema": 0.0}))
    run_study(study, "workers", workers=2, device="cpu", keep_weights=True)
    files = {path.name: path.read_bytes() for path in sorted((study_folder / "workers" / WEIGHTS).iterdir())}
    assert files == {path.name: path.read_bytes() for path in sorted((kept / WEIGHTS).iterdir())}
    times = {path: path.stat().st_mtime_ns for path in (study_folder / "workers" / WEIGHTS).iterdir()}
    notes = []
    assert run_study(study, "workers", keep_weights=True, on_note=notes.append).reused == 4
    assert {path: path.stat().st_mtime_ns for path in (study_folder / "workers" / WEIGHTS).iterdir()} == times
    assert not notes


@pytest.mark.medium
def test_a_run_whose_worker_dies_keeps_the_network_of_its_last_attempt(study_folder):
    study = tiny(base={"model": "dies_once", "width": 1.0}, axes={"seed": [0]})
    run_study(study, "out", workers=1, imports=IMPORTS, checkpoint_minutes=0, keep_weights=True)
    (row,) = read_rows(study_folder / "out")
    assert row["attempts"] == 2
    model = load_model(row["id"], "out", imports=IMPORTS)
    assert correct(model, model.run) == round(row["test_accuracy"] * row["test_images"])


def test_finished_runs_without_networks_are_said(kept, study_folder):
    notes = []
    run_study(tiny(), "late", engine=OneByOne(), device="cpu")
    run_study(tiny(), "late", engine=OneByOne(), device="cpu", keep_weights=True, on_note=notes.append)
    assert notes == [
        "keep_weights: finished runs in late that were trained without it, and whose networks are lost: 2. "
        "Another --out trains them again."
    ]


def test_a_sweep_keeps_no_networks(study_folder):
    study = tiny(axes={"segments": [1]}, tune={"lr": [0.05, 0.1]})
    run_study(study, "tuned", engine=OneByOne(), device="cpu", keep_weights=True, confirm=True)
    rows = read_rows(study_folder / "tuned")
    assert [KEPT in row["provenance"] for row in rows] == [row["scored_on"] == "test" for row in rows]
    assert [path.stem for path in (study_folder / "tuned" / WEIGHTS).iterdir()] == [rows[-1]["id"]]


def test_a_diverged_run_keeps_no_network(study_folder):
    run_study(tiny(base={"lr": 1e20}, axes={"seed": [0]}), "out", engine=OneByOne(), device="cpu", keep_weights=True)
    (row,) = read_rows(study_folder / "out")
    assert row["status"] == "diverged"
    with pytest.raises(StoreError, match="diverged, and weights of such a run are not kept"):
        load_model(row["id"], "out")


def test_the_doctor_and_status_say_their_number_and_size(kept, capsys):
    size = sum(path.stat().st_size for path in (kept / WEIGHTS).iterdir())
    assert of(kept, "note") == [f"weights/ holds 4 trained networks, {size / 1000:.1f} kB"]
    assert of(kept, "fault") == []
    assert main(["status", str(kept)]) == 0
    assert f"  4 trained networks kept, {size / 1000:.1f} kB\n" in capsys.readouterr().out


def damaged(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    return f"weights/{path.name}: holds other weights than those that its row records"


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])
    return f"weights/{path.name}: is not a file of weights (ValueError: it is incomplete)"


def emptied(path):
    path.write_bytes(b"")
    return f"weights/{path.name}: is not a file of weights (JSONDecodeError"


def swapped(path):
    other = next(one for one in sorted(path.parent.iterdir()) if one != path)
    path.write_bytes(other.read_bytes())
    return f"weights/{path.name}: holds other weights than those that its row records"


def removed(path):
    path.unlink()
    return f"weights/ lacks the trained networks of 1 run ({path.stem})"


@pytest.mark.parametrize("harm", [damaged, cut, emptied, swapped, removed])
def test_a_file_that_is_not_what_its_row_says_is_a_fault_and_is_not_loaded(kept, harm):
    path = sorted((kept / WEIGHTS).iterdir())[0]
    message = harm(path)
    (fault,) = of(kept, "fault")
    assert fault.startswith(message)
    before = {one.name: one.read_bytes() for one in (kept / WEIGHTS).iterdir()}
    repair(kept, look_at(kept))
    assert {one.name: one.read_bytes() for one in (kept / WEIGHTS).iterdir()} == before, "nothing is repaired silently"
    with pytest.raises(StoreError, match="restore it, or train it with keep_weights=True"):
        load_model(path.stem, kept)
    assert load_model(sorted((kept / WEIGHTS).iterdir())[-1].stem, kept)


def test_a_foreign_file_and_a_folder_that_was_left_behind_are_notes(kept):
    (kept / WEIGHTS / "other.safetensors").write_bytes(b"")
    assert "weights/other.safetensors: belongs to no run with a row that says of it" in of(kept, "note")
    (kept / WEIGHTS).rename(kept / "elsewhere")
    assert of(kept, "fault") == []
    (note,) = of(kept, "note")
    assert note.startswith("weights/ is missing, with the trained networks of 4 runs (")


def test_of_a_run_that_finished_twice_the_first_row_counts(kept):
    rows = read_rows(kept)
    with (kept / "results.jsonl").open("a") as file:
        file.write(json.dumps(rows[0] | {"weights_sha256": "0" * 64}) + "\n")
    assert of(kept, "note")[0].startswith("weights/ holds 4 trained networks")
    assert load_model(rows[0]["id"], kept).row["weights_sha256"] == rows[0]["weights_sha256"]


def test_a_half_written_file_is_removed_and_others_are_left(kept):
    half, own = kept / WEIGHTS / ".abc.safetensors.123", kept / WEIGHTS / ".gitignore"
    half.write_bytes(b"")
    own.write_bytes(b"")
    run_study(tiny(cases=({"ema": 0.9}, {"ema": 0.0})), kept, engine=OneByOne(), device="cpu")
    assert not half.exists()
    assert own.exists()


def test_wrong_arguments_are_refused_by_name(kept, study_folder):
    row = load_results(kept).iloc[0]
    for wrong in (3, None, "", "../kept", load_results(kept)):
        with pytest.raises(SpecError, match="expected a row of load_results, or the id of a run"):
            load_model(wrong, kept)
    with pytest.raises(SpecError, match="comes without its folder; give it"):
        load_model(dict(row))
    with pytest.raises(StoreError, match="has no row of run 0000000000000000; take an id of load_results"):
        load_model("0" * 16, kept)
    with pytest.raises(StoreError, match="no such folder"):
        load_model(row, "nowhere")
    with pytest.raises(SpecError, match="device=nowhere: torch cannot use it"):
        load_model(row, device="nowhere")


def test_a_row_of_a_model_of_ones_own_needs_its_module(study_folder):
    study = tiny(base={"model": "linear", "width": 1.0}, axes={"seed": [0]}, **{"import": IMPORTS[0]})
    run_study(study, "out", engine=OneByOne(), device="cpu", keep_weights=True)
    (row,) = read_rows(study_folder / "out")
    model = load_model(row["id"], "out", imports=IMPORTS)
    assert correct(model, model.run) == round(row["test_accuracy"] * row["test_images"])
    path = study_folder / "out" / "results.jsonl"
    path.write_text(path.read_text().replace('"linear"', '"unknown"'))
    with pytest.raises(StoreError, match=f"model='unknown': unknown.*its study imports {IMPORTS[0]}"):
        load_model(row["id"], "out")
    row["provenance"]["model_code"] = "0" * 16
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(StoreError, match="was trained with another version of the module of 'linear'"):
        load_model(row["id"], "out")


def test_a_row_whose_options_changed_is_refused(kept):
    path, id = kept / "results.jsonl", read_rows(kept)[0]["id"]
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": 3'))
    with pytest.raises(StoreError, match=r"have id .* here; its row has changed"):
        load_model(id, kept)


class NoWeights(OneByOne):
    def run(self, runs, work):
        for outcome in super().run(runs, work):
            yield replace(outcome, result=outcome.result | {"weights": None})


class OtherWeights(OneByOne):
    def run(self, runs, work):
        for outcome in super().run(runs, work):
            yield replace(outcome, result=outcome.result | {"weights": weights_as_bytes(nn.Linear(2, 2))})


@pytest.mark.parametrize(
    ("engine", "why"),
    [(NoWeights, "its result has no weights to keep"), (OtherWeights, "are not those of its weights_sha256")],
)
def test_an_engine_that_gives_no_or_other_weights_is_refused(study_folder, engine, why):
    with pytest.raises(EngineError, match=why):
        run_study(tiny(), "out", engine=engine(), device="cpu", keep_weights=True)
    assert not read_rows(study_folder / "out")


@pytest.mark.parametrize("dtype", TYPES_OF_TORCH, ids=str)
def test_the_hash_of_a_file_is_that_of_the_network(dtype):
    model = nn.BatchNorm2d(5)
    model.register_buffer("own", torch.ones(3, 0, dtype=dtype))
    model.register_buffer(
        "more", torch.arange(24).reshape(2, 3, 2, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    )
    assert sha256_of(weights_as_bytes(model)) == hash_weights(model)
    assert str(dtype).removeprefix("torch.") in TYPES.values()


def test_a_tensor_that_two_layers_share_is_in_the_file_of_both():
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.ReLU(), first)
    assert sha256_of(weights_as_bytes(model)) == hash_weights(model)

"""Faults of a folder are named, repairs repair them, and an intact folder has none."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spectrum.cli import main
from spectrum.design.run import RunConfig
from spectrum.study.doctor import look_at, repair
from spectrum.study.store import Store, StoreError, bad_lines, read_rows, writer_of
from spectrum.training.checkpoint_files import CHECKPOINTS, checkpoint_files, name_of
from tests.plans import plan_of

RESULTS = Path(__file__).parents[2] / "results"
SEEN = {"torch": "2", "processor": "AVX2", "device": "cpu", "threads": 1, "layout": "channels_last", "lowering": "auto"}
IDS = [f"{number:016x}" for number in range(4)]


def row(id: str, **said: Any) -> dict[str, Any]:
    provenance = SEEN | {"revision": "a", "data_fingerprint": "f"} | said.pop("provenance", {})
    run = RunConfig().model_dump(mode="json") | {"epochs": 2}
    return run | {"id": id, "status": "done", "weights_sha256": id, "provenance": provenance} | said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs: two have their rows, one is part-way, one is left."""
    with Store(tmp_path) as store:
        store.freeze(plan_of({"hash": "h", "points": [{"id": id} for id in IDS]}))
        for id in IDS[:2]:
            store.append_history({"id": id, "epoch": epoch} for epoch in (1, 2))
            store.append(row(id))
    for step in (5, 9):
        checkpoint(tmp_path, IDS[2], step)
    return tmp_path


def checkpoint(folder: Path, id: str, step: int) -> Path:
    data = f"of {id} at {step}".encode()
    path = folder / CHECKPOINTS / id / name_of(step, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def append(folder: Path, *rows: dict[str, Any]) -> None:
    with Store(folder) as store:
        for one in rows:
            store.append(one)


def faults(folder: Path) -> list[str]:
    return [one.message for one in look_at(folder) if one.fault]


def notes(folder: Path) -> list[str]:
    return [one.message for one in look_at(folder) if not one.fault]


def test_a_sound_folder_has_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look_at(folder) == []
    assert main(["doctor", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: 2 rows · 0 faults · 0 notes\n"


@pytest.mark.parametrize("name", ["curve", "activation", "order", "residual", "bsconv", "teacher_pilot"])
def test_the_results_that_are_published_are_sound(name: str) -> None:
    assert faults(RESULTS / name) == []


def test_torn_lines_are_counted_and_moved_away(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("results.jsonl", "history.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"id": "00\n\xff\xfe\n' if name == "results.jsonl" else b'{"id":')
    assert faults(folder) == ["results.jsonl: 2 torn or garbled lines", "history.jsonl: 1 torn or garbled line"]
    assert main(["doctor", str(folder)]) == 1
    assert "fault: results.jsonl: 2 torn or garbled lines (--repair)" in capsys.readouterr().out
    assert bad_lines(folder), "looking changes nothing"

    assert main(["doctor", str(folder), "--repair"]) == 0
    assert "repaired: results.jsonl: 2 torn or garbled lines" in capsys.readouterr().out
    assert not bad_lines(folder)
    assert notes(folder) == ["results.bad: 3 lines set aside earlier"]
    assert {one["id"] for one in read_rows(folder)} == set(IDS[:2])


def test_a_run_that_finished_twice_is_named(folder: Path) -> None:
    append(folder, row(IDS[0]))
    assert faults(folder) == [f"1 run ({IDS[0]}) finished more than once; the first row counts"]
    append(folder, row(IDS[1], weights_sha256="other"))
    assert faults(folder)[0].endswith("1 of them with different weights")


def test_a_failed_run_is_a_fault_until_it_is_done(folder: Path) -> None:
    append(folder, row(IDS[3], status="failed", reason="oom"))
    assert faults(folder) == [f"1 run ({IDS[3]}) failed; run the study again to retry"]
    with Store(folder) as store:
        store.append_history({"id": IDS[3], "epoch": epoch} for epoch in (1, 2))
    append(folder, row(IDS[3]))
    assert faults(folder) == []


def test_a_history_that_lacks_epochs_is_named_but_not_that_of_a_diverged_run(folder: Path) -> None:
    append(folder, row(IDS[2], status="diverged"))
    assert faults(folder) == []
    append(folder, row(IDS[3]))
    assert faults(folder) == [f"history.jsonl lacks epochs of 1 run ({IDS[3]}); their rows are complete"]


def test_rows_of_two_versions_of_one_data_set_are_a_fault(folder: Path) -> None:
    append(folder, row(IDS[2], status="diverged", provenance={"data_fingerprint": "g"}, dataset="cifar10"))
    assert faults(folder) == []
    append(folder, row(IDS[3], status="diverged", provenance={"data_fingerprint": "g"}))
    assert faults(folder) == ["rows come from 2 versions of the data set 'digits'"]


@pytest.mark.parametrize("name", [*SEEN, "revision"])
def test_rows_of_two_environments_are_a_note(folder: Path, name: str) -> None:
    append(folder, row(IDS[3], status="diverged", provenance={name: "other"}))
    assert faults(folder) == []
    (said,) = notes(folder)
    assert said.startswith(f"rows have more than one {name}: ")
    assert "(2), other (1)" in said


def test_what_befell_a_row_is_a_note(folder: Path) -> None:
    troubled = {"resumed": [{"step": 3, "before": {"threads": 2}}], "troubles": ["no checkpoint at step 5: no room"]}
    append(folder, row(IDS[2], status="diverged", provenance=troubled))
    shutil.rmtree(folder / CHECKPOINTS)
    assert notes(folder) == [
        f"1 run ({IDS[2]}) resumed in a different environment",
        f"{IDS[2]}: no checkpoint at step 5: no room",
    ]


def test_rows_of_an_earlier_version_of_the_study_are_a_note(folder: Path) -> None:
    append(folder, row("f" * 16, status="diverged"))
    assert notes(folder) == [f"1 run ({'f' * 16}) not in the plan, so from an earlier version of the study"]


def test_damaged_checkpoints_go_and_whole_ones_stay(folder: Path) -> None:
    (latest, _) = checkpoint_files(folder / CHECKPOINTS / IDS[2])
    latest.path.write_bytes(b"of nothing")
    half = latest.path.parent / ".half.123"
    half.write_bytes(b"of")
    assert faults(folder) == [f"checkpoints/{IDS[2]}: the checkpoint at step 9 is damaged"]
    assert notes(folder) == [f"checkpoints/{IDS[2]}: a partly written file"]
    repair(folder, look_at(folder))
    assert look_at(folder) == []
    assert [file.step for file in checkpoint_files(latest.path.parent)] == [5]
    assert not half.exists()


def test_where_none_is_whole_the_run_starts_anew(folder: Path) -> None:
    for file in checkpoint_files(folder / CHECKPOINTS / IDS[2]):
        file.path.write_bytes(b"")
    assert all(said.endswith("is damaged, so the run starts anew") for said in faults(folder))
    assert len(faults(folder)) == 2


def test_checkpoints_of_a_run_that_has_its_row_go(folder: Path) -> None:
    checkpoint(folder, IDS[0], 3)
    assert notes(folder) == [f"checkpoints/{IDS[0]}: left over from a finished run"]
    repair(folder, look_at(folder))
    assert not (folder / CHECKPOINTS / IDS[0]).exists()
    assert (folder / CHECKPOINTS / IDS[2]).exists()


def test_a_garbled_or_missing_plan_is_a_fault(folder: Path) -> None:
    (folder / "plan.json").write_text("{")
    assert any("plan.json: garbled" in said for said in faults(folder))
    (folder / "plan.json").unlink()
    assert faults(folder) == ["plan.json is missing; the rows are read without it"]


def test_a_run_that_is_writing_is_said_and_not_disturbed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert writer_of(folder) is None
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b"torn\n")
    with Store(folder) as store:
        with (folder / "results.jsonl").open("ab") as file:
            file.write(b"torn\n")
        assert "is writing here now" in notes(folder)[0]
        assert main(["status", str(folder)]) == 0
        said = capsys.readouterr().out
        assert "training now: process" in said
        assert f"part-way: {IDS[2]}, 9 steps saved" in said
        assert main(["doctor", str(folder), "--repair"]) == 2
        assert "another run is writing here" in capsys.readouterr().err
        store.append(row(IDS[3], status="diverged"))
    assert writer_of(folder) is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "is not a results folder" in capsys.readouterr().err


def test_a_row_of_an_early_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps({"id": "a", "status": "done"}) + "\n")
    (tmp_path / "plan.json").write_text(json.dumps({"hash": "h", "points": [{"id": "a"}]}))
    assert look_at(tmp_path) == []


def test_the_store_still_refuses_a_second_writer(folder: Path) -> None:
    with Store(folder), pytest.raises(StoreError, match="another run is writing here"), Store(folder):
        pass


def test_runs_of_one_seed_with_the_same_weights_are_named(folder: Path) -> None:
    append(folder, row(IDS[2], weights_sha256=IDS[0], order="spatial_first"), row(IDS[3], weights_sha256="f", seed=1))
    append(folder, row("f" * 16, weights_sha256="f", seed=2))  # of another seed
    for id in ("d" * 16, "e" * 16):
        append(folder, row(id, status="diverged", weights_sha256="nan"))  # weights that are all NaN are alike
    (said,) = [one for one in notes(folder) if "share their weights" in one]
    assert said == (
        f"2 runs ({IDS[0]}, {IDS[2]}) share their weights with another of the same seed, such as "
        f"{IDS[0]} with {IDS[2]}; the options in which they differ had no effect"
    )


def test_a_study_that_has_not_run_is_no_study_without_faults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("new.toml").write_text('[base]\ndataset = "digits"\n')
    assert main(["doctor", "new.toml"]) == 2
    assert "results/new: no such folder, so the study has not run yet" in " ".join(capsys.readouterr().err.split())

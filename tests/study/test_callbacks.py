"""What trackers are told of a study, and TensorBoard's files: nothing twice, nothing missing, no run lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spectrum import Callback, Study, TensorBoard, load_history, read_runs, run_study
from spectrum._records import SpecError
from spectrum.cli import main
from spectrum.design.study_file import parse_study
from spectrum.study.driver import Summary
from spectrum.study.store import Row, read_rows
from tests.runs import IMPORTS, TINY, tiny
from tests.study.test_stop_on_failure import OneByOne


class Notes(Callback):
    """Notes what it is told, and in which process."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def note(self, name: str, what: Any) -> None:
        assert os.getpid() == PID
        self.told.append((name, what))

    def study_started(self, study: Study, folder: Path, finished: Sequence[Row]) -> None:
        self.folder = folder
        self.note("started", (study.name, [row["id"] for row in finished]))

    def run_ended(self, row: Row, epochs: Sequence[Row]) -> None:
        assert read_rows(self.folder)[-1] == row, "it is told once the row is on disk"
        self.note("ended", (row["id"], [entry["epoch"] for entry in epochs]))

    def run_failed(self, row: Row) -> None:
        assert read_rows(self.folder)[-1] == row
        self.note("failed", (row["id"], row["reason"]))

    def study_ended(self, summary: Summary) -> None:
        self.note("all ended", summary)


PID = os.getpid()


@pytest.mark.medium
@pytest.mark.parametrize("engine", ["local", OneByOne()], ids=["local", "own"])
def test_every_run_is_told_once_in_the_process_of_the_caller(study_folder: Path, engine: Any) -> None:
    study, first, second = tiny(base={"model": "fails_at_three"}, axes={"segments": [1, 3]}), Notes(), Notes()
    summary = run_study(study, engine=engine, imports=IMPORTS, callbacks=[first])
    rows = {row["segments"]: row for row in read_rows(summary.folder)}
    assert first.told[0] == ("started", ("tiny", []))
    assert sorted(first.told[1:3]) == [
        ("ended", (rows[1]["id"], [1, 2])),
        ("failed", (rows[3]["id"], rows[3]["reason"])),
    ]
    assert first.told[3:] == [("all ended", summary)]
    assert "this model never works" in rows[3]["reason"]

    run_study(study, engine=engine, imports=IMPORTS, callbacks=[second])
    assert [name for name, _ in second.told] == ["started", "failed", "all ended"]  # what failed was tried again
    assert second.told[0][1] == ("tiny", [rows[1]["id"]])


class Raises(Callback):
    """A tracker that cannot be reached."""

    def study_started(self, study: Study, folder: Path, finished: Sequence[Row]) -> None:
        raise ConnectionError("no answer")

    def run_ended(self, row: Row, epochs: Sequence[Row]) -> None:
        raise ConnectionError("no answer")

    def study_ended(self, summary: Summary) -> None:
        raise ConnectionError("no answer")


def test_a_callback_that_raises_is_said_and_costs_nothing(study_folder: Path) -> None:
    study, notes, other = tiny(), list[str](), Notes()
    summary = run_study(study, engine=OneByOne(), callbacks=[Raises(), other], on_note=notes.append)
    assert (summary.trained, summary.failed) == (2, 0)
    assert len(read_rows(summary.folder)) == 2
    assert len(load_history(summary.folder)) == 4
    assert [name for name, _ in other.told] == ["started", "ended", "ended", "all ended"]
    ids = [row["id"] for row in read_rows(summary.folder)]
    raised = "raised ConnectionError: no answer; the study goes on"
    assert notes == [
        f"callback Raises.study_started: {raised}",
        *(f"callback Raises.run_ended of run {id}, whose row is on disk: {raised}" for id in ids),
        f"callback Raises.study_ended: {raised}",
    ]
    with pytest.warns(UserWarning, match="raised ConnectionError: no answer"):
        run_study(study, engine=OneByOne(), callbacks=[Raises()])


@pytest.mark.parametrize("wrong", [Notes, print, "tensorboard"])
def test_what_is_no_callback_is_refused_before_anything_is_written(study_folder: Path, wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"callbacks: \w+ is no Callback; give objects whose class is a subclass"):
        run_study(tiny(), callbacks=[wrong])
    assert not list(study_folder.iterdir())


# TensorBoard


def points(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Steps and values of each scalar, by run's folder."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in sorted(folder.iterdir()):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        found[run.name] = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}
    return found


def assert_whole(folder: Path) -> None:
    """Every finished run has one folder, with each epoch of its history once."""
    found, history = points(folder / "tensorboard"), load_history(folder)
    rows = [row for row in read_rows(folder) if row["status"] != "failed"]
    assert len(found) == len(rows)
    for row in rows:
        (name,) = [name for name in found if name.endswith(row["id"])]
        mine = history[history["id"] == row["id"]]
        for column, tag in (("train_loss", "loss/train"), ("val_accuracy", "accuracy/validation"), ("lr", "lr")):
            assert [step for step, _ in found[name][tag]] == list(range(1, row["epochs"] + 1))
            assert [value for _, value in found[name][tag]] == pytest.approx(list(mine[column]))
        assert found[name]["accuracy/test"] == [(row["epochs"], pytest.approx(row["test_accuracy"]))]


def test_curves_are_there_once_whatever_was_there_before(study_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    study = tiny(axes={"segments": [1, 3], "seed": [0, 1]})
    folder = run_study(study, engine=OneByOne(), callbacks=[TensorBoard()]).folder
    assert_whole(folder)
    names = sorted(path.name for path in (folder / "tensorboard").iterdir())
    assert all(name.startswith(("segments=1,seed=", "segments=3,seed=")) for name in names)

    # as a kill between a row and its curves leaves it
    shutil.rmtree(folder / "tensorboard" / names[0])
    (folder / ".tensorboard.part").mkdir()
    (folder / ".tensorboard.part" / "events.out.tfevents.half").write_bytes(b"half")
    with (folder / "history.jsonl").open("a") as history:  # epochs that were written, and whose row was not
        history.write((folder / "history.jsonl").read_text())
    run_study(study, engine=OneByOne(), callbacks=[TensorBoard()])
    assert_whole(folder)
    assert not (folder / ".tensorboard.part").exists()
    assert sorted(path.name for path in (folder / "tensorboard").iterdir()) == names

    table = read_runs(folder / "tensorboard")
    rows = {(row["segments"], row["seed"]): row for row in read_rows(folder)}
    for _, one in table.iterrows():
        row = rows[int(one["segments"]), int(one["seed"])]
        assert one["accuracy/test"] == pytest.approx(row["test_accuracy"])


def test_two_studies_of_one_object_keep_their_own_folders(study_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    writer = TensorBoard()
    for name in ("one", "two"):
        folder = run_study(tiny(name, axes={"segments": [1]}), engine=OneByOne(), callbacks=[writer]).folder
        assert_whole(folder)
    elsewhere = TensorBoard(study_folder / "all")
    run_study(tiny("one", axes={"segments": [1]}), engine=OneByOne(), callbacks=[elsewhere])
    assert len(points(study_folder / "all")) == 1  # which an earlier call trained


def test_runs_of_a_sweep_have_curves_without_a_test_accuracy(study_folder: Path) -> None:
    study = tiny(axes={"segments": [1]}, tune={"lr": [0.01, 0.1], "seeds": [7], "extend": 0})
    folder = run_study(study, engine=OneByOne(), callbacks=[TensorBoard()]).folder
    found = points(folder / "tensorboard")
    assert len(found) == len(read_rows(folder)) == 2
    assert all("accuracy/test" not in tags and len(tags["loss/train"]) == 2 for tags in found.values())


@pytest.mark.slow
def test_a_resumed_run_has_each_point_once(study_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    cases = [{"model": "fails_once_beside_another"}, {"model": "slow", "epochs": 60, "seed": 1}]
    study = parse_study({"base": TINY, "cases": cases}, "resumes")
    asked: dict[str, Any] = {"workers": 2, "imports": IMPORTS, "stop_on_failure": True}
    folder = run_study(study, callbacks=[TensorBoard()], **asked).folder
    assert not (folder / "tensorboard").exists()
    summary = run_study(study, callbacks=[TensorBoard()], **asked)
    assert summary.trained == 2
    assert any(row["provenance"].get("resumed") for row in read_rows(folder) if row["status"] == "done")
    assert_whole(folder)


@pytest.mark.medium
def test_the_command_writes_them_or_says_what_is_missing(
    study_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (study_folder / "s.toml").write_text(
        '[base]\ndataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 1\nwidth = 0.25\n'
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        assert main(["run", "s.toml", "--log", "tensorboard"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert '--log tensorboard: TensorBoard is not installed; pip install "convolution-spectrum[tensorboard]"' in said
    assert not (study_folder / "results").exists()
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    assert main(["run", "s.toml", "--workers", "1", "--log", "tensorboard"]) == 0
    assert_whole(study_folder / "results/s")

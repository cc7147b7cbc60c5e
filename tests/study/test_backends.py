"""Backends of a study: measured once, before it trains, kept in its plan, and told in its rows."""

import json
import logging

import pytest
import torch

from spectrum import read_plan, run_study
from spectrum._records import SpecError
from spectrum.conv import machine, tuning
from spectrum.conv.kept import Timed
from spectrum.conv.machine import machine_key
from spectrum.data.images import described
from spectrum.engines.interface import Engine, Outcome
from spectrum.engines.worker import train_one
from spectrum.study.backends import StudyBackends, asked_tune
from spectrum.study.planning import plan_study
from spectrum.study.store import read_rows
from tests.runs import tiny as tiny_study


def tiny(**said):
    """Two networks, none of which is folded."""
    return tiny_study(**{"axes": {"segments": [4, "per_channel"]}} | said)


class InWorkers(Engine):
    """In this process; each run measures for itself."""

    starts_processes = False

    def __init__(self):
        self.told = []

    def run(self, runs, work):
        self.told.append(work)
        for run in runs:
            yield Outcome(run, train_one(run, work, threads=torch.get_num_threads()), None, 1)


class Here(InWorkers):
    """In this process, which measures before it trains."""

    def threads(self, work):
        return torch.get_num_threads()


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path):
    """The classes that are measured, each by torch's convolution in the other layout; a cache of its own."""
    seen = []
    machine_key("cpu")
    monkeypatch.setenv("SPECTRUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "measure", lambda one, *_: seen.append(str(one)) or Timed("converted"))
    return seen


@pytest.mark.parametrize("engine", [Here, InWorkers])
def test_what_is_measured_is_kept_in_the_plan_and_told_in_the_rows(engine, study_folder, measured):
    trainer = engine()
    run_study(tiny(), study_folder / "r", engine=trainer, device="cpu", tune="on")
    (work,) = trainer.told
    key = machine_key("cpu")
    kept = read_plan(study_folder / "r").backends
    assert kept == {key: dict.fromkeys(measured, "converted")}
    assert len(measured) == len(set(measured))
    assert (work.tune, bool(work.choices)) == (("off", True) if engine is Here else ("on", False))
    for row in read_rows(study_folder / "r"):
        provenance = row["provenance"]
        assert provenance["machine"] == key
        assert set(provenance["choices"].items()) < set(kept[key].items())
        assert set(provenance["lowerings"].values()) == {"converted"}


def test_a_plan_stands_whatever_is_measured_since(study_folder, measured, monkeypatch, tmp_path):
    run_study(tiny(), study_folder / "r", engine=Here(), device="cpu", tune="on")
    before = read_plan(study_folder / "r")
    (study_folder / "r" / "results.jsonl").unlink()
    monkeypatch.setattr(tuning, "measure", pytest.fail)
    monkeypatch.setenv("SPECTRUM_CACHE", str(tmp_path / "an empty cache"))
    for asked in ("on", "off"):
        run_study(tiny(), study_folder / "r", engine=Here(), device="cpu", tune=asked)
        assert read_plan(study_folder / "r") == before
    for row in read_rows(study_folder / "r"):
        assert set(row["provenance"]["lowerings"].values()) == {"converted"}


def test_on_another_machine_a_new_choice_is_taken_and_recorded(study_folder, measured, monkeypatch):
    run_study(tiny(), study_folder / "r", engine=Here(), device="cpu", tune="on")
    here, count = machine_key("cpu"), len(measured)
    (study_folder / "r" / "results.jsonl").unlink()
    monkeypatch.setattr(machine, "processor", lambda: "another processor")
    monkeypatch.setattr(tuning, "measure", lambda one, *_: measured.append(str(one)) or Timed("native"))
    run_study(tiny(), study_folder / "r", engine=Here(), device="cpu", tune="on")
    kept = read_plan(study_folder / "r").backends
    assert kept == {
        here: dict.fromkeys(measured[:count], "converted"),
        machine_key("cpu"): dict.fromkeys(measured[count:], "native"),
    }
    assert {row["provenance"]["machine"] for row in read_rows(study_folder / "r")} == {machine_key("cpu")}


def test_ids_and_the_hash_do_not_depend_on_backends(study_folder):
    for asked in ("on", "off"):
        run_study(tiny(), study_folder / asked, engine=Here(), device="cpu", tune=asked)
    on, off = (read_plan(study_folder / asked) for asked in ("on", "off"))
    assert (on.ids, on.hash) == (off.ids, off.hash)
    assert "backends" not in json.loads((study_folder / "off" / "plan.json").read_text())
    assert on.backends


def test_networks_that_come_later_are_measured_then(study_folder, measured):
    run_study(tiny(axes={"segments": [2]}), study_folder / "r", engine=Here(), device="cpu", tune="on")
    first = read_plan(study_folder / "r").backends[machine_key("cpu")]
    run_study(tiny(axes={"segments": [2, 4]}), study_folder / "r", engine=Here(), device="cpu", tune="on")
    kept = read_plan(study_folder / "r").backends[machine_key("cpu")]
    assert first.items() < kept.items()
    assert len(measured) == len(set(measured)) == len(kept)


@pytest.mark.medium
def test_worker_processes_train_by_the_plan(study_folder, measured, monkeypatch):
    """They are other processes, whose own clock is the real one; they do not use it."""
    monkeypatch.delenv("SPECTRUM_CACHE")
    monkeypatch.setattr("spectrum.conv.kept.usable_cache", lambda: False)
    run_study(tiny(), study_folder / "r", workers=2, device="cpu", tune="on")
    (kept,) = read_plan(study_folder / "r").backends.values()
    assert set(kept.values()) == {"converted"}
    rows = read_rows(study_folder / "r")
    assert {name for row in rows for name in row["provenance"]["lowerings"].values()} == {"converted"}
    assert {row["provenance"]["machine"] for row in rows} == set(read_plan(study_folder / "r").backends)


# Whether it pays


def backends(asked="auto", **base):
    study = tiny(base=base)
    planned = plan_study(study)
    return StudyBackends(asked, planned, described(one.run for one in planned), {})


def test_auto_measures_where_a_study_trains_much_longer_than_that_takes():
    assert not backends().measures
    assert not backends(epochs=100).measures
    assert backends(epochs=20_000).measures
    assert backends(asked="on").measures
    assert not backends(asked="off", epochs=20_000).measures


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("auto", "backends are guessed, as this study trains briefly; --tune on measures them"),
        ("on", "shape classes measured in"),
        ("off", ""),
    ],
)
def test_what_was_decided_is_said_once(asked, said, study_folder, caplog):
    with caplog.at_level(logging.WARNING, "spectrum.tuning"):
        run_study(tiny(), study_folder / "r", engine=Here(), device="cpu", tune=asked)
    assert caplog.text.count(said) == 1 if said else not caplog.text


def test_the_environment_says_what_is_asked_where_nothing_else_does(monkeypatch):
    monkeypatch.setenv("SPECTRUM_TUNE", "on")
    assert (asked_tune(None), asked_tune("off")) == ("on", "off")
    monkeypatch.setenv("SPECTRUM_TUNE", "")
    assert asked_tune(None) == "auto"
    monkeypatch.setenv("SPECTRUM_TUNE", "yes")
    with pytest.raises(SpecError, match="SPECTRUM_TUNE=yes: expected auto, on or off"):
        asked_tune(None)


def test_choices_of_a_failed_or_foreign_engine_are_no_news():
    known = backends(asked="on")
    assert not known.note({})
    assert not known.note({"machine": "a", "choices": {}})
    assert known.note({"machine": "a", "choices": {"x": "native"}})
    assert not known.note({"machine": "a", "choices": {"x": "compiled"}}), "the first one stands"
    assert known.kept == {"a": {"x": "native"}}

"""The first failed run stops the study, if asked for: nothing new starts; the next call resumes what trained."""

from pathlib import Path

import pytest

from spectrum import run_study
from spectrum.cli import main
from spectrum.design.study_file import Study, parse_study
from spectrum.engines.interface import Engine, Outcome
from spectrum.engines.worker import train_one
from spectrum.study.driver import in_random_blocks
from spectrum.study.store import read_rows
from tests.runs import IMPORTS, TINY, tiny


def failing_beside_slow(*, after: int) -> Study:
    """A run that fails, one that trains meanwhile, and `after` others, in this order of training."""
    cases = [{"model": "fails_once_beside_another"}, {"model": "slow", "epochs": 150, "seed": 0}]
    cases += [{"model": "linear", "seed": 1 + number} for number in range(after)]
    return parse_study({"base": TINY, "cases": cases}, "stops")


@pytest.mark.slow
def test_runs_in_training_are_stopped_and_resumed(study_folder: Path) -> None:
    study = failing_beside_slow(after=2)
    summary = run_study(study, workers=2, imports=IMPORTS, stop_on_failure=True)
    assert (summary.failed, summary.trained, summary.left) == (1, 0, 3)
    assert [row["model"] for row in read_rows(summary.folder)] == ["fails_once_beside_another"]
    slow = next(run.id for run in study.runs() if run.model == "slow")
    assert [path.name for path in (summary.folder / "checkpoints").iterdir()] == [slow]

    again = run_study(study, workers=2, imports=IMPORTS, stop_on_failure=True)
    assert (again.failed, again.trained, again.left) == (0, 4, 0)
    row = next(row for row in read_rows(summary.folder) if row["id"] == slow)
    assert row["provenance"]["resumed"]
    assert row["attempts"] == 1


class OneByOne(Engine):
    """Trains in this process, and notes what it was asked for."""

    starts_processes = False

    def __init__(self) -> None:
        self.began: list[str] = []

    def run(self, runs, work):  # type: ignore[no-untyped-def]
        for run in runs:
            self.began.append(run.id)
            try:
                yield Outcome(run, train_one(run, work, threads=1), None, attempts=1)
            except Exception as error:
                yield Outcome(run, None, str(error), attempts=1)


@pytest.mark.parametrize("stops", [True, False])
def test_every_engine_starts_no_other_run(study_folder: Path, stops: bool) -> None:
    study = tiny(base={"model": "fails_at_three"}, axes={"segments": [1, 3, 5], "seed": [0, 1]})
    engine, order = OneByOne(), in_random_blocks(study.runs())
    first = next(number for number, run in enumerate(order) if run.segments == 3)
    summary = run_study(study, engine=engine, imports=IMPORTS, stop_on_failure=stops)
    begun = order[: first + 1] if stops else order
    assert engine.began == [run.id for run in begun] == [row["id"] for row in read_rows(summary.folder)]
    assert summary.failed == (1 if stops else 2)
    assert summary.left == len(order) - len(begun)


def test_a_sweep_is_stopped_too_and_nothing_is_chosen(study_folder: Path) -> None:
    study = tiny(base={"model": "fails_at_three"}, axes={"segments": [1, 3]}, tune={"lr": [0.01, 0.1], "seeds": [7]})
    summary = run_study(study, engine=OneByOne(), imports=IMPORTS, stop_on_failure=True)
    assert (summary.failed, summary.confirmed, summary.choices) == (1, False, ())
    assert summary.left == summary.total - summary.trained - 1


@pytest.mark.medium
def test_the_command_ends_in_status_1_and_says_what_is_left(
    study_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study_folder / "s.toml").write_text(
        '[base]\nmodel = "fails"\ndataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 1\n'
        "[axes]\nseed = [0, 1, 2]\n"
    )
    words = ["run", "s.toml", "--workers", "1", "--import", IMPORTS[0]]
    assert main([*words, "--stop-on-failure"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "1 run failed, which stopped the study; 2 runs left; run the same command again to retry" in said
    assert main(words) == 1
    assert "3 runs failed; run the same" in " ".join(capsys.readouterr().err.split())

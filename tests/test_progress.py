"""Progress of a run, as shown to a program, on a terminal and in a notebook."""

import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from spectrum import RunConfig, Study, cli, progress
from spectrum.design.study_file import Tune
from spectrum.study.driver import FINAL, SWEEP, Progress

STUDY = Study(name="tiny", base=RunConfig(dataset="digits"), axes={"segments": (1, 3), "seed": (0,)})
DONE = {"segments": 1, "segment_width": None, "seed": 0, "status": "done", "test_accuracy": 0.5, "train_seconds": 2.0}
FAILED = {"segments": 3, "segment_width": None, "seed": 0, "status": "failed", "reason": "no <memory>"}
STEPS = (Progress(2, 0), Progress(2, 0, done=1, row=DONE), Progress(2, 0, done=1, failed=1, row=FAILED))


def shown(monkeypatch, study=STUDY, steps=STEPS, **console):
    err = Console(file=io.StringIO(), markup=False, highlight=False, width=120, **console)
    monkeypatch.setattr(cli.progress, "err", err)
    with progress(study) as on_progress:
        for step in steps:
            on_progress(step)
    return err.file.getvalue()


def test_off_a_terminal_every_run_is_a_plain_line(monkeypatch):
    lines = shown(monkeypatch, force_terminal=False).splitlines()
    assert lines[0] == "tiny: 2 runs to train"
    assert lines[1].startswith("1/2 segments=1 seed=0 · test 50.00% · 2 s · ")
    assert lines[2] == "2/2 segments=3 seed=0 failed: no <memory>"


def test_on_a_terminal_a_bar_counts_and_failures_stay(monkeypatch):
    said = shown(monkeypatch, force_terminal=True)
    assert "1 done · 1 failed · 0 left" in said
    assert "segments=3 seed=0 failed: no <memory>" in said


TUNED = STUDY.model_copy(update={"tune": Tune(lr=(0.1, 0.2))})
SCORED = {
    "scored_on": "validation",
    "test_accuracy": None,
    "val_accuracy": 0.25,
    "seed": TUNED.tune.seeds[0],
    "lr": 0.2,
}
PHASES = (
    Progress(4, 0, phase=SWEEP),
    Progress(4, 0, done=4, row=DONE | SCORED, phase=SWEEP),
    Progress(6, 0, done=4, phase=FINAL, before=4),
    Progress(6, 0, done=5, row=DONE | {"scored_on": "test"}, phase=FINAL, before=4),
)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_each_phase_of_a_tuned_study_is_named_and_counts_its_own_runs(monkeypatch, is_terminal):
    said = shown(monkeypatch, TUNED, PHASES, force_terminal=is_terminal)
    if is_terminal:
        assert "tiny final runs" in said
        assert "1 done · 0 failed · 1 left" in said
        return
    lines = said.splitlines()
    assert lines[0] == "tiny: 4 sweep runs to train"
    assert lines[1] == f"sweep 4/4 segments=1 seed={TUNED.tune.seeds[0]} lr=0.2 · validation 25.00% · 2 s"
    assert lines[2] == "tiny: 2 final runs to train"
    assert lines[3].startswith("final runs 1/2 segments=1 seed=0 · test 50.00% · 2 s · ")


def test_the_time_left_goes_by_the_work_left_and_not_by_the_count(monkeypatch):
    now = iter([0.0, 10.0, 15.0])
    monkeypatch.setattr(cli.progress, "monotonic", lambda: next(now))
    left = cli.progress._TimeLeft()
    assert left.after(Progress(3, 0, work_ended=0, work_left=3)) == ""
    # start-up, which the first run pays for, is in no pace
    assert left.after(Progress(3, 0, done=1, row=DONE, work_ended=2.0, work_left=6.0)) == "6 s"
    assert left.after(Progress(3, 0, done=2, row=DONE, work_ended=4.0, work_left=8.0)) == "20 s"


NOTEBOOK = """
from spectrum import RunConfig, Study, progress, run_study
from tests import faulty_models

base = RunConfig(dataset="digits", train_images=100, batch_size=50, epochs=1, width=0.25, model="fails_at_three")
study = Study(name="a <tiny> study", base=base, axes={"segments": (1, 3), "seed": (0,)})
with progress(study) as on_progress:
    summary = run_study(
        study, "results", workers=1, device="cpu", imports=["tests.faulty_models"], on_progress=on_progress
    )
"""


@pytest.mark.medium
def test_in_a_notebook_one_display_is_rewritten_and_stays(study_folder: Path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": study_folder}}).execute()
    (output,) = notebook.cells[0].outputs  # no standard error, no warning, nothing of rich
    assert output.output_type == "display_data"
    counts, problem = output.data["text/plain"].splitlines()
    assert counts == "a <tiny> study: 1 done · 1 failed · 0 left"
    assert problem.startswith("segments=3 seed=0 failed: ")
    assert 'value="2" max="2"' in output.data["text/html"]
    assert "a &lt;tiny&gt; study" in output.data["text/html"]

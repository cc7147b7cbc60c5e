"""Where a run stands, as a program, a terminal and a notebook show it."""

import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from spectrum import RunConfig, Study, cli, progress
from spectrum.study.driver import Progress

STUDY = Study(name="tiny", base=RunConfig(dataset="digits"), axes={"segments": (1, 3), "seed": (0,)})
DONE = {"segments": 1, "segment_width": None, "seed": 0, "status": "done", "test_accuracy": 0.5, "train_seconds": 2.0}
FAILED = {"segments": 3, "segment_width": None, "seed": 0, "status": "failed", "reason": "no <memory>"}
STEPS = (Progress(2, 0), Progress(2, 0, done=1, row=DONE), Progress(2, 0, done=1, failed=1, row=FAILED))


def shown(monkeypatch, **console):
    err = Console(file=io.StringIO(), markup=False, highlight=False, width=120, **console)
    monkeypatch.setattr(cli.progress, "err", err)
    with progress(STUDY) as on_progress:
        for step in STEPS:
            on_progress(step)
    return err.file.getvalue()


def test_off_a_terminal_every_run_is_a_plain_line(monkeypatch):
    lines = shown(monkeypatch, force_terminal=False).splitlines()
    assert lines[0] == "tiny: 2 of 2 runs to train"
    assert lines[1].startswith("1/2 segments=1 seed=0 · test 0.5000 · 2 s · ")
    assert lines[2].startswith("2/2 segments=3 seed=0 failed: no <memory> · ")


def test_on_a_terminal_a_bar_counts_and_failures_stay(monkeypatch):
    said = shown(monkeypatch, force_terminal=True)
    assert "1 done · 1 failed · 0 left" in said
    assert "segments=3 seed=0 failed: no <memory>" in said


NOTEBOOK = """
from spectrum import RunConfig, Study, progress, run_study
from tests import faulty_models

base = RunConfig(dataset="digits", train_images=100, epochs=1, width=0.25, model="fails_at_three")
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

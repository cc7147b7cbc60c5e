"""Every notebook runs from top to bottom on fresh results, and is committed with its pictures."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from spectrum import Point, Study, run_study

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def small_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and epochs of six runs that take a second each."""
    study = Study(
        name="tiny",
        question="Does every notebook run?",
        base=Point(dataset="digits", train_images=200, epochs=1, width=0.25),
        axes={"segments": (1, 3, "per_channel"), "seed": (0, 1)},
    )
    folder = tmp_path_factory.mktemp("results")
    summary = run_study(study, folder, workers=1, device="cpu")
    assert summary.trained == summary.total == 6
    return folder


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@every_notebook
def test_notebook_runs(path: Path, small_results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRUM_RESULTS", str(small_results))
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []

    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": FOLDER}})
    client.execute()  # raises CellExecutionError where a cell fails

    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"execute_result", "display_data"}  # no errors, no warnings
    assert pictures(notebook) >= 4


@every_notebook
def test_committed_with_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert pictures(notebook) >= 4
    assert not [cell.id for cell in notebook.cells if "execution" in cell.metadata]  # no times of execution

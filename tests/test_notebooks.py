"""Every notebook is committed as its cells make it from the committed results, and its training cells run and learn."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks.execute import FOLDER, execute

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TRAINING = [path for path in NOTEBOOKS if path.stem != "05_modules"]
INSTALL = """try:
    import spectrum  # noqa: F401
except ModuleNotFoundError:  # on a hosted service; from a checkout: %pip install ..
    %pip install --quiet convolution-spectrum"""
SWITCH = re.compile(r"^RETRAIN = \w+", re.MULTILINE)
ROUNDING = re.compile(r"\b\d\.\de(?:-(?:1\d|2\d)|\+00)\b")  # of equalities, as in 3.6e-14: others elsewhere, or 0.0e+00
OF_A_MACHINE = re.compile(r"/(?:home|root|tmp|usr|var|Users)/")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def said(notebook: Any) -> dict[str, list[tuple[str, str]]]:
    """What each cell shows in words, by kind; pictures and roundings left out."""

    def words(cell: Any) -> Iterator[tuple[str, str]]:
        for output in cell.outputs:
            for kind, text in sorted(output.get("data", {}).items()):
                if kind.startswith("text/"):
                    yield kind, ROUNDING.sub("a rounding", text)

    return {cell.id: list(words(cell)) for cell in code_cells(notebook)}


def run(path: Path, folder: Path = FOLDER, *, switch: str = "RETRAIN = False", check: str = "") -> Any:
    """A notebook after a run with this switch, and with a last cell that checks."""
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
        cell.source = SWITCH.sub(switch, cell.source)
    if check:
        notebook.cells.append(nbformat.v4.new_code_cell(check))
    execute(notebook, folder)  # raises CellExecutionError where a cell fails
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds <= {"execute_result", "display_data"}  # nothing is printed, no warning, no standard error
    return notebook


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_committed_whole_and_with_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 4
    assert not [cell.id for cell in notebook.cells if "execution" in cell.metadata]  # no times of execution
    assert not [id for id, shown in said(notebook).items() for _, text in shown if OF_A_MACHINE.search(text)]


@every_notebook
def test_installs_itself_and_has_one_switch_if_it_trains(path: Path) -> None:
    sources = [cell.source for cell in code_cells(nbformat.read(path, as_version=4))]
    assert sources[0] == INSTALL
    switches = [switch for source in sources for switch in SWITCH.findall(source)]
    assert switches == (["RETRAIN = False"] if path in TRAINING else [])


@every_notebook
def test_imports_public_names_only_and_folds_what_the_site_hides(path: Path) -> None:
    cells = code_cells(nbformat.read(path, as_version=4))
    assert not [cell.id for cell in cells if re.search(r"(from|import) spectrum\.", cell.source)]
    for cell in cells:
        hidden = bool({"hide-input", "remove-cell"} & set(cell.metadata.get("tags", [])))
        assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == hidden, cell.id


@pytest.mark.slow
@every_notebook
def test_outputs_are_those_of_the_committed_results(path: Path) -> None:
    committed, now = said(nbformat.read(path, as_version=4)), said(run(path))
    stale = [id for id in now if now[id] != committed[id]]
    assert not stale, f"stale outputs, run make notebooks: {[(committed[id], now[id]) for id in stale]}"


LEARNT = 'assert results["status"].eq("done").all() and results["test_accuracy"].mean() > 0.8'


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_what_it_retrains_learns(path: Path) -> None:
    run(path, switch="RETRAIN = True", check=LEARNT)


@pytest.mark.slow
def test_without_committed_results_the_small_version_is_trained(tmp_path: Path) -> None:
    notebook = run(FOLDER / "01_first_spectrum.ipynb", tmp_path, check=LEARNT)
    assert any("so the small study was trained" in text for shown in said(notebook).values() for _, text in shown)

"""Execute the notebooks of this folder in place, on the results that they name: `make notebooks`.

Give names, such as `python notebooks/execute.py 05_modules`, to execute these alone.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from spectrum._files import write_whole

FOLDER = Path(__file__).parent
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})  # else newer kernels warn


def execute(notebook: Any, folder: Path = FOLDER) -> None:
    """Run all cells from a folder and keep what they show. Raises CellExecutionError where one fails."""
    # Times of execution are not recorded, so that the same results give the same file.
    client = NotebookClient(
        notebook, timeout=600, record_timing=False, resources={"metadata": {"path": folder}}, config=ENCRYPTED
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if len(data.get("text/plain", "")) > len(data.get("text/html", "")) > 0:
                del data["text/plain"]  # all rows and columns of a table that shows itself as its summary


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem in (sys.argv[1:] or [path.stem]):
            notebook = nbformat.read(path, as_version=4)
            execute(notebook)
            write_whole(path, nbformat.writes(notebook).rstrip("\n") + "\n")

"""Execute the notebooks of this folder in place: `make notebooks`.

Give names, such as `python notebooks/execute.py 05_modules`, to execute these alone.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

from spectrum._files import write_whole

FOLDER = Path(__file__).parent
SOME_COLUMNS = re.compile(r"\[\d+ rows x \d+ columns\]\s*$")
# Newer kernels warn without it.
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})


def execute(notebook: Any, folder: Path = FOLDER) -> None:
    """Run all cells from a folder and keep what they show.

    Raises CellExecutionError where a cell fails.
    """
    # Times of execution are not recorded, so that the same results give the same file.
    client = NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": folder}},
        config=ENCRYPTED,
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            plain, whole = data.get("text/plain", ""), data.get("text/html", "")
            if whole and (len(plain) > len(whole) or SOME_COLUMNS.search(plain)):
                # longer than the table in HTML, or shortened although that is complete.
                del data["text/plain"]


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem in (sys.argv[1:] or [path.stem]):
            notebook = nbformat.read(path, as_version=4)
            execute(notebook)
            write_whole(path, nbformat.writes(notebook).rstrip("\n") + "\n")

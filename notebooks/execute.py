"""Execute every notebook of this folder in place, on the results that it names: `make notebooks`."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})  # else newer kernels warn

for path in sorted(FOLDER.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    # Times of execution are not recorded, so that the same results give the same file.
    client = NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": FOLDER}}, config=ENCRYPTED)
    client.execute()
    nbformat.write(notebook, path)

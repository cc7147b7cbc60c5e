"""TensorBoard's event files of a study, written when a run has ended: one folder per run, whole or absent."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectrum._records import SpecError
from spectrum.design.study_file import Study
from spectrum.study.callbacks import Callback
from spectrum.study.store import Row, read_history

FOLDER = "tensorboard"  # in a study's folder
LONGEST = 100  # characters of a folder's name before the run's id
SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "val_accuracy": "accuracy/validation",
    "lr": "lr",
    "train_seconds": "seconds",
}
FINAL = {"test_accuracy": "accuracy/test", "test_loss": "loss/test"}  # columns of a row, at the last epoch


class TensorBoard(Callback):
    """Write each run's curves as event files of TensorBoard, by torch's own writer.

    Args:
        folder: where to write; by default the folder tensorboard/ in the study's folder.

    Each run has a folder, which appears whole when the run has ended. Runs that ended in earlier calls without one get
    theirs when the study starts, so nothing is missing after a kill, and nothing is there twice after a resumption.
    Failed runs have none. Options that the study varies are hyperparameters.

    Raises SpecError if TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        try:
            import tensorboard  # noqa: F401 torch's writer needs it
        except ImportError:
            raise SpecError(
                'TensorBoard is not installed; pip install "convolution-spectrum[tensorboard]", or log nothing'
            ) from None
        self.asked = None if folder is None else Path(folder)
        self.folder: Path | None = self.asked  # of the study that has started
        self.varied: tuple[str, ...] = ()

    def study_started(self, study: Study, folder: Path, finished: Sequence[Row]) -> None:
        """Write what is missing of earlier calls."""
        self.folder = self.asked or folder / FOLDER
        self.varied = tuple(dict.fromkeys((*study.varied(), "seed")))
        missing = {row["id"]: row for row in finished if not (self.folder / self._name(row)).exists()}
        epochs: dict[str, dict[int, Row]] = {id: {} for id in missing}
        for line in read_history(folder) if missing else ():
            if line["id"] in epochs:  # an epoch may be there twice, of a process that was killed; the last one counts
                epochs[line["id"]][line["epoch"]] = line
        for id, row in missing.items():
            self.run_ended(row, [epochs[id][epoch] for epoch in sorted(epochs[id])])

    def run_ended(self, row: Row, epochs: Sequence[Row]) -> None:
        """Write a run's folder, in place of an earlier one."""
        from torch.utils.tensorboard import SummaryWriter

        assert self.folder is not None
        there = self.folder / self._name(row)
        begun = self.folder.parent / f".{self.folder.name}.part"  # where TensorBoard does not look
        shutil.rmtree(begun, ignore_errors=True)  # of a process that was killed
        options = {name: _plain(row[name]) for name in self.varied if row.get(name) is not None}
        results = {tag: row[name] for name, tag in FINAL.items() if row.get(name) is not None}
        with SummaryWriter(str(begun)) as writer:
            for entry in epochs:
                for name, tag in SCALARS.items():
                    if entry.get(name) is not None:
                        writer.add_scalar(tag, entry[name], entry["epoch"])
            last = epochs[-1]["epoch"] if epochs else 0
            writer.add_hparams(options, results, run_name=".", global_step=last)
        shutil.rmtree(there, ignore_errors=True)
        there.parent.mkdir(parents=True, exist_ok=True)
        begun.rename(there)

    def _name(self, row: Row) -> str:
        """A run's folder: the options that the study varies, then its id; no character of it leads elsewhere."""
        said = ",".join(f"{name}={row[name]}" for name in self.varied if row.get(name) is not None)
        return re.sub(r"[^\w=.,-]", "_", f"{said[:LONGEST]},{row['id']}").lstrip(".,")


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)

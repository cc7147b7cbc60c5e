"""Callbacks: what a tracker of yours is told of a study, by the process that called `run_study`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum._records import SpecError
from spectrum.design.study_file import Study
from spectrum.study.store import Row

if TYPE_CHECKING:
    from spectrum.study.driver import Summary


class Callback:
    """Base class of callbacks. Override what you need; every method does nothing by default.

    All are called in the process that called `run_study`, on every engine, and never in a worker: a callback needs no
    pickling, and one connection to a tracker is enough. A run is told when its row and its epochs are on disk, so a
    curve appears when its run has ended, not while it trains.

    >>> class Prints(Callback):
    ...     def run_ended(self, row, epochs):
    ...         print(row["id"], row["test_accuracy"], [epoch["val_accuracy"] for epoch in epochs])
    """

    def study_started(self, study: Study, folder: Path, finished: Sequence[Row]) -> None:
        """Before anything is trained.

        Args:
            study: the study.
            folder: its folder of results.
            finished: rows of runs that ended in earlier calls, which `run_ended` will not tell again. Their epochs are
                in `load_history(folder)`.
        """

    def run_ended(self, row: Row, epochs: Sequence[Row]) -> None:
        """After a run that is done or has diverged.

        Args:
            row: its row, as in results.jsonl.
            epochs: one entry per epoch, in order, from the first epoch also for a resumed run.
        """

    def run_failed(self, row: Row) -> None:
        """After a run that failed; `row["reason"]` says why. The next call of `run_study` tries it again.

        Args:
            row: its row, as in results.jsonl.
        """

    def study_ended(self, summary: Summary) -> None:
        """After the last run of this call, unless it was interrupted or ended with an exception.

        Args:
            summary: what `run_study` returns.
        """


class Callbacks:
    """All callbacks of one call. An exception of a callback is noted, and stops neither the study nor the others."""

    def __init__(self, callbacks: Sequence[object], on_note: Callable[[str], None]) -> None:
        self.callbacks, self.on_note = tuple(map(_checked, callbacks)), on_note

    def study_started(self, study: Study, folder: Path, finished: Sequence[Row]) -> None:
        self._tell("study_started", "", lambda one: one.study_started(study, folder, finished))

    def run_ended(self, row: Row, epochs: Sequence[Row]) -> None:
        """Tell how a run ended, or that it failed."""
        about = f" of run {row['id']}, whose row is on disk"
        if row["status"] == "failed":
            self._tell("run_failed", about, lambda one: one.run_failed(row))
        else:
            self._tell("run_ended", about, lambda one: one.run_ended(row, epochs))

    def study_ended(self, summary: Summary) -> None:
        self._tell("study_ended", "", lambda one: one.study_ended(summary))

    def _tell(self, method: str, about: str, call: Callable[[Callback], None]) -> None:
        for one in self.callbacks:
            try:
                call(one)
            except Exception as error:  # a callback is anybody's code
                name = f"{type(one).__name__}.{method}"
                self.on_note(f"callback {name}{about}: raised {type(error).__name__}: {error}; the study goes on")


def _checked(one: object) -> Callback:
    """The callback. Raises SpecError for anything else, such as a class instead of an object."""
    if isinstance(one, Callback):
        return one
    kind = one.__name__ if isinstance(one, type) else type(one).__name__
    raise SpecError(f"callbacks: {kind} is no Callback; give objects whose class is a subclass of Callback")

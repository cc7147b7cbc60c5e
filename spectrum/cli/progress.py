"""Progress of a study: a bar on a terminal, one display in a notebook, a line per run elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from html import escape
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from spectrum.cli.printing import PlainConsole, duration, err, run_name
from spectrum.design.study_file import Study
from spectrum.study.driver import FINAL, SWEEP

if TYPE_CHECKING:
    from spectrum.study.driver import Progress

    OnProgress = Callable[[Progress], None]


def progress(study: Study) -> contextlib.AbstractContextManager[OnProgress]:
    """Show the progress of a study. The context gives the `on_progress` of `run_study`.

        with progress(study) as on_progress:
            run_study(study, on_progress=on_progress)

    A terminal shows a bar, which disappears at the end. A Jupyter notebook shows one display, which is updated and
    stays. Elsewhere, each run prints a plain line. Bar and lines go to standard error.
    """
    if err.is_jupyter:
        return _in_a_notebook(study)
    return _on_a_terminal(study) if err.is_terminal else _in_lines(study)


@contextlib.contextmanager
def _apart() -> Iterator[Console]:
    """Standard error with its own file descriptor.

    If this process also trains, as the first rank does, its output is redirected to a run's log. The thread that draws
    the bar would then write there too.
    """
    try:
        own = os.dup(err.file.fileno())
    except (OSError, ValueError, AttributeError):  # not a file of the system, as in a test
        yield err
        return
    with open(own, "w", encoding=getattr(err.file, "encoding", None), errors="replace") as file:
        plain = {"highlight": False, "markup": False, "soft_wrap": True}
        width = None if err.is_terminal else err.width
        console = PlainConsole(file=file, force_terminal=err.is_terminal, width=width, **plain)  # type: ignore[arg-type]
        yield console


@contextlib.contextmanager
def _in_lines(study: Study) -> Iterator[OnProgress]:
    left = _TimeLeft()
    with _apart() as console:

        def tell(progress: Progress) -> None:
            about = left.after(progress)
            if progress.row is None:
                console.print(f"{study.name}: {_to_train(progress)}")
            else:
                ended = f"{_phase(progress)}{progress.ended}/{_total(progress)}"
                more = f" · {about} left" if progress.left else ""
                console.print(f"{ended} {_row_name(progress.row, study)}{more}")

        yield tell


@contextlib.contextmanager
def _on_a_terminal(study: Study) -> Iterator[OnProgress]:
    left = _TimeLeft()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
    )
    with _apart() as console, Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(study.name, counts="")

        def tell(progress: Progress) -> None:
            counts = _counts(progress, left.after(progress))
            bar.update(
                task,
                description=f"{study.name} {progress.phase}".rstrip(),
                total=_total(progress),
                completed=progress.ended,
                counts=counts,
            )
            if progress.row is not None and progress.row["status"] != "done":
                console.print(_row_name(progress.row, study))

        yield tell


@contextlib.contextmanager
def _in_a_notebook(study: Study) -> Iterator[OnProgress]:
    """Show progress in a display of Jupyter. rich's own bar needs ipywidgets and leaves nothing in a saved notebook."""
    from IPython.display import display

    left, problems = _TimeLeft(), list[str]()
    handle: Any = None

    def tell(progress: Progress) -> None:
        nonlocal handle
        if progress.row is not None and progress.row["status"] != "done":
            problems.append(_row_name(progress.row, study))
        lines = [f"{study.name}: {_phase(progress)}{_counts(progress, left.after(progress))}", *problems]
        bar = f'<progress value="{progress.ended}" max="{_total(progress)}"></progress> '
        shown = {"text/plain": "\n".join(lines), "text/html": bar + "<br>".join(map(escape, lines))}
        if handle is None:
            handle = display(shown, raw=True, display_id=True)
        else:
            handle.update(shown, raw=True)

    yield tell


class _TimeLeft:
    """Estimate the remaining time of a phase: its expected work, at the pace of the finished runs."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []  # times, and work finished by then

    def after(self, progress: Progress) -> str:
        """Remaining time in words; empty before the first run of the phase has ended."""
        now = monotonic()
        if progress.row is None:
            self.marks = [(now, 0.0)]
            return ""
        ended, left = progress.work_ended, progress.work_left
        if len(self.marks) == 1 and left is not None:  # the first run includes the start of the workers
            self.marks.append((now, ended or 0.0))
            return duration(left)  # if one worker did all of it
        if ended is None or left is None:
            ended, left = float(progress.ended), float(progress.left)
        start, before = self.marks[-1] if ended > self.marks[-1][1] else self.marks[0]
        return duration((now - start) / (ended - before) * left) if ended > before else ""


def _to_train(progress: Progress) -> str:
    runs = "runs" if progress.left != 1 else "run"
    kind = {SWEEP: f"sweep {runs}", FINAL: f"final {runs}"}.get(progress.phase, runs)
    reused = _total(progress) - progress.left
    return f"{progress.left:,} {kind} to train" + (f"; {reused:,} have a result already" if reused else "")


def _phase(progress: Progress) -> str:
    return f"{progress.phase} " if progress.phase else ""


def _total(progress: Progress) -> int:
    """Number of runs of this phase."""
    return progress.total - progress.before


def _counts(progress: Progress, about: str) -> str:
    """Counts of the phase. "done" includes diverged runs, which have a result, and runs of earlier calls."""
    done = progress.ended - progress.failed
    counts = f"{done} done · {progress.failed} failed · {progress.left} left"
    return f"{counts} · about {about}" if about and progress.left else counts


def _row_name(row: dict[str, Any], study: Study) -> str:
    """A run by its options, and how it ended."""
    swept = study.tune is not None and row["scored_on"] == "validation" and row["seed"] in study.tune.seeds
    settings = run_name(row, study.varied(), study.tune.grid() if study.tune is not None and swept else ())
    if row["status"] == "failed":
        return f"{settings} failed: {row['reason']}"
    diverged = " (diverged)" if row["status"] == "diverged" else ""
    on_test = row["test_accuracy"] is not None
    scored, accuracy = ("test", row["test_accuracy"]) if on_test else ("validation", row["val_accuracy"])
    troubles = "".join(f"; {trouble}" for trouble in row.get("provenance", {}).get("troubles", ()))
    return f"{settings} · {scored} {accuracy:.2%}{diverged} · {row['train_seconds']:.0f} s{troubles}"

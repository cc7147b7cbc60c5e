"""How far a study is, shown as fits the place: a bar on a terminal, one display in a notebook, else a line per run."""

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

from spectrum.cli.printing import duration, err
from spectrum.design.study_file import Study
from spectrum.models.position import PLACES

if TYPE_CHECKING:
    from spectrum.study.driver import Progress

    OnProgress = Callable[[Progress], None]


def progress(study: Study) -> contextlib.AbstractContextManager[OnProgress]:
    """Show where a run of a study stands; what is entered is the `on_progress` of `run_study`.

        with progress(study) as on_progress:
            run_study(study, on_progress=on_progress)

    On a terminal a bar that goes when the run ends, in a Jupyter notebook one display that is rewritten and stays,
    elsewhere a plain line per run; bar and lines go to standard error.
    """
    if err.is_jupyter:
        return _in_a_notebook(study)
    return _on_a_terminal(study) if err.is_terminal else _in_lines(study)


@contextlib.contextmanager
def _apart() -> Iterator[Console]:
    """Standard error on a descriptor of its own.

    Where this process trains too, as the first rank does, what it prints goes to a run's log meanwhile. A bar moves
    on by a thread, and would go there as well.
    """
    try:
        own = os.dup(err.file.fileno())
    except (OSError, ValueError, AttributeError):  # no file of the system's, such as a test's
        yield err
        return
    with open(own, "w", encoding=getattr(err.file, "encoding", None), errors="replace") as file:
        plain = {"highlight": False, "markup": False, "soft_wrap": True}
        width = None if err.is_terminal else err.width
        console = Console(file=file, force_terminal=err.is_terminal, width=width, **plain)  # type: ignore[arg-type]
        yield console


@contextlib.contextmanager
def _in_lines(study: Study) -> Iterator[OnProgress]:
    left = _TimeLeft()
    with _apart() as console:

        def tell(progress: Progress) -> None:
            about = left.after(progress)
            if progress.row is None:
                console.print(f"{study.name}: {progress.left} of {progress.total} runs to train")
            else:
                console.print(f"{_ended(progress)}/{progress.total} {_row_name(progress.row, study)} · {about} left")

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
            bar.update(task, total=progress.total, completed=_ended(progress), counts=counts)
            if progress.row is not None and progress.row["status"] != "done":
                console.print(_row_name(progress.row, study))

        yield tell


@contextlib.contextmanager
def _in_a_notebook(study: Study) -> Iterator[OnProgress]:
    """rich's own bar would ask for ipywidgets, and leave nothing to read in a notebook that is kept without them."""
    from IPython.display import display

    left, problems = _TimeLeft(), list[str]()
    handle: Any = None

    def tell(progress: Progress) -> None:
        nonlocal handle
        if progress.row is not None and progress.row["status"] != "done":
            problems.append(_row_name(progress.row, study))
        lines = [f"{study.name}: {_counts(progress, left.after(progress))}", *problems]
        bar = f'<progress value="{_ended(progress)}" max="{progress.total}"></progress> '
        shown = {"text/plain": "\n".join(lines), "text/html": bar + "<br>".join(map(escape, lines))}
        if handle is None:
            handle = display(shown, raw=True, display_id=True)
        else:
            handle.update(shown, raw=True)

    yield tell


class _TimeLeft:
    """How long the runs that are left will take, by the pace of those that have ended."""

    def __init__(self) -> None:
        self.marks = [(monotonic(), 0)]  # when, and how many runs had ended

    def after(self, progress: Progress) -> str:
        """In words; empty before the first run has ended."""
        ended = _ended(progress) - progress.reused
        if not ended:
            return ""
        if len(self.marks) == 1 and ended > 1:
            self.marks.append((monotonic(), ended))
        # The first runs pay for starting workers.
        start, before = self.marks[-1] if ended > self.marks[-1][1] else self.marks[0]
        return duration((monotonic() - start) / (ended - before) * progress.left)


def _ended(progress: Progress) -> int:
    return progress.total - progress.left


def _counts(progress: Progress, about: str) -> str:
    """Done counts diverged runs, which have a result, and those of earlier runs."""
    done = _ended(progress) - progress.failed
    counts = f"{done} done · {progress.failed} failed · {progress.left} left"
    return f"{counts} · about {about}" if about and progress.left else counts


def _row_name(row: dict[str, Any], study: Study) -> str:
    split = [name for name in PLACES if row.get(name) is not None]
    names = [*split, *(name for name in study.varied() if name not in PLACES), "seed"]
    searched = study.tune is not None and row["scored_on"] == "validation" and row["seed"] in study.tune.seeds
    names += list(study.tune.grid()) if study.tune is not None and searched else []
    settings = " ".join(f"{name}={row[name]}" for name in names)
    if row["status"] == "failed":
        return f"{settings} failed: {row['reason']}"
    diverged = " (diverged)" if row["status"] == "diverged" else ""
    scored = "val" if row["test_accuracy"] is None else "test"
    troubles = "".join(f"; {trouble}" for trouble in row.get("provenance", {}).get("troubles", ()))
    return f"{settings} · {scored} {row[f'{scored}_accuracy']:.4f}{diverged} · {row['train_seconds']:.0f} s{troubles}"

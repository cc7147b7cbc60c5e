"""The command `spectrum`: the only place that parses arguments or prints.

Exit status: 0 all well · 1 some points failed · 2 wrong input, nothing done · 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from spectrum._version import __version__
from spectrum.study.spec import Point, SpecError, Study, load_study
from spectrum.study.store import StoreError

if TYPE_CHECKING:
    from spectrum.study.sweep import PlannedPoint
    from spectrum.study.sweep import Progress as Standing

File = Annotated[Path, tyro.conf.Positional]
Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE"), tyro.conf.UseAppendAction]


def _console(stderr: bool) -> Console:
    """Plain text: what a user wrote is never markup, and off a terminal no table is squeezed."""
    console = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    return console


out, err = _console(stderr=False), _console(stderr=True)


def _overrides() -> type:
    """A record with the fields of a Point, for the command line to fill: not checked yet, and help for each."""
    fields = [
        (name, Annotated[info.annotation, tyro.conf.arg(help=info.description)], field(default=info.default))
        for name, info in Point.model_fields.items()
    ]
    return make_dataclass("Overrides", fields)


PointFields = _overrides()
Overrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=PointFields)]


@dataclass
class OnStudy:
    """What the commands that read a study's file take."""

    file: File
    """The study, a TOML file."""
    workers: int | None = None
    """Processes that train side by side; by default one a core, and one on a GPU."""
    imports: Imports = ()
    """Import a module first, for models of your own."""
    point: Overrides = field(default_factory=PointFields)
    """Override the study's base point."""


@dataclass
class Plan(OnStudy):
    """List a study's points, what each costs, and how long they will take. Trains and writes nothing."""


@dataclass
class Run(OnStudy):
    """Train every point that has no result yet; ends with a table, figures and a page."""

    out: Path | None = None
    """Folder of the results; by default results/NAME/ below the current folder."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; by default the best that torch has."""


@dataclass
class Results:
    """What the commands that read results take."""

    study: File
    """A study's TOML file, or its folder of results."""
    out: Path | None = None
    """Folder of the results, if it is not results/NAME/."""
    imports: Imports = ()
    """Import a module first, for models of your own."""


@dataclass
class Status(Results):
    """How many points of a study are done, diverged, failed and left."""


@dataclass
class Report(Results):
    """Draw the figures and write the page anew, from the rows that there are."""


@dataclass
class Export(Results):
    """Write the rows as one table."""

    to: Path = Path("results.csv")
    """File to write; its ending says how: .csv, .parquet or .json (lines)."""


@dataclass
class Bench:
    """Measure speed on this machine: of the operation, of a training step, of a whole study. Takes minutes."""

    what: Annotated[Literal["op", "train", "sweep"], tyro.conf.Positional]
    """op: the spatial half beside the library's; train: a step beside other loops; sweep: a study beside a script."""
    out: Path = Path("results/bench")
    """Folder for WHAT.csv and WHAT.machine.json."""
    shape: tuple[int, int, int, int] | None = None
    """op only: one shape N C H W instead of the four standard ones."""
    threads: int = 2
    """Threads that torch may use; for sweep, processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        out.print(f"spectrum {__version__}")
        return 0
    with _stopped_by_signals():
        try:
            command = _parse(words)
            return COMMANDS[type(command)](command)
        except (ValueError, StoreError) as error:
            return _refuse(str(error))
        except KeyboardInterrupt:
            err.print("stopped; finished points are kept, run the same command again to go on")
            return 130
        except BrokenPipeError:
            sys.stderr.close()
            return 1
        except OSError as error:
            return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _parse(words: list[str]) -> Any:
    """The command that was given; for plan and run, `point` holds just the fields that the words name."""
    _import_first(words)
    command: Any = tyro.cli(
        tyro.extras.subcommand_type_from_defaults(
            {
                "plan": Plan(tyro.MISSING),
                "run": Run(tyro.MISSING),
                "status": Status(tyro.MISSING),
                "report": Report(tyro.MISSING),
                "export": Export(tyro.MISSING),
                "bench": Bench(tyro.MISSING),
            },
            sort_subcommands=False,
        ),
        prog="spectrum",
        description="Studies of what lies between a regular and a depthwise separable convolution.",
        args=words or ["--help"],
    )
    if isinstance(command, OnStudy):
        flags = {word.partition("=")[0].replace("_", "-") for word in words}
        said = {
            name: getattr(command.point, name)
            for name in Point.model_fields
            if {f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"} & flags
        }
        command.point = said
        if command.workers is not None and command.workers < 1:
            raise SpecError(f"--workers {command.workers}: expected at least 1")
    return command


def _import_first(words: Sequence[str]) -> None:
    """Modules named by --import, which may register the models that the study's file names."""
    modules = [following for word, following in pairwise(words) if word == "--import"]
    modules += [word.removeprefix("--import=") for word in words if word.startswith("--import=")]
    if modules:
        from spectrum.study.sweep import import_modules

        sys.path.insert(0, str(Path.cwd()))
        import_modules(modules)


def _study(command: OnStudy) -> Study:
    study = load_study(command.file)
    return study.with_base(**command.point) if command.point else study


def _plan(command: Plan) -> int:
    from spectrum.analysis.stats import SPLIT
    from spectrum.study.engines import LocalEngine, available_cores
    from spectrum.study.sweep import plan_study

    study = _study(command)
    with err.status("counting and timing …") if err.is_terminal else contextlib.nullcontext():
        planned = plan_study(study, imports=command.imports, time_steps=True)
    table = Table(title=study.question or study.name, title_justify="left", box=None, pad_edge=False)
    others = [name for name in study.varied() if name not in SPLIT]
    for name in ("segments", *others, "seeds", "params", "MACs", "realised segments", "seconds"):
        table.add_column(name, justify="left" if name == "segments" else "right")
    groups: dict[Any, list[PlannedPoint]] = {}
    for cost in planned:
        groups.setdefault(cost.point.model_copy(update={"seed": 0}).id, []).append(cost)
    for group in groups.values():
        first = group[0]
        least, most = min(first.realised_segments, default=0), max(first.realised_segments, default=0)
        realised = str(most) if least == most else f"{least} … {most}"
        if first.clamped_layers:
            realised += f" ({first.clamped_layers} of {len(first.realised_segments)} layers clamped)"
        cells = [str(getattr(first.point, name)) for name in others]
        table.add_row(
            _point_name(first.point),
            *cells,
            str(len(group)),
            f"{first.params:,}",
            f"{first.macs:,}",
            realised,
            f"{first.seconds:.1f}",
        )
    out.print(table)
    workers = min(LocalEngine(command.workers).workers, available_cores(), len(planned))
    total = sum(cost.seconds or 0 for cost in planned) / workers
    out.print(f"\n{len(planned)} points · about {_duration(total)} of training steps on {workers} CPU cores")
    out.print(f"budget: {study.budget.match}" + (" (unmatched)" if study.budget.match == "none" else ""))
    return 0


def _run(command: Run) -> int:
    from spectrum.study.engines import EngineError
    from spectrum.study.sweep import run_study

    study = _study(command)
    started = monotonic()
    try:
        with _progress(study) as on_progress:
            summary = run_study(
                study,
                command.out,
                workers=command.workers,
                device=command.device,
                imports=command.imports,
                on_progress=on_progress,
            )
    except EngineError as error:
        err.print(f"spectrum: {error}")
        return 1
    if summary.set_aside:
        err.print(f"{summary.set_aside} torn or garbled lines were moved to {summary.folder / 'results.bad'}")
    if summary.reused:
        out.print(f"{summary.reused} of {summary.total} points had a result already and were reused")
    if summary.reused < summary.total:
        out.print(f"{summary.total - summary.reused} points took {_duration(monotonic() - started)}")
    _show_report(summary.folder)
    if summary.diverged:
        err.print(f"{summary.diverged} points diverged; they count, at chance")
    if summary.failed:
        err.print(f"{summary.failed} points failed; run the same command again to try them again")
        return 1
    return 0


def _status(command: Status) -> int:
    from spectrum.study.store import latest_rows

    folder, study = _folder(command.study, command.out)
    if study is not None:
        ids = [point.id for point in study.points()]
    else:
        ids = [point["id"] for point in _frozen_plan(folder)["points"]]
    rows = latest_rows(folder)
    statuses = [rows[id]["status"] if id in rows else "left" for id in ids]
    counts = " · ".join(f"{statuses.count(status)} {status}" for status in ("done", "diverged", "failed", "left"))
    out.print(f"{folder}: {len(ids)} points · {counts}")
    for id in ids:
        if id in rows and rows[id]["status"] == "failed":
            out.print(f"  failed {id}: {rows[id].get('reason')}")
    return 0


def _report(command: Report) -> int:
    folder, _ = _folder(command.study, command.out)
    _show_report(folder)
    return 0


def _export(command: Export) -> int:
    from spectrum.study.store import load_results

    folder, _ = _folder(command.study, command.out)
    results = load_results(folder, all_points=True)
    kind = command.to.suffix
    if kind == ".csv":
        results.map(_inert).to_csv(command.to, index=False)
    elif kind == ".parquet":
        results.assign(segments=results["segments"].astype("string")).to_parquet(command.to, index=False)
    elif kind == ".json":
        results.to_json(command.to, orient="records", lines=True)
    else:
        raise SpecError(f"--to {command.to}: expected a name that ends in .csv, .parquet or .json")
    out.print(f"{len(results)} rows written to {command.to}")
    return 0


def _bench(command: Bench) -> int:
    from spectrum.bench import op, sweep, train
    from spectrum.bench.machine import save

    if command.threads < 1:
        raise SpecError(f"--threads {command.threads}: expected at least 1")
    if command.shape is not None and (command.what != "op" or min(command.shape) < 1):
        raise SpecError("--shape N C H W: four whole numbers of at least 1, for op only")
    if command.what == "op":
        shapes = op.SHAPES if command.shape is None else (command.shape,)
        table, findings = op.measure(shapes, threads=command.threads, on_row=err.print), op.findings
    elif command.what == "train":
        table, findings = train.measure(threads=command.threads, on_row=err.print), train.findings
    else:
        table, findings = sweep.measure(cores=command.threads, on_row=err.print), sweep.findings
    path = command.out / f"{command.what}.csv"
    save(table, path, threads=command.threads)
    out.print(table.to_string(index=False, float_format="%.3g", na_rep=""))
    out.print()
    for name, value in findings(table).items():
        values = value if isinstance(value, list) else [value]
        out.print(f"{name}: {' … '.join(f'{v:.4g}' for v in values)}")
    out.print(f"\ntable {path}")
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {
    Plan: _plan,
    Run: _run,
    Status: _status,
    Report: _report,
    Export: _export,
    Bench: _bench,
}


def _folder(study: Path, out: Path | None) -> tuple[Path, Study | None]:
    """The folder of results that is meant, and the study if its file was given."""
    if study.suffix == ".toml":
        loaded = load_study(study)
        return out or Path("results", loaded.name), loaded
    if not study.is_dir():
        raise SpecError(f"{study}: neither a study's TOML file nor a folder of results")
    return study, None


def _frozen_plan(folder: Path) -> dict[str, Any]:
    from spectrum.study.store import read_plan

    plan = read_plan(folder)
    if plan is None:
        raise StoreError(f"{folder}: has no plan.json; run the study first: spectrum run FILE")
    return plan


def _show_report(folder: Path) -> None:
    from spectrum.analysis.report import as_text, write_report
    from spectrum.study.store import ROWS, load_history, load_results

    plan = _frozen_plan(folder)
    report = write_report(folder, load_results(folder), load_history(folder), plan)
    titles, rows = as_text(report.table)
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title == "segments" else "right")
    for row in rows:
        table.add_row(*row)
    out.print()
    out.print(table)
    out.print()
    for name, path in (
        ("figure", next((path for path in report.figures if path.name == "spectrum.png"), None)),
        ("report", report.page),
        ("rows", folder / ROWS),
    ):
        if path is not None:
            out.print(f"{name:7} {path}")


@contextlib.contextmanager
def _progress(study: Study) -> Iterator[Callable[[Standing], None]]:
    """A bar on a terminal, else a plain line a point."""
    marks = [(monotonic(), 0)]  # when, and how many points had ended

    def eta(standing: Standing) -> str:
        ended = standing.total - standing.reused - standing.left
        if not ended:
            return ""
        if len(marks) == 1 and ended > 1:
            marks.append((monotonic(), ended))
        start, before = marks[-1] if ended > marks[-1][1] else marks[0]  # the first points pay for starting workers
        return _duration((monotonic() - start) / (ended - before) * standing.left)

    if not err.is_terminal:

        def line(standing: Standing) -> None:
            left = eta(standing)
            if standing.row is None:
                err.print(f"{study.name}: {standing.left} of {standing.total} points to train")
            else:
                ended = standing.total - standing.left
                err.print(f"{ended}/{standing.total} {_row_name(standing.row, study)} · {left} left")

        yield line
        return

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(study.name, counts="")

        def update(standing: Standing) -> None:
            counts = f"{standing.total - standing.left} done · {standing.failed} failed · {standing.left} left"
            left = eta(standing)
            if left and standing.left:
                counts += f" · about {left}"
            bar.update(task, total=standing.total, completed=standing.total - standing.left, counts=counts)
            if standing.row is not None and standing.row["status"] != "done":
                err.print(_row_name(standing.row, study))

        yield update


def _row_name(row: dict[str, Any], study: Study) -> str:
    split = [name for name in ("segments", "segment_width") if row[name] is not None]
    names = [*split, *(name for name in study.varied() if name not in ("segments", "segment_width")), "seed"]
    said = " ".join(f"{name}={row[name]}" for name in names)
    if row["status"] == "failed":
        return f"{said} failed: {row['reason']}"
    diverged = " (diverged)" if row["status"] == "diverged" else ""
    return f"{said} · test {row['test_accuracy']:.4f}{diverged} · {row['train_seconds']:.0f} s"


def _point_name(point: Point) -> str:
    from spectrum.analysis.stats import segments_label

    return segments_label(point.segments, point.segment_width, point.pointwise)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _inert(value: object) -> object:
    """A spreadsheet would run a cell that starts with one of these; a leading quote makes it text."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _refuse(why: str) -> int:
    err.print(f"spectrum: {why}")
    return 2


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, workers included, with status 143."""

    def terminate(number: int, frame: object) -> None:
        sys.exit(143)

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

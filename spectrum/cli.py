"""The command `spectrum`: the only place that parses arguments or prints.

Exit status: 0 all well · 1 some points failed · 2 wrong input, nothing done · 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import json
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
from spectrum.study.point import NETWORK, Point, SpecError, merged
from spectrum.study.spec import Study, load_study
from spectrum.study.store import StoreError

if TYPE_CHECKING:
    from spectrum.study.planning import PlannedPoint
    from spectrum.study.sweep import Progress as Standing
    from spectrum.study.sweep import Summary

File = Annotated[Path, tyro.conf.Positional]
Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE"), tyro.conf.UseAppendAction]


def _console(stderr: bool) -> Console:
    """Plain text: what a user wrote is never markup, and off a terminal no table is squeezed."""
    console = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    return console


out, err = _console(stderr=False), _console(stderr=True)


def _record(name: str, fields: Sequence[str]) -> type:
    """A record with fields of a Point, for the command line to fill: not checked yet, and help for each."""
    known = Point.model_fields
    return make_dataclass(
        name,
        [
            (
                name,
                Annotated[known[name].annotation, tyro.conf.arg(help=known[name].description)],
                field(default=known[name].default),
            )
            for name in fields
        ],
    )


PointFields = _record("PointFields", list(Point.model_fields))
NetworkFields = _record("NetworkFields", [*(name for name in NETWORK if name != "model"), "width", "widths"])
Overrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=PointFields)]
NetworkOverrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=NetworkFields)]


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
    """List a study's points, what each costs, how long they take, and what its contrasts change. Writes nothing."""

    out: Path | None = None
    """Folder of the results, whose plan is taken as it was frozen; by default results/NAME/."""
    json: bool = False
    """Print every figure for programs, as JSON."""


@dataclass
class Run(OnStudy):
    """Train every point that has no result yet; ends with a table, figures and a page."""

    out: Path | None = None
    """Folder of the results; by default results/NAME/ below the current folder."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; by default the best that torch has."""
    confirm: bool = False
    """Of a study that tunes: after the search, train its points, with fresh seeds, at the chosen values."""


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
class Audit:
    """Count a network's cost, and explain how other counters differ from it."""

    model: Annotated[str, tyro.conf.Positional]
    """A family, such as probe."""
    image_size: int = 32
    """Side of the images in pixels."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 10
    """Classes of the network."""
    batch_size: int | None = None
    """Also measure latency, and time and peak memory of a training step of so many images."""
    layers: bool = False
    """Also list every layer."""
    imports: Imports = ()
    """Import a module first, for models of your own."""
    point: NetworkOverrides = field(default_factory=NetworkFields)
    """Fields of the network."""


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
                "audit": Audit(tyro.MISSING),
                "bench": Bench(tyro.MISSING),
            },
            sort_subcommands=False,
        ),
        prog="spectrum",
        description="Studies of what lies between a regular and a depthwise separable convolution.",
        args=words or ["--help"],
    )
    if isinstance(command, OnStudy | Audit):
        flags = {word.partition("=")[0].replace("_", "-") for word in words}
        said = {
            name: getattr(command.point, name)
            for name in vars(command.point)
            if {f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"} & flags
        }
        command.point = said
    if isinstance(command, OnStudy) and command.workers is not None and command.workers < 1:
        raise SpecError(f"--workers {command.workers}: expected at least 1")
    return command


def _import_first(words: Sequence[str]) -> None:
    """Modules named by --import, which may register the models that the study's file names."""
    modules = [following for word, following in pairwise(words) if word == "--import"]
    modules += [word.removeprefix("--import=") for word in words if word.startswith("--import=")]
    if modules:
        from spectrum.study.planning import import_modules

        sys.path.insert(0, str(Path.cwd()))
        import_modules(modules)


def _study(command: OnStudy) -> Study:
    study = load_study(command.file)
    return study.with_base(**command.point) if command.point else study


def _plan(command: Plan) -> int:
    from spectrum.study.contrasts import examine
    from spectrum.study.engines import LocalEngine, available_cores
    from spectrum.study.planning import plan_study
    from spectrum.study.store import read_plan
    from spectrum.study.tuning import search

    study = _study(command)
    frozen = read_plan(command.out or Path("results", study.name))
    with err.status("counting and timing …") if err.is_terminal else contextlib.nullcontext():
        planned = plan_study(study, imports=command.imports, time_steps=True, frozen=frozen)
    examined = examine(study, planned)
    searched = search(planned, study.tune.grid(), study.tune.seeds) if study.tune else []
    workers = min(LocalEngine(command.workers).workers, available_cores(), len(planned))
    total = sum(one.seconds or 0 for one in [*planned, *searched]) / workers
    if command.json:
        points = [one.entry() | {"seed": one.point.seed, "seconds": one.seconds} for one in planned]
        contrasts = [one.entry() for one in examined]
        said = {"study": study.name, "hash": study.hash, "points": points, "contrasts": contrasts}
        print(json.dumps(said | {"searched": len(searched), "workers": workers, "seconds": total}, indent=1))
        return 0
    out.print(_plan_table(study, planned))
    more = f" and {len(searched)} of the search" if searched else ""
    out.print(f"\n{len(planned)} points{more} · about {_duration(total)} of training steps on {workers} CPU cores")
    out.print(_budget_line(study, planned))
    for noise in sorted({one.point.label_noise for one in planned} - {0.0}):
        from spectrum.study.images import CLASSES
        from spectrum.study.teacher import noise_ceiling

        best = noise_ceiling(noise, CLASSES)
        out.print(f"label_noise {noise:g}: the best accuracy that can be expected is {100 * best:.2f} %")
    if "step_time" in study.budget.match and (frozen is None or frozen.get("hash") != study.hash):
        out.print("step times are measured again when the study first runs; its widths may differ a little from these")
    for one in examined:
        _print_contrast(one.entry())
    return 0


def _plan_table(study: Study, planned: Sequence[PlannedPoint]) -> Table:
    from spectrum.analysis.stats import SPLIT

    table = Table(title=study.question or study.name, title_justify="left", box=None, pad_edge=False)
    others = [name for name in study.varied() if name not in (*SPLIT, "match")]
    matched = study.budget.match != ("none",)
    titles = ["segments", *others, *(["budget", "widths"] if matched else []), "seeds", "params", "MACs"]
    for name in [*titles, *(["mismatch"] if matched else []), "realised segments", "seconds"]:
        table.add_column(name, justify="left" if name == "segments" else "right")
    groups: dict[Any, list[PlannedPoint]] = {}
    for one in planned:
        groups.setdefault((one.match, one.asked.model_copy(update={"seed": 0}).id), []).append(one)
    for group in groups.values():
        first = group[0]
        least, most = min(first.realised_segments, default=0), max(first.realised_segments, default=0)
        realised = str(most) if least == most else f"{least} … {most}"
        if first.clamped_layers:
            realised += f" ({first.clamped_layers} of {len(first.realised_segments)} layers clamped)"
        widths = " ".join(map(str, first.point.widths)) if first.point.widths else f"× {first.point.width:g}"
        mismatch = "" if first.mismatch is None else f"{first.mismatch:+.2%}"
        table.add_row(
            _point_name(first.asked),
            *[str(getattr(first.asked, name)) for name in others],
            *([first.match.replace("_", " "), widths] if matched else []),
            str(len(group)),
            f"{first.params:,}",
            f"{first.macs:,}",
            *([mismatch] if matched else []),
            realised,
            f"{first.seconds:.1f}",
        )
    return table


def _budget_line(study: Study, planned: Sequence[PlannedPoint]) -> str:
    said = []
    for match in study.budget.match:
        if match == "none":
            said.append("none (unmatched)")
            continue
        worst = max(abs(one.mismatch or 0) for one in planned if one.match == match)
        said.append(f"equal {match.replace('_', ' ')}, within {worst:.2%}")
    return f"budget: {' · '.join(said)}"


def _print_contrast(contrast: dict[str, Any]) -> None:
    """A contrast of a plan and its factors; one that changes more than one is flagged."""
    if not contrast["confounded"]:
        out.print(f"contrast {contrast['name']!r}: changes {', '.join(contrast['factors']) or 'nothing'}")
    else:
        out.print(f"CONFOUNDED contrast {contrast['name']!r}: changes {len(contrast['factors'])} factors at once")
        for factor in contrast["factors"]:
            out.print(f"  - {factor}")
    for note in contrast["notes"]:
        out.print(f"  note: {note}")


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
                confirm=command.confirm,
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
    plan = _frozen_plan(summary.folder)
    for contrast in plan["contrasts"]:
        if contrast["confounded"]:
            _print_contrast(contrast)
    _print_choices(summary, plan)
    _show_report(summary.folder)
    if summary.diverged:
        err.print(f"{summary.diverged} points diverged; they count, at chance")
    if summary.failed:
        err.print(f"{summary.failed} points failed; run the same command again to try them again")
        return 1
    return 0


def _print_choices(summary: Summary, plan: dict[str, Any]) -> None:
    from spectrum.analysis.report import choice_name

    for choice in summary.choices:
        values = " ".join(f"{name}={value:g}" for name, value in choice.values.items())
        out.print(f"chosen for {choice_name(plan, choice.entry())}: {values} (validation {choice.val_accuracy:.4f})")
        for name, side in [*((n, "smallest") for n in choice.low_edges), *((n, "largest") for n in choice.high_edges)]:
            err.print(f"  {name}={choice.values[name]:g} is the {side} of the grid; a better value may lie beyond")
    if not summary.confirmed and summary.choices:
        out.print("the search is complete; run the same command with --confirm to train the points at these values")


def _status(command: Status) -> int:
    from spectrum.study.store import latest_rows, read_plan

    folder, study = _folder(command.study, command.out)
    plan = read_plan(folder)
    if study is not None and (plan is None or plan["hash"] != study.hash):
        if study.tune is not None or study.budget.match != ("none",):
            out.print(f"{folder}: not run yet as the study is now; {len(study.wanted())} points left")
            return 0
        ids = [point.id for point in study.points()]
    else:
        plan = _frozen_plan(folder)
        entries = [*plan.get("tuning", {}).get("points", []), *plan["points"]]
        ids = list(dict.fromkeys(entry["id"] for entry in entries))
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


def _audit(command: Audit) -> int:
    from spectrum.cost.audit import as_prose, as_rows, audit
    from spectrum.cost.count import measure_cost
    from spectrum.models import build_model

    for name in ("image_size", "channels", "classes"):
        if getattr(command, name) < 1:
            raise SpecError(f"--{name.replace('_', '-')} {getattr(command, name)}: expected at least 1")
    fields = merged(Point(), command.point | {"model": command.model}).architecture(
        command.channels, command.classes, command.image_size
    )
    model, shape = build_model(command.model, fields), (command.channels, command.image_size, command.image_size)
    cost = measure_cost(model, shape, batch_size=command.batch_size)
    if command.layers:
        _print_table(
            ["layer", "kind", "params", "MACs", "backward MACs", "activations"],
            [
                [
                    layer.name,
                    layer.kind,
                    *(f"{n:,}" for n in (layer.params, layer.macs, layer.backward_macs, layer.activations)),
                ]
                for layer in cost.layers
            ],
        )
        out.print()
    out.print(
        f"{command.model} on one image of {'×'.join(map(str, shape))}: {cost.params:,} parameters · {cost.macs:,} MACs "
        f"({cost.flops:,} FLOPs) forward · {cost.backward_macs:,} MACs backward · {cost.activations:,} activations"
    )
    if cost.speed is not None:
        speed = cost.speed
        out.print(
            f"measured, {speed.threads} thread: latency of one image {1e3 * speed.latency:.2f} ms "
            f"(IQR {1e3 * speed.latency_iqr:.2f}) · training step of {speed.batch_size} images "
            f"{1e3 * speed.step:.1f} ms (IQR {1e3 * speed.step_iqr:.1f}) · its peak memory "
            f"{speed.peak_memory / 1e6:.1f} MB of tensors"
        )
    out.print()
    audited = audit(model, shape)
    _print_table(*as_rows(audited))
    out.print(f"\n{as_prose(audited)}")
    return 0


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number == 0 or title == "reasons" else "right")
    for row in rows:
        table.add_row(*row)
    out.print(table)


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
    Audit: _audit,
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
    import pandas as pd

    from spectrum.analysis.report import as_text, write_report
    from spectrum.study.store import ROWS, load_history, load_results, load_tuning

    plan = _frozen_plan(folder)
    results = load_results(folder) if plan["points"] else pd.DataFrame()
    tuning = load_tuning(folder) if "tuning" in plan else None
    report = write_report(folder, results, load_history(folder), plan, tuning)
    out.print()
    if len(report.table):
        _print_table(*as_text(report.table))
        out.print()
    first = "spectrum.png" if plan["points"] else "tuning.png"
    for name, path in (
        ("figure", next((path for path in report.figures if path.name == first), None)),
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
    searched = study.tune is not None and row["scored_on"] == "validation" and row["seed"] in study.tune.seeds
    names += list(study.tune.grid()) if study.tune is not None and searched else []
    said = " ".join(f"{name}={row[name]}" for name in names)
    if row["status"] == "failed":
        return f"{said} failed: {row['reason']}"
    diverged = " (diverged)" if row["status"] == "diverged" else ""
    scored = "val" if row["test_accuracy"] is None else "test"
    return f"{said} · {scored} {row[f'{scored}_accuracy']:.4f}{diverged} · {row['train_seconds']:.0f} s"


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

"""Commands that read a study's file: `plan` and `run`."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

from spectrum.cli.arguments import OnStudy, Plan, Run
from spectrum.cli.printing import counted, duration, err, out, print_contrast, print_table
from spectrum.cli.progress import progress
from spectrum.cli.results import show_report, standing_of
from spectrum.design.budgets import budget_name
from spectrum.design.plan import Plan as FrozenPlan
from spectrum.design.study_file import Match, Study, load_study
from spectrum.models.position import PLACES, Position
from spectrum.study.identity import check_not_other, folder_of
from spectrum.study.store import find_plan, latest_rows, read_plan

if TYPE_CHECKING:
    from spectrum.engines.interface import Engine
    from spectrum.engines.ray import Cluster
    from spectrum.study.callbacks import Callback
    from spectrum.study.contrasts import Examined
    from spectrum.study.driver import Summary
    from spectrum.study.planning import CostedRun

BUSY = 0.8  # share of a core per worker below which `plan` also estimates the time on an idle machine


def _study(command: OnStudy) -> Study:
    study = load_study(command.file)
    return study.with_base(**command.run) if command.run else study


def plan(command: Plan) -> int:
    """Show what a study would train, and write nothing."""
    from spectrum.design.budgets import timed
    from spectrum.study.equal_networks import coincidences

    study = _study(command)
    folder = folder_of(study, command.out)
    check_not_other(folder, study)
    frozen = find_plan(folder)
    with err.status("counting and timing …") if err.is_terminal else contextlib.nullcontext():
        forecast = _forecast(study, command, frozen, folder)
    if command.json:
        print(json.dumps(forecast.entry(study), indent=1))
        return 0
    _show_forecast(study, forecast, verbose=command.verbose)
    for note in coincidences(study, forecast.planned):
        out.print(note)
    if timed(study.budget.match) and (frozen is None or not frozen.is_of(study.hash)):
        out.print("`run` measures step times again, so its widths may differ slightly from these.")
    if forecast.examined:
        out.print("\nComparisons")
    for one in forecast.examined:
        print_contrast(one.record())
    return 0


def after_plan(command: Plan, words: Sequence[str]) -> list[str]:
    """The command that goes on after `plan`: `run`, or `report` where nothing is left to train.

    Args:
        command: the plan that was shown.
        words: the study and the flags that it was given.
    """
    study = _study(command)
    folder = folder_of(study, command.out)
    frozen = find_plan(folder)
    if frozen is None or not frozen.is_of(study.hash):
        return ["run", *words]
    finished = standing_of(folder, frozen) == "finished"
    if finished and frozen.runs:
        return ["report", str(folder)]
    swept = frozen.tuning is not None and (finished or bool(frozen.runs))
    return ["run", *words, *(["--confirm"] if swept else [])]


def _print_images(images: Sequence[dict[str, Any]], *, verbose: bool, when: str = "") -> None:
    """Print a summary of each data set, or with `verbose` its complete description."""
    from spectrum.data.splits import describe, summarise

    for known in images:
        size = f" at image_size {known['image_size']}" if len(images) > 1 and known["image_size"] else ""
        name = known["dataset"] + size
        first, *others = [describe(name, known)] if verbose else summarise(name, known)
        out.print(f"data{when}: {first}")
        for line in others:
            out.print(f"  {line}")


@dataclass(frozen=True)
class _Forecast:
    """Forecast of a study: its final runs, the runs of its learning-rate sweep, and the changes in its comparisons."""

    planned: Sequence[CostedRun]
    swept: Sequence[CostedRun]
    left: Sequence[CostedRun]  # final runs without a result, each once
    left_swept: Sequence[CostedRun]
    sweep_runs: int  # of the sweep as it stands: its grid may have been extended
    examined: Sequence[Examined]
    workers: int
    images: Sequence[dict[str, Any]]  # records of each data set
    overhead: float  # CPU seconds before and after training: start of the command and of a worker, planning, report
    share: float  # share of a core that each worker gets

    @property
    def seconds(self) -> float:
        """Elapsed seconds from the command to its page for runs without a result, with the machine as busy as now."""
        from spectrum.study.forecast import makespan

        left = [one.seconds or 0 for one in (*self.left_swept, *self.left)]
        return (self.overhead + makespan(left, self.workers)) / self.share

    def entry(self, study: Study) -> dict[str, Any]:
        """The output of `plan --json`."""
        return {
            "study": study.name,
            "hash": study.hash,
            "points": [
                one.record().entry() | {"seed": one.run.seed, "seconds": one.seconds, "caveat": one.caveat}
                for one in self.planned
            ],
            "contrasts": [one.record().entry() for one in self.examined],
            "images": self.images,
            "searched": self.sweep_runs,
            "left": len(self.left_swept) + len(self.left),
            "workers": self.workers,
            "seconds": self.seconds,
        }


def _forecast(study: Study, command: Plan, frozen: FrozenPlan | None, folder: Path) -> _Forecast:
    from spectrum.data.images import described, read_once
    from spectrum.engines.cores import available_cores
    from spectrum.study.backends import asked_tune
    from spectrum.study.contrasts import examine
    from spectrum.study.forecast import LOOK, REPORT, share_of_a_core, start_seconds
    from spectrum.study.planning import plan_study
    from spectrum.study.tuning import sweep

    start = start_seconds()
    began = process_time()
    with read_once():
        tunes = asked_tune(None) != "off"
        planned = plan_study(study, imports=command.imports, time_steps=True, frozen=frozen, tune=tunes)
        images = described(one.run for one in planned)
    timing = LOOK * (1 + len({one.step_seconds for one in planned}))  # part of `plan` only
    workers = min(command.settings.workers or available_cores(), available_cores(), len(planned))
    swept = sweep(planned, study.tune.grid(), study.tune.seeds) if study.tune else []
    started = frozen if frozen is not None and frozen.is_of(study.hash) else None
    left, left_swept = _without_result(planned, swept, started, folder)
    return _Forecast(
        planned=planned,
        swept=swept,
        left=left,
        left_swept=left_swept,
        sweep_runs=len(swept) if started is None else len(started.swept),
        examined=examine(study, planned),
        workers=workers,
        images=images,
        overhead=2 * start + max(0.0, process_time() - began - timing) + REPORT,
        share=share_of_a_core(workers),
    )


def _without_result(
    planned: Sequence[CostedRun], swept: Sequence[CostedRun], frozen: FrozenPlan | None, folder: Path
) -> tuple[list[CostedRun], list[CostedRun]]:
    """Final runs and runs of the sweep without a result, each once; failed runs are among them."""
    rows = latest_rows(folder) if frozen is not None else {}
    ended = {id for id, row in rows.items() if row["status"] != "failed"}
    final = {run.key: run.id for run in (frozen.runs if frozen is not None else ())}
    ids = {final.get((one.asked.id, one.match), one.run.id): one for one in planned}
    left = [one for id, one in ids.items() if id not in ended]
    if frozen is None or not swept:
        return left, list(swept)
    # runs of an extended grid take about as long as those of the file
    of_grid = itertools.cycle(swept)
    return left, [one for run, one in zip(frozen.swept, of_grid, strict=False) if run.id not in ended]


def _show_forecast(study: Study, forecast: _Forecast, *, verbose: bool) -> None:
    out.print(study.question or study.name)
    _print_configurations(study, forecast.planned)
    out.print(f"\n{_training(study, forecast)}")
    _print_images(forecast.images, verbose=verbose)
    for model, caveat in {one.run.model: one.caveat for one in forecast.planned if one.caveat}.items():
        out.print(f"model {model}: {caveat}")
    for noise in sorted({one.run.label_noise for one in forecast.planned} - {0.0}):
        from spectrum.data.images import CLASSES
        from spectrum.data.teacher import noise_ceiling

        best = noise_ceiling(noise, CLASSES)
        out.print(f"label_noise {noise:g}: the best accuracy that can be expected is {100 * best:.2f}%")


def _training(study: Study, forecast: _Forecast) -> str:
    """Number of runs of each kind, how many are left, and the time that those take."""
    planned = {one.run.id: one for one in forecast.planned}  # a run that meets several budgets is trained once
    count, networks = len(planned), len({one.run.model_copy(update={"seed": 0}).id for one in planned.values()})
    seeds, rest = divmod(count, networks)
    of = f" ({counted(networks, 'configuration')} × {counted(seeds, 'seed')})" if not rest and count > 1 else ""
    runs = f"{_sweep(study, forecast)}{counted(count, 'final run' if study.tune is not None else 'run')}{of}"
    total, left = count + forecast.sweep_runs, len(forecast.left_swept) + len(forecast.left)
    if not left:
        return f"{runs}. {'It has' if total == 1 else 'All have'} a result already."
    cores = counted(forecast.workers, "CPU core")
    idle = f", {duration(forecast.seconds * forecast.share)} if nothing else ran on them"
    busy = idle if forecast.share < BUSY else ""
    part = f"; {left:,} of {total:,} are left" if left < total else ""
    return f"{runs}{part}: about {duration(forecast.seconds)} on {cores}{busy}."


def _sweep(study: Study, forecast: _Forecast) -> str:
    """The runs of the sweep, and how many there may be where its grid is extended; empty for a study without one."""
    if study.tune is None:
        return ""
    grid = study.tune.grid()
    runs = len(forecast.swept)
    most = runs * math.prod(1 + 2 * study.tune.extend / len(values) for values in grid.values() if len(values) > 1)
    may_grow = forecast.left_swept and round(most) > forecast.sweep_runs == runs
    more = f", up to {round(most):,} if the grid is extended" if may_grow else ""
    return f"{counted(forecast.sweep_runs, 'sweep run')}{more}, then "


def _print_configurations(study: Study, planned: Sequence[CostedRun]) -> None:
    """Print a table per budget, with a row per configuration."""
    from spectrum.analysis.table import SPLIT

    others = [name for name in study.varied() if name not in (*SPLIT, "match")]
    for match in study.budget.match:
        groups: dict[str, list[CostedRun]] = {}
        for one in planned:
            if one.match == match:
                groups.setdefault(one.asked.model_copy(update={"seed": 0}).id, []).append(one)
        rows = [_cells(group[0], len(group), others) for group in groups.values()]
        shown = [column for column, cells in enumerate(zip(*rows, strict=True)) if any(cell for _, cell in cells)]
        titles = [rows[0][column][0] for column in shown]
        print_table(
            titles, [[row[column][1] for column in shown] for row in rows], heading=f"\n{_heading(match, planned)}"
        )


def _heading(match: Match, planned: Sequence[CostedRun]) -> str:
    name = budget_name(match)
    name = name[:1].upper() + name[1:]
    if match == "none":
        return name
    worst = max(abs(one.mismatch or 0) for one in planned if one.match == match)
    return f"{name}, within {worst:.2%}"


def _cells(one: CostedRun, seeds: int, others: Sequence[str]) -> list[tuple[str, str]]:
    """Titles and cells of one row. A title may occur twice, if widths vary and are solved."""
    asked = one.asked
    widths = " ".join(map(str, one.run.widths)) if one.run.widths else f"× {one.run.width:g}"
    return [
        ("segments", Position.of(asked).label),
        *((name, str(getattr(asked, name))) for name in others),
        ("widths", widths),
        ("seeds", str(seeds)),
        ("parameters", f"{one.params:,}"),
        ("MACs", f"{one.macs:,}"),
        ("mismatch", "" if one.mismatch is None else f"{one.mismatch:+.2%}".replace("-", "−")),
        ("realised segments", _realised(one)),
        ("s per run", f"{one.seconds:.1f}"),
    ]


def _realised(one: CostedRun) -> str:
    """Actual segments of the layers, and the number of clamped layers; empty if the label already says this."""
    least, most = min(one.realised_segments, default=0), max(one.realised_segments, default=0)
    realised = str(most) if least == most else f"{least} … {most}"
    layers = f" of {len(one.realised_segments)}" if one.realised_segments else ""
    options = dict(one.clamped if one.clamped is not None else [("segments", one.clamped_layers)])
    clamped = [
        f"{count}{layers} layers clamped{'' if name in PLACES else f' in {name}'}"
        for name, count in options.items()
        if count
    ]
    if not clamped and realised == Position.of(one.asked).label:
        return ""
    return f"{realised} ({'; '.join(clamped)})" if clamped else realised


def run(command: Run) -> int:
    """Train the runs that have no result yet, then show the results; status 1 if a run failed."""
    from spectrum.engines.interface import EngineError
    from spectrum.study.driver import run_study

    study, callbacks = _study(command), _callbacks(command)
    started = monotonic()
    try:
        with _engine(command) as engine, progress(study) as on_progress:
            if engine is None:
                return 0  # this rank followed the first one until its end
            summary = run_study(
                study,
                command.out,
                engine=engine,
                confirm=command.confirm,
                stop_on_failure=command.stop_on_failure,
                callbacks=callbacks,
                imports=command.imports,
                **vars(command.settings),
                on_progress=on_progress,
                on_note=err.print,
            )
    except EngineError as error:
        err.print(f"spectrum: {error}")
        return 1
    _print_counts(summary, monotonic() - started)
    frozen = read_plan(summary.folder)
    for contrast in frozen.contrasts:
        if contrast.confounded:
            print_contrast(contrast)
    _print_choices(summary, frozen)
    reused = summary.reused == summary.total  # then no data was read
    _print_images(frozen.images, verbose=command.verbose, when=" of the rows" if reused else "")
    show_report(summary.folder)
    if summary.diverged:
        err.print(f"{counted(summary.diverged, 'run')} diverged; scored at chance")
    if summary.failed:
        stopped = f", which stopped the study; {counted(summary.left, 'run')} left" if summary.left else ""
        err.print(f"{counted(summary.failed, 'run')} failed{stopped}; run the same command again to retry")
        return 1
    return 0


def _callbacks(command: Run) -> list[Callback]:
    """The callbacks that the flags ask for. Raises SpecError for a tracker that is not installed."""
    from spectrum._records import SpecError
    from spectrum.study.tensorboard import TensorBoard

    try:
        return [TensorBoard()] if command.log == "tensorboard" else []
    except SpecError as error:
        raise SpecError(f"--log tensorboard: {error}") from None


@contextlib.contextmanager
def _engine(command: Run) -> Iterator[Engine | str | None]:
    """Engine to train on; None on a rank of torchrun that followed the first one until its end."""
    cluster = _cluster(command)
    if command.engine == "torchrun":
        with _ranks(command) as ranks:
            yield ranks
    elif command.engine == "ray":
        from spectrum.engines.ray import RayEngine

        yield RayEngine(cluster)
    else:
        yield command.engine


def _cluster(command: Run) -> Cluster:
    from spectrum._records import SpecError
    from spectrum.engines.ray import Cluster

    cluster = Cluster(command.address, command.run_cpus, command.run_gpus, command.run_ranks)
    if command.engine != "ray":
        if cluster != Cluster():
            raise SpecError(
                "--address, --run-cpus, --run-gpus and --run-ranks need --engine ray; add it or leave them out"
            )
        return cluster
    if find_spec("ray") is None:
        raise SpecError('--engine ray: Ray is not installed. In a checkout of the repository: pip install ".[ray]"')
    if not cluster.cpus > 0:
        raise SpecError(f"--run-cpus {cluster.cpus:g}: expected more than 0")
    if cluster.ranks < 1:
        raise SpecError(f"--run-ranks {cluster.ranks}: expected 1 or more")
    if not cluster.gpus >= 0:
        raise SpecError(f"--run-gpus {cluster.gpus:g}: expected 0 or more")
    return cluster


@contextlib.contextmanager
def _ranks(command: Run) -> Iterator[Engine | None]:
    """Engine of torchrun's first rank; None on another rank, which follows the first until its end."""
    from spectrum._records import SpecError
    from spectrum.engines.interface import EngineError, EngineSettings
    from spectrum.engines.torchrun import RankEngine, follow, join, leave

    asked = command.settings
    RankEngine.check(EngineSettings(**vars(asked)))  # checked before ranks wait for each other
    try:
        ranks, device = join("cpu" if asked.device == "auto" else asked.device)
    except EngineError as error:
        raise SpecError(str(error)) from None
    try:
        if ranks.rank:
            follow(ranks, device, command.imports)
            yield None
        else:
            yield RankEngine(ranks, device)
    except (KeyboardInterrupt, SystemExit):
        raise  # torchrun ends the other ranks, which would not receive a message in the middle of a step
    except BaseException:
        leave(ranks)
        raise
    leave(ranks)


def _print_counts(summary: Summary, seconds: float) -> None:
    if summary.set_aside:
        err.print(f"{counted(summary.set_aside, 'torn or garbled line')} moved to {summary.folder / 'results.bad'}")
    if summary.reused:
        out.print(f"{summary.reused} of {counted(summary.total, 'run')} had a result already and were reused")
    if summary.reused < summary.total:
        out.print(f"{counted(summary.total - summary.reused, 'run')} took {duration(seconds)}")


def _print_choices(summary: Summary, frozen: FrozenPlan) -> None:
    from spectrum.analysis.described import choice_name

    kept = {choice.id: choice for choice in (frozen.tuning.choices if frozen.tuning is not None else ())}
    for choice in summary.choices:
        values = " ".join(f"{name}={value:g}" for name, value in choice.values.items())
        name = choice_name(frozen, kept[choice.id])
        out.print(f"chosen for {name}: {values} (validation {choice.val_accuracy:.2%})")
        edges = [*((n, "smallest") for n in choice.low_edges), *((n, "largest") for n in choice.high_edges)]
        for field, side in edges:
            err.print(f"  {field}={choice.values[field]:g} is the {side} of the grid; a better value may lie beyond it")
    if not summary.confirmed and summary.choices:
        out.print("The sweep is complete. To train the final runs at these values, repeat the command with --confirm")

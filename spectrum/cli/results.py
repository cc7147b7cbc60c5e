"""Commands that read a study's rows: `status`, `doctor`, `report` and `export`."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spectrum._files import reason_of, write_whole
from spectrum._records import SpecError
from spectrum._text import bytes_in_words
from spectrum.cli.arguments import Compare, Doctor, Export, Report, Status
from spectrum.cli.printing import counted, err, out, print_next, print_table, run_name
from spectrum.design.plan import Plan as FrozenPlan
from spectrum.design.study_file import Study, load_study
from spectrum.study.identity import changed_since, check_not_other, check_same, contrasts_changed, folder_of
from spectrum.study.store import (
    PLAN,
    ROWS,
    Row,
    StoreError,
    WriteError,
    bad_lines,
    find_plan,
    is_own,
    kept_rows,
    latest_rows,
    read_plan,
    read_rows,
    writer_of,
)
from spectrum.training.checkpoint_files import CHECKPOINTS, checkpoint_files
from spectrum.training.weight_files import weights_of

if TYPE_CHECKING:
    from spectrum.analysis.report import Report as Written
    from spectrum.study.doctor import Finding

FIGURE_FORMATS = [".png", ".pdf", ".svg"]
Standing = Literal["training", "left", "finished"]
# keys of the plan that a page needs
PLANNED = {"study", "question", "file", "overrides", "imports", "hash", "budget", "varied"}


def status(command: Status) -> int:
    """Print how many runs are done, diverged, failed and left, and why runs failed."""
    folder, study = _folder(command.study, command.out)
    _print_overridden(folder, study)
    held = None if study is None else check_not_other(folder, study)
    if study is None or held == "same":
        plan = read_plan(folder)
        _print_what_next(folder, plan, _print_standing(folder, plan))
        _print_torn(folder)
        return 0
    if held == "version":
        out.print(f"{folder}: the study has changed since it ran here{changed_since(study, find_plan(folder))}")
    if study.tune is not None or study.budget.match != ("none",):  # the runs are only known after planning
        sweep = "a learning-rate sweep, then " if study.tune is not None else ""
        to_train = f"{sweep}up to {counted(len(study.wanted()), 'run')}"
        out.print(f"{folder}: this version of the study has not run yet; {to_train}.")
    else:
        rows = latest_rows(folder)
        out.print(f"{folder}: {_counts([_status_of(rows, run.id) for run in study.runs()])}")
    print_next("run", str(command.study), *(["--out", str(command.out)] if command.out is not None else []))
    return 0


def _print_what_next(folder: Path, plan: FrozenPlan, standing: Standing) -> None:
    """Print the next command: the report of a finished study, else the run that continues it."""
    from spectrum.analysis.described import run_command

    only_swept = standing == "finished" and plan.tuning is not None and not plan.runs
    if standing == "finished" and not only_swept:
        print_next("report", str(folder))
    elif standing != "training" and not plan.lacks(PLANNED):
        elsewhere = folder.resolve() != (Path("results") / str(plan.study)).resolve()
        more = [*(["--out", str(folder)] if elsewhere else []), *(["--confirm"] if only_swept else [])]
        out.print(f"{'next':7} {run_command(plan)} {shlex.join(more)}".rstrip())


def _print_standing(folder: Path, plan: FrozenPlan) -> Standing:
    """Print how many runs ended how, and which failed. Returns the state of the study."""
    rows = latest_rows(folder)
    statuses = [_status_of(rows, id) for id in plan.ids]
    standing = standing_of(folder, plan)
    if statuses and not {"left", "failed"} & set(statuses):
        out.print(f"{folder}: {_finished(plan, statuses)}")
    else:
        out.print(f"{folder}: {_counts(statuses)}")
    writer = writer_of(folder)
    if writer is not None:
        out.print(f"  training now: {writer}")
    _print_kept(folder)
    swept = {run.id for run in plan.swept}
    for run in {run.id: run for run in (*plan.swept, *plan.runs)}.values():
        # early plans do not store the options of a run
        options = rows.get(run.id, {}) if run.stored is None else run.options | {"match": run.match}
        varied = run_name(options, plan.varied, plan.tuned if run.id in swept else ())
        name = f"{varied} (id {run.id})" if varied else run.id
        newest = next(checkpoint_files(folder / CHECKPOINTS / run.id), None) if run.id not in rows else None
        if newest is not None:
            out.print(f"  part-way: {name}, {counted(newest.step, 'step')} saved")
        if _status_of(rows, run.id) == "failed":
            out.print(f"  failed: {name}: {rows[run.id].get('reason')}")
    return standing


def _print_kept(folder: Path) -> None:
    """Print how many trained networks there are, and their size."""
    kept = [path for id in kept_rows(folder) if (path := weights_of(folder, id)).is_file()]
    if kept:
        size = bytes_in_words(sum(path.stat().st_size for path in kept))
        out.print(f"  {counted(len(kept), 'trained network')} kept, {size}")


def standing_of(folder: Path, plan: FrozenPlan) -> Standing:
    """Whether a study trains now, has runs left, failed ones among them, or has finished what is planned so far."""
    if writer_of(folder) is not None:
        return "training"
    rows = latest_rows(folder)
    statuses = {_status_of(rows, id) for id in plan.ids}
    return "finished" if statuses and not {"left", "failed"} & statuses else "left"


def _status_of(rows: Mapping[str, Row], id: str) -> str:
    return str(rows[id]["status"]) if id in rows else "left"


def _finished(plan: FrozenPlan, statuses: Sequence[str]) -> str:
    """Summary of a study in which every planned run has a result."""
    final, swept = len({run.id for run in plan.runs}), len({run.id for run in plan.swept})
    kinds = [counted(final, "final run" if swept else "run")] if final else []
    kinds += [counted(swept, "sweep run")] if swept else []
    diverged = statuses.count("diverged")
    ended = f"none failed, {diverged} diverged (scored at chance)" if diverged else "none failed or diverged"
    return f"{'complete' if final else 'sweep complete, final runs not started'}. {', '.join(kinds)}; {ended}."


def _counts(statuses: Sequence[str]) -> str:
    """Numbers of done, diverged, failed and remaining runs of an unfinished study."""
    done = statuses.count("done")
    others = [f"{statuses.count(one)} {one}" for one in ("diverged", "failed", "left") if one in statuses]
    return f"{done} of {counted(len(statuses), 'run')} done; {', '.join(others) or 'none left'}."


def doctor(command: Doctor) -> int:
    """Print what is wrong in a folder, after a requested repair; status 1 if faults remain."""
    from spectrum.study.doctor import look_at, repair

    folder, study = _folder(command.study, command.out)
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder, so the study has not run yet: spectrum run {command.study}")
    if study is not None and check_not_other(folder, study) == "version":
        changed = changed_since(study, find_plan(folder))
        err.print(f"{folder}: {study.name} has changed since it ran here{changed}; this is about the earlier version")
    found = look_at(folder)
    if command.repair and any(one.can_be_mended for one in found):
        repair(folder, found)
        left = look_at(folder)
        for one in found:
            if one.can_be_mended and one not in left:
                out.print(f"repaired: {one.message}")
        found = left
    return _print_findings(folder, found)


def _print_findings(folder: Path, found: Sequence[Finding]) -> int:
    """Print the findings; status 1 if there are faults."""
    for one in found:
        mend = " (--repair)" if one.can_be_mended else ""
        out.print(f"{'fault' if one.fault else 'note'}: {one.message}{mend}")
    faults = sum(one.fault for one in found)
    counts = ((len(read_rows(folder)), "row"), (faults, "fault"), (len(found) - faults, "note"))
    totals = " · ".join(f"{count} {word if count == 1 else word + 's'}" for count, word in counts)
    out.print(f"{folder}: {totals}")
    if any(one.can_be_mended for one in found):
        print_next("doctor", str(folder), "--repair")
    return 1 if faults else 0


def report(command: Report) -> int:
    """Draw the figures and write the page again."""
    _print_overridden(*_folder(command.study, command.out))
    show_report(*_folder_to_read(command.study, command.out))
    return 0


def export(command: Export) -> int:
    """Write rows, or a table of the study, in the format of the file name's ending."""
    from spectrum.analysis.export import ROW_FORMATS, TABLE_FORMATS, contrasts_table, runs_table
    from spectrum.analysis.report import judge
    from spectrum.results import load_results

    kind = command.to.suffix
    _check_target(command.to, [*ROW_FORMATS, *TABLE_FORMATS])
    folder, loaded = _folder_to_read(command.study, command.out)
    if command.contrasts:
        _raise_without_contrasts(folder, loaded)
    results = load_results(folder, all_runs=kind in ROW_FORMATS and not command.contrasts)
    rows = judge(results, read_plan(folder)) if command.contrasts else results
    if command.contrasts and rows.empty:
        raise SpecError(f"{folder}: no run of the study's [[contrasts]] is there yet; run the study first")
    count = len(rows)
    if kind in ROW_FORMATS:
        ROW_FORMATS[kind](rows, command.to)
    else:
        plan = find_plan(folder)
        known = plan.count if plan is not None else None
        table = contrasts_table(rows, results) if command.contrasts else runs_table(results, known)
        write_whole(command.to, TABLE_FORMATS[kind](table))
        count = len(table.rows)
    each = "contrast" if command.contrasts else "row" if kind in ROW_FORMATS else "configuration"
    what = f"{'table of ' if kind in TABLE_FORMATS else ''}{counted(count, each)}"
    out.print(f"{what} written to {command.to}")
    return 0


def compare(command: Compare) -> int:
    """Print what the runs of a table show of its methods; write them to a file if asked."""
    from spectrum.analysis.compare import compare as compared
    from spectrum.analysis.export import ROW_FORMATS

    if command.to is not None:
        _check_target(command.to, [*ROW_FORMATS])
    if command.figure is not None:
        _check_target(command.figure, FIGURE_FORMATS, "--figure")
    found = compared(
        command.runs,
        by=command.by,
        metric=command.metric,
        pair=command.pair,
        average_over=command.average_over,
        against=command.against,
        margin=command.margin,
        lower_is_better=command.lower_is_better,
        test_images=command.test_images,
        pattern=command.pattern,
    )
    out.print(str(found))
    if command.to is not None:
        ROW_FORMATS[command.to.suffix](found.judged.drop(columns=["unit"]), command.to)
        out.print(f"{counted(len(found.judged), 'comparison')} written to {command.to}")
    if command.figure is not None:
        from spectrum.analysis.plots import compared as drawn

        drawn(found).savefig(command.figure)
        out.print(f"figure written to {command.figure}")
    return 0


def _check_target(path: Path, endings: Sequence[str], flag: str = "--to") -> None:
    if path.suffix not in endings:
        raise SpecError(f"{flag} {path}: expected a name that ends in {', '.join(endings[:-1])} or {endings[-1]}")
    if not path.parent.is_dir():
        raise SpecError(f"{flag} {path}: no folder {path.parent}; create it first")
    if is_own(path):
        raise SpecError(f"{flag} {path}: is a file of a study's folder; give another name")


def _raise_without_contrasts(folder: Path, study: Study | None) -> None:
    if read_plan(folder).contrasts:
        return
    if study is not None and study.contrasts:
        raise SpecError(
            f"{folder}: the file has [[contrasts]], but the frozen plan in this folder has none; "
            "run the study again: spectrum run FILE"
        )
    raise SpecError(f"{folder}: the study has no [[contrasts]]; add them to its file and run it again")


def show_report(folder: Path, study: Study | None = None) -> None:
    """Write figures and page of a study's folder, print its table and the paths of the files.

    If the file was renamed or reworded since the plan was frozen, the page shows today's name and question, and the
    question of the plan next to it.
    """
    import pandas as pd

    from spectrum.analysis.report import write_report
    from spectrum.results import load_history, load_results, load_tuning

    plan = read_plan(folder)
    if study is not None:
        plan = plan.model_copy(update={"study": study.name, "file": f"{study.file_name}.toml"})
    if missing := plan.lacks(PLANNED):
        raise StoreError(f"{folder / PLAN}: lacks {', '.join(missing)}; remove it and run the study again")
    results = load_results(folder) if plan.runs else pd.DataFrame()
    tuning = load_tuning(folder) if plan.tuning is not None else None
    try:
        question = None if study is None else study.question
        report = write_report(folder, results, load_history(folder), plan, tuning, question)
    except OSError as error:
        raise WriteError(f"{error.filename or folder}: the report cannot be written ({reason_of(error)})") from error
    _print_report(folder, report, "spectrum.png" if plan.runs else "tuning.png")
    _print_torn(folder)


def _print_torn(folder: Path) -> None:
    """Say which files have lines that are not read, and how to mend them; nothing while a run writes there."""
    if writer_of(folder) is None:
        for name, count in bad_lines(folder).items():
            err.print(
                f"{folder / name}: {counted(count, 'torn or garbled line')} {'is' if count == 1 else 'are'} not read; "
                f"spectrum doctor {folder} --repair sets {'it' if count == 1 else 'them'} aside"
            )


def _print_overridden(folder: Path, study: Study | None) -> None:
    """Name the folders beside a study's own that hold the same file with other options, as from `run --epochs 3`."""
    if study is None or study.overrides:
        return
    for other in sorted(folder.parent.glob(f"{glob.escape(study.name)}--*")):
        plan = find_plan(other) if (other / PLAN).exists() else None
        if plan is not None and plan.overrides and plan.file == f"{study.file_name}.toml":
            changed = ", ".join(f"{name} = {value}" for name, value in plan.overrides.items())
            out.print(f"{other}: this study with {changed}; see it with: spectrum status {other}")


def _print_report(folder: Path, report: Written, first: str) -> None:
    """Print question, answer, comparisons, caveats, results, in the order of the page, and the files' paths."""
    from spectrum.analysis.summary import as_text

    out.print()
    for heading, lines in (
        ("", [report.question, *report.answer]),
        ("Comparisons", report.sentences),
        ("Caveats", report.caveats),
    ):
        if any(lines):
            for line in filter(None, [heading, *lines]):
                out.print(line if not heading or line == heading else f"- {line}")
            out.print()
    if len(report.table):
        print_table(*as_text(report.table))
        out.print()
    figure = next((path for path in report.figures if path.name == first), None)
    for name, path in (("figure", figure), ("report", report.page), ("rows", folder / ROWS)):
        if path is not None:
            out.print(f"{name:7} {path}")
    if len(report.table):
        table = f"spectrum export {folder} --to NAME.md"
        out.print(f"{'next':7} open the report in a browser; its table as a file: {table}")


def _folder_to_read(study: Path, out: Path | None) -> tuple[Path, Study | None]:
    """Find the folder whose numbers to read, and the study if its file was given.

    Raises StoreError if the numbers belong to another version of the file.
    """
    folder, loaded = _folder(study, out)
    if loaded is not None:
        check_same(folder, loaded)
        plan = find_plan(folder)
        if plan is not None and contrasts_changed(loaded, plan):
            err.print(f"{study}: its contrasts have changed; showing those frozen in {folder / PLAN}")
    return folder, loaded


def _folder(study: Path, out: Path | None) -> tuple[Path, Study | None]:
    """Find the folder of results, and the study if its file was given."""
    if not study.is_dir():
        if study.suffix != ".toml" and not study.exists():
            near = [path for path in (study.with_suffix(".toml"), Path("results") / study) if path.exists()]
            meant = f"; did you mean {' or '.join(map(str, near))}?" if near else ""
            raise SpecError(f"{study}: neither a study's TOML file nor a folder of results{meant}")
        loaded = load_study(study)
        return folder_of(loaded, out), loaded
    if out is not None:
        raise SpecError(f"--out {out}: {study} is a folder of results already; leave --out out")
    if not any((study / name).exists() for name in (PLAN, ROWS)):
        raise SpecError(f"{study} is not a results folder (no {PLAN}, no {ROWS}). Give results/NAME or a study's file.")
    return study, None

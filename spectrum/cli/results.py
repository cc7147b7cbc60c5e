"""The commands that read a study's rows: `status`, `report` and `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectrum.cli.arguments import Export, Report, Status
from spectrum.cli.printing import out, print_table
from spectrum.study.point import SpecError
from spectrum.study.spec import Study, load_study
from spectrum.study.store import (
    PLAN,
    ROWS,
    StoreError,
    is_own,
    latest_rows,
    read_plan,
)


def status(command: Status) -> int:
    """Print how many points are done, diverged, failed and left, and why those that failed did."""
    folder, study = _folder(command.study, command.out)
    plan = read_plan(folder)
    if study is None or (plan is not None and plan["hash"] == study.hash):
        _print_standing(folder, _planned_ids(frozen_plan(folder)))
    elif study.tune is not None or study.budget.match != ("none",):  # its points are known once it is planned
        out.print(f"{folder}: not run yet as the study is now; {len(study.wanted())} points left")
    else:
        _print_standing(folder, [point.id for point in study.points()])
    return 0


def _planned_ids(plan: dict[str, Any]) -> list[str]:
    """Of the points and of the search; a network that serves several budgets once."""
    entries = [*plan.get("tuning", {}).get("points", []), *plan["points"]]
    return list(dict.fromkeys(entry["id"] for entry in entries))


def _print_standing(folder: Path, ids: Sequence[str]) -> None:
    rows = latest_rows(folder)
    statuses = [rows[id]["status"] if id in rows else "left" for id in ids]
    counts = " · ".join(f"{statuses.count(status)} {status}" for status in ("done", "diverged", "failed", "left"))
    out.print(f"{folder}: {len(ids)} points · {counts}")
    for id in ids:
        if id in rows and rows[id]["status"] == "failed":
            out.print(f"  failed {id}: {rows[id].get('reason')}")


def report(command: Report) -> int:
    """Draw figures and page anew."""
    folder, _ = _folder(command.study, command.out)
    show_report(folder)
    return 0


def export(command: Export) -> int:
    """Write a file of rows, or of a table of the study, as its ending says."""
    from spectrum.analysis.export import ROW_FORMATS, TABLE_FORMATS, contrasts_table, points_table
    from spectrum.analysis.report import judge
    from spectrum.results import load_results

    kind, endings = command.to.suffix, [*ROW_FORMATS, *TABLE_FORMATS]
    if kind not in endings:
        raise SpecError(f"--to {command.to}: expected a name that ends in {', '.join(endings[:-1])} or {endings[-1]}")
    if is_own(command.to):
        raise SpecError(f"--to {command.to}: is a file that a study's folder lives on; give another name")
    folder, _ = _folder(command.study, command.out)
    results = load_results(folder, all_points=kind in ROW_FORMATS and not command.contrasts)
    rows = judge(results, frozen_plan(folder)) if command.contrasts else results
    if command.contrasts and rows.empty:
        raise SpecError(f"{folder}: the study has no [[contrasts]], or no run of them yet")
    if kind in ROW_FORMATS:
        ROW_FORMATS[kind](rows, command.to)
    else:
        table = contrasts_table(rows, results) if command.contrasts else points_table(results)
        command.to.write_text(TABLE_FORMATS[kind](table), encoding="utf-8")
    what = f"{len(rows)} {'contrasts' if command.contrasts else 'rows'}"
    out.print(f"{what if kind in ROW_FORMATS else f'table of {what}'} written to {command.to}")
    return 0


def show_report(folder: Path) -> None:
    """Write figures and page of a study's folder, print its table, and say where everything is."""
    import pandas as pd

    from spectrum.analysis.report import write_report
    from spectrum.analysis.summary import as_text
    from spectrum.results import load_history, load_results, load_tuning

    plan = frozen_plan(folder)
    results = load_results(folder) if plan["points"] else pd.DataFrame()
    tuning = load_tuning(folder) if "tuning" in plan else None
    report = write_report(folder, results, load_history(folder), plan, tuning)
    out.print()
    if len(report.table):
        print_table(*as_text(report.table))
        out.print()
    for sentence in report.sentences:
        out.print(sentence)
    if report.sentences:
        out.print()
    first = "spectrum.png" if plan["points"] else "tuning.png"
    figure = next((path for path in report.figures if path.name == first), None)
    for name, path in (("figure", figure), ("report", report.page), ("rows", folder / ROWS)):
        if path is not None:
            out.print(f"{name:7} {path}")


def frozen_plan(folder: Path) -> dict[str, Any]:
    """The plan that a study's folder was run by. Raises StoreError where there is none."""
    plan = read_plan(folder)
    if plan is None:
        raise StoreError(f"{folder}: has no plan.json; run the study first: spectrum run FILE")
    return plan


def _folder(study: Path, out: Path | None) -> tuple[Path, Study | None]:
    """The folder of results that is meant, and the study if its file was given."""
    if study.suffix == ".toml":
        loaded = load_study(study)
        return out or Path("results", loaded.name), loaded
    if not study.is_dir():
        raise SpecError(f"{study}: neither a study's TOML file nor a folder of results")
    if not any((study / name).exists() for name in (PLAN, ROWS)):
        raise SpecError(
            f"{study}: is no folder of results: it has neither {PLAN} nor {ROWS}; name results/NAME or a study"
        )
    return study, None

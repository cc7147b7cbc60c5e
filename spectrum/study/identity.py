"""Decide to which study a folder belongs: one rule for every command and for `run_study`.

A plan with the same hash belongs to the study, whatever the two are called. A plan with the same name and a run in
common is an earlier version: seeds, values or budgets were added or removed. Everything else is another study.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from spectrum._records import SpecError
from spectrum.design.options import distinct
from spectrum.design.plan import Plan
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study
from spectrum.study.store import FINISHED, StoreError, find_plan, latest_rows

Held = Literal["nothing", "same", "version", "other"]


def folder_of(study: Study, out: str | Path | None = None) -> Path:
    """Folder of a study's results: `out`, or results/NAME in the current folder.

    Raises SpecError if that path or one of its parents is a file.
    """
    folder = Path("results", study.name) if out is None else Path(out)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise SpecError(f"{folder}: {path} is a file, not a folder; give another folder with --out")
    return folder


def held_by(folder: Path, study: Study) -> Held:
    """Content of a folder for a study: nothing, the same study, another version of it, or another study.

    A plan of the same name without finished runs counts as a version, since no result could be lost.
    """
    plan = find_plan(folder)
    if plan is not None and plan.is_of(study.hash):
        return "same"
    rows = latest_rows(folder)
    if plan is None:
        names = {row["study"] for row in rows.values() if isinstance(row.get("study"), str)}
        known = not names or study.name in names or any(run.id in rows for run in study.runs())
        return ("version" if known else "other") if rows else "nothing"
    if not _has_its_name(folder, plan, study):
        return "other"
    finished = any(row["status"] in FINISHED for row in rows.values())
    return "version" if shared_runs(study, plan) or not finished else "other"


def shared_runs(study: Study, plan: Plan) -> int:
    """Number of a study's runs that a plan has too, before widths are solved and learning rates chosen."""
    asked = {run.key[0] for run in plan.asked}
    return sum(run.id in asked for run in study.runs())


def check_not_other(folder: Path, study: Study) -> Held:
    """Return what the folder holds. Raises StoreError if it is another study, whose plan and page would be replaced."""
    held = held_by(folder, study)
    if held == "other":
        plan = find_plan(folder)
        same_name = plan is not None and _has_its_name(folder, plan, study)
        changed = changed_since(study, plan) if same_name else ""
        why = f", and no run of {study.name} as its file is now{changed}" if same_name else f", not {study.name}"
        raise StoreError(
            f"{folder}: holds the study {_called(folder)}{why}. Nothing was changed. Give another folder with --out, "
            f"or rename the file or this folder. To read its results: spectrum report {folder}"
        )
    return held


def check_same(folder: Path, study: Study) -> None:
    """Raise StoreError if the folder's numbers are not those of the study as it is now."""
    if check_not_other(folder, study) != "version":
        return
    plan = find_plan(folder)
    if plan is not None:
        raise StoreError(
            f"{folder}: {study.name} has changed since it ran here{changed_since(study, plan)}: "
            f"{shared_runs(study, plan)} of its {len(study.runs())} runs are in the plan {_called(folder)}. "
            "Run it again: spectrum run FILE. "
            f"To read its results: spectrum report {folder}"
        )


def changes(study: Study, plan: Plan) -> list[str]:
    """Differences between a study's file and its frozen plan, such as "epochs was 3 and is 5"; one phrase per option.

    Options of the base, values of the axes and the budget count; widths solved by a budget and values chosen by a sweep
    do not.
    """
    was, is_now = dict(plan.base), study.base.model_dump(mode="json")
    frozen = [run.asked_options for run in plan.asked]
    now = [one.model_dump(mode="json") for one in study.runs()]
    for name in {"seed", *plan.varied, *study.varied()} - {"match"}:
        was[name], is_now[name] = (distinct(run.get(name) for run in runs) for runs in (frozen, now))
    if plan.budget is not None:
        was["budget"], is_now["budget"] = plan.budget.entry(), study.budget.model_dump(mode="json")
    names = [name for name in (*RunConfig.model_fields, "budget") if name in was and was[name] != is_now[name]]
    return [f"{name} was {_value(was[name])} and is {_value(is_now[name])}" for name in names if name != "widths"]


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def changed_since(study: Study, plan: Plan | None) -> str:
    """The first few `changes` in brackets, after a space; empty if there are none, or no plan."""
    changed = [] if plan is None else changes(study, plan)
    if not changed:
        return ""
    more = f", and {len(changed) - 4} more" if len(changed) > 4 else ""
    return f" ({', '.join(changed[:4])}{more})"


def contrasts_changed(study: Study, plan: Plan) -> bool:
    """Whether a study's comparisons differ from those frozen in its plan; the study's hash does not cover them."""
    names = ("name", "between", "across", "margin")
    asked = [
        {"name": one.name, "between": one.between, "across": one.across, "margin": one.margin}
        for one in study.contrasts
    ]
    frozen = [one.model_dump(mode="json", include=set(names)) for one in plan.contrasts]
    return bool(json.loads(json.dumps(asked)) != json.loads(json.dumps(frozen)))


def _has_its_name(folder: Path, plan: Plan, study: Study) -> bool:
    return study.name in (plan.study or study.name, folder.resolve().name)


def _called(folder: Path) -> str:
    plan = find_plan(folder)
    if plan is None:
        names = sorted({str(row.get("study")) for row in latest_rows(folder).values()})
        return f"{', '.join(names)}, without a plan"
    return f"{plan.study or 'without a name'} {str(plan.hash)[:8]}"

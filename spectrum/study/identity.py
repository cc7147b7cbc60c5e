"""Whose results a folder holds: one rule for every command and for `run_study`.

A plan of the same hash is the study's own, whatever the two are called. A plan of the same name that shares a run with
the study is an earlier version of it: seeds, values or budgets came or went. All else is another study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from spectrum._records import SpecError
from spectrum.design.study_file import Study
from spectrum.study.planning import entries_of
from spectrum.study.store import FINISHED, StoreError, latest_rows, read_plan

Held = Literal["nothing", "same", "version", "other"]


def folder_of(study: Study, out: str | Path | None = None) -> Path:
    """Folder of a study's results: the one that is asked for, or results/NAME below the current folder.

    Raises SpecError where that, or a folder that it would lie in, is a file.
    """
    folder = Path("results", study.name) if out is None else Path(out)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise SpecError(f"{folder}: {path} is a file, not a folder; give another folder with --out")
    return folder


def held_by(folder: Path, study: Study) -> Held:
    """What a folder holds, as seen from a study: nothing, the same study, another version of it, or another study.

    Where nothing has finished under a plan of the same name, nothing of another study could be lost: it is a version.
    """
    plan = read_plan(folder)
    if plan is not None and plan.get("hash") == study.hash:
        return "same"
    rows = latest_rows(folder)
    if plan is None:
        names = {row["study"] for row in rows.values() if isinstance(row.get("study"), str)}
        known = not names or study.name in names or any(point.id in rows for point in study.points())
        return ("version" if known else "other") if rows else "nothing"
    if not _has_its_name(folder, plan, study):
        return "other"
    finished = any(row["status"] in FINISHED for row in rows.values())
    return "version" if shared_runs(study, plan) or not finished else "other"


def shared_runs(study: Study, plan: Mapping[str, Any]) -> int:
    """How many of a study's runs a plan has too, before widths are solved and learning rates chosen."""
    asked = {entry.get("asked", entry.get("id")) for entry in entries_of(plan)}
    return sum(point.id in asked for point in study.points())


def check_not_other(folder: Path, study: Study) -> Held:
    """What the folder holds. Raises StoreError where it is another study, whose plan and page would be replaced."""
    held = held_by(folder, study)
    if held == "other":
        plan = read_plan(folder)
        same_name = plan is not None and _has_its_name(folder, plan, study)
        why = f", and no run of {study.name} as its file is now" if same_name else f", not {study.name}"
        raise StoreError(
            f"{folder}: holds the study {_called(folder)}{why}. Nothing was changed. Give another folder with --out, "
            f"or rename the file or this folder. To read what is there: spectrum report {folder}"
        )
    return held


def check_same(folder: Path, study: Study) -> None:
    """Raise StoreError where the folder's numbers are not those of the study as it is now."""
    if check_not_other(folder, study) != "version":
        return
    plan = read_plan(folder)
    if plan is not None:
        raise StoreError(
            f"{folder}: {study.name} has changed since it ran here: {shared_runs(study, plan)} of its "
            f"{len(study.points())} runs are in the plan {_called(folder)}. Run it again: spectrum run FILE. "
            f"To read what is there: spectrum report {folder}"
        )


def contrasts_changed(study: Study, plan: Mapping[str, Any]) -> bool:
    """Whether a study's contrasts are others than those that its plan froze; its hash does not tell."""
    said = ("name", "between", "across", "margin")
    asked = [
        {"name": one.name, "between": one.between, "across": one.across, "margin": one.margin}
        for one in study.contrasts
    ]
    frozen = [{name: one.get(name) for name in said} for one in plan.get("contrasts", [])]
    return bool(json.loads(json.dumps(asked)) != json.loads(json.dumps(frozen)))


def _has_its_name(folder: Path, plan: Mapping[str, Any], study: Study) -> bool:
    return study.name in (plan.get("study", study.name), folder.resolve().name)


def _called(folder: Path) -> str:
    plan = read_plan(folder)
    if plan is None:
        names = sorted({str(row.get("study")) for row in latest_rows(folder).values()})
        return f"{', '.join(names)}, without a plan"
    return f"{plan.get('study', 'without a name')} {str(plan.get('hash'))[:8]}"

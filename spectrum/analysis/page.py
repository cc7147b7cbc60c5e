"""The page of a study: everything that a reader needs to judge it, in one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spectrum.analysis.held import differing, held_equal
from spectrum.analysis.sentences import points as points_said
from spectrum.analysis.sentences import sentence
from spectrum.analysis.summary import as_text
from spectrum.analysis.table import (
    SPLIT,
    budget_name,
    point_label,
    scored_metric,
    varied_settings,
    worst_mismatch,
)
from spectrum.models.position import Position

FEW_SEEDS = 6
SEARCHED = {"lr": "learning rates", "weight_decay": "weight decays"}
SORT = Path(__file__).with_name("sort.js")


def page_of(
    results: pd.DataFrame,
    plan: Mapping[str, Any],
    table: pd.DataFrame,
    pictures: Mapping[str, Path],
    judged: pd.DataFrame,
) -> str:
    """The page as HTML.

    Args:
        results: the study's rows, from `load_results`.
        plan: its frozen plan, every field of each point filled in; what some point does not tell is not listed.
        table: its `summary_table`.
        pictures: PNG files that exist, by their titles.
        judged: what its contrasts show, from `stats.contrasts`; empty where it has none.
    """
    finished = results[results["status"] != "failed"] if len(results) else results
    seeds = int(table["n"].min()) if len(table) else 0
    columns, rows = as_text(table)
    script, asked = SORT.read_text(encoding="utf-8"), plan.get("contrasts", [])
    sentences = [sentence(row) for _, row in judged.iterrows()] or [""] * len(asked)
    environment = Environment(
        loader=PackageLoader("spectrum.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        study=plan["study"],
        question=plan["question"],
        hash=plan["hash"],
        planned=len(plan["points"]),
        finished=len(finished),
        matches=_matches(plan),
        budgets={match: budget_name(match) for match in _matches(plan)},
        worst=_worst(results, _matches(plan)),
        design=_design(plan),
        contrasts=[contrast | {"sentence": said} for contrast, said in zip(asked, sentences, strict=True)],
        choices=_choices(plan),
        tuned="tuning" in plan,
        seen="validation images" if len(results) and scored_metric(results) == "val_accuracy" else "the test set",
        few_seeds=seeds if 0 < seeds < FEW_SEEDS else 0,
        columns=columns,
        rows=rows,
        figures=[
            {"title": title, "png": base64.b64encode(path.read_bytes()).decode()} for title, path in pictures.items()
        ],
        problems=_problems(results) if len(results) else [],
        excluded=_excluded(judged) if len(results) == len(plan["points"]) else [],
        held=[(name, _said(value)) for name, value in _held(plan).items()],
        command=_command(plan),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        environment=_environment(finished),
    )


def _design(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared with what, on which images, how often, and what was decided beforehand."""
    tuning = plan.get("tuning")
    points = [_as_asked(entry) for entry in _entries(plan)]
    said = [
        (name.replace("_", " "), _each(_value(name, point) for point in points))
        for name in plan["varied"]
        if name not in (*SPLIT, "match")
    ]
    if set(SPLIT) & set(plan["varied"]):
        said.insert(0, ("segments", _each(map(point_label, points))))
    if len(_matches(plan)) > 1:
        said.append(("budget", ", ".join(map(budget_name, _matches(plan)))))
    design = [("what varies", "; ".join(f"{name}: {values}" for name, values in said) or "nothing but the seed")]
    follows = [
        f"{name.replace('_', ' ')}: {_each(map(_words, values))}"
        for name, values in differing(_runs(plan)).items()
        if name not in (*plan["varied"], *SPLIT, *_solved(plan))
    ]
    if follows:
        design.append(("what differs with it", "; ".join(follows)))
    if plan["points"]:
        design.append(("seeds", _each(str(point.get("seed", "")) for point in points)))
    design.append(("runs", f"{len(plan['points'])}, each on the same images, batches and augmentation for one seed"))
    if tuning:
        grid = "; ".join(
            f"{SEARCHED[name]} {_each(f'{v:g}' for v in values)}" for name, values in tuning["grid"].items()
        )
        seeds = _each(str(entry.get("point", {}).get("seed", "")) for entry in tuning["points"])
        design.append(("search before", f"{grid}; seeds {seeds}; the same at every point, on validation images only"))
    design.append(("clamped layers", _clamped(plan)))
    margins = [
        f"±{points_said(one['margin'])} ({one['name']})" for one in plan.get("contrasts", []) if one.get("margin")
    ]
    if margins:
        design.append(("margins of equivalence, in points", "; ".join(margins)))
    return design


def _clamped(plan: Mapping[str, Any]) -> str:
    """In which networks some layers have too few channels for the segments that are asked for, and in how many."""
    found: dict[str, None] = {}
    told = True
    for entry in _entries(plan):
        point, realised = entry.get("point", {}), entry.get("realised_segments", [])
        counts = entry.get("clamped_layers")
        if counts is None:  # a plan of an earlier version
            count = Position.of(point).clamped_count(realised)
            counts = {} if count is None else {"segments": count}
            told &= count is not None and point.get("pointwise_segments", 1) == 1
        for option, count in counts.items():
            if count:
                where = "" if option in SPLIT else f" in {option}"
                found[f"{network_name(plan, entry)}: {count} of {len(realised)}{where}"] = None
    if not told:
        found["not counted in this plan for segments by stage, of a width or in shares, nor for those of the 1×1"] = (
            None
        )
    return "; ".join(found) or "none"


def _entries(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the plan has of the study's own points; while its search runs, of those that the search is for."""
    entries: list[Mapping[str, Any]] = plan["points"] or plan.get("tuning", {}).get("networks", [])
    return entries


def _runs(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Fields of each run, as it is trained."""
    return [entry.get("point", {}) for entry in _entries(plan)]


def _as_asked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run, in the width that the study asks for where its budget solves another."""
    return {**entry.get("point", {}), **({"width": entry["width"]} if "width" in entry else {})}


def _solved(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that a budget or a search sets for each point."""
    widths = ("width", "widths") if _matches(plan) != ["none"] else ()
    return (*widths, *plan.get("tuning", {}).get("grid", ()))


def _held(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs have in common; while the search runs, without what it is to find."""
    open_still = () if plan["points"] else plan.get("tuning", {}).get("grid", ())
    return {name: value for name, value in held_equal(_runs(plan)).items() if name not in open_still}


def _value(name: str, point: Mapping[str, Any]) -> str:
    return _words(point.get(name))


def _words(value: Any) -> str:
    return _said(value).replace("_", " ")


def _each(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _excluded(judged: pd.DataFrame) -> list[dict[str, str]]:
    """Contrasts from which seeds are left out, for want of a run on some side."""
    if judged.empty:
        return []
    return [
        {"name": row["name"], "seeds": ", ".join(map(str, row["left_out"]))}
        for _, row in judged.iterrows()
        if row["left_out"]
    ]


def _matches(plan: Mapping[str, Any]) -> list[str]:
    """The budgets of a study; earlier versions had one."""
    match = plan["budget"]["match"]
    return [match] if isinstance(match, str) else list(match)


def _choices(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a search chose for each network, and where that lies on the grid's edge."""
    if "tuning" not in plan:
        return []
    return [
        {
            "name": choice_name(plan, choice),
            "values": ", ".join(f"{name} {value:g}" for name, value in choice["values"].items()),
            "accuracy": f"{100 * choice['val_accuracy']:.2f}",
            "edges": ", ".join(choice["edges"]),
        }
        for choice in plan["tuning"]["choices"]
    ]


def _worst(results: pd.DataFrame, matches: list[str]) -> dict[str, str]:
    """The largest mismatch of any point, by budget; empty where no point is there yet."""
    if not len(results):
        return {}
    return {match: f"{100 * worst_mismatch(results[results['match'] == match]):.2f} %" for match in matches}


def choice_name(plan: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    """What a network of the search is called: segments, what else varies, and its budget where there are several."""
    rest = {name: value for name, value in choice["point"].items() if name != "seed"}
    networks = plan.get("tuning", {}).get("networks", []) if "width" in plan["varied"] else []
    asked = [
        entry["width"]
        for entry in networks
        if {name: value for name, value in entry["point"].items() if name != "seed"} == rest
    ]
    return network_name(plan, {**choice, "width": asked[0] if asked else None})


def network_name(plan: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What a network of a plan is called: segments, what else varies, and its budget where there are several."""
    point = _as_asked(entry)
    hidden = (*SPLIT, "match", *(["width"] if point.get("width") is None else []))
    said = [f"{name} {point.get(name)}" for name in plan["varied"] if name not in hidden]
    match = [budget_name(entry["match"])] if len(_matches(plan)) > 1 and "match" in entry else []
    return ", ".join([point_label(point), *said, *match])


def _command(plan: Mapping[str, Any]) -> str:
    """The words that trained these points."""
    words = ["spectrum", "run", plan["file"]]
    for name, value in plan["overrides"].items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    for module in plan["imports"]:
        words += ["--import", module]
    words += ["--confirm"] if "tuning" in plan and plan["points"] else []
    return shlex.join(words)


def _problems(results: pd.DataFrame) -> list[dict[str, str]]:
    """Rows that failed or diverged, with the reason."""
    names = varied_settings(results)
    return [
        {
            "name": ", ".join([point_label(row), *(f"{name} {row[name]}" for name in names), f"seed {row['seed']}"]),
            "status": row["status"],
            "reason": "a loss that is not finite; scored at chance" if row["status"] == "diverged" else row["reason"],
        }
        for _, row in results[results["status"] != "done"].iterrows()
    ]


def _environment(finished: pd.DataFrame) -> list[tuple[str, str]]:
    if finished.empty:
        return []
    records = pd.DataFrame(list(finished["provenance"]))
    return [(str(name).replace("_", " "), _all_values(records[name])) for name in records]


def _all_values(column: pd.Series) -> str:
    return ", ".join(dict.fromkeys(_counted(value) for value in column))


def _counted(value: Any) -> str:
    """A value in words; of a record of many, such as the lowering of every layer, how many have which."""
    if not isinstance(value, Mapping):
        return _said(value)
    return " and ".join(f"{count} × {kind}" for kind, count in Counter(map(_said, value.values())).items())


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and not value:
        return "none"
    return "not set" if value is None or value != value else str(value)

"""The page of a study: everything that a reader needs to judge it, in one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spectrum.analysis.held import differing, held_equal
from spectrum.analysis.sentences import pp, sentence
from spectrum.analysis.summary import as_text
from spectrum.analysis.table import (
    SPLIT,
    budget_name,
    scored_metric,
    split_label,
    varied_settings,
    worst_mismatch,
)
from spectrum.design.plan import Plan, PlannedChoice, PlannedRun
from spectrum.models.position import Position

FEW_SEEDS = 6
SEARCHED = {"lr": "learning rates", "weight_decay": "weight decays"}
SORT = Path(__file__).with_name("sort.js")


def page_of(
    results: pd.DataFrame,
    plan: Plan,
    table: pd.DataFrame,
    pictures: Mapping[str, Path],
    judged: pd.DataFrame,
) -> str:
    """The page as HTML.

    Args:
        results: the study's rows, from `load_results`.
        plan: its frozen plan; what some run does not tell is not listed.
        table: its `summary_table`.
        pictures: PNG files that exist, by their titles.
        judged: what its contrasts show, from `stats.contrasts`; empty where it has none.
    """
    finished = results[results["status"] != "failed"] if len(results) else results
    seeds = int(table["n"].min()) if len(table) else 0
    columns, rows = as_text(table)
    script, asked = SORT.read_text(encoding="utf-8"), plan.contrasts
    sentences = [sentence(row) for _, row in judged.iterrows()] or [""] * len(asked)
    contrasts = [{**one.model_dump(), "sentence": words} for one, words in zip(asked, sentences, strict=True)]
    environment = Environment(
        loader=PackageLoader("spectrum.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        study=plan.study,
        question=plan.question,
        hash=plan.hash,
        planned=len(plan.runs),
        finished=len(finished),
        matches=plan.budgets,
        budgets={match: budget_name(match) for match in plan.budgets},
        worst=_worst(results, plan.budgets),
        design=_design(plan),
        contrasts=contrasts,
        choices=_choices(plan),
        tuned=plan.tuning is not None,
        seen="validation images" if len(results) and scored_metric(results) == "val_accuracy" else "the test set",
        few_seeds=seeds if 0 < seeds < FEW_SEEDS else 0,
        columns=columns,
        rows=rows,
        figures=[
            {"title": title, "png": base64.b64encode(path.read_bytes()).decode()} for title, path in pictures.items()
        ],
        problems=_problems(results) if len(results) else [],
        excluded=_excluded(judged) if len(results) == len(plan.runs) else [],
        held=[(name, _value_text(value)) for name, value in _held(plan).items()],
        command=run_command(plan),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        environment=_environment(finished),
    )


def _design(plan: Plan) -> list[tuple[str, str]]:
    """What was compared with what, on which images, how often, and what was decided beforehand."""
    asked = [run.asked_options for run in plan.known]
    varied = [
        (name.replace("_", " "), _each(_value(name, options) for options in asked))
        for name in plan.varied
        if name not in (*SPLIT, "match")
    ]
    if set(SPLIT) & set(plan.varied):
        varied.insert(0, ("segments", _each(map(split_label, asked))))
    if len(plan.budgets) > 1:
        varied.append(("budget", ", ".join(map(budget_name, plan.budgets))))
    design = [("what varies", "; ".join(f"{name}: {values}" for name, values in varied) or "nothing but the seed")]
    follows = [
        f"{name.replace('_', ' ')}: {_each(map(_words, values))}"
        for name, values in differing(_runs(plan)).items()
        if name not in (*plan.varied, *SPLIT, *_solved(plan))
    ]
    if follows:
        design.append(("what differs with it", "; ".join(follows)))
    if plan.runs:
        design.append(("seeds", _each(str(options.get("seed", "")) for options in asked)))
    design.append(("runs", f"{len(plan.runs)}, each on the same images, batches and augmentation for one seed"))
    if plan.tuning is not None:
        grid = "; ".join(
            f"{SEARCHED[name]} {_each(f'{v:g}' for v in values)}" for name, values in plan.tuning.grid.items()
        )
        seeds = _each(str(run.options.get("seed", "")) for run in plan.swept)
        design.append(("search before", f"{grid}; seeds {seeds}; the same at every point, on validation images only"))
    design.append(("clamped layers", _clamped(plan)))
    margins = [f"±{pp(one.margin)} ({one.name})" for one in plan.contrasts if one.margin]
    if margins:
        design.append(("margins of equivalence, in points", "; ".join(margins)))
    return design


def _clamped(plan: Plan) -> str:
    """In which networks some layers have too few channels for the segments that are asked for, and in how many."""
    found: dict[str, None] = {}
    told = True
    for run in plan.known:
        options, realised, counts = run.options, run.realised_segments, run.clamped_layers
        if counts is None:  # a plan of an earlier version
            count = Position.of(options).clamped_count(realised)
            counts = {} if count is None else {"segments": count}
            told &= count is not None and options.get("pointwise_segments", 1) == 1
        for option, count in counts.items():
            if count:
                where = "" if option in SPLIT else f" in {option}"
                found[f"{network_name(plan, run)}: {count} of {len(realised)}{where}"] = None
    if not told:
        found["not counted in this plan for segments by stage, of a width or in shares, nor for those of the 1×1"] = (
            None
        )
    return "; ".join(found) or "none"


def _runs(plan: Plan) -> list[Mapping[str, Any]]:
    """Fields of each run, as it is trained."""
    return [run.options for run in plan.known]


def _solved(plan: Plan) -> tuple[str, ...]:
    """Fields that a budget or a search sets for each point."""
    widths = ("width", "widths") if plan.budgets != ("none",) else ()
    return (*widths, *plan.tuned)


def _held(plan: Plan) -> dict[str, Any]:
    """What all runs have in common; while the search runs, without what it is to find."""
    open_still = () if plan.runs else plan.tuned
    return {name: value for name, value in held_equal(_runs(plan)).items() if name not in open_still}


def _value(name: str, run: Mapping[str, Any]) -> str:
    return _words(run.get(name))


def _words(value: Any) -> str:
    return _value_text(value).replace("_", " ")


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


def _choices(plan: Plan) -> list[dict[str, str]]:
    """What a search chose for each network, and where that lies on the grid's edge."""
    return [
        {
            "name": choice_name(plan, choice),
            "values": ", ".join(f"{name} {value:g}" for name, value in choice.values.items()),
            "accuracy": "" if choice.val_accuracy is None else f"{100 * choice.val_accuracy:.2f}",
            "edges": ", ".join(choice.edges),
        }
        for choice in (plan.tuning.choices if plan.tuning is not None else ())
    ]


def _worst(results: pd.DataFrame, matches: Sequence[str]) -> dict[str, str]:
    """The largest mismatch of any point, by budget; empty where no point is there yet."""
    if not len(results):
        return {}
    return {match: f"{100 * worst_mismatch(results[results['match'] == match]):.2f} %" for match in matches}


def choice_name(plan: Plan, choice: PlannedChoice) -> str:
    """What a network of the search is called: segments, what else varies, and its budget where there are several."""
    rest = {**choice.options, "seed": None}
    networks = plan.asked if "width" in plan.varied else ()
    asked = [run.width for run in networks if {**run.options, "seed": None} == rest]
    return _name(plan, {**choice.options, "width": asked[0] if asked else None}, choice.match)


def network_name(plan: Plan, run: PlannedRun) -> str:
    """What a network of a plan is called: segments, what else varies, and its budget where there are several."""
    return _name(plan, run.asked_options, run.match)


def _name(plan: Plan, options: Mapping[str, Any], match: str | None) -> str:
    hidden = (*SPLIT, "match", *(["width"] if options.get("width") is None else []))
    settings = [f"{name} {options.get(name)}" for name in plan.varied if name not in hidden]
    budget = [budget_name(match)] if len(plan.budgets) > 1 and match is not None else []
    return ", ".join([split_label(options), *settings, *budget])


def run_command(plan: Plan) -> str:
    """The words that trained the runs of a plan."""
    words = ["spectrum", "run", str(plan.file)]
    for name, value in plan.overrides.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    for module in plan.imports:
        words += ["--import", module]
    words += ["--confirm"] if plan.tuning is not None and plan.runs else []
    return shlex.join(words)


def _problems(results: pd.DataFrame) -> list[dict[str, str]]:
    """Rows that failed or diverged, with the reason."""
    names = varied_settings(results)
    return [
        {
            "name": ", ".join([split_label(row), *(f"{name} {row[name]}" for name in names), f"seed {row['seed']}"]),
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
    """A value in words; of a record of many, such as the backend of every layer, how many have which."""
    if not isinstance(value, Mapping):
        return _value_text(value)
    return " and ".join(f"{count} × {kind}" for kind, count in Counter(map(_value_text, value.values())).items())


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple) and not value:
        return "none"
    return "not set" if value is None or value != value else str(value)

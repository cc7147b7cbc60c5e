"""The report of a study: everything that a reader needs to judge it, in one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spectrum.analysis.answer import answer, caveats, not_prespecified, worst_mismatches
from spectrum.analysis.described import (
    choices,
    design,
    environment,
    problems,
    run_command,
    seeds_vary,
    settings,
    value_words,
)
from spectrum.analysis.sentences import (
    BOLD,
    comparison_labels,
    comparison_names,
    contrasts_as_text,
    finding,
    power_note,
    verdict_of,
)
from spectrum.analysis.summary import as_text, matrix
from spectrum.analysis.table import scored_metric, unique_runs
from spectrum.analysis.words import setting_words
from spectrum.design.plan import Plan

SORT = Path(__file__).with_name("sort.js")
LARGEST_DRAWING = 1_000_000  # bytes; a larger SVG, as of many curves, is shown as PNG
KEY_FIGURES = ("budgets", "spectrum")  # the first that there is stands below the answer
NARROW = 44  # characters of a table's row that a screen of 400 pixels has room for
STRIP_EDGE = 4.0  # percent of a strip that are left free at either end
CLASSES = {"higher": "shown", "lower": "shown", "equivalent": "same"}


def page_of(
    results: pd.DataFrame,
    plan: Plan,
    table: pd.DataFrame,
    pictures: Mapping[str, Path],
    judged: pd.DataFrame,
    question: str | None = None,
) -> str:
    """The page as HTML.

    Args:
        results: the study's rows, from `load_results`.
        plan: its frozen plan; what some run does not tell is not listed.
        table: its `summary_table`.
        pictures: SVG files that exist, by their titles.
        judged: what its comparisons show, from `stats.contrasts`; empty where it has none.
        question: as the study's file asks it today; by default the plan's. Where they differ, the page says both.
    """
    finished = results[results["status"] != "failed"] if len(results) else results
    columns, rows = as_text(table)
    figures = {path.stem: {"title": title, "src": _source(path)} for title, path in pictures.items()}
    key = next((stem for stem in KEY_FIGURES if stem in figures), None)
    script = SORT.read_text(encoding="utf-8")
    templates = Environment(
        loader=PackageLoader("spectrum.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template("report.html.jinja").render(
        study=plan.study,
        question=question or plan.question,
        hash=plan.hash,
        planned=plan.count,
        finished=len(unique_runs(finished)) if len(finished) else 0,
        answer=[
            _strong(begun(one, results, plan))
            for one in [*answer(results, judged, bold=BOLD), *not_prespecified(results, plan)]
        ],
        key=figures.get(key or ""),
        comparisons=_comparisons(results, plan, judged),
        power=_power(judged),
        left_out=bool(len(judged)) and len(unique_runs(results)) == plan.count and any(judged["left_out"]),
        caveats=caveats(results, plan, judged),
        problems=problems(results),
        seen=_seen(results),
        seeds_vary=seeds_vary(plan),
        matrix=matrix(results) if len(results) else None,
        narrow=NARROW,
        columns=columns,
        rows=rows,
        figures=[one for stem, one in figures.items() if stem not in (key, "tuning")],
        choices=choices(plan),
        sweep=figures.get("tuning"),
        design=design(plan) + _mismatches(plan) + _frozen(plan, question),
        settings=[[(name, value_words(value)) for name, value in some.items()] for some in settings(plan)],
        environment=environment(finished),
        command=run_command(plan),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _seen(results: pd.DataFrame) -> str:
    """The images that accuracies are of, and when they were read."""
    if len(results) and scored_metric(results) == "val_accuracy":
        return "on validation images, which are read after every epoch"
    return "on the test set, read once at the end of each run"


def _comparisons(results: pd.DataFrame, plan: Plan, judged: pd.DataFrame) -> list[dict[str, Any]]:
    """What each comparison of a plan shows, and in what its sides differ."""
    if judged.empty:
        unknown = dict.fromkeys(("where", "interval", "p", "margin", "kind", "finding", "strip"), "")
        why = "every run has failed" if len(results) else "no run yet"
        return [unknown | {"sides": one.name, "plan": one, "verdict": why} for one in plan.contrasts]
    _, cells = contrasts_as_text(judged)
    return [
        {
            "sides": sides,
            "where": where,
            "interval": f"{line[2]} [{line[3].replace(' to ', ', ')}]" if line[3] else line[2],
            "p": line[4],
            "margin": line[5],
            "verdict": line[7],
            "kind": CLASSES.get(verdict_of(row), "") if not row["confounded"] else "",
            "finding": _strong(begun(finding(row, bold=BOLD), results, plan)),
            "strip": strip,
            "plan": one,
        }
        for one, (sides, where), line, strip, (_, row) in zip(
            plan.contrasts, comparison_labels(judged), cells, strips(judged), judged.iterrows(), strict=True
        )
    ]


def strips(judged: pd.DataFrame) -> list[dict[str, float] | None]:
    """Where each comparison's zero, mean, interval and margin lie on one axis for all, in percent of its width.

    Args:
        judged: from `stats.contrasts`.

    None for a comparison without a run; without an interval, `low` and `high` are the mean, and without a margin,
    `from` and `to` are zero.
    """
    rows = judged[["low", "mean", "high"]].assign(zero=0.0, to=judged["margin"].fillna(0.0))
    rows["low"], rows["high"] = rows["low"].fillna(rows["mean"]), rows["high"].fillna(rows["mean"])
    rows["from"] = -rows["to"]
    first, last = rows.min().min(), rows.max().max()
    room = (100 - 2 * STRIP_EDGE) / (last - first or 1.0)
    places = (STRIP_EDGE + room * (rows - first)).round(2)
    return [place.to_dict() if n else None for (_, place), n in zip(places.iterrows(), judged["n"], strict=True)]


def _power(judged: pd.DataFrame) -> list[dict[str, str]]:
    """What would decide each inconclusive comparison."""
    notes = [power_note(row) for _, row in judged.iterrows()]
    return [{"label": name, "note": note} for name, note in zip(comparison_names(judged), notes, strict=True) if note]


def _mismatches(plan: Plan) -> list[tuple[str, str]]:
    """How far the counts of any configuration are from its budget, by budget."""
    worst = [f"{setting_words('match', match)} {most}" for match, most in worst_mismatches(plan).items()]
    return (
        [("largest mismatch", f"{', '.join(worst)}; each configuration has stage widths of its own")] if worst else []
    )


def _frozen(plan: Plan, question: str | None) -> list[tuple[str, str]]:
    """The question as it was frozen, where the study's file words it otherwise today."""
    if not question or plan.question in (None, question):
        return []
    return [("question in the frozen plan", plan.question)]


def begun(sentence: str, results: pd.DataFrame, plan: Plan) -> str:
    """A sentence that begins a paragraph; names that people gave keep their first letter."""
    given = [one.name for one in plan.contrasts]
    given += [str(value) for name in ("model", "dataset") if name in results for value in results[name].unique()]
    return sentence if sentence.startswith(tuple(given)) else sentence[0].upper() + sentence[1:]


def _strong(text: str) -> Markup:
    """A sentence as HTML, its finding in bold."""
    return Markup("").join(
        Markup("<strong>{}</strong>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(text.split(BOLD))
    )


def _source(path: Path) -> str:
    """A picture as a data URI: the drawing itself, or its PNG where the drawing is large."""
    drawing = path.with_suffix(".svg")
    if drawing.exists() and drawing.stat().st_size <= LARGEST_DRAWING:
        return "data:image/svg+xml;base64," + base64.b64encode(drawing.read_bytes()).decode()
    return "data:image/png;base64," + base64.b64encode(path.with_suffix(".png").read_bytes()).decode()

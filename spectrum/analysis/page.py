"""The report of a study: everything that a reader needs to judge it, in one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spectrum.analysis.answer import answer, caveats, worst_mismatches
from spectrum.analysis.described import choices, design, environment, problems, run_command, settings, value_words
from spectrum.analysis.sentences import (
    BOLD,
    comparison_labels,
    contrasts_as_text,
    finding,
    power_note,
    verdict_of,
)
from spectrum.analysis.summary import as_text, matrix
from spectrum.analysis.table import scored_metric
from spectrum.analysis.words import setting_words
from spectrum.design.plan import Plan

SORT = Path(__file__).with_name("sort.js")
LARGEST_DRAWING = 1_000_000  # bytes; a larger SVG, as of many curves, is shown as PNG
KEY_FIGURES = ("budgets", "spectrum")  # the first that there is stands below the answer
WIDE = 2.2  # width over height
CLASSES = {"higher": "shown", "lower": "shown", "equivalent": "same"}


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
        pictures: SVG files that exist, by their titles.
        judged: what its comparisons show, from `stats.contrasts`; empty where it has none.
    """
    finished = results[results["status"] != "failed"] if len(results) else results
    columns, rows = as_text(table)
    figures = {
        path.stem: {"title": title, "src": _source(path), "wide": _is_wide(path)} for title, path in pictures.items()
    }
    key = next((stem for stem in KEY_FIGURES if stem in figures), None)
    script = SORT.read_text(encoding="utf-8")
    templates = Environment(
        loader=PackageLoader("spectrum.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return templates.get_template("report.html.jinja").render(
        study=plan.study,
        question=plan.question,
        hash=plan.hash,
        planned=len(plan.runs),
        finished=len(finished),
        answer=[_strong(_begun(one)) for one in answer(results, judged, bold=BOLD)],
        key=figures.get(key or ""),
        comparisons=_comparisons(plan, judged),
        forest=figures.get("contrasts"),
        power=_power(judged),
        left_out=bool(len(judged)) and len(results) == len(plan.runs) and any(judged["left_out"]),
        caveats=caveats(results, plan, judged),
        problems=problems(results),
        mismatches=[(setting_words("match", match), worst) for match, worst in worst_mismatches(results, plan).items()],
        seen="validation images" if len(results) and scored_metric(results) == "val_accuracy" else "the test set",
        matrix=matrix(results) if len(results) else None,
        columns=columns,
        rows=rows,
        figures=[one for stem, one in figures.items() if stem not in (key, "contrasts", "tuning")],
        choices=choices(plan),
        sweep=figures.get("tuning"),
        design=design(plan),
        settings=[(name, value_words(value)) for name, value in settings(plan).items()],
        environment=environment(finished),
        command=run_command(plan),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _comparisons(plan: Plan, judged: pd.DataFrame) -> list[dict[str, Any]]:
    """What each comparison of a plan shows, and in what its sides differ."""
    if judged.empty:
        unknown = {"where": "", "interval": "", "p": "", "verdict": "no run yet", "kind": "", "finding": ""}
        return [{"sides": one.name, "plan": one} | unknown for one in plan.contrasts]
    _, cells = contrasts_as_text(judged)
    return [
        {
            "sides": sides,
            "where": where,
            "interval": f"{line[2]} [{line[3].replace(' to ', ', ')}]" if line[3] else line[2],
            "p": line[4],
            "verdict": line[7],
            "kind": CLASSES.get(verdict_of(row), "") if not row["confounded"] else "",
            "finding": _strong(finding(row, bold=BOLD)),
            "plan": one,
        }
        for one, (sides, where), line, (_, row) in zip(
            plan.contrasts, comparison_labels(judged), cells, judged.iterrows(), strict=True
        )
    ]


def _power(judged: pd.DataFrame) -> list[dict[str, str]]:
    """What would decide each inconclusive comparison."""
    notes = [power_note(row) for _, row in judged.iterrows()]
    labels = [", ".join(filter(None, label)) for label in comparison_labels(judged)]
    return [{"label": label, "note": note} for label, note in zip(labels, notes, strict=True) if note]


def _begun(sentence: str) -> str:
    """A sentence that begins a paragraph; names that a study gave keep their first letter."""
    return sentence[0].upper() + sentence[1:] if sentence.startswith(("per-channel", "plain")) else sentence


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


def _is_wide(path: Path) -> bool:
    """Whether a picture has panels side by side, which a narrow screen would make too small to read."""
    size = re.search(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', path.read_text(encoding="utf-8")[:1000])
    return size is not None and float(size[1]) > WIDE * float(size[2])

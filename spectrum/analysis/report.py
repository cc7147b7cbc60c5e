"""A study's table, figures and page, from its rows.

`write_report` leaves figures/*.svg and *.png and one self-contained report.html in the study's folder: nothing is
fetched from anywhere, and the one script that may run, by its hash, sorts the table.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from spectrum.analysis import plots
from spectrum.analysis.sentences import sentence
from spectrum.analysis.stats import contrasts, summarise
from spectrum.analysis.table import (
    PER_CHANNEL,
    SPLIT,
    budget_name,
    point_label,
    scored_metric,
    segments_label,
    varied_settings,
    worst_mismatch,
)

FEW_SEEDS = 6
SORT = Path(__file__).with_name("sort.js")


@dataclass(frozen=True)
class Report:
    """What was written: paths, the table that the page shows, and what the contrasts show, a sentence each."""

    page: Path
    figures: list[Path]
    table: pd.DataFrame
    sentences: list[str]


def summary_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row a point of the spectrum: segments, what else varies, n, params, MACs, accuracy with interval, seconds.

    The text column `accuracy` is in per cent and reads "mean ± half width of the 95 % t-interval". Where a run
    diverged, a column says how many of the n did; they count, at chance.
    """
    names, metric = varied_settings(results), scored_metric(results)
    summary = summarise(results, [*SPLIT, *names], metric)
    if summary.empty:
        return summary
    labels = [segments_label(*key) for key in summary[[*SPLIT]].itertuples(index=False)]
    table = pd.DataFrame({"segments": labels, **{name: summary[name] for name in names}})
    scored = results[results[metric].notna()]
    mismatch = scored.groupby([*SPLIT, *names], sort=False, dropna=False)["budget_mismatch"].first()
    diverged = scored.assign(diverged=scored["status"] == "diverged").groupby(
        [*SPLIT, *names], sort=False, dropna=False
    )
    counts = diverged["diverged"].sum().to_numpy()
    return table.assign(
        n=summary["n"],
        **({"diverged": counts} if counts.any() else {}),
        params=summary["params"],
        macs=summary["macs"],
        **({"mismatch": [_signed(value) for value in mismatch]} if mismatch.notna().any() else {}),
        accuracy=[
            f"{100 * mean:.2f} ± {100 * half:.2f}" if half == half else f"{100 * mean:.2f}"
            for mean, half in zip(summary["mean"], summary["half"], strict=True)
        ],
        seconds=summary["seconds"],
    )


def as_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a summary table, as the command and the page show them."""

    def cell(name: str, value: Any) -> str:
        if name == "seconds":
            return f"{value:.1f}"
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        return f"{value:,}" if isinstance(value, int) else str(value)

    titles = {"macs": "MACs", "match": "budget", "accuracy": "accuracy, % ± 95 % t"}
    rows = [[cell(str(name), value) for name, value in row.items()] for _, row in table.iterrows()]
    return [titles.get(str(name), str(name)) for name in table], rows


def _signed(mismatch: float | None) -> str:
    return "" if mismatch is None or mismatch != mismatch else f"{100 * mismatch:+.2f} %"


def draw_figures(results: pd.DataFrame, history: pd.DataFrame) -> dict[str, tuple[str, Figure]]:
    """The standard figures of a study: stem → (title, figure). Empty when nothing is finished."""
    metric = scored_metric(results)
    if not results[metric].notna().any():
        return {}
    figures = {"spectrum": ("Accuracy along the spectrum", plots.spectrum_curve(results, metric=metric))}
    for cost, name in (("params", "parameters"), ("macs", "MACs")):
        if results["match"].ne(cost).any():  # else all points stand on one line
            figures[cost] = (f"Accuracy against {name}", plots.accuracy_against(results, cost, metric=metric))
    if results["match"].nunique() > 1:
        figures["budgets"] = ("The curve under each budget", plots.budget_panels(results, metric=metric))
    if len(history):
        figures["learning"] = ("Learning curves", plots.learning_curves(history, results))
    return figures


def write_report(
    folder: Path,
    results: pd.DataFrame,
    history: pd.DataFrame,
    plan: Mapping[str, Any],
    tuning: pd.DataFrame | None = None,
) -> Report:
    """Write figures/ and report.html into a study's folder.

    Args:
        folder: the study's folder.
        results: its rows, from `load_results`.
        history: its epochs, from `load_history`.
        plan: its frozen plan, as `spectrum run` writes it.
        tuning: its search, from `load_tuning`, if it has one.
    """
    table = summary_table(results) if len(results) else results
    drawn = draw_figures(results, history) if len(results) else {}
    judged = _judged(results, plan)
    if len(judged):
        drawn["contrasts"] = ("All contrasts", plots.forest(judged, results))
    if tuning is not None and len(tuning):
        drawn["tuning"] = ("Search on validation images", plots.tuning_map(tuning))
    paths = [
        path for stem, (_, figure) in drawn.items() for path in plots.save_figure(figure, folder / "figures" / stem)
    ]
    sentences = [sentence(row) for _, row in judged.iterrows()]
    page = folder / "report.html"
    page.write_text(_page(folder, results, plan, table, drawn, sentences), encoding="utf-8")
    return Report(page, paths, table, sentences)


def _judged(results: pd.DataFrame, plan: Mapping[str, Any]) -> pd.DataFrame:
    """What the study's contrasts show; an empty table where there is none, or nothing to judge it by."""
    asked = plan.get("contrasts", [])
    if not asked or not len(results) or not results[scored_metric(results)].notna().any():
        return pd.DataFrame()
    return contrasts(results, asked)


def _page(
    folder: Path,
    results: pd.DataFrame,
    plan: Mapping[str, Any],
    table: pd.DataFrame,
    drawn: Mapping[str, tuple[str, Figure]],
    sentences: Sequence[str],
) -> str:
    finished = results[results["status"] != "failed"] if len(results) else results
    seeds = int(table["n"].min()) if len(table) else 0
    varied = {"seed", *plan["varied"]}
    if varied & {"segments", "segment_width"}:
        varied |= {"segments", "segment_width"}
    tuning = plan.get("tuning")
    varied |= {*(tuning["grid"] if tuning else ()), *(("width", "widths") if _matches(plan) != ["none"] else ())}
    columns, rows = as_text(table)
    script, asked = SORT.read_text(encoding="utf-8"), plan.get("contrasts", [])
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
        worst=_worst(results, _matches(plan)),
        contrasts=[
            contrast | {"sentence": said} for contrast, said in zip(asked, sentences or [""] * len(asked), strict=True)
        ],
        choices=_choices(plan),
        tuned="tuning" in plan,
        seen="validation images" if len(results) and scored_metric(results) == "val_accuracy" else "the test set",
        few_seeds=seeds if 0 < seeds < FEW_SEEDS else 0,
        columns=columns,
        rows=rows,
        figures=[
            {"title": title, "png": base64.b64encode((folder / "figures" / f"{stem}.png").read_bytes()).decode()}
            for stem, (title, _) in drawn.items()
        ],
        problems=_problems(results) if len(results) else [],
        held=[(name, _said(value)) for name, value in plan["base"].items() if name not in varied],
        command=_command(plan),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        environment=_environment(finished),
    )


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
    point = choice["point"]
    segments = None if "segment_width" in point else point.get("segments", PER_CHANNEL)
    label = segments_label(segments, point.get("segment_width"), point.get("pointwise", True))
    others = [name for name in plan["varied"] if name not in (*SPLIT, "match", "width")]
    said = [f"{name} {point.get(name, plan['base'].get(name))}" for name in others]
    return ", ".join([label, *said, *([budget_name(choice["match"])] if len(_matches(plan)) > 1 else [])])


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
    return ", ".join(dict.fromkeys(_said(value) for value in column))


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None or value != value else str(value)

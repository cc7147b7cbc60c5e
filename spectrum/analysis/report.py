"""The report of a study: its answer, table, figures and page, from its rows.

`write_report` writes figures/*.svg and *.png and one self-contained report.html into the study's folder. The page
fetches nothing; the one script that may run, by its hash, sorts the table and unfolds the page for printing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from spectrum._files import write_whole
from spectrum.analysis import plots
from spectrum.analysis.answer import answer, caveats, not_prespecified
from spectrum.analysis.contrasts import contrasts
from spectrum.analysis.page import begun, page_of
from spectrum.analysis.plots.accuracy import spectrum_title
from spectrum.analysis.sentences import sentence
from spectrum.analysis.summary import summary_table
from spectrum.analysis.table import scored_metric, split_labels
from spectrum.design.plan import Plan


@dataclass(frozen=True)
class Report:
    """What was written, and what it says, in the order of the page."""

    page: Path
    figures: list[Path]
    question: str
    answer: list[str]
    sentences: list[str]
    """What each comparison shows."""
    caveats: list[str]
    table: pd.DataFrame


def draw_figures(results: pd.DataFrame, history: pd.DataFrame) -> dict[str, tuple[str, Figure]]:
    """The standard figures of a study: stem → (title, figure). Empty while no run has finished."""
    metric = scored_metric(results)
    if not results[metric].notna().any():
        return {}
    figures = {"spectrum": (spectrum_title(results), plots.spectrum_curve(results, metric=metric))}
    for cost, name in (("params", "parameters"), ("macs", "MACs")):
        if results["match"].ne(cost).any():  # else all runs stand on one line
            figures[cost] = (f"Accuracy against {name}", plots.accuracy_against(results, cost, metric=metric))
    if results["match"].nunique() > 1 and len(set(split_labels(results))) > 1:  # else the first has a row for each
        figures["budgets"] = ("Accuracy along the spectrum, by budget", plots.budget_panels(results, metric=metric))
    if len(history) and history["epoch"].max() > 1:  # one epoch is no curve
        figures["learning"] = ("Learning curves", plots.learning_curves(history, results))
    return figures


def write_report(
    folder: Path,
    results: pd.DataFrame,
    history: pd.DataFrame,
    plan: Plan,
    tuning: pd.DataFrame | None = None,
    question: str | None = None,
) -> Report:
    """Write figures/ and report.html into a study's folder.

    Args:
        folder: the study's folder.
        results: its rows, from `load_results`.
        history: its epochs, from `load_history`.
        plan: its frozen plan, from `read_plan`.
        tuning: its sweep, from `load_tuning`, if it has one.
        question: as the study's file asks it today; by default the plan's.

    Raises OSError, which names the file, where one cannot be written; an old file is then as it was.
    """
    table = summary_table(results) if len(results) else results
    drawn = draw_figures(results, history) if len(results) else {}
    judged = judge(results, plan)
    if len(judged) and judged["n"].any():
        drawn["contrasts"] = ("Differences with their 95% CIs", plots.forest(judged, results))
    if tuning is not None and len(tuning):
        drawn["tuning"] = ("Validation accuracy in the sweep", plots.tuning_map(tuning))
    paths = [
        path for stem, (_, figure) in drawn.items() for path in plots.save_figure(figure, folder / "figures" / stem)
    ]
    pictures = {title: folder / "figures" / f"{stem}.svg" for stem, (title, _) in drawn.items()}
    page = folder / "report.html"
    write_whole(page, page_of(results, plan, table, pictures, judged, question))
    return Report(
        page,
        paths,
        question or plan.question or "",
        [begun(one, results, plan) for one in [*answer(results, judged), *not_prespecified(results, plan)]],
        [sentence(row) for _, row in judged.iterrows()],
        caveats(results, plan, judged),
        table,
    )


def judge(results: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """What the comparisons of a study show; an empty table where it has none, or no run to judge them by."""
    if not plan.contrasts or not len(results) or not results[scored_metric(results)].notna().any():
        return pd.DataFrame()
    return contrasts(results, plan.contrasts, plan=plan)

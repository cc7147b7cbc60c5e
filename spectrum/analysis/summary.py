"""Tables of a study, a row per configuration, as the command, the report and a paper show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from spectrum.analysis.inference import t_interval
from spectrum.analysis.table import (
    SPLIT,
    check,
    keys,
    scored_metric,
    segments_label,
    studies_of,
    unique_runs,
    varied_settings,
)
from spectrum.analysis.words import setting_words, split_words
from spectrum.conv.segments import PER_CHANNEL
from spectrum.models.position import END

SUMMARISED = """study dataset match budget_mismatch params macs train_seconds realised_segments""".split()
MOST_SHOWN = 60


def summarise(
    results: pd.DataFrame, by: str | Sequence[str], metric: str = "test_accuracy", confidence: float = 0.95
) -> pd.DataFrame:
    """Summarise each group of rows: n, mean, sd, half width and ends of the t-interval, params, macs and seconds.

    Args:
        results: from `load_results`.
        by: the column or columns whose values make a group.
        metric: a column of accuracies from 0 to 1, or of another measure.
        confidence: of the intervals.

    n counts seeds. Where a group has several configurations, a seed's value is their mean; a seed that lacks an
    accuracy of one of them is left out, so that every seed covers the same configurations. Groups come in the order of
    the table, with the columns `by` first; `params` and `macs` where all rows of a group agree. The ends of an interval
    for an accuracy are cut at 0 and 1, which it cannot leave; `half` is not. Raises ValueError for missing columns and
    for a table that would mislead.

    >>> from spectrum import load_results
    >>> means = summarise(load_results("results/order"), "order")
    >>> means[["order", "n", "mean", "low", "high"]].round(4)
                 order   n    mean     low    high
    0  pointwise_first  14  0.8827  0.8822  0.8833
    1    spatial_first  14  0.8797  0.8787  0.8806
    """
    names = [by] if isinstance(by, str) else list(by)
    check(results, [*names, metric])
    rows = []
    results = results.reset_index(drop=True)
    configurations = keys(results, [*SPLIT, *varied_settings(results)])
    for key, group in results.groupby(names, sort=False, dropna=False):
        runs = group.groupby(["seed", configurations[group.index]], sort=False)[metric].mean().unstack()
        seeds, group = runs.dropna().mean(axis=1), group[group[metric].notna()]
        if group.empty:
            continue
        mean, low, high = t_interval(seeds, confidence) if len(seeds) else [float("nan")] * 3
        row = dict(zip(names, key, strict=True))
        row |= {"n": len(seeds), "mean": mean, "sd": seeds.std(ddof=1), "half": high - mean}
        row |= {"low": low, "high": high}
        if metric.endswith("accuracy"):
            row |= {"low": max(low, 0.0) if low == low else low, "high": min(high, 1.0) if high == high else high}
        row |= {
            name: group[name].iloc[0] for name in ("params", "macs") if name in group and group[name].nunique() == 1
        }
        row["seconds"] = group["train_seconds"].mean() if "train_seconds" in group else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def summary_table(results: pd.DataFrame) -> pd.DataFrame:
    """Table of a study, a row per configuration: segments, what else varies, accuracy, n, params, MACs, seconds.

    The text column `accuracy` is in percent and reads "mean ± half width of the 95% CI". Where a run diverged, a column
    says how many of the n did; they count, at chance.
    """
    names, metric = varied_settings(results), scored_metric(results)
    summary = summarise(results, [*SPLIT, *names], metric)
    if summary.empty:
        return summary
    labels = [segments_label(*key) for key in summary[[*SPLIT]].itertuples(index=False)]
    table = pd.DataFrame({"segments": labels, **{name: summary[name] for name in names}})
    groups = results.assign(diverged=results["status"] == "diverged").groupby(
        [*SPLIT, *names], sort=False, dropna=False
    )
    shown = groups[metric].count().to_numpy() > 0  # those that the summary has, in its order
    mismatch, counts = groups["budget_mismatch"].first()[shown], groups["diverged"].sum().to_numpy()[shown]
    return table.assign(
        accuracy=[
            f"{100 * mean:.2f} ± {100 * half:.2f}" if half == half else f"{100 * mean:.2f}"
            for mean, half in zip(summary["mean"], summary["half"], strict=True)
        ],
        n=summary["n"],
        **({"diverged": counts} if counts.any() else {}),
        params=summary["params"],
        macs=summary["macs"],
        **({"mismatch": [_signed(value) for value in mismatch]} if mismatch.notna().any() else {}),
        seconds=summary["seconds"],
    )


def as_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a summary table, as the command and the report show them."""

    def cell(name: str, value: Any) -> str:
        if value is None or value != value:
            return ""
        if name == "match":
            return setting_words("match", value)
        if isinstance(value, str) and value == PER_CHANNEL:
            return END
        if name == "seconds":
            return f"{value:.1f}"
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if name in unset and float(value).is_integer():
            return f"{int(value):,}"  # pandas made it 1.0, since others are not set
        return f"{value:,}" if isinstance(value, int) else str(value)

    unset = [name for name in table if table[name].dtype == float and table[name].isna().any()]
    titles = {"macs": "MACs", "match": "budget", "accuracy": "accuracy, % ± 95% CI"}
    rows = [[cell(str(name), value) for name, value in row.items()] for _, row in table.iterrows()]
    return [titles.get(str(name), str(name)) for name in table], rows


@dataclass(frozen=True)
class Cell:
    """The accuracy of one configuration, in percent; empty texts where there is none."""

    mean: str
    half: str
    """Half of the 95% CI."""
    highest: bool
    """Whether it has the highest mean of its column, to the decimals that are shown; several may."""


@dataclass(frozen=True)
class Matrix:
    """Accuracies by segments and by one other setting."""

    setting: str
    titles: list[str]
    rows: list[tuple[str, list[Cell]]]
    """A split, and a cell per column."""

    @property
    def characters(self) -> int:
        """About how many characters wide it is, with two between columns; a cell is like "88.90 ± 0.24"."""
        return max(len(split) for split, _ in self.rows) + sum(2 + max(12, len(title)) for title in self.titles)


def matrix(results: pd.DataFrame) -> Matrix | None:
    """Mean accuracies as a matrix: segments by the one setting that varies beside them, such as the budget.

    Args:
        results: the study's rows, from `load_results`.

    None where the study has another shape: several such settings or none, or few of the combinations.
    """
    metric, names = scored_metric(results), varied_settings(results)
    if len(names) != 1 or not results[metric].notna().any():
        return None
    (name,) = names
    values = list(dict.fromkeys(results[name].map(repr)))
    table = results.assign(row=keys(results, SPLIT), column=results[name].map(repr))
    splits = table.drop_duplicates("row")
    scores = table[table[metric].notna()].groupby(["row", "column"], sort=False)[metric].agg(list)
    if len(splits) < 2 or len(values) < 2 or len(scores) < 0.6 * len(splits) * len(values):
        return None
    means = scores.map(lambda one: round(100 * sum(one) / len(one), 2))  # as it is shown
    highest = means.index[means.eq(means.groupby("column").transform("max"))]
    rows = []
    for _, split in splits.iterrows():
        cells: list[Cell] = []
        for value in values:
            at = (split["row"], value)
            if at not in scores.index:
                cells.append(Cell("", "", False))
                continue
            mean, _, high = t_interval(scores[at])
            half = "" if high != high else f"± {100 * (high - mean):.2f}"
            cells.append(Cell(f"{100 * mean:.2f}", half, at in highest))
        rows.append((split_words(split), cells))
    first = results[~table["column"].duplicated()]
    return Matrix(name, [setting_words(name, value) for value in first[name]], rows)


def _signed(mismatch: float | None) -> str:
    return "" if mismatch is None or mismatch != mismatch else f"{100 * mismatch:+.2f}%".replace("-", "−")


def as_html(results: pd.DataFrame) -> str | None:
    """The summary table of rows for a notebook, with its caption; None where rows cannot be summarised truthfully."""
    try:
        check(results, SUMMARISED)
    except ValueError:
        return None
    metric = scored_metric(results)
    if metric not in results or not results[metric].notna().any():
        return None
    titles, cells = as_text(summary_table(results))
    shown = pd.DataFrame(cells, columns=titles).to_html(index=False, border=0, max_rows=MOST_SHOWN)
    return str(
        Markup("<p><b>{}</b> · {} · {}</p>").format(studies_of(results), _data_of(results), _runs_of(results))
        + Markup(shown)
    )


def _data_of(results: pd.DataFrame) -> str:
    budgets = ", ".join(setting_words("match", match) for match in dict.fromkeys(results["match"]))
    return f"{', '.join(dict.fromkeys(results['dataset']))} · budget: {budgets}"


def _runs_of(results: pd.DataFrame) -> str:
    """How many runs a table is of; failed ones are counted separately."""
    runs = unique_runs(results)
    failed = int((runs["status"] == "failed").sum())
    kinds = "validation images" if scored_metric(results) == "val_accuracy" else "the test set"
    return f"{len(runs) - failed} runs{f', {failed} failed' if failed else ''}, scored on {kinds}"

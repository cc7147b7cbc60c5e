"""A study's table: one row a point, as the command, the page and a paper show it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from spectrum.analysis.stats import summarise
from spectrum.analysis.table import SPLIT, scored_metric, segments_label, varied_settings


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

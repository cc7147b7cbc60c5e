"""Curves along the spectrum: how steep they are, whether they bend, where they are highest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectrum.analysis.inference import check_parts, shown_better, t_interval
from spectrum.analysis.table import SPLIT, keys, scored, scored_metric, spectrum_position, split_labels, varied_settings


def trend(results: pd.DataFrame, *, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """How accuracy changes per doubling of the segments: a row per curve, its settings first.

    Args:
        results: from `load_results`.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the intervals.

    A straight line over log₂ of the segments is fitted to each seed, and the slopes are averaged. `curvature` is
    likewise the quadratic coefficient of a parabola, below zero where the middle lies above the ends. Both are in
    accuracy, from 0 to 1, and have t-intervals over seeds (`low`, `high`, `curvature_low`, `curvature_high`). Plain
    convolutions, without a 1×1, are left out, and so are numbers of segments at which every run has failed. With two
    numbers of segments the curvature is NaN. A curve of which no seed has every run is left out. Raises ValueError
    where none is left, or below two numbers of segments, and for a table that would mislead.

    >>> from spectrum import load_results
    >>> trend(load_results("results/order"))[["order", "n", "slope", "low", "high"]].round(4)
                 order   n   slope     low    high
    0  pointwise_first  14  0.0024  0.0021  0.0027
    1    spatial_first  14  0.0018  0.0015  0.0022
    """
    metric = scored_metric(results) if metric is None else metric
    scored(results, metric, needs=["realised_segments"])  # refuses what would mislead
    rows = []
    for settings, curve, _ in _curves(results, metric):
        if len(curve.columns) < 2 or curve.empty:
            continue
        slope, low, high = t_interval(leading(curve, 1), confidence)
        row = settings | {"n": len(curve), "slope": slope, "low": low, "high": high, "curvature": float("nan")}
        if len(curve.columns) > 2:
            bent = t_interval(leading(curve, 2), confidence)
            row |= dict(zip(("curvature", "curvature_low", "curvature_high"), bent, strict=True))
        rows.append(row)
    if not rows:
        raise ValueError("trend: a slope needs at least two numbers of segments, and a seed with a run of each")
    return pd.DataFrame(rows)


def optimum(results: pd.DataFrame, *, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Possible optima: a confidence set of the best number of segments, one row per configuration.

    Args:
        results: from `load_results`.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the set.

    Columns: n, mean, `best` (the highest mean of its curve) and `in_set`. The configurations of a curve with `in_set`
    are a confidence set: the true optimum is among them with this confidence. A configuration is excluded only if
    another is shown to be better, by one-sided t-tests of differences paired by seed, at a level divided by the number
    of rivals. With few seeds the set is large; with one seed it is everything. A configuration whose runs have all
    failed has n = 0, no mean, and is in the set, since nothing excludes it; so is all of a curve of which no seed has
    every run. The idea is that of comparisons with the best (Hsu 1981), here with the spread of each pair. Raises
    ValueError for a table that would mislead.

    >>> from spectrum import load_results
    >>> found = optimum(load_results("results/order"))
    >>> found[found["in_set"]].groupby("order", sort=False)["label"].agg(list).to_dict()
    {'pointwise_first': ['per-channel'], 'spatial_first': ['per-channel']}
    """
    check_parts("optimum", confidence=confidence)
    metric = scored_metric(results) if metric is None else metric
    scored(results, metric, needs=["realised_segments"])  # refuses what would mislead
    rows: list[dict[str, Any]] = []
    for settings, curve, failed in _curves(results, metric, bare=True):
        unknown = {"n": 0, "mean": float("nan"), "best": False, "in_set": True}
        if curve.empty:
            rows.extend(settings | {"label": label} | unknown for label in [*curve.columns, *failed])
            continue
        values = curve.to_numpy(dtype=float)
        level = (1 - confidence) / max(1, values.shape[1] + len(failed) - 1)
        means = values.mean(axis=0)
        for place, label in enumerate(curve.columns):
            beaten = any(shown_better(values[:, other], values[:, place]) <= level for other in range(len(means)))
            best = bool(place == means.argmax())
            rows.append(
                settings | {"label": label, "n": len(curve), "mean": means[place], "best": best, "in_set": not beaten}
            )
        rows.extend(settings | {"label": label} | unknown for label in failed)
    return pd.DataFrame(rows)


def _curves(
    table: pd.DataFrame, metric: str, *, bare: bool = False
) -> list[tuple[dict[str, Any], pd.DataFrame, list[Any]]]:
    """Of every combination of settings: accuracies, a row per complete seed, a column per position on the log₂ axis.

    Without rows where no seed has every run. Last come the positions without accuracies, since every run there has
    failed; a curve of these alone is left out. With `bare` columns are labels, and
    plain convolutions are there too.
    """
    names = varied_settings(table)
    table = table.assign(label=split_labels(table))
    if not bare:
        table = table[table["pointwise"].astype(bool)]
    column = "label" if bare else "place"
    curves = []
    for values, part in table.groupby(names, sort=False, dropna=False) if names else [((), table)]:
        part = part.assign(place=places(part)).sort_values("place", kind="stable")
        part = part[part[column].notna()]  # a network without segments has no place
        curve = part.groupby(["seed", column], sort=False)[metric].mean().unstack()
        curve = curve[list(dict.fromkeys(part[column]))]
        failed = curve.columns[curve.isna().all()]
        curve = curve.drop(columns=failed).dropna()
        if len(curve.columns):
            curves.append((dict(zip(names, values, strict=True)), curve, list(failed)))
    return curves


def places(table: pd.DataFrame) -> pd.Series:
    """Position of each row on the log₂ axis: one for all rows that ask for the same split, whatever their width.

    Per-channel is another number of segments in a network of another width; the mean of the logarithms then.
    """
    logs = np.log2(spectrum_position(table))
    return table.assign(log=logs, key=keys(table, SPLIT)).groupby("key")["log"].transform("mean")


def leading(curves: pd.DataFrame, degree: int) -> NDArray[np.float64]:
    """Leading coefficient of a polynomial over the columns' positions, for each row."""
    return np.asarray(np.polyfit(curves.columns.to_numpy(dtype=float), curves.to_numpy(dtype=float).T, degree)[0])

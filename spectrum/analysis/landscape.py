"""Accuracy over two dials at once: the width of a network, and how its convolutions are split.

Width-matched networks differ in cost, and cost-matched ones in width, so each effect is conditional on what is matched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from spectrum.analysis.inference import t_interval
from spectrum.analysis.table import SPLIT, keys, scored, scored_metric, spectrum_position, split_labels, varied_settings

COSTS = ("params", "macs")


def width_slopes(results: pd.DataFrame, *, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Accuracy per doubling of the width, a row per split, plain convolutions first.

    Args:
        results: from `load_results`, of a study with an axis of widths.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the intervals.

    Each seed has its own straight line over log₂ of the width, and what is averaged is its slope, with a t-interval
    over seeds (`low`, `high`), in accuracy from 0 to 1. Raises ValueError for fewer than two widths, and where
    something else varies.
    """
    cells = cells_of(results, metric)
    return _slopes(cells.assign(place=np.log2(cells["width"])), "label", "widths", confidence)


def split_slopes(results: pd.DataFrame, *, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """What twice as many segments give at each width: a row per width.

    Args:
        results: from `load_results`, of a study with an axis of widths.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the intervals.

    Where splits are given as channels per segment (`segment_width`), the line is over these
    splits alone, and a doubling of the segments is a halving of those channels. Plain convolutions are left out.
    """
    cells = cells_of(results, metric)
    by_channels = cells[cells["channels_per_segment"].notna()]
    curve = by_channels if len(by_channels) else cells[cells["pointwise"]]
    log = -np.log2(curve["channels_per_segment"]) if len(by_channels) else np.log2(curve["segments_found"])
    return _slopes(curve.assign(place=log.astype(float)), "width", "numbers of segments", confidence)


def at_equal_cost(
    results: pd.DataFrame, cost: str, level: float, *, metric: str | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Accuracy of each split at one cost: a row per split, with the width that has this cost there.

    Args:
        results: from `load_results`, of a study with an axis of widths.
        cost: "params" or "macs".
        level: how much of it, within `common_costs`.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.
        confidence: of the intervals.

    Within each split and seed accuracy is interpolated between the two neighbouring widths, linearly in log₂ of the
    width, and the width itself in the logarithm of the cost. Raises ValueError for a level that some split does not
    bracket.
    """
    cells = cells_of(results, metric)
    low, high = common_range(cells, cost)
    if not low <= level <= high:
        raise ValueError(f"level={level:g}: only from {low:g} to {high:g} {cost} do all splits have networks")
    rows = []
    for label, split in cells.groupby("label", sort=False):
        log_width = log_width_at(split, cost, level)
        curves = split.pivot(index="seed", columns="width", values="accuracy").dropna()
        found = [np.interp(log_width, np.log2(curves.columns.to_numpy(float)), curve) for curve in curves.to_numpy()]
        mean, lower, upper = t_interval(found, confidence)
        rows.append({"label": label, "width": 2**log_width, "n": len(found), "mean": mean, "low": lower, "high": upper})
    return pd.DataFrame(rows)


def common_costs(results: pd.DataFrame, cost: str, *, metric: str | None = None) -> tuple[float, float]:
    """The lowest and the highest cost between which every split has networks on both sides.

    Args:
        results: from `load_results`, of a study with an axis of widths.
        cost: "params" or "macs".
        metric: a column of accuracies; runs without it do not count.
    """
    return common_range(cells_of(results, metric), cost)


def common_range(cells: pd.DataFrame, cost: str) -> tuple[float, float]:
    """The same of cells; the first is above the second where the splits share no cost."""
    if cost not in COSTS:
        raise ValueError(f"cost={cost!r}: try {' or '.join(map(repr, COSTS))}")
    ranges = cells.groupby("label")[cost].agg(["min", "max"])
    return float(ranges["min"].max()), float(ranges["max"].min())


def log_width_at(split: pd.DataFrame, cost: str, level: float) -> float:
    """log₂ of the width at which the cells of one split have this cost; NaN beyond its networks."""
    costs = split.groupby("width")[cost].first().sort_index()
    if not costs.iloc[0] <= level <= costs.iloc[-1]:
        return float("nan")
    return float(np.interp(np.log(level), np.log(costs.to_numpy(float)), np.log2(costs.index.to_numpy(float))))


def cells_of(results: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """A row per run, sorted along the spectrum: label of its split, width, seed, accuracy, params, macs.

    Raises ValueError for a table that would mislead, with one width, or where more than width and split varies.
    """
    metric = scored_metric(results) if metric is None else metric
    table = scored(results, metric, needs=["realised_segments", *COSTS])
    others = [name for name in varied_settings(table) if name not in ("width", "lr", "weight_decay")]
    if others:
        raise ValueError(f"{', '.join(others)} varies too; choose one value first, as in results[results[…] == …]")
    if table["width"].nunique() < 2:
        raise ValueError("width: has one value; needs at least two, as an axis of the study")
    position = spectrum_position(table)
    cells = pd.DataFrame(
        {
            "label": split_labels(table),
            "width": table["width"].astype(float),
            "seed": table["seed"],
            "accuracy": table[metric],
            "pointwise": table["pointwise"].astype(bool),
            "channels_per_segment": table["segment_width"].astype(float),
            "segments_found": position,
            **{cost: table[cost] for cost in COSTS},
            "order": position.groupby(keys(table, SPLIT)).transform("mean"),
        }
    )
    cells = cells.sort_values(["pointwise", "order", "width"], kind="stable").drop(columns="order")
    return cells.groupby([*cells.columns.drop("accuracy")], sort=False, dropna=False)["accuracy"].mean().reset_index()


def _slopes(cells: pd.DataFrame, by: str, what: str, confidence: float) -> pd.DataFrame:
    """The slope of each seed's line over `place`, averaged: a row per value of `by`."""
    rows: list[dict[str, Any]] = []
    for value, part in cells.groupby(by, sort=False):
        curves = part.pivot_table(index="seed", columns="place", values="accuracy").dropna()
        if len(curves.columns) < 2:
            continue
        slopes = np.polyfit(curves.columns.to_numpy(float), curves.to_numpy(float).T, 1)[0]
        mean, low, high = t_interval(slopes, confidence)
        rows.append({by: value, "n": len(curves), "slope": mean, "low": low, "high": high})
    if not rows:
        raise ValueError(f"a slope needs at least two {what}")
    return pd.DataFrame(rows)

"""Statistics over seeds. Pure functions on a table of results, one row a training run.

A diverged run counts, at chance, as its row has it; a failed one has no accuracy and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

PER_CHANNEL = "per_channel"
SPLIT = ("segments", "segment_width", "pointwise")  # the columns that say where on the spectrum a point lies
SETTINGS = tuple(  # the columns that say what else a point is, the seed left out
    """dataset image_size train_images validation_fraction flip shift cutout teacher_segments label_noise teacher_seed
    model width widths depth order activation norm pointwise_segments shuffle downsampling residual dropout epochs
    batch_size optimizer lr momentum weight_decay schedule warmup_epochs decay decay_epochs label_smoothing ema autocast
    compile scored_on match""".split()
)


def t_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and its Student t-interval: (mean, low, high). With one value the interval is unknown, NaN.

    Assumes values that are independent and about normal. Raises ValueError for no value at all.
    """
    x = np.asarray(values, dtype=float)
    if len(x) == 0:
        raise ValueError("t_interval: no values")
    mean = float(x.mean())
    if len(x) == 1:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def summarise(
    results: pd.DataFrame, by: Sequence[str], metric: str = "test_accuracy", confidence: float = 0.95
) -> pd.DataFrame:
    """One row a group: n, mean, sd, the t-interval's half width and ends, and the group's params, macs and seconds.

    Groups come in the order of the table, with the columns `by` first; `params` and `macs` where all rows of a group
    agree. The ends of an interval for an accuracy are cut at 0 and 1, which it cannot leave; `half` is not.
    """
    scored = results[results[metric].notna()]
    rows = []
    for key, group in scored.groupby(list(by), sort=False, dropna=False):
        mean, low, high = t_interval(group[metric], confidence)
        row = dict(zip(by, key, strict=True))
        row |= {"n": len(group), "mean": mean, "sd": group[metric].std(ddof=1), "half": high - mean}
        row |= {"low": low, "high": high}
        if metric.endswith("accuracy"):
            row |= {"low": max(low, 0.0) if low == low else low, "high": min(high, 1.0) if high == high else high}
        row |= {name: group[name].iloc[0] for name in ("params", "macs") if group[name].nunique() == 1}
        row["seconds"] = group["train_seconds"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def varied_settings(results: pd.DataFrame) -> list[str]:
    """Columns beside the segments and the seed that tell the points of a table apart, such as "activation".

    Widths and learning rates that were solved or searched for each point are not: they follow from the others.
    """
    return [name for name in SETTINGS if name in results and _chosen(results, name).map(repr).nunique() > 1]


def _chosen(results: pd.DataFrame, name: str) -> pd.Series:
    """A setting where the study says it, not where a budget or a search found it."""
    if name == "widths" and "match" in results:
        return results.loc[results["match"] == "none", name]
    if name in ("lr", "weight_decay") and "tuned" in results:
        return results.loc[~results["tuned"].astype(bool), name]
    return results[name]


def scored_metric(results: pd.DataFrame) -> str:
    """The accuracy that points are scored on: of the test set, or of validation images where that was not read."""
    return "test_accuracy" if results["test_accuracy"].notna().any() else "val_accuracy"


def worst_mismatch(results: pd.DataFrame) -> float:
    """The largest distance of a point from its budget, as a part of it; NaN where no budget is held."""
    if "budget_mismatch" not in results:
        return float("nan")
    return float(results["budget_mismatch"].astype(float).abs().max())


def pareto_front(cost: ArrayLike, value: ArrayLike) -> list[int]:
    """Positions, by rising cost, of the points that no other beats: none costs as little and is worth more."""
    costs, values = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    front: list[int] = []
    for position in np.lexsort((-values, costs)):
        if not front or values[position] > values[front[-1]]:
            front.append(int(position))
    return front


def spectrum_position(results: pd.DataFrame) -> pd.Series:
    """Where on the spectrum a row lies: the segments that its widest convolution really has."""
    return results["realised_segments"].map(lambda have: max(have) if len(have) else np.nan).astype(float)


def segments_label(segments: object, segment_width: object = None, pointwise: bool = True) -> str:
    """What a row's point is called in tables and on axes."""
    if segments == PER_CHANNEL:
        label = "per channel"
    elif segments is None or (isinstance(segments, float) and np.isnan(segments)):
        label = f"width {int(segment_width)}" if isinstance(segment_width, (int, float)) else "?"
    else:
        label = f"{int(str(segments).split('.')[0])}"
    return label if pointwise else f"{label}, no 1×1"

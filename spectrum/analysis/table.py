"""What the columns of a table of results say, and which tables cannot be read without misleading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spectrum._registry import nearest
from spectrum.conv.segments import PER_CHANNEL as PER_CHANNEL
from spectrum.design.budgets import budget_name as budget_name
from spectrum.models.options import NetworkFields
from spectrum.models.position import Position

SPLIT = ("segments", "segment_width", "pointwise", "stage_segments")  # they say where on the spectrum a point lies
SETTINGS = (  # the columns that say what else a point is, the seed left out
    *"""dataset image_size resize train_images validation_fraction normalisation flip shift cutout
    teacher_segments label_noise teacher_seed model""".split(),
    *(name for name in NetworkFields.model_fields if name not in SPLIT),
    *"""epochs batch_size optimizer lr momentum nesterov weight_decay schedule warmup_epochs decay decay_epochs
    decay_images label_smoothing ema autocast compile scored_on match""".split(),
)
NO_SHARES = ("loss", "seconds", "mismatch")  # endings of columns that may lie between 0 and 1 and are no accuracies
IMAGES = (  # say which images there are
    *("dataset", "image_size", "resize", "teacher_segments", "label_noise", "teacher_seed"),
)


def scored(results: pd.DataFrame, metric: str | None = None, needs: Iterable[str] = ()) -> pd.DataFrame:
    """The rows that have the metric: all but failed ones.

    Args:
        results: from `load_results`.
        metric: a column of accuracies; by default the one that the points are scored on.
        needs: further columns that are going to be read.

    Raises ValueError for a table that would mislead: without rows or without a column that is needed, with one run
    twice, with one data set in two versions, or with accuracies that are not from 0 to 1.
    """
    check(results, needs)
    metric = scored_metric(results) if metric is None else metric
    table = having(results, metric)
    check_shares(table[metric], metric, results)
    return table


def having(results: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows that have a value in a column. Raises ValueError where there is none."""
    if column not in results:
        raise ValueError(f"{column}: no such column{meant(column, results)}")
    table = results[results[column].notna()]
    if table.empty:
        raise ValueError(f"no row has {column}; every run failed, or this column is of another table")
    return table


def meant(name: str, columns: Iterable[Any]) -> str:
    """A question for the most similar of some columns, to end a message with; empty if none is similar."""
    near = nearest(name, map(str, columns))
    return f"; did you mean {near}?" if near else ""


def check_shares(values: pd.Series, metric: str, columns: Iterable[Any]) -> None:
    """Raise ValueError for a metric that cannot be shown in percent: no number, or not from 0 to 1.

    Args:
        values: of the metric; missing values are allowed.
        metric: name of their column.
        columns: all columns of the table, of which the message names the accuracies.
    """
    shares = [str(name) for name in columns if str(name).endswith("accuracy")]
    there = f"; the table has {', '.join(shares)}" if shares else ""
    if metric in SETTINGS or metric.endswith(NO_SHARES):
        raise ValueError(f"{metric}: is no accuracy; expected a column of accuracies from 0 to 1{there}")
    known = values.dropna()
    numbers = pd.to_numeric(known, errors="coerce")
    wrong = known[~numbers.between(0, 1) | known.map(lambda value: isinstance(value, bool | np.bool_))]
    if len(wrong):
        raise ValueError(f"{metric} = {wrong.iloc[0]}: expected accuracies from 0 to 1{there}")


def check(results: pd.DataFrame, needs: Iterable[str] = ()) -> None:
    """Refuses a table that would mislead, as `scored` does.

    Args:
        results: from `load_results`.
        needs: further columns that are going to be read.

    Raises ValueError.
    """
    check_source(results, ())
    if results.empty:
        raise ValueError("the table has no rows; load_results(FOLDER) gives those of a study that has run")
    check_source(results, ("seed", "status", *SPLIT, *needs))
    _check_runs(results)
    _check_images(results)


def check_source(table: object, needs: Iterable[str], source: str = "load_results") -> None:
    """Raise ValueError for what is no table, or lacks columns, and name where to take the table from.

    Args:
        table: what a function was given.
        needs: columns that the function reads.
        source: what makes such a table.
    """
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"expected a table from {source}, got {type(table).__name__}")
    missing = [name for name in dict.fromkeys(needs) if name not in table]
    if len(missing) == 1 and meant(missing[0], table):
        raise ValueError(f"the table lacks the columns {missing[0]}{meant(missing[0], table)}")
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; expected a table from {source}, with all columns"
        )


def _check_runs(results: pd.DataFrame) -> None:
    runs = keys(results, [*SPLIT, *varied_settings(results), "seed"])
    twice = runs.duplicated(keep=False)
    if twice.any():
        one = results[runs == runs[twice].iloc[0]]
        studies = ", ".join(dict.fromkeys(one["study"])) if "study" in one else "the table"
        label = segments_label(*one.iloc[0][[*SPLIT]])
        same = "id" in one and one["id"].nunique() < len(one)
        advice = 'drop the copies, as with drop_duplicates(["id", "match"]), or ' if same else ""
        raise ValueError(
            f"segments = {label}, seed {one['seed'].iloc[0]} is there {len(one)} times (in {studies}), and would count "
            f"as that many seeds; {advice}take one study at a time"
        )


def _check_images(results: pd.DataFrame) -> None:
    if "provenance" not in results:
        return
    have = results[results["provenance"].map(lambda entry: isinstance(entry, Mapping) and "data_fingerprint" in entry)]
    prints = have["provenance"].map(lambda entry: entry["data_fingerprint"])
    names = [name for name in IMAGES if name in have]
    keys = [have[name].map(repr) for name in names]
    if "teacher_seed" in names:  # each run's own, or one for all
        keys.append(have["seed"].where(have["teacher_seed"].eq("seed"), -1))
    for _, part in prints.groupby(keys) if names else ():
        if part.nunique() > 1:
            name = have.loc[part.index[0], "dataset"]
            raise ValueError(
                f"{name}: these rows come from {part.nunique()} versions of the data set (data_fingerprint "
                f"{', '.join(part.unique())}), and do not compare; take one study at a time"
            )


def varied_settings(results: pd.DataFrame) -> list[str]:
    """Columns beside the segments and the seed that tell the points of a table apart, such as "activation".

    Widths and learning rates that were solved or tuned for each configuration are not: they follow from the others.
    """
    check_source(results, ())
    return [name for name in SETTINGS if name in results and _chosen(results, name).map(repr).nunique() > 1]


def _chosen(results: pd.DataFrame, name: str) -> pd.Series:
    """A setting where the study says it, not where a budget or a search found it."""
    if name == "widths" and "match" in results:
        return results.loc[results["match"] == "none", name]
    if name in ("lr", "weight_decay") and "searched" in results:
        return results.loc[~results["searched"].map(lambda text: isinstance(text, str) and name in text.split()), name]
    return results[name]


def scored_metric(results: pd.DataFrame) -> str:
    """The accuracy that runs are scored on: of the test set, or of validation images where that was not read."""
    check_source(results, ())
    tested = "test_accuracy" in results and results["test_accuracy"].notna().any()
    return "test_accuracy" if tested or "val_accuracy" not in results else "val_accuracy"


def worst_mismatch(results: pd.DataFrame) -> float:
    """The largest distance of a point from its budget, as a part of it; NaN where no budget is held."""
    check_source(results, ())
    if "budget_mismatch" not in results:
        return float("nan")
    return float(results["budget_mismatch"].astype(float).abs().max())


def unique_runs(results: pd.DataFrame) -> pd.DataFrame:
    """The rows with each training run once; one that meets several budgets has a row for each."""
    return results.drop_duplicates("id") if "id" in results else results


def spectrum_position(results: pd.DataFrame) -> pd.Series:
    """Where on the spectrum a row lies: the segments that its widest convolution really has."""

    check_source(results, ["realised_segments"])

    def widest(have: Any) -> float:
        return float("nan") if have is None or np.ndim(have) == 0 else max(have, default=float("nan"))

    return results["realised_segments"].map(widest).astype(float)


def segments_label(
    segments: object, segment_width: object = None, pointwise: bool = True, stage_segments: object = None
) -> str:
    """What a row's point is called in tables and on axes.

    Args:
        segments: of the row; "per_channel", a number, or None where the segments have a width, or each stage its own.
        segment_width: channels per segment, where the study sets that.
        pointwise: whether the 1×1 is there.
        stage_segments: those of each stage, where they have their own.

    >>> segments_label("per_channel"), segments_label(None, 4), segments_label(1, None, False)
    ('per-channel', 'width 4', 'plain 3×3')
    >>> segments_label(None, stage_segments=(1, 8, "per_channel"))
    '1, 8, per-channel'
    """
    fields = {"segments": segments, "segment_width": segment_width, "stage_segments": stage_segments}
    return Position.of({**fields, "pointwise": pointwise}).label


def split_label(row: Mapping[str, Any] | pd.Series) -> str:
    """What a row, or a run of a plan, is called: its segments, and whether the 1×1 is left out."""
    return Position.of(row).label


def split_labels(results: pd.DataFrame) -> list[str]:
    """What every row is called, in their order."""
    return [split_label(row) for _, row in results.iterrows()]


def keys(rows: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """What tells rows apart by some columns, as text, which lists and None can be compared by too."""
    text = pd.Series("", index=rows.index)
    for name in names:
        text = text + rows[name].map(repr) + " "
    return text


def has(results: pd.DataFrame, side: Mapping[str, Any]) -> pd.Series:
    """Whether each row has all values of one side of a comparison, such as {"segments": 4}."""
    found = pd.Series(True, index=results.index)
    for name, value in side.items():
        asked = tuple(value) if isinstance(value, list) else value
        found &= results[name].map(lambda have, asked=asked: have == asked)
    return found


def studies_of(results: pd.DataFrame) -> str:
    """Names of the studies that a table has rows of, each with the start of its plan's hash, for captions."""
    if "study" not in results:
        return ""
    hashes = results["study_hash"] if "study_hash" in results else pd.Series(None, index=results.index, dtype=object)
    pairs = dict.fromkeys(zip(results["study"], hashes, strict=True))
    return ", ".join(f"{name} {hash[:8]}" if isinstance(hash, str) else str(name) for name, hash in pairs)

"""Read a study's folder as tables; a notebook shows a table of runs as the study's summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectrum.analysis.summary import as_html
from spectrum.design.plan import PlannedRun
from spectrum.design.run import RunConfig
from spectrum.study.store import (
    FOLDER,
    ROWS,
    Row,
    StoreError,
    find_plan,
    latest_rows,
    read_history,
    read_plan,
    results_folder,
    without_collection,
)


class Results(pd.DataFrame):
    """Rows of runs: a DataFrame that a notebook shows as its summary, one row per run.

    A table without the necessary columns, for example with two columns selected, is shown as in pandas.
    """

    @property
    def _constructor(self) -> type[Results]:
        return Results

    def _repr_html_(self) -> str | None:
        shown = as_html(self)
        if shown is not None:
            return shown
        plain: str | None = pd.DataFrame(self)._repr_html_()  # type: ignore[operator]
        return plain


@without_collection()
def load_results(folder: str | Path, *, all_runs: bool = False) -> Results:
    """Load a study's rows as a table, one row per run.

    Args:
        folder: where `spectrum run` wrote, such as "results/quickstart".
        all_runs: whether to include the runs of its learning-rate sweep, and runs of an earlier version of the study.

    Columns: every field of `RunConfig` (its default in rows older than the field); `status` (done, diverged, failed);
    `study_hash` (hash of the plan); `searched` (options that the sweep chose, separated by spaces); `test_accuracy`
    and `val_accuracy`, from 0 to 1; losses in nats; `params`, `macs` (forward pass of one image), `train_seconds` and
    `provenance`. A failed run has no accuracy; a diverged run has the accuracy of chance. `attrs` has
    the folder, so that `load_model` finds a row's network. Raises StoreError if there is no such folder or no row.

    >>> results = load_results("results/order")
    >>> results.groupby("segments", sort=False)["test_accuracy"].mean().round(4)
    segments
    1              0.8721
    4              0.8791
    16             0.8832
    32             0.8847
    per_channel    0.8870
    Name: test_accuracy, dtype: float64
    """
    folder = results_folder(folder)
    if not isinstance(all_runs, bool):
        raise ValueError(f"all_runs={all_runs!r}: expected True or False")
    if not (folder / ROWS).exists():
        raise StoreError(f"{folder}: has no {ROWS}; run the study first: spectrum run FILE")
    by_id = latest_rows(folder)
    plan = find_plan(folder)
    if plan is None:
        rows = list(by_id.values())
    else:
        runs = [run for run in plan.runs if run.id in by_id]
        rows = [_planned(by_id[run.id], run, " ".join(plan.tuned)) for run in runs]
        if all_runs:
            listed = {run.id for run in runs}
            rows += [row for id, row in by_id.items() if id not in listed]
    if not rows:
        only_swept = plan is not None and plan.tuning is not None and by_id
        raise StoreError(
            f"{folder} holds only the learning-rate sweep. Train the final runs with: spectrum run FILE --confirm"
            if only_swept
            else f"{folder}: has no rows yet; run the study first: spectrum run FILE"
        )
    table = _as_table(row | {"study_hash": None if plan is None else plan.hash} for row in rows)
    table.attrs[FOLDER] = str(folder.absolute())
    return table


@without_collection()
def load_tuning(folder: str | Path) -> Results:
    """Load the runs of a study's learning-rate sweep as a table, one row per run, with whether each was `chosen`.

    The sweep decides by `val_accuracy`; the columns of the test set are empty. Raises StoreError if there is no sweep.

    >>> sweep = load_tuning("results/curve")
    >>> chosen = sweep[sweep["chosen"] & (sweep["match"] == "params") & sweep["segments"].isin([1, 4, 16])]
    >>> sorted(set(chosen[["segments", "pointwise", "lr"]].itertuples(index=False, name=None)))
    [(1, False, 0.2), (1, True, 0.025), (4, True, 0.05), (16, True, 0.2)]
    """
    folder = results_folder(folder)
    plan = read_plan(folder)
    if plan.tuning is None:
        raise StoreError(f"{folder}: its study has no [tune], so it has no learning-rate sweep. Its runs: load_results")
    by_id = latest_rows(folder)
    chosen = {id for choice in plan.tuning.choices for id in choice.searched}
    runs = [run for run in plan.swept if run.id in by_id]
    more = {"study_hash": plan.hash}
    table = _as_table([_planned(by_id[run.id], run) | {"chosen": run.id in chosen} | more for run in runs])
    table.attrs[FOLDER] = str(folder.absolute())
    return table


def _as_table(rows: Iterable[Row]) -> Results:
    """Build the table column by column, which takes a third of the time that pandas needs for a list of records."""
    later = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}
    columns: dict[str, list[Any]] = {}
    count = 0
    for count, row in enumerate(rows, 1):
        for name, value in row.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = [later.get(name)] * (count - 1)
            # tuples, since pandas cannot group by lists
            column.append(tuple(value) if isinstance(value, list) else value)
        if len(row) < len(columns):
            for name in columns.keys() - row.keys():
                columns[name].append(later.get(name))
    columns |= {name: [value] * count for name, value in later.items() if name not in columns}
    whole = {name: pd.Series(column, dtype=object) for name, column in columns.items() if _is_of_integers(column)}
    return Results(columns | whole)


def _is_of_integers(column: Sequence[Any]) -> bool:
    """Whether a column has only integers and missing values, which pandas would convert to floats and round."""
    kinds = set(map(type, column))
    return kinds == {int, type(None)}


def _planned(row: Row, run: PlannedRun, searched: str = "") -> Row:
    """A row with the values of one entry of the plan, since one run may serve several budgets."""
    if run.match is None:  # from a plan of an earlier version
        return row | {"searched": searched}
    asked = {"match": run.match, "budget_mismatch": run.mismatch, "width": run.width}
    return row | asked | {"searched": searched}


def load_history(folder: str | Path) -> pd.DataFrame:
    """Load the epochs of all runs: id, epoch, lr, train_loss (nats), val_loss, val_accuracy (0 to 1), train_seconds.

    The table is empty if there are no epochs yet. Raises StoreError if this is no results folder.

    >>> history = load_history("results/order")
    >>> list(history.columns)
    ['id', 'epoch', 'lr', 'train_loss', 'val_loss', 'val_accuracy', 'train_seconds']
    >>> int(history["epoch"].max())
    6
    """
    history = pd.DataFrame(read_history(results_folder(folder)))
    return history.drop_duplicates(["id", "epoch"], keep="last") if len(history) else history

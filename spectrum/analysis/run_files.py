"""Runs from anywhere as one table, a row per run: CSV, Parquet, JSON lines, W&B exports and TensorBoard folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

NOTES = "spectrum_notes"  # in a table's attrs: what reading it left out or assumed
RUN = "run"
_CHART_COLUMN = re.compile(r"(?P<run>.+) - (?P<metric>.+)__(?:MIN|MAX)")  # of a chart that W&B exports
_WANDB_TABLE = {"Name", "State", "Created", "Runtime"}  # of W&B's table of runs
_FINISHED = "finished"
_EVENTS = "events.out.tfevents."


def read_runs(path: str | Path, *, pattern: str | None = None) -> pd.DataFrame:
    """Read runs of another tool as a table, a row per run.

    Args:
        path: a file of rows (.csv, .parquet, .json or .jsonl, with one object per line or one list), a CSV file that
            W&B exported from its table of runs or from a chart, or a folder with TensorBoard's event files.
        pattern: a regular expression with named groups, such as "(?P<method>.+)-seed(?P<seed>\\d+)", that a run's whole
            name matches; each group becomes a column. For formats whose runs have a name: W&B and TensorBoard.

    Of a curve, the value at its last step counts. Runs that W&B does not call finished have no results. TensorBoard
    needs its package (`pip install convolution-spectrum[tensorboard]`); its hyperparameters become columns.
    `.attrs["spectrum_notes"]` says what was left out, a sentence each. Raises ValueError for a file that cannot be read
    as such a table, and for names that the pattern does not match.
    """
    path = Path(path)
    if path.is_dir():
        table = _tensorboard(path)
    elif not path.exists():
        raise ValueError(f"{path}: no such file")
    elif path.suffix.lower() not in _READERS:
        raise ValueError(f"{path}: expected {', '.join(_READERS)}, or a folder with TensorBoard's event files")
    else:
        table = _read_file(path)
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: has the column {repeated[0]} twice")
    if table.empty:
        raise ValueError(f"{path}: has no rows")
    return table if pattern is None else _with_groups(table, pattern, path)


def _read_file(path: Path) -> pd.DataFrame:
    try:
        table = _READERS[path.suffix.lower()](path)
    except (ValueError, OSError) as error:  # the errors of pandas, json and pyarrow are ValueErrors or OSErrors
        raise ValueError(f"{path}: cannot be read as {path.suffix}: {str(error).splitlines()[0]}") from None
    if path.suffix.lower() != ".csv":
        return table
    if len(table.columns) == 1 and ";" in str(table.columns[0]):
        raise ValueError(f"{path}: its columns are separated by semicolons; save it with commas")
    if any(_CHART_COLUMN.fullmatch(str(name)) for name in table):
        return _wandb_chart(table)
    return _wandb_table(table) if set(table) >= _WANDB_TABLE else table


def _read_json(path: Path) -> pd.DataFrame:
    """One list of objects, or an object per line; objects inside become columns such as config.lr."""
    text = path.read_text(encoding="utf-8-sig")
    is_list = text.lstrip().startswith("[")
    rows = json.loads(text) if is_list else [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one object per run")
    return pd.json_normalize(rows)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: pd.read_csv(path, encoding="utf-8-sig"),
    ".parquet": pd.read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json,
}


def _wandb_table(table: pd.DataFrame) -> pd.DataFrame:
    """Runs that are not finished keep their settings, and lose all numbers that only a finished run has."""
    unfinished = table["State"] != _FINISHED
    if not unfinished.any():
        return table.rename(columns={"Name": RUN})
    states = ", ".join(f"{count} {state}" for state, count in table["State"][unfinished].value_counts().items())
    kept = table[~unfinished].rename(columns={"Name": RUN})
    kept.attrs[NOTES] = (f"Runs that W&B does not call finished are left out: {states}.",)
    return kept


def _wandb_chart(table: pd.DataFrame) -> pd.DataFrame:
    """The last value of each curve of a chart."""
    found = [match for name in table if (match := _CHART_COLUMN.fullmatch(str(name)))]
    curves = dict.fromkeys((match["run"], match["metric"]) for match in found)
    metrics = list(dict.fromkeys(metric for _, metric in curves))
    rows: dict[str, dict[str, Any]] = {}
    for run, metric in curves:
        values = table[f"{run} - {metric}"].dropna()
        rows.setdefault(run, {RUN: run})[metric] = values.iloc[-1] if len(values) else float("nan")
    runs = pd.DataFrame(rows.values(), columns=[RUN, *metrics])
    runs.attrs[NOTES] = (f"Of each curve over {table.columns[0]}, the value at its last step counts.",)
    return runs


def _tensorboard(folder: Path) -> pd.DataFrame:
    """A row per folder with event files: the last value of every scalar, and the hyperparameters."""
    found = sorted({path.parent for path in folder.rglob(f"{_EVENTS}*")})
    if not found:
        raise ValueError(f"{folder}: no event files of TensorBoard ({_EVENTS}…) in it or below it")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ValueError(
            f"{folder}: reading TensorBoard's files needs its package: pip install convolution-spectrum[tensorboard]"
        ) from None
    rows: dict[Path, dict[str, Any]] = {}
    for where in found:
        events = EventAccumulator(str(where), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        settings = dict(_hyperparameters(events))
        values = settings | dict(_scalars(events))
        if settings and where.parent in rows:  # torch's add_hparams writes into a folder below its run's
            rows[where.parent] = values | rows[where.parent]
        else:
            name = where.relative_to(folder).as_posix()
            rows[where] = {RUN: folder.resolve().name if name == "." else name} | values
    table = pd.DataFrame(rows.values())
    table.attrs[NOTES] = ("Of each curve, the value at its last step counts.",)
    return table


def _scalars(events: Any) -> Iterator[tuple[str, float]]:
    """The value of each scalar at its last step; of several at one step, the one that was written last."""
    for tag in events.Tags()["scalars"]:
        last = max(enumerate(events.Scalars(tag)), key=lambda one: (one[1].step, one[0]))[1]
        yield tag, float(last.value)
    for tag in events.Tags()["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            from tensorboard.util.tensor_util import make_ndarray

            last = max(enumerate(events.Tensors(tag)), key=lambda one: (one[1].step, one[0]))[1]
            yield tag, float(make_ndarray(last.tensor_proto))


def _hyperparameters(events: Any) -> Iterator[tuple[str, Any]]:
    """The values that `SummaryWriter.add_hparams` wrote."""
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    try:
        content = events.PluginTagToContent("hparams")
    except KeyError:  # it was not used
        return
    if SESSION_START_INFO_TAG not in content:
        return
    for name, value in HParamsPluginData.FromString(content[SESSION_START_INFO_TAG]).session_start_info.hparams.items():
        kind = value.WhichOneof("kind")
        yield name, getattr(value, kind) if kind else None


def _with_groups(table: pd.DataFrame, pattern: str, path: Path) -> pd.DataFrame:
    """The table with a column for each named group of the pattern, from the runs' names."""
    try:
        known = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r}: is no regular expression ({error})") from None
    if not known.groupindex:
        raise ValueError(f"pattern={pattern!r}: has no named group, such as (?P<seed>\\d+)")
    if RUN not in table:
        raise ValueError(f"{path}: has no column {RUN} with names for the pattern; only W&B and TensorBoard have")
    taken = [name for name in known.groupindex if name in table]
    if taken:
        raise ValueError(f"pattern={pattern!r}: the table has a column {taken[0]} already; name the group otherwise")
    matches = [known.fullmatch(str(name)) for name in table[RUN]]
    unmatched = [str(name) for name, match in zip(table[RUN], matches, strict=True) if match is None]
    if unmatched:
        more = f" and {len(unmatched) - 3} more" if len(unmatched) > 3 else ""
        raise ValueError(f"pattern={pattern!r}: does not match {', '.join(unmatched[:3])}{more}")
    groups = pd.DataFrame([match.groupdict() for match in matches if match], index=table.index)
    whole = pd.concat([table, groups], axis=1)
    whole.attrs = dict(table.attrs)
    return whole

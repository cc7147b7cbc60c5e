"""Differences of the two sides of a comparison, paired by seed.

Runs of one seed see the same images in the same order, so differences are taken seed by seed, and seeds are what
counts as n. A seed with a missing run is left out of a comparison.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from spectrum.analysis.along import leading, places
from spectrum.analysis.table import SPLIT, has, keys, scored, scored_metric, varied_settings

Side = Mapping[str, Any]
Across = Sequence[Side] | Literal["segments"] | None


class NoRunsError(ValueError):
    """What is to be compared has no runs, or not yet."""


def differences_by_seed(
    results: pd.DataFrame, between: Sequence[Side], across: Across = None, metric: str | None = None
) -> pd.Series:
    """A minus B, the first side minus the second: one value per seed, the mean over all that the sides share.

    Args:
        results: from `load_results`.
        between: two sides: the values that pick a side's rows, such as {"segments": 4}.
        across: two settings, such as [{"segments": 1}, {"segments": "per_channel"}]: the difference at the first minus
            that at the second; or "segments": by how much the difference grows per doubling of the segments.
        metric: a column of accuracies from 0 to 1; by default the one that runs are scored on.

    Settings that the sides do not name must be the same on both and pair their rows, except where each side has one
    value throughout, which then is compared too. Seeds for which a run is missing are left out. Raises ValueError where
    sides share runs, where one has no row, or where no seed has all runs, as when the sides do not pair or all runs of
    one shared setting have failed; with `across` also where the settings, or the numbers of segments, do not share the
    same things. With "segments" plain convolutions, without a 1×1, are left out.

    >>> from spectrum import load_results
    >>> orders = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> differences_by_seed(load_results("results/order"), orders).head(3).round(4).to_dict()
    {0: 0.0051, 1: 0.0029, 2: 0.0052}
    """
    metric = scored_metric(results) if metric is None else metric
    scored(results, metric)  # refuses what would mislead
    return paired_differences(results.reset_index(drop=True), between, across, metric)


def paired_differences(
    table: pd.DataFrame, between: Sequence[Side], across: Across, metric: str, changed: Collection[str] | None = None
) -> pd.Series:
    """`differences_by_seed` of a table that is checked, and whose index tells its rows apart.

    Failed runs are in it: what has no run is missing, not gone.
    """
    if len(between) != 2:
        raise ValueError(f"between: expected two sides, got {len(between)}")
    if across is None:
        return _complete(_paired(table, between, metric, changed).values).mean(axis=1)
    if across == "segments":
        curve = differences_by_place(table, between, metric, changed)
        return pd.Series(leading(curve, 1), index=curve.index)
    if len(across) != 2 or not all(isinstance(at, Mapping) for at in across):
        raise ValueError(f'across: expected two settings or "segments", got {across!r}')
    first, second = (pd.concat([rows_of_side(rows_of_side(table, at), side) for side in between]) for at in across)
    names = _names(pd.concat([first, second]))
    apart = {name for at in across for name in at} | {name for name in names if _compared(first[name], second[name])}
    parts = [_paired(rows, between, metric, changed, names, apart) for rows in (first, second)]
    _check_same_cells(dict(zip(("the first setting", "the second"), parts, strict=True)))
    one, other = (_complete(part.values).mean(axis=1) for part in parts)
    return _complete(one.sub(other).to_frame()).iloc[:, 0]


@dataclass(frozen=True)
class _Paired:
    """Differences of two sides: a row per seed, a column per cell, which is what one run of each side shares."""

    values: pd.DataFrame  # NaN where a run is missing
    cells: dict[str, dict[str, str]]  # what each column is, in words


def _paired(
    table: pd.DataFrame,
    between: Sequence[Side],
    metric: str,
    changed: Collection[str] | None = None,
    names: Sequence[str] | None = None,
    apart: Collection[str] = (),
) -> _Paired:
    """The differences cell by cell.

    What the sides do not name must be the same on both, cell by cell; a cell that one side lacks, or whose runs have
    all failed, is missing at every seed, which is refused. Only where a side has a single value throughout, and the
    other another, is that taken for what is compared; with `changed`, only if it is one of these names. `names` are the
    columns that tell configurations apart, by default in these rows, and `apart` those that do not make a cell.
    """
    first, second = (rows_of_side(table, side) for side in between)
    both = first.index.intersection(second.index)
    if len(both):
        raise ValueError(f"between: {len(both)} runs are on both sides, {dict(between[0])} and {dict(between[1])}")
    sides = pd.concat([first, second])
    names = _names(sides) if names is None else names
    known = {name for side in between for name in side} | {*apart}
    shared = [name for name in names if name not in known and not _compared(first[name], second[name], changed)]
    sides = sides.assign(cell=keys(sides, shared), kind=keys(sides, names))

    def by_seed(side: pd.DataFrame) -> pd.DataFrame:
        runs = sides.loc[side.index].groupby(["seed", "cell", "kind"], sort=False)[metric].mean()
        kinds = runs.unstack(["cell", "kind"]).T  # a failed run is NaN, and so is then its cell
        return kinds.groupby(level="cell", sort=False).mean().where(kinds.notna().groupby(level="cell").all()).T

    one, other = by_seed(first), by_seed(second)
    paired = one.sub(other)  # seeds and cells of one side only become NaN
    described = sides.drop_duplicates("cell").set_index("cell")[shared].map(repr).to_dict("index")
    cells = {str(cell): {str(name): value for name, value in values.items()} for cell, values in described.items()}
    empty = [cells[cell] for cell in paired.columns[paired.isna().all()]]
    if empty:
        raise NoRunsError(
            f"no seed has a run on every side{_unlike(first, second, shared) or _without(empty, cells.values())}"
        )
    return _Paired(paired, cells)


def _names(rows: pd.DataFrame) -> list[str]:
    """The columns that tell configurations apart."""
    return [name for name in (*SPLIT, *varied_settings(rows)) if name in rows]


def _without(empty: Sequence[Mapping[str, str]], cells: Collection[Mapping[str, str]]) -> str:
    """What has no run on both sides at any seed, where other things have."""
    if len(cells) == 1:
        return ""
    varied = [name for name in empty[0] if len({cell[name] for cell in cells}) > 1]
    return " with " + "; nor with ".join(", ".join(f"{name} = {cell[name]}" for name in varied) for cell in empty)


def _check_same_cells(parts: Mapping[str, _Paired]) -> None:
    """Refuses differences that are means over other things here than there: they would not compare."""
    first, *others = parts
    for other in others:
        one, two = parts[first].cells.values(), parts[other].cells.values()
        names = [name for name in next(iter(one)) if name in next(iter(two))]
        have, there = ({tuple(cell[name] for name in names) for cell in cells} for cells in (one, two))
        if have != there:
            lacks = first if there - have else other
            cell = sorted((there - have) or (have - there))[0]
            settings = ", ".join(f"{name} = {value}" for name, value in zip(names, cell, strict=True))
            raise NoRunsError(f"{lacks} has no run with {settings}, and {other if lacks == first else first} has")


def _compared(first: pd.Series, second: pd.Series, changed: Collection[str] | None = None) -> bool:
    """Whether they differ in a column as a whole; with `changed` only if it is one of these."""
    one, other = set(first.map(repr)), set(second.map(repr))
    if changed is not None and first.name not in changed:
        return False
    return len(one) == len(other) == 1 and one != other


def _unlike(first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> str:
    """In what settings, beside those that are compared, the sides have not the same values."""
    unlike = []
    for name in names:
        one, other = (list(dict.fromkeys(side[name].map(repr))) for side in (first, second))
        if set(one) != set(other):
            unlike.append(f"{name} is {', '.join(one)} on the first side and {', '.join(other)} on the second")
    return f": {'; '.join(unlike)}. Pick the rows that compare, or name it on both sides" if unlike else ""


def rows_of_side(table: pd.DataFrame, side: Side) -> pd.DataFrame:
    """Rows that have all values of a side."""
    for name, value in side.items():
        if name not in table:
            raise ValueError(f"{name}: no such column; a side names settings, as in {{'segments': 4}}")
        found = table[has(table, {name: value})]
        if found.empty:
            there = ", ".join(dict.fromkeys(map(repr, table[name])))
            raise NoRunsError(f"{name} = {value!r}: no row has it; try {there}")
        table = found
    return table


def _complete(by_seed: pd.DataFrame) -> pd.DataFrame:
    """The seeds for which no run is missing."""
    complete = by_seed.dropna()
    if complete.empty:
        raise NoRunsError("no seed has a run on every side")
    return complete


def differences_by_place(
    table: pd.DataFrame, between: Sequence[Side], metric: str, changed: Collection[str] | None = None
) -> pd.DataFrame:
    """Differences: a row per complete seed, a column per position on the log₂ axis; without plain convolutions."""
    sides = pd.concat([rows_of_side(table, side) for side in between])
    sides = sides[sides["pointwise"].astype(bool)]
    sides = sides.assign(place=places(sides))
    names = _names(sides)
    parts = {
        float(at["place"].iloc[0]): _paired(at, between, metric, changed, names, apart=SPLIT)
        for _, at in sides.groupby("place")
    }
    if len(parts) < 2:
        raise NoRunsError('across = "segments": needs at least two numbers of segments')
    _check_same_cells({f"the place at {2**place:g} segments": part for place, part in parts.items()})
    return _complete(pd.DataFrame({place: part.values.mean(axis=1, skipna=False) for place, part in parts.items()}))

"""Is A better than B? Comparisons of methods in a table of runs from anywhere, paired where the runs pair."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectrum._registry import nearest
from spectrum.analysis.inference import (
    ALPHA,
    check_numbers,
    check_parts,
    difference,
    noise_floor,
    t_interval,
    unpaired_difference,
    welch_freedom,
)
from spectrum.analysis.judging import MORE_SEEDS, judge_family
from spectrum.analysis.run_files import NOTES, read_runs
from spectrum.analysis.sentences import PP, Unit, finding, power_note
from spectrum.design.margins import check_margin

COLUMNS = f"""name side_a side_b paired n n_a n_b left_out mean sd low high margin p p_equivalent verdict
    {" ".join(MORE_SEEDS)} sample sampled pair where kind confounded diverged lower_is_better unit reason""".split()


@dataclass(frozen=True)
class Comparisons:
    """What the runs of a table show of its methods."""

    judged: pd.DataFrame  # a row per comparison, in the form of `stats.contrasts`
    methods: pd.DataFrame  # a row per method: n, failed, mean, sd, low and high (95% CI), noise_floor
    notes: tuple[str, ...]  # what was left out, assumed or not known, a sentence each
    metric: str
    unit: Unit

    def sentences(self) -> list[str]:
        """Each comparison as a sentence, in the table's order."""
        return [f"{finding(row)} {power_note(row)}".rstrip() for _, row in self.judged.iterrows()]

    def __str__(self) -> str:
        return "\n".join([*self.sentences(), "", self._methods_as_text(), "", *self.notes]).rstrip()

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        said = "".join(f"<li>{html.escape(one)}</li>" for one in self.sentences())
        notes = "".join(f"<p>{html.escape(one)}</p>" for one in self.notes)
        return f"<ul>{said}</ul><pre>{html.escape(self._methods_as_text())}</pre>{notes}"

    def _methods_as_text(self) -> str:
        table = self.methods.rename(columns={"n": "values"})
        table = table.assign(**{"95% CI": [self._interval(row) for _, row in self.methods.iterrows()]})
        table = table.assign(mean=[self._value(one) for one in table["mean"]])
        name = f"mean of {self.metric}{', %' if self.unit == PP else ''}"
        return str(table[["method", "values", "mean", "95% CI"]].rename(columns={"mean": name}).to_string(index=False))

    def _interval(self, row: pd.Series) -> str:
        return "" if math.isnan(row["low"]) else f"{self._value(row['low'])} to {self._value(row['high'])}"

    def _value(self, value: float) -> str:
        return "" if math.isnan(value) else self.unit.number(value)


def compare(
    table: pd.DataFrame | str | Path,
    *,
    by: str | Sequence[str],
    metric: str,
    pair: str | Sequence[str] = (),
    average_over: str | Sequence[str] = (),
    against: str | None = None,
    margin: float | None = None,
    lower_is_better: bool = False,
    test_images: int | None = None,
    alpha: float = ALPHA,
    power: float = 0.8,
    pattern: str | None = None,
) -> Comparisons:
    """Compare the methods in a table of runs, one row per run, as one family.

    Args:
        table: a table, or a file or folder for `read_runs`.
        by: the column, or columns, whose values are the methods.
        metric: the column of results. Missing values are failed runs. Accuracies from 0 to 1 are printed in percentage
            points (pp), anything else in its own unit.
        pair: the column, or columns, in which runs of two methods match, such as seed. Without it, and for two methods
            that share no value of it, the comparison is unpaired (Welch's tests), and says so.
        average_over: columns, such as dataset, over whose values a pair's runs are averaged first, so that a pair
            counts once. A pair that lacks one of the values is left out.
        against: compare every method with this one only; by default each with each.
        margin: a difference, in the metric's unit, below which two methods count as equivalent, chosen before the runs.
            Of accuracies from 0 to 1 it is a share of 1, at most 0.2: 0.005 is half a percentage point.
        lower_is_better: whether the better method is the one with the lower metric, as for a loss.
        test_images: how many images an accuracy was measured on; adds the noise floor of one accuracy.
        alpha: the rate of any false claim in the whole family (Holm's method).
        power: that the numbers of seeds are computed for.
        pattern: for `read_runs`.

    Raises ValueError for a missing column, fewer than two methods, one run twice, values that are no numbers, and a
    margin that cannot be meant.

    >>> import pandas as pd
    >>> runs = pd.DataFrame({"method": list("aaabbb"), "seed": [0, 1, 2] * 2, "acc": [0.9, 0.91, 0.92, 0.88, 0.9, 0.9]})
    >>> print(compare(runs, by="method", pair="seed", metric="acc").sentences()[0])
    a vs b: a is better by 1.67 pp (95% CI 0.23 to 3.10; 3 pairs; p = 0.038).
    """
    check_parts("compare", alpha=alpha, power=power)
    if margin is not None:
        check_numbers("compare", above=0, margin=margin)
    runs = table if isinstance(table, pd.DataFrame) else read_runs(table, pattern=pattern)
    methods, pairs, cells = _names("by", by), _names("pair", pair), _names("average_over", average_over)
    _check_columns(runs, {"by": methods, "pair": pairs, "average_over": cells, "metric": [metric]})
    if cells and not pairs:
        raise ValueError("average_over: needs pair, which says which runs are averaged into one value")
    if not methods:
        raise ValueError("by: expected the column whose values are the methods, such as method")
    notes = list(runs.attrs.get(NOTES, ()))
    kept = _kept(runs, [*methods, *pairs, *cells], metric, notes)
    keyed = pd.DataFrame({"method": _named(kept, methods), "pair": _texts(kept, pairs), "cell": _texts(kept, cells)})
    if pairs:
        _check_twice(kept.drop(columns=metric), keyed, [*methods, *pairs, *cells])
    elif kept.duplicated().any():
        notes.append(
            f"{_counted(int(kept.duplicated().sum()), 'row')} equal to another in all columns, counted as runs."
        )
    keyed = keyed.assign(value=kept[metric])
    unit = _unit_of(keyed["value"], metric)
    if unit == PP:
        check_margin("compare", margin)
    shared = {
        "lower_is_better": lower_is_better,
        "unit": unit,
        "pair": ", ".join(pairs),
        "kind": "difference",
    }
    shared |= {"margin": float("nan") if margin is None else margin, "where": "", "confounded": False, "diverged": 0}
    found = list(dict.fromkeys(keyed["method"]))
    rows = [shared | _compared(keyed, a, b, margin) for a, b in _asked(found, against, methods)]
    judged = pd.DataFrame(judge_family(rows, alpha=alpha, power=power), columns=COLUMNS)
    judged = judged.astype(dict.fromkeys(MORE_SEEDS, "Int64"))
    summary = _summary(keyed, test_images)
    notes += _notes(judged, summary, metric, test_images)
    if margin is not None and margin > (spread := kept[metric].max() - kept[metric].min()):
        notes.append(
            f"The margin, {margin:g}, exceeds the range of all values, {spread:g}: is it in the metric's unit?"
        )
    if differing := _differing(kept, keyed["method"], (metric, *methods, *pairs, *cells)):
        notes.append(f"The methods also differ in {', '.join(differing)}, each of which may be the cause.")
    return Comparisons(judged, summary, tuple(notes), metric, unit)


def _names(who: str, given: str | Sequence[str]) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    if len(set(names)) < len(names):
        raise ValueError(f"{who}: {', '.join(names)} has a column twice")
    return names


def _check_columns(runs: pd.DataFrame, asked: dict[str, list[str]]) -> None:
    """Raise ValueError for an empty table, a column that is not there, and one that is asked for twice."""
    if runs.empty:
        raise ValueError("the table has no rows")
    seen: dict[str, str] = {}
    for who, names in asked.items():
        for name in names:
            if name not in runs:
                near = nearest(name, map(str, runs))
                meant = f"; did you mean {near}?" if near else ""
                raise ValueError(f"{who}: no column {name}{meant} (it has {', '.join(map(str, runs))})")
            if name in seen:
                raise ValueError(f"{name}: is given for {seen[name]} and for {who}; each column has one part")
            seen[name] = who


def _kept(runs: pd.DataFrame, keys: list[str], metric: str, notes: list[str]) -> pd.DataFrame:
    """The rows that say which run they are, with the metric as numbers; what is left out is noted."""
    lacking = runs[keys].isna().any(axis=1)
    if lacking.any():
        notes.append(f"{_counted(int(lacking.sum()), 'row')} left out, without a value of {' or '.join(keys)}.")
    kept = runs[~lacking].reset_index(drop=True)
    numbers = pd.to_numeric(kept[metric], errors="coerce")
    wrong = kept[metric][numbers.isna() & kept[metric].notna()]
    if len(wrong):
        raise ValueError(f"{metric}: {wrong.iloc[0]!r} is no number; write accuracies as 0.912, not as 91.2%")
    infinite = np.isinf(numbers.astype(float))
    if infinite.any():
        raise ValueError(f"{metric}: has an infinite value; leave it empty if the run failed, or give the value it had")
    if numbers.isna().all():
        raise ValueError(f"{metric}: no row has a value")
    return kept.assign(**{metric: numbers.astype(float)})


def _named(rows: pd.DataFrame, names: list[str]) -> pd.Series:
    """The values of some columns as one text per row; a number or a truth value is preceded by its column's name."""
    parts = []
    for name in names:
        is_text = rows[name].map(lambda value: isinstance(value, str))
        parts.append(_texts(rows, [name]).where(is_text, f"{name} " + _texts(rows, [name])))
    return pd.Series([", ".join(one) for one in zip(*parts, strict=True)], index=rows.index)


def _texts(rows: pd.DataFrame, names: list[str]) -> pd.Series:
    """The values of some columns as one text per row, a whole number without decimals; empty without columns."""
    parts = [rows[name].map(_text) for name in names]
    return pd.Series([" ".join(one) for one in zip(*parts, strict=True)] if parts else "", index=rows.index)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_twice(kept: pd.DataFrame, keyed: pd.DataFrame, names: list[str]) -> None:
    """Raise ValueError for two rows of one run, with the columns in which they differ."""
    keys = keyed[["method", "pair", "cell"]]
    if not keys.duplicated().any():
        return
    first = keys[keys.duplicated()].iloc[0]
    same = kept[(keys == first).all(axis=1)]
    varied = [str(name) for name in kept if same[name].map(repr).nunique() > 1 and kept[name].map(repr).nunique() <= 50]
    what = ", ".join(f"{name} = {same[name].iloc[0]}" for name in names)
    advice = f" They differ in {', '.join(varied)}: add it to by, pair or average_over." if varied else ""
    raise ValueError(f"{what}: {len(same)} rows, expected one.{advice}")


def _asked(found: list[str], against: str | None, methods: list[str]) -> list[tuple[str, str]]:
    """The pairs of methods to compare."""
    if len(found) < 2:
        raise ValueError(f"{', '.join(methods)}: only {found[0]}; expected two methods or more")
    if against is None:
        return list(combinations(found, 2))
    if against not in found:
        raise ValueError(f"against: no method {against}; the table has {', '.join(found)}")
    return [(one, against) for one in found if one != against]


def _compared(keyed: pd.DataFrame, a: str, b: str, margin: float | None) -> dict[str, Any]:
    """One comparison, paired if any pair has runs of both."""
    sides = [keyed[keyed["method"] == one] for one in (a, b)]
    row: dict[str, Any] = {"name": f"{a} − {b}", "side_a": a, "side_b": b, "left_out": (), "reason": ""}
    cells = sorted({*sides[0]["cell"], *sides[1]["cell"]})
    if set(sides[0]["pair"]) & set(sides[1]["pair"]) - {""}:
        return row | _paired(_by_pair(sides[0], cells), _by_pair(sides[1], cells), margin)
    return row | _unpaired([_values_of(side, cells) for side in sides], margin)


def _values_of(side: pd.DataFrame, cells: list[str]) -> pd.Series:
    """One value per pair, or per run where runs do not pair."""
    return (side["value"] if (side["pair"] == "").all() else _by_pair(side, cells)).dropna()


def _by_pair(side: pd.DataFrame, cells: list[str]) -> pd.Series:
    """The mean of each pair over its cells; NaN where one is missing."""
    return side.pivot(index="pair", columns="cell", values="value").reindex(columns=cells).mean(axis=1, skipna=False)


def _paired(first: pd.Series, second: pd.Series, margin: float | None) -> dict[str, Any]:
    differences = first.sub(second)
    values = differences.dropna()
    row: dict[str, Any] = {"paired": True, "n_a": int(first.notna().sum()), "n_b": int(second.notna().sum())}
    row |= {"left_out": tuple(one for one in differences.index if one not in values.index)}
    row |= {"sampled": "pairs", "sample": _counted(len(values), "pair")}
    if values.empty:
        return row | _nothing("no pair has a run of both")
    return row | vars(difference(values, margin))


def _unpaired(values: list[pd.Series], margin: float | None) -> dict[str, Any]:
    counts = [len(one) for one in values]
    row: dict[str, Any] = {"paired": False, "n_a": counts[0], "n_b": counts[1], "sampled": "runs on each side"}
    row["sample"] = f"{counts[0]} and {counts[1]} runs, unpaired"
    if not all(counts):
        return row | _nothing("one side has no run with a value")
    if min(counts) > 1 and any(one.std() > 0 for one in values):
        row["freedom"] = welch_freedom(float(values[0].std()), float(values[1].std()))
    return row | vars(unpaired_difference(values[0], values[1], margin))


def _nothing(reason: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("mean", "sd", "low", "high", "p", "p_equivalent"), float("nan"))
    return unknown | {"n": 0, "reason": reason}


def _unit_of(values: pd.Series, metric: str) -> Unit:
    """Percentage points for accuracies from 0 to 1; else no unit, with decimals that resolve the values' spread."""
    known = values.dropna()
    if _is_accuracy(metric) and known.between(0, 1).all():
        return PP
    spread = float(known.max() - known.min()) or abs(float(known.iloc[0])) or 1.0
    return Unit("", 1, max(0, 2 - math.floor(math.log10(spread))))


def _is_accuracy(metric: str) -> bool:
    return any(part in metric.lower() for part in ("acc", "top1", "top-1", "top5", "top-5"))


def _summary(keyed: pd.DataFrame, test_images: int | None) -> pd.DataFrame:
    """Mean and interval of each method, over its runs, or over its pairs where runs are averaged."""
    rows = []
    for method, side in keyed.groupby("method", sort=False):
        values = _values_of(side, sorted(set(side["cell"])))
        row: dict[str, Any] = {"method": method, "n": len(values), "failed": int(side["value"].isna().sum())}
        mean, low, high = t_interval(values) if len(values) else (float("nan"),) * 3
        row |= {"mean": mean, "sd": float(values.std()), "low": low, "high": high, "noise_floor": float("nan")}
        if test_images is not None and len(values):
            row["noise_floor"] = noise_floor(mean, test_images)
        rows.append(row)
    return pd.DataFrame(rows)


def _notes(judged: pd.DataFrame, summary: pd.DataFrame, metric: str, test_images: int | None) -> list[str]:
    """What a reader must know beside the sentences."""
    notes = []
    failed = summary[summary["failed"] > 0]
    if len(failed):
        each = ", ".join(f"{row['failed']} of {row['method']}" for _, row in failed.iterrows())
        notes.append(f"Runs without a value of {metric} are left out: {each}. If bad runs fail more, this flatters.")
    if not judged["paired"].all():
        pair = str(judged["pair"].iloc[0])
        why = f"no value of {pair} is on both sides" if pair else "no column to pair by was given"
        text = f"Some comparisons are unpaired: {why}" if judged["paired"].any() else f"Unpaired: {why}"
        notes.append(f"{text}. Welch's t-test. Runs paired by seed usually need fewer.")
    if len(judged) > 1:
        notes.append(f"{len(judged)} comparisons, p-values corrected together by Holm's method; CIs are not corrected.")
    if test_images is not None:
        widest = summary["noise_floor"].max()
        notes.append(
            f"One network's accuracy on {test_images:,} images is known to ±{PP.amount(widest)} (95%), "
            "as a measure of other images of that kind."
        )
    return notes


def _differing(kept: pd.DataFrame, methods: pd.Series, named: tuple[str, ...]) -> list[str]:
    """Further columns with one value throughout each method, and not the same in all."""
    found = []
    for name in kept:
        values = kept[name].map(repr)
        if name not in named and values.nunique() > 1 and values.groupby(methods).nunique().max() == 1:
            found.append(str(name))
    return found


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"

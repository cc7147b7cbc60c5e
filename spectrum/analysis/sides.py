"""The two sides of a comparison in words: what differs between them, and what they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from spectrum.analysis.table import SPLIT, budget_name, has, keys, varied_settings
from spectrum.analysis.words import setting_name, setting_words, side_words, split_words
from spectrum.design.budgets import BUDGETS, COUNTS, count_range, same_counts

LONGEST = 60  # characters of a side's name; a longer one is explained once and then called A or B
UNKNOWN = object()  # the value of a setting that a side does not fix
OF_TIMED_BUDGETS = ("width", "batch_size", "optimizer", "autocast", "compile", "train_images", "dataset", "image_size")
SIDE_COLUMNS = ("side_a", "side_b", "where", "setting_1", "setting_2")


def name_sides(
    results: pd.DataFrame,
    between: Sequence[Mapping[str, Any]],
    across: Sequence[Mapping[str, Any]] | str | None = None,
    changed: Collection[str] = (),
) -> dict[str, str]:
    """Name the sides of a comparison by what differs between them, whatever the comparison itself is called.

    Args:
        results: from `load_results`.
        between: two sides, as for `stats.contrast`.
        across: of an interaction, as there.
        changed: settings in which the sides differ without naming them, such as those that a plan lists.

    Keys: `side_a` and `side_b`, empty where nothing tells them apart; `where`, what they share, such as
    "parameter-matched"; and `setting_1` and `setting_2`, between which an interaction compares. Sides under budgets of
    one kind but of different size, as where each width has its own, are not called matched: each is named by its count.

    >>> from spectrum import load_results
    >>> orders = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    >>> list(name_sides(load_results("results/order"), orders).values())[:3]
    ['pointwise-first', 'spatial-first', 'averaged over 5 numbers of segments, MAC-matched']
    """
    rows = [results[_has(results, side)] for side in between]
    named = {name for side in between for name in side}
    names = _settings_named(results, named, changed)
    split = _both_splits(between, rows)
    split_known = (bool(named & set(SPLIT)) or "segments" in changed) and None not in split
    pairs = [split] * split_known + [_both(name, between, rows) for name in names]
    pairs.append((several := _averages(rows, across, names, split_known), several))
    budget = _both_budgets(results, between, rows, same_split=split[0] == split[1])
    pairs = [pair for pair in (*pairs, budget) if None not in pair and pair != ("", "")]
    first, second = (", ".join(str(pair[side]) for pair in pairs if pair[0] != pair[1]) for side in (0, 1))
    shared = ", ".join(str(one) for one, other in pairs if one == other)
    settings = ["", ""] if across is None or isinstance(across, str) else list(map(side_words, across))
    return dict(zip(SIDE_COLUMNS, [first, second, shared, *settings], strict=True))


Pair = tuple[str | None, str | None]  # what each side is called in one respect; None where it is not one thing


def _both(name: str, between: Sequence[Mapping[str, Any]], rows: Sequence[pd.DataFrame]) -> Pair:
    first, second = (_value(name, side, part) for side, part in zip(between, rows, strict=True))
    return (
        None if first is UNKNOWN else setting_words(name, first),
        None if second is UNKNOWN else setting_words(name, second),
    )


def _both_budgets(
    results: pd.DataFrame, between: Sequence[Mapping[str, Any]], rows: Sequence[pd.DataFrame], *, same_split: bool
) -> Pair:
    """What is matched on each side; counts where a budget has another size on the other side."""
    budget = _both("match", between, [results if part.empty else part for part in rows])
    if budget == (budget_name("none"),) * 2:
        return (None, None) if same_split or not _same_widths(rows) else budget
    if budget[0] == budget[1] and not any(part.empty for part in rows):
        return _matched_or_counts(budget, rows)
    return budget


def _both_splits(between: Sequence[Mapping[str, Any]], rows: Sequence[pd.DataFrame]) -> Pair:
    first, second = (_split(side, part) for side, part in zip(between, rows, strict=True))
    return first, second


def _settings_named(results: pd.DataFrame, named: Collection[str], changed: Collection[str]) -> list[str]:
    """The settings beside split and budget that the sides name or that a plan says they change."""
    varied = varied_settings(results) if len(results) else []
    names = [name for name in dict.fromkeys([*varied, *sorted(named)]) if name in named or name in changed]
    return [name for name in names if name not in (*SPLIT, "match")]


def _split(side: Mapping[str, Any], rows: pd.DataFrame) -> str | None:
    """The split that a side has throughout; None where it has several."""
    values = {name: _value(name, side, rows) for name in SPLIT}
    counts = [name for name in SPLIT if name != "pointwise"]
    named = [name for name in counts if side.get(name) is not None]
    if named:  # one of them says it all
        values |= {name: None for name in counts if name not in named}
    if any(values[name] is UNKNOWN for name in counts):
        return None
    return split_words({name: value for name, value in values.items() if value is not UNKNOWN})


def _value(name: str, side: Mapping[str, Any], rows: pd.DataFrame) -> Any:
    """The value of a setting that a side names, or that all its rows have."""
    if name in side:
        return side[name]
    if name not in rows or rows.empty or rows[name].map(repr).nunique() > 1:
        return UNKNOWN
    return rows[name].iloc[0]


def _names_of(across: Sequence[Mapping[str, Any]] | str | None) -> list[str]:
    return [] if across is None or isinstance(across, str) else [name for at in across for name in at]


def _averages(
    sides: Sequence[pd.DataFrame],
    across: Sequence[Mapping[str, Any]] | str | None,
    names: Sequence[str],
    split_known: bool,
) -> str:
    """Over what a difference is a mean: what has several values on its first side."""
    rows = sides[0] if across is None or isinstance(across, str) else sides[0][_has(sides[0], across[0])]
    if rows.empty:
        return ""
    settings = _names_of(across)
    split_known |= across == "segments" or bool(set(settings) & set(SPLIT))
    counts = {} if split_known else {"numbers of segments": keys(rows, SPLIT).nunique()}
    for name in varied_settings(rows):
        if name not in (*names, *settings):
            what = "budgets" if name == "match" else f"values of {setting_name(name)}"
            counts[what] = rows[name].map(repr).nunique()
    means = [f"{count} {what}" for what, count in counts.items() if count > 1]
    return f"averaged over {' and '.join(means)}" if means else ""


def _matched_or_counts(budget: Pair, rows: Sequence[pd.DataFrame]) -> Pair:
    """The budget that both sides have; their counts, or that the times differ, where it is not as large for both."""
    matches = set(rows[0]["match"]) if "match" in rows[0] else set()
    if len(matches) != 1:
        return budget
    (match,) = matches
    if match in BUDGETS and BUDGETS[match].is_timed:
        same = all(_values_of(name, rows[0]) == _values_of(name, rows[1]) for name in OF_TIMED_BUDGETS)
        return budget if same else ("under different time budgets",) * 2
    if match not in COUNTS or match not in rows[0]:
        return budget
    first, second = ([int(count) for count in part[match].dropna()] for part in rows)
    if not first or not second or same_counts(first, second):
        return budget
    return f"{count_range(first)} {COUNTS[match]}", f"{count_range(second)} {COUNTS[match]}"


def _values_of(name: str, rows: pd.DataFrame) -> set[str]:
    return set(rows[name].map(repr)) if name in rows else set()


def _same_widths(rows: Sequence[pd.DataFrame]) -> bool:
    widths = [_values_of("width", part) for part in rows]
    return widths[0] == widths[1] != set()


def _has(results: pd.DataFrame, side: Mapping[str, Any]) -> pd.Series:
    known = {name: value for name, value in side.items() if name in results}
    return has(results, known) if len(known) == len(side) else pd.Series(False, index=results.index)

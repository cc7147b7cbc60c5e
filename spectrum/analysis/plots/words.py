"""The words of pictures: what data sets, settings, seeds and budgets are called, and what a caller wants instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from spectrum.analysis.table import SPLIT, budget_name, studies_of, worst_mismatch

PLAIN = "plain 3×3"  # as tables call it
DATA_NAMES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "gaussian": "Gaussian images"}
ORDERS = {"pointwise_first": "pointwise-first", "spatial_first": "spatial-first"}
TEACHERS = {"per_channel": "per-channel"}
NAMES = {  # of settings, where their columns' names are not what a reader would say
    "teacher_segments": "teacher segments",
    "lr": "learning rate",
    "match": "budget",
}


@dataclass(frozen=True)
class Wishes:
    """What a caller wants of a picture, beside what it shows."""

    title: str | None = None
    caption: bool = True
    colors: Mapping[str, Any] | Sequence[Any] | None = None
    labels: Mapping[str, str] | None = None

    def called(self, label: str) -> str:
        """The caller's word for a label."""
        return (self.labels or {}).get(label, label)

    def color(self, number: int, label: str) -> Any:
        """The caller's colour for a curve, by its label or its number; None where there is none."""
        if self.colors is None or isinstance(self.colors, Mapping):
            return (self.colors or {}).get(label)
        return self.colors[number % len(self.colors)] if len(self.colors) else None


def data_name(dataset: str) -> str:
    return DATA_NAMES.get(dataset, dataset)


def data_label(table: pd.DataFrame) -> str:
    return ", ".join(map(data_name, dict.fromkeys(table["dataset"])))


def seeds_label(table: pd.DataFrame, names: Sequence[str]) -> str:
    """How many seeds the configurations of a picture have; of rows without failed runs."""
    seeds = table.groupby([*SPLIT, *names], sort=False, dropna=False)["seed"].nunique()
    return f"n = {span(seeds.min(), seeds.max())} {'seed' if seeds.max() == 1 else 'seeds'}"


def budgets_of(table: pd.DataFrame) -> str:
    """The budgets of a table, in words."""
    return ", ".join(map(budget_name, dict.fromkeys(table["match"])))


def tolerances_of(table: pd.DataFrame) -> str:
    """How near to its budget each configuration is, at least, by budget; empty where nothing is matched."""
    parts = {match: worst_mismatch(table[table["match"] == match]) for match in dict.fromkeys(table["match"])}
    known = [f"{budget_name(match)} within {worst:.2%}" for match, worst in parts.items() if worst == worst]
    return ", ".join(known)


def whence(table: pd.DataFrame) -> str:
    """The studies that a table has rows of."""
    studies = studies_of(table)
    return f"{'studies' if ',' in studies else 'study'} {studies}" if studies else ""


def diverged_label(table: pd.DataFrame) -> str:
    diverged = int(table["status"].eq("diverged").sum())
    return f"{diverged} {'run' if diverged == 1 else 'runs'} diverged, drawn at chance" if diverged else ""


def span(few: int, many: int) -> str:
    return f"{few}" if few == many else f"{few}–{many}"


def setting_label(names: Sequence[str], values: Sequence[Any]) -> str:
    """What a curve is called: the values of the settings that vary, if set; a budget in the words of tables."""
    pairs = list(zip(names, values, strict=True))
    have = [(name, value) for name, value in pairs if value is not None and value == value]
    return ", ".join(value_label(name, value) for name, value in have or pairs)


def setting_name(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def value_label(name: str, value: Any) -> str:
    """A setting and its value in words."""
    if name in CALLED:
        return CALLED[name](value)
    if isinstance(value, bool | np.bool_):
        return setting_name(name) if value else f"no {setting_name(name)}"
    return f"{setting_name(name)} {_value_text(name, value)}".replace("_", " ")


def _value_text(name: str, value: Any) -> str:
    if isinstance(value, tuple | list):
        return (":" if name == "segment_shares" else ", ").join(map(str, value))
    if value is None or value != value:
        return "not set"
    if isinstance(value, float) and value == int(value) and abs(value) >= 1:
        return str(int(value))
    return "per-channel" if value == "per_channel" else str(value)


CALLED: dict[str, Callable[[Any], str]] = {  # settings whose values say by themselves what they are
    "match": budget_name,
    "order": lambda value: ORDERS.get(value, str(value)),
    "dataset": data_name,
    "teacher_segments": lambda value: f"{TEACHERS.get(value, f'{value}-segment')} teacher",
}

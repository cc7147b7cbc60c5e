"""Text of pictures: titles, captions and labels, and what a caller wants instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from spectrum._registry import nearest
from spectrum.analysis.table import SPLIT, budget_name, studies_of, worst_mismatch
from spectrum.analysis.words import data_name


@dataclass(frozen=True)
class Wishes:
    """What a caller wants of a picture, beside what it shows."""

    title: str | None = None
    caption: bool = True
    colors: Mapping[str, Any] | Sequence[Any] | None = None
    labels: Mapping[str, str] | None = None

    labelled: dict[str, None] = field(default_factory=dict)
    """Labels of the picture so far; panels share them."""
    coloured: dict[str, None] = field(default_factory=dict)
    """Labels of what has a colour of its own."""

    def called(self, label: str) -> str:
        """The caller's word for a label, which lines may break."""
        plain = label.replace("-\n", "-").replace("\n", " ")
        self.labelled[plain] = None
        labels = self.labels or {}
        return labels.get(label, labels.get(plain, label))

    def color(self, number: int, label: str) -> Any:
        """The caller's colour for a curve, by its label or its number; None where there is none."""
        self.coloured[label] = None
        if self.colors is None or isinstance(self.colors, Mapping):
            return (self.colors or {}).get(label)
        return self.colors[number % len(self.colors)] if len(self.colors) else None

    def check(self) -> None:
        """Raise ValueError for words or colours of what the picture does not have; called once all is drawn."""
        for name, known in (("labels", self.labelled), ("colors", self.coloured)):
            given = getattr(self, name)
            for label in given if isinstance(given, Mapping) else ():
                if str(label).replace("-\n", "-").replace("\n", " ") not in known:
                    near = nearest(str(label), known)
                    hint = (
                        f'did you mean "{near}"?'
                        if near
                        else f"it has {', '.join(map(_quoted, filter(None, known))) or 'none'}"
                    )
                    raise ValueError(f'{name}: the picture has no "{label}"; {hint}')


def _quoted(label: str) -> str:
    return f'"{label}"'


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

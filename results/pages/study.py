"""A study for its page: plan, rows and statistics."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pages.comparisons import Comparisons
from pages.costs import Costs
from pages.method import Method
from pages.repeats import Repeats
from pages.width import Widths
from spectrum import load_results, load_study, load_tuning
from spectrum.analysis.table import has
from spectrum.design.plan import Plan
from spectrum.study.store import StoreError, read_plan

RESULTS = Path(__file__).parents[1]
EXPERIMENTS = RESULTS.parent / "experiments"


class StudyPage:
    """One study, for the templates of its pages.

    Attributes:
        name: name of its folder.
        study: the study file.
        results: its rows.
        method: how networks were trained and scored.
        compare: which configurations are better, and by how much.
        costs: what networks cost.
        widths: how much of accuracy the width explains.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.study = load_study(EXPERIMENTS / f"{name}.toml")
        self.results = load_results(RESULTS / name)
        self.method = Method(self.study, self.plan, self.results)
        self.compare = Comparisons(self.results, self.plan.contrasts)
        self.costs = Costs(self.results)
        self.widths = Widths(self.results)

    @cached_property
    def plan(self) -> Plan:
        return read_plan(RESULTS / self.name)

    @cached_property
    def search(self) -> pd.DataFrame:
        """Rows of the learning-rate sweep."""
        return load_tuning(RESULTS / self.name)

    @cached_property
    def repeats(self) -> Repeats:
        """The same networks trained again, here and in the curves."""
        return Repeats(self, [study_page(name) for name in CURVES if name != self.name])

    @property
    def missing(self) -> int:
        """Number of planned runs without an accuracy."""
        return len(self.plan.runs) - int(self.results["test_accuracy"].notna().sum())

    def rows(self, **side: Any) -> pd.DataFrame:
        """Rows with these values."""
        return self.results[has(self.results, side)]


CURVES = ("curve", "curve_cifar10")  # studies whose networks other studies train again


@cache
def study_page(name: str) -> StudyPage:
    """A study, loaded once for all pages."""
    return StudyPage(name)


def complete(name: str) -> bool:
    """Whether all runs of a study have an accuracy."""
    return has_rows(RESULTS / name) and not study_page(name).missing


def has_rows(folder: Path) -> bool:
    """Whether any final run was trained."""
    try:
        return len(load_results(folder)) > 0
    except StoreError:
        return False

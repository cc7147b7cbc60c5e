"""What the pages may ask of a study: its rows, what its contrasts show, and comparisons that were not written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from spectrum import load_results, load_study, load_tuning, stats
from spectrum.analysis.export import markdown_rows, points_table
from spectrum.analysis.inference import Difference
from spectrum.analysis.page import choice_name
from spectrum.analysis.sentences import points, sentence
from spectrum.analysis.table import budget_name, has
from spectrum.design.plan import Plan
from spectrum.study.store import StoreError, read_plan

RESULTS = Path(__file__).parent
EXPERIMENTS = RESULTS.parent / "experiments"
ORDERS = ("pointwise_first", "spatial_first")
CURVES = ("curve", "curve_cifar10")  # which the other studies have networks of


class Shown:
    """What a template may ask of one study."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.study = load_study(EXPERIMENTS / f"{name}.toml")
        self.results = load_results(RESULTS / name)

    @cached_property
    def plan(self) -> Plan:
        return read_plan(RESULTS / self.name)

    @cached_property
    def judged(self) -> pd.DataFrame:
        return stats.contrasts(self.results, self.plan.contrasts).set_index("name", drop=False)

    @cached_property
    def search(self) -> pd.DataFrame:
        return load_tuning(RESULTS / self.name)

    @property
    def budgets(self) -> dict[str, str]:
        """The study's budgets, and what they are called."""
        return {match: budget_name(match) for match in self.study.budget.match}

    @property
    def images(self) -> str:
        """How many training images a run saw."""
        return f"{self.only('train_images'):,}"

    def only(self, name: str) -> Any:
        """The one value that a field has in all rows. Raises ValueError where it has several."""
        (value,) = set(self.results[name])
        return value

    @property
    def training(self) -> str:
        """How long a run trained, and by which optimiser."""
        words = {"sgd": "SGD", "adamw": "AdamW", "rmsprop": "RMSprop"}
        return f"{self.only('epochs')} epochs of {words[self.only('optimizer')]}"

    @property
    def test_images(self) -> str:
        """How many test images an accuracy is of."""
        return f"{int(self.only('test_images')):,}"

    @property
    def floor(self) -> float:
        """Half width of the binomial interval of a single accuracy."""
        return stats.noise_floor(self.results["test_accuracy"].mean(), int(self.results["test_images"].iloc[0]))

    @property
    def rates(self) -> list[str]:
        """Learning rates of the search."""
        return [f"{rate:g}" for rate in sorted(set(self.search["lr"]))]

    @property
    def edges(self) -> list[str]:
        """Networks for which the search chose a value on the edge of its grid."""
        choices = self.plan.tuning.choices if self.plan.tuning is not None else ()
        return [f"{choice_name(self.plan, one)} ({', '.join(one.edges)})" for one in choices if one.edges]

    @property
    def processors(self) -> list[str]:
        """Instruction sets of the processors that trained the rows."""
        return list(dict.fromkeys(said["processor"] for said in self.results["provenance"]))

    def worst_mismatch(self, *matches: str) -> float:
        """The largest distance of a point from its budget, as a part of it, under some budgets."""
        return float(self.results[self.results["match"].isin(matches)]["budget_mismatch"].abs().max())

    @property
    def seeds_said(self) -> str:
        """How many paired seeds the points have."""
        names = [*stats.SPLIT, *stats.varied_settings(self.results)]
        sizes = self.results.groupby(names, dropna=False, sort=False).size()
        few, many = sizes.min(), sizes.max()
        return f"{few} paired seeds" if few == many else f"{few} to {many} paired seeds"

    @property
    def missing(self) -> int:
        """Runs that the plan has and the rows have not, or not with an accuracy."""
        return len(self.plan.runs) - int(self.results["test_accuracy"].notna().sum())

    def rows(self, **side: Any) -> pd.DataFrame:
        """Rows that have these values."""
        return self.results[has(self.results, side)]

    def realised(self, **side: Any) -> list[int]:
        """Segments that each stage of a network really has."""
        return list(dict.fromkeys(self.rows(**side)["realised_segments"].iloc[0]))

    def table(self, **side: Any) -> str:
        """The summary of the rows that have these values."""
        return markdown_rows(points_table(self.rows(**side)))

    def say(self, name: str) -> str:
        """What a contrast shows, as a sentence."""
        return sentence(self.contrast(name))

    def contrast(self, name: str) -> pd.Series:
        """A contrast's row."""
        rows = self.judged[self.judged["name"] == name]
        return rows.iloc[0]

    def best(self, **side: Any) -> dict[str, Any]:
        """Of one curve: the point with the highest mean, and the labels of those that may be the best."""
        found = stats.optimum(self.rows(**side))
        first = found[found["best"]].iloc[0]
        return {
            "label": first["label"],
            "mean": first["mean"],
            "set": list(found.loc[found["in_set"], "label"]),
        }

    def difference(
        self, first: Mapping[str, Any], second: Mapping[str, Any], among: Sequence[Any] | None = None
    ) -> Difference:
        """A comparison that the study did not ask for beforehand, exploratory; among some segments alone."""
        return stats.contrast(self.among(among), [first, second])

    def among(self, segments: Sequence[Any] | None) -> pd.DataFrame:
        """The rows of these numbers of segments."""
        return self.results if segments is None else self.results[self.results["segments"].isin(segments)]

    def ratio(self, cost: str, **side: Any) -> float:
        """How many times the cost of the cheapest point the dearest has."""
        costs = self.rows(**side)[cost]
        return float(costs.max() / costs.min())

    def ends(self, match: str) -> Difference:
        """1 segment less one a channel, both with their 1×1, under one budget."""
        return self.difference_at(1, "per_channel", match)

    def gain(self, segments: int, match: str) -> Difference:
        """What so many segments give over 1 segment under a budget; exploratory."""
        return self.difference_at(segments, 1, match)

    def gain_said(self, segments: int, match: str) -> str:
        """The same in points with its interval."""
        return said(self.gain(segments, match))

    def difference_at(self, first: Any, second: Any, match: str) -> Difference:
        """One place less another under a budget; "bare" is the regular convolution without a 1×1. Exploratory."""
        return self.difference(_side(first, match), _side(second, match))

    def difference_at_said(self, first: Any, second: Any, match: str) -> str:
        """The same in points with its interval."""
        return said(self.difference_at(first, second, match))

    def high_of(self, first: Any, second: Any, matches: Sequence[str]) -> float:
        """The highest end of the intervals of a difference under several budgets."""
        return max(self.difference_at(first, second, match).high for match in matches)

    def low_of(self, first: Any, others: Sequence[Any], match: str) -> float:
        """The lowest end of the intervals of the differences from several places."""
        return min(self.difference_at(first, other, match).low for other in others)

    @property
    def seeds(self) -> int:
        """How many each point has."""
        return int(self.results["seed"].nunique())

    def slope(self, **side: Any) -> pd.Series:
        """Of one curve: points a doubling of the segments."""
        return stats.trend(self.rows(**side)).iloc[0]

    def times(self, cost: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
        """How many times the cost of the second network the first has."""
        return float(self.rows(**first)[cost].iloc[0] / self.rows(**second)[cost].iloc[0])

    def bare_times(self, cost: str, match: str) -> float:
        """How many times the cost of one segment a channel the regular convolution has."""
        bare = self.rows(pointwise=False, match=match)[cost].iloc[0]
        return float(bare / self.rows(segments="per_channel", match=match)[cost].iloc[0])

    def slope_said(self, between: Sequence[Mapping[str, Any]], among: Sequence[Any]) -> str:
        """By how much a difference grows a doubling of the segments, among some of them, with its interval."""
        return self.interaction_said(between, "segments", among)

    def interaction_said(self, between: Sequence[Any], across: Any, among: Sequence[Any] | None = None) -> str:
        """By how much a difference changes across two settings, or a doubling of the segments; exploratory."""
        asked = [{"name": "interaction", "between": between, "across": across}]
        (row,) = stats.contrasts(self.among(among), asked).to_dict("records")
        return f"{points(row['mean'], sign=True)} ({interval(row['low'], row['high'])})"

    def bare(self, match: str) -> Difference:
        """A regular convolution, without a 1×1, less one segment a channel under one budget."""
        return self.difference_at("bare", "per_channel", match)

    def bare_said(self, match: str) -> str:
        """The same in points with its interval."""
        return said(self.bare(match))

    def more_params(self, segments: Any) -> float:
        """By how many per cent the network with the 1×1 first has more parameters."""
        first, second = (self.rows(segments=segments, order=order)["params"].iloc[0] for order in ORDERS)
        return float(100 * (first / second - 1))

    def at_rates(self, segments: Any) -> tuple[float, float, float]:
        """Validation accuracy in the search: with residuals, without at the same rate, without at the best one."""
        found = self.search[self.search["segments"].eq(segments)]
        means = found.groupby(["residual", "lr"])["val_accuracy"].mean()
        rate = means[True].idxmax()
        return float(means[True, rate]), float(means[False, rate]), float(means[False].max())

    @property
    def rechosen(self) -> list[float]:
        """How far means are apart of networks that a curve has too, under another rate, over the seeds of both."""
        return [apart for apart, same in self.again if not same]

    @property
    def repeated(self) -> list[float]:
        """The same of networks that a curve has under the same rate, trained by another version of the code."""
        return [apart for apart, same in self.again if same]

    @cached_property
    def again(self) -> list[tuple[float, bool]]:
        """Of networks that a curve has too: how far means of the shared seeds are apart, and whether rates agree."""
        found = []
        for curve in (shown(name) for name in CURVES if name != self.name):
            there = curve.results.assign(network=curve.results["id"].map(curve.networks))
            own = self.results.assign(network=self.results["id"].map(self.networks))
            once = [table.drop_duplicates(["network", "seed"]) for table in (own, there)]
            for _, both in once[0].merge(once[1], on=["network", "seed"], suffixes=("", "_there")).groupby("network"):
                apart = abs(float((both["test_accuracy"] - both["test_accuracy_there"]).mean()))
                if (both["weights_sha256"] != both["weights_sha256_there"]).all():
                    found.append((apart, bool((both["lr"] == both["lr_there"]).all())))
        return found

    @cached_property
    def runner_up(self) -> list[float]:
        """By how much each network's second-best value of the search is behind its best, in validation accuracy."""
        grid = list(self.study.tune.grid()) if self.study.tune else []
        names = [*stats.SPLIT, *(name for name in stats.varied_settings(self.search) if name not in grid)]
        means = self.search.groupby([*names, *grid], sort=False, dropna=False)["val_accuracy"].mean()
        behind = []
        for _, values in means.groupby(level=names, sort=False, dropna=False):
            best = values.sort_values(ascending=False)
            behind.append(float(best.iloc[0] - best.iloc[1]))
        return behind

    @cached_property
    def networks(self) -> dict[str, str]:
        """What each point trains and on what, but for its seed and what the search chose."""
        chosen = self.study.tune.grid() if self.study.tune else {}
        return {
            run.id: str(sorted((k, str(v)) for k, v in run.options.items() if k not in {"seed", *chosen}))
            for run in self.plan.runs
        }

    def difference_said(
        self, first: Mapping[str, Any], second: Mapping[str, Any], among: Sequence[Any] | None = None
    ) -> str:
        """A comparison that the study did not ask for beforehand, in points with its interval."""
        return said(self.difference(first, second, among))

    def contrast_said(self, name: str) -> str:
        """A contrast in points with its interval."""
        row = self.contrast(name)
        return f"{points(row['mean'], sign=True)} ({interval(row['low'], row['high'])})"

    def reversed_said(self, name: str) -> str:
        """The same with its sides exchanged."""
        row = self.contrast(name)
        return f"{points(-row['mean'], sign=True)} ({interval(-row['high'], -row['low'])})"

    def crossing(self, between: Sequence[Mapping[str, Any]]) -> stats.Crossing:
        """Where the difference of two sides crosses zero."""
        return stats.crossing(self.results, between)


def _side(place: Any, match: str) -> dict[str, Any]:
    """A place on the spectrum under a budget, as the values that its rows have."""
    if place == "bare":
        return {"match": match, "pointwise": False}
    return {"match": match, "pointwise": True, "segments": place}


def complete(name: str) -> bool:
    """Whether a study has all its rows, each with an accuracy."""
    return has_rows(RESULTS / name) and not shown(name).missing


@cache
def shown(name: str) -> Shown:
    """A study, loaded once for all pages."""
    return Shown(name)


def has_rows(folder: Path) -> bool:
    """Whether any point was trained, beyond the search."""
    try:
        return len(load_results(folder)) > 0
    except StoreError:
        return False


def said(found: Difference) -> str:
    """A difference in points with its interval."""
    return f"{points(found.mean, sign=True)} ({interval(found.low, found.high)})"


def interval(low: float, high: float) -> str:
    """The ends of an interval in points."""
    return f"{points(low)} to {points(high)}"

"""The same networks trained again: at other learning rates, and in another study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spectrum import stats

if TYPE_CHECKING:
    from pages.study import StudyPage


class Repeats:
    """Compares one study's networks with the same networks in the curves."""

    def __init__(self, page: StudyPage, curves: Sequence[StudyPage]) -> None:
        self.page, self.curves = page, curves

    @property
    def rates(self) -> list[str]:
        """Learning rates that the sweep tried."""
        return [f"{rate:g}" for rate in sorted(set(self.page.search["lr"]))]

    @cached_property
    def runner_up(self) -> list[float]:
        """How far each network's second-best learning rate is behind its best, in validation accuracy of the sweep."""
        grid, search = list(self._tuned), self.page.search
        names = [*stats.SPLIT, *(name for name in stats.varied_settings(search) if name not in grid)]
        means = search.groupby([*names, *grid], sort=False, dropna=False)["val_accuracy"].mean()
        behind = []
        for _, values in means.groupby(level=names, sort=False, dropna=False):
            best = values.sort_values(ascending=False)
            behind.append(float(best.iloc[0] - best.iloc[1]))
        return behind

    def at_rates(self, segments: Any) -> tuple[float, float, float]:
        """Validation accuracy in the sweep: with residuals, without at the same rate, without at its own best rate."""
        found = self.page.search[self.page.search["segments"].eq(segments)]
        means = found.groupby(["residual", "lr"])["val_accuracy"].mean()
        rate = means[True].idxmax()
        return float(means[True, rate]), float(means[False, rate]), float(means[False].max())

    @property
    def at_another_rate(self) -> list[float]:
        """Distances of means of networks that a curve also trained, at another learning rate, over shared seeds."""
        return [apart for apart, same in self._again if not same]

    @property
    def at_the_same_rate(self) -> list[float]:
        """Such distances at the same learning rate, trained by another version of the code."""
        return [apart for apart, same in self._again if same]

    @cached_property
    def _again(self) -> list[tuple[float, bool]]:
        """Of networks that a curve also trained: distance of the means over shared seeds, and whether rates agree."""
        found = []
        own = self.page.results.assign(network=self.page.results["id"].map(self.networks))
        for curve in self.curves:
            there = curve.results.assign(network=curve.results["id"].map(curve.repeats.networks))
            once = [table.drop_duplicates(["network", "seed"]) for table in (own, there)]
            for _, both in once[0].merge(once[1], on=["network", "seed"], suffixes=("", "_there")).groupby("network"):
                apart = abs(float((both["test_accuracy"] - both["test_accuracy_there"]).mean()))
                if (both["weights_sha256"] != both["weights_sha256_there"]).all():
                    found.append((apart, bool((both["lr"] == both["lr_there"]).all())))
        return found

    @cached_property
    def networks(self) -> dict[str, str]:
        """Options of each run as text, without its seed and what the sweep chose."""
        return {
            run.id: str(sorted((k, str(v)) for k, v in run.options.items() if k not in {"seed", *self._tuned}))
            for run in self.page.plan.runs
        }

    @property
    def _tuned(self) -> dict[str, Any]:
        return dict(self.page.study.tune.grid()) if self.page.study.tune else {}

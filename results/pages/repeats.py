"""The same networks trained otherwise: at other learning rates, and by another study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spectrum import stats

if TYPE_CHECKING:
    from pages.study import StudyPage


class Repeats:
    """Of one study's networks, beside those of the curves."""

    def __init__(self, page: StudyPage, curves: Sequence[StudyPage]) -> None:
        self.page, self.curves = page, curves

    @property
    def rates(self) -> list[str]:
        """Learning rates of the search."""
        return [f"{rate:g}" for rate in sorted(set(self.page.search["lr"]))]

    @cached_property
    def runner_up(self) -> list[float]:
        """By how much each network's second-best value of the search is behind its best, in validation accuracy."""
        grid, search = list(self._tuned), self.page.search
        names = [*stats.SPLIT, *(name for name in stats.varied_settings(search) if name not in grid)]
        means = search.groupby([*names, *grid], sort=False, dropna=False)["val_accuracy"].mean()
        behind = []
        for _, values in means.groupby(level=names, sort=False, dropna=False):
            best = values.sort_values(ascending=False)
            behind.append(float(best.iloc[0] - best.iloc[1]))
        return behind

    def at_rates(self, segments: Any) -> tuple[float, float, float]:
        """Validation accuracy in the search: with residuals, without at the same rate, without at the best one."""
        found = self.page.search[self.page.search["segments"].eq(segments)]
        means = found.groupby(["residual", "lr"])["val_accuracy"].mean()
        rate = means[True].idxmax()
        return float(means[True, rate]), float(means[False, rate]), float(means[False].max())

    @property
    def at_another_rate(self) -> list[float]:
        """How far means are apart of networks that a curve has too, under another rate, over the seeds of both."""
        return [apart for apart, same in self._again if not same]

    @property
    def at_the_same_rate(self) -> list[float]:
        """The same of networks that a curve has under the same rate, trained by another version of the code."""
        return [apart for apart, same in self._again if same]

    @cached_property
    def _again(self) -> list[tuple[float, bool]]:
        """Of networks that a curve has too: how far means of the shared seeds are apart, and whether rates agree."""
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
        """What each point trains and on what, but for its seed and what the search chose."""
        return {
            run.id: str(sorted((k, str(v)) for k, v in run.options.items() if k not in {"seed", *self._tuned}))
            for run in self.page.plan.runs
        }

    @property
    def _tuned(self) -> dict[str, Any]:
        return dict(self.page.study.tune.grid()) if self.page.study.tune else {}

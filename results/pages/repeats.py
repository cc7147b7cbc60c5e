"""Networks that were trained twice: at other learning rates, or in another study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spectrum import stats

if TYPE_CHECKING:
    from pages.study import StudyPage


class Repeats:
    """Compare one study's networks with the same networks in the curves."""

    def __init__(self, page: StudyPage, curves: Sequence[StudyPage]) -> None:
        self.page, self.curves = page, curves

    @property
    def rates(self) -> list[str]:
        """Learning rates that the sweep tried."""
        return [f"{rate:g}" for rate in sorted(set(self.page.search["lr"]))]

    @cached_property
    def runner_up(self) -> list[float]:
        """Validation accuracy of each network's best learning rate minus that of its second best, in the sweep."""
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
        """Differences between means of networks that a curve trained at another learning rate, over shared seeds."""
        return [apart for apart, same in self._again if not same]

    @property
    def at_the_same_rate(self) -> list[float]:
        """Such differences at the same learning rate, trained by another version of the code."""
        return [apart for apart, same in self._again if same]

    @cached_property
    def _again(self) -> list[tuple[float, bool]]:
        """For each network that a curve trained too: difference of means over shared seeds, and whether rates agree."""
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
        """Options of each run as text, without its seed and the values that the sweep chose."""
        return {
            run.id: str(sorted((k, str(v)) for k, v in run.options.items() if k not in {"seed", *self._tuned}))
            for run in self.page.plan.runs
        }

    @property
    def _tuned(self) -> dict[str, Any]:
        return dict(self.page.study.tune.grid()) if self.page.study.tune else {}

"""Method of a study: training and scoring of its networks."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pages.words import BUDGETS
from spectrum import stats
from spectrum.analysis.described import choice_name
from spectrum.design.plan import Plan
from spectrum.design.study_file import Study

OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW", "rmsprop": "RMSprop"}


class Method:
    """Method of one study: its budgets, images, training, seeds and learning-rate sweep."""

    def __init__(self, study: Study, plan: Plan, results: pd.DataFrame) -> None:
        self.study, self.plan, self.results = study, plan, results

    @property
    def budgets(self) -> dict[str, str]:
        """Budgets of the study, with their names for readers."""
        return {match: BUDGETS[match] for match in self.study.budget.match}

    @property
    def images(self) -> str:
        """Number of training images of a run."""
        return f"{self.only('train_images'):,}"

    @property
    def test_images(self) -> str:
        """Number of test images."""
        return f"{int(self.only('test_images')):,}"

    @property
    def training(self) -> str:
        """Epochs and optimiser of a run."""
        return f"{self.only('epochs')} epochs of {OPTIMISERS[self.only('optimizer')]}"

    @property
    def steps(self) -> int:
        """How many training steps a run took."""
        run = self.results.iloc[0]
        return round(float(run["train_seconds"] * run["images_per_second"] / run["batch_size"]))

    @property
    def parameters(self) -> str:
        """Fewest and most parameters of a network, to the nearest thousand; one number where they agree within 1%."""
        few, many = self.results["params"].min(), self.results["params"].max()
        if many <= 1.01 * few:
            return f"{round(few, -3):,}"
        return f"{round(few, -3):,} to {round(many, -3):,}"

    @property
    def floor(self) -> float:
        """Half width of the binomial 95% CI of a single accuracy."""
        return stats.noise_floor(self.results["test_accuracy"].mean(), int(self.results["test_images"].iloc[0]))

    @property
    def processors(self) -> list[str]:
        """Instruction sets of the processors that trained the rows."""
        return list(dict.fromkeys(of["processor"] for of in self.results["provenance"]))

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return int(self.results["seed"].nunique())

    @property
    def paired_seeds(self) -> str:
        """Number of paired seeds in words; a range if some configurations have fewer."""
        names = [*stats.SPLIT, *stats.varied_settings(self.results)]
        sizes = self.results.groupby(names, dropna=False, sort=False).size()
        few, many = sizes.min(), sizes.max()
        return f"{few} paired seeds" if few == many else f"{few} to {many} paired seeds"

    @property
    def edges(self) -> list[str]:
        """Configurations whose chosen learning rate is at an edge of the sweep's grid."""
        choices = self.plan.tuning.choices if self.plan.tuning is not None else ()
        names = [choice_name(self.plan, one) for one in choices if one.edges]
        return [name.replace("width ×2", "larger student") for name in names]  # widths differ in one study only

    def only(self, name: str) -> Any:
        """The one value of a field in all rows. Raises ValueError if there are several."""
        (value,) = set(self.results[name])
        return value

"""Share of accuracy that the width of a network explains, and the rest that is left for the segments."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from spectrum.analysis.table import spectrum_position, split_labels
from spectrum.models import NetworkOptions, stage_widths


def channels_of_stages(model: str, width: float, widths: Any) -> tuple[int, ...]:
    """Channels of each stage of a run's network: its `widths` if given, else those of its factor `width`."""
    is_missing = widths is None or widths is pd.NA or isinstance(widths, float)
    return stage_widths(model, NetworkOptions(width=width) if is_missing else NetworkOptions(widths=tuple(widths)))


class Widths:
    """Compare each configuration's mean accuracy with its width, in one study. All of it is exploratory.

    The width of a network is the geometric mean of the channels of its stages. A configuration that several budgets
    share counts once.
    """

    def __init__(self, results: pd.DataFrame) -> None:
        self.results = results

    @cached_property
    def configurations(self) -> pd.DataFrame:
        """One row per configuration: label, width, segments (of the widest layer), plain (without a 1×1), accuracy."""
        rows = self.results
        networks = zip(rows["model"], rows["width"], rows["widths"], strict=True)
        channels = [np.array(channels_of_stages(*network), float) for network in networks]
        facts = pd.DataFrame(
            {
                "label": split_labels(rows),
                "width": [round(float(np.exp(np.log(each).mean())), 6) for each in channels],
                "segments": spectrum_position(rows),
                "plain": ~rows["pointwise"].astype(bool),
                "accuracy": rows["test_accuracy"],
            }
        )
        return facts.groupby(["label", "width", "segments", "plain"], sort=False)["accuracy"].mean().reset_index()

    @property
    def with_1x1(self) -> pd.DataFrame:
        """Configurations with a 1×1, without the plain 3×3."""
        return self.configurations[~self.configurations["plain"]]

    def explained(self, by: str) -> float:
        """R² of a line of mean accuracy on the logarithm of "width" or "segments", over configurations with a 1×1."""
        return self._correlation(np.log(self.with_1x1[by]), self.with_1x1["accuracy"]) ** 2

    def correlation(self, match: str) -> float:
        """Pearson correlation of log width and log segments, over configurations with a 1×1 under one budget."""
        matched = Widths(self.results[self.results["match"] == match]).with_1x1
        return self._correlation(np.log(matched["width"]), np.log(matched["segments"]))

    @property
    def line(self) -> tuple[float, float]:
        """Least-squares line of configurations with a 1×1: accuracy per doubling of the width, and at width 1."""
        slope, start = np.polyfit(np.log2(self.with_1x1["width"]), self.with_1x1["accuracy"], 1)
        return float(slope), float(start)

    @property
    def above_line(self) -> list[float]:
        """Distance in accuracy of each plain 3×3 above that line."""
        slope, start = self.line
        plain = self.configurations[self.configurations["plain"]]
        return [float(one) for one in plain["accuracy"] - slope * np.log2(plain["width"]) - start]

    @property
    def at_one_width(self) -> tuple[float, float]:
        """Lowest and highest width-matched mean of configurations with a 1×1."""
        means = Widths(self.results[self.results["match"] == "none"]).with_1x1["accuracy"]
        return float(means.min()), float(means.max())

    @property
    def underfitting(self) -> float:
        """Pearson correlation of training loss and test accuracy, over means of configurations with a 1×1."""
        rows = self.results[self.results["pointwise"].astype(bool)]
        means = rows.groupby(["params", "macs"])[["train_loss", "test_accuracy"]].mean()
        return self._correlation(means["train_loss"], means["test_accuracy"])

    @staticmethod
    def _correlation(first: pd.Series, second: pd.Series) -> float:
        return float(np.corrcoef(first, second)[0, 1])

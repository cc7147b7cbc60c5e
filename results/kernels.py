"""The curve on CIFAR-10 against measured step time, with torch's kernels and with this package's: `make readmes`.

    results/curve_cifar10            accuracies of its networks
    results/kernels/steps.csv        what a training step of each takes: `spectrum bench steps`

The accuracies are the same under all kernels, since every way computes the same function; what moves is the time.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from spectrum import load_results, plots, stats
from spectrum.analysis.plots.drawing import look_of, shades_of
from spectrum.analysis.table import budget_name
from spectrum.bench.steps import DEFAULT, LAYOUT, OURS, WAYS

RESULTS = Path(__file__).parent
STUDY = RESULTS / "curve_cifar10"
BUDGETS = ("none", "params", "macs")  # step_time was held with kernels of its own
TITLES = {
    DEFAULT: "torch's kernels, default layout",
    LAYOUT: "torch's kernels, channels_last",
    OURS: "this package's kernels",
}


class Steps:
    """Accuracies of the curve's networks beside what their steps take."""

    @cached_property
    def times(self) -> pd.DataFrame:
        table = pd.read_csv(RESULTS / "kernels/steps.csv")
        return table[table["match"].isin(BUDGETS)]

    @cached_property
    def results(self) -> pd.DataFrame:
        rows = load_results(STUDY)
        return rows[rows["match"].isin(BUDGETS)]

    def timed(self, way: str) -> pd.DataFrame:
        """The rows, each with the milliseconds of a step of its network."""
        ms = self.times[self.times["way"] == way].set_index(["match", "segments", "pointwise"])["ms"]
        places = self.results[["match", "segments", "pointwise"]].astype({"segments": str})
        return self.results.assign(step_ms=ms.loc[list(places.itertuples(index=False, name=None))].to_numpy())

    def ms(self, way: str, segments: object, match: str = "macs", *, pointwise: bool = True) -> float:
        """Of a step of one network."""
        there = self.times[
            (self.times["way"] == way)
            & (self.times["match"] == match)
            & (self.times["segments"] == str(segments))
            & (self.times["pointwise"] == pointwise)
        ]
        return float(there["ms"].iloc[0])

    def accuracy(self, place: str, match: str = "macs") -> float:
        """Mean test accuracy of one network with a 1×1."""
        rows = self.results[(self.results["match"] == match) & self.results["pointwise"].astype(bool)]
        return float(rows.loc[rows["segments"].astype(str) == place, "test_accuracy"].mean())

    @property
    def machine(self) -> dict[str, Any]:
        """What the steps were measured on."""
        said: dict[str, Any] = json.loads((RESULTS / "kernels/steps.machine.json").read_text())
        return said

    def places(self, match: str = "macs") -> list[str]:
        """Segments of the networks under one budget, with a 1×1."""
        there = self.times[(self.times["match"] == match) & self.times["pointwise"]]
        return list(dict.fromkeys(there["segments"]))

    def slowest(self, way: str, match: str = "macs") -> tuple[str, float]:
        """The place whose step takes longest under a budget, and how many times as long as that of 1 segment."""
        place = max(self.places(match), key=lambda segments: self.ms(way, segments, match))
        return place, self.ms(way, place, match) / self.ms(way, 1, match)

    def front(self, way: str) -> pd.DataFrame:
        """Points, by rising time, that no other beats in mean accuracy at as little time."""
        points = stats.pareto_table(self.timed(way), "step_ms")
        return points[points["on_front"]].sort_values("cost")

    def front_said(self, way: str) -> list[str]:
        """The same in words: segments, and the budget."""
        words = {"none": "unmatched"}
        found = self.front(way)
        names = [
            "one a channel"  # the reference, one network under all budgets
            if label == "per channel"
            else f"{label.replace('1, no 1×1', 'the bare convolution')} ({words.get(match, budget_name(match))})"
            for label, match in zip(found["label"], found["match"], strict=True)
        ]
        return list(dict.fromkeys(names))

    def possible(self, way: str) -> list[str]:
        """Places and budgets that are not shown to be off the front."""
        points = stats.pareto_table(self.timed(way), "step_ms").sort_values("cost")
        kept = points[points["beaten_by"] == ""]
        return [f"{label} {match}" for label, match in zip(kept["label"], kept["match"], strict=True)]


def draw(steps: Steps) -> Figure:
    """Accuracy against step time in three panels, one a way to compute, each with its front."""
    with plots.style():
        shades = shades_of(steps.results)
        markers = {match: look_of(number)["marker"] for number, match in enumerate(BUDGETS)}
        figure = Figure(figsize=(10.2, 3.9))
        panels = figure.subplots(1, len(WAYS), sharey=True, sharex=True)
        for ax, way in zip(panels, WAYS, strict=True):
            points = stats.pareto_table(steps.timed(way), "step_ms")
            for _, point in points.iterrows():
                shade = shades[point["label"]]
                half = 100 * (point["high"] - point["mean"])
                face = "white" if point["beaten_by"] else shade
                ax.errorbar(
                    point["cost"], 100 * point["mean"], half,
                    fmt=markers[point["match"]], color=shade, mfc=face, capsize=2, lw=1, ms=5, zorder=3,
                )  # fmt: skip
            front = points[points["on_front"]].sort_values("cost")
            ax.plot(front["cost"], 100 * front["mean"], ls="--", color="0.35", marker="", zorder=2)
            ax.set_xscale("log", base=2)
            ax.set_xticks([12, 16, 24, 32, 48], ["12", "16", "24", "32", "48"])
            ax.minorticks_off()
            ax.set_title(TITLES[way], fontsize=9, loc="left")
            ax.set_xlabel("a training step of 64 images, ms")
        panels[0].set_ylabel("test accuracy, %")
        handles = [
            mpl.lines.Line2D([], [], color=shade, marker="s", ls="", label=label) for label, shade in shades.items()
        ]
        handles += [
            mpl.lines.Line2D([], [], color="0.35", marker=marker, ls="", label=budget_name(match))
            for match, marker in markers.items()
        ]
        handles += [
            mpl.lines.Line2D([], [], color="0.35", ls="--", label="front of the means"),
            mpl.lines.Line2D([], [], color="0.35", marker="o", mfc="white", ls="", label="shown to be off it"),
        ]
        figure.legend(handles=handles, title="segments", loc="outside right center", fontsize=7.5)
        figure.suptitle(
            f"CIFAR-10, JPEG re-encodings · n = {steps.results['seed'].nunique()} seeds · bars: 95 % t-interval",
            fontsize=8, color="0.25",
        )  # fmt: skip
    return figure


if __name__ == "__main__":
    plots.save_figure(draw(Steps()), RESULTS / "kernels/fronts")

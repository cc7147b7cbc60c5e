"""Draw accuracy on CIFAR-10 against measured step time, with torch's kernels and this package's, for `pictures.py`.

    results/curve_cifar10            accuracies of the networks, with all four budgets
    results/kernels/steps.csv        time of a training step of each network, from `spectrum bench steps`

Every implementation computes the same function, so accuracies do not depend on the kernels; only times do.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from pages.words import BUDGETS

from spectrum import load_results, plots, stats
from spectrum.bench.steps import WAYS
from spectrum.bench.train import DEFAULT, NATIVE, OURS
from spectrum.models.position import END, PLAIN

RESULTS = Path(__file__).parent
STUDY = RESULTS / "curve_cifar10"
TITLES = {
    DEFAULT: "torch's kernels,\ndefault layout and loop",
    NATIVE: "torch's kernels,\nchannels_last",
    OURS: "this package's kernels",
}

COLOUR = "#009E73"  # of MAC-matched networks
FRONTIER = "Pareto frontier of all means"


class Steps:
    """Accuracies and step times of the networks in the study."""

    @cached_property
    def times(self) -> pd.DataFrame:
        return pd.read_csv(RESULTS / "kernels/steps.csv")

    @cached_property
    def results(self) -> pd.DataFrame:
        return load_results(STUDY)

    @property
    def machine(self) -> dict[str, Any]:
        """Description of the machine that measured the steps."""
        said: dict[str, Any] = json.loads((RESULTS / "kernels/steps.machine.json").read_text())
        return said

    @property
    def apart(self) -> float:
        """Largest ratio between the times of two passes, for ours and torch's kernels."""
        return float(self.times.loc[self.times["way"] != DEFAULT, "apart"].max())

    def timed(self, way: str) -> pd.DataFrame:
        """Rows of the study, each with the milliseconds per step of its network."""
        ms = self.times[self.times["way"] == way].set_index(["match", "segments", "pointwise"])["ms"]
        places = self.results[["match", "segments", "pointwise"]].astype({"segments": str})
        return self.results.assign(step_ms=ms.loc[list(places.itertuples(index=False, name=None))].to_numpy())

    def ms(self, way: str, segments: object, match: str = "macs") -> float:
        """Milliseconds per step of one network with a 1×1."""
        there = self.times[
            (self.times["way"] == way)
            & (self.times["match"] == match)
            & (self.times["segments"] == str(segments))
            & self.times["pointwise"]
        ]
        return float(there["ms"].iloc[0])

    def accuracy(self, place: str, match: str = "macs") -> float:
        """Mean test accuracy of one network with a 1×1."""
        rows = self.results[(self.results["match"] == match) & self.results["pointwise"].astype(bool)]
        return float(rows.loc[rows["segments"].astype(str) == place, "test_accuracy"].mean())

    def places(self, match: str = "macs") -> list[str]:
        """Segments of the networks with a 1×1 and one budget."""
        there = self.times[(self.times["match"] == match) & self.times["pointwise"]]
        return list(dict.fromkeys(there["segments"]))

    def slowest(self, way: str, match: str = "macs") -> tuple[str, float]:
        """Segments with the longest step at one budget, and its time divided by that of 1 segment.

        Several segments if two passes do not rank their times, the slowest first.
        """
        places = sorted(self.places(match), key=lambda segments: -self.ms(way, segments, match))
        longest = self.ms(way, places[0], match)
        tied = [place for place in places if self.ms(way, place, match) * self.apart >= longest]
        return " or ".join(tied), longest / self.ms(way, 1, match)

    def gone(self, place: object) -> tuple[float, float]:
        """Shares of layout and loop, and of kernels, in the extra MAC-matched step time over 1 segment."""
        more = [self.ms(way, place) / self.ms(way, 1) - 1 for way in WAYS]
        return 1 - more[1] / more[0], (more[1] - more[2]) / more[0]

    def runs(self, way: str) -> pd.DataFrame:
        """Every network once, in order of step time, and whether its mean is on the Pareto frontier."""
        runs = stats.pareto_table(self.timed(way), "step_ms").sort_values("cost", kind="stable")
        return runs.drop_duplicates(["label", "cost"])

    def ranked(self, way: str) -> list[pd.Series]:
        """Networks on the Pareto frontier of mean accuracy against step time, from fast to slow.

        A network is left out if two passes do not rank its time before that of a more accurate one.
        """
        runs = self.runs(way)
        front = runs[runs["on_front"]]
        return [
            row
            for _, row in front.iterrows()
            if not ((front["cost"] > row["cost"]) & (front["cost"] <= self.apart * row["cost"])).any()
        ]

    def front(self, way: str) -> list[str]:
        """Names of these networks, each with its budget."""
        return [
            row["label"] if row["label"] == END else f"{row['label']} ({BUDGETS[row['match']]})"
            for row in self.ranked(way)
        ]

    def between(self, way: str) -> list[str]:
        """Names on the frontier that are neither an end of the spectrum nor the plain 3×3."""
        return [name for name in self.front(way) if name.partition(" (")[0] not in ("1", PLAIN, END)]

    @property
    def stale(self) -> float:
        """Largest mismatch of time-matched networks with today's kernels; their widths were solved with older ones."""
        end = self.ms(OURS, "per_channel", "step_time")
        return max(abs(self.ms(OURS, place, "step_time") / end - 1) for place in self.places("step_time"))

    def end_ms(self, way: str) -> float:
        """Milliseconds per per-channel step."""
        return self.ms(way, "per_channel")


def draw() -> Figure:
    """Draw accuracy against step time of MAC-matched networks in three panels, each with its Pareto frontier."""
    steps = Steps()
    with plots.style():
        figure = Figure(figsize=(7.0, 3.9))
        panels = figure.subplots(1, len(WAYS), sharey=True, sharex=True)
        for ax, way in zip(panels, WAYS, strict=True):
            _panel(ax, steps, way)
        panels[1].set_xlabel("training step of 64 images, ms")
        panels[0].set_ylabel("test accuracy, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
        slowest, held = steps.slowest(DEFAULT)[1], steps.slowest(OURS)[1]
        title = (
            f"The slowest split takes {slowest:.1f}× as long as 1 segment in PyTorch's default loop,\n"
            f"{held:.1f}× with this package's kernels"
        )
        figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return figure


def _panel(ax: Axes, steps: Steps, way: str) -> None:
    """Draw one implementation: networks from 1 segment to per-channel as a path, and the frontier."""
    matched = steps.timed(way)
    found = stats.pareto_table(matched[matched["match"].isin(["macs", "none"])], "step_ms")
    shown = [PLAIN, *(place.replace("_", "-") for place in steps.places())]
    rows = found[(found["match"] == "macs") | (found["label"] == END)].drop_duplicates("label").set_index("label")
    rows = rows.loc[[label for label in shown if label in rows.index]]
    split = rows.drop(PLAIN)
    words = "1 segment to per-channel, MAC-matched"
    ax.plot(split["cost"], 100 * split["mean"], color=COLOUR, lw=1.2, marker="o", ms=4, label=words)
    ax.plot(*rows.loc[PLAIN, ["cost", "mean"]] * [1, 100], color="0.2", ls="", marker="*", ms=9, label=PLAIN)
    for label, row in rows.iterrows():
        half = 100 * (row["high"] - row["mean"])
        ax.errorbar(row["cost"], 100 * row["mean"], half, fmt="", color="0.6", lw=0.8, marker="", zorder=1)
        away, across = ((4, -10), "right") if label == PLAIN else ((6, 0), "left")
        ax.annotate(
            str(label), (row["cost"], 100 * row["mean"]), away, textcoords="offset points", fontsize=7.5,
            ha=across, va="center",
        ).set_path_effects([withStroke(linewidth=2, foreground="white")])  # fmt: skip
    front = pd.DataFrame(steps.ranked(way))
    ax.step(front["cost"], 100 * front["mean"], where="post", ls="--", lw=1, color="0.35", marker="", label=FRONTIER)
    ax.set_xscale("log", base=2)
    ax.set_xlim(7.5, 72)
    ax.set_xticks([8, 16, 32, 64], ["8", "16", "32", "64"])
    ax.minorticks_off()
    ax.set_title(TITLES[way], fontsize=8.5, loc="left")

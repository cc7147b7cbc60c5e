"""Draw accuracy on CIFAR-10 against measured step time, with torch's kernels and with this package's: `make readmes`.

    results/curve_cifar10            accuracies of the networks, with all four budgets
    results/kernels/steps.csv        time of a training step of each network, from `spectrum bench steps`

Every implementation computes the same function, so accuracies do not depend on the kernels; only times do.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from pages.words import BUDGETS

from spectrum import load_results, plots, stats
from spectrum.analysis.plots.drawing import look_of, shades_of
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

    def front(self, way: str) -> list[str]:
        """Names on the Pareto frontier of mean accuracy against step time, from fast to slow, each with its budget.

        A network is left out if two passes do not rank its time before that of a more accurate one.
        """
        runs = self.runs(way)
        front = runs[runs["on_front"]]
        ranked = [
            row
            for _, row in front.iterrows()
            if not ((front["cost"] > row["cost"]) & (front["cost"] <= self.apart * row["cost"])).any()
        ]
        return [row["label"] if row["label"] == END else f"{row['label']} ({BUDGETS[row['match']]})" for row in ranked]

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


def draw(steps: Steps) -> Figure:
    """Draw accuracy against step time in three panels, one per implementation, each with its Pareto frontier."""
    matches = list(dict.fromkeys(steps.results["match"]))
    with plots.style():
        shades = shades_of(steps.results[steps.results["pointwise"].astype(bool)]) | {PLAIN: "#cc79a7"}
        markers = {match: look_of(number)["marker"] for number, match in enumerate(matches)}
        figure = Figure(figsize=(7.0, 4.6))
        panels = figure.subplots(1, len(WAYS), sharey=True, sharex=True)
        for ax, way in zip(panels, WAYS, strict=True):
            rows = steps.runs(way)
            for _, row in rows.iterrows():
                shade = shades[row["label"]]
                half = 100 * (row["high"] - row["mean"])
                face = "white" if row["beaten_by"] else shade
                ax.errorbar(
                    row["cost"], 100 * row["mean"], half,
                    fmt=markers[row["match"]], color=shade, mfc=face, capsize=2, lw=1, ms=4.5, zorder=3,
                )  # fmt: skip
            front = rows[rows["on_front"]]
            ax.step(front["cost"], 100 * front["mean"], where="post", ls="--", color="0.35", marker="", zorder=2)
            ax.set_xscale("log", base=2)
            ax.set_xticks([12, 16, 24, 32, 48], ["12", "16", "24", "32", "48"])
            ax.minorticks_off()
            ax.set_title(TITLES[way], fontsize=8.5, loc="left")
        panels[1].set_xlabel("training step of 64 images, ms")
        panels[0].set_ylabel("test accuracy, %")
        handles = [mpl.lines.Line2D([], [], color=shade, lw=5, label=label) for label, shade in shades.items()]
        handles += [
            mpl.lines.Line2D([], [], color="0.35", marker=marker, ls="", label=BUDGETS[match])
            for match, marker in markers.items()
        ]
        handles += [
            mpl.lines.Line2D([], [], color="0.35", ls="--", label="Pareto frontier of means"),
            mpl.lines.Line2D([], [], color="0.35", marker="o", mfc="white", ls="", label="shown to be off it"),
        ]  # fmt: skip
        figure.legend(
            handles=handles, title="segments (colour), budget (marker)", loc="outside lower center", ncols=4,
            fontsize=7.5, title_fontsize=8,
        )  # fmt: skip
        seeds = steps.results["seed"].nunique()
        figure.suptitle(f"CIFAR-10 (JPEG re-encodings) · n = {seeds} seeds · bars: 95% CIs", fontsize=8, color="0.25")
    return figure


if __name__ == "__main__":
    plots.save_figure(draw(Steps()), RESULTS / "kernels/fronts")

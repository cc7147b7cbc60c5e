"""Draw accuracy against width for both curves, results/widths.png: `make readmes`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from map import TITLES
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from pages.study import CURVES, study_page
from pages.width import Widths

from spectrum import plots

RESULTS = Path(__file__).parent
SHADES = "viridis_r"


def draw() -> Figure:
    """A panel for each curve: every configuration under every budget, with the line of those that have a 1×1."""
    with plots.style():
        figure = Figure(figsize=(8.6, 3.9))
        panels = figure.subplots(1, len(CURVES))
        for ax, name in zip(panels, CURVES, strict=True):
            page = study_page(name)
            marks = _panel(ax, page.widths, f"{TITLES[name]}, n = {page.method.seeds} seeds")
        bar = figure.colorbar(marks, ax=panels, ticks=[1, 2, 4, 8, 16, 32, 64, 128], pad=0.02)
        bar.ax.set_yticklabels(["1", "2", "4", "8", "16", "32", "64", "128"])
        bar.ax.minorticks_off()
        bar.set_label("segments of the widest layer")
        panels[0].set_ylabel("mean test accuracy, %")
    return figure


def _panel(ax: Axes, found: Widths, title: str) -> PathCollection:
    table = found.configurations
    norm = LogNorm(1, 128)
    curve, plain = table[~table["plain"]], table[table["plain"]]
    slope, start = found.line
    ends = np.array([table["width"].min(), table["width"].max()])
    label = f"line of the circles: R² = {found.explained('width'):.2f}"
    ax.plot(ends, 100 * (start + slope * np.log2(ends)), color="0.55", ls="--", lw=1, marker="", label=label, zorder=1)
    marks = _scatter(ax, curve, norm, "o", 34, "with a 1×1, all budgets")
    _scatter(ax, plain, norm, "*", 120, "plain 3×3")
    ax.set_xscale("log", base=2)
    ax.set_xticks([24, 32, 48, 64], ["24", "32", "48", "64"])
    ax.minorticks_off()
    ax.set_xlabel("width: mean channels of a stage (geometric)")
    ax.set_title(title, fontsize=9, loc="left")
    ax.legend(loc="lower right", fontsize=7.5)
    return marks


def _scatter(ax: Axes, table: pd.DataFrame, norm: LogNorm, marker: str, size: float, label: str) -> PathCollection:
    return ax.scatter(
        table["width"], 100 * table["accuracy"], c=table["segments"], norm=norm, cmap=SHADES,
        marker=marker, s=size, edgecolor="0.2", linewidth=0.6, label=label, zorder=3,
    )  # fmt: skip


if __name__ == "__main__":
    plots.save_figure(draw(), RESULTS / "widths")

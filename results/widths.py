"""Draw accuracy against width for both curves, results/widths.png: `make readmes`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from map import TITLES, TYPE
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
    """Draw a panel for each curve: every configuration with every budget, and the line through those with a 1×1."""
    with plots.style():
        figure = Figure(figsize=(7.0, 3.6))
        panels = figure.subplots(1, len(CURVES))
        for ax, name in zip(panels, CURVES, strict=True):
            page = study_page(name)
            explained = f"R² of the line: {page.widths.explained('width'):.2f}"
            marks = _panel(ax, page.widths, f"{TITLES[name]}, n = {page.method.seeds}\n{explained}")
        bar = figure.colorbar(marks, ax=panels, ticks=[1, 2, 4, 8, 16, 32, 64, 128], pad=0.02)
        bar.ax.set_yticklabels(["1", "2", "4", "8", "16", "32", "64", "128"])
        bar.ax.minorticks_off()
        bar.set_label("segments of the widest layer")
        panels[0].set_ylabel("mean test accuracy, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=TYPE)
    return figure


def _panel(ax: Axes, found: Widths, title: str) -> PathCollection:
    table = found.configurations
    norm = LogNorm(1, 128)
    curve, plain = table[~table["plain"]], table[table["plain"]]
    slope, start = found.line
    ends = np.array([table["width"].min(), table["width"].max()])
    accuracy = 100 * (start + slope * np.log2(ends))
    ax.plot(ends, accuracy, color="0.55", ls="--", lw=1, marker="", label="line through the circles", zorder=1)
    marks = _scatter(ax, curve, norm, "o", 30, "with a 1×1, all four budgets")
    _scatter(ax, plain, norm, "*", 110, "plain 3×3, all four budgets")
    ax.set_xscale("log", base=2)
    ax.set_xticks([24, 32, 48, 64], ["24", "32", "48", "64"])
    ax.minorticks_off()
    ax.set_xlabel("width: geometric mean of\nthe channels of all stages")
    ax.set_title(title, fontsize=8.5, loc="left")
    return marks


def _scatter(ax: Axes, table: pd.DataFrame, norm: LogNorm, marker: str, size: float, label: str) -> PathCollection:
    return ax.scatter(
        table["width"], 100 * table["accuracy"], c=table["segments"], norm=norm, cmap=SHADES,
        marker=marker, s=size, edgecolor="0.2", linewidth=0.6, label=label, zorder=3,
    )  # fmt: skip


if __name__ == "__main__":
    plots.save_figure(draw(), RESULTS / "widths")

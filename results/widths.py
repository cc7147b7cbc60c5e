"""Draw accuracy against width for both curves, results/widths.png, for `pictures.py`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from map import TITLES, TYPE
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from pages.study import CURVES, study_page
from pages.width import Widths

from spectrum import plots

SHADES = "viridis_r"
NORM = LogNorm(1, 128)
TICKS = [1, 2, 4, 8, 16, 32, 64, 128]


def draw() -> Figure:
    """Draw two panels for each curve: accuracy against width, and at the reference's width against segments."""
    with plots.style():
        figure = Figure(figsize=(7.0, 3.7))
        panels = figure.subplots(1, 4, width_ratios=[2.4, 1, 2.4, 1])
        gains = {}
        for first, name in zip((0, 2), CURVES, strict=True):
            page = study_page(name)
            explained = f"R² of the line: {page.widths.explained('width'):.2f}"
            _panel(panels[first], page.widths, f"{TITLES[name]},\nn = {page.method.seeds}. {explained}")
            gains[name] = _at_one_width(panels[first + 1], page.widths)
            panels[first + 1].sharey(panels[first])
            panels[first + 1].tick_params(labelleft=False)
        bar = figure.colorbar(ScalarMappable(NORM, SHADES), ax=panels.tolist(), ticks=TICKS, pad=0.02)
        bar.ax.set_yticklabels([str(tick) for tick in TICKS])
        bar.ax.minorticks_off()
        bar.set_label("segments")
        panels[0].set_ylabel("mean test accuracy, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=TYPE)
        title = f"Accuracy follows width; at one width, segments differ by up to {max(gains.values()):.1f} pp"
        figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return figure


def _panel(ax: Axes, found: Widths, title: str) -> None:
    """Draw every configuration of all budgets, and the line through those with a 1×1."""
    table = found.configurations
    curve, plain = table[~table["plain"]], table[table["plain"]]
    slope, start = found.line
    ends = np.array([table["width"].min(), table["width"].max()])
    accuracy = 100 * (start + slope * np.log2(ends))
    ax.plot(ends, accuracy, color="0.55", ls="--", lw=1, marker="", label="line through the circles", zorder=1)
    _scatter(ax, curve, "width", "o", 26, "with a 1×1, all four budgets")
    _scatter(ax, plain, "width", "*", 100, "plain 3×3, all four budgets")
    ax.set_xscale("log", base=2)
    ax.set_xticks([24, 32, 48, 64], ["24", "32", "48", "64"])
    ax.minorticks_off()
    ax.set_xlabel("width: geometric mean of\nthe channels of all stages")
    ax.set_title(title, fontsize=8.5, loc="left")


def _at_one_width(ax: Axes, found: Widths) -> float:
    """Draw width-matched configurations with a 1×1. Returns the largest difference of their means, in pp."""
    table = Widths(found.results[found.results["match"] == "none"]).with_1x1
    _scatter(ax, table, "segments", "o", 26, "")
    ax.set_xscale("log", base=2)
    ax.set_xlim(0.6, 220)
    ax.set_xticks([1, 8, 64], ["1", "8", "64"])
    ax.minorticks_off()
    ax.set_xlabel("segments")
    ax.set_title(f"width {table['width'].iloc[0]:.0f}\nonly", fontsize=8.5, loc="left")
    return float(100 * (table["accuracy"].max() - table["accuracy"].min()))


def _scatter(ax: Axes, table: pd.DataFrame, along: str, marker: str, size: float, label: str) -> None:
    ax.scatter(
        table[along], 100 * table["accuracy"], c=table["segments"], norm=NORM, cmap=SHADES,
        marker=marker, s=size, edgecolor="0.2", linewidth=0.6, label=label, zorder=3,
    )  # fmt: skip

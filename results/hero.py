"""Draw the project's main picture, results/hero_light.png and hero_dark.png, for `pictures.py`.

Above: the input channels that each output channel of the 3×3 reads. Below: accuracy on CIFAR-10 against the number of
segments, parameter-matched (a finer split pays for a wider network) and width-matched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pages.study import study_page
from pages.words import holds

from spectrum import plots, stats

STUDY = "curve_cifar10"
CHANNELS = 32  # channels of the drawn layer
KERNELS = {1: "1×1 + regular\n(1 segment)", 4: "Inception-like\n(4 segments)", 16: "in between\n(16 segments)"}
DEPTHWISE = "1×1 + depthwise\n(one per channel)"
PLAIN_AT = -1.0  # position on the log₂ axis, left of 1 segment
LAST = 7.0  # of the per-channel end
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


@dataclass(frozen=True)
class Theme:
    """Colours of background, text, secondary text, and the main curve."""

    ground: str
    ink: str
    faint: str
    curve: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#6e7781", "#0072b2"),
    "dark": Theme("#0d1117", "#e6edf3", "#8b949e", "#58a6ff"),
}


def draw(name: str) -> Figure:
    """Draw the picture in the theme of this name."""
    theme = THEMES[name]
    with plots.style():
        figure = Figure(figsize=(7.2, 5.0), facecolor=theme.ground)
        figure.set_layout_engine("none")
        curve = figure.add_axes((0.085, 0.12, 0.80, 0.48), facecolor=theme.ground)
        _curve(curve, theme)
        _kernels(figure, curve, theme)
        figure.text(0.012, 0.955, _title(), color=theme.ink, fontsize=11.5, fontweight="bold")
    return figure


def _title() -> str:
    """Say what the lower part shows; a claim that the rows must support."""
    split = means()["params"].query("~plain")["mean"]
    rising = split.idxmax() == split.index[-1] and split.idxmin() == split.index[0]
    return holds(rising, "At equal parameters, accuracy rises from 1 segment to one per channel")


def means() -> dict[str, pd.DataFrame]:
    """Mean and interval of each configuration, from the plain 3×3 to the per-channel end, by budget."""
    table = stats.summarise(study_page(STUDY).results, ["match", "segments", "pointwise"])
    table["plain"] = ~table["pointwise"].astype(bool)
    last = 1 + pd.to_numeric(table["segments"], errors="coerce").max()
    table["order"] = pd.to_numeric(table["segments"], errors="coerce").fillna(last) - table["plain"]
    return {match: table[table["match"] == match].sort_values("order") for match in ("none", "params")}


def _curve(ax: Axes, theme: Theme) -> None:
    """Draw both curves."""
    found = means()
    split = found["params"][~found["params"]["plain"]]
    places = {str(segments): _place(segments) for segments in split["segments"]}
    for match, color, style, width in (("none", theme.faint, "--", 1.6), ("params", theme.curve, "-", 2.6)):
        table = found[match][~found[match]["plain"]]
        x = [places[str(segments)] for segments in table["segments"]]
        ax.plot(x, 100 * table["mean"], color=color, ls=style, lw=width, marker="o", ms=4.5, zorder=3)
        ax.fill_between(x, 100 * table["low"], 100 * table["high"], color=color, alpha=0.18, lw=0)
        plain = found[match][found[match]["plain"]]
        half = 100 * (plain["high"] - plain["mean"])
        ax.errorbar([PLAIN_AT], 100 * plain["mean"], half, color=color, fmt="*", ms=9, capsize=2, zorder=3)
    _words(ax, found, theme)
    ax.set_xticks([PLAIN_AT, *places.values()], ["plain\n3×3", *list(places)[:-1], "one per\nchannel"])
    ax.set_xlim(PLAIN_AT - 0.4, LAST + 0.25)
    ax.set_ylabel("CIFAR-10 test accuracy, %", color=theme.ink, fontsize=9)
    ax.set_xlabel("segments of the 3×3 convolution (groups in PyTorch)", color=theme.ink, fontsize=9)
    ax.tick_params(colors=theme.ink, labelsize=8.5)
    ax.grid(visible=False)
    ax.grid(axis="y", color=theme.faint, alpha=0.25, lw=0.6)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)


def _place(segments: object) -> float:
    """Position on the log₂ axis; the per-channel network has 128 channels in its widest layer."""
    return LAST if segments == "per_channel" else math.log2(int(str(segments)))


def _words(ax: Axes, found: dict[str, pd.DataFrame], theme: Theme) -> None:
    """Label both curves with their gain from 1 segment to the per-channel end."""
    split = {match: table[~table["plain"]] for match, table in found.items()}
    gain = {match: 100 * (table["mean"].iloc[-1] - table["mean"].iloc[0]) for match, table in split.items()}
    more = split["none"]["params"].iloc[0] / split["params"]["params"].iloc[0]
    ax.text(
        0, 100 * split["none"]["high"].max() + 0.1,
        f"width-matched: per-channel leads by {gain['none']:.1f} pp (1 segment has {more:.1f}× the parameters)",
        color=theme.faint, fontsize=8.5, va="bottom",
    )  # fmt: skip
    lead = f"parameter-matched: per-channel leads 1 segment\nby {gain['params']:.1f} pp"
    ax.text(
        2.65, 100 * split["params"]["low"].iloc[4] - 0.6,
        f"{lead} (a finer split pays for a wider network)",
        color=theme.curve, fontsize=9, fontweight="bold", va="top",
    )  # fmt: skip
    ax.set_ylim(None, 100 * split["none"]["high"].max() + 1.2)


def _kernels(figure: Figure, ax: Axes, theme: Theme) -> None:
    """Draw small matrices above the curve, each above its number of segments."""
    at = {1: 0.0, 4: 2.0, 16: 4.0, CHANNELS: LAST}
    for segments, place in at.items():
        left, right = ax.get_xlim()
        middle = 0.085 + 0.80 * (place - left) / (right - left)
        panel = figure.add_axes((middle - 0.066, 0.66, 0.132, 0.19), facecolor=theme.ground)
        side = 1 / segments
        for number in range(segments):
            colour = COLOURS[number % len(COLOURS)]
            panel.add_patch(Rectangle((number * side, number * side), side, side, color=colour, lw=0))
        panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
        panel.set_title(KERNELS.get(segments, DEPTHWISE), fontsize=8.5, color=theme.ink, pad=4, loc="center")
        for spine in panel.spines.values():
            spine.set_visible(True)
            spine.set_color(theme.faint)
        if segments == 1:
            panel.set_xlabel("input channel", fontsize=7, color=theme.faint, labelpad=2)
            panel.set_ylabel("output channel", fontsize=7, color=theme.faint, labelpad=2)

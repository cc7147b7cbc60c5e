"""What others measured along the spectrum, and a study of your own beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrum.analysis.plots.drawing import (
    axes_or_new,
    draw_intervals,
    drawable,
    figure_of,
    look_of,
    metric_label,
    places_of,
    spectrum_axis,
    styled,
)
from spectrum.analysis.plots.frame import legend_beside, say
from spectrum.analysis.plots.words import Wishes
from spectrum.analysis.table import SPLIT, varied_settings
from spectrum.analysis.words import setting_label

# Top-1 errors in percent on ImageNet, as published: ResNeXt (Xie et al. 2017, arXiv 1611.05431), IGCV1 (Zhang et al.
# 2017, arXiv 1707.02725), ShuffleNet (Zhang et al. 2018, arXiv 1707.01083).
PUBLISHED = {
    ("ResNeXt-50", "spatial", "about equal MACs"): {1: 23.9, 2: 23.0, 4: 22.6, 8: 22.3, 32: 22.2},
    ("IGCV1", "spatial", "fewer parameters at 100"): {1: 31.06, 4: 30.77, 16: 29.40, 100: 26.95},
    ("ShuffleNet, of its 1×1", "pointwise", "equal MACs"): {1: 33.6, 2: 32.7, 3: 32.6, 4: 32.8, 8: 32.4},
}


def literature() -> pd.DataFrame:
    """Published results along the spectrum: a row per network.

    Columns: `work`, `half` (of which the segments are: "spatial", or "pointwise" in ShuffleNet), `budget` (what the
    networks share), `segments`, `error` (top-1 on ImageNet, percent), `gain` over the work's own 1 segment in pp.

    >>> literature().groupby("work", sort=False)["gain"].max().round(2).to_dict()
    {'ResNeXt-50': 1.7, 'IGCV1': 4.11, 'ShuffleNet, of its 1×1': 1.2}
    """
    rows = [
        {"work": work, "half": half, "budget": budget, "segments": segments, "error": error, "gain": errors[1] - error}
        for (work, half, budget), errors in PUBLISHED.items()
        for segments, error in errors.items()
    ]
    return pd.DataFrame(rows)


@styled
def literature_curve(
    results: pd.DataFrame,
    *,
    ax: Axes | None = None,
    metric: str = "test_accuracy",
    title: str | None = None,
    caption: bool = True,
    colors: Mapping[str, Any] | Sequence[Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """What more segments gain over 1 segment, in a study and in the literature, on one log₂ axis.

    Args:
        results: from `load_results`, with configurations of 1 segment.
        ax: where to draw, at any size and in your own settings; by default a figure of its own.
        metric: a column of accuracies from 0 to 1; shown in percentage points.
        title: what the picture answers or finds; by default its task.
        caption: whether to say data set, seeds, budget and study.
        colors: of the study's curves, in their order or by their labels.
        labels: your words for labels, such as {"this study": "ours"}.

    The study's differences are paired by seed, with their 95% CI. The published ones are single runs of larger
    networks on ImageNet (`literature`), each under a budget of its own: shapes compare, heights do not. Raises
    ValueError where no seed has 1 segment (with its 1×1) and another configuration.
    """
    table = drawable(results, metric)
    ax = axes_or_new(ax)
    wishes = Wishes(title, caption, colors, labels)
    table = table[table["pointwise"].astype(bool)].reset_index(drop=True)
    table = table.assign(place=places_of(table))
    names = varied_settings(table)
    drawn, missing = 0, []
    for values, curve in table.groupby(names, sort=False, dropna=False) if names else [((), table)]:
        first = curve[curve["segments"].eq(1)].set_index("seed")[metric]
        by_place = {
            one["place"].iloc[0]: 100 * one.set_index("seed")[metric].sub(first).dropna()
            for _, one in curve.groupby([*SPLIT], sort=False, dropna=False)
        }
        by_place = {place: gains for place, gains in by_place.items() if len(gains)}
        label = setting_label(names, values) or "this study"
        if len(by_place) > 1:
            draw_intervals(ax, by_place, look_of(drawn, label, wishes), wishes.called(label))
            drawn += 1
        else:
            missing.append(label)
    if not drawn:
        raise ValueError("literature_curve: no seed has 1 segment (with its 1×1) and another configuration to compare")
    for number, ((work, half), published) in enumerate(literature().groupby(["work", "half"], sort=False)):
        grey, line, name = f"{0.3 + 0.2 * number}", "-" if half == "spatial" else ":", wishes.called(str(work))
        marker = "Dv<"[number]
        ax.plot(published["segments"], published["gain"], color=grey, ls=line, lw=1, ms=4, marker=marker, label=name)
    ax.axhline(0, color="0.4", lw=0.8)
    spectrum_axis(ax, table, wishes)
    ax.set_xlim(right=max(ax.get_xlim()[1], 1.2 * literature()["segments"].max()))
    what = metric_label(metric).removesuffix(", %")
    ax.set_ylabel(wishes.called(f"gain over 1 segment,\npp of {what}"))
    legend_beside(ax, ax.get_legend_handles_labels()[0])
    left_out = f"not drawn, for lack of 1 segment: {', '.join(missing)}" if missing else ""
    task, marks = "Gain over 1 segment, here and as published", "bars: 95% CI; grey: published, ImageNet, one run each"
    say(ax, table, names, marks, wishes=wishes, title=task, foot=left_out)
    return figure_of(ax)

"""Table of `spectrum bench op`: this package next to the fastest other implementation, and findings."""

from __future__ import annotations

from typing import Any

import pandas as pd

from spectrum.bench.cells import PLAIN, Window

OURS, MEASURED = "spectrum", "spectrum, measured choice"
IN_WORDS = {"grouped, NCHW": "grouped, default layout", "grouped": "grouped, channels_last"}
CELL = ["shape", "segments", "kernel", "stride", "dilation", "layout"]
SLOW = 0.95  # speedup below which a layer counts as slower than another implementation; a smaller gap may be noise


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns of today: tables of earlier versions have no window, which was 3×3, nor a layout."""
    defaults = {**vars(PLAIN), "layout": "channels_last"}
    return table.assign(**{name: value for name, value in defaults.items() if name not in table})


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: this package next to the fastest other implementation, in the order of the table.

    Columns beside those of the cell: `window`, `channels_per_segment`, of this package `ms`, its quartiles, `percent`
    of the roofline and `lowering`, its backend; `other` and `other_ms`; `speedup`; with a measured choice
    `measured_ms` and `measured_speedup`.
    """
    table = whole(table)
    ours = table[table.way == OURS].set_index(CELL)
    others = table[~table.way.isin((OURS, MEASURED))]
    best = others.loc[others.groupby(CELL).ms.idxmin()].set_index(CELL)
    found = ours.assign(
        window=[str(Window(kernel, stride, dilation)) for _, _, kernel, stride, dilation, _ in ours.index],
        other=best.way,
        other_ms=best.ms,
        speedup=best.ms / ours.ms,
    )
    measured = table[table.way == MEASURED].set_index(CELL)
    if len(measured):
        found = found.assign(measured_ms=measured.ms, measured_speedup=best.ms / measured.ms)
    return found.reset_index()


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the table: the lowest and the highest value of each comparison, from the medians.

    What names no window is of the 3×3 with stride 1, in channels_last.
    """
    every = compared(table)
    plain = every[(every.window == str(PLAIN)) & (every.layout == "channels_last")]
    found = _of_the_plain_window(plain) if len(plain) else {}
    for window, cells in every[every.window != str(PLAIN)].groupby("window", sort=False):
        found[f"{window}: percent of the roofline"] = [float(cells.percent.min()), float(cells.percent.max())]
        found[f"{window}: speedup over the best other"] = [float(cells.speedup.min()), float(cells.speedup.max())]
    found["measurements slower than the best other"] = int((every.speedup < SLOW).sum())
    if "measured_ms" in every:
        times = whole(table).groupby(CELL, sort=False).ms.min().to_numpy()
        tuned = (times / every.set_index(CELL).measured_ms).dropna()
        found["measured choice: lowest speed relative to the fastest of all"] = float(tuned.min())
    return found


def _of_the_plain_window(ours: pd.DataFrame) -> dict[str, Any]:
    even, speedup = ours[ours.channels_per_segment % 1 == 0], ours.speedup
    found: dict[str, Any] = {
        "lowest percent of the roofline": float(even.percent.min()),
        "median percent of the roofline": float(even.percent.median()),
        "measurements below 50%": int((even.percent < 50).sum()),
        "measurements with equal segments": len(even),
        "largest slowdown vs the best other implementation": float(1 / speedup.min()),
    }
    for width in (1, 2, 4, 8, 16):
        chosen = speedup[ours.channels_per_segment == width]
        if len(chosen):
            found[f"speedup over the best other at {width} per segment"] = [float(chosen.min()), float(chosen.max())]
    for shape, count, ms in (
        ours.loc[ours.channels_per_segment % 1 != 0, ["shape", "segments", "ms"]].to_numpy().tolist()
    ):
        neighbours = even[even["shape"] == shape].set_index("segments").ms
        below, above = neighbours[neighbours.index < count], neighbours[neighbours.index > count]
        slower = max(float(side.iloc[at]) for side, at in ((below, -1), (above, 0)) if len(side))
        found[f"{count} unequal segments: time relative to the slower equal neighbour"] = ms / slower
    times = {(shape, count): ms for shape, count, ms in even[["shape", "segments", "ms"]].to_numpy().tolist()}
    doubled = [times[shape, 2 * count] / ms for (shape, count), ms in times.items() if (shape, 2 * count) in times]
    if doubled:
        found["largest time ratio when segments double"] = float(max(doubled))
    return found


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell with the titles of a terminal, the lowest speedup first."""
    rows = compared(table).sort_values("speedup", kind="stable")
    titles = {
        "shape": "input",
        "window": "kernel",
        "layout": "layout",
        "segments": "segments",
        "channels_per_segment": "channels_per_segment",
        "ms": "median_ms",
        "percent": "percent_of_roofline",
        "lowering": "backend",
        "other": "fastest_other",
        "other_ms": "its_ms",
        "speedup": "speedup",
        "measured_speedup": "speedup_measured_choice",
    }
    shown = [name for name in titles if name in rows]
    return rows[shown].replace({"other": IN_WORDS}).rename(columns=titles)


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: one row per cell, ours next to the best other implementation.

    Kernels and layouts have columns if there are several.
    """
    cells = compared(table)
    several = [name for name in ("window", "layout") if cells[name].nunique() > 1]
    titles = ["input, N×C×H×W", *({"window": "kernel", "layout": "layout"}[name] for name in several)]
    titles += ["segments", "channels per segment", "median ms", "quartiles", "% of the roofline"]
    titles += ["fastest other implementation", "median ms", "speedup"]
    has_measured = "measured_ms" in cells
    titles += ["speedup, measured choice"] if has_measured else []
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in cells.to_dict("records"):
        measured = [f"{row['measured_speedup']:.2f}".replace("nan", "")] if has_measured else []
        columns = [
            row["shape"],
            *(row[name].replace("contiguous", "default") for name in several),
            str(row["segments"]),
            _channels(row["channels_per_segment"]),
            f"{row['ms']:.2f}",
            f"{row['ms_q1']:.2f} to {row['ms_q3']:.2f}",
            f"{row['percent']:.0f}",
            IN_WORDS.get(row["other"], row["other"]),
            f"{row['other_ms']:.2f}",
            f"{row['speedup']:.2f}",
            *measured,
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _channels(mean: float) -> str:
    """Channels per segment; the two sizes where segments are uneven.

    >>> _channels(4.0), _channels(42.67)
    ('4', '42 or 43')
    """
    return f"{mean:.0f}" if mean % 1 == 0 else f"{int(mean)} or {int(mean) + 1}"

"""Benchmarks in results/bench: their tables and findings, of one machine, and the layer on all of them."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from spectrum.bench import engine, models, op, sweep, train

ALL = Path(__file__).parents[1] / "bench"
FOLDER = ALL / "amd-epyc"  # the machine with all benchmarks
BENCHES = {"op": op, "train": train, "sweep": sweep, "models": models, "engine": engine}


def machines() -> dict[str, Path]:
    """Folders of the machines on which the layer was measured, by their processors and instruction sets."""
    found = {}
    for path in sorted(ALL.glob("*/op.csv")):
        record = json.loads(path.with_suffix(".machine.json").read_text())
        if not record.get("gpu"):
            found[f"{record['processor']}, {record['capability']}"] = path.parent
    return found


def of_layer(folder: Path) -> pd.DataFrame:
    """Rows of this package's layer on one machine, one per cell; `speedup` is over the best other implementation."""
    return op.compared(pd.read_csv(folder / "op.csv"))


def side_by_side() -> str:
    """Speed of the layer on each machine, by kernel and channels per segment, as Markdown; lowest and highest."""
    tables = {name: of_layer(folder) for name, folder in machines().items()}
    titles = ["kernel", "channels per segment"]
    titles += [f"{name}: {what}" for name in tables for what in ("% of the roofline", "speedup")]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    whole = pd.concat(list(tables.values()))
    whole = whole[whole["channels_per_segment"].isin((1, 2, 4, 8, 16, 32))]
    for (window, width), _ in whole.groupby(["window", "channels_per_segment"], sort=False):
        cells = [str(window), f"{width:g}"]
        for table in tables.values():
            rows = table[(table["window"] == window) & (table["channels_per_segment"] == width)]
            cells += [_span(rows["percent"], "%.0f"), _span(rows["speedup"], "%.2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _span(values: pd.Series, form: str) -> str:
    """Lowest and highest value; one number where both are printed alike, nothing where there is none."""
    ends = list(dict.fromkeys(form % value for value in (values.min(), values.max()))) if len(values) else []
    return " to ".join(ends)


class Benches:
    """All benchmarks of one machine, by their names in `spectrum bench`."""

    @property
    def machines(self) -> list[str]:
        """Processors on which the layer was measured."""
        return list(machines())

    @property
    def sides(self) -> str:
        """The layer on all machines."""
        return side_by_side()

    def rows(self, name: str) -> pd.DataFrame:
        """Measurements of one benchmark."""
        return pd.read_csv(FOLDER / f"{name}.csv")

    def table(self, name: str) -> str:
        """Measurements of one benchmark as Markdown."""
        return str(BENCHES[name].as_markdown(self.rows(name)))

    def found(self, name: str) -> dict[str, Any]:
        """Findings of one benchmark."""
        return dict(BENCHES[name].findings(self.rows(name)))

    @property
    def machine(self) -> dict[str, Any]:
        """The machine and the versions. Raises ValueError if the benchmarks ran on several machines."""
        said = [json.loads((FOLDER / f"{name}.machine.json").read_text()) for name in BENCHES]
        names = ("processor", "cores", "capability", "torch", "compiler", "threads")
        (one,) = {tuple(record[name] for name in names) for record in said}
        return dict(zip(names, one, strict=True))

    @cached_property
    def layer(self) -> pd.DataFrame:
        """Rows of this package's layer, one per input and number of segments; `times` is its speedup over the best
        other."""
        return op.compared(self.rows("op")).rename(columns={"speedup": "times"})

    def times(self, fewest: int, most: int) -> tuple[float, float]:
        """Lowest and highest speedup of the layer at `fewest` to `most` channels per segment."""
        times = self.layer.loc[self.layer["channels_per_segment"].between(fewest, most), "times"]
        return float(times.min()), float(times.max())

    @property
    def slow(self) -> pd.DataFrame:
        """Measurements of the layer with equal segments that are below half of the roofline."""
        return self.layer[(self.layer["channels_per_segment"] % 1 == 0) & (self.layer["percent"] < 50)]

    @property
    def slow_widths(self) -> list[int]:
        """Channels per segment of these measurements."""
        return sorted({int(width) for width in self.slow["channels_per_segment"]})

    @property
    def widest(self) -> float:
        """Most channels per segment that the kernels of this package compute."""
        return float(self.layer.loc[self.layer["lowering"] == "compiled", "channels_per_segment"].max())

    def step(self, where: str, loop: str = "default loop") -> float:
        """Speedup of a training step over a loop."""
        return float(self.found("train")[f"{where}: speedup over the {loop}"])

    @property
    def slowest_step(self) -> tuple[str, float]:
        """The configuration with the lowest speedup over the best tuned loop, and that speedup."""
        suffix = ": speedup over the best tuned loop"
        steps = {name.removesuffix(suffix): x for name, x in self.found("train").items() if name.endswith(suffix)}
        where = min(steps, key=lambda name: steps[name])
        return where, float(steps[where])

"""Benchmarks in results/bench: their tables, findings and machine."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from spectrum.bench import engine, models, op, sweep, train

FOLDER = Path(__file__).parents[1] / "bench"
BENCHES = {"op": op, "train": train, "sweep": sweep, "models": models, "engine": engine}


class Benches:
    """All benchmarks, by their names in `spectrum bench`."""

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
        rows = self.rows("op")
        best = rows[rows["way"] != op.OURS].groupby(["shape", "segments"])["ms"].min().rename("best")
        ours = rows[rows["way"] == op.OURS].join(best, on=["shape", "segments"])
        return ours.assign(times=ours["best"] / ours["ms"])

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

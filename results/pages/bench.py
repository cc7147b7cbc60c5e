"""The benches of results/bench: their tables, what follows from them, and the machine."""

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
    """All of them, by the names that `spectrum bench` gives them."""

    def rows(self, name: str) -> pd.DataFrame:
        """The measurements of one."""
        return pd.read_csv(FOLDER / f"{name}.csv")

    def table(self, name: str) -> str:
        """The measurements of one as Markdown."""
        return str(BENCHES[name].as_markdown(self.rows(name)))

    def found(self, name: str) -> dict[str, Any]:
        """What follows from the measurements of one."""
        return dict(BENCHES[name].findings(self.rows(name)))

    @property
    def machine(self) -> dict[str, Any]:
        """The machine and the versions. Raises ValueError where the benches ran on several."""
        said = [json.loads((FOLDER / f"{name}.machine.json").read_text()) for name in BENCHES]
        names = ("processor", "cores", "capability", "torch", "compiler", "threads")
        (one,) = {tuple(record[name] for name in names) for record in said}
        return dict(zip(names, one, strict=True))

    @cached_property
    def layer(self) -> pd.DataFrame:
        """The layer here, one row per input and number of segments, with `times`: how fast next to the best other."""
        rows = self.rows("op")
        best = rows[rows["way"] != op.OURS].groupby(["shape", "segments"])["ms"].min().rename("best")
        ours = rows[rows["way"] == op.OURS].join(best, on=["shape", "segments"])
        return ours.assign(times=ours["best"] / ours["ms"])

    def times(self, fewest: int, most: int) -> tuple[float, float]:
        """Lowest and highest relative speed of the layer at numbers of channels per segment from fewest to most."""
        times = self.layer.loc[self.layer["channels_per_segment"].between(fewest, most), "times"]
        return float(times.min()), float(times.max())

    @property
    def slow(self) -> pd.DataFrame:
        """Measurements of the layer with equal segments that lie below half of the roofline."""
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
        """How many times as fast as a loop a training step is."""
        return float(self.found("train")[f"{where}: speedup over the {loop}"])

    @property
    def slowest_step(self) -> tuple[str, float]:
        """The configuration whose step gains least next to the best tuned loop, and how many times as fast it is."""
        suffix = ": speedup over the best tuned loop"
        steps = {name.removesuffix(suffix): x for name, x in self.found("train").items() if name.endswith(suffix)}
        where = min(steps, key=lambda name: steps[name])
        return where, float(steps[where])

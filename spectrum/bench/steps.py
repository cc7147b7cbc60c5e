"""A training step of every network of a study: with torch's own convolutions in either layout, and as studies train.

    default loop     NCHW, eager, DataLoader
    channels_last    eager, batches as `spectrum run` makes them, torch's own operations
    spectrum         what `spectrum run` does

Each way of a network runs in a process of its own, and the three take turns. Images are random, in the shape of the
study's: no time here depends on what they show. The accuracies that such a step leads to are in the study's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectrum.bench.rounds import spread
from spectrum.bench.train import DEFAULT, OURS, TUNED, Workers
from spectrum.study.point import Point, SpecError, digest
from spectrum.study.store import read_plan

LAYOUT = TUNED[0]
WAYS = (DEFAULT, LAYOUT, OURS)


def measure(
    folder: Path,
    ways: Sequence[str] = WAYS,
    *,
    threads: int = 2,
    rounds: int = 7,
    steps: int = 5,
    on_row: Callable[[str], None] = lambda said: None,
) -> pd.DataFrame:
    """One row a network of a study and a way to train it, once for each budget that it serves: milliseconds a step.

    Args:
        folder: with the plan.json of a study, all of whose points are planned.
        ways: of WAYS.
        threads: that torch may use in each process; one process works at a time.
        rounds: in which each way takes `steps` steps.

    Columns: match, those that vary in the study, params, macs, way, ms with quartiles, rounds. Raises SpecError for a
    folder without a plan, or whose plan has no points yet.
    """
    from spectrum.study.images import images_of

    plan = read_plan(folder)
    if plan is None or not plan["points"]:
        raise SpecError(f"--study {folder}: has no plan.json with points; run the study first")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    rows = []
    for said, entry in _networks(plan).items():
        point = Point(**entry["point"])
        network = digest({"point": _without_seed(point), "segments": list(entry["realised_segments"])})
        if network not in measured:
            shape = images_of(point).shape
            random = point.model_copy(update={"train_images": None})
            measured[network] = _times(random, ways, threads, rounds, steps, shape)
        for way, times in measured[network].items():
            rows.append({**dict(said), "params": entry["params"], "macs": entry["macs"], "way": way, **times})
        took = " · ".join(f"{way} {times['ms']:.1f}" for way, times in measured[network].items())
        on_row(f"{', '.join(f'{name} {value}' for name, value in said)}: ms a step: {took}")
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """How many times as fast each other way's step is with ours, at its least, in the middle and at its most."""
    wide = table.pivot_table(index=_names(table), columns="way", values="ms", dropna=False).dropna()
    return {
        f"times {way}, least, median, most": [float(q) for q in (wide[way] / wide[OURS]).quantile([0, 0.5, 1])]
        for way in wide
        if way != OURS
    }


def _names(table: pd.DataFrame) -> list[str]:
    return list(table.columns[: list(table.columns).index("params")])


def _networks(plan: Mapping[str, Any]) -> dict[tuple[tuple[str, Any], ...], Mapping[str, Any]]:
    """An entry for every combination of what varies, the seed left out."""
    found: dict[tuple[tuple[str, Any], ...], Mapping[str, Any]] = {}
    names = [name for name in plan["varied"] if name != "match"]
    for entry in plan["points"]:
        point = Point(**entry["point"])
        said = {"match": entry.get("match", "none"), **{name: _plain(getattr(point, name)) for name in names}}
        found.setdefault(tuple(said.items()), entry)
    return found


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _without_seed(point: Point) -> dict[str, Any]:
    return point.model_dump(mode="json", exclude={"seed", "lr", "weight_decay", "segments", "segment_width"})


def _times(
    point: Point, ways: Sequence[str], threads: int, rounds: int, steps: int, shape: tuple[int, int, int]
) -> dict[str, dict[str, float]]:
    with Workers(point, ways, threads, shape) as workers:
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                taken[way].append(workers.take(way, steps)[0])
    return {way: spread(seconds) for way, seconds in taken.items()}

"""Benchmark a training step of every network of a study, with torch's kernels and with those of this package.

    default loop      NCHW, eager, DataLoader: what most scripts have
    torch's kernels   as in `spectrum run` with SPECTRUM_BACKEND=native: channels_last, our loop and data
    spectrum          as in `spectrum run`

The first two differ in layout and loop, the last two only in kernels and fused normalisation. Each implementation of a
network runs in its own process, and the three take turns. The whole list of networks is timed twice, one network
after the other; the difference between the two passes shows how large the measurement error is. Images are random, in
the shape of the study's, since their content does not change the times. Accuracies are in the study's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectrum._records import SpecError
from spectrum.bench.rounds import spread
from spectrum.bench.train import DEFAULT, NATIVE, OURS, Workers
from spectrum.design.hashes import digest
from spectrum.design.plan import Plan, PlannedRun
from spectrum.design.run import RunConfig
from spectrum.models import stage_widths
from spectrum.study.store import find_plan

WAYS = (DEFAULT, NATIVE, OURS)


def measure(
    folder: Path,
    ways: Sequence[str] = WAYS,
    *,
    threads: int = 2,
    passes: int = 2,
    rounds: int = 4,
    steps: int = 5,
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per network of a study, implementation and budget: milliseconds per step.

    Args:
        folder: folder with the plan.json of a study, whose runs are all planned.
        ways: implementations, from WAYS.
        threads: threads that torch may use in each process; one process works at a time.
        passes: how often the list of networks is timed.
        rounds: rounds per pass; in each, every implementation takes `steps` steps.

    Columns: match, those that vary in the study, params, macs, way, ms with quartiles, rounds, and `apart`: the slowest
    pass's median divided by the fastest's. Raises SpecError for a folder without a plan, or with a plan without runs.
    """
    from spectrum.data.images import images_of

    plan = find_plan(folder)
    if plan is None or not plan.runs:
        raise SpecError(
            f"--study {folder}: no plan.json with runs in this folder; pass a study's results, such as "
            "results/quickstart, and run the study first"
        )
    wanted = _networks(plan)
    runs, networks = {}, {}
    for settings, run in wanted.items():
        config = RunConfig(**run.options)
        shape = images_of(config).shape
        widths = stage_widths(config.model, config.network_options(shape[0], 10, shape[1]))
        networks[settings] = digest({"widths": widths, "point": _rest(config), "segments": list(run.realised_segments)})
        runs[networks[settings]] = config.model_copy(update={"train_images": None}), shape
    taken: dict[str, list[dict[str, list[float]]]] = {network: [] for network in runs}
    for number in range(passes):
        for network, (config, shape) in runs.items():
            times = _times(config, ways, threads, rounds, steps, shape)
            taken[network].append(times)
            took = " · ".join(f"{way} {1e3 * pd.Series(seconds).median():.1f}" for way, seconds in times.items())
            on_row(f"{number + 1}/{passes} {config.segments} segments, widths {config.widths}: ms per step: {took}")
    rows = []
    for settings, run in wanted.items():
        for way in ways:
            each = [times[way] for times in taken[networks[settings]]]
            medians = [pd.Series(seconds).median() for seconds in each]
            measured = {
                **spread([second for seconds in each for second in seconds]),
                "apart": max(medians) / min(medians),
            }
            rows.append({**dict(settings), "params": run.params, "macs": run.macs, "way": way, **measured})
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Speedup over each other implementation: lowest, median and highest over the networks."""
    wide = table.pivot_table(index=_names(table), columns="way", values="ms", dropna=False).dropna()
    found: dict[str, Any] = {
        f"speedup vs {way}: lowest, median, highest": [float(q) for q in (wide[way] / wide[OURS]).quantile([0, 0.5, 1])]
        for way in wide
        if way != OURS
    }
    return {**found, "ratio of two passes: median, highest": [float(q) for q in table["apart"].quantile([0.5, 1])]}


def _names(table: pd.DataFrame) -> list[str]:
    return list(table.columns[: list(table.columns).index("params")])


def _networks(plan: Plan) -> dict[tuple[tuple[str, Any], ...], PlannedRun]:
    """One run for every combination of varied values, except the seed."""
    found: dict[tuple[tuple[str, Any], ...], PlannedRun] = {}
    names = [name for name in plan.varied if name != "match"]
    for run in plan.runs:
        config = RunConfig(**run.options)
        settings = {"match": run.key[1], **{name: _plain(getattr(config, name)) for name in names}}
        found.setdefault(tuple(settings.items()), run)
    return found


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _rest(run: RunConfig) -> dict[str, Any]:
    """Other options on which the time of a step depends."""
    told = {"seed", "lr", "weight_decay", "segments", "segment_width", "width", "widths", "train_images"}
    return run.model_dump(mode="json", exclude=told)


def _times(
    run: RunConfig, ways: Sequence[str], threads: int, rounds: int, steps: int, shape: tuple[int, int, int]
) -> dict[str, list[float]]:
    with Workers(run, ways, threads, shape) as workers:
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                taken[way].append(workers.take(way, steps)[0])
    return taken

"""A training step of every network of a study: with torch's own kernels, in either layout, and with this package's.

    default loop      NCHW, eager, DataLoader: what most scripts have
    torch's kernels   what `spectrum run` does with SPECTRUM_BACKEND=native: channels_last, its own loop and data
    spectrum          what `spectrum run` does

So the first two differ in layout and loop, the last two in kernels and joined normalisation alone. Each way of a
network runs in a process of its own, and the three take turns. The whole list of networks is timed twice, one network
after the other: how far the two are apart says what differences between networks are worth. Images are random, in the
shape of the study's: no time here depends on what they show. The accuracies that such steps lead to are in its rows.
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
    """One row a network of a study and a way to train it, once for each budget that it serves: milliseconds a step.

    Args:
        folder: with the plan.json of a study, all of whose points are planned.
        ways: of WAYS.
        threads: that torch may use in each process; one process works at a time.
        passes: how often the list of networks is gone through.
        rounds: of a pass, in which each way takes `steps` steps.

    Columns: match, those that vary in the study, params, macs, way, ms with quartiles, rounds, and `apart`: the slowest
    pass's median over the fastest's. Raises SpecError for a folder without a plan, or whose plan has no points yet.
    """
    from spectrum.data.images import images_of

    plan = find_plan(folder)
    if plan is None or not plan.runs:
        raise SpecError(
            f"--study {folder}: is no folder with a plan.json that has points; name a study's results, such as "
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
            on_row(f"{number + 1}/{passes} {config.segments} segments, widths {config.widths}: ms a step: {took}")
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
    """How many times as fast each other way's step is with ours, at its least, in the middle and at its most."""
    wide = table.pivot_table(index=_names(table), columns="way", values="ms", dropna=False).dropna()
    found: dict[str, Any] = {
        f"times {way}, least, median, most": [float(q) for q in (wide[way] / wide[OURS]).quantile([0, 0.5, 1])]
        for way in wide
        if way != OURS
    }
    return {**found, "two passes apart, median, most": [float(q) for q in table["apart"].quantile([0.5, 1])]}


def _names(table: pd.DataFrame) -> list[str]:
    return list(table.columns[: list(table.columns).index("params")])


def _networks(plan: Plan) -> dict[tuple[tuple[str, Any], ...], PlannedRun]:
    """A run for every combination of what varies, the seed left out."""
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
    """What else a step hangs on."""
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

"""Learning-rate sweep, which may also tune weight decay. Every configuration is tuned alike, on validation images.

Every network gets the whole grid with the same seeds, which no final run uses; the best mean validation accuracy
decides. Pure functions of planned runs and rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from spectrum.design.plan import Grid, PlannedChoice
from spectrum.design.run import RunConfig
from spectrum.study.planning import CostedRun


@dataclass(frozen=True)
class Choice:
    """Values that the sweep chose for one network."""

    id: str  # id of the run with seed 0 and the study's own learning rate
    run: RunConfig  # the run of that id
    match: str  # its budget, the first if several share it
    values: Mapping[str, float]  # chosen value by field
    val_accuracy: float  # mean over the sweep's seeds, from 0 to 1
    low_edges: tuple[str, ...]  # fields whose choice is the smallest value of the grid
    high_edges: tuple[str, ...]  # fields whose choice is the largest value of the grid
    searched: tuple[str, ...] = ()  # ids of the sweep's runs at these values

    def record(self) -> PlannedChoice:
        """Entry of plan.json for this choice."""
        return PlannedChoice(
            id=self.id,
            stored=self.run.model_dump(mode="json", exclude_defaults=True),
            match=self.match,
            values=dict(self.values),
            val_accuracy=self.val_accuracy,
            edges=(*self.low_edges, *self.high_edges),
            searched=self.searched,
        )


def sweep(planned: Sequence[CostedRun], grid: Grid, seeds: Sequence[int]) -> list[CostedRun]:
    """Runs of the sweep. Seeds are outermost, so that an interrupted sweep has covered the whole grid."""
    networks: dict[str, CostedRun] = {}
    for one in planned:
        networks.setdefault(_unseeded(one).id, one)
    return [
        replace(
            one,
            run=_unseeded(one).model_copy(update={**values, "seed": seed, "scored_on": "validation"}),
            same_as=None,
        )
        for seed in seeds
        for values in _values(grid)
        for one in networks.values()
    ]


def choose(planned: Sequence[CostedRun], grid: Grid, rows: Mapping[str, Mapping[str, Any]]) -> list[Choice]:
    """Choose the best values of every network; on a tie, the smaller.

    Args:
        planned: result of `sweep` for this grid.
        grid: values of the sweep.
        rows: finished rows by id, of all of `planned`. A diverged run counts with the accuracy of chance.
    """
    found: dict[str, dict[tuple[float, ...], list[CostedRun]]] = {}
    networks: dict[str, RunConfig] = {}
    for one in planned:
        own: dict[str, Any] = {name: getattr(one.asked, name) for name in (*grid, "scored_on")}
        network = one.run.model_copy(update={**own, "seed": 0})
        networks[network.id] = network
        values = tuple(getattr(one.run, name) for name in grid)
        found.setdefault(network.id, {}).setdefault(values, []).append(one)
    choices = []
    for id, by_values in found.items():
        scores = {values: fmean(rows[one.run.id]["val_accuracy"] for one in runs) for values, runs in by_values.items()}
        best = min(scores, key=lambda values: (-scores[values], values))
        chosen = dict(zip(grid, best, strict=True))
        tuned = {name: values for name, values in grid.items() if len(values) > 1}
        choices.append(
            Choice(
                id=id,
                run=networks[id],
                match=by_values[best][0].match,
                values=chosen,
                val_accuracy=scores[best],
                low_edges=tuple(name for name, values in tuned.items() if chosen[name] == values[0]),
                high_edges=tuple(name for name, values in tuned.items() if chosen[name] == values[-1]),
                searched=tuple(one.run.id for one in by_values[best]),
            )
        )
    return choices


def confirmed(planned: Sequence[CostedRun], choices: Sequence[Choice]) -> list[CostedRun]:
    """The study's own runs, each with the values chosen for its network."""
    values = {choice.id: choice.values for choice in choices}
    return [
        replace(one, run=one.run.model_copy(update=dict(values[_unseeded(one).id])), same_as=None) for one in planned
    ]


def extended(grid: Grid, choices: Sequence[Choice], original: Grid, most: int) -> dict[str, tuple[float, ...]]:
    """Extend the grid by one value beyond each edge at which a network is best, in the ratio of the last two values.

    Args:
        grid: the current grid.
        choices: choices from it.
        original: grid of the study file.
        most: largest number of values added beyond either edge.
    """
    wider = dict(grid)
    for name, values in grid.items():
        if len(values) < 2:
            continue
        below = sum(value < original[name][0] for value in values)
        above = sum(value > original[name][-1] for value in values)
        if below < most and any(name in choice.low_edges for choice in choices):
            wider[name] = (_rounded(values[0] ** 2 / values[1]), *wider[name])
        if above < most and any(name in choice.high_edges for choice in choices):
            wider[name] = (*wider[name], _rounded(values[-1] ** 2 / values[-2]))
    return wider


def _unseeded(planned: CostedRun) -> RunConfig:
    return planned.run.model_copy(update={"seed": 0})


def _values(grid: Grid) -> list[dict[str, float]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")

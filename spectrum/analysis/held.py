"""What the runs of a plan have in common, and in what they differ beside what the study varies.

Both are told from the runs as they were planned, every field filled in, and not from the study's base: a model, a
recipe or a budget may have put other values into all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectrum.design.options import distinct, without_effect

Runs = Sequence[Mapping[str, Any]]


def held_equal(runs: Runs) -> dict[str, Any]:
    """Fields that have one value in all runs, the seed left out; none that has no effect in any of them.

    Args:
        runs: the fields of each. One that some run does not tell is left out.
    """
    idle = _idle(runs)
    if any(run.get("widths") is not None for run in runs):
        idle.add("width")  # which the networks with widths of their own do not have
    return {
        name: values[0]
        for name, values in _told(runs)
        if name not in ("seed", *idle) and all(value == values[0] for value in values)
    }


def differing(runs: Runs) -> dict[str, list[Any]]:
    """Fields that have several values among the runs, and those values, the seed left out."""
    found = {name: distinct(values) for name, values in _told(runs) if name != "seed"}
    return {name: values for name, values in found.items() if len(values) > 1}


def _told(runs: Runs) -> list[tuple[str, list[Any]]]:
    """Fields that every run tells, and the value that each has."""
    names = [name for name in (runs[0] if runs else ()) if all(name in run for run in runs)]
    return [(name, [run[name] for run in runs]) for name in names]


def _idle(runs: Runs) -> set[str]:
    """Fields that have an effect in no run."""
    return set.intersection(*(set(without_effect(run)) for run in runs)) if runs else set()

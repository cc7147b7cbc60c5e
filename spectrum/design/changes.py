"""A run made from another run: which options were named, and what follows when some of them change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from spectrum._records import SpecError, explain
from spectrum.conv.segments import PER_CHANNEL
from spectrum.design.run import RunConfig
from spectrum.models.position import PLACES


def named(run: RunConfig) -> dict[str, Any]:
    """The fields of a run that were named, and their values; the others follow from these."""
    return {name: getattr(run, name) for name in RunConfig.model_fields if name in run.model_fields_set}


def merged(base: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A run with some of its fields changed. What the base names stays; what it leaves open is filled anew.

    Raises SpecError, which says the changes, where there is no such run.
    """
    return from_named(named(base), changes)


def from_named(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """A run of the fields that are named, and of changes to them. Raises SpecError as `merged` does."""
    kept = dict(fields)
    if changes.keys() & set(PLACES):  # the run has another number of segments
        gone: Sequence[str] = (*PLACES, "segment_shares")
    else:
        gone = PLACES if changes.get("segment_shares", "even") != "even" else ()
    for name in gone:
        kept.pop(name, None)
    try:
        return RunConfig.model_validate(kept | dict(changes))
    except ValidationError as error:
        settings = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
        raise SpecError(
            "\n".join(f"{line} (at {settings})" for line in explain(error, RunConfig).splitlines())
        ) from None


def all_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a run of which plan.json keeps those that differ from their defaults.

    What is at its default is left out there, even if its architecture or recipe has another default.
    """
    fields = {name: field.default for name, field in RunConfig.model_fields.items()} | dict(stored)
    return fields | ({"segments": PER_CHANNEL} if all(fields[name] is None for name in PLACES) else {})


def choices(field: str) -> tuple[str, ...]:
    """The values that a field of a RunConfig with fixed choices can take."""
    kinds = get_args(RunConfig.model_fields[field].annotation)
    return tuple(value for kind in kinds for value in get_args(kind) or (kind,) if isinstance(value, str))

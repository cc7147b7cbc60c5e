"""Derive a run from another run: which options were set explicitly, and what follows when some of them change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from spectrum._records import SpecError, explain
from spectrum.conv.segments import PER_CHANNEL
from spectrum.design.run import RunConfig
from spectrum.models.position import PLACES


def named(run: RunConfig) -> dict[str, Any]:
    """Fields of a run that were set explicitly, with their values; the others follow from these."""
    return {name: getattr(run, name) for name in RunConfig.model_fields if name in run.model_fields_set}


def merged(base: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Change some fields of a run. Fields that the base sets stay; fields that it leaves open get their defaults anew.

    Raises SpecError, which names the changes, if the result is no valid run.
    """
    return from_named(named(base), changes)


def from_named(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """Make a run from explicitly set fields and changes to them. Raises SpecError as `merged` does."""
    kept = dict(fields)
    if changes.keys() & set(PLACES):  # the change sets the segments in another way
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
    """Every field of a run, from the fields in plan.json.

    plan.json leaves out fields at RunConfig's own defaults, even if the architecture or recipe has other defaults.
    """
    fields = {name: field.default for name, field in RunConfig.model_fields.items()} | dict(stored)
    return fields | ({"segments": PER_CHANNEL} if all(fields[name] is None for name in PLACES) else {})


def choices(field: str) -> tuple[str, ...]:
    """Values that a field with fixed choices can take."""
    kinds = get_args(RunConfig.model_fields[field].annotation)
    return tuple(value for kind in kinds for value in get_args(kind) or (kind,) if isinstance(value, str))

"""Check a study's axes, cases, budget, sweep and comparisons; every fault names a remedy.

Pure functions of a study's record, whose types and bounds pydantic has checked before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from spectrum._records import SpecError, as_tuple, explain_one, unknown_key
from spectrum._registry import nearest
from spectrum.design.run import GAUSSIAN, MOST_TEACHER_SEGMENTS, RunConfig
from spectrum.models.position import PLACES

if TYPE_CHECKING:
    from spectrum.design.study_file import Contrast, Match, Study, Wanted


MOST_LISTED = 20  # values that a message writes out


def as_values(values: object) -> object:
    """Values of an axis as a tuple, if they are a list, a tuple or a range."""
    return tuple(values) if isinstance(values, list | tuple | range) else values


def axis_faults(axes: Mapping[str, object]) -> list[str]:
    """Faults of single axes: one line per fault."""
    return [f"axes.{axis}: {fault}" for axis, values in axes.items() for fault in _faults_of(axis, values)]


def _faults_of(axis: str, values: object) -> list[str]:
    if axis not in RunConfig.model_fields:
        return [unknown_key(axis, list(RunConfig.model_fields))]
    if not isinstance(values, tuple):
        if isinstance(values, str) and (ends := re.fullmatch(r"\s*(\d+)\s*(?:-|–|:|\.\.+|…|to)\s*(\d+)\s*", values)):
            first, last = map(int, ends.groups())
            listed = [*range(first, last + 1)] if 0 <= last - first < MOST_LISTED else [first, first + 1, "…"]
            listed_words = ", ".join(map(str, listed))
            return [f"expected a list of values, each written out, as in {axis} = [{listed_words}] (got {values!r})"]
        if isinstance(values, bool | int | float | str):
            return [f"expected a list of values, as in {axis} = [{json.dumps(values)}]"]
        return [f"expected a list of values, in their order (got {values!r})"]
    if not values:
        return ["empty; give at least one value or leave the axis out"]
    known: list[object] = []
    twice: list[str] = []
    faults: list[str] = []
    for value in values:
        try:
            RunConfig.__pydantic_validator__.validate_assignment(RunConfig.model_construct(), axis, as_tuple(value))
        except ValidationError as error:
            own = [fault for fault in error.errors() if fault["loc"][:1] == (axis,)]
            faults += [explain_one(fault, RunConfig) for fault in own[:1]]
            if own:
                continue  # True == 1, but True is not a valid number
        if as_tuple(value) in known:
            twice.append(f"{value!r} is listed twice")
        known.append(as_tuple(value))
    return [*twice[:1], *faults]


def case_faults(cases: Sequence[Mapping[str, Any]], axes: Mapping[str, object]) -> list[str]:
    """Invalid keys of cases: one line per fault."""
    faults = []
    for number, case in enumerate(cases):
        for key in case:
            if key not in RunConfig.model_fields:
                faults.append(f"cases.{number}.{key}: {unknown_key(key, list(RunConfig.model_fields))}")
            elif key in axes:
                faults.append(f"cases.{number}.{key}: is an axis too, which would override it; keep one of the two")
    return faults


def _base_faults(study: Study) -> list[str]:
    """Options of the base that set the segments although an axis sets them for every run: one line per fault."""
    axes = [axis for axis in PLACES if axis in study.axes]
    if not axes or (study.budget.match != ("none",) and not set(PLACES) & study.budget.reference.keys()):
        return []  # the budget's reference uses the base's value
    settings = {name: getattr(study.base, name) for name in ("segment_width", "stage_segments", "segment_shares")}
    return [
        f"base.{name}: has no effect, since axes.{axes[0]} sets the segments of every run; keep one of the two"
        for name, value in settings.items()
        if name not in study.axes and value not in (None, "even")
    ]


def checked(study: Study) -> Study:
    """Check a study and return it. Fields are checked one axis at a time, then all together."""
    faults = [*axis_faults(study.axes), *case_faults(study.cases, study.axes), *_base_faults(study)]
    if faults:
        raise SpecError("\n".join(faults))
    runs = study.runs()
    if len({run.id for run in runs}) < len(runs):
        raise SpecError("cases: two of them are the same run; remove one")
    _check_teachers(runs)
    _check_budget(study, runs)
    _check_tuning(study, runs)
    _check_names(study.contrasts)
    for number, contrast in enumerate(study.contrasts):
        _check_contrast(study, runs, contrast, f"contrasts.{number}")
    _check_not_twice(study)
    return study


def _check_teachers(runs: Sequence[RunConfig]) -> None:
    for run in runs:
        asked = run.teacher_segments
        if isinstance(asked, int) and asked > MOST_TEACHER_SEGMENTS:
            most = MOST_TEACHER_SEGMENTS
            raise SpecError(
                f'teacher_segments: {asked} is more than the {most} channels; try 1 … {most} or "per_channel"'
            )
        if asked is not None:
            continue
        for field in ("label_noise", "teacher_seed"):
            if getattr(run, field):
                raise SpecError(f"{field}: has no effect without a teacher; set teacher_segments")
        if run.dataset == GAUSSIAN:
            raise SpecError(f"dataset = {GAUSSIAN!r}: has no labels of its own; set teacher_segments")


def _check_budget(study: Study, runs: Sequence[RunConfig]) -> None:
    if study.budget.match == ("none",):
        return
    if "widths" in study.varied():
        raise SpecError(
            "widths: a budget solves for them, so they cannot vary; vary width, or give their ratios in [base]"
        )
    if "width" in study.varied() and {"width", "widths"} & study.budget.reference.keys():
        raise SpecError(
            "budget.reference: sets a width, which would give every width the same budget and network; leave it out"
        )
    try:
        study.budget.reference_of(study.base, runs[0])
    except SpecError as error:
        raise SpecError("\n".join(f"budget.reference: {line}" for line in str(error).splitlines())) from None


def _check_tuning(study: Study, runs: Sequence[RunConfig]) -> None:
    if study.tune is None:
        return
    for name in study.tune.grid():
        if name in study.varied():
            raise SpecError(f"tune.{name}: varies in this study; keep the axis or [tune]")
    shared = {run.seed for run in runs} & set(study.tune.seeds)
    if shared:
        raise SpecError(f"tune.seeds: {min(shared)} is a seed of the final runs too; try {max(shared) + 1000}")


def _check_names(contrasts: Sequence[Contrast]) -> None:
    """Check that names of comparisons are unique and not empty, where any white space counts as one blank."""
    names = [" ".join(contrast.name.split()) for contrast in contrasts]
    for number, name in enumerate(names):
        if name in names[:number]:
            first = names.index(name)
            raise SpecError(f"contrasts.{number}.name: {name!r} is the name of contrasts.{first} too; rename one")
        if not name:
            raise SpecError(f"contrasts.{number}.name: is empty; say what is compared")


def _check_not_twice(study: Study) -> None:
    """Check that no comparison occurs twice under any name, since all share one correction for multiple tests."""
    wanted = study.wanted() if len(study.contrasts) > 1 else []
    known: dict[object, int] = {}
    for number, contrast in enumerate(study.contrasts):
        first = known.setdefault(_compared(wanted, contrast), number)
        if first != number:
            raise SpecError(
                f"contrasts.{number}: compares the same as contrasts.{first} ({study.contrasts[first].name!r}); "
                "keep one of the two"
            )


def _compared(wanted: Sequence[Wanted], contrast: Contrast) -> object:
    """The runs of both sides, in either order; for an interaction, the added runs and the subtracted runs."""

    def places(side: Mapping[str, Any]) -> frozenset[tuple[str, Match]]:
        return frozenset((one.run.id, one.match) for one in select(wanted, side))

    sides = [places(side) for side in contrast.sides()]
    if not isinstance(contrast.across, tuple):
        return contrast.across, frozenset(sides)
    first, second, third, fourth = sides  # (first − second) − (third − fourth)
    return frozenset((frozenset((first, fourth)), frozenset((second, third))))


def _check_contrast(study: Study, runs: Sequence[RunConfig], contrast: Contrast, where: str) -> None:
    for number, side in enumerate(contrast.between):
        _check_side(study, runs, side, f"{where}.between.{number}", contrast.name)
    first, second = contrast.between
    if first == second or not first or not second:
        raise SpecError(f"{where}.between: give two different sides")
    _check_across(study, runs, contrast, where)


def _check_across(study: Study, runs: Sequence[RunConfig], contrast: Contrast, where: str) -> None:
    """Check the settings across which an interaction is compared."""
    compared = {name for side in contrast.between for name in side}
    if contrast.across == "segments":
        if compared & set(PLACES) or not set(PLACES) & set(study.varied()):
            raise SpecError(f"{where}.across: segments must vary in the study, and not be what is compared")
        return
    for number, at in enumerate(contrast.across or ()):
        _check_side(study, runs, at, f"{where}.across.{number}", contrast.name)
        if compared & at.keys():
            raise SpecError(f"{where}.across.{number}.{min(compared & at.keys())}: is in `between` too; name another")
    if contrast.across is not None and (contrast.across[0] == contrast.across[1] or not all(contrast.across)):
        raise SpecError(f"{where}.across: give two different settings")
    for side in contrast.sides():
        if not select(study.wanted(), side):
            settings = ", ".join(f"{name} = {value!r}" for name, value in side.items())
            raise SpecError(f"{where}.across: no run has all of {settings}")


def _check_side(study: Study, runs: Sequence[RunConfig], side: Mapping[str, Any], where: str, contrast: str) -> None:
    varied = study.varied()
    for name, value in side.items():
        place = f"{where}.{name}"
        if name not in RunConfig.model_fields and name != "match":
            raise SpecError(f"{place}: {unknown_key(name, varied)}")
        if name not in varied:
            raise SpecError(f"{place}: does not vary in this study; what varies is {', '.join(varied) or 'nothing'}")
        there = study.budget.match if name == "match" else dict.fromkeys(getattr(p, name) for p in runs)
        if not any(as_tuple(value) == known for known in there):
            raise SpecError(f'contrast "{contrast}": {_not_trained(study, name, value, list(there))}')
    if not select(study.wanted(), side):
        raise SpecError(f"{where}: no run has all of these")


def _not_trained(study: Study, name: str, value: object, there: Sequence[object]) -> str:
    """Explain why a side of a comparison has no runs, and where to add its value."""
    if isinstance(value, str) and (meant := _meant(value, there)) is not None:
        return f"compares {name} = {json.dumps(value)}, which no run has; {meant}"
    *most, last = map(json.dumps, there)
    trained = f"{', '.join(most)} and {last}" if most else last
    home = "[budget] match" if name == "match" else f"{'[axes]' if name in study.axes else '[[cases]]'} {name}"
    given = json.dumps(value, default=str)
    return (
        f"compares {name} = {given}, but the study trains only {trained}; add {given} to {home}, "
        "or compare one of those"
    )


def _meant(value: str, there: Sequence[object]) -> str | None:
    """What a text on a side of a comparison was likely meant to be: a number in quotes, or another spelling."""
    for known in there:
        if not isinstance(known, str) and json.dumps(known) == value.strip().lower():
            return f"write {json.dumps(known)} without quotes"
    near = nearest(value, [known for known in there if isinstance(known, str)])
    return None if near is None else f"did you mean {json.dumps(near)}?"


def select(wanted: Sequence[Wanted], side: Mapping[str, Any]) -> list[Wanted]:
    """Runs that have all values of one side of a comparison."""
    return [
        one
        for one in wanted
        if all(
            (one.match if name == "match" else getattr(one.run, name)) == as_tuple(value)
            for name, value in side.items()
        )
    ]

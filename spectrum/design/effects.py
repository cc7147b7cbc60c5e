"""Find options without effect: those that the schedule, optimiser, labels or architecture of every run ignores, and
those of the base that an axis or every case replaces.

Needs no torch. Options whose effect only the built networks show are checked in study/equal_networks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from spectrum._records import SpecError
from spectrum.design.keys import NETWORK
from spectrum.design.options import without_effect
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study
from spectrum.models.position import PLACES

OFF = (None, 0, "none", "even")  # values that switch an option off, and are therefore always allowed


def check_effects(study: Study) -> None:
    """Raise SpecError for options that a study sets and no run uses: one line per fault.

    An option of the base is used if at least one run takes it from the base and has an effect of it; an option of a
    case, if at least one run of that case has.
    """
    by_case = [_runs_of(study, number) for number in range(len(study.cases) or 1)]
    faults = [fault for field in RunConfig.model_fields for fault in _faults_of(study, field, by_case)]
    if faults:
        raise SpecError("\n".join(faults))


def _faults_of(study: Study, field: str, by_case: list[list[RunConfig]]) -> Iterator[str]:
    cases = list(zip(study.cases or ({},), by_case, strict=True))
    if field in study.base.model_fields_set:
        yield from _faults_of_base(study, field, cases)
    if field in study.axes:
        yield from _fault(f"axes.{field}", field, [run for runs in by_case for run in runs])
        return
    for number, (case, runs) in enumerate(cases):
        if field in case and case[field] not in OFF:
            yield from _fault(f"cases.{number}.{field}", field, runs)


def _faults_of_base(
    study: Study, field: str, cases: Sequence[tuple[Mapping[str, Any], list[RunConfig]]]
) -> Iterator[str]:
    place = field if field in study.overrides else f"base.{field}"
    by = _replaced_by(study, field)
    if by is not None:
        yield f"{place}: has no effect, since {by} replaces it in every run; keep one of the two"
    if field in study.axes or getattr(study.base, field) in OFF:
        return
    taken = [run for case, runs in cases if field not in case for run in runs]
    yield from _fault(place, field, [run for run in taken if field in run.model_fields_set])
    if study.tune is not None and field in study.tune.grid():
        yield f"{place}: [tune] replaces it by the values of the sweep; leave it out"


def _replaced_by(study: Study, field: str) -> str | None:
    """What replaces an option of the base in every run: an axis, or all cases. None if some run or budget takes it."""
    same = PLACES if field in PLACES else (field,)  # any of these sets the segments
    if study.budget.match != ("none",) and field in NETWORK and not study.budget.reference.keys() & set(same):
        return None  # the budget's reference takes it from the base
    for name in same:
        if name in study.axes:
            return f"axes.{name}"
    if study.cases and all(case.keys() & set(same) for case in study.cases):
        return "[[cases]]"
    return None


def _runs_of(study: Study, number: int) -> list[RunConfig]:
    """Runs of one case, with one seed."""
    axes = {name: values[:1] if name == "seed" else values for name, values in study.axes.items()}
    return study.model_copy(update={"axes": axes, "cases": study.cases[number : number + 1]}).runs()


def _fault(place: str, field: str, runs: Sequence[RunConfig]) -> Iterable[str]:
    """A line for an option that no run uses; nothing if there are no runs."""
    reasons = [without_effect(dict(run)).get(field) for run in runs]
    if reasons and all(reason is not None for reason in reasons):
        yield f"{place}: {reasons[0]}"

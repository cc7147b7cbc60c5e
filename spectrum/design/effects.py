"""Options that change nothing: those that a schedule, an optimiser, labels or an architecture does not use.

Without torch. What can only be told from the built networks is in study/equal_networks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from spectrum._records import SpecError
from spectrum.design.options import without_effect
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study

OFF = (None, 0, "none", "even")  # values that say that there is nothing, and so are true where a field has no use


def check_effects(study: Study) -> None:
    """Raise SpecError for options that a study sets and no run uses: one line per fault.

    A field of the base has its use where one run that takes it from there has; a field of a case, where one run of
    that case has.
    """
    by_case = [_runs_of(study, number) for number in range(len(study.cases) or 1)]
    faults = [fault for field in RunConfig.model_fields for fault in _faults_of(study, field, by_case)]
    if faults:
        raise SpecError("\n".join(faults))


def _faults_of(study: Study, field: str, by_case: list[list[RunConfig]]) -> Iterator[str]:
    if field in study.axes:
        yield from _fault(f"axes.{field}", field, [run for runs in by_case for run in runs])
        return
    cases = list(zip(study.cases or ({},), by_case, strict=True))
    if field in study.base.model_fields_set and getattr(study.base, field) not in OFF:
        taken = [run for case, runs in cases if field not in case for run in runs]
        place = field if field in study.overrides else f"base.{field}"
        yield from _fault(place, field, [run for run in taken if field in run.model_fields_set])
        if study.tune is not None and field in study.tune.grid():
            yield f"{place}: [tune] tries values of its own; leave it out"
    for number, (case, runs) in enumerate(cases):
        if field in case and case[field] not in OFF:
            yield from _fault(f"cases.{number}.{field}", field, runs)


def _runs_of(study: Study, number: int) -> list[RunConfig]:
    """The runs of one case, under one seed."""
    axes = {name: values[:1] if name == "seed" else values for name, values in study.axes.items()}
    return study.model_copy(update={"axes": axes, "cases": study.cases[number : number + 1]}).runs()


def _fault(place: str, field: str, runs: Sequence[RunConfig]) -> Iterable[str]:
    """One line, where there are runs and none has a use for the field."""
    reasons = [without_effect(dict(run)).get(field) for run in runs]
    if reasons and all(reason is not None for reason in reasons):
        yield f"{place}: {reasons[0]}"

"""Check what a comparison changes: a fair one changes a single factor.

Factors are options in which the two sides differ, and differences that no option names:

    parameters and MACs that no budget matches, or of sides with budgets of different size
    1×1 convolutions that run at other resolutions
    norms and non-linearities that are added or removed
    sides whose runs do not pair

A consequence is listed with its option: batch norms with `norm`, or with `depth`; counts with the budget. An
interaction compares differences. It therefore has two sets of factors: those of each difference, and those of the
settings between which it compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spectrum.design.budgets import BUDGETS, COUNTS, budget_name, count_range, same_counts
from spectrum.design.plan import PlannedContrast
from spectrum.design.run import RunConfig
from spectrum.design.study_checks import select
from spectrum.design.study_file import Contrast, Study
from spectrum.models.position import PLACES, Position
from spectrum.study.planning import CostedRun

WORDS = {**COUNTS, "step_time": "step time"}
CAUSES = {  # differences that no option names, and the options that may cause them
    "batch normalisations": ("norm", "depth", "residual", "model", "widths"),
    "non-linearities": ("activation", "depth", "model", "widths"),
    "pixels at which the 1×1s run": ("depth", "model", "widths"),
}


@dataclass(frozen=True)
class Factor:
    """One thing in which the sides differ."""

    name: str
    first: str
    second: str
    consequences: tuple[str, ...] = ()

    def __str__(self) -> str:
        note = f" ({'; '.join(self.consequences)})" if self.consequences else ""
        return f"{self.name}: {self.first} → {self.second}{note}"


@dataclass(frozen=True)
class Examined:
    """A comparison, and all that it changes."""

    contrast: Contrast
    factors: tuple[Factor, ...]
    across: tuple[Factor, ...] = ()  # of an interaction: differences between its settings
    notes: tuple[str, ...] = ()  # differences that follow from matching something else

    @property
    def confounded(self) -> bool:
        """Whether a difference could not be attributed to one factor."""
        return len(self.factors) > 1 or len(self.across) > 1

    def record(self) -> PlannedContrast:
        """Entry of plan.json for this comparison."""
        across = self.contrast.across
        interaction = {} if across is None else {"across": across, "across_factors": tuple(map(str, self.across))}
        return PlannedContrast(
            name=self.contrast.name,
            between=self.contrast.between,
            margin=self.contrast.margin,
            factors=tuple(map(str, self.factors)),
            notes=self.notes,
            confounded=self.confounded,
            **interaction,  # type: ignore[arg-type]
        )


Side = Sequence[CostedRun]


def examine(study: Study, planned: Sequence[CostedRun]) -> list[Examined]:
    """Find the factors of every comparison of a study, in the order of the file.

    Args:
        study: the study with the comparisons.
        planned: from `plan_study`, of the same study.
    """
    by_wanted = {(one.asked.id, one.match): one for one in planned}
    wanted = study.wanted()

    def side(values: Mapping[str, Any]) -> Side:
        return [by_wanted[one.run.id, one.match] for one in select(wanted, values)]

    return [_examined(study, contrast, side) for contrast in study.contrasts]


def _examined(study: Study, contrast: Contrast, side: Callable[[Mapping[str, Any]], Side]) -> Examined:
    if contrast.across is None:
        factors, notes = _factors(study, *map(side, contrast.between))
        return Examined(contrast, tuple(factors), notes=tuple(notes))
    sides = [side(values) for values in contrast.between]
    if contrast.across == "segments":
        ends = _ends([*sides[0], *sides[1]])
    else:
        ends = [[one for values in contrast.between for one in side(values | at)] for at in contrast.across]
    across, notes = _factors(study, *ends)
    found: dict[str, Factor] = {}
    all_notes: list[str] = []
    for end in ends:
        ids = {(one.asked.id, one.match) for one in end}
        parts = [[one for one in runs if (one.asked.id, one.match) in ids] for runs in sides]
        factors, more = _factors(study, *parts)
        found |= {factor.name: factor for factor in factors}
        all_notes += more
    all_notes += [f"across: {note}" for note in notes]
    return Examined(contrast, tuple(found.values()), tuple(across), tuple(dict.fromkeys(all_notes)))


def _ends(planned: Side) -> list[list[CostedRun]]:
    """Runs with the fewest segments, and runs with the most."""
    places = [max(one.realised_segments, default=0) for one in planned]
    asked = [_segments(one.asked) for one in planned]
    fewest, most = (asked[places.index(end)] for end in (min(places), max(places)))
    return [[one for one in planned if _segments(one.asked) == end] for end in (fewest, most)]


def _unheld_counts(study: Study, first: Side, second: Side) -> Iterator[tuple[bool, Factor]]:
    """Counts in which the sides differ at a budget of both, and whether each only follows from what is matched."""
    for match in sorted({plan.match for plan in first} & {plan.match for plan in second}):
        sides = [[plan for plan in side if plan.match == match] for side in (first, second)]
        if match == "none":
            held = ", not matched"
        elif not _same_budgets(study, *sides):
            held = f", under {budget_name(match).removesuffix('-matched')} budgets of different size"
        else:
            held = f" differ although {WORDS[match]} {'is' if match == 'step_time' else 'are'} matched"
        is_note = held.startswith(" ")
        for count in COUNTS:
            values = [[getattr(plan, count) for plan in side] for side in sides]
            if not (is_note and count == match) and not same_counts(*values):
                change = _change(*values) if is_note else ""
                yield (
                    is_note,
                    Factor(f"{WORDS[count]}{held}", count_range(values[0]), f"{count_range(values[1])}{change}"),
                )


def _same_budgets(study: Study, first: Side, second: Side) -> bool:
    """Whether both sides are held to as large a budget; of measured times, whether it is set by the same networks."""
    if BUDGETS[first[0].match].is_timed:
        one, other = (
            {study.budget.reference_of(study.base, plan.asked).model_copy(update={"seed": 0}).id for plan in side}
            for side in (first, second)
        )
        return one == other
    return same_counts(*([float(plan.budget or 0) for plan in side] for side in (first, second)))


def _factors(study: Study, first: Side, second: Side) -> tuple[list[Factor], list[str]]:
    def compared(name: str, say: Callable[[CostedRun], str]) -> None:
        one, other = (sorted({say(plan) for plan in side}) for side in (first, second))
        if one != other:
            found[name] = Factor(name, ", ".join(one), ", ".join(other))

    found: dict[str, Factor] = {}
    compared("segments", lambda plan: _segments(plan.asked))
    for field in RunConfig.model_fields:
        if field not in ("seed", *PLACES):
            compared(field, lambda plan, field=field: _as_words(getattr(plan.asked, field)))  # type: ignore[misc]
    compared("budget", lambda plan: plan.match)
    if "budget" in found:
        found["budget"] = replace(found["budget"], consequences=tuple(_counts_that_change(first, second)))
    notes = []
    for is_note, factor in _unheld_counts(study, first, second):
        if is_note:
            notes.append(str(factor))
        else:
            found[factor.name] = factor
    derived: dict[str, Callable[[CostedRun], str]] = {
        "batch normalisations": lambda plan: str(plan.norms),
        "non-linearities": lambda plan: str(plan.nonlinearities),
    }
    if all(plan.pointwise_pixels for plan in (*first, *second)):  # a plain operation has no 1×1
        derived["pixels at which the 1×1s run"] = lambda plan: " ".join(map(str, plan.pointwise_pixels))
    for name, say in derived.items():
        compared(name, say)
        cause = next((cause for cause in CAUSES[name] if cause in found), None)
        if name in found and cause is not None:
            effect, factor = found.pop(name), found[cause]
            change = f"{effect.first} → {effect.second} {name}"
            found[cause] = Factor(cause, factor.first, factor.second, (*factor.consequences, change))
    if not _pair(study, found, first, second):
        found["sides do not pair"] = Factor("sides do not pair", "seeds or other axes", "others")
    if len({_trained(plan) for plan in (*first, *second)}) == 1:
        notes.append("both sides are the same network")
    return list(found.values()), notes


def _pair(study: Study, found: dict[str, Factor], first: Side, second: Side) -> bool:
    """Whether every run of one side has a counterpart on the other that differs only in the factors."""
    rest = ["seed", *(name for name in study.varied() if name not in (*found, *PLACES, "match"))]

    def others(plan: CostedRun) -> tuple[Any, ...]:
        return (None if "budget" in found else plan.match, *(getattr(plan.asked, name) for name in rest))

    return {others(plan) for plan in first} == {others(plan) for plan in second}


def _trained(plan: CostedRun) -> tuple[Any, ...]:
    """Identity of a network, independent of the names of its options."""
    unnamed = {"seed": 0, "segments": 1, "segment_width": None, "stage_segments": None}
    return plan.run.model_copy(update=unnamed).id, plan.realised_segments


def _counts_that_change(first: Side, second: Side) -> Iterator[str]:
    """What another budget does to the networks."""
    for count, word in COUNTS.items():
        values = [[getattr(plan, count) for plan in side] for side in (first, second)]
        if not same_counts(*values):
            yield f"{count_range(values[0])} → {count_range(values[1])} {word}"


def _change(first: Sequence[int], second: Sequence[int]) -> str:
    """Relative difference of the second side from the first, if each has one count."""
    if len({*first}) > 1 or len({*second}) > 1:
        return ""
    return f" ({100 * (second[0] / first[0] - 1):+.1f}%)".replace("-", "−")


def _segments(run: RunConfig) -> str:
    label = Position.of(run).split
    return label if run.stage_segments is None else f"{label.replace(', ', ' ')} by stage"


def _as_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).replace("_", " ")

"""What a contrast of a study really changes: a fair one changes a single factor.

Factors are the fields in which the two sides differ, and what nobody wrote down: parameters and MACs where no budget
holds them, and 1×1 convolutions that run at other resolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spectrum.study.planning import PlannedPoint
from spectrum.study.point import Point
from spectrum.study.spec import Contrast, Study, Wanted, select

EQUAL = 0.01  # counts that differ by no more are held equal
SPLIT = ("segments", "segment_width")
ByWanted = dict[tuple[str, str], PlannedPoint]
WORDS = {"norms": "batch normalisations", "nonlinearities": "non-linearities"}


@dataclass(frozen=True)
class Factor:
    """One thing in which the sides differ."""

    name: str
    first: str
    second: str
    consequence: str = ""

    def __str__(self) -> str:
        note = f" ({self.consequence})" if self.consequence else ""
        return f"{self.name}: {self.first} → {self.second}{note}"


@dataclass(frozen=True)
class Examined:
    """A contrast, and all that it changes."""

    contrast: Contrast
    factors: tuple[Factor, ...]

    @property
    def confounded(self) -> bool:
        """Whether a difference could not be laid to one factor."""
        return len(self.factors) > 1

    def entry(self) -> dict[str, Any]:
        """What plan.json keeps of it."""
        return {
            "name": self.contrast.name,
            "between": list(self.contrast.between),
            "margin": self.contrast.margin,
            "factors": [str(factor) for factor in self.factors],
            "confounded": self.confounded,
        }


def examine(study: Study, planned: Sequence[PlannedPoint]) -> list[Examined]:
    """Every contrast of a study with its factors, in the order of the file.

    Args:
        planned: from `plan_study`.
    """
    by_wanted: ByWanted = {(one.asked.id, one.match): one for one in planned}
    return [
        Examined(contrast, _factors(*(_side(study, side, by_wanted) for side in contrast.between)))
        for contrast in study.contrasts
    ]


def _side(study: Study, side: dict[str, Any], by_wanted: ByWanted) -> list[tuple[Wanted, PlannedPoint]]:
    return [(one, by_wanted[one.point.id, one.match]) for one in select(study.wanted(), side)]


def _factors(
    first: Sequence[tuple[Wanted, PlannedPoint]], second: Sequence[tuple[Wanted, PlannedPoint]]
) -> tuple[Factor, ...]:
    sides = ([one for one, _ in first], [one for one, _ in second])
    plans = ([plan for _, plan in first], [plan for _, plan in second])
    fields = [name for name in Point.model_fields if name not in ("seed", *SPLIT)]
    factors: list[Factor | None] = [_compared("segments", *([_segments(one.point) for one in side] for side in sides))]
    factors += [
        _compared(name, *([_said(getattr(one.point, name)) for one in side] for side in sides)) for name in fields
    ]
    factors.append(_compared("budget", *([one.match for one in side] for side in sides)))
    matches = {one.match for side in sides for one in side}
    if matches == {"none"}:
        factors += [
            _counts("parameters, which no budget holds", *([plan.params for plan in side] for side in plans)),
            _counts("MACs, which no budget holds", *([plan.macs for plan in side] for side in plans)),
        ]
    factors.append(_moved(*plans))
    there = {factor.name: factor for factor in factors if factor is not None}
    for name, cause in (("norms", "norm"), ("nonlinearities", "activation")):
        counted = _compared(WORDS[name], *([str(getattr(plan, name)) for plan in side] for side in plans))
        if counted is not None and cause in there:
            change = f"{counted.first} → {counted.second} {counted.name}"
            there[cause] = replace(there[cause], consequence=change)
        elif counted is not None:
            there[name] = counted
    return tuple(there.values())


def _compared(name: str, first: Sequence[str], second: Sequence[str]) -> Factor | None:
    one, other = (sorted(set(values)) for values in (first, second))
    return None if one == other else Factor(name, ", ".join(one), ", ".join(other))


def _counts(name: str, first: Sequence[int], second: Sequence[int]) -> Factor | None:
    pairs = zip(sorted(set(first)), sorted(set(second)), strict=False)
    if len(set(first)) == len(set(second)) and all(abs(b / a - 1) <= EQUAL for a, b in pairs):
        return None
    return Factor(name, _range(first), _range(second))


def _moved(first: Sequence[PlannedPoint], second: Sequence[PlannedPoint]) -> Factor | None:
    """1×1 convolutions that a stride separates from where they were: they run at more pixels, or fewer."""
    one, other = ({plan.pointwise_pixels for plan in side} for side in (first, second))
    if one == other or not all(one) or not all(other):  # a bare operation has none
        return None
    said = [", ".join(" ".join(map(str, pixels)) for pixels in sorted(side)) for side in (one, other)]
    return Factor("pixels at which the 1×1s run", *said)


def _segments(point: Point) -> str:
    return f"width {point.segment_width}" if point.segments is None else _said(point.segments)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).replace("_", " ")


def _range(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,} … {most:,}"

"""What plan.json holds: one record, with one reader and one writer.

A plan is frozen before the first run is trained. It lists every run with its solved widths and its cost, what each
comparison changes, and, of a study that tunes, the learning-rate sweep. Nothing here loads torch.

Keys that early plans lack are optional here. Which keys a file has is kept, so that a plan is written as it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spectrum._records import explain
from spectrum.design.changes import all_fields

Grid = Mapping[str, tuple[float, ...]]  # option of a run → values that the sweep tries, rising


class PlanError(ValueError):
    """A text that is no plan. Says which key is wrong, and what was found."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    def entry(self) -> dict[str, Any]:
        """The record as plan.json has it: its keys, without those that it was made without."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _key(name: str, **more: Any) -> Any:
    """A field that plan.json calls by another name."""
    return Field(validation_alias=name, serialization_alias=name, **more)


class PlannedRun(_Record):
    """One training run of a plan. A network that meets several budgets has an entry for each, with one id."""

    id: str
    """Of the run as it is trained, with its solved widths and chosen learning rate."""
    asked: str | None = None
    """Id of the run as the study asks for it; None in early plans, where it is `id`."""
    match: str | None = None
    """What its budget holds equal: none, params, macs or step_time; None in early plans, which had no budget."""
    budget: int | float | None = None
    """Of the reference: parameters, MACs, or seconds per step."""
    mismatch: int | float | None = None
    """Cost over budget, minus 1."""
    params: int | None = None
    macs: int | None = None
    """Of one image, forward."""
    activations: int | None = None
    realised_segments: tuple[int, ...] = ()
    """Of each segmented convolution."""
    clamped_layers: dict[str, int] | None = None
    """Option → layers with too few channels for it; None in early plans, which do not tell."""
    norms: int = 0
    nonlinearities: int = 0
    pointwise_pixels: tuple[int, ...] = ()
    """At which each 1×1 of a segmented convolution runs."""
    step_seconds: float | None = None
    """Measured."""
    solved_for: str | None = None
    """A hash of what the solved widths depend on."""
    width: int | float | None = None
    """Factor on the stage widths, as the study asks for it."""
    stored: dict[str, Any] | None = _key("point", default=None)
    """Options that differ from their defaults, as plan.json keeps them; None in a plan that keeps none."""
    same_as: str | None = None
    """Id of an earlier run that trains the same network, if there is one."""

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the run, by name; empty where the plan keeps none."""
        return {} if self.stored is None else all_fields(self.stored)

    @property
    def asked_options(self) -> dict[str, Any]:
        """The same with the width that the study asks for, where the budget solves another."""
        return {**self.options, **({"width": self.width} if "width" in self.model_fields_set else {})}

    @property
    def counted(self) -> bool:
        """Whether it has its costs, which a plan that was written by hand may lack."""
        return None not in (self.params, self.macs, self.activations)

    @property
    def key(self) -> tuple[str, str]:
        """Which run of the study it is: the id as asked for, and the budget."""
        return self.asked or self.id, self.match or "none"


class PlannedContrast(_Record):
    """A comparison of the study, and what it changes."""

    name: str
    between: tuple[dict[str, Any], ...] = ()
    """The two sides: values of options that choose their runs."""
    across: tuple[dict[str, Any], ...] | str | None = None
    """Of an interaction: the settings it is compared across, or "segments"."""
    margin: int | float | None = None
    """Differences below this count as none; accuracy from 0 to 1."""
    factors: tuple[str, ...] = ()
    """In what its sides differ."""
    across_factors: tuple[str, ...] = ()
    """In what the settings differ that an interaction is compared across."""
    notes: tuple[str, ...] = ()
    confounded: bool = False
    """Whether a difference cannot be attributed to one factor."""


class PlannedChoice(_Record):
    """What the sweep chose for one network."""

    id: str
    """Of the run with seed 0 and the study's own learning rate."""
    stored: dict[str, Any] = _key("point", default_factory=dict)
    match: str | None = None
    values: dict[str, float] = {}
    """Chosen, by option."""
    val_accuracy: float | None = None
    """Mean over the seeds of the sweep, from 0 to 1."""
    edges: tuple[str, ...] = ()
    """Options whose choice is the smallest or largest value of the grid."""
    searched: tuple[str, ...] = ()
    """Ids of the sweep's runs at the chosen values."""

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the network's run, by name."""
        return all_fields(self.stored)


class PlannedTuning(_Record):
    """The learning-rate sweep of a study that tunes."""

    grid: dict[str, tuple[float, ...]] = {}
    networks: tuple[PlannedRun, ...] = ()
    """The study's own runs, before anything is chosen for them."""
    runs: tuple[PlannedRun, ...] = _key("points", default=())
    """What the sweep trains."""
    choices: tuple[PlannedChoice, ...] = ()
    """One per network, once the sweep is complete."""


class PlannedBudget(_Record):
    """The budget that the networks of a study match."""

    match: tuple[str, ...] | str = ("none",)
    reference: dict[str, Any] = {}
    """Options of the network whose cost is the budget, where they differ from the base."""


class Plan(_Record):
    """The plan of a study, as its first run froze it.

    >>> from spectrum import read_plan
    >>> plan = read_plan("results/order")
    >>> plan.study, len(plan.runs), plan.budgets
    ('order', 140, ('macs',))
    """

    study: str | None = None
    question: str | None = None
    file: str | None = None
    """Name of the study's TOML file."""
    overrides: dict[str, Any] = {}
    """Options that the command line set."""
    imports: tuple[str, ...] = ()
    """Modules of models of your own."""
    hash: str | None = None
    """Of the study: what it trains, on what, how often."""
    budget: PlannedBudget | None = None
    base: dict[str, Any] = {}
    """Every option of the study's base."""
    varied: tuple[str, ...] = ()
    """Options that have several values in the study."""
    images: tuple[dict[str, Any], ...] = ()
    """Each data set: its name, fingerprint, shape, and numbers of images."""
    contrasts: tuple[PlannedContrast, ...] = ()
    runs: tuple[PlannedRun, ...] = _key("points")
    """The study's own; empty while its sweep alone has run."""
    tuning: PlannedTuning | None = None
    backends: dict[str, dict[str, str]] = {}
    """As measured: machine key → shape class → backend. Ids do not depend on them."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote. Raises PlanError, which names the key that is wrong or unknown."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(explain(error, cls).splitlines()[0]) from None

    def to_json(self) -> str:
        """The text of plan.json. Raises ValueError for a number that is not finite."""
        return json.dumps(self.entry(), indent=1, allow_nan=False) + "\n"

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets of a study; early plans had one."""
        match = self.budget.match if self.budget is not None else ()
        return (match,) if isinstance(match, str) else match

    @property
    def asked(self) -> tuple[PlannedRun, ...]:
        """The study's runs before the sweep chose anything: of a study that tunes, those that the sweep is for."""
        return self.runs if self.tuning is None else self.tuning.networks

    @property
    def known(self) -> tuple[PlannedRun, ...]:
        """The study's own runs; while its sweep runs, those that it is for."""
        return self.runs or self.asked

    @property
    def swept(self) -> tuple[PlannedRun, ...]:
        """The runs of the sweep."""
        return () if self.tuning is None else self.tuning.runs

    @property
    def ids(self) -> list[str]:
        """Of all runs, those of the sweep first; one that meets several budgets once."""
        return list(dict.fromkeys(run.id for run in (*self.swept, *self.runs)))

    @property
    def count(self) -> int:
        """How many final runs are trained; one that meets several budgets counts once."""
        return len({run.id for run in self.runs})

    @property
    def tuned(self) -> tuple[str, ...]:
        """Options that the sweep chooses."""
        return () if self.tuning is None else tuple(self.tuning.grid)

    def is_of(self, hash: str) -> bool:
        """Whether it is the plan of a study with this hash."""
        return self.hash == hash

    def lacks(self, keys: Iterable[str]) -> list[str]:
        """Which of these keys its file does not have, in order of the alphabet."""
        return sorted(set(keys) - self.model_fields_set)

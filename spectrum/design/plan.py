"""The record in plan.json, with one reader and one writer.

A plan is frozen before the first run is trained. It lists every run with its solved widths and its cost, the changes in
each comparison, and, for a study that tunes, the learning-rate sweep. Nothing here loads torch.

Keys that early plans lack are optional. The record remembers which keys a file has, so that a plan is written as it was
read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spectrum._records import explain
from spectrum.design.changes import all_fields

Grid = Mapping[str, tuple[float, ...]]  # option of a run → values that the sweep tries, in rising order


class PlanError(ValueError):
    """A text is not a valid plan; the message names the wrong key and its value."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    def entry(self) -> dict[str, Any]:
        """The record as in plan.json, without keys that it was made without."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _key(name: str, **more: Any) -> Any:
    """A field that has another name in plan.json."""
    return Field(validation_alias=name, serialization_alias=name, **more)


class PlannedRun(_Record):
    """One training run of a plan. A network that meets several budgets has one entry per budget, all with one id."""

    id: str
    """Id of the run as it is trained, with its solved widths and chosen learning rate."""
    asked: str | None = None
    """Id of the run as in the study, before widths are solved; None in early plans, where it equals `id`."""
    match: str | None = None
    """What its budget matches: none, params, macs or step_time; None in early plans, which had no budget."""
    budget: int | float | None = None
    """Cost of the reference: parameters, MACs, or seconds per step."""
    mismatch: int | float | None = None
    """Cost over budget, minus 1."""
    params: int | None = None
    macs: int | None = None
    """MACs of a forward pass of one image."""
    activations: int | None = None
    realised_segments: tuple[int, ...] = ()
    """Number of segments of each segmented convolution."""
    clamped_layers: dict[str, int] | None = None
    """Option → number of layers with too few channels for it; None in early plans, which do not record it."""
    norms: int = 0
    nonlinearities: int = 0
    pointwise_pixels: tuple[int, ...] = ()
    """Output pixels of each 1×1 of a segmented convolution."""
    step_seconds: float | None = None
    """Seconds per training step, measured."""
    solved_for: str | None = None
    """Hash of the conditions on which the solved widths depend."""
    width: int | float | None = None
    """Factor of the stage widths, as in the study."""
    stored: dict[str, Any] | None = _key("point", default=None)
    """Options that differ from their defaults, as stored in plan.json; None in a plan without them."""
    same_as: str | None = None
    """Id of an earlier run that trains the same network, if there is one."""

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the run, by name; empty if the plan does not store them."""
        return {} if self.stored is None else all_fields(self.stored)

    @property
    def asked_options(self) -> dict[str, Any]:
        """Every option of the run as in the study, with the width before the budget was solved."""
        return {**self.options, **({"width": self.width} if "width" in self.model_fields_set else {})}

    @property
    def counted(self) -> bool:
        """Whether its costs are recorded, which a plan written by hand may lack."""
        return None not in (self.params, self.macs, self.activations)

    @property
    def key(self) -> tuple[str, str]:
        """Key of the run in the study: its id as in the study, and its budget."""
        return self.asked or self.id, self.match or "none"


class PlannedContrast(_Record):
    """A comparison of the study, and what it changes."""

    name: str
    between: tuple[dict[str, Any], ...] = ()
    """The two sides: values of options that select their runs."""
    across: tuple[dict[str, Any], ...] | str | None = None
    """Settings across which an interaction is compared, or "segments"; None for a plain comparison."""
    margin: int | float | None = None
    """Margin of equivalence, in accuracy from 0 to 1."""
    factors: tuple[str, ...] = ()
    """Differences between its sides."""
    across_factors: tuple[str, ...] = ()
    """Differences between the settings across which an interaction is compared."""
    notes: tuple[str, ...] = ()
    confounded: bool = False
    """Whether a difference cannot be attributed to one factor."""


class PlannedChoice(_Record):
    """Values that the sweep chose for one network."""

    id: str
    """Id of the run with seed 0 and the study's own learning rate."""
    stored: dict[str, Any] = _key("point", default_factory=dict)
    match: str | None = None
    values: dict[str, float] = {}
    """Chosen value of each option."""
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
    """The study's own runs, before the sweep chooses their values."""
    runs: tuple[PlannedRun, ...] = _key("points", default=())
    """Runs of the sweep."""
    choices: tuple[PlannedChoice, ...] = ()
    """One choice per network, once the sweep is complete."""


class PlannedBudget(_Record):
    """The budget that the networks of a study match."""

    match: tuple[str, ...] | str = ("none",)
    reference: dict[str, Any] = {}
    """Options of the reference, whose cost is the budget, where they differ from the base."""


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
    """Modules that register your own models."""
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
    """The study's own runs; empty while only the sweep has run."""
    tuning: PlannedTuning | None = None
    backends: dict[str, dict[str, str]] = {}
    """As measured: machine key → shape class → backend. Ids do not depend on them."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a text written by `to_json`. Raises PlanError, which names a wrong or unknown key."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(explain(error, cls).splitlines()[0]) from None

    def to_json(self) -> str:
        """Text of plan.json. Raises ValueError for a number that is not finite."""
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
        """Ids of all runs, those of the sweep first; a run that meets several budgets counts once."""
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
        """Keys among these that the plan's file lacks, in alphabetical order."""
        return sorted(set(keys) - self.model_fields_set)

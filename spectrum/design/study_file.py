"""A study: its base run, the axes that vary, the budget that is matched, what is tuned and compared.

    experiments/x.toml  →  load_study  →  Study  →  runs()  →  one RunConfig a training run

As in run.py records are strict, and nothing here loads torch.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from spectrum._records import (
    NotNegative,
    Rate,
    Record,
    Seed,
    SpecError,
    as_listed,
    as_tuple,
    explain,
    plain,
    unknown_key,
)
from spectrum._registry import nearest
from spectrum.design.budgets import Match as Match
from spectrum.design.changes import from_named, merged, named
from spectrum.design.hashes import digest
from spectrum.design.keys import NETWORK, network_key
from spectrum.design.own_modules import import_modules, is_module_name
from spectrum.design.run import RunConfig
from spectrum.design.study_checks import as_values, axis_faults, case_faults, checked

MOST_BYTES = 150  # of a study's name
NOT_IN_A_FILE = ("name", "overrides")  # fields of a study that come from elsewhere
MOST_ADDED = 100  # to it by overrides


class Budget(Record):
    """The budget that all configurations match, by changing their stage widths."""

    match: Annotated[tuple[Match, ...], BeforeValidator(as_listed)] = Field(("none",), min_length=1)
    """One of "none", "params", "macs" (of a forward pass) and "step_time", or several: then the budget is an axis."""
    reference: dict[str, Any] = Field(default_factory=dict)
    """The run whose params, MACs or step time are the budget: fields of its network, the others as in the base."""

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if len(set(self.match)) < len(self.match):
            raise ValueError("match: lists a budget twice")
        for field in self.reference:
            if field not in (*NETWORK, "width", "widths"):
                raise ValueError(f"reference.{field}: {unknown_key(field, [*NETWORK, 'width', 'widths'])}")
        if self.match != ("none",) and not self.reference:
            raise ValueError('reference: say which run sets the budget, as in reference = { segments = "per_channel" }')
        return self

    def reference_of(self, base: RunConfig, run: RunConfig) -> RunConfig:
        """The run that sets a run's budget: the base's network with what `reference` changes, on the run's data.

        Width and training are the run's own, so that an axis of widths has a budget for each.
        """
        own = {name: value for name, value in named(run).items() if name not in NETWORK}
        network = {name: value for name, value in named(base).items() if name in NETWORK}
        instead = {"width": 1.0} if "widths" in self.reference else {}
        return from_named(own | network, instead | self.reference)


class Contrast(Record):
    """A comparison of two sides that the study decides."""

    name: str = Field(min_length=1)
    """What is compared."""
    between: Annotated[tuple[dict[str, Any], ...], BeforeValidator(as_tuple)] = Field(min_length=2, max_length=2)
    """The two sides: values of what varies in the study. All runs that have them belong to the side."""
    across: Annotated[tuple[dict[str, Any], ...] | Literal["segments"] | None, BeforeValidator(as_tuple)] = None
    """For an interaction: two settings, whose differences are compared; or "segments", along which they may grow."""
    margin: float | None = Field(None, gt=0, lt=1)
    """Difference in accuracy, from 0 to 1, below which the sides count as equivalent."""

    @model_validator(mode="after")
    def _check(self) -> Contrast:
        if isinstance(self.across, tuple) and len(self.across) != 2:
            raise ValueError(f'across: expected two settings or "segments", got {len(self.across)}')
        if self.across == "segments" and self.margin is not None:
            raise ValueError(
                'margin: is a difference in accuracy; with across = "segments" there is a slope; leave it out'
            )
        return self

    def sides(self) -> tuple[dict[str, Any], ...]:
        """The settings that each part of the comparison has, those of an interaction too."""
        if not isinstance(self.across, tuple):
            return self.between
        return tuple(side | at for at in self.across for side in self.between)


class Tune(Record):
    """The learning-rate sweep, the same for every configuration: each value of the grid with each seed, decided on
    validation images."""

    lr: Annotated[tuple[Rate, ...], BeforeValidator(as_tuple)] = ()
    """Learning rates."""
    weight_decay: Annotated[tuple[NotNegative, ...], BeforeValidator(as_tuple)] = ()
    """Weight decays."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(as_tuple)] = Field((1000,), min_length=1)
    """Seeds of the sweep alone; none of them trains a final run."""
    extend: int = Field(0, ge=0, le=10)
    """Values that may be added, for all configurations, beyond an edge of the grid that is best for one of them."""

    @model_validator(mode="after")
    def _check(self) -> Tune:
        if len(self.lr) < 2 and len(self.weight_decay) < 2:
            raise ValueError("give at least two values of lr or of weight_decay, as in lr = [0.025, 0.05, 0.1]")
        for name in ("lr", "weight_decay", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: lists a value twice")
        if self.extend and any(0 in values for values in self.grid().values()):
            raise ValueError("extend: has no next value beyond 0; leave 0 out of the grid")
        return self

    def grid(self) -> dict[str, tuple[float, ...]]:
        """Options that the sweep tunes, and their values, rising."""
        grid = {"lr": tuple(sorted(self.lr)), "weight_decay": tuple(sorted(self.weight_decay))}
        return {name: values for name, values in grid.items() if values}


@dataclass(frozen=True)
class Wanted:
    """A run as the study asks for it, and the budget that its widths are to meet."""

    run: RunConfig
    match: Match


def _folder_name(name: str) -> str:
    if not name.strip(".") or re.search(r"[/\x00-\x1f\x7f]", name) or len(name.encode()) > MOST_BYTES:
        raise ValueError(f'{name[:40]!r} cannot be the name of a folder in results/; give a word, such as "curve"')
    return name


def _module_names(value: object) -> object:
    names = as_listed(value)
    for name in names if isinstance(names, tuple) else ():
        if not is_module_name(name):
            raise ValueError(f'{name!r} is not a module name; give one as Python imports it, such as "my_models"')
    return names


class Study(Record):
    """A question, and the runs that answer it: the product of all axes, for each of the cases.

    >>> base = RunConfig(dataset="digits", epochs=2)
    >>> study = Study(name="ends", base=base, axes={"segments": (1, "per_channel"), "seed": (0, 1)})
    >>> [(run.segments, run.seed) for run in study.runs()]
    [(1, 0), ('per_channel', 0), (1, 1), ('per_channel', 1)]
    """

    name: Annotated[str, AfterValidator(_folder_name)]
    """Name of the file, without its ending; results go to a folder of this name."""
    question: str = ""
    """The question that the study answers."""
    imports: Annotated[tuple[str, ...], BeforeValidator(_module_names)] = ()
    """Modules of models of your own, which every process imports first: `import` in a file. Not part of the hash."""
    base: RunConfig = RunConfig()
    """Options that all runs share."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Options of the base run that the command line changed."""
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Fields of a run and the values that each takes; runs are their product."""
    cases: tuple[dict[str, Any], ...] = ()
    """Options that take their values together, where runs are not a product; each case is multiplied with the axes."""
    budget: Budget = Budget()
    """The budget that is matched, and the run that sets it."""
    tune: Tune | None = None
    """The learning-rate sweep before the final runs, if there is one."""
    contrasts: Annotated[tuple[Contrast, ...], BeforeValidator(as_tuple)] = ()
    """Comparisons that the study decides; tested together, with one correction for all."""

    def __init__(self, **fields: Any) -> None:
        modules = as_listed(fields.get("imports", ()))
        if isinstance(modules, tuple):
            import_modules(modules, "imports = ")
        fields, faults = _prepared(fields)
        try:
            super(Record, self).__init__(**fields)
        except ValidationError as error:
            raise SpecError("\n".join([*explain(error, Study, of="field").splitlines(), *faults])) from None
        if faults:
            raise SpecError("\n".join(faults))
        checked(self)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # as in Record

    def runs(self) -> list[RunConfig]:
        """All runs as they are asked for, the seeds outermost, so that a study cut short has a whole curve."""
        axes = sorted(self.axes.items(), key=lambda axis: axis[0] != "seed")
        runs = []
        for values in itertools.product(*(values for _, values in axes)):
            varied = dict(zip((name for name, _ in axes), values, strict=True))
            runs += [merged(self.base, case | varied) for case in self.cases or ({},)]
        return runs

    def wanted(self) -> list[Wanted]:
        """Every run under every budget; under one seed, one budget after the other."""
        by_seed = itertools.groupby(self.runs(), key=lambda run: run.seed)
        return [
            Wanted(run, match)
            for runs in [list(runs) for _, runs in by_seed]
            for match in self.budget.match
            for run in runs
        ]

    @property
    def hash(self) -> str:
        """A hash of all runs, the budget and the sweep; names, the question and comparisons are not in it."""
        runs = self.runs()
        hashed: dict[str, Any] = {"points": sorted({run.id for run in runs})}
        hashed["budget"] = {"match": "none"} if self.budget == Budget() else self.budget.model_dump(mode="json")
        if self.budget.match != ("none",):  # the reference takes from the base what axes replace in the runs
            by_width = {(run.width, run.widths): run for run in runs}  # all that its network takes from them
            references = (self.budget.reference_of(self.base, run) for run in by_width.values())
            shapes = {digest(network_key(run, "width", "widths")) for run in references}
            hashed["references"] = sorted(shapes)
        if self.tune is not None:
            hashed["tune"] = self.tune.model_dump(mode="json")
        return digest(hashed)

    @property
    def file_name(self) -> str:
        """The name of the study's file, without what overrides add to it."""
        return self.name.removesuffix(_suffix(self.overrides))

    def varied(self) -> list[str]:
        """Names of the fields that vary, the seed left out."""
        names = [*self.axes, *(name for case in self.cases for name in case)]
        names += ["match"] if len(self.budget.match) > 1 else []
        return [name for name in dict.fromkeys(names) if name != "seed"]

    def with_base(self, **changes: Any) -> Study:
        """The study from a changed base run, under a name that says so, since its results are others.

        Raises SpecError for a field that an axis varies, and for a field or a value that cannot be.
        """
        changes = plain(changes)
        for name in changes:
            if self.tune is not None and name in self.tune.grid():
                raise SpecError(f"{name}: is tuned in this study; change [tune] in the file")
            if name in self.axes or any(name in case for case in self.cases):
                raise SpecError(f"{name}: varies in this study; change its values in the file")
        overrides = self.overrides | changes
        name = self.file_name + _suffix(overrides)
        base = merged(self.base, changes)
        return checked(self.model_copy(update={"name": name, "base": base, "overrides": overrides}))


def load_study(path: str | Path) -> Study:
    """Read a study from a TOML file.

    Args:
        path: of the file; its name without the ending is the study's.

    Raises SpecError (a ValueError) with one line a fault: file, field, what came and what would work.

    >>> study = load_study("experiments/order.toml")
    >>> study.name, study.budget.match, len(study.runs())
    ('order', ('macs',), 140)
    """
    if not isinstance(path, str | Path):
        raise SpecError(f"load_study: expected the path of a study's TOML file (got {type(path).__name__})")
    path = Path(path)
    if path.is_dir():
        raise SpecError(f"{path}: is a folder; name a study's TOML file")
    if not path.stem.strip("."):
        raise SpecError(f"{path}: a study is called as its file is, and this is a folder; name a study's TOML file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        near = nearest(path.stem, [file.stem for file in path.parent.glob("*.toml")])
        hint = f'; did you mean "{path.with_name(near + ".toml")}"?' if near else ""
        raise SpecError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: cannot be read: it is not UTF-8 text, as TOML must be (byte {error.start})") from None
    try:
        tables = tomllib.loads(text)
        if not tables:
            raise SpecError("is empty; begin with the axes that vary, such as [axes] and below it segments = [1, 2, 4]")
        return parse_study(tables, path.stem, folder=path.parent)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except SpecError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def as_study(study: Study | str | Path) -> Study:
    """The study, read from its file where its path is given. Raises SpecError for anything else."""
    if isinstance(study, Study):
        return study
    if isinstance(study, str | Path):
        return load_study(study)
    raise SpecError(f"study: expected a Study or the path of its TOML file (got {type(study).__name__})")


def parse_study(tables: Mapping[str, Any], name: str, *, folder: Path | None = None) -> Study:
    """Make a study from the tables of its file.

    Args:
        tables: of the file.
        name: of the study.
        folder: of the file, beside which modules that `import` names are looked for; else the current one.

    Raises SpecError.
    """
    if "overrides" in tables:
        raise SpecError("overrides: only the command line sets them; write these options into [base]")
    if "name" in tables:
        raise SpecError("name: a study has the name of its file; leave it out")
    if "imports" in tables:
        raise SpecError('imports: unknown key; did you mean "import"?')
    tables = {"imports" if key == "import" else key: value for key, value in tables.items()}
    try:
        modules = _module_names(tables.get("imports", ()))
    except ValueError as error:
        raise SpecError(f"import: {error}") from None
    if isinstance(modules, tuple):
        import_modules(modules, "import = ", folder)
    prepared, faults = _prepared(tables)
    try:
        study = Study.model_validate(prepared | {"name": name})
    except ValidationError as error:
        keys = ["import" if key == "imports" else key for key in Study.model_fields if key not in NOT_IN_A_FILE]
        lines = explain(error, Study, keys=keys).replace("imports: ", "import: ").splitlines()
        raise SpecError("\n".join([*lines, *faults])) from None
    if faults:
        raise SpecError("\n".join(faults))
    return checked(study)


def _prepared(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tables of a study with tuples in place of lists, and the faults of each axis and case by itself."""
    fields: dict[str, Any] = plain(dict(given))
    for key, example in (("axes", 'segments = [1, "per_channel"]'), ("base", "epochs = 2")):
        kinds = (dict, RunConfig) if key == "base" else dict
        if not isinstance(fields.get(key, {}), kinds):
            raise SpecError(f"{key}: expected a table (got {fields[key]!r}); write [{key}], and below it {example}")
    axes = {axis: as_values(values) for axis, values in fields.get("axes", {}).items()}
    faults = axis_faults(axes)
    fields["axes"] = {axis: tuple(map(as_tuple, values)) for axis, values in axes.items() if isinstance(values, tuple)}
    cases = as_tuple(fields.get("cases", ()))
    if isinstance(cases, tuple):
        fields["cases"] = cases
        faults += case_faults([case for case in cases if isinstance(case, dict)], axes)
    if isinstance(fields.get("budget"), dict):
        fields["budget"] = _with_tuples(fields["budget"], "reference")
    if isinstance(fields.get("contrasts"), list | tuple):
        fields["contrasts"] = tuple(
            _with_tuples(_with_tuples(contrast, "between"), "across") for contrast in fields["contrasts"]
        )
    return fields, faults


def _with_tuples(table: object, key: str) -> object:
    """TOML's lists, where values of fields are given, as the tuples that fields hold."""
    if not isinstance(table, dict) or key not in table:
        return table

    def convert(value: object) -> object:
        return {name: as_tuple(v) for name, v in value.items()} if isinstance(value, dict) else value

    inner = table[key]
    return table | {key: tuple(map(convert, inner)) if isinstance(inner, list | tuple) else convert(inner)}


def _suffix(overrides: Mapping[str, Any]) -> str:
    """What overrides add to a study's name, at most 100 characters, for a folder of its own.

    Where characters are replaced or cut, or two hyphens within a value look like another override, a hash tells apart
    what would be alike without it.
    """
    suffix = "".join(f"--{name}-{value}" for name, value in overrides.items())
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", suffix)
    if name == suffix and len(name) <= MOST_ADDED and suffix.count("--") == len(overrides):
        return name
    return f"{name[: MOST_ADDED - 9]}-{digest([[name, repr(value)] for name, value in overrides.items()])[:8]}"

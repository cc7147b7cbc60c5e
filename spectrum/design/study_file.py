"""A study: its base run, the axes that vary, the matched budget, the sweep and the comparisons.

    experiments/x.toml  →  load_study  →  Study  →  runs()  →  one RunConfig per training run

As in run.py, records are strict, and nothing here loads torch.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
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
from spectrum.design.margins import LARGEST_MARGIN, margin_fault
from spectrum.design.own_modules import import_models, import_modules, is_module_name
from spectrum.design.run import RunConfig
from spectrum.design.study_checks import as_values, axis_faults, case_faults, checked

MOST_BYTES = 150  # longest name of a study
NOT_IN_A_FILE = ("name", "overrides")  # fields of a study that its file does not set
MOST_ADDED = 100  # longest part that overrides add to the name


class Budget(Record):
    """The budget that all configurations match, by changing their stage widths."""

    match: Annotated[tuple[Match, ...], BeforeValidator(as_listed)] = Field(("none",), min_length=1)
    """One of "none", "params", "macs" (of a forward pass) and "step_time". With several, the budget is an axis."""
    reference: dict[str, Any] = Field(default_factory=dict)
    """Run whose params, MACs or step time are the budget: fields of its network; the others are those of the base."""

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
        """The run that sets the budget of `run`: the base's network changed by `reference`, on the data of `run`.

        Width and training are those of `run`, so that an axis of widths has one budget for each width.
        """
        own = {name: value for name, value in named(run).items() if name not in NETWORK}
        network = {name: value for name, value in named(base).items() if name in NETWORK}
        instead = {"width": 1.0} if "widths" in self.reference else {}
        return from_named(own | network, instead | self.reference)


def _margin(value: object) -> object:
    fault = None if value is None else margin_fault(value)
    if fault is not None:
        raise ValueError(fault)
    return value


class Contrast(Record):
    """A prespecified comparison of two sides."""

    name: str = Field(min_length=1)
    """Name of the comparison: what is compared."""
    between: Annotated[tuple[dict[str, Any], ...], BeforeValidator(as_tuple)] = Field(min_length=2, max_length=2)
    """The two sides: values of varied options. All runs with these values belong to the side."""
    across: Annotated[tuple[dict[str, Any], ...] | Literal["segments"] | None, BeforeValidator(as_tuple)] = None
    """For an interaction: two settings, between which the differences are compared; or "segments", for a slope along
    them."""
    margin: Annotated[float | None, BeforeValidator(_margin)] = Field(None, gt=0, le=LARGEST_MARGIN)
    """Difference in accuracy below which the sides count as equivalent, a share of 1: 0.005 is half a percentage
    point."""

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
        """Settings of each part of the comparison: two for a plain one, four for an interaction."""
        if not isinstance(self.across, tuple):
            return self.between
        return tuple(side | at for at in self.across for side in self.between)


class Tune(Record):
    """Learning-rate sweep, the same for every configuration: each value of the grid with each seed, decided on
    validation images."""

    lr: Annotated[tuple[Rate, ...], BeforeValidator(as_tuple)] = ()
    """Learning rates."""
    weight_decay: Annotated[tuple[NotNegative, ...], BeforeValidator(as_tuple)] = ()
    """Weight decays."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(as_tuple)] = Field((1000,), min_length=1)
    """Seeds of the sweep, which no final run may use."""
    extend: int = Field(0, ge=0, le=10)
    """Number of values that may be added, for all configurations, beyond an edge of the grid at which one of them is
    best."""

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
        """Options that the sweep tunes, with their values in rising order."""
        grid = {"lr": tuple(sorted(self.lr)), "weight_decay": tuple(sorted(self.weight_decay))}
        return {name: values for name, values in grid.items() if values}


@dataclass(frozen=True)
class Wanted:
    """A run before its widths are solved, and the budget that they must meet."""

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
    """A question and the runs that answer it: the product of all axes, for each of the cases.

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
    """Modules of your own models, which every process imports first (`import` in a file). Not part of the hash."""
    base: RunConfig = RunConfig()
    """Options that all runs share."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Options of the base run that the command line changed."""
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Options that vary, each with its values; runs are their product."""
    cases: tuple[dict[str, Any], ...] = ()
    """Sets of options that take their values together, for runs that are not a product; each is multiplied with the
    axes."""
    budget: Budget = Budget()
    """The budget that is matched, and the run that sets it."""
    tune: Tune | None = None
    """The learning-rate sweep before the final runs, if there is one."""
    contrasts: Annotated[tuple[Contrast, ...], BeforeValidator(as_tuple)] = ()
    """Prespecified comparisons, tested together with one correction for all."""

    def __init__(self, **fields: Any) -> None:
        modules = as_listed(fields.get("imports", ()))
        if isinstance(modules, tuple):
            import_modules(modules, "imports = ")
        import_models(_models_in(fields))
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
        """All runs, before widths are solved. Seeds are outermost, so an interrupted study has complete curves."""
        axes = sorted(self.axes.items(), key=lambda axis: axis[0] != "seed")
        runs = []
        for values in itertools.product(*(values for _, values in axes)):
            varied = dict(zip((name for name, _ in axes), values, strict=True))
            runs += [merged(self.base, case | varied) for case in self.cases or ({},)]
        return runs

    def wanted(self) -> list[Wanted]:
        """Every run with every budget, seed by seed and then budget by budget."""
        by_seed = itertools.groupby(self.runs(), key=lambda run: run.seed)
        return [
            Wanted(run, match)
            for runs in [list(runs) for _, runs in by_seed]
            for match in self.budget.match
            for run in runs
        ]

    @property
    def hash(self) -> str:
        """Hash of all runs, the budget and the sweep; names, the question and comparisons are not included."""
        runs = self.runs()
        hashed: dict[str, Any] = {"points": sorted({run.id for run in runs})}
        hashed["budget"] = {"match": "none"} if self.budget == Budget() else self.budget.model_dump(mode="json")
        if self.budget.match != ("none",):  # the reference takes options from the base that axes replace in the runs
            # these are all options that its network takes from a run
            by_width = {(run.width, run.widths): run for run in runs}
            references = (self.budget.reference_of(self.base, run) for run in by_width.values())
            shapes = {digest(network_key(run, "width", "widths")) for run in references}
            hashed["references"] = sorted(shapes)
        if self.tune is not None:
            hashed["tune"] = self.tune.model_dump(mode="json")
        return digest(hashed)

    @property
    def file_name(self) -> str:
        """Name of the study's file, without the part that overrides add."""
        return self.name.removesuffix(_suffix(self.overrides))

    def varied(self) -> list[str]:
        """Names of the options that vary, without the seed."""
        names = [*self.axes, *(name for case in self.cases for name in case)]
        names += ["match"] if len(self.budget.match) > 1 else []
        return [name for name in dict.fromkeys(names) if name != "seed"]

    def with_base(self, **changes: Any) -> Study:
        """The study with a changed base run, under a name that includes the changes, since its results differ.

        Raises SpecError for a field that an axis varies, for an unknown field and for an invalid value.
        """
        changes = plain(changes)
        for name in changes:
            if self.tune is not None and name in self.tune.grid():
                raise SpecError(f"{name}: is tuned in this study; change [tune] in the file")
            if name in self.axes or any(name in case for case in self.cases):
                raise SpecError(f"{name}: varies in this study; change its values in the file")
        overrides = self.overrides | changes
        name = self.file_name + _suffix(overrides)
        import_models([changes.get("model")])
        base = merged(self.base, changes)
        return checked(self.model_copy(update={"name": name, "base": base, "overrides": overrides}))


def load_study(path: str | Path) -> Study:
    """Read a study from a TOML file.

    Args:
        path: path of the file; its name without the ending is the study's name.

    Raises SpecError (a ValueError) with one line per fault: file, field, the value given and what would work.

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
        raise SpecError(f"{path}: is not a file name; name a study's TOML file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        near = nearest(path.stem, [file.stem for file in path.parent.glob("*.toml")])
        hint = f'; did you mean "{path.with_name(near + ".toml")}"?' if near else ""
        raise SpecError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: cannot be read: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    try:
        tables = tomllib.loads(text)
        if not tables:
            raise SpecError("is empty; begin with the axes that vary, such as [axes] and below it segments = [1, 2, 4]")
        return parse_study(tables, path.stem, folder=path.parent)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}{_line_of(str(error), text)}") from None
    except SpecError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _line_of(error: str, text: str) -> str:
    """The line that a message of tomllib is about, on a line of its own; empty where it names none."""
    place = re.search(r"at line (\d+), column \d+", error)
    lines = text.splitlines()
    number = int(place[1]) if place else 0
    return f"\n  {lines[number - 1].strip()}" if 0 < number <= len(lines) else ""


def as_study(study: Study | str | Path) -> Study:
    """The given study, or the study of the given path. Raises SpecError for anything else."""
    if isinstance(study, Study):
        return study
    if isinstance(study, str | Path):
        return load_study(study)
    raise SpecError(f"study: expected a Study or the path of its TOML file (got {type(study).__name__})")


def parse_study(tables: Mapping[str, Any], name: str, *, folder: Path | None = None) -> Study:
    """Make a study from the tables of its file.

    Args:
        tables: tables of the file.
        name: name of the study.
        folder: folder of the file, searched first for the modules in `import`; None searches the current folder.

    Raises SpecError for an invalid study.
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
    import_models(_models_in(tables), folder)
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


def _models_in(tables: Mapping[str, Any]) -> Iterator[object]:
    """Every value that the tables of a study give to `model`, valid or not."""
    base, axes, budget = (tables.get(name) for name in ("base", "axes", "budget"))
    cases = tables.get("cases")
    listed = cases if isinstance(cases, list | tuple) else ()
    reference = budget.get("reference") if isinstance(budget, Mapping) else getattr(budget, "reference", None)
    for table in (base, axes, reference, *listed):
        value = table.get("model") if isinstance(table, Mapping) else getattr(table, "model", None)
        yield from value if isinstance(value, list | tuple) else (value,)


def _prepared(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert lists in the tables to tuples, and find the faults of single axes and cases."""
    fields: dict[str, Any] = plain(dict(given))
    for key, example in (("axes", 'segments = [1, "per_channel"]'), ("base", "epochs = 2")):
        kinds = (dict, RunConfig) if key == "base" else dict
        if not isinstance(fields.get(key, {}), kinds):
            raise SpecError(f"{key}: expected a table (got {fields[key]!r}); write [{key}], and below it {example}")
    for key, example in (("contrasts", "name = …"), ("cases", "segments = 1")):
        if isinstance(fields.get(key), dict):
            raise SpecError(
                f"{key}: is one table; write [[{key}]], with two brackets, above each, and below it {example}"
            )
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
    """Convert TOML's lists among values of fields to tuples, as in the fields."""
    if not isinstance(table, dict) or key not in table:
        return table

    def convert(value: object) -> object:
        return {name: as_tuple(v) for name, v in value.items()} if isinstance(value, dict) else value

    inner = table[key]
    return table | {key: tuple(map(convert, inner)) if isinstance(inner, list | tuple) else convert(inner)}


def _suffix(overrides: Mapping[str, Any]) -> str:
    """The part that overrides add to a study's name, at most 100 characters, for a separate folder.

    If characters are replaced or cut, or a value contains two hyphens as between overrides, a hash keeps different
    overrides apart.
    """
    suffix = "".join(f"--{name}-{value}" for name, value in overrides.items())
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", suffix)
    if name == suffix and len(name) <= MOST_ADDED and suffix.count("--") == len(overrides):
        return name
    return f"{name[: MOST_ADDED - 9]}-{digest([[name, repr(value)] for name, value in overrides.items()])[:8]}"

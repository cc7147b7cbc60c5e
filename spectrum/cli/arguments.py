"""What the command can be told: one record a command, read from the words of the command line.

A study's base run, or a network, is overridden by flags that are the fields of `RunConfig`, with the same help.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from pydantic import BaseModel

from spectrum._records import SpecError
from spectrum._registry import nearest
from spectrum.design.keys import NETWORK
from spectrum.design.run import RunConfig
from spectrum.engines.interface import EngineSettings
from spectrum.models.families import OWN

PRINT_COMPLETION = "--tyro-print-completion"
SHELLS = ("bash", "zsh", "fish")
What = Literal["op", "train", "sweep", "models", "engine", "steps"]
# tyro completes no positional word. Those of bench are known; where nothing is, a study's file or folder is meant.
# Flags come once a dash is typed, or an empty word would never offer a file. fish has this in double quotes: none here.
OFFERED = f"""
def offered(words, current_index):
    word = words[current_index] if current_index < len(words) else ''
    known = [one for one in get_completions(words, current_index, COMPLETION_SPEC) if word or one[0] != '-']
    if words[1:current_index] == ['bench']:
        known += [one for one in {get_args(What)} if one.startswith(word)]
    return known or ['__TYRO_COMPLETE_FILES__']

"""
COMPLETED = {  # what of tyro's script is replaced
    "= get_completions(words, current_index, COMPLETION_SPEC)": "= offered(words, current_index)",
    "\ndef main() -> None:": f"{OFFERED}\ndef main() -> None:",
    'compgen -f -- "$cur"': 'compgen -f -- "$2"',  # tyro's own joins the word to the one before it
    "complete -F": "complete -o filenames -F",  # a folder then ends in a slash
}
File = Annotated[Path, tyro.conf.Positional]
Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE"), tyro.conf.UseAppendAction]


def _flags(record: type[BaseModel], fields: Sequence[str], hints: Mapping[str, str] | None = None) -> type:
    """A record with fields of another one, for the command line to fill: not checked yet, and help for each.

    Hints say what holds where a flag is not given, if that is not the default.
    """
    known, hints = record.model_fields, hints or {}
    return make_dataclass(
        f"{record.__name__}Flags",
        [
            (
                name,
                Annotated[
                    known[name].annotation,
                    tyro.conf.arg(help=known[name].description, help_behavior_hint=hints.get(name)),
                ],
                field(default=known[name].default),
            )
            for name in fields
        ],
    )


RunFields = _flags(
    RunConfig, list(RunConfig.model_fields), dict.fromkeys(RunConfig.model_fields, "(default: the file's)")
)
NetworkFields = _flags(
    RunConfig,
    [*(name for name in NETWORK if name != "model"), "width", "widths"],
    dict.fromkeys(OWN, "(default: the family's own)"),
)
PlanFlags = _flags(EngineSettings, ["workers"])
RunFlags = _flags(EngineSettings, [name for name in EngineSettings.model_fields if name != "imports"])  # has its own
PlanSettings = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=PlanFlags)]
RunSettings = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=RunFlags)]
Overrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=RunFields)]
NetworkOverrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=NetworkFields)]


@dataclass
class OnStudy:
    """What the commands that read a study's file take."""

    file: File
    """The study, a TOML file."""
    imports: Imports = ()
    """Import a module first, for models of your own."""
    run: Overrides = field(default_factory=RunFields)
    """Override the study's base run."""


@dataclass
class Plan(OnStudy):
    """List a study's runs, what each costs, how long they take, and what its contrasts change. Writes nothing."""

    out: Path | None = None
    """Folder of the results, whose plan is taken as it was frozen; by default results/NAME/."""
    settings: PlanSettings = field(default_factory=PlanFlags)
    """For how many workers the time is reckoned."""
    json: bool = False
    """Print every figure for programs, as JSON."""


@dataclass
class Run(OnStudy):
    """Train every run that has no result yet; ends with a table, figures and a page."""

    out: Path | None = None
    """Folder of the results; by default results/NAME/ below the current folder."""
    confirm: bool = False
    """Of a study that tunes: after the search, train its runs, with fresh seeds, at the chosen values."""
    settings: RunSettings = field(default_factory=RunFlags)
    """What every engine is told."""
    engine: str = "local"
    """local: processes of this machine; ray: a Ray cluster; torchrun: each run by all ranks that torchrun started;
    or one of your own, which a module of --import registers."""
    address: str | None = None
    """ray only: HOST:PORT of a cluster, auto for the one of this machine; by default one is started here."""
    run_cpus: float = 1.0
    """ray only: CPUs that each run takes."""
    run_gpus: float = 0.0
    """ray only: GPUs that each run takes, also a part of one."""
    run_ranks: int = 1
    """ray only: tasks that train each run together, each with its part of every batch and so many CPUs and GPUs."""


@dataclass
class Results:
    """What the commands that read results take."""

    study: File
    """A study's TOML file, or its folder of results."""
    out: Path | None = None
    """Folder of the results, if it is not results/NAME/."""
    imports: Imports = ()
    """Import a module first, for models of your own."""


@dataclass
class Status(Results):
    """How many runs of a study are done, diverged, failed and left."""


@dataclass
class Doctor(Results):
    """Say what is wrong in a study's folder, with status 1 where something is."""

    repair: bool = False
    """Move torn lines to results.bad, and remove damaged checkpoints and what is left over."""


@dataclass
class Report(Results):
    """Draw the figures and write the page anew, from the rows that there are."""


@dataclass
class Export(Results):
    """Write the rows, or the table of the study for a paper or a page; with --contrasts what its contrasts show."""

    to: Path = Path("results.csv")
    """File to write; its ending says what: rows as .csv, .parquet or .json (lines), the table as .tex or .md."""
    contrasts: bool = False
    """Of what the study's contrasts show, instead of its runs."""


@dataclass
class Audit:
    """Count a network's cost, and explain how other counters differ from it."""

    model: Annotated[str, tyro.conf.Positional]
    """A family, such as probe."""
    image_size: int = 32
    """Side of the images in pixels."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 10
    """Classes of the network."""
    batch_size: int | None = None
    """Also measure latency, and time and peak memory of a training step of so many images."""
    layers: bool = False
    """Also list every layer."""
    imports: Imports = ()
    """Import a module first, for models of your own."""
    run: NetworkOverrides = field(default_factory=NetworkFields)
    """Fields of the network."""


@dataclass
class Bench:
    """Measure speed on this machine: of the operation, a step, a whole study, a large network. Takes minutes."""

    what: Annotated[What, tyro.conf.Positional]
    """op: the spatial half beside the library's; train: a step beside other loops; sweep: a study beside a script;
    models: Xception beside Keras and torch.nn; engine: what a study costs beside its training; steps: a step of every
    network of a study (--study)."""
    out: Path = Path("results/bench")
    """Folder for WHAT.csv and WHAT.machine.json."""
    shape: tuple[int, int, int, int] | None = None
    """op only: one shape N C H W instead of the four standard ones."""
    study: Path | None = None
    """steps only: folder of a study that has been planned."""
    threads: int = 2
    """Threads that torch may use; for sweep, processes."""


def parse(words: Sequence[str]) -> Any:
    """The command that was given; of plan, run and audit, `run` holds just the fields that the words name.

    Raises SpecError for what no command can mean; wrong flags leave through SystemExit, with status 2.
    """
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words and not words[0].startswith("-") and words[0] not in _commands():
        near = nearest(words[0].lower(), _commands())
        meant = f"; did you mean {near!r}?" if near else "."
        raise SpecError(f"{words[0]}: no such command{meant} Commands: {', '.join(_commands())} (spectrum --help)")
    _import_first(words)
    command = _read(words or ["--help"])
    if isinstance(command, OnStudy | Audit):
        command.run = _named_fields(command.run, words)
    if isinstance(command, Plan | Run):
        EngineSettings(**vars(command.settings))  # which refuses what cannot be
    return command


def completion_script(shell: str) -> str:
    """The script by which a shell completes the words of this command, made by tyro.

    Raises SpecError for a shell that has none.
    """
    if shell not in SHELLS:
        raise SpecError(f"{PRINT_COMPLETION} {shell}: expected {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        _read([PRINT_COMPLETION, shell])
    text = script.getvalue()
    for theirs, ours in COMPLETED.items():
        text = text.replace(theirs, ours)
    return text


def _commands() -> dict[str, Any]:
    return {
        "plan": Plan(tyro.MISSING),
        "run": Run(tyro.MISSING),
        "status": Status(tyro.MISSING),
        "doctor": Doctor(tyro.MISSING),
        "report": Report(tyro.MISSING),
        "export": Export(tyro.MISSING),
        "audit": Audit(tyro.MISSING),
        "bench": Bench(tyro.MISSING),
    }


def _read(words: Sequence[str]) -> Any:
    commands = _commands()
    return tyro.cli(
        tyro.extras.subcommand_type_from_defaults(
            commands, {name: type(command).__doc__ or "" for name, command in commands.items()}
        ),
        prog="spectrum",
        description="Studies of what lies between a regular and a depthwise separable convolution.",
        args=words,
    )


def _named_fields(run: Any, words: Sequence[str]) -> dict[str, Any]:
    """The fields that the words name, also where they say the default."""
    flags = {word.partition("=")[0].replace("_", "-") for word in words}
    dashed = {name: name.replace("_", "-") for name in vars(run)}
    return {name: getattr(run, name) for name, flag in dashed.items() if {f"--{flag}", f"--no-{flag}"} & flags}


def _import_first(words: Sequence[str]) -> None:
    """Modules named by --import, which may register the models that the study's file names."""
    modules = [following for word, following in pairwise(words) if word == "--import"]
    modules += [word.removeprefix("--import=") for word in words if word.startswith("--import=")]
    if modules:
        from spectrum.design.own_modules import import_modules

        import_modules(modules)

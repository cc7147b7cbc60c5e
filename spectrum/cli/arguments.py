"""Arguments of each command: one record per command, filled from the command line.

Flags that override a study's base run, or describe a network, are fields of `RunConfig`, with the same help. `--help`
of a long command shows the flags that most users need; `--help-all` shows all of them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_type_hints

import tyro
from pydantic import BaseModel

from spectrum._records import SpecError
from spectrum._registry import nearest
from spectrum.cli.flags import Kind, check_values, kind_of
from spectrum.design.keys import NETWORK
from spectrum.design.run import RunConfig
from spectrum.engines.interface import EngineSettings
from spectrum.models.families import OWN

PRINT_COMPLETION = "--tyro-print-completion"
SHELLS = ("bash", "zsh", "fish")
What = Literal["op", "train", "sweep", "models", "engine", "steps"]
# tyro does not complete positional words. The words of bench are known; every other one is the file or folder of a
# study. Flags are offered once a dash is typed, else an empty word would never offer a file. fish puts this code into
# double quotes, so it contains none.
OFFERED = f"""
def offered(words, current_index):
    word = words[current_index] if current_index < len(words) else ''
    known = [one for one in get_completions(words, current_index, COMPLETION_SPEC) if word or one[0] != '-']
    if words[1:current_index] == ['bench']:
        known += [one for one in {get_args(What)} if one.startswith(word)]
    return known or ['__TYRO_COMPLETE_FILES__']

"""
COMPLETED = {  # parts of tyro's script and their replacements
    "= get_completions(words, current_index, COMPLETION_SPEC)": "= offered(words, current_index)",
    "\ndef main() -> None:": f"{OFFERED}\ndef main() -> None:",
    'compgen -f -- "$cur"': 'compgen -f -- "$2"',  # tyro would join the word to the one before it
    "complete -F": "complete -o filenames -F",  # completes a folder with a slash at its end
}
HELP, HELP_ALL = ("-h", "--help"), "--help-all"
SHOWN = {  # flags in the short help
    "run": ("out", "imports", "workers", "device", "engine", "confirm", "verbose",
            "dataset", "train_images", "model", "epochs", "batch_size", "lr"),
    "plan": ("out", "imports", "workers", "json", "verbose",
             "dataset", "train_images", "model", "epochs", "batch_size", "lr"),
    "audit": ("image_size", "channels", "classes", "batch_size", "layers", "imports", "depth", "segments", "width"),
}  # fmt: skip
EXAMPLES = {
    "run": (
        "spectrum run experiments/quickstart.toml --workers 2",
        "spectrum run experiments/quickstart.toml --epochs 2 --out results/short",
    ),
    "plan": (
        "spectrum plan experiments/quickstart.toml",
        "spectrum plan experiments/quickstart.toml --epochs 20 --workers 8",
    ),
    "status": ("spectrum status results/quickstart", "spectrum status experiments/quickstart.toml"),
    "doctor": ("spectrum doctor results/quickstart", "spectrum doctor results/quickstart --repair"),
    "report": ("spectrum report results/quickstart", "spectrum report experiments/quickstart.toml --out elsewhere"),
    "export": (
        "spectrum export results/quickstart --to runs.csv",
        "spectrum export results/curve --contrasts --to comparisons.tex",
    ),
    "compare": (
        "spectrum compare runs.csv --by method --pair seed --metric accuracy --margin 0.005",
        "spectrum compare wandb.csv --by optimizer lr --pair seed --metric val_loss --lower-is-better",
    ),
    "audit": (
        "spectrum audit probe --segments 8 --layers",
        "spectrum audit xception --image-size 299 --classes 1000 --batch-size 1",
    ),
    "segment": (
        "spectrum segment torchvision.models:resnet18 --image-size 224",
        "spectrum segment my_module:trained --segments 1 8 per_channel --mid-channels 2 --layers",
    ),
    "bench": ("spectrum bench op", "spectrum bench steps --study results/quickstart"),
}
BENCHMARKS: dict[What, str] = {
    "op": "the 3×3 at every number of segments, compared with PyTorch's own",
    "train": "a training step, compared with other training loops",
    "sweep": "a whole study, compared with a plain script",
    "models": "Xception, compared with Keras and torch.nn",
    "engine": "overhead per run, and time to read a folder of 100,000 rows",
    "steps": "a training step of every network of a study (needs --study)",
}
File = Annotated[Path, tyro.conf.Positional]
Switch = tyro.conf.FlagCreatePairsOff[bool]  # off by default, and so without a flag that turns it off
Folder = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE"), tyro.conf.UseAppendAction]


def _flags(record: type[BaseModel], fields: Sequence[str], hints: Mapping[str, str] | None = None) -> type:
    """Make a record with fields of another record, for the command line to fill: without checks, with help per field.

    Args:
        record: record with the fields.
        fields: names of the fields.
        hints: by field, what help shows as the default, if that is not the field's own.
    """
    known, hints = record.model_fields, hints or {}
    return make_dataclass(
        f"{record.__name__}Flags",
        [
            (
                name,
                Annotated[
                    known[name].annotation,
                    tyro.conf.arg(
                        help=_without_default(known[name].description or "")
                        if name in hints
                        else known[name].description,
                        help_behavior_hint=hints.get(name, "" if known[name].default is None else None),
                        metavar=_metavar(known[name].annotation),
                    ),
                ],
                field(default=known[name].default),
            )
            for name in fields
        ],
    )


def _without_default(description: str) -> str:
    """What a field means, without the clause that names its default; a hint names another.

    >>> _without_default("Train on a part, with this many images; by default on all of it.")
    'Train on a part, with this many images.'
    """
    return re.sub(r"; by default[^;.]*(?=[;.])", "", description)


def _metavar(annotation: Any) -> str | None:
    """Name of an optional number's value in help; None leaves it to tyro."""
    alternatives = get_args(annotation)
    if len(alternatives) != 2 or type(None) not in alternatives:
        return None
    (kind,) = (get_args(one)[0] if get_args(one) else one for one in alternatives if one is not type(None))
    return {int: "INT", float: "FLOAT"}.get(kind)


RunFields = _flags(
    RunConfig, list(RunConfig.model_fields), dict.fromkeys(RunConfig.model_fields, "(default: the study's value)")
)
NetworkFields = _flags(
    RunConfig,
    [*(name for name in NETWORK if name != "model"), "width", "widths"],
    dict.fromkeys(OWN, "(default: the architecture's own)"),
)
PlanFlags = _flags(EngineSettings, ["workers"])
# `imports` is a field of the command itself
RunFlags = _flags(EngineSettings, [name for name in EngineSettings.model_fields if name != "imports"])
PlanSettings = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=PlanFlags)]
RunSettings = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=RunFlags)]
NESTED = ("run", "settings")  # fields of a command that contain a record of flags
Overrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=RunFields)]
NetworkOverrides = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=NetworkFields)]


@dataclass
class OnStudy:
    """Arguments of the commands that read a study's file."""

    file: File
    """A study's TOML file."""
    imports: Imports = ()
    """Import a module first, for models and data sets of your own."""
    run: Overrides = field(default_factory=RunFields)
    """Override options of the study's [base]."""


@dataclass
class Plan(OnStudy):
    """List a study's configurations, their cost, the training time, and what each comparison changes. Write nothing."""

    out: Folder = None
    """Folder of the results; its frozen plan is used if there is one. By default results/NAME/."""
    settings: PlanSettings = field(default_factory=PlanFlags)
    """Settings for the estimate of the time."""
    json: Switch = False
    """Print every number as JSON, for programs."""
    verbose: Switch = False
    """Describe each data set completely: images per class, source, and origin of the test images."""


@dataclass
class Run(OnStudy):
    """Train every run that has no result yet; then print a table, draw the figures and write report.html."""

    out: Folder = None
    """Folder of the results; by default results/NAME/ in the current folder."""
    confirm: Switch = False
    """After the learning-rate sweep of a study with [tune], train the final runs at the chosen values."""
    stop_on_failure: Switch = False
    """After the first failed run start no other; runs in training save a checkpoint and stop, to be resumed."""
    log: Literal["tensorboard"] | None = None
    """Also write the curves of each run that has ended as event files, in tensorboard/ of the study's folder."""
    verbose: Switch = False
    """Describe each data set completely: images per class, source, and origin of the test images."""
    settings: RunSettings = field(default_factory=RunFlags)
    """Where and how to train."""
    engine: str = "local"
    """local: processes of this machine; ray: a Ray cluster; torchrun: all ranks of torchrun train each run together. Or
    the name of an engine that a module of --import registers."""
    address: str | None = None
    """ray only: HOST:PORT of a cluster, or auto for that of this machine; by default a new one is started here."""
    run_cpus: float = 1.0
    """ray only: CPUs per run."""
    run_gpus: float = 0.0
    """ray only: GPUs per run; 0.5 puts two runs on one GPU."""
    run_ranks: int = 1
    """ray only: tasks that train each run together, each with its part of every batch and its own CPUs and GPUs."""


@dataclass
class Results:
    """Arguments of the commands that read results."""

    study: File
    """A study's TOML file, or its folder of results."""
    out: Folder = None
    """Folder of the results, if it is not results/NAME/."""
    imports: Imports = ()
    """Import a module first, for models and data sets of your own."""


@dataclass
class Status(Results):
    """Count a study's runs that are done, diverged, failed or left, and say why runs failed."""


@dataclass
class Doctor(Results):
    """Check a study's folder for faults; exit status 1 if there are any."""

    repair: Switch = False
    """Move torn lines to results.bad; remove damaged checkpoints and leftover files."""


@dataclass
class Report(Results):
    """Redraw the figures and rewrite report.html, from the runs that have a result. Train nothing."""


@dataclass
class Export(Results):
    """Write a study's runs, its table or its comparisons to a file for other programs, a paper or a page."""

    to: Path = Path("results.csv")
    """File to write. Its ending decides: runs as .csv, .parquet or .json (lines), a table as .tex or .md."""
    contrasts: Switch = False
    """Write the results of the comparisons ([[contrasts]]) instead of the runs."""


@dataclass
class Compare:
    """Compare methods in a table of runs from anywhere: CSV, Parquet, JSON lines, W&B exports, TensorBoard folders."""

    runs: File
    """A file with a row per run, or a folder with TensorBoard's event files."""
    by: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN [COLUMN ...]")]
    """Columns whose values are the methods."""
    metric: Annotated[str, tyro.conf.arg(metavar="COLUMN")]
    """Column of results; a missing value is a failed run."""
    pair: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN [COLUMN ...]", help_behavior_hint="")] = ()
    """Columns in which runs of two methods match, such as seed; without them, comparisons are unpaired."""
    average_over: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN [COLUMN ...]", help_behavior_hint="")] = ()
    """Columns, such as dataset, over whose values a pair's runs are averaged first."""
    against: Annotated[str | None, tyro.conf.arg(metavar="METHOD", help_behavior_hint="")] = None
    """Compare every method with this one only; by default each with each."""
    margin: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    """A difference below which methods count as equivalent, in the metric's unit: 0.005 is 0.5 pp of accuracy."""
    lower_is_better: bool = False
    """The better method has the lower metric, as for a loss."""
    test_images: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Images that the accuracies were measured on, for the noise floor."""
    pattern: Annotated[str | None, tyro.conf.arg(metavar="REGEX", help_behavior_hint="")] = None
    """For runs with names: their parts as columns, such as '(?P<method>.+)-seed(?P<seed>[0-9]+)'."""
    to: Folder = None
    """Also write the comparisons, a row each, to this file: .csv, .parquet or .json (lines)."""
    figure: Folder = None
    """Also draw them, as a forest plot, to this file: .png, .pdf or .svg."""


@dataclass
class Audit:
    """Count a network's parameters and MACs, and explain how other counters differ."""

    model: Annotated[str, tyro.conf.Positional]
    """An architecture, such as probe."""
    image_size: int = 32
    """Side of the images in pixels."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 10
    """Classes of the network."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Also measure latency, and time and peak memory of a training step with this many images."""
    layers: Switch = False
    """Also list every layer."""
    imports: Imports = ()
    """Import a module first, for models of your own."""
    run: NetworkOverrides = field(default_factory=NetworkFields)
    """Options of the network."""


@dataclass
class Segment:
    """Show what segments would do to a network of yours: parameters, MACs, and how much of its kernels they keep."""

    network: Annotated[str, tyro.conf.Positional]
    """MODULE:FUNCTION, a function without arguments that returns the network, such as torchvision.models:resnet18."""
    segments: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER [NUMBER ...]")] = ("1", "4", "16", "per_channel")
    """Numbers of segments, or per_channel."""
    select: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN [PATTERN ...]", help_behavior_hint="")] = ()
    """Names of layers to replace, such as 'layer3.*'; by default every k×k convolution with enough channels."""
    order: Literal["pointwise_first", "spatial_first"] = "pointwise_first"
    """Which of the two convolutions of a new layer comes first."""
    pointwise: bool = True
    """Whether a new layer has a 1×1 beside its segmented convolution."""
    mid_channels: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Channels between the two, as a multiple of a layer's default."""
    image_size: int = 32
    """Side of the images in pixels."""
    channels: int = 3
    """Channels of the images."""
    time: bool = False
    """Also measure the latency of one image; takes seconds for each number of segments."""
    layers: bool = False
    """Also list every k×k convolution, and why it is replaced or not."""


@dataclass
class Bench:
    """Measure speed on this machine: of the layer, of training, of a whole study. Takes minutes."""

    what: Annotated[What, tyro.conf.Positional]
    """The benchmark; what each measures is listed below."""
    out: Path = Path("results/bench")
    """Folder with a folder for each processor or card, for WHAT.csv and WHAT.machine.json."""
    device: Literal["cpu", "cuda"] = "cpu"
    """op, train, sweep and models only: where to measure."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """op only: type of all tensors; any other than float32 becomes part of the table's name."""
    shape: Annotated[tuple[int, int, int, int] | None, tyro.conf.arg(metavar="N C H W", help_behavior_hint="")] = None
    """op only: one shape instead of the standard ones."""
    all: bool = False
    """op only: every kernel size, stride, dilation, width and layout, without torch.compile; table op_all.csv."""
    study: Folder = None
    """steps only: folder of a planned study."""
    threads: int = 2
    """Threads that torch may use; for sweep, processes."""


def parse(words: Sequence[str]) -> Any:
    """Parse the command line into the record of its command; in plan, run and audit, `run` only has the given options.

    Raises SpecError for an unknown command or flag; wrong values end the process by SystemExit, with status 2.
    """
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words and not words[0].startswith("-") and words[0] not in _commands():
        near = nearest(words[0].lower(), _commands())
        meant = f"; did you mean {near!r}?" if near else "."
        raise SpecError(f"{words[0]}: no such command{meant} Commands: {', '.join(_commands())} (spectrum --help)")
    if not words or {*HELP, HELP_ALL} & set(words):
        _print_help(words)
    _check_flags(words)
    _import_first(words)
    command = _read(words)
    if isinstance(command, OnStudy | Audit):
        command.run = _named_fields(command.run, words)
    if isinstance(command, Plan | Run):
        EngineSettings(**vars(command.settings))  # raises SpecError for a wrong value
    return command


def _print_help(words: Sequence[str]) -> NoReturn:
    """Print the help of one command, or the overview, and end with status 0."""
    name = next((word for word in words if word in _commands()), None)
    commands = _commands()
    if HELP_ALL not in words:
        commands = {known: _shortened(known, command) for known, command in commands.items()}
    try:
        _read([*([] if name is None else [name]), "--help"], commands)
    except SystemExit:
        print("\n".join(_after_help(name, is_short=HELP_ALL not in words)))
        raise
    raise AssertionError("printing help ends the process")


def _after_help(name: str | None, *, is_short: bool) -> list[str]:
    """Lines below the flags of a command: its benchmarks, where more flags are listed, examples."""
    if name is None:
        return ["Help of one command: spectrum run --help", "Example: spectrum run experiments/quickstart.toml"]
    lines = []
    if name == "bench":
        lines += ["Benchmarks:", *(f"  {what:7} {measures}" for what, measures in BENCHMARKS.items()), ""]
    if name in SHOWN and is_short:
        lines += [f"More flags, one per option of a run or network: spectrum {name} {HELP_ALL}", ""]
    return [*lines, "Examples:", *(f"  {example}" for example in EXAMPLES[name])]


def _shortened(name: str, command: Any) -> Any:
    """The same command with the flags of its short help; other commands keep all flags."""
    if name not in SHOWN:
        return command
    kind = type(command)
    kept = []
    for one in fields(kind):
        hint = get_type_hints(kind, include_extras=True)[one.name]
        if one.name in NESTED:
            flags = type(getattr(command, one.name))
            shown = [
                (flag.name, flag.type, field(default=flag.default))
                for flag in fields(flags)
                if flag.name in SHOWN[name]
            ]
            short = make_dataclass(f"Short{flags.__name__}", shown)
            hint = Annotated[Any, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor=short)]
            kept.append((one.name, hint, field(default_factory=short)))
        elif one.default is not MISSING and one.name not in SHOWN[name]:
            kept.append((one.name, tyro.conf.Suppress[hint], field(default=one.default)))  # type: ignore[misc,valid-type]
    short = make_dataclass(kind.__name__, kept, bases=(kind,))
    short.__doc__ = kind.__doc__
    return short(tyro.MISSING)


def _check_flags(words: Sequence[str]) -> None:
    """Raise SpecError for an unknown flag, with the most similar known one, and for a value that a flag cannot take."""
    command = _commands().get(words[0])
    if command is None:
        return
    known = set(_flags_of(command))
    for word in words[1:]:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = nearest(flag, known)
            meant = f"; did you mean {near}?" if near else "."
            raise SpecError(
                f"{flag}: spectrum {words[0]} has no such flag{meant} All of them: spectrum {words[0]} {HELP_ALL}"
            )
    check_values(words[1:], dict(_kinds_of(command)))


def _flags_of(command: Any, *, has_pairs: bool = False) -> Iterator[str]:
    """Every flag of a command, with its dashes; those of a run or network also turn an option off."""
    for one in fields(command):
        if one.name in NESTED:
            yield from _flags_of(getattr(command, one.name), has_pairs=True)
            continue
        name = "import" if one.name == "imports" else one.name.replace("_", "-")
        yield f"--{name}"
        if has_pairs and isinstance(one.default, bool):
            yield f"--no-{name}"


def _kinds_of(command: Any) -> Iterator[tuple[str, Kind]]:
    """What each flag of a command takes."""
    hints = get_type_hints(type(command), include_extras=True)
    for one in fields(command):
        if one.name in NESTED:
            yield from _kinds_of(getattr(command, one.name))
        else:
            yield f"--{one.name.replace('_', '-')}", kind_of(hints[one.name])


def completion_script(shell: str) -> str:
    """Script that completes the words of this command in a shell, made by tyro.

    Raises SpecError for an unsupported shell.
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
        "compare": Compare(tyro.MISSING, tyro.MISSING, tyro.MISSING),
        "audit": Audit(tyro.MISSING),
        "segment": Segment(tyro.MISSING),
        "bench": Bench(tyro.MISSING),
    }


def _read(words: Sequence[str], commands: Mapping[str, Any] | None = None) -> Any:
    commands = _commands() if commands is None else commands
    return tyro.cli(
        tyro.extras.subcommand_type_from_defaults(
            dict(commands), {name: type(command).__doc__ or "" for name, command in commands.items()}
        ),
        prog="spectrum",
        description="Train networks along the spectrum from regular to depthwise separable convolutions, and compare "
        "them. A study is a TOML file that says which networks to train and what to compare.",
        args=words,
    )


def _named_fields(run: Any, words: Sequence[str]) -> dict[str, Any]:
    """Options given on the command line, even if their value is the default."""
    flags = {word.partition("=")[0].replace("_", "-") for word in words}
    dashed = {name: name.replace("_", "-") for name in vars(run)}
    return {name: getattr(run, name) for name, flag in dashed.items() if {f"--{flag}", f"--no-{flag}"} & flags}


def _import_first(words: Sequence[str]) -> None:
    """Import modules given by --import, which may register the models in the study's file."""
    modules = [following for word, following in pairwise(words) if word == "--import"]
    modules += [word.removeprefix("--import=") for word in words if word.startswith("--import=")]
    if modules:
        from spectrum.design.own_modules import import_modules

        import_modules(modules)

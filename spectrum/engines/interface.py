"""Interface of an engine: it trains runs anywhere and reports how each one ended.

    EngineSettings    settings of every engine: workers, device, modules, checkpoints, limits
    Work              the same for one study, with its folder
    Engine            base class of an engine of your own
    register_engine   names an engine, for `run_study(study, engine="mine")` and `spectrum run --engine mine`

Nothing here loads torch, Ray or a pool of processes: engines are imported when they are used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from spectrum._records import Record, SpecError, as_tuple
from spectrum._registry import Registry, calling_module, check_maker, imported
from spectrum.design.run import RunConfig
from spectrum.engines.saving import Saving
from spectrum.training.weight_files import KEPT, sha256_of

Minutes = Annotated[float, Field(gt=0)]


class EngineError(RuntimeError):
    """Workers cannot be started, or keep dying."""


class EngineSettings(Record):
    """Settings of every engine. Frozen; raises SpecError for an impossible value.

    >>> EngineSettings(workers=2, device="cpu").run_minutes is None
    True
    """

    workers: Annotated[int, Field(ge=1)] | None = None
    """Runs trained at the same time; by default one per core or per GPU, and on a cluster as many as it has room for.
    Local workers share the cores equally; $OMP_NUM_THREADS, if set, is the most threads of each."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; by default the fastest kind that torch finds."""
    imports: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Modules to import first in every worker, to register your own models and data sets."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 1.0
    """Shortest time between two checkpoints of a run, from which an interrupted run resumes; 0: every step."""
    run_minutes: Minutes | None = None
    """Longest time for one run, from its start or its latest checkpoint; a run that takes longer fails."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Largest private memory of one worker in GB, images included; a run that needs more fails."""
    tune: Literal["auto", "on", "off"] | None = None
    """Measure the fastest backend of each layer before training: on, off, or auto, which measures for studies that
    train much longer than that takes; by default $SPECTRUM_TUNE, else auto."""
    keep_weights: bool = False
    """Keep the trained network of each run in weights/ of the study's folder, for `load_model`; not those of a
    learning-rate sweep, nor of runs that diverge. Results and ids do not depend on it."""


class Work(EngineSettings):
    """One study for an engine: the settings, the study's folder, and its number of runs."""

    folder: Path | None = None
    """Folder of the study, for checkpoints and logs; with None nothing is saved or logged."""
    runs: int | None = None
    """Number of runs of the whole study, finished ones included. If it is below the number of workers, each worker gets
    more threads. Runs left over are not counted instead, because the number of threads decides the last bits of the
    weights."""
    choices: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Backends in the study's plan: machine key → shape class → name. A worker on another machine measures its own if
    `tune` is "on"."""

    @property
    def saving(self) -> Saving | None:
        """Where and how often runs save checkpoints; a run with a time limit saves at least four times."""
        if self.folder is None:
            return None
        most = self.checkpoint_minutes if self.run_minutes is None else self.run_minutes / 4
        return Saving(self.folder, min(self.checkpoint_minutes, most))


@dataclass(frozen=True)
class Outcome:
    """How one run ended: a result with its provenance, or the reason for its failure."""

    run: RunConfig
    result: dict[str, Any] | None  # fields of training.loop.Result, and "provenance"
    reason: str | None
    attempts: int


class Engine(ABC):
    """Base class of engines, which train runs. For an engine of your own, only `run` must be written.

    `spectrum.engines.worker.train_one` trains one run in this process, with its log and its checkpoints.

    >>> from spectrum.engines.worker import train_one
    >>> class OneByOne(Engine):
    ...     starts_processes = False
    ...
    ...     def run(self, runs, work):
    ...         for run in runs:
    ...             try:
    ...                 yield Outcome(run, train_one(run, work, threads=1), None, attempts=1)
    ...             except Exception as error:
    ...                 yield Outcome(run, None, f"{type(error).__name__}: {error}", attempts=1)
    """

    starts_processes: ClassVar[bool] = True
    """Whether workers are separate processes, which must import the modules that register models and data sets."""
    elsewhere: ClassVar[bool] = False
    """Whether workers may be on other machines, which cannot read the script of this one."""

    unused: ClassVar[tuple[str, ...]] = ()
    """Names of settings that this engine ignores; they are refused if they are set."""

    @classmethod
    def check(cls, settings: EngineSettings) -> None:
        """Raise SpecError for settings that this engine cannot follow; called before anything is written."""
        for name in cls.unused:
            if getattr(settings, name) != EngineSettings.model_fields[name].default:
                raise SpecError(f"{name}: this engine ({cls.__name__}) does not use it; leave it out")

    def device(self, asked: str) -> str:
        """Resolve the device on which runs are trained: "cpu", "cuda" or "mps".

        Args:
            asked: device of the settings; "auto" for the fastest kind available.

        Raises SpecError for a device that is not available.
        """
        from spectrum.training.provenance import check_device

        return check_device(asked)

    def threads(self, work: Work) -> int | None:
        """Threads of each worker, if workers are of this machine's CPU, where backends are then measured before them.

        Args:
            work: settings, with a device that is no longer "auto".

        None, the default, lets each worker measure before its first step.
        """
        return None

    @abstractmethod
    def run(self, runs: Iterable[RunConfig], work: Work) -> Generator[Outcome, None, None]:
        """Yield one outcome per run, in the order in which they end. Closing the iterator stops unfinished runs, which
        save a checkpoint first.

        Args:
            runs: runs to train, each once.
            work: settings, with a device other than "auto", and the study's folder.

        Raises EngineError if no workers can be started.
        """


RESULT_COLUMNS = (  # columns of a row that come from a run's result
    "test_accuracy",
    "test_loss",
    "test_images",
    "val_accuracy",
    "val_loss",
    "train_loss",
    "train_seconds",
    "images_per_second",
    "peak_memory_mb",
    "weights_sha256",
)
RESULT = ("status", "history", "provenance", *RESULT_COLUMNS)  # fields of every run that has a result


def outcomes_of(engine: Engine, runs: Sequence[RunConfig], work: Work) -> Generator[Outcome, None, None]:
    """Yield what an engine gives, checked: one outcome per run. Closing the iterator stops unfinished runs.

    Raises EngineError for an engine that yields something else, an outcome twice, or none for some runs.
    """
    name, waiting = type(engine).__name__, {run.id for run in runs}
    given = engine.run(runs, work)
    if not isinstance(given, Iterable):
        raise EngineError(f"engine {name}: its run gave {type(given).__name__}; yield an Outcome for each run")
    try:
        for outcome in given:
            _check_outcome(name, outcome, waiting)
            if work.keep_weights:
                _check_weights(name, outcome)
            waiting.remove(outcome.run.id)
            yield outcome
    finally:
        if isinstance(given, Generator):
            given.close()
    if waiting:
        lost = f"{len(waiting)} of {len(runs)} runs"
        raise EngineError(f"engine {name}: gave no outcome for {lost}; yield one for each")


def _check_outcome(name: str, outcome: object, waiting: Collection[str]) -> None:
    if not isinstance(outcome, Outcome):
        raise EngineError(f"engine {name}: yielded {type(outcome).__name__}; yield an Outcome for each run")
    if outcome.run.id not in waiting:
        raise EngineError(f"engine {name}: yielded run {outcome.run.id}, which is done or was not asked for")
    if outcome.result is None:
        return
    missing = [field for field in RESULT if field not in outcome.result]
    if missing:
        raise EngineError(f"engine {name}: its result has no {', '.join(missing)}; give what train_one returns")


def _check_weights(name: str, outcome: Outcome) -> None:
    """Raise EngineError for a finished run whose weights are not given, or are not those of its result."""
    result = outcome.result
    if result is None or result["status"] != "done":
        return
    data = result.get("weights")
    if not isinstance(data, bytes) or KEPT not in result["provenance"]:
        raise EngineError(f"engine {name}: its result has no weights to keep; give what train_one returns")
    if sha256_of(data) != result["weights_sha256"]:
        raise EngineError(f"engine {name}: the weights of run {outcome.run.id} are not those of its weights_sha256")


Factory = Callable[[], Engine]
_ENGINES: Registry[str | Factory] = Registry(
    "engine",
    {
        "local": "spectrum.engines.local:LocalEngine",
        "ray": "spectrum.engines.ray:RayEngine",
        "torchrun": "spectrum.engines.torchrun:RankEngine",
    },
)


def list_engines() -> list[str]:
    """Names of all engines, built in and registered."""
    return _ENGINES.names()


def register_engine(name: str, factory: Factory) -> None:
    """Add an engine of your own under a name.

    Args:
        name: a new name. A module may register the same factory again, and its own factory anew when it is reloaded.
        factory: called without arguments when a study runs on the engine, such as a subclass of `Engine`.

    Raises ValueError for a name that is taken or invalid, and for a factory that cannot be called without arguments.
    """
    check_maker("factory", factory, "an Engine")
    _ENGINES.add(name, factory, maker=factory, home=calling_module())


def engine_of(engine: object) -> Engine:
    """The given engine, or the engine of this name. Raises SpecError for anything else."""
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str):  # such as a class instead of an object
        kind = engine.__name__ if isinstance(engine, type) else type(engine).__name__
        raise SpecError(f"engine = {kind}: expected a name, or an object whose class is a subclass of Engine")
    if engine not in _ENGINES:
        raise SpecError(
            f"engine = {engine!r}: unknown; {_ENGINES.hint(engine)} (your own: register_engine, in a module of imports)"
        )
    made = imported(_ENGINES[engine])()
    if not isinstance(made, Engine):
        raise SpecError(f"engine = {engine!r}: its factory gave {type(made).__name__}; give a subclass of Engine")
    return made

"""From a study to its rows: the plan first, then training of the runs that have no row yet.

run_study    freezes the plan, trains what is left, appends a row per run

A study that tunes has two phases: the learning-rate sweep, which sees validation images only, then the final runs,
with seeds of their own, at the values that the sweep chose.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrum._records import SpecError
from spectrum.conv.backends.environment import VARIABLE, backend_of_environment
from spectrum.design.budgets import timed
from spectrum.design.effects import check_effects
from spectrum.design.keys import images_key
from spectrum.design.own_modules import Registered, check_workers_know, code_of, import_modules, modules_of, registered
from spectrum.design.plan import Plan, PlannedBudget, PlannedTuning
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study, Tune, as_study
from spectrum.engines.interface import (
    RESULT_COLUMNS,
    Engine,
    EngineSettings,
    Outcome,
    Work,
    engine_of,
    list_engines,
    outcomes_of,
)
from spectrum.engines.saving import LOGS
from spectrum.models import registered_in
from spectrum.study.backends import StudyBackends, asked_tune
from spectrum.study.contrasts import examine
from spectrum.study.identity import check_not_other, folder_of
from spectrum.study.pace import Pace
from spectrum.study.planning import CostedRun, plan_study, planned_run
from spectrum.study.store import FINISHED, Row, Store, StoreError, find_plan, latest_rows
from spectrum.study.tuning import Choice, choose, confirmed, extended, sweep
from spectrum.training.checkpoint_files import CHECKPOINTS

SWEEP, FINAL = "sweep", "final runs"  # phases of a study that tunes


@dataclass(frozen=True)
class Progress:
    """How far a call of `run_study` is. `row` is the one just written, None at the start of a phase.

    Counts are of all phases begun so far: of a study that tunes, the sweep, then the final runs.
    """

    total: int
    reused: int
    done: int = 0
    diverged: int = 0
    failed: int = 0
    row: Row | None = None
    phase: str = ""
    """SWEEP or FINAL of a study that tunes; empty for one that does not."""
    before: int = 0
    """Runs of earlier phases, which `total` counts."""
    work_ended: float | None = None
    """Training seconds of the runs that this phase has trained."""
    work_left: float | None = None
    """Expected training seconds of the runs that this phase has left."""

    @property
    def left(self) -> int:
        return self.total - self.reused - self.done - self.diverged - self.failed

    @property
    def ended(self) -> int:
        """Runs of this phase that have ended, or had a result already."""
        return self.total - self.left - self.before


@dataclass(frozen=True)
class Summary:
    """How a call of `run_study` ended. Counts are of training runs."""

    folder: Path
    total: int
    reused: int
    trained: int
    diverged: int
    failed: int
    set_aside: int  # torn rows moved to results.bad
    choices: tuple[Choice, ...] = ()  # of the sweep, once it is complete
    confirmed: bool = True  # False: only the sweep has run


def run_study(
    study: Study | str | Path,
    out: str | Path | None = None,
    *,
    engine: str | Engine = "local",
    confirm: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = warnings.warn,
    **settings: Any,
) -> Summary:
    """Train every run of a study that has no finished row yet, and append a row for each.

    Args:
        study: from `load_study`, or the path of its file.
        out: folder of the results; by default results/<name of the study>/ below the current folder.
        engine: where to train: "local" for processes of this machine, "ray", a name of `register_engine`, or an
            `Engine` such as `RayEngine(Cluster("auto", gpus=1))`.
        confirm: of a study that tunes, also train the final runs at the chosen values, once the sweep is complete;
            later calls with the same folder do so too.
        on_progress: called at the start of each phase and after every run.
        on_note: called with a sentence for what a reader of the plan should know, before anything is trained; by
            default a warning.
        **settings: fields of `EngineSettings`: workers, device, imports, checkpoint_minutes, run_minutes, memory_gb,
            tune.

    A run that was cut short goes on from its latest checkpoint, below checkpoints/ in the folder, to the same weights
    as without the cut. A run that fails gets a row with status "failed" and the reason; it is tried again by the next
    run. Raises SpecError, DataError, StoreError (also for a folder that holds another study) or EngineError (of a
    cluster) before anything is trained.

    In a script, call it below `if __name__ == "__main__":`, since worker processes import the script.

    >>> from spectrum import load_study
    >>> summary = run_study(load_study("experiments/quickstart.toml"), workers=2)  # doctest: +SKIP
    >>> summary.trained, summary.reused, summary.failed  # doctest: +SKIP
    (21, 0, 0)
    """
    study, asked = as_study(study), EngineSettings(**settings)
    asked = asked.model_copy(update={"tune": asked_tune(asked.tune)})
    if confirm and study.tune is None:
        raise SpecError(
            "confirm: this study has no [tune], so there is no learning-rate sweep to confirm; leave it out"
        )
    folder = folder_of(study, out)
    check_not_other(folder, study)
    runs = study.runs()
    models, datasets = (sorted({getattr(run, of) for run in runs}) for of in ("model", "dataset"))
    needed = registered(models, datasets)
    asked = asked.model_copy(update={"imports": modules_of(needed, [*study.imports, *asked.imports])})
    if isinstance(engine, str) and engine not in list_engines():
        import_modules(asked.imports)  # one of them may register it
    trainer = engine_of(engine)
    trainer.check(asked)
    frozen = find_plan(folder)
    planned: Sequence[CostedRun] | None = _from_plan(study, frozen)
    images = list(frozen.images) if frozen is not None and planned is not None else []
    if planned is None or not _all_finished(folder, frozen, study, confirm):
        asked = _prepared(study, frozen, trainer, asked, needed)
        tunes = asked_tune(asked.tune) != "off"
        planned, images = _planned(study, folder, frozen, planned, on_note, tunes)
    _check_same_models(folder, models)
    with Store(folder) as store:
        check_not_other(folder, study)  # once more, now that no other run can write here
        work = Work(**dict(asked), folder=folder)
        kept = {} if frozen is None else frozen.backends
        backends = StudyBackends(asked_tune(asked.tune), planned, images, kept)
        return _Run(store, study, planned, images, backends, trainer, work, on_progress).run(frozen, confirm=confirm)


def _prepared(
    study: Study,
    frozen: Plan | None,
    engine: Engine,
    asked: EngineSettings,
    needed: Sequence[Registered],
) -> EngineSettings:
    """The settings with a device that is there. Raises SpecError for a study that cannot be trained so."""
    if frozen is None or not frozen.is_of(study.hash):
        check_effects(study)  # before torch is loaded
    device = engine.device(asked.device)
    if (measured := timed(study.budget.match)) and device != "cpu":
        raise SpecError(f"budget.match = {measured[0]!r}: is measured on the CPU, not on {device}; give --device cpu")
    import_modules(asked.imports)
    _check_backend(engine, device)
    if engine.starts_processes:
        check_workers_know(needed, asked.imports, elsewhere=engine.elsewhere)
    return asked.model_copy(update={"device": device})


def _check_backend(engine: Engine, device: str) -> None:
    """Raise SpecError for a backend that workers would not find, or could not prepare.

    That is asked here once: every run would fail of it.
    """
    from spectrum.conv.backends.choice import choice_for, preferred_backend

    name = preferred_backend()
    if name is not None and engine.starts_processes:
        raise SpecError(
            f"prefer_backend({name!r}): holds in this process, and runs are trained in others; set {VARIABLE}={name}"
        )
    if name is None and backend_of_environment() is None:
        return
    try:
        choice_for(None, prepare=device == "cpu" and not engine.elsewhere)
    except ValueError as error:
        raise SpecError(str(error)) from None


def _planned(
    study: Study,
    folder: Path,
    frozen: Plan | None,
    known: Sequence[CostedRun] | None,
    on_note: Callable[[str], None],
    tunes: bool,
) -> tuple[Sequence[CostedRun], list[dict[str, Any]]]:
    """The study's runs, planned anew where the frozen plan is of other images, and what is known of the images."""
    from spectrum.data.images import described, read_once
    from spectrum.study.equal_networks import coincidences

    with read_once():
        if frozen is not None and known is not None and _is_of_other_images(folder, frozen, known):
            known = None
        planned = known or plan_study(study, frozen=frozen, tune=tunes)
        _check_same_images(folder, planned)
        images = described(one.run for one in planned)
    for note in coincidences(study, planned):
        on_note(note)
    return planned, images


def in_random_blocks(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """The order of training: seed by seed, and within a seed by id, which is a hash and so random but repeatable.

    What drifts in a machine over hours then falls on no end of the spectrum, and a study that is cut short has whole
    blocks of runs with the same seeds.
    """
    return sorted(runs, key=lambda run: (run.seed, run.id))


class _Run:
    """One call of `run_study`: trains runs, writes rows, counts."""

    def __init__(
        self,
        store: Store,
        study: Study,
        planned: Sequence[CostedRun],
        images: list[dict[str, Any]],
        backends: StudyBackends,
        engine: Engine,
        work: Work,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.store, self.study, self.planned = store, study, planned
        self.images = images  # what the plan says of them
        self.backends = backends
        self.engine, self.work, self.on_progress = engine, work, on_progress
        self.base = study.base.model_dump(mode="json")
        self.counts: Counter[str] = Counter()
        self.seen: set[str] = set()  # ids of the runs that were asked for
        self.reused = 0
        self.phase, self.before = "" if study.tune is None else SWEEP, 0
        self.pace = Pace([])
        self.fingerprints = {images_key(entry): entry["fingerprint"] for entry in images}  # as plan and rows have it

    def run(self, frozen: Plan | None, *, confirm: bool) -> Summary:
        """Train the whole study, or only its sweep if no more is asked for; `frozen` is the plan as it was found."""
        same = frozen if frozen is not None and frozen.is_of(self.study.hash) else None
        if same is not None and same.base:
            self.base = same.base  # without options that came to the package since
        if self.study.tune is None:
            self.freeze(self.planned)
            self.train(self.planned)
            return self.summary()
        once_confirmed = frozen is not None and frozen.tuning is not None and bool(frozen.runs)
        extended_before = same.tuning.grid if same is not None and same.tuning is not None else {}
        grid = extended_before or self.study.tune.grid()
        return self.tune(self.study.tune, grid, confirm=confirm or once_confirmed)

    def tune(self, settings: Tune, grid: dict[str, tuple[float, ...]], *, confirm: bool) -> Summary:
        """Train the sweep, wider where an edge is best, and the final runs if asked for."""
        while True:
            swept = sweep(self.planned, grid, settings.seeds)
            if {one.run.id for one in swept} - _finished(self.store.folder).keys():
                self.freeze([], swept, grid)
            rows = self.train(swept)
            if self.counts["failed"]:
                return self.summary(is_confirmed=False)
            choices = choose(swept, grid, rows)
            wider = extended(grid, choices, settings.grid(), settings.extend)
            if wider == grid:
                break
            grid = wider
        runs = confirmed(self.planned, choices)
        self.freeze(runs if confirm else [], swept, grid, choices)
        if confirm:
            self.phase, self.before = FINAL, len(self.seen)
            self.train(runs)
        return self.summary(choices, is_confirmed=confirm)

    def freeze(
        self,
        runs: Sequence[CostedRun],
        swept: Sequence[CostedRun] = (),
        grid: dict[str, tuple[float, ...]] | None = None,
        choices: Sequence[Choice] = (),
    ) -> None:
        """Write the plan as it stands."""
        study = self.study
        known: dict[str, Any] = {"images": tuple(self.images)} if self.images else {}  # early plans have none
        if grid is not None:
            known["tuning"] = PlannedTuning(
                grid=grid,
                networks=tuple(one.record() for one in self.planned),
                runs=tuple(one.record() for one in swept),
                choices=tuple(choice.record() for choice in choices),
            )
        if self.backends.kept:
            known["backends"] = self.backends.kept
        plan = Plan(
            study=study.name,
            question=study.question,
            file=f"{study.file_name}.toml",
            overrides=study.overrides,
            imports=self.work.imports,
            hash=study.hash,
            budget=PlannedBudget(**study.budget.model_dump()),
            base=self.base,
            varied=tuple(study.varied()),
            contrasts=tuple(one.record() for one in examine(study, self.planned)),
            runs=tuple(one.record() for one in runs),
            **known,
        )
        self.store.freeze(plan)

    def keep_backends(self) -> None:
        """Write the measured backends into the frozen plan."""
        plan = find_plan(self.store.folder)
        if plan is not None and plan.backends != self.backends.kept:
            self.store.freeze(plan.model_copy(update={"backends": self.backends.kept}))

    def train(self, planned: Sequence[CostedRun]) -> dict[str, Row]:
        """Train those that have no finished row; all finished rows by id."""
        finished = _finished(self.store.folder)
        by_id: dict[str, CostedRun] = {}
        for one in planned:
            by_id.setdefault(one.run.id, one)  # one network may serve several budgets
        left = in_random_blocks([one.run for id, one in by_id.items() if id not in finished])
        self.reused += len(by_id.keys() & finished.keys() - self.seen)
        self.seen |= by_id.keys()
        self.pace = Pace([by_id[run.id] for run in left])
        self._tell(None)
        self._remove_checkpoints(finished)
        if not left:
            return finished
        work = self.backends.work(self.work.model_copy(update={"runs": len(by_id)}), self.engine, left)
        self.keep_backends()
        with closing(outcomes_of(self.engine, left, work)) as outcomes:
            for outcome in outcomes:
                changed = self._images_changed(outcome)
                if changed is not None:
                    outcome = Outcome(outcome.run, None, changed, outcome.attempts)
                if outcome.result is not None and self.backends.note(outcome.result["provenance"]):
                    self.keep_backends()
                row = self._write(outcome, by_id[outcome.run.id])
                if row["status"] in FINISHED:
                    finished[row["id"]] = row
                    self._remove_checkpoints([row["id"]])
                self.counts[row["status"]] += 1
                self.pace.end(row["id"], row["train_seconds"])
                self._tell(row)
                if changed is not None:
                    raise StoreError(f"{self.store.folder}: {changed}")
        with suppress(OSError):
            (self.store.folder / LOGS).rmdir()  # if none had anything to say
        return finished

    def _images_changed(self, outcome: Outcome) -> str | None:
        """What to say where a run was trained on other images than the rows before it; None where it was not."""
        if outcome.result is None:
            return None
        run = outcome.run
        found = outcome.result["provenance"]["data_fingerprint"]
        known = self.fingerprints.setdefault(images_key(dict(run)), found)
        if found == known:
            return None
        return (
            f"the images of {run.dataset!r} changed during the run: fingerprint {known} before, {found} now "
            f"(run {run.id}); the rows before are kept, this result is not; put the earlier images back and run "
            "again, or give another --out"
        )

    def _write(self, outcome: Outcome, planned: CostedRun) -> Row:
        row = _row(self.study, planned)
        history: list[Row] = []
        if outcome.result is None:
            row |= {"status": "failed", "reason": outcome.reason}
        else:
            result = outcome.result
            row |= {name: result[name] for name in ("status", *RESULT_COLUMNS)}
            row["provenance"] = result["provenance"]
            history = [{"id": row["id"], **epoch} for epoch in result["history"]]
        row["attempts"] = outcome.attempts
        self.store.append_history(history)
        self.store.append(row)
        return row

    def _remove_checkpoints(self, finished: Iterable[str]) -> None:
        """Of runs whose rows are on disk. Names come from the disk: what a row calls itself may be any path."""
        ids, root = set(finished), self.store.folder / CHECKPOINTS
        with suppress(OSError):  # what cannot be looked through or removed is left, and the doctor says so
            for below in list(root.iterdir()) if root.is_dir() else ():
                if below.name in ids:
                    shutil.rmtree(below, ignore_errors=True)
            root.rmdir()  # once it is empty

    def summary(self, choices: Sequence[Choice] = (), *, is_confirmed: bool = True) -> Summary:
        return Summary(
            folder=self.store.folder,
            total=len(self.seen),
            reused=self.reused,
            trained=self.counts["done"],
            diverged=self.counts["diverged"],
            failed=self.counts["failed"],
            set_aside=self.store.set_aside,
            choices=tuple(choices),
            confirmed=is_confirmed,
        )

    def _tell(self, row: Row | None) -> None:
        if self.on_progress is not None:
            done, diverged, failed = (self.counts[status] for status in ("done", "diverged", "failed"))
            pace = (self.pace.ended, self.pace.left) if self.pace.is_known else (None, None)
            counts = len(self.seen), self.reused, done, diverged, failed
            self.on_progress(Progress(*counts, row, self.phase, self.before, *pace))


def _row(study: Study, planned: CostedRun) -> Row:
    return {
        "id": planned.run.id,
        "study": study.name,
        "status": "failed",
        **planned.run.model_dump(mode="json"),
        "match": planned.match,
        "budget_mismatch": planned.mismatch,
        "params": planned.params,
        "macs": planned.macs,
        "flops": 2 * planned.macs,
        "activations": planned.activations,
        "realised_segments": list(planned.realised_segments),
        **dict.fromkeys(RESULT_COLUMNS),
    }


def _from_plan(study: Study, plan: Plan | None) -> list[CostedRun] | None:
    """The study's runs with the widths that its plan froze; None where it is of another study, or lacks some."""
    if plan is None or not plan.is_of(study.hash):
        return None
    kept = {run.key: run for run in plan.asked if run.counted}
    wanted = study.wanted()
    if any((one.run.id, one.match) not in kept for one in wanted):
        return None
    return [planned_run(kept[one.run.id, one.match], one.run) for one in wanted]


def _all_finished(folder: Path, plan: Plan | None, study: Study, confirm: bool) -> bool:
    """Whether every run that the plan has is done, and there is none to come that it has not."""
    if plan is None:
        return False
    is_swept = plan.tuning is not None and bool(plan.tuning.choices)
    if study.tune is not None and (not is_swept or (confirm and not plan.runs)):
        return False
    finished = _finished(folder)
    return all(id in finished for id in plan.ids)


def _finished(folder: Path) -> dict[str, Row]:
    return {id: row for id, row in latest_rows(folder).items() if row["status"] in FINISHED}


def _is_of_other_images(folder: Path, plan: Plan, planned: Sequence[CostedRun]) -> bool:
    """Whether a plan was made for other images than there are now; without a record of them, whether no row tells."""
    from spectrum.data.images import images_of

    recorded = {images_key(entry): entry["fingerprint"] for entry in plan.images}
    rows = _fingerprints(folder)
    for key, run in {images_key(dict(one.run)): one.run for one in planned}.items():
        if (key in recorded or key not in rows) and recorded.get(key) != images_of(run).fingerprint:
            return True
    return False


def _fingerprints(folder: Path) -> dict[tuple[Any, ...], set[str]]:
    """Of the images that finished rows were trained on."""
    known: dict[tuple[Any, ...], set[str]] = {}
    for row in _finished(folder).values():
        fingerprint = (row.get("provenance") or {}).get("data_fingerprint")
        if fingerprint is not None:
            known.setdefault(images_key(row), set()).add(fingerprint)
    return known


def _check_same_models(folder: Path, models: Sequence[str]) -> None:
    """Raise StoreError where rows were trained with other code of a model of your own than there is now."""
    now = {model: code for model in models if (code := code_of(model)) is not None}
    if not now:
        return  # models of this package alone: the rows need not be read once more
    for row in _finished(folder).values():
        model, then = row.get("model"), (row.get("provenance") or {}).get("model_code")
        if model in now and then is not None and then != now[model]:
            raise StoreError(
                f"{folder}: its rows were trained with another version of {registered_in(model)}, which registers "
                f"{model!r} (code {then} then, {now[model]} now); give another --out, or the earlier version"
            )


def _check_same_images(folder: Path, planned: Sequence[CostedRun]) -> None:
    from spectrum.data.images import images_of

    known = _fingerprints(folder)
    for one in planned:
        seen = known.get(images_key(dict(one.run)), set())
        if seen - {images_of(one.run).fingerprint}:
            raise StoreError(
                f"{folder}: its rows were trained on other images of {one.run.dataset!r} than those found now; "
                "give another --out, or the earlier images (or the earlier $SPECTRUM_IMAGES_GB, if it was changed)"
            )

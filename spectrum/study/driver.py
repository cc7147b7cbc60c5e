"""Run a study: plan it, then train the runs that have no row yet.

run_study    freezes the plan, trains the remaining runs, appends a row per run

A study that tunes has two phases. The learning-rate sweep sees validation images only; the final runs then use other
seeds and the values that the sweep chose.
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
from spectrum.study.callbacks import Callback, Callbacks
from spectrum.study.contrasts import examine
from spectrum.study.identity import check_not_other, folder_of
from spectrum.study.pace import Pace
from spectrum.study.planning import CostedRun, plan_study, planned_run
from spectrum.study.store import FINISHED, Row, Store, StoreError, find_plan, latest_rows
from spectrum.study.tuning import Choice, choose, confirmed, extended, sweep
from spectrum.training.checkpoint_files import CHECKPOINTS
from spectrum.training.weight_files import KEPT

SWEEP, FINAL = "sweep", "final runs"  # phases of a study that tunes


@dataclass(frozen=True)
class Progress:
    """Progress of a call of `run_study`. `row` is the one just written, or None at the start of a phase.

    Counts cover all phases begun so far: in a study that tunes, the sweep, then the final runs.
    """

    total: int
    reused: int
    done: int = 0
    diverged: int = 0
    failed: int = 0
    row: Row | None = None
    phase: str = ""
    """SWEEP or FINAL in a study that tunes; empty otherwise."""
    before: int = 0
    """Runs of earlier phases; `total` includes them."""
    work_ended: float | None = None
    """Training seconds of the finished runs of this phase."""
    work_left: float | None = None
    """Expected training seconds of the remaining runs of this phase."""

    @property
    def left(self) -> int:
        return self.total - self.reused - self.done - self.diverged - self.failed

    @property
    def ended(self) -> int:
        """Runs of this phase that have ended, now or in an earlier call."""
        return self.total - self.left - self.before


@dataclass(frozen=True)
class Summary:
    """Result of a call of `run_study`. Counts are of training runs."""

    folder: Path
    total: int
    reused: int
    trained: int
    diverged: int
    failed: int
    set_aside: int  # torn rows moved to results.bad
    choices: tuple[Choice, ...] = ()  # of the sweep, once it is complete
    confirmed: bool = True  # False: only the sweep has run

    @property
    def left(self) -> int:
        """Runs of the phases begun that were not trained, since `stop_on_failure` stopped the study."""
        return self.total - self.reused - self.trained - self.diverged - self.failed


def run_study(
    study: Study | str | Path,
    out: str | Path | None = None,
    *,
    engine: str | Engine = "local",
    confirm: bool = False,
    stop_on_failure: bool = False,
    callbacks: Sequence[Callback] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = warnings.warn,
    **settings: Any,
) -> Summary:
    """Train every run of a study that has no finished row yet, and append a row for each.

    Args:
        study: from `load_study`, or the path of its file.
        out: folder of the results; by default results/<name of the study>/ in the current folder.
        engine: where to train: "local" for processes of this machine, "ray", a name of `register_engine`, or an
            `Engine` such as `RayEngine(Cluster("auto", gpus=1))`.
        confirm: for a study that tunes, also train the final runs at the chosen values, once the sweep is complete;
            later calls with the same folder then do so too.
        stop_on_failure: whether the first failed run stops the study: no other run starts, and those in training save
            a checkpoint and stop, as on Ctrl-C. The next call resumes them. By default other runs go on.
        callbacks: objects of `Callback`, such as a `TensorBoard()`, told in this process what has ended. An exception
            of one is noted by `on_note`, and stops neither the study nor other callbacks.
        on_progress: called at the start of each phase and after every run.
        on_note: called with each sentence that a reader of the plan should know, and with what a callback raised; by
            default, a warning.
        **settings: fields of `EngineSettings`: workers, device, imports, checkpoint_minutes, run_minutes, memory_gb,
            tune, keep_weights.

    An interrupted run resumes from its latest checkpoint, in checkpoints/ of the folder, and ends with the same weights
    as without the interruption. A failed run gets a row with status "failed" and the reason; the next call tries it
    again. Before anything is trained, raises SpecError, DataError, StoreError (also for a folder that holds another
    study) or EngineError (for a cluster).

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
    told = Callbacks(callbacks, on_note)
    folder = folder_of(study, out)
    check_not_other(folder, study)
    runs = study.runs()
    models, datasets = (sorted({getattr(run, of) for run in runs}) for of in ("model", "dataset"))
    needed = registered(models, datasets)
    asked = asked.model_copy(update={"imports": modules_of(needed, [*study.imports, *asked.imports])})
    if isinstance(engine, str) and engine not in list_engines():
        import_modules(asked.imports)  # one of the modules may register the engine
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
        check_not_other(folder, study)  # checked again, now that no other run can write here
        if asked.keep_weights and (lost := _count_without_weights(folder, frozen)):
            on_note(
                f"keep_weights: finished runs in {folder} that were trained without it, and whose networks are lost: "
                f"{lost}. Another --out trains them again."
            )
        work = Work(**dict(asked), folder=folder)
        kept = {} if frozen is None else frozen.backends
        backends = StudyBackends(asked_tune(asked.tune), planned, images, kept)
        call = _Run(store, study, planned, images, backends, trainer, work, on_progress, told, stop_on_failure)
        told.study_started(study, folder, list(_finished(folder).values()) if told.callbacks else [])
        summary = call.run(frozen, confirm=confirm)
        told.study_ended(summary)
        return summary


def _prepared(
    study: Study,
    frozen: Plan | None,
    engine: Engine,
    asked: EngineSettings,
    needed: Sequence[Registered],
) -> EngineSettings:
    """Settings with the device resolved. Raises SpecError for a study that these settings cannot train."""
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

    The check runs once, here, because otherwise every run would fail.
    """
    from spectrum.conv.backends.choice import choice_for, preferred_backend

    name = preferred_backend()
    if name is not None and engine.starts_processes:
        raise SpecError(
            f"prefer_backend({name!r}): has no effect on worker processes; set {VARIABLE}={name} in the environment"
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
    """Runs of the study and records of their images; planned anew if the frozen plan was made for other images."""
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
    """Order of training: by seed, then by id, which is a hash and therefore a random but repeatable order.

    Slow drifts of a machine then do not favour one end of the spectrum, and an interrupted study has complete blocks of
    runs with the same seeds.
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
        callbacks: Callbacks,
        stop_on_failure: bool,
    ) -> None:
        self.store, self.study, self.planned = store, study, planned
        self.images = images  # their entries in the plan
        self.backends = backends
        self.engine, self.work, self.on_progress = engine, work, on_progress
        self.callbacks, self.stop_on_failure = callbacks, stop_on_failure
        self.base = study.base.model_dump(mode="json")
        self.counts: Counter[str] = Counter()
        self.seen: set[str] = set()  # ids of the runs of all phases so far
        self.reused = 0
        self.phase, self.before = "" if study.tune is None else SWEEP, 0
        self.pace = Pace([])
        # by the same key as in plan and rows
        self.fingerprints = {images_key(entry): entry["fingerprint"] for entry in images}

    def run(self, frozen: Plan | None, *, confirm: bool) -> Summary:
        """Train the study, or only its sweep if no more is asked for; `frozen` is the plan in the folder."""
        same = frozen if frozen is not None and frozen.is_of(self.study.hash) else None
        if same is not None and same.base:
            self.base = same.base  # without options that newer versions added
        if self.study.tune is None:
            self.freeze(self.planned)
            self.train(self.planned)
            return self.summary()
        once_confirmed = frozen is not None and frozen.tuning is not None and bool(frozen.runs)
        extended_before = same.tuning.grid if same is not None and same.tuning is not None else {}
        grid = extended_before or self.study.tune.grid()
        return self.tune(self.study.tune, grid, confirm=confirm or once_confirmed)

    def tune(self, settings: Tune, grid: dict[str, tuple[float, ...]], *, confirm: bool) -> Summary:
        """Train the sweep, extended while a best value is on an edge, and the final runs if asked for."""
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
        """Write the current plan."""
        study = self.study
        # early plans have no entry of images
        known: dict[str, Any] = {"images": tuple(self.images)} if self.images else {}
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
        """Train the runs without a finished row. Returns all finished rows by id."""
        finished = _finished(self.store.folder)
        by_id: dict[str, CostedRun] = {}
        for one in planned:
            by_id.setdefault(one.run.id, one)  # several budgets may share one run
        left = in_random_blocks([one.run for id, one in by_id.items() if id not in finished])
        self.reused += len(by_id.keys() & finished.keys() - self.seen)
        self.seen |= by_id.keys()
        self.pace = Pace([by_id[run.id] for run in left])
        self._tell(None)
        self._remove_checkpoints(finished)
        if not left:
            return finished
        of_phase = {"runs": len(by_id), "keep_weights": self.work.keep_weights and self.phase != SWEEP}
        work = self.backends.work(self.work.model_copy(update=of_phase), self.engine, left)
        self.keep_backends()
        with closing(outcomes_of(self.engine, left, work)) as outcomes:
            for outcome in outcomes:
                changed = self._images_changed(outcome)
                if changed is not None:
                    outcome = Outcome(outcome.run, None, changed, outcome.attempts)
                if outcome.result is not None and self.backends.note(outcome.result["provenance"]):
                    self.keep_backends()
                row, epochs = self._write(outcome, by_id[outcome.run.id])
                self.callbacks.run_ended(row, epochs)
                if row["status"] in FINISHED:
                    finished[row["id"]] = row
                    self._remove_checkpoints([row["id"]])
                self.counts[row["status"]] += 1
                self.pace.end(row["id"], row["train_seconds"])
                self._tell(row)
                if changed is not None:
                    raise StoreError(f"{self.store.folder}: {changed}")
                if self.stop_on_failure and row["status"] == "failed":
                    break  # closing the outcomes stops the runs in training
        with suppress(OSError):
            (self.store.folder / LOGS).rmdir()  # only if it is empty
        return finished

    def _images_changed(self, outcome: Outcome) -> str | None:
        """Message if a run was trained on other images than earlier rows; None otherwise."""
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

    def _write(self, outcome: Outcome, planned: CostedRun) -> tuple[Row, list[Row]]:
        """Append a run's epochs and its row; returns the row and the epochs."""
        row = _row(self.study, planned)
        history: list[Row] = []
        if outcome.result is None:
            row |= {"status": "failed", "reason": outcome.reason}
        else:
            result = outcome.result
            row |= {name: result[name] for name in ("status", *RESULT_COLUMNS)}
            row["provenance"] = result["provenance"]
            history = [{"id": row["id"], **epoch} for epoch in result["history"]]
            if KEPT in row["provenance"]:
                self.store.keep_weights(row["id"], result["weights"])
        row["attempts"] = outcome.attempts
        self.store.append_history(history)
        self.store.append(row)
        return row, history

    def _remove_checkpoints(self, finished: Iterable[str]) -> None:
        """Remove checkpoints of finished runs, named as on disk, since an id in a row could be any path."""
        ids, root = set(finished), self.store.folder / CHECKPOINTS
        with suppress(OSError):  # what cannot be removed is left, and the doctor reports it
            for below in list(root.iterdir()) if root.is_dir() else ():
                if below.name in ids:
                    shutil.rmtree(below, ignore_errors=True)
            root.rmdir()  # only if it is empty

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
    """The study's runs with the widths that its plan froze; None if the plan is of another study or incomplete."""
    if plan is None or not plan.is_of(study.hash):
        return None
    kept = {run.key: run for run in plan.asked if run.counted}
    wanted = study.wanted()
    if any((one.run.id, one.match) not in kept for one in wanted):
        return None
    return [planned_run(kept[one.run.id, one.match], one.run) for one in wanted]


def _all_finished(folder: Path, plan: Plan | None, study: Study, confirm: bool) -> bool:
    """Whether every run of the plan is finished and no further phase follows."""
    if plan is None:
        return False
    is_swept = plan.tuning is not None and bool(plan.tuning.choices)
    if study.tune is not None and (not is_swept or (confirm and not plan.runs)):
        return False
    finished = _finished(folder)
    return all(id in finished for id in plan.ids)


def _finished(folder: Path) -> dict[str, Row]:
    return {id: row for id, row in latest_rows(folder).items() if row["status"] in FINISHED}


def _count_without_weights(folder: Path, plan: Plan | None) -> int:
    """Number of finished final runs whose rows say of no kept network."""
    swept = set() if plan is None else {run.id for run in plan.swept}
    rows = (row for id, row in _finished(folder).items() if id not in swept and row["status"] == "done")
    return sum(KEPT not in (row.get("provenance") or {}) for row in rows)


def _is_of_other_images(folder: Path, plan: Plan, planned: Sequence[CostedRun]) -> bool:
    """Whether a plan was made for other images than today's. Without a record in it, only rows can tell."""
    from spectrum.data.images import images_of

    recorded = {images_key(entry): entry["fingerprint"] for entry in plan.images}
    rows = _fingerprints(folder)
    for key, run in {images_key(dict(one.run)): one.run for one in planned}.items():
        if (key in recorded or key not in rows) and recorded.get(key) != images_of(run).fingerprint:
            return True
    return False


def _fingerprints(folder: Path) -> dict[tuple[Any, ...], set[str]]:
    """Fingerprints of the images that finished rows were trained on."""
    known: dict[tuple[Any, ...], set[str]] = {}
    for row in _finished(folder).values():
        fingerprint = (row.get("provenance") or {}).get("data_fingerprint")
        if fingerprint is not None:
            known.setdefault(images_key(row), set()).add(fingerprint)
    return known


def _check_same_models(folder: Path, models: Sequence[str]) -> None:
    """Raise StoreError if rows were trained with other code of your own model than today's."""
    now = {model: code for model in models if (code := code_of(model)) is not None}
    if not now:
        return  # all models are of this package; skip reading the rows
    for row in _finished(folder).values():
        model, then = row.get("model"), (row.get("provenance") or {}).get("model_code")
        if model in now and then is not None and then != now[model]:
            raise StoreError(
                f"{folder}: its rows were trained with another version of {registered_in(model)}, which registers "
                f"{model!r} (code {then} then, {now[model]} now); give another --out, or restore the earlier version"
            )


def _check_same_images(folder: Path, planned: Sequence[CostedRun]) -> None:
    from spectrum.data.images import images_of

    known = _fingerprints(folder)
    for one in planned:
        seen = known.get(images_key(dict(one.run)), set())
        if seen - {images_of(one.run).fingerprint}:
            raise StoreError(
                f"{folder}: its rows were trained on other images of {one.run.dataset!r} than those found now; "
                "give another --out, or restore the images (or $SPECTRUM_IMAGES_GB, if it changed)"
            )

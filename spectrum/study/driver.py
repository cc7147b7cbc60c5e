"""From a study to its rows: the plan first, then training of the points that have no row yet.

run_study    freezes the plan, trains what is left, appends a row a point

A study that tunes has two stages: the search, which sees validation images only, and the confirmation, which trains
the study's own points, with seeds of their own, at the values that the search chose.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum._records import SpecError
from spectrum.design.effects import check_effects
from spectrum.design.own_models import check_workers_know, code_of, import_modules, modules_of
from spectrum.design.point import Point, images_said
from spectrum.design.study_file import Study, Tune, as_study
from spectrum.engines.local import NO_LIMITS, Cluster, Engine, Limits, LocalEngine, Outcome
from spectrum.engines.worker import LOGS, Saving
from spectrum.models import registered_in
from spectrum.study.contrasts import examine
from spectrum.study.identity import check_not_other, folder_of
from spectrum.study.planning import PlannedPoint, entries_of, from_entry, plan_study
from spectrum.study.store import FINISHED, Row, Store, StoreError, latest_rows, planned_ids, read_plan
from spectrum.study.tuning import Choice, choose, confirmed, extended, search
from spectrum.training.checkpoint_files import CHECKPOINTS

if TYPE_CHECKING:
    from spectrum.training.ranks import Ranks

RESULT_COLUMNS = (
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


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `row` is the one just written, None at the start."""

    total: int
    reused: int
    done: int = 0
    diverged: int = 0
    failed: int = 0
    row: Row | None = None

    @property
    def left(self) -> int:
        return self.total - self.reused - self.done - self.diverged - self.failed


@dataclass(frozen=True)
class Summary:
    """How a run of a study ended. Counts are of points."""

    folder: Path
    total: int
    reused: int
    trained: int
    diverged: int
    failed: int
    set_aside: int  # torn rows moved to results.bad
    choices: tuple[Choice, ...] = ()  # of the search, once it is complete
    confirmed: bool = True  # False: the search alone has run


def run_study(
    study: Study | str | Path,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    device: str = "auto",
    imports: Sequence[str] = (),
    confirm: bool = False,
    checkpoint_minutes: float = 1.0,
    limits: Limits = NO_LIMITS,
    cluster: Cluster | None = None,
    ranks: Ranks | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = warnings.warn,
) -> Summary:
    """Train every point of a study that has no finished row yet, and append a row for each.

    Args:
        study: from `load_study`, or the path of its file.
        out: folder of the results; by default results/<name of the study>/ below the current folder.
        workers: processes that train side by side; by default one a core or one a GPU, and on a cluster as many as it
            runs.
        device: "cpu", "cuda", "mps", or "auto".
        imports: modules to import in every worker first, for models of one's own, beside those that the study names and
            those that registered its models.
        confirm: of a study that tunes, also train the points at the chosen values, once the search is complete; later
            runs into the same folder do so too.
        checkpoint_minutes: between two checkpoints of a point, at least; 0 saves after every step.
        limits: of what one point may take: minutes, and gigabytes of memory.
        cluster: of Ray's, to train there instead of in processes of this machine; what a point takes of it.
        ranks: started by torchrun, that train each point together; this process is the first of them, and `device` is
            its own.
        on_progress: called at the start of each stage and after every point.
        on_note: called with a sentence for what a reader of the plan should know, before anything is trained; by
            default a warning.

    A point that was cut short goes on from its latest checkpoint, below checkpoints/ in the folder, to the same weights
    as without the cut. A point that fails gets a row with status "failed" and the reason; it is tried again by the next
    run. Raises SpecError, DataError, StoreError (also for a folder that holds another study) or EngineError (of a
    cluster) before anything is trained.

    In a script, call it below `if __name__ == "__main__":`, since worker processes import the script.

    >>> from spectrum import load_study
    >>> summary = run_study(load_study("experiments/quickstart.toml"))  # doctest: +SKIP
    >>> summary.trained, summary.reused, summary.failed  # doctest: +SKIP
    (21, 0, 0)
    """
    study = as_study(study)
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise SpecError(f"workers = {workers!r}: expected a whole number of at least 1, or None for one per core")
    if not isinstance(device, str):
        raise SpecError(f'device = {device!r}: expected "cpu", "cuda", "mps" or "auto"')
    if not checkpoint_minutes >= 0:
        raise SpecError(f"checkpoint_minutes = {checkpoint_minutes}: expected 0 or more")
    for name, most in asdict(limits).items():
        if most is not None and not most > 0:
            raise SpecError(f"limits: {name} = {most}: expected more than 0")
    if confirm and study.tune is None:
        raise SpecError("confirm: this study has no [tune], so there is no search to confirm; leave it out")
    folder = folder_of(study, out)
    check_not_other(folder, study)
    frozen = read_plan(folder)
    same = frozen if frozen is not None and frozen.get("hash") == study.hash else None  # a plan of this very study
    planned = None if same is None else _from_plan(study, same)
    images = [] if same is None else same.get("images", [])
    models = sorted({point.model for point in study.points()})
    imports = modules_of(models, [*study.imports, *imports])
    if same is None or planned is None or not _all_finished(folder, same, study, confirm):
        if same is None:
            check_effects(study)  # before torch is loaded
        device = device if ranks is not None else _device(device, cluster)
        if "step_time" in study.budget.match and device != "cpu":
            raise SpecError(f"budget.match = 'step_time': is measured on the CPU, not on {device}; give --device cpu")
        import_modules(imports)
        if ranks is None:
            check_workers_know(models, imports, elsewhere=cluster is not None)
        from spectrum.data.images import described, read_once
        from spectrum.study.equal_networks import coincidences

        with read_once():
            if same is not None and planned is not None and _is_of_other_images(folder, same, planned):
                planned = None
            planned = planned or plan_study(study, frozen=frozen)
            _check_same_images(folder, planned)
            images = described(one.point for one in planned)
        for note in coincidences(study, planned):
            on_note(note)
    _check_same_models(folder, models)
    with Store(folder) as store:
        check_not_other(folder, study)  # once more, now that no other run can write here
        often = checkpoint_minutes if limits.minutes is None else min(checkpoint_minutes, limits.minutes / 4)
        saving = Saving(folder, often)
        run = _Run(store, study, planned, workers, device, tuple(imports), saving, limits, cluster, ranks, on_progress)
        run.images = images
        run.fingerprints = {images_said(entry): entry["fingerprint"] for entry in images}
        if study.tune is None:
            run.freeze(planned)
            run.train(planned)
            return run.summary()
        once_confirmed = frozen is not None and "tuning" in frozen and bool(frozen["points"])
        known = {} if same is None else same.get("tuning", {}).get("grid", {})  # as an earlier run extended it
        grid = {name: tuple(values) for name, values in known.items()} or study.tune.grid()
        return run.tune(study.tune, grid, confirm=confirm or once_confirmed)


def _device(device: str, cluster: Cluster | None) -> str:
    """What points are trained on; that of a cluster's nodes cannot be looked for here."""
    from spectrum.training.provenance import check_device

    if cluster is None:
        return check_device(device)
    if device == "auto":
        return "cuda" if cluster.gpus else "cpu"
    return device


def in_random_blocks(points: Sequence[Point]) -> list[Point]:
    """The order of training: seed by seed, and within a seed by id, which is a hash and so random but repeatable.

    What drifts in a machine over hours then falls on no end of the spectrum, and a study that is cut short has whole
    blocks of points with the same seeds.
    """
    return sorted(points, key=lambda point: (point.seed, point.id))


class _Run:
    """One run of a study: trains points, writes rows, counts."""

    def __init__(
        self,
        store: Store,
        study: Study,
        planned: Sequence[PlannedPoint],
        workers: int | None,
        device: str,
        imports: tuple[str, ...],
        saving: Saving,
        limits: Limits,
        cluster: Cluster | None,
        ranks: Ranks | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.store, self.study, self.planned = store, study, planned
        self.workers, self.device, self.imports = workers, device, imports
        self.saving, self.limits, self.on_progress = saving, limits, on_progress
        self.cluster, self.ranks = cluster, ranks
        self.counts: Counter[str] = Counter()
        self.seen: set[str] = set()  # ids of the points that were asked for
        self.reused = 0
        self.images: list[dict[str, Any]] = []  # what the plan says of them
        self.fingerprints: dict[tuple[Any, ...], str] = {}  # of each data set, as plan and rows have it

    def tune(self, said: Tune, grid: dict[str, tuple[float, ...]], *, confirm: bool) -> Summary:
        """The search, wider where its edges are best, and the confirmation if asked for."""
        while True:
            searched = search(self.planned, grid, said.seeds)
            if {one.point.id for one in searched} - _finished(self.store.folder).keys():
                self.freeze([], searched, grid)
            rows = self.train(searched)
            if self.counts["failed"]:
                return self.summary(is_confirmed=False)
            choices = choose(searched, grid, rows)
            wider = extended(grid, choices, said.grid(), said.extend)
            if wider == grid:
                break
            grid = wider
        points = confirmed(self.planned, choices)
        self.freeze(points if confirm else [], searched, grid, choices)
        if confirm:
            self.train(points)
        return self.summary(choices, is_confirmed=confirm)

    def freeze(
        self,
        points: Sequence[PlannedPoint],
        searched: Sequence[PlannedPoint] = (),
        grid: dict[str, tuple[float, ...]] | None = None,
        choices: Sequence[Choice] = (),
    ) -> None:
        """Write the plan as it stands."""
        study = self.study
        plan = {
            "study": study.name,
            "question": study.question,
            "file": f"{study.file_name}.toml",
            "overrides": study.overrides,
            "imports": list(self.imports),
            "hash": study.hash,
            "budget": study.budget.model_dump(mode="json"),
            "base": study.base.model_dump(mode="json"),
            "varied": study.varied(),
            **({"images": self.images} if self.images else {}),  # an old plan has none
            "contrasts": [examined.entry() for examined in examine(study, self.planned)],
            "points": [one.entry() for one in points],
        }
        if grid is not None:
            plan["tuning"] = {
                "grid": {name: list(values) for name, values in grid.items()},
                "networks": [one.entry() for one in self.planned],
                "points": [one.entry() for one in searched],
                "choices": [choice.entry() for choice in choices],
            }
        self.store.freeze(plan)

    def train(self, planned: Sequence[PlannedPoint]) -> dict[str, Row]:
        """Train those that have no finished row; all finished rows by id."""
        finished = _finished(self.store.folder)
        by_id: dict[str, PlannedPoint] = {}
        for one in planned:
            by_id.setdefault(one.point.id, one)  # one network may serve several budgets
        left = in_random_blocks([one.point for id, one in by_id.items() if id not in finished])
        self.reused += len(by_id.keys() & finished.keys() - self.seen)
        self.seen |= by_id.keys()
        self._tell(None)
        self._remove_checkpoints(finished)
        if not left:
            return finished
        with closing(self._engine(len(by_id)).run(left)) as outcomes:
            for outcome in outcomes:
                changed = self._images_changed(outcome)
                if changed is not None:
                    outcome = Outcome(outcome.point, None, changed, outcome.attempts)
                row = self._write(outcome, by_id[outcome.point.id])
                if row["status"] in FINISHED:
                    finished[row["id"]] = row
                    self._remove_checkpoints([row["id"]])
                self.counts[row["status"]] += 1
                self._tell(row)
                if changed is not None:
                    raise StoreError(f"{self.store.folder}: {changed}")
        with suppress(OSError):
            (self.store.folder / LOGS).rmdir()  # if none had anything to say
        return finished

    def _images_changed(self, outcome: Outcome) -> str | None:
        """What to say where a point was trained on other images than the rows before it; None where it was not."""
        if outcome.result is None:
            return None
        point = outcome.point
        found = outcome.result["provenance"]["data_fingerprint"]
        known = self.fingerprints.setdefault(images_said(dict(point)), found)
        if found == known:
            return None
        return (
            f"the images of {point.dataset!r} changed during the run: fingerprint {known} before, {found} now "
            f"(point {point.id}); the rows before are kept, this result is not; put the earlier images back and run "
            "again, or give another --out"
        )

    def _engine(self, points: int) -> Engine:
        if self.ranks is not None:
            from spectrum.engines.torchrun import RankEngine

            return RankEngine(self.ranks, self.device, imports=self.imports, saving=self.saving)
        if self.cluster is None:
            return LocalEngine(
                self.workers,
                device=self.device,
                imports=self.imports,
                saving=self.saving,
                limits=self.limits,
                points=points,
            )
        from spectrum.engines.ray import RayEngine

        return RayEngine(
            self.cluster,
            self.workers,
            device=self.device,
            imports=self.imports,
            saving=self.saving,
            limits=self.limits,
        )

    def _write(self, outcome: Outcome, planned: PlannedPoint) -> Row:
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
        """Of points whose rows are on disk. Names come from the disk: what a row calls itself may be any path."""
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
            self.on_progress(Progress(len(self.seen), self.reused, done, diverged, failed, row))


def _row(study: Study, planned: PlannedPoint) -> Row:
    return {
        "id": planned.point.id,
        "study": study.name,
        "status": "failed",
        **planned.point.model_dump(mode="json"),
        "match": planned.match,
        "budget_mismatch": planned.mismatch,
        "params": planned.params,
        "macs": planned.macs,
        "flops": 2 * planned.macs,
        "activations": planned.activations,
        "realised_segments": list(planned.realised_segments),
        **dict.fromkeys(RESULT_COLUMNS),
    }


def _from_plan(study: Study, plan: dict[str, Any]) -> list[PlannedPoint] | None:
    """The study's points with the widths that its plan froze; None where the plan lacks some."""
    kept = {(entry.get("asked", entry["id"]), entry.get("match", "none")): entry for entry in entries_of(plan)}
    wanted = study.wanted()
    if any((one.point.id, one.match) not in kept for one in wanted):
        return None
    return [from_entry(kept[one.point.id, one.match], one.point) for one in wanted]


def _all_finished(folder: Path, plan: dict[str, Any], study: Study, confirm: bool) -> bool:
    finished = _finished(folder)
    if study.tune is not None and (not plan.get("tuning", {}).get("choices") or (confirm and not plan["points"])):
        return False
    return all(id in finished for id in planned_ids(plan))


def _finished(folder: Path) -> dict[str, Row]:
    return {id: row for id, row in latest_rows(folder).items() if row["status"] in FINISHED}


def _is_of_other_images(folder: Path, plan: dict[str, Any], planned: Sequence[PlannedPoint]) -> bool:
    """Whether a plan was made for other images than there are now; without a record of them, whether no row tells."""
    from spectrum.data.images import images_of

    recorded = {images_said(entry): entry["fingerprint"] for entry in plan.get("images", [])}
    rows = _fingerprints(folder)
    for said, point in {images_said(dict(one.point)): one.point for one in planned}.items():
        if (said in recorded or said not in rows) and recorded.get(said) != images_of(point).fingerprint:
            return True
    return False


def _fingerprints(folder: Path) -> dict[tuple[Any, ...], set[str]]:
    """Of the images that finished rows were trained on."""
    known: dict[tuple[Any, ...], set[str]] = {}
    for row in _finished(folder).values():
        fingerprint = (row.get("provenance") or {}).get("data_fingerprint")
        if fingerprint is not None:
            known.setdefault(images_said(row), set()).add(fingerprint)
    return known


def _check_same_models(folder: Path, models: Sequence[str]) -> None:
    """Raise StoreError where rows were trained with other code of a model of one's own than there is now."""
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


def _check_same_images(folder: Path, planned: Sequence[PlannedPoint]) -> None:
    from spectrum.data.images import images_of

    known = _fingerprints(folder)
    for one in planned:
        seen = known.get(images_said(dict(one.point)), set())
        if seen - {images_of(one.point).fingerprint}:
            raise StoreError(
                f"{folder}: its rows were trained on other images of {one.point.dataset!r} than those found now; "
                "give another --out, or the earlier images (or the earlier $SPECTRUM_IMAGES_GB, if it was changed)"
            )

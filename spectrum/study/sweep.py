"""From a study to its rows: cost of every point first, then training of those that have no row yet.

plan_study   lists points and costs, writes nothing
run_study    freezes the plan, trains what is left, appends a row a point
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.study.spec import Point, SpecError, Study
from spectrum.study.store import FINISHED, PLAN, Row, Store, StoreError, latest_rows

if TYPE_CHECKING:
    from spectrum.study.data import Images

IDENTITY = ("id", "study", "status")
RESULT_COLUMNS = (
    "test_accuracy",
    "test_loss",
    "val_accuracy",
    "val_loss",
    "train_loss",
    "train_seconds",
    "images_per_second",
    "peak_memory_mb",
    "weights_sha256",
)


@dataclass(frozen=True)
class PlannedPoint:
    """A point and what it costs, known before it is trained."""

    point: Point
    params: int
    macs: int  # one image, forward
    activations: int
    realised_segments: tuple[int, ...]  # of each segmented convolution
    seconds: float | None = None  # estimated training time on one worker

    @property
    def clamped_layers(self) -> int:
        """How many convolutions have fewer channels than the point asks segments for."""
        asked = self.point.segments
        return sum(have < asked for have in self.realised_segments) if isinstance(asked, int) else 0


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
    """How a run of a study ended."""

    folder: Path
    total: int
    reused: int
    trained: int
    diverged: int
    failed: int
    set_aside: int  # torn rows moved to results.bad


def plan_study(study: Study, *, imports: Sequence[str] = (), time_steps: bool = False) -> list[PlannedPoint]:
    """Cost of every point of a study. Trains nothing and writes nothing.

    Args:
        imports: modules to import first, for models of one's own.
        time_steps: also time some training steps of each network, which takes a second or so each.

    Raises SpecError for a point whose network cannot be built, DataError for a missing data set.
    """
    import_modules(imports)
    from spectrum.study.data import split

    planned: list[PlannedPoint] = []
    costs: dict[Point, PlannedPoint] = {}
    sizes: dict[Any, int] = {}  # of training splits, which most points of a study share
    for point in study.points():
        images = _images(point)
        data = (images.fingerprint, point.validation_fraction, point.train_images)
        if data not in sizes:
            sizes[data] = len(split(images, point.validation_fraction, point.train_images).train_y)
        unseeded = point.model_copy(update={"seed": 0})
        if unseeded not in costs:
            cost = _planned(point, images)
            costs[unseeded] = _timed(cost, images, sizes[data]) if time_steps else cost
        planned.append(replace(costs[unseeded], point=point))
    return planned


def run_study(
    study: Study,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    device: str = "auto",
    imports: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Train every point of a study that has no finished row yet, and append a row for each.

    Args:
        study: from `load_study`.
        out: folder of the results; by default results/<name of the study>/ below the current folder.
        workers: processes that train side by side; by default one a core, and one on a GPU.
        device: "cpu", "cuda", "mps", or "auto".
        imports: modules to import in every worker first, for models of one's own.
        on_progress: called at the start and after every point.

    A point that fails gets a row with status "failed" and the reason; it is tried again by the next run. Raises
    SpecError, DataError or StoreError before anything is trained.
    """
    folder = Path("results", study.name) if out is None else Path(out)
    points = study.points()
    finished = _finished(folder)
    left = [point for point in points if point.id not in finished]
    planned: list[PlannedPoint] = []
    if left or not (folder / PLAN).exists():
        from spectrum.study.provenance import check_device

        device = check_device(device)
        planned = plan_study(study, imports=imports)
        _check_same_images(folder, finished, points)
    with Store(folder) as store:
        finished = _finished(folder)  # another run may have written between the two looks
        left = [point for point in points if point.id not in finished]
        plan = _plan(study, planned) if planned else _reused_plan(study, finished)
        store.freeze(plan | {"imports": list(imports)})
        counts: Counter[str] = Counter()
        reused = len(points) - len(left)

        def tell(row: Row | None) -> None:
            if on_progress is not None:
                done, diverged, failed = (counts[status] for status in ("done", "diverged", "failed"))
                on_progress(Progress(len(points), reused, done, diverged, failed, row))

        tell(None)
        if left:
            costs = {cost.point.id: cost for cost in planned}
            for row, history in _train(left, costs, study, workers, device, imports):
                store.append_history(history)
                store.append(row)
                counts[row["status"]] += 1
                tell(row)
        return Summary(
            folder, len(points), reused, counts["done"], counts["diverged"], counts["failed"], store.set_aside
        )


def import_modules(names: Iterable[str]) -> None:
    """Import a user's modules. Raises SpecError for one that cannot be."""
    for name in names:
        try:
            import_module(name)
        except Exception as error:  # whatever a user's module raises
            raise SpecError(
                f"--import {name}: {type(error).__name__}: {error}; mend it, or give another module"
            ) from error


def _train(
    points: Sequence[Point],
    costs: dict[str, PlannedPoint],
    study: Study,
    workers: int | None,
    device: str,
    imports: Sequence[str],
) -> Iterable[tuple[Row, list[Row]]]:
    from spectrum.study.engines import LocalEngine

    engine = LocalEngine(workers, device=device, imports=imports)
    for outcome in engine.run(points):
        row = _row(study, costs[outcome.point.id])
        history: list[Row] = []
        if outcome.result is None:
            row |= {"status": "failed", "reason": outcome.reason}
        else:
            result = outcome.result
            row |= {name: result[name] for name in ("status", *RESULT_COLUMNS)}
            row["provenance"] = result["provenance"]
            history = [{"id": row["id"], **epoch} for epoch in result["history"]]
        row["attempts"] = outcome.attempts
        yield row, history


def _row(study: Study, planned: PlannedPoint) -> Row:
    return {
        "id": planned.point.id,
        "study": study.name,
        "status": "failed",
        **planned.point.model_dump(mode="json"),
        "match": study.budget.match,
        "budget_mismatch": None,
        "params": planned.params,
        "macs": planned.macs,
        "flops": 2 * planned.macs,
        "activations": planned.activations,
        "realised_segments": list(planned.realised_segments),
        **dict.fromkeys(RESULT_COLUMNS),
    }


def _plan(study: Study, planned: Sequence[PlannedPoint]) -> dict[str, Any]:
    return {
        "study": study.name,
        "question": study.question,
        "file": f"{study.file_name}.toml",
        "overrides": study.overrides,
        "hash": study.hash,
        "budget": study.budget.model_dump(mode="json"),
        "base": study.base.model_dump(mode="json"),
        "varied": study.varied(),
        "points": [
            {
                "id": cost.point.id,
                "params": cost.params,
                "macs": cost.macs,
                "activations": cost.activations,
                "realised_segments": list(cost.realised_segments),
                "point": cost.point.model_dump(mode="json", exclude_defaults=True),
            }
            for cost in planned
        ],
    }


def _reused_plan(study: Study, rows: dict[str, Row]) -> dict[str, Any]:
    """The plan of a study all of whose points have rows, from these."""
    planned = []
    for point in study.points():
        row = rows[point.id]
        planned.append(
            PlannedPoint(point, row["params"], row["macs"], row["activations"], tuple(row["realised_segments"]))
        )
    return _plan(study, planned)


def _finished(folder: Path) -> dict[str, Row]:
    return {id: row for id, row in latest_rows(folder).items() if row["status"] in FINISHED}


def _check_same_images(folder: Path, finished: dict[str, Row], points: Sequence[Point]) -> None:
    for point in points:
        row = finished.get(point.id)
        known = (row or {}).get("provenance") or {}
        if known.get("data_fingerprint", _images(point).fingerprint) != _images(point).fingerprint:
            raise StoreError(
                f"{folder}: its rows were trained on other images of {point.dataset!r} than those found now; "
                "give another --out, or the earlier images"
            )


def _images(point: Point) -> Images:
    from spectrum.study.data import load_images

    return load_images(point.dataset, point.image_size)


def _planned(point: Point, images: Images) -> PlannedPoint:
    from spectrum.cost.count import measure_cost
    from spectrum.models import build_model
    from spectrum.models.blocks import realised_segments

    channels, side, _ = images.shape
    try:
        model = build_model(point.model, point.architecture(channels, images.classes, side))
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:  # too large, or a user's own family
        raise SpecError(f"model = {point.model!r}, segments = {point.segments}: {error}") from error
    realised = tuple(realised_segments(model))
    if isinstance(point.segments, int) and realised and point.segments > max(realised):
        raise SpecError(
            f"segments = {point.segments}: no layer of {point.model!r} has so many channels; "
            f'the widest has {max(realised)}; try that, or "per_channel"'
        )
    cost = measure_cost(model, images.shape)
    return PlannedPoint(point, cost.params, cost.macs, cost.activations, realised)


def _timed(planned: PlannedPoint, images: Images, train_images: int) -> PlannedPoint:
    from spectrum.cost.speed import time_training_step
    from spectrum.models import build_model
    from spectrum.study.train import keep_freed_memory, make_optimizer

    keep_freed_memory()  # as training does
    point = planned.point
    channels, side, _ = images.shape
    batch = min(point.batch_size, train_images)
    model = build_model(point.model, point.architecture(channels, images.classes, side))
    step = time_training_step(model, make_optimizer(point, model), (batch, *images.shape), images.classes)
    return replace(planned, seconds=step.median * (train_images // batch) * point.epochs)

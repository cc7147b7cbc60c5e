"""What a study will train, known before anything is trained: the points with solved widths, and what each costs.

Points differ in seeds and learning rates far more often than in networks, so every network is built, counted, solved
for and timed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum._records import SpecError
from spectrum.design.budgets import BUDGETS
from spectrum.design.effects import check_effects
from spectrum.design.hashes import digest
from spectrum.design.keys import network_key
from spectrum.design.own_modules import import_modules, registered
from spectrum.design.plan import Plan, PlannedRun
from spectrum.design.point import Point
from spectrum.design.study_file import Match, Study, Wanted, as_study
from spectrum.models import registered_in
from spectrum.models.position import PLACES, Position

if TYPE_CHECKING:
    from torch import nn

    from spectrum.cost.budget import Solution, Widths
    from spectrum.cost.count import Cost
    from spectrum.data.splits import Images

THREADS = 1  # for what is timed


@dataclass(frozen=True)
class PlannedPoint:
    """A point and what it costs."""

    point: Point  # as it is trained, with solved widths
    params: int
    macs: int  # one image, forward
    activations: int
    realised_segments: tuple[int, ...]  # of each segmented convolution
    asked: Point  # as the study has it
    match: Match = "none"
    budget: float | None = None  # params, MACs or seconds a step that the reference has
    mismatch: float | None = None  # of this point: cost / budget − 1
    norms: int = 0  # batch normalisations of a forward pass
    nonlinearities: int = 0
    pointwise_pixels: tuple[int, ...] = ()  # at which each 1×1 of a segmented convolution runs
    step_seconds: float | None = None  # measured
    solved_for: str | None = None  # a hash of what its widths depend on
    seconds: float | None = None  # estimated training time on one worker
    caveat: str | None = None  # what ran in a network of one's own and is not in its MACs
    clamped: tuple[tuple[str, int], ...] | None = None  # option → layers; None: of a plan that does not tell
    same_as: str | None = None  # id of the point that trains the same network, if an earlier one does

    @property
    def clamped_layers(self) -> int:
        """How many layers have too few channels for what the point asks of its segments.

        A layer counts once for each option that it falls short of. A plan of an earlier version tells for `segments`
        alone, and for a number of them.
        """
        if self.clamped is not None:
            return sum(count for _, count in self.clamped)
        return Position.of(self.point).clamped_count(self.realised_segments) or 0

    def record(self) -> PlannedRun:
        """What plan.json keeps of it."""
        known: dict[str, Any] = {
            "clamped_layers": None if self.clamped is None else dict(self.clamped),
            "same_as": self.same_as,
        }
        return PlannedRun(
            id=self.point.id,
            asked=self.asked.id,
            match=self.match,
            budget=self.budget,
            mismatch=self.mismatch,
            params=self.params,
            macs=self.macs,
            activations=self.activations,
            realised_segments=self.realised_segments,
            norms=self.norms,
            nonlinearities=self.nonlinearities,
            pointwise_pixels=self.pointwise_pixels,
            step_seconds=self.step_seconds,
            solved_for=self.solved_for,
            width=self.asked.width,
            stored=self.point.model_dump(mode="json", exclude_defaults=True),
            **{name: value for name, value in known.items() if value is not None},
        )


def planned_point(run: PlannedRun, asked: Point) -> PlannedPoint:
    """The point that `PlannedPoint.record` kept."""
    costs = (run.params, run.macs, run.activations)
    assert None not in costs, "its costs were counted"
    params, macs, activations = (int(cost) for cost in costs if cost is not None)
    return PlannedPoint(
        point=Point(**run.options),
        asked=asked,
        match=run.key[1],  # type: ignore[arg-type]
        budget=run.budget,
        mismatch=run.mismatch,
        params=params,
        macs=macs,
        activations=activations,
        realised_segments=run.realised_segments,
        norms=run.norms,
        nonlinearities=run.nonlinearities,
        pointwise_pixels=run.pointwise_pixels,
        step_seconds=run.step_seconds,
        solved_for=run.solved_for,
        clamped=None if run.clamped_layers is None else tuple(run.clamped_layers.items()),
        same_as=run.same_as,
    )


def plan_study(
    study: Study | str | Path,
    *,
    imports: Sequence[str] = (),
    time_steps: bool = False,
    frozen: Plan | None = None,
) -> list[PlannedPoint]:
    """Solve the widths of every point and count its cost. Trains nothing and writes nothing.

    Args:
        study: from `load_study`, or the path of its file.
        imports: modules to import first, for models of one's own.
        time_steps: also time some training steps of each network, which takes half a second or so each.
        frozen: an earlier plan; widths that were solved in it for the same budget are taken as they are.

    Raises SpecError for a point whose network cannot be built or cannot meet its budget, for an option or an axis that
    changes nothing (of a plan that is not frozen yet), and for a network of one's own that gives no scores; DataError
    for a missing data set.

    >>> from spectrum import load_study
    >>> planned = plan_study(load_study("experiments/quickstart.toml"))
    >>> {one.point.segments: one.params for one in planned}
    {1: 108986, 2: 60602, 3: 44510, 4: 36410, 8: 24314, 16: 18266, 'per_channel': 14234}
    """
    from spectrum.data.images import read_once

    study = as_study(study)
    import_modules(imports)
    is_new = frozen is None or not frozen.is_of(study.hash)
    if is_new:
        check_effects(study)
    planner = _Planner(study, frozen)
    with read_once():
        planned = [planner.plan(wanted, time_steps=time_steps) for wanted in study.wanted()]
        if frozen is not None and not is_new:
            kept = {run.key: run.same_as for run in frozen.asked}
            return [replace(one, same_as=kept.get((one.asked.id, one.match))) for one in planned]
        from spectrum.study.equal_networks import told_apart

        return told_apart(study, planned)


class _Planner:
    """Plans one point after the other, each network once."""

    def __init__(self, study: Study, frozen: Plan | None) -> None:
        self.study = study
        self.before = {
            run.solved_for: run for run in (frozen.asked if frozen else ()) if run.solved_for and run.counted
        }
        self.planned: dict[Any, PlannedPoint] = {}
        self.sizes: dict[Any, int] = {}  # of training splits
        self.references: dict[Any, PlannedPoint] = {}

    def plan(self, wanted: Wanted, *, time_steps: bool) -> PlannedPoint:
        from spectrum.data.images import images_of

        point = wanted.point
        images = images_of(point)
        images_an_epoch = self._train_images(point, images)  # raises where there are too few
        key = (wanted.match, digest(network_of(point)), *_step(point), images.shape, images.classes)
        if key not in self.planned:
            if registered_in(point.model) is not None:
                _check_own(point, images)
            self.planned[key] = self._plan_network(wanted, images)
        found = self.planned[key]
        if time_steps and found.step_seconds is None:
            found = self.planned[key] = replace(found, step_seconds=self._time_step(found.point, images))
        solved = _as_wide_as(found.point, point)
        if found.step_seconds is None:
            return replace(found, point=solved, asked=point)
        steps = images_an_epoch // min(point.batch_size, images_an_epoch) * point.epochs
        return replace(found, point=solved, asked=point, seconds=found.step_seconds * steps)

    def _plan_network(self, wanted: Wanted, images: Images) -> PlannedPoint:
        point, match = wanted.point, wanted.match
        if match == "none":
            return replace(_counted(point, images), asked=point)
        reference = self.study.budget.reference_of(self.study.base, point)
        solved_for = _solved_for(point, reference, match, images)
        before = self.before.get(solved_for)
        if before is not None:
            kept = planned_point(before, point)
            planned = _counted(_as_wide_as(kept.point, point), images)
            return replace(planned, asked=point, match=match, budget=kept.budget, mismatch=kept.mismatch,
                           step_seconds=kept.step_seconds, solved_for=solved_for)  # fmt: skip
        if network_of(reference) == network_of(point):
            planned = _counted(point, images)
            seconds = self._time_step(point, images) if BUDGETS[match].is_timed else None
            budget = seconds if BUDGETS[match].is_timed else getattr(planned, match)
            planned = replace(planned, asked=point, match=match, budget=budget, solved_for=solved_for)
            return replace(planned, mismatch=0.0, step_seconds=seconds)
        from spectrum.cost.budget import BudgetError

        try:
            if BUDGETS[match].is_timed:
                solution, budget = self._solve_time(point, reference, images)
            else:
                key = (digest(network_of(reference)), images.shape, images.classes)
                if key not in self.references:
                    self.references[key] = _counted(reference, images)
                budget = getattr(self.references[key], match)
                solution = self._solve_count(point, match, budget, images)
        except BudgetError as error:
            where = ", ".join(f"{name} = {getattr(point, name)}" for name in PLACES if getattr(point, name) is not None)
            raise SpecError(
                f"budget.match = {match!r}, {where}: {error}; try another reference or base.width"
            ) from None
        # widths that the network has anyway name no other point, which would be trained a second time
        own = solution.widths == _stage_widths(point, images)
        solved = point if own else _with_widths(point, solution.widths)
        planned = replace(_counted(solved, images), asked=point, match=match, budget=budget, solved_for=solved_for)
        if BUDGETS[match].is_timed:
            return replace(planned, mismatch=solution.mismatch, step_seconds=solution.cost * budget)
        mismatch = getattr(planned, match) / budget - 1
        assert mismatch == solution.mismatch, "what was solved for is what was counted"
        return replace(planned, mismatch=mismatch)

    def _solve_count(self, point: Point, match: Match, budget: int, images: Images) -> Solution:
        from spectrum.cost.budget import solve_count

        count_of = _count_of(match, point, images)

        def count(widths: Widths, *, by_weights: bool = True) -> int:
            narrow = _with_widths(point, widths)
            try:
                model = _build_on_meta(narrow, images)
            except SpecError:
                return 0  # too narrow, for its pointwise_segments for instance
            return count_of(narrow, model, by_weights)

        base = _stage_widths(point, images)
        solution = solve_count(count, base, budget)
        if solution.cost != count(solution.widths, by_weights=False):  # its MACs do not follow from its weights
            solution = solve_count(lambda widths: count(widths, by_weights=False), base, budget)
        return solution

    def _solve_time(self, point: Point, reference: Point, images: Images) -> tuple[Solution, float]:
        from spectrum.cost.budget import solve_ratio
        from spectrum.cost.speed import step_time_ratio

        budgets: list[float] = []
        standard = self._stepper(reference, images)

        def ratio(widths: Widths) -> float:
            measured = step_time_ratio(self._stepper(_with_widths(point, widths), images), standard, THREADS)
            budgets.append(measured.standard)
            return measured.ratio

        return solve_ratio(ratio, _stage_widths(point, images)), sorted(budgets)[len(budgets) // 2]

    def _stepper(self, point: Point, images: Images) -> Callable[[], object]:
        from spectrum.cost.speed import random_batch
        from spectrum.training.optimisation import make_optimizer
        from spectrum.training.step import compiled, keep_freed_memory, training_step

        keep_freed_memory()  # as training does
        model = build(point, images)
        run = compiled(model) if point.compile else model
        optimizer = make_optimizer(point, model)
        x_nchw, y_n = random_batch(
            model, (min(point.batch_size, self._train_images(point, images)), *images.shape), images.classes
        )
        return lambda: training_step(point, run, optimizer, x_nchw, y_n)

    def _time_step(self, point: Point, images: Images) -> float:
        from spectrum.cost.speed import timed

        try:
            return float(timed(self._stepper(point, images), THREADS).median)
        except Exception as error:  # whatever a user's own family or backend raises
            if not registered([point.model]):
                raise
            raise _refused(point, "a training step fails", error) from error

    def _train_images(self, point: Point, images: Images) -> int:
        from spectrum.data.splits import count_train_images

        key = (images.fingerprint, point.validation_fraction, point.train_images)
        if key not in self.sizes:
            self.sizes[key] = count_train_images(images, point.validation_fraction, point.train_images)
        return self.sizes[key]


def network_of(point: Point) -> list[Any]:
    """All fields that say which network a point trains."""
    return network_key(point, "width", "widths", "dropout")


def _count_of(match: Match, point: Point, images: Images) -> Callable[[Point, Any, bool], int]:
    """How a budget's count is taken of a network like a point's in other widths: of its run, it on `meta`, and whether
    MACs may be reckoned from its weights, which is faster and holds for nearly all networks."""
    from spectrum.cost.count import macs_of_weights, pixels_by_layer

    if match == "params":
        return lambda narrow, model, by_weights: sum(p.numel() for p in model.parameters() if p.requires_grad)
    network, cost = _cost(point, images)
    pixels = pixels_by_layer(network, cost.layers)

    def macs(narrow: Point, model: Any, by_weights: bool) -> int:
        reckoned = macs_of_weights(model, pixels) if by_weights and pixels is not None else None
        return _forward_macs(narrow, model, images) if reckoned is None else reckoned

    return macs


def _step(point: Point) -> tuple[Any, ...]:
    """What the time of a step depends on beside the network."""
    return point.batch_size, point.optimizer, point.autocast, point.compile, point.train_images


def _solved_for(point: Point, reference: Point, match: Match, images: Images) -> str:
    """A hash of what solved widths depend on: network, shape of the images, budget, and for times the step."""
    step = _step(point) if BUDGETS[match].is_timed else ()
    return digest([match, network_of(point), network_of(reference), step, images.shape, images.classes])


def _as_wide_as(other: Point, point: Point) -> Point:
    """The point, in the widths of another."""
    return point.model_copy(update={"width": other.width, "widths": other.widths})


def _with_widths(point: Point, widths: Widths) -> Point:
    return point.model_copy(update={"width": 1.0, "widths": widths})


def _stage_widths(point: Point, images: Images) -> Widths:
    from spectrum.models import stage_widths

    channels, side, _ = images.shape
    try:
        return stage_widths(point.model, point.network_options(channels, images.classes, side))
    except ValueError as error:
        raise SpecError(f"budget: {error}") from None


def build(point: Point, images: Images) -> nn.Module:
    """The network of a point. Raises SpecError where it cannot be built."""
    from spectrum.models import build_model

    channels, side, _ = images.shape
    try:
        return build_model(point.model, point.network_options(channels, images.classes, side))
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:  # too large, or a user's own family
        raise SpecError(f"model = {point.model!r}, segments = {point.segments}: {error}") from error
    except Exception as error:  # whatever else a user's own family raises
        raise _refused(point, "its builder fails", error) from error


def _refused(point: Point, what: str, error: Exception) -> SpecError:
    return SpecError(f"model = {point.model!r}: {what}: {type(error).__name__}: {error}".rstrip(": "))


def _check_own(point: Point, images: Images) -> None:
    """Raise SpecError for a network of one's own that gives no scores of these images' classes.

    It sees two random images, in evaluation mode, as counting does.
    """
    import torch

    model = build(point, images)
    name = f"model = {point.model!r}"
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError(f"{name}: has no parameters to train; give it some, with requires_grad")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x_nchw = torch.randn(2, *images.shape).contiguous(memory_format=torch.channels_last)
        try:
            scores_nk = model.eval()(x_nchw)
        except Exception as error:
            what = f"its forward pass fails on images {tuple(x_nchw.shape)}"
            raise _refused(point, what, error) from error
    expected = (2, images.classes)
    if not isinstance(scores_nk, torch.Tensor) or tuple(scores_nk.shape) != expected:
        raise SpecError(
            f"{name}: gives {_described(scores_nk)} for 2 images of {images.classes} classes; "
            f"return one tensor of shape {expected}, with arch.num_classes scores an image"
        )
    if not scores_nk.is_floating_point():
        raise SpecError(f"{name}: gives scores of type {scores_nk.dtype}; return floating-point ones")
    if not bool(scores_nk.isfinite().all()):
        raise SpecError(f"{name}: gives NaN or infinite scores before any training; mend its initial weights")


def _described(value: object) -> str:
    """What something is, in words."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a tensor of shape {tuple(shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"


def _build_on_meta(point: Point, images: Images) -> nn.Module:
    """The network without its numbers, for counting; with them, where a user's own family cannot be built so."""
    import torch

    try:
        with torch.device("meta"):
            return build(point, images)
    except SpecError:
        return build(point, images)


def _counted(point: Point, images: Images) -> PlannedPoint:
    from spectrum.models.blocks import clamped_layers, realised_segments, unreachable_options

    model, cost = _cost(point, images)
    realised = tuple(realised_segments(model))
    if isinstance(point.segments, int) and realised and point.segments > max(realised):
        raise SpecError(
            f"segments = {point.segments}: no layer of {point.model!r} has so many channels; "
            f'the widest has {max(realised)}; try that, or "per_channel"'
        )
    for option in unreachable_options(model):
        raise SpecError(
            f"{option} = {getattr(point, option)}: no layer of {point.model!r} has channels enough; "
            "try less, or wider stages"
        )
    return PlannedPoint(
        point=point,
        asked=point,
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        realised_segments=realised,
        clamped=tuple(clamped_layers(model).items()),
        norms=cost.norms,
        nonlinearities=cost.nonlinearities,
        pointwise_pixels=tuple(
            layer.macs // layer.params for layer in cost.layers if layer.name.endswith("pointwise") and layer.params
        ),
        caveat=cost.caveat,
    )


def _forward_macs(point: Point, model: nn.Module, images: Images) -> int:
    from spectrum.cost.count import forward_macs

    try:
        return forward_macs(model, images.shape)
    except Exception:  # as in `_cost`
        return forward_macs(build(point, images), images.shape)


def _cost(point: Point, images: Images) -> tuple[nn.Module, Cost]:
    from spectrum.cost.count import measure_cost

    model = _build_on_meta(point, images)
    try:
        return model, measure_cost(model, images.shape)
    except Exception:  # a user's own family may look at numbers; what else is wrong will show again
        model = build(point, images)
        return model, measure_cost(model, images.shape)

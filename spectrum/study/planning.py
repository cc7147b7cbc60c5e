"""Plan a study before anything is trained: its runs with solved widths, and their costs.

Runs differ in seeds and learning rates far more often than in networks, so every network is built, counted, solved and
timed once.
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
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Match, Study, Wanted, as_study
from spectrum.models import registered_in
from spectrum.models.position import PLACES, Position
from spectrum.study.forecast import OF_DATA, cpu_seconds, data_seconds, run_seconds

if TYPE_CHECKING:
    from torch import nn

    from spectrum.cost.budget import Solution, Widths
    from spectrum.cost.count import Cost
    from spectrum.data.splits import Images

THREADS = 1  # threads of timed steps
TRIES = 4  # attempts to match a step time with measured backends


@dataclass(frozen=True)
class CostedRun:
    """A run and its cost."""

    run: RunConfig  # as trained, with solved widths
    params: int
    macs: int  # of one image, forward pass
    activations: int
    realised_segments: tuple[int, ...]  # per segmented convolution
    asked: RunConfig  # as in the study, before widths are solved
    match: Match = "none"
    budget: float | None = None  # cost of the reference: params, MACs or seconds per step
    mismatch: float | None = None  # of this run: cost / budget − 1
    norms: int = 0  # batch normalisations per forward pass
    nonlinearities: int = 0
    pointwise_pixels: tuple[int, ...] = ()  # output pixels of the 1×1 of each segmented convolution
    step_seconds: float | None = None  # measured
    solved_for: str | None = None  # hash of the conditions on which solved widths depend
    seconds: float | None = None  # estimated CPU time on one worker, evaluation and data included
    caveat: str | None = None  # of a network of others: what is replaced, and operations that its MACs do not include
    clamped: tuple[tuple[str, int], ...] | None = None  # option → number of layers; None: not recorded in the plan
    same_as: str | None = None  # id of an earlier run that trains the same network

    @property
    def clamped_layers(self) -> int:
        """Number of layers with fewer channels than the run's segments ask for.

        A layer counts once for each option that it cannot satisfy. Plans of earlier versions only record numbers of
        `segments`.
        """
        if self.clamped is not None:
            return sum(count for _, count in self.clamped)
        return Position.of(self.run).clamped_count(self.realised_segments) or 0

    def record(self) -> PlannedRun:
        """Entry of plan.json for this run."""
        known: dict[str, Any] = {
            "clamped_layers": None if self.clamped is None else dict(self.clamped),
            "same_as": self.same_as,
        }
        return PlannedRun(
            id=self.run.id,
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
            stored=self.run.model_dump(mode="json", exclude_defaults=True),
            **{name: value for name, value in known.items() if value is not None},
        )


def planned_run(run: PlannedRun, asked: RunConfig) -> CostedRun:
    """Restore the run that `CostedRun.record` stored."""
    costs = (run.params, run.macs, run.activations)
    assert None not in costs, "plan.json records the costs of the run"
    params, macs, activations = (int(cost) for cost in costs if cost is not None)
    return CostedRun(
        run=RunConfig(**run.options | {"model": asked.model}),  # a name in a file is not taken for one in the study
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
    tune: bool = False,
) -> list[CostedRun]:
    """Solve the widths of every run and count its cost. Trains nothing and writes nothing.

    Args:
        study: from `load_study`, or the path of its file.
        imports: modules to import first, for models of your own.
        time_steps: also time training steps of each network, which takes about half a second each.
        frozen: an earlier plan; widths solved in it for the same budget are reused.
        tune: where step times are matched, measure the fastest backends of the solved network, and match again with
            them. The solver itself uses default backends.

    Raises SpecError for a run whose network cannot be built or cannot meet its budget, and for a network of your own
    that returns no scores. Unless the plan is frozen, an option or an axis that changes nothing raises it, too, and so
    do batches larger than the training split. Raises DataError for a missing data set.

    >>> from spectrum import load_study
    >>> planned = plan_study(load_study("experiments/quickstart.toml"))
    >>> {one.run.segments: one.params for one in planned}
    {1: 108986, 2: 60602, 3: 44510, 4: 36410, 8: 24314, 16: 18266, 'per_channel': 14234}
    """
    from spectrum.data.images import read_once

    study = as_study(study)
    import_modules(imports)
    is_new = frozen is None or not frozen.is_of(study.hash)
    if is_new:
        check_effects(study)
    planner = _Planner(study, frozen, tune, is_new)
    with read_once():
        planned = [planner.plan(wanted, time_steps=time_steps) for wanted in study.wanted()]
        if frozen is not None and not is_new:
            kept = {run.key: run.same_as for run in frozen.asked}
            return [replace(one, same_as=kept.get((one.asked.id, one.match))) for one in planned]
        from spectrum.study.equal_networks import told_apart

        return told_apart(study, planned)


def _wall_seconds(function: Callable[[], object], threads: int) -> float:
    """Elapsed time of one call, the median of several."""
    from spectrum.cost.speed import timed

    return float(timed(function, threads).median)


class _Planner:
    """Plan runs one after the other; repeated networks are counted and timed once."""

    def __init__(self, study: Study, frozen: Plan | None, tunes: bool, is_new: bool) -> None:
        self.study, self.tunes, self.is_new = study, tunes, is_new
        self.before = {
            run.solved_for: run for run in (frozen.asked if frozen else ()) if run.solved_for and run.counted
        }
        self.planned: dict[Any, CostedRun] = {}
        self.sizes: dict[Any, tuple[int, int]] = {}  # numbers of training and validation images
        self.data: dict[Any, tuple[float, float]] = {}  # seconds to split the images, and seconds to make a batch
        self.references: dict[Any, CostedRun] = {}

    def plan(self, wanted: Wanted, *, time_steps: bool) -> CostedRun:
        from spectrum.data.images import images_of

        run = wanted.run
        images = images_of(run)
        sizes = self._sizes(run, images)  # raises if there are too few images
        if self.is_new:  # a frozen plan keeps its meaning: a batch of all training images, where they are fewer
            _check_of_images(run, images, sizes[0])
        key = (wanted.match, digest(network_of(run)), *_step(run), images.shape, images.classes)
        if key not in self.planned:
            if registered_in(run.model) is not None:
                _check_own(run, images)
            self.planned[key] = self._plan_network(wanted, images)
        found = self.planned[key]
        if time_steps and found.step_seconds is None:
            found = self.planned[key] = replace(found, step_seconds=self._time_step(found.run, images, cpu_seconds))
        solved = _as_wide_as(found.run, run)
        if found.step_seconds is None or not time_steps:
            return replace(found, run=solved, asked=run)
        seconds = run_seconds(run, sizes, len(images.test_y), found.step_seconds, self._data_seconds(run, images))
        return replace(found, run=solved, asked=run, seconds=seconds)

    def _plan_network(self, wanted: Wanted, images: Images) -> CostedRun:
        run, match = wanted.run, wanted.match
        if match == "none":
            return replace(_counted(run, images), asked=run)
        reference = self.study.budget.reference_of(self.study.base, run)
        solved_for = _solved_for(run, reference, match, images)
        before = self.before.get(solved_for)
        if before is not None:
            kept = planned_run(before, run)
            planned = _counted(_as_wide_as(kept.run, run), images)
            return replace(planned, asked=run, match=match, budget=kept.budget, mismatch=kept.mismatch,
                           step_seconds=kept.step_seconds, solved_for=solved_for)  # fmt: skip
        if network_of(reference) == network_of(run):
            planned = _counted(run, images)
            seconds = self._time_step(run, images, tuned=self.tunes) if BUDGETS[match].is_timed else None
            budget = seconds if BUDGETS[match].is_timed else getattr(planned, match)
            planned = replace(planned, asked=run, match=match, budget=budget, solved_for=solved_for)
            return replace(planned, mismatch=0.0, step_seconds=seconds)
        from spectrum.cost.budget import BudgetError

        try:
            if BUDGETS[match].is_timed:
                solution, budget = self._solve_time(run, reference, images)
            else:
                key = (digest(network_of(reference)), images.shape, images.classes)
                if key not in self.references:
                    self.references[key] = _counted(reference, images)
                budget = getattr(self.references[key], match)
                solution = self._solve_count(run, match, budget, images)
        except BudgetError as error:
            where = ", ".join(f"{name} = {getattr(run, name)}" for name in PLACES if getattr(run, name) is not None)
            raise SpecError(
                f"cannot match {match} for {where}: {error}. Choose a larger `reference` or a larger `width` in [base]"
            ) from None
        # if the solved widths are the network's own, keep the run's id, or it would be trained a second time
        own = solution.widths == _stage_widths(run, images)
        solved = run if own else _with_widths(run, solution.widths)
        planned = replace(_counted(solved, images), asked=run, match=match, budget=budget, solved_for=solved_for)
        if BUDGETS[match].is_timed:
            return replace(planned, mismatch=solution.mismatch, step_seconds=solution.cost * budget)
        mismatch = getattr(planned, match) / budget - 1
        assert mismatch == solution.mismatch, "the solver and the counter agree"
        return replace(planned, mismatch=mismatch)

    def _solve_count(self, run: RunConfig, match: Match, budget: int, images: Images) -> Solution:
        from spectrum.cost.budget import solve_count

        count_of = _count_of(match, run, images)

        def count(widths: Widths, *, by_weights: bool = True) -> int:
            narrow = _with_widths(run, widths)
            try:
                model = _build_on_meta(narrow, images)
            except SpecError:
                return 0  # too narrow, for example for its pointwise_segments
            return count_of(narrow, model, by_weights)

        base = _stage_widths(run, images)
        solution = solve_count(count, base, budget)
        if solution.cost != count(solution.widths, by_weights=False):  # its MACs do not follow from its weights
            solution = solve_count(lambda widths: count(widths, by_weights=False), base, budget)
        return solution

    def _solve_time(self, run: RunConfig, reference: RunConfig, images: Images) -> tuple[Solution, float]:
        from spectrum.cost.budget import solve_ratio
        from spectrum.cost.speed import step_time_ratio

        budgets: list[float] = []
        standard = self._stepper(reference, images)

        def ratio(widths: Widths) -> float:
            measured = step_time_ratio(self._stepper(_with_widths(run, widths), images), standard, THREADS)
            budgets.append(measured.standard)
            return measured.ratio

        solution = solve_ratio(ratio, _stage_widths(run, images))
        if self.tunes:
            return self._matched_as_tuned(run, reference, images, ratio, solution)
        return solution, sorted(budgets)[len(budgets) // 2]

    def _matched_as_tuned(
        self,
        run: RunConfig,
        reference: RunConfig,
        images: Images,
        guessed: Callable[[Widths], float],
        solution: Solution,
    ) -> tuple[Solution, float]:
        """The solution with the backends that training will have, and seconds per step of the reference with its own.

        Only the network that was found is measured. If it misses the budget, widths are solved again by the guess,
        corrected by how much faster or slower the measured backends were.
        """
        from spectrum.cost.budget import TIME_BOUND, BudgetError, Solution, solve_ratio
        from spectrum.cost.speed import step_time_ratio

        base, factor, standard = _stage_widths(run, images), 1.0, self._stepper(reference, images, tuned=True)
        for _ in range(TRIES):
            step = self._stepper(_with_widths(run, solution.widths), images, tuned=True)
            measured = step_time_ratio(step, standard, THREADS)
            if abs(measured.ratio - 1) <= TIME_BOUND:
                return Solution(solution.widths, measured.ratio, measured.ratio - 1), measured.standard
            factor *= measured.ratio / solution.cost
            solution = solve_ratio(_corrected(guessed, factor), base)
        raise BudgetError(
            f"cannot be met within {TIME_BOUND:.0%} with the backends that are fastest here; try --tune off"
        )

    def _stepper(self, run: RunConfig, images: Images, *, tuned: bool = False) -> Callable[[], object]:
        from spectrum.cost.speed import random_batch
        from spectrum.training.optimisation import make_optimizer
        from spectrum.training.step import compiled, keep_freed_memory, training_step

        keep_freed_memory()  # as in training
        model = build(run, images)
        if tuned:
            self._tune(run, images, model)
        called = compiled(model) if run.compile else model
        optimizer = make_optimizer(run, model)
        x_nchw, y_n = random_batch(
            model, (min(run.batch_size, self._sizes(run, images)[0]), *images.shape), images.classes
        )
        return lambda: training_step(run, called, optimizer, x_nchw, y_n)

    @staticmethod
    def _tune(run: RunConfig, images: Images, model: nn.Module) -> None:
        """Give the network the backends that are measured for its run, with as many threads as steps are timed with."""
        import torch

        from spectrum.conv.tuning import use_choices
        from spectrum.training.tuned import tune_run

        before = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            use_choices(model, tune_run(run, images, "cpu", {}).backends)
        finally:
            torch.set_num_threads(before)

    def _time_step(
        self,
        run: RunConfig,
        images: Images,
        clock: Callable[[Callable[[], object], int], float] = _wall_seconds,
        *,
        tuned: bool = False,
    ) -> float:
        try:
            return clock(self._stepper(run, images, tuned=tuned), THREADS)
        except Exception as error:  # from a user's own model or backend
            if not registered([run.model]):
                raise
            raise _refused(run, "a training step fails", error) from error

    def _sizes(self, run: RunConfig, images: Images) -> tuple[int, int]:
        from spectrum.data.splits import count_used

        key = (images.fingerprint, run.validation_fraction, run.train_images)
        if key not in self.sizes:
            self.sizes[key] = count_used(images, run.validation_fraction, run.train_images)
        return self.sizes[key]

    def _data_seconds(self, run: RunConfig, images: Images) -> tuple[float, float]:
        key = (images.fingerprint, *(getattr(run, name) for name in OF_DATA))
        if key not in self.data:
            self.data[key] = data_seconds(run, images)
        return self.data[key]


def _corrected(ratio: Callable[[Widths], float], factor: float) -> Callable[[Widths], float]:
    return lambda widths: factor * ratio(widths)


def network_of(run: RunConfig) -> list[Any]:
    """All fields on which the network of a run depends."""
    return network_key(run, "width", "widths", "dropout")


def _count_of(match: Match, run: RunConfig, images: Images) -> Callable[[RunConfig, Any, bool], int]:
    """Make a function that counts what a budget matches, for a run's network with other widths.

    Its arguments are the run, its network on `meta`, and whether MACs may be computed from the weights, which is faster
    and correct for nearly all networks.
    """
    from spectrum.cost.count import macs_of_weights, pixels_by_layer

    if match == "params":
        return lambda narrow, model, by_weights: sum(p.numel() for p in model.parameters() if p.requires_grad)
    network, cost = _cost(run, images)
    pixels = pixels_by_layer(network, cost.layers)

    def macs(narrow: RunConfig, model: Any, by_weights: bool) -> int:
        reckoned = macs_of_weights(model, pixels) if by_weights and pixels is not None else None
        return _forward_macs(narrow, model, images) if reckoned is None else reckoned

    return macs


def _step(run: RunConfig) -> tuple[Any, ...]:
    """Options besides the network on which the time of a step depends."""
    return run.batch_size, run.optimizer, run.autocast, run.compile, run.train_images


def _solved_for(run: RunConfig, reference: RunConfig, match: Match, images: Images) -> str:
    """Hash of what solved widths depend on: network, shape of the images, budget, and the step if it is timed."""
    step = _step(run) if BUDGETS[match].is_timed else ()
    return digest([match, network_of(run), network_of(reference), step, images.shape, images.classes])


def _as_wide_as(other: RunConfig, run: RunConfig) -> RunConfig:
    """The run with the widths of another."""
    return run.model_copy(update={"width": other.width, "widths": other.widths})


def _with_widths(run: RunConfig, widths: Widths) -> RunConfig:
    return run.model_copy(update={"width": 1.0, "widths": widths})


def _stage_widths(run: RunConfig, images: Images) -> Widths:
    from spectrum.models import stage_widths

    channels, side, _ = images.shape
    try:
        return stage_widths(run.model, run.network_options(channels, images.classes, side))
    except ValueError as error:
        raise SpecError(f"budget: {error}") from None


def build(run: RunConfig, images: Images) -> nn.Module:
    """Build the network of a run. Raises SpecError if it cannot be built."""
    from spectrum.models import build_model

    channels, side, _ = images.shape
    try:
        return build_model(run.model, run.network_options(channels, images.classes, side))
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:  # too large, or an error of a user's own model
        raise SpecError(f"model = {run.model!r}, segments = {run.segments}: {error}") from error
    except Exception as error:  # other errors of a user's own model
        raise _refused(run, "its builder fails", error) from error


def _refused(run: RunConfig, what: str, error: Exception) -> SpecError:
    return SpecError(f"model = {run.model!r}: {what}: {type(error).__name__}: {error}".rstrip(": "))


def _check_of_images(run: RunConfig, images: Images, train_images: int) -> None:
    """Raise SpecError for options that the images of a run cannot satisfy.

    Args:
        run: the run.
        images: its data set.
        train_images: number of images that it trains on.
    """
    if run.batch_size > train_images:
        default = "" if "batch_size" in run.model_fields_set else ", the default,"
        raise SpecError(
            f"batch_size = {run.batch_size}{default} is more than the {train_images:,} training images of "
            f"{run.dataset!r} in this study; give batch_size = {train_images} or fewer"
        )
    side = min(images.shape[1:])
    for name in ("shift", "cutout"):
        if getattr(run, name) >= side:
            raise SpecError(
                f"{name} = {getattr(run, name)}: is no smaller than the images, which are {images.shape[1]}×"
                f"{images.shape[2]} pixels, so that images can be lost entirely; give fewer pixels than {side}"
            )


def _check_own(run: RunConfig, images: Images) -> None:
    """Raise SpecError for a network of your own that does not return scores of these images' classes.

    It gets two random images, in evaluation mode, as for counting.
    """
    import torch

    model = build(run, images)
    name = f"model = {run.model!r}"
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SpecError(f"{name}: has no parameters to train; give it some, with requires_grad")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x_nchw = torch.randn(2, *images.shape).contiguous(memory_format=torch.channels_last)
        try:
            scores_nk = model.eval()(x_nchw)
        except Exception as error:
            what = f"its forward pass fails on images {tuple(x_nchw.shape)}"
            raise _refused(run, what, error) from error
    expected = (2, images.classes)
    if not isinstance(scores_nk, torch.Tensor) or tuple(scores_nk.shape) != expected:
        raise SpecError(
            f"{name}: gives {_described(scores_nk)} for 2 images of {images.classes} classes; "
            f"return one tensor of shape {expected}, with arch.num_classes scores per image"
        )
    if not scores_nk.is_floating_point():
        raise SpecError(f"{name}: gives scores of type {scores_nk.dtype}; return floating-point ones")
    if not bool(scores_nk.isfinite().all()):
        raise SpecError(f"{name}: gives NaN or infinite scores before any training; fix its initial weights")


def _described(value: object) -> str:
    """Describe a value in words."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a tensor of shape {tuple(shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"


def _build_on_meta(run: RunConfig, images: Images) -> nn.Module:
    """Build the network without numbers, for counting; with numbers, if a user's own model cannot be built without."""
    import torch

    try:
        with torch.device("meta"):
            return build(run, images)
    except SpecError:
        return build(run, images)


def _counted(run: RunConfig, images: Images) -> CostedRun:
    from spectrum.models.blocks import clamped_layers, realised_segments, unreachable_options

    model, cost = _cost(run, images)
    realised = tuple(realised_segments(model))
    if isinstance(run.segments, int) and realised and run.segments > max(realised):
        raise SpecError(
            f"segments = {run.segments}: no layer of {run.model!r} has so many channels; "
            f'the widest has {max(realised)}; try that, or "per_channel"'
        )
    for option in unreachable_options(model):
        raise SpecError(
            f"{option} = {getattr(run, option)}: no layer of {run.model!r} has enough channels; "
            "give a smaller number, or wider stages"
        )
    return CostedRun(
        run=run,
        asked=run,
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
        caveat=" ".join(filter(None, [_conversion(model), cost.caveat])) or None,
    )


def _conversion(model: nn.Module) -> str | None:
    """A sentence on the layers of a network of others that are replaced; None for other networks."""
    from spectrum.models.converted import conversion_of

    known = conversion_of(model)
    if known is None:
        return None
    replaced, left = len(known["replaced"]), known["left"]
    others = "; ".join(f"{layer}: {why}" for layer, why in list(left.items())[:3]) + ("; …" if len(left) > 3 else "")
    return f"{replaced} of {replaced + len(left)} k×k convolutions are replaced" + (
        f" (not {others})." if left else "."
    )


def _forward_macs(run: RunConfig, model: nn.Module, images: Images) -> int:
    from spectrum.cost.count import forward_macs

    try:
        return forward_macs(model, images.shape)
    except Exception:  # see `_cost`
        return forward_macs(build(run, images), images.shape)


def _cost(run: RunConfig, images: Images) -> tuple[nn.Module, Cost]:
    from spectrum.cost.count import measure_cost

    model = _build_on_meta(run, images)
    try:
        return model, measure_cost(model, images.shape)
    except Exception:  # a user's own model may read values; any other error occurs again below
        model = build(run, images)
        return model, measure_cost(model, images.shape)

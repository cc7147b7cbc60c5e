"""Measure which backend is fastest for each layer of a network, on the machine that computes.

    tune                measures, and gives the layers of a network what was measured
    use_choices         gives them what was measured before

A layer is timed forward and backward, as in training; evaluation uses the same backend, so that a layer has one. All
candidates take turns, so that a machine that slows down does so for all of them, and medians decide. Candidates that
are clearly slower drop out early. The guess stays unless another one is at least 3% faster, and faster in three of four
turns, so that noise does not change last bits.

Shapes: x_nchw is (N, C, H, W).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from spectrum.conv.backends.choice import AUTO, BACKENDS, candidates, guess, refusal
from spectrum.conv.backends.table import ShapeClass, class_of, of_layer
from spectrum.conv.clocks import by_events, by_wall
from spectrum.conv.grouped import GroupedConv2d
from spectrum.conv.kept import Kept, Timed, kept_choices
from spectrum.conv.machine import machine_key

CLASS_SECONDS, NETWORK_SECONDS = 1.0, 20.0  # most that one shape class, and one network, takes
FEW_IMAGES, LOOKS = 4, 3  # images and passes of the first look at each candidate
BLOCK_SECONDS = 0.005  # of one turn of a candidate
SHARE = 0.025  # of the class's time that one pass may take; else fewer images are timed
ROUNDS, LEAST_ROUNDS = 31, 3
FAR, CLEAR = 4.0, 1.2  # times the fastest, at which a candidate drops out: at the first look, and between turns
TIE, MOST = 1.03, 0.75  # a candidate beats the guess if it is so many times as fast, in so many of the turns
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Tuned:
    """What `tune` found for a network."""

    machine: str
    """The machine key under which choices are kept: processor or GPU, versions, code."""
    backends: Mapping[str, str] = field(default_factory=dict)
    """The fastest backend of each shape class, by the class's text."""
    measured: int = 0
    """Classes that were measured now."""
    known: int = 0
    """Classes that were known before."""
    left: int = 0
    """Classes for which no time was left; their layers have the guess."""
    seconds: float = 0.0
    """Time that it took."""
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Seconds of a forward and backward pass, by class and backend."""


class Stopwatch:
    """Times calls on a device, "cpu" or "cuda"; on CUDA by events, so that the host's own time is left out."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"

    def now(self) -> float:
        """Seconds of a clock that only runs on."""
        return time.perf_counter()

    def seconds(self, function: Callable[[], object], calls: int) -> float:
        """Seconds of one call, the mean of several in a row."""
        if not self.on_cuda:
            return by_wall(function, calls)
        torch.cuda.synchronize()
        return by_events(function, calls)


def tune(
    model: nn.Module,
    input_shape: tuple[int, int, int, int],
    *,
    seconds: float = NETWORK_SECONDS,
    backends: Sequence[str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Tuned:
    """Measure the fastest backend for each segmented convolution of a network, here and now, and use it from here on.

    Args:
        model: on the CPU or on CUDA; layers whose backend was named keep it. Weights, buffers, modes and random
            generators stay as they are.
        input_shape: (images, channels, height, width) of a training batch. It is tried in channels_last, with
            autocast if that is active.
        seconds: most time for the whole network; layers that are not reached keep the guess.
        backends: names of the candidates; by default all built-in ones. What a backend of your own took part in is
            not kept for other processes.
        known: choices that stand, by text of the shape class, as of an earlier `Tuned`; the others are measured.

    What other processes measured for the same shapes on the same machine is taken from the cache folder. Raises
    ValueError for a network on another device, an unknown backend, or an input that the network does not take.

    >>> from spectrum import build_model
    >>> model = build_model("probe", segments=4, width=0.25)
    >>> tuned = tune(model, (8, 3, 32, 32))
    >>> tuned.measured + tuned.known + tuned.left == len(classes_of(model, (8, 3, 32, 32)))
    True
    """
    names = candidates() if backends is None else list(backends)
    for name in names:
        BACKENDS[name]  # raises for an unknown one
    device = _device_of(model)
    if device.type not in DEVICES:
        raise ValueError(f"model: is on {device.type!r}, where nothing can be timed; move it to the CPU or to CUDA")
    began = time.perf_counter()
    standing = dict(known or {})
    needed = classes_of(model, input_shape)
    fresh = Counter({one: count for one, count in needed.items() if str(one) not in standing})
    with _choices(machine_key(device), shared=set(names) <= set(candidates())) as kept:
        tuned = _measured(fresh, names, kept, began + seconds)
    stand = {str(one): standing[str(one)] for one in needed if str(one) in standing}
    tuned = replace(tuned, backends={**tuned.backends, **stand}, known=tuned.known + len(stand))
    use_choices(model, tuned.backends)
    return tuned


def use_choices(model: nn.Module, backends: Mapping[str, str]) -> dict[str, str]:
    """Give the layers of a network what was measured before; without an entry they guess.

    Args:
        model: whose layers compute by these backends from here on.
        backends: shape class, as text → name of a backend.

    Returns the choices that are about a layer of this network. Raises ValueError for a text that names no shape class.
    """
    table = {ShapeClass.of_text(text): backend for text, backend in backends.items()}
    layers = [module for module in model.modules() if isinstance(module, GroupedConv2d)]
    for layer in layers:
        layer.measured = of_layer(layer.geometry, table)
    geometries = {layer.geometry for layer in layers}
    return {str(one): backend for one, backend in table.items() if one.geometry in geometries}


def classes_of(model: nn.Module, input_shape: tuple[int, int, int, int]) -> Counter[ShapeClass]:
    """The shape classes of the layers that choose their backend themselves, with the number of layers of each.

    Found by one forward pass in evaluation mode. Raises ValueError for an input that the network does not take.
    """
    found: Counter[ShapeClass] = Counter()

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, GroupedConv2d)
        if inputs[0].dim() == 4 and inputs[0].numel():
            found[class_of(inputs[0], module.geometry)] += 1

    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            if isinstance(module, GroupedConv2d) and module.choice.name == AUTO:
                stack.callback(module.register_forward_pre_hook(note).remove)
        stack.enter_context(_evaluating(model))
        stack.enter_context(_own_random_numbers())
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        x_nchw = torch.randn(input_shape, device=like.device, dtype=like.dtype)
        try:
            model(x_nchw.contiguous(memory_format=torch.channels_last))
        except (RuntimeError, TypeError, ValueError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"input_shape={tuple(input_shape)}: the network does not take it: {first}") from error
    return found


def _measured(needed: Counter[ShapeClass], names: Sequence[str], kept: Kept, deadline: float) -> Tuned:
    """Measure what is not known, the largest inputs first, until the deadline."""
    began = time.perf_counter()
    known = {one: kept.choices[str(one)] for one in needed if _is_usable(kept.choices.get(str(one)))}
    missing = sorted(needed.keys() - known.keys(), key=lambda one: (-needed[one] * one.numbers, str(one)))
    found = dict(known)
    for one in missing if kept.may_measure else ():
        limit = min(CLASS_SECONDS, deadline - time.perf_counter())
        if limit <= 0:
            break
        found[one] = kept.choices[str(one)] = measure(one, names, Stopwatch(one.case[-1]), limit)
    return Tuned(
        machine=kept.machine,
        backends={str(one): timed.backend for one, timed in found.items()},
        measured=len(found) - len(known),
        known=len(known),
        left=len(needed) - len(found),
        seconds=time.perf_counter() - began,
        times={str(one): timed.seconds for one, timed in found.items()},
    )


def _is_usable(timed: Timed | None) -> bool:
    """Whether it is known, and by a backend that there is."""
    return timed is not None and timed.backend in BACKENDS


def measure(one: ShapeClass, names: Sequence[str], watch: Stopwatch, limit: float = CLASS_SECONDS) -> Timed:
    """Time the candidates for a shape class, and choose.

    Args:
        one: the shape class.
        names: of the candidates; those that cannot compute the class are left out.
        watch: by which they are timed.
        limit: seconds after which what was timed so far decides.
    """
    few = _Passes(one, min(one.images, FEW_IMAGES))
    standard = few.guess()
    look = _looks(few, [standard, *(name for name in names if name != standard)], watch, limit / 2)
    if standard not in look:  # not even a few images fit into memory, or a backend of the user's fails
        return Timed(standard)
    began = watch.now()
    left = [name for name in look if name == standard or look[name] <= FAR * min(look.values())]
    affordable = int(SHARE * limit / (min(look.values()) / few.images))
    passes = _Passes(one, max(few.images, min(one.images, affordable)))
    turns = _turns(passes, left, watch, began + limit / 2)
    return Timed(_winner(turns, standard), {name: median(times) for name, times in turns.items()})


def _looks(few: _Passes, names: Sequence[str], watch: Stopwatch, limit: float) -> dict[str, float]:
    """Seconds of a pass on a few images by each candidate that can compute them, the least of several.

    The first pass of each is not counted: a kernel may be compiled in it.
    """
    look: dict[str, float] = {}
    spent = 0.0
    for name in names:
        began = watch.now()
        if not (few.can(name) and few.works(name)):
            continue
        seen = [watch.seconds(partial(few, name), 1)]
        while len(seen) < LOOKS and spent + watch.now() - began < limit:
            seen.append(watch.seconds(partial(few, name), 1))
        look[name] = min(seen)
        spent += watch.now() - began
        if spent >= limit:
            break
    return look


def _turns(passes: _Passes, names: Sequence[str], watch: Stopwatch, deadline: float) -> dict[str, list[float]]:
    """Seconds of a pass by each candidate, one value for each turn; candidates that are clearly slower drop out."""
    calls = {name: _calls(watch.seconds(partial(passes, name), 1)) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    left = list(names)
    for turn in range(ROUNDS):
        for name in left[turn % len(left) :] + left[: turn % len(left)]:
            times[name].append(watch.seconds(partial(passes, name), calls[name]))
        fastest = min(median(times[name]) for name in left)
        if turn + 1 >= LEAST_ROUNDS:
            left = [name for name in left if min(times[name]) <= CLEAR * fastest]
        if len(left) == 1 or (watch.now() >= deadline and turn + 1 >= LEAST_ROUNDS):
            break
    return times


def _calls(seconds: float) -> int:
    """How many calls make up a turn."""
    return max(1, min(50, round(BLOCK_SECONDS / max(seconds, 1e-9))))


def _winner(turns: Mapping[str, Sequence[float]], standard: str) -> str:
    """The fastest candidate that beats the guess by more than the noise; the guess if none does.

    It must have the lower median, and the lower time in most turns: on a busy machine medians alone may mislead.
    """
    medians = {name: median(times) for name, times in turns.items()}

    def beats(name: str) -> bool:
        pairs = list(zip(turns[name], turns[standard], strict=False))  # turns that both had
        faster = sum(mine < theirs for mine, theirs in pairs)
        return TIE * medians[name] < medians[standard] and faster >= MOST * len(pairs)

    better = [name for name in turns if name != standard and beats(name)]
    return min(better, key=lambda name: medians[name], default=standard)


class _Passes:
    """Forward and backward passes of one shape class by any backend, on random numbers."""

    def __init__(self, one: ShapeClass, images: int) -> None:
        self.geometry, self.images = one.geometry, images
        height, width, last, dtype, self.autocast, self.kind = one.case
        layout = torch.channels_last if last else torch.contiguous_format
        with torch.inference_mode(False), _own_random_numbers():
            x_nchw = torch.randn(images, one.channels, height, width, device=self.kind).to(dtype)
            self.x_nchw = x_nchw.contiguous(memory_format=layout).requires_grad_()
            of_weights = torch.float32 if self.autocast is not None else dtype
            weights = [torch.randn(shape, device=self.kind) for shape in self.geometry.weight_shapes]
            self.weights = [w.to(of_weights).contiguous(memory_format=layout).requires_grad_() for w in weights]
            y_shape = self.geometry.output_shape(self.x_nchw.shape)
            gradient_nchw = torch.randn(y_shape, device=self.kind).to(self.autocast or dtype)
            self.gradient_nchw = gradient_nchw.contiguous(memory_format=layout)

    def guess(self) -> str:
        """The backend for this class as long as nothing is measured."""
        with self._as_in_training():
            return guess(self.x_nchw, self.geometry)

    def can(self, name: str) -> bool:
        """Whether a backend is there and computes this class."""
        try:
            BACKENDS[name].prepare()
        except ValueError:
            return False
        with self._as_in_training():
            return refusal(name, self.x_nchw, self.geometry) is None

    def works(self, name: str) -> bool:
        """Whether a pass by this backend ends without an error, such as for lack of memory; the first pass of each."""
        try:
            self(name)
        except Exception:  # a backend of the user's may raise anything; it is then no candidate
            return False
        return True

    def __call__(self, name: str) -> None:
        """One forward and one backward pass."""
        with torch.inference_mode(False), torch.enable_grad(), self._as_in_training():
            y_nchw = BACKENDS[name].convolve(self.x_nchw, self.weights, self.geometry)
        gradient_nchw = self.gradient_nchw.to(y_nchw.dtype)
        torch.autograd.grad(y_nchw, [self.x_nchw, *self.weights], gradient_nchw)

    def _as_in_training(self) -> Any:
        return torch.autocast(self.kind, self.autocast, enabled=self.autocast is not None)


@contextmanager
def _choices(machine: str, *, shared: bool) -> Iterator[Kept]:
    """The choices of this machine; without `shared` none are known and none are kept."""
    if not shared:
        yield Kept(machine)
        return
    with kept_choices(machine) as kept:
        yield kept


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Leave torch's generators as they are."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _device_of(model: nn.Module) -> torch.device:
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if first is None else first.device

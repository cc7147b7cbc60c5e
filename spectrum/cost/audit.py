"""Compare the counts of other tools with `measure_cost`, and explain every difference.

Every counter runs on a copy of the network, in evaluation mode. Its figure is converted to MACs, and the difference to
`measure_cost` is split into reasons. A reason is computed from the layers' sizes by the counter's own rule, as in its
source code, and never from the difference. So the remainder is zero only if the rules are right. They cover this
project's layers and the common ones of torch.nn; a difference from any other layer is shown as unexplained.

The most important reason here is the group error. `torch.utils.flop_counter` ignores the groups of a convolution in its
weight's gradient, and so counts it once per segment. Versions up to 2.13 do so. The installed version is tested on a
small convolution, so a corrected version does not get this reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from io import StringIO
from typing import Any

import torch
from torch import nn

from spectrum._version import __version__
from spectrum.cost.count import Cost, first_line, measure_cost
from spectrum.cost.counters import COUNTERS, TORCH, TORCH_BOTH, Counter, Seen, look
from spectrum.cost.inputs import Inputs, inputs_of
from spectrum.cost.left_alone import put_in_evaluation

OURS = "spectrum"


@dataclass(frozen=True)
class Reason:
    """Why a counter differs: what it adds (positive) or lacks (negative)."""

    name: str
    macs: int


@dataclass(frozen=True)
class Reading:
    """The figure of one counter for one network, for one example or the given inputs."""

    counter: str
    version: str | None  # None: not installed
    word: str  # its name for the figure
    per_mac: int  # its figure for one MAC
    ours: int  # our count, in MACs
    figure: int | None = None  # None: see `problem`
    params: int | None = None  # if it reports them
    reasons: tuple[Reason, ...] = ()
    problem: str | None = None  # why it has no figure

    @property
    def unit(self) -> str:
        """The unit of its figure, such as "FLOPs = 2 × MACs"."""
        if self.word == "MACs":
            return self.word
        return f"{self.word} = {'' if self.per_mac == 1 else f'{self.per_mac} × '}MACs"

    @property
    def macs(self) -> int | None:
        """The counter's figure in MACs."""
        return None if self.figure is None else self.figure // self.per_mac

    @property
    def difference(self) -> int | None:
        """The counter's MACs minus ours."""
        return None if self.macs is None else self.macs - self.ours

    @property
    def unexplained(self) -> int | None:
        """The part of the difference that no reason explains."""
        return None if self.difference is None else self.difference - sum(reason.macs for reason in self.reasons)


@dataclass(frozen=True)
class Audit:
    """One network, counted by this package and by others."""

    cost: Cost
    readings: tuple[Reading, ...]  # ours first


def audit(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, example_inputs: Any = None, cost: Cost | None = None
) -> Audit:
    """Count a network with every installed counter, and explain the differences to `measure_cost`.

    Args:
        model: an eager (not compiled) network; it is not changed. Needs memory for one copy.
        input_shape, example_inputs: as for `measure_cost`.
        cost: result of `measure_cost` for it, if known.

    For a counter that is not installed, fails on this network or does not accept such inputs, the reading gives the
    reason. Raises the errors of `measure_cost`.
    """
    cost = measure_cost(model, input_shape, example_inputs=example_inputs) if cost is None else cost

    def inputs() -> Inputs:
        return inputs_of(model, input_shape, example_inputs)

    seen = look(model, inputs())
    ours = Reading(OURS, __version__, "MACs", 1, cost.macs, cost.macs, cost.params)
    return Audit(cost, (ours, *(_read(counter, model, inputs(), seen, cost) for counter in COUNTERS)))


def as_rows(audited: Audit) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table printed by the command."""
    return ["counter", "figure", "as MACs", "difference", "reasons"], [_row(reading) for reading in audited.readings]


def _row(reading: Reading) -> list[str]:
    counter = reading.counter if reading.version is None else f"{reading.counter} ({reading.version})"
    if reading.figure is None:
        return [counter, "", "", "", str(reading.problem)]
    assert reading.difference is not None
    reasons = [f"{reason.name} {_signed(reason.macs)}" for reason in reading.reasons]
    if reading.unexplained:
        reasons.append(f"unexplained {_signed(reading.unexplained)}")
    return [
        counter,
        f"{reading.figure:,} {reading.unit}",
        f"{reading.macs:,}",
        _signed(reading.difference),
        "; ".join(reasons),
    ]


def _signed(macs: int) -> str:
    return f"{macs:+,}".replace("-", "−") if macs else "0"


def as_prose(audited: Audit) -> str:
    """One line: the cost of forward plus backward relative to forward, by our count and by torch's."""
    cost = audited.cost
    if not cost.macs:
        return "The network has no convolutions or matrix products that can be counted."
    line = f"Forward + backward is {1 + cost.backward_macs / cost.macs:.3f} × forward"
    missing = 2 * cost.macs - cost.backward_macs
    if missing == next(layer.macs for layer in cost.layers if layer.macs):
        line += ": 3 minus the first layer's gradient of the image, which is not needed"
    elif missing > 0:
        line += ": 3 minus the gradients that are not needed"
    figures = {reading.counter: reading.figure for reading in audited.readings}
    forward, both = figures[TORCH], figures[TORCH_BOTH]
    return f"{line}; torch's counter gives {both / forward:.3f} ×." if forward and both else f"{line}."


def _read(counter: Counter, model: nn.Module, inputs: Inputs, seen: Seen, cost: Cost) -> Reading:
    ours = cost.macs + (cost.backward_macs if counter.name == TORCH_BOTH else 0)
    reading = Reading(counter.name, None, counter.word, counter.per_mac, ours)
    name = counter.package.partition(".")[0]
    with (
        _silence(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # else torch may use other implementations, which counters do not know
        try:
            import_module(name)  # it may be missing although one of its modules was imported before
            package = import_module(counter.package)
            reading = replace(reading, version=metadata.version(name))
        except ImportError as error:
            return replace(reading, problem=f"not installed ({error})")
        try:
            figure, params = counter.count(package, put_in_evaluation(deepcopy(model)), inputs)
        except Exception as error:
            return replace(reading, problem=f"failed: {first_line(error.__cause__ or error)}")
    reasons: dict[str, int] = {}
    for reason, macs in counter.reasons(seen, cost):
        reasons[reason] = reasons.get(reason, 0) + macs
    found = tuple(Reason(reason, macs) for reason, macs in reasons.items() if macs)
    return replace(reading, figure=figure, params=params, reasons=found)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress what counters print, and warnings about their own old code."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield

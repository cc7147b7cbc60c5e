"""What other counters say of a network, and exactly why they say something else.

Every counter runs on a copy of the network, in evaluation mode. Its figure is turned into MACs, and the difference to
`measure_cost` is taken apart into reasons. A reason follows from the layers' sizes by the counter's own rule, as its
source has it, and never from the difference; so what is left over is nothing only where the rules are right. They cover
this project's layers and the common ones of torch.nn; what another layer adds or lacks is left over, and is shown.

The reason that matters most here is the group error. `torch.utils.flop_counter` leaves the segments of a convolution
out of its weight's gradient, and so counts it as many times as there are segments. Versions up to 2.13 do so. Whether
the installed one does is asked of a small convolution, so that a version without the fault gets no such reason.
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
    """What one counter says of one network, for one example or the inputs that were given."""

    counter: str
    version: str | None  # None: not installed
    word: str  # what it calls its figure
    per_mac: int  # how much of its figure is one MAC
    ours: int  # MACs that it should have found
    figure: int | None = None  # None: see `problem`
    params: int | None = None  # where it tells
    reasons: tuple[Reason, ...] = ()
    problem: str | None = None  # why there is no figure

    @property
    def unit(self) -> str:
        """What its figure is, such as "FLOPs = 2 × MACs"."""
        if self.word == "MACs":
            return self.word
        return f"{self.word} = {'' if self.per_mac == 1 else f'{self.per_mac} × '}MACs"

    @property
    def macs(self) -> int | None:
        """Its figure in MACs."""
        return None if self.figure is None else self.figure // self.per_mac

    @property
    def difference(self) -> int | None:
        """Its MACs less ours."""
        return None if self.macs is None else self.macs - self.ours

    @property
    def unexplained(self) -> int | None:
        """What of the difference no reason accounts for."""
        return None if self.difference is None else self.difference - sum(reason.macs for reason in self.reasons)


@dataclass(frozen=True)
class Audit:
    """One network, counted by this package and by others."""

    cost: Cost
    readings: tuple[Reading, ...]  # ours first


def audit(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, example_inputs: Any = None, cost: Cost | None = None
) -> Audit:
    """Count a network by every counter there is, and account for their differences to `measure_cost`.

    Args:
        model: eager (not compiled); it is left as it was. Memory for a copy of it is taken.
        input_shape, example_inputs: as `measure_cost` takes them.
        cost: what `measure_cost` said of it, if known.

    A counter that is not installed, that fails on this network or that takes no such inputs has a reading that says so.
    Raises what `measure_cost` raises.
    """
    cost = measure_cost(model, input_shape, example_inputs=example_inputs) if cost is None else cost

    def inputs() -> Inputs:
        return inputs_of(model, input_shape, example_inputs)

    seen = look(model, inputs())
    ours = Reading(OURS, __version__, "MACs", 1, cost.macs, cost.macs, cost.params)
    return Audit(cost, (ours, *(_read(counter, model, inputs(), seen, cost) for counter in COUNTERS)))


def as_rows(audited: Audit) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table that the command prints."""
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
    """One line on what forward and backward passes cost next to a forward pass, by our count and by torch's."""
    cost = audited.cost
    if not cost.macs:
        return "The network has no convolutions or matrix products that can be counted."
    line = f"Forward + backward is {1 + cost.backward_macs / cost.macs:.3f} × forward"
    missing = 2 * cost.macs - cost.backward_macs
    if missing == next(layer.macs for layer in cost.layers if layer.macs):
        line += ": 3, less the first layer's gradient of the image, which is not needed"
    elif missing > 0:
        line += ": 3, less the gradients that are not needed"
    figures = {reading.counter: reading.figure for reading in audited.readings}
    forward, both = figures[TORCH], figures[TORCH_BOTH]
    return f"{line}; torch's counter says {both / forward:.3f} ×." if forward and both else f"{line}."


def _read(counter: Counter, model: nn.Module, inputs: Inputs, seen: Seen, cost: Cost) -> Reading:
    ours = cost.macs + (cost.backward_macs if counter.name == TORCH_BOTH else 0)
    reading = Reading(counter.name, None, counter.word, counter.per_mac, ours)
    name = counter.package.partition(".")[0]
    with (
        _silence(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # without it torch may take other ways, which counters do not know
        try:
            import_module(name)  # which may be missing although a module in it was imported before
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
    """Counters print, and warn of their own old code."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield

"""Measure a network on this machine: latency, time and peak memory of a training step."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Measurement, Timer

from spectrum._torch import memory_changes
from spectrum.conv.machine import processor
from spectrum.cost.inputs import Inputs, typical

MEASURED_SECONDS = 0.3  # shortest time per measurement
ROUND_SECONDS = 0.06  # time per round when two functions alternate


@dataclass(frozen=True)
class Speed:
    """Measured times (medians and interquartile ranges, in seconds) and memory; images are in channels_last."""

    batch_size: int
    threads: int
    latency: float  # forward pass of one image, in evaluation mode
    latency_iqr: float
    step: float  # forward pass, backward pass and SGD update of a batch of random labels
    step_iqr: float
    peak_memory: int  # peak bytes of tensors in a step: weights, gradients, optimiser, activations


@dataclass(frozen=True)
class Latency:
    """Measured time of one forward pass in evaluation mode, and where it was measured."""

    milliseconds: float  # median
    iqr: float  # interquartile range, in milliseconds
    device: str  # the processor's or card's name
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.milliseconds:.3g} ms (IQR {self.iqr:.2g}) on {self.device}, {threads}"


def measure_latency(model: nn.Module, inputs: Inputs, *, threads: int = 1) -> Latency:
    """Time a forward pass of a copy of a network in evaluation mode, in channels_last, without gradients.

    Args:
        model: a network on the CPU or on CUDA.
        inputs: inputs of the network.
        threads: threads that torch may use.

    Raises ValueError for a network on "meta".
    """
    device = typical(model).device
    if device.type == "meta":
        raise ValueError('latency: a network on "meta" cannot be run; build it on another device')
    measured = _in_channels_last(deepcopy(model)).eval()
    args = [_as_images(value) if isinstance(value, Tensor) else value for value in inputs.args]
    time = timed(torch.inference_mode()(lambda: measured(*args, **inputs.kwargs)), threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return Latency(1e3 * time.median, 1e3 * time.iqr, name, threads)


def measure_speed(model: nn.Module, batch_shape: tuple[int, ...], *, threads: int = 1) -> Speed:
    """Measure a copy of a classifier with random inputs.

    Args:
        model: network from (N, ...) to (N, classes), on the CPU or on CUDA, with trainable weights.
        batch_shape: shape of the batch in a training step, (images, channels, height, width) or (examples, ...).
        threads: threads that torch may use.

    Raises ValueError for a network that is not such a classifier, or that is on "meta".
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError('batch_size: a network on "meta" cannot be run; build it on another device')
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("batch_size: the network has no trainable weights, so there is no training step to measure")
    model = _in_channels_last(deepcopy(model))
    one = random_inputs(model, (1, *batch_shape[1:]))
    model.eval()
    latency = timed(torch.inference_mode()(lambda: model(one)), threads)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    classes = _classes(model(one))
    step = time_training_step(model, optimizer, batch_shape, classes, threads=threads)
    return Speed(
        batch_size=batch_shape[0],
        threads=threads,
        latency=latency.median,
        latency_iqr=latency.iqr,
        step=step.median,
        step_iqr=step.iqr,
        peak_memory=peak_memory(model, optimizer, batch_shape, classes),
    )


def _classes(output: Any) -> int:
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[0] == 1 and output.requires_grad:
        return int(output.shape[1])
    shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"batch_size: one example gives {shape}; a training step needs a classifier, which gives (1, classes) with a "
        "gradient; leave batch_size out to count only"
    )


def time_training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_shape: tuple[int, ...],
    classes: int,
    *,
    threads: int = 1,
) -> Measurement:
    """Time one forward pass, backward pass and update, in seconds: a measurement with `median` and `iqr`.

    Args:
        model: a classifier; its weights change.
        optimizer: optimiser of its parameters.
        batch_shape: (images, channels, height, width), in channels_last, or (examples, ...).
        classes: number of classes of the network's output.
        threads: threads that torch may use.
    """
    model.train()
    return timed(_step(model, optimizer, *random_batch(model, batch_shape, classes)), threads)


@dataclass(frozen=True)
class Ratio:
    """The time of one function relative to another, medians over rounds."""

    ratio: float
    standard: float  # seconds of the other function


def step_time_ratio(
    step: Callable[[], object], standard: Callable[[], object], threads: int = 1, *, rounds: int = 9
) -> Ratio:
    """Time two functions in alternating rounds, so that changes of clock speed affect both, and compare per round."""
    timers = [Timer("step()", globals={"step": function}, num_threads=threads) for function in (step, standard)]
    numbers = [max(1, round(ROUND_SECONDS / timer.timeit(1).median)) for timer in timers]
    ratios, seconds = [], []
    for turn in range(rounds):
        order = (0, 1) if turn % 2 else (1, 0)
        times = {which: timers[which].timeit(numbers[which]).median for which in order}
        ratios.append(times[0] / times[1])
        seconds.append(times[1])
    return Ratio(median(ratios), median(seconds))


def peak_memory(model: nn.Module, optimizer: torch.optim.Optimizer, batch_shape: tuple[int, ...], classes: int) -> int:
    """Peak bytes of tensors in a training step, including weights, optimiser and batch.

    Counted from torch's allocations during one step (on CUDA from the allocator's peak), so earlier work of the process
    is not included. Memory that libraries allocate outside torch is not included either.
    """
    batch = random_batch(model.train(), batch_shape, classes)
    step = _step(model, optimizer, *batch)
    step()  # allocates the state of the optimiser
    optimizer.zero_grad(set_to_none=True)
    device = batch[0].device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        growth = torch.cuda.max_memory_allocated(device) - before
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else each profile writes two lines to standard error
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
        growth = _largest_growth(profiler)
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    standing = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers(), *kept, *batch]}
    return sum(tensor.numel() * tensor.element_size() for tensor in standing.values()) + growth


def _largest_growth(profiler: Any) -> int:
    held = most = 0
    for taken in memory_changes(profiler):
        held += taken
        most = max(most, held)
    return most


def timed(function: Callable[[], Any], threads: int = 1) -> Measurement:
    """Time a call, in seconds: a measurement with `median` and `iqr`."""
    timer = Timer("function()", globals={"function": function}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=MEASURED_SECONDS)


def random_batch(model: nn.Module, batch_shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    """Random inputs (N, ...) and labels (N,) for a network; network and images become channels_last."""
    x = random_inputs(_in_channels_last(model), batch_shape)
    return x, torch.randint(classes, batch_shape[:1], device=x.device)


def random_inputs(model: nn.Module, batch_shape: tuple[int, ...]) -> Tensor:
    """Random numbers (N, ...) of the type and on the device of a network's weights, in channels_last if 4D."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return _as_images(torch.randn(batch_shape, device=like.device, dtype=like.dtype))


def _as_images(x: Tensor) -> Tensor:
    """The tensor in channels_last, if it may be images."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _in_channels_last(model: nn.Module) -> nn.Module:
    """Convert the network's four-dimensional weights to channels_last."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y_n: Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), y_n).backward()
        optimizer.step()

    return step

"""One training run, from a RunConfig and its images to a Result.

The last weights are scored, or with `ema` their exponential average. The average includes the running statistics of
batch norm, so that scored statistics belong to scored weights. Validation accuracy is measured after every epoch; the
test set is read once, at the end, or never. A loss that is not finite ends the run as `diverged`: it has a result, with
the accuracy of chance.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from spectrum.conv.seen import backends_seen
from spectrum.conv.tuning import use_choices
from spectrum.data.augment import batches
from spectrum.data.pixels import Pixels
from spectrum.data.splits import Images, split
from spectrum.design.hashes import digest
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.models.converted import conversion_of
from spectrum.models.weights import weights_as_bytes
from spectrum.training.checkpoint import Checkpoints, State, TrainingProgress, seed_generators
from spectrum.training.checkpoint_files import Interrupted
from spectrum.training.evaluation import evaluate, hash_weights
from spectrum.training.optimisation import exponential_average, in_epochs, learning_rate, make_optimizer
from spectrum.training.ranks import ALONE, Ranks
from spectrum.training.step import compiled, keep_freed_memory, training_step
from spectrum.training.tuned import Choices


@dataclass(frozen=True)
class Result:
    """Result of one run. Accuracies from 0 to 1, losses in nats, times in seconds."""

    status: str  # "done" or "diverged"
    test_accuracy: float | None  # None if the run is scored on validation images
    test_loss: float | None  # None then, and for a diverged run
    test_images: int | None  # None then; one image is 1 / test_images of accuracy
    val_accuracy: float
    val_loss: float | None
    train_loss: float | None  # mean over the last epoch
    train_seconds: float  # of training steps, without evaluation
    images_per_second: float
    weights_sha256: str  # hash of the weights and buffers that were scored
    lowerings: dict[str, str] = field(default_factory=dict)  # backend of each segmented convolution in the first step
    choices: dict[str, str] = field(default_factory=dict)  # shape class → backend, if measured
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per epoch
    resumed: list[dict[str, Any]] = field(default_factory=list)  # steps at which the run resumed from a checkpoint
    troubles: list[str] = field(default_factory=list)  # problems with checkpoints
    conversion: dict[str, Any] | None = (
        None  # layers of a network of others that were replaced, and why others were not
    )
    weights: bytes | None = None  # the scored network as a safetensors file, if it is kept
    kept_weights: dict[str, Any] | None = None  # what the kept network needs beside its weights


def train(
    run: RunConfig,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
    choices: Choices | None = None,
    keep_weights: bool = False,
) -> Result:
    """Train one run, from its latest checkpoint if it has one.

    Layers use the backends in `choices`, or those in a checkpoint of the same machine. With several ranks, each calls
    this with the same arguments, except that only the first has the checkpoints; all return the same result. With
    `keep_weights`, the first rank's result also has the network that was scored, unless the run diverged. Raises
    ValueError if the network cannot be built for these images, and Interrupted if the checkpoints are asked to stop.
    """
    training = _Training(run, images, torch.device(device), checkpoints, ranks, choices)
    for epoch in range(training.at.epoch, run.epochs):
        entry = training.epoch(epoch)
        if on_epoch is not None:
            on_epoch(entry)
        if training.diverged:
            break
    return training.result(keep_weights=keep_weights and ranks.rank == 0)


class _Training:
    """A run in training: its network, its data, and its progress."""

    def __init__(
        self,
        run: RunConfig,
        images: Images,
        device: torch.device,
        checkpoints: Checkpoints | None,
        ranks: Ranks,
        choices: Choices | None,
    ) -> None:
        self.run, self.images, self.device = run, images, device
        self.checkpoints, self.ranks = checkpoints, ranks
        keep_freed_memory()
        seed_generators(run.seed)
        self.data = split(images, run.validation_fraction, run.train_images, run.normalisation)
        channels, side, _ = images.shape
        model = build_model(run.model, run.network_options(channels, images.classes, side))
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = (
            AveragedModel(self.model, multi_avg_fn=exponential_average(run.ema), use_buffers=True) if run.ema else None
        )
        self.scored: nn.Module = self.model if self.average is None else self.average.module
        joined = ranks.joined(self.model)
        self.called = compiled(joined) if run.compile else joined
        self.optimizer = make_optimizer(run, self.model)
        self.batch = min(run.batch_size, len(self.data.train_y))
        if self.batch % ranks.count:
            raise ValueError(f"batch_size: {self.batch} images cannot be shared equally by {ranks.count} ranks")
        self.steps_per_epoch = len(self.data.train_y) // self.batch
        self.scheduled = in_epochs(run, self.batch * self.steps_per_epoch)
        self.state = State(self.model, self.average, self.optimizer)
        at = TrainingProgress() if checkpoints is None else checkpoints.restore(self.state)
        self.at = _broadcast(ranks, self.state, at)
        if choices is not None and (self.at.machine != choices.machine or not self.at.step):
            self.at.machine, self.at.choices = choices.machine, choices.backends
        for network in self.state.modules.values():
            self.at.choices = use_choices(network, self.at.choices)
        self.loss, self.val_loss, self.val_accuracy = math.nan, math.nan, 0.0
        self.diverged, self.seen = False, False

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train the rest of an epoch and score it on validation images. Returns its entry of the history."""
        at, ranks = self.at, self.ranks
        self.model.train()
        started = time.perf_counter()
        epoch_loss, started = self._steps(epoch, started)
        self.loss = ranks.sum(epoch_loss.item())[0] / ranks.count / self.steps_per_epoch
        at.train_seconds += time.perf_counter() - started
        self.val_loss, self.val_accuracy = self._scores(self.data.validation_x, self.data.validation_y)
        self.diverged = not (math.isfinite(self.loss) and math.isfinite(self.val_loss))
        entry = {
            "epoch": epoch + 1,
            "lr": learning_rate(self.scheduled, (at.step - 1) / self.steps_per_epoch),
            "train_loss": _finite(self.loss),
            "val_loss": _finite(self.val_loss),
            "val_accuracy": 1 / self.images.classes if self.diverged else self.val_accuracy,
            "train_seconds": at.train_seconds,
        }
        at.history.append(entry)
        at.epoch, at.step_in_epoch, at.epoch_loss = epoch + 1, 0, 0.0
        return entry

    def _steps(self, epoch: int, started: float) -> tuple[Tensor, float]:
        """Train the steps of an epoch. Returns the sum of their losses, and the last start of the clock."""
        run, at, ranks, optimizer = self.run, self.at, self.ranks, self.optimizer
        epoch_loss = torch.tensor(at.epoch_loss, device=self.device)
        for x_nchw, y_n in batches(
            self.data,
            batch_size=run.batch_size,
            seed=run.seed,
            epoch=epoch,
            first=at.step_in_epoch,
            flip=run.flip,
            shift=run.shift,
            cutout=run.cutout,
            device=self.device,
            part=ranks.part,
        ):
            if ranks.count > 1:  # each rank has its own random numbers, after a resume too
                seed_generators(int(digest([run.seed, at.step, ranks.rank])[:8], 16))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.scheduled, at.step / self.steps_per_epoch)
            epoch_loss += self._step(x_nchw, y_n)
            if self.average is not None:
                self.average.update_parameters(self.model)
            at.step, at.step_in_epoch = at.step + 1, at.step_in_epoch + 1
            stop, due = self._asked()
            if due:
                self._save(epoch_loss, started)
                if stop:
                    raise Interrupted
                started = time.perf_counter()
        return epoch_loss, started

    def _step(self, x_nchw: Tensor, y_n: Tensor) -> Tensor:
        """Train one step; the first step of this process also records the backend of each convolution."""
        if self.seen or self.run.compile:
            return training_step(self.run, self.called, self.optimizer, x_nchw, y_n)
        self.seen = True
        with backends_seen(self.model) as seen:
            loss = training_step(self.run, self.called, self.optimizer, x_nchw, y_n)
        self.at.lowerings |= seen
        return loss

    def _asked(self) -> tuple[bool, bool]:
        """Whether to stop and whether to save after this step; all ranks agree."""
        checkpoints, ranks = self.checkpoints, self.ranks
        stop = ranks.told_to_stop() or (checkpoints is not None and checkpoints.stop())
        due = stop or (checkpoints is not None and checkpoints.due())
        if ranks.count > 1:
            stop, due = (flag > 0 for flag in ranks.sum(stop, due))
        return stop, due

    def _save(self, epoch_loss: Tensor, started: float) -> None:
        at = self.at
        at.epoch_loss = self.ranks.sum(epoch_loss.item())[0] / self.ranks.count
        at.train_seconds += time.perf_counter() - started
        if self.checkpoints is not None:
            self.checkpoints.save(self.state, at)

    def _scores(self, x_nchw: Pixels, y_n: Tensor) -> tuple[float, float]:
        return evaluate(self.scored, self.data.normalise, x_nchw, y_n, device=self.device, ranks=self.ranks)

    def result(self, *, keep_weights: bool) -> Result:
        """Result of the run, after its last epoch; reads the test set if the run is scored on it."""
        at, images, on_test = self.at, self.images, self.run.scored_on == "test"
        chance = 1 / images.classes
        test_loss, test_accuracy = math.nan, chance
        if not self.diverged and on_test:
            test_loss, test_accuracy = self._scores(images.test_x, images.test_y)
        sha256 = hash_weights(self.scored)
        if self.ranks.broadcast(sha256.encode()) != sha256.encode():
            raise RuntimeError(
                "the ranks ended with different weights, so this network has state "
                "that they do not share; train it on one"
            )
        kept: dict[str, Any] = {}
        if keep_weights and not self.diverged:
            weights = weights_as_bytes(self.scored)
            kept = {"weights": weights, "kept_weights": self._needed() | {"bytes": len(weights)}}
        return Result(
            status="diverged" if self.diverged else "done",
            test_accuracy=test_accuracy if on_test else None,
            test_loss=_finite(test_loss),
            test_images=len(images.test_y) if on_test else None,
            val_accuracy=chance if self.diverged else self.val_accuracy,
            val_loss=_finite(self.val_loss),
            train_loss=_finite(self.loss),
            train_seconds=at.train_seconds,
            images_per_second=at.step * self.batch / at.train_seconds,
            weights_sha256=sha256,
            lowerings=at.lowerings,
            choices=at.choices,
            history=at.history,
            resumed=at.resumed,
            troubles=[] if self.checkpoints is None else self.checkpoints.troubles,
            conversion=conversion_of(self.model),
            **kept,
        )

    def _needed(self) -> dict[str, Any]:
        """What the trained network needs beside its weights: the shape and classes of its images, their normalisation.

        JSON keeps these floats exactly.
        """
        data, images = self.data, self.images
        moments = {"mean": data.mean.tolist(), "std": data.std.tolist()}
        return {"shape": list(images.shape), "classes": images.classes} | moments


def _broadcast(ranks: Ranks, state: State, at: TrainingProgress) -> TrainingProgress:
    """Copy the first rank's restored state to all ranks."""
    if ranks.count == 1:
        return at
    fields = json.loads(ranks.broadcast(json.dumps(asdict(at)).encode()))
    if fields["step"]:
        tensors = ranks.broadcast(save(state.tensors()) if ranks.rank == 0 else b"")
        if ranks.rank:
            state.load(load(tensors))
    return TrainingProgress(**fields)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

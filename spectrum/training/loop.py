"""One training run: a Point and its images in, a Result out.

The weights that are scored are the last ones, or with `ema` their exponential average. The average takes in BN's
running statistics as it does the weights, so that the scored statistics belong to the scored weights. Validation
accuracy is measured after every epoch; the test set is read once, at the end, or never. A loss that is not finite ends
the run as `diverged`, which is a result and scored at chance.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from spectrum.conv.segmented import used_lowerings
from spectrum.data.augment import batches
from spectrum.data.pixels import Pixels, in_turn
from spectrum.data.splits import Images, split
from spectrum.design.point import Point, digest
from spectrum.models import build_model
from spectrum.training.checkpoint import Checkpoints, State, TrainingProgress, seed_generators
from spectrum.training.checkpoint_files import Interrupted
from spectrum.training.ranks import ALONE, Ranks

EVALUATION_BATCH = 500  # images, fewer where they are large
EVALUATION_PIXELS = 2**21  # in a batch
Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Result:
    """What one point gave. Accuracies from 0 to 1, losses in nats, times in seconds."""

    status: str  # "done" or "diverged"
    test_accuracy: float | None  # None: the point is scored on validation images
    test_loss: float | None  # None: so, or diverged
    test_images: int | None  # None: so; what one image is worth in test_accuracy
    val_accuracy: float
    val_loss: float | None
    train_loss: float | None  # mean over the last epoch
    train_seconds: float  # in training steps, without evaluation
    images_per_second: float
    weights_sha256: str  # of the weights and buffers that were scored
    lowerings: dict[str, str] = field(default_factory=dict)  # by which each segmented convolution was computed
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch
    resumed: list[dict[str, Any]] = field(default_factory=list)  # at which steps, from a checkpoint
    troubles: list[str] = field(default_factory=list)  # with checkpoints


def train(
    point: Point,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
) -> Result:
    """Train one point, from its latest checkpoint if it has one.

    With several ranks each calls this with the same arguments, but for the checkpoints, which the first one alone has;
    all have the same result. Raises ValueError when the network cannot be built for these images, and Interrupted when
    the checkpoints are asked to stop.
    """
    device = torch.device(device)
    keep_freed_memory()
    seed_generators(point.seed)
    data = split(images, point.validation_fraction, point.train_images, point.normalisation)
    channels, side, _ = images.shape
    model = build_model(point.model, point.network_options(channels, images.classes, side))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(model, multi_avg_fn=_ema(point.ema), use_buffers=True) if point.ema else None
    scored: nn.Module = model if average is None else average.module
    joined = ranks.joined(model)
    run = compiled(joined) if point.compile else joined
    optimizer = make_optimizer(point, model)
    batch = min(point.batch_size, len(data.train_y))
    if batch % ranks.count:
        raise ValueError(f"batch_size: {batch} images cannot be shared equally by {ranks.count} ranks")
    steps_per_epoch = len(data.train_y) // batch
    scheduled = _in_epochs(point, batch * steps_per_epoch)
    test = (images.test_x, images.test_y)
    validation = (data.validation_x, data.validation_y)

    state = State(model, average, optimizer)
    at = TrainingProgress() if checkpoints is None else checkpoints.restore(state)
    at = _broadcast(ranks, state, at)
    loss_value, val_loss, val_accuracy = math.nan, math.nan, 0.0
    diverged = False
    for epoch in range(at.epoch, point.epochs):
        model.train()
        started = time.perf_counter()
        epoch_loss = torch.tensor(at.epoch_loss, device=device)
        for x_nchw, y_n in batches(
            data,
            batch_size=point.batch_size,
            seed=point.seed,
            epoch=epoch,
            first=at.step_in_epoch,
            flip=point.flip,
            shift=point.shift,
            cutout=point.cutout,
            device=device,
            part=ranks.part,
        ):
            if ranks.count > 1:  # each draws its own, also after a resume
                seed_generators(int(digest([point.seed, at.step, ranks.rank])[:8], 16))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(scheduled, at.step / steps_per_epoch)
            epoch_loss += training_step(point, run, optimizer, x_nchw, y_n)
            if average is not None:
                average.update_parameters(model)
            at.step, at.step_in_epoch = at.step + 1, at.step_in_epoch + 1
            stop = ranks.told_to_stop() or (checkpoints is not None and checkpoints.stop())
            due = stop or (checkpoints is not None and checkpoints.due())
            if ranks.count > 1:
                stop, due = (flag > 0 for flag in ranks.sum(stop, due))
            if due:
                at.epoch_loss = ranks.sum(epoch_loss.item())[0] / ranks.count
                at.lowerings |= used_lowerings(model)
                at.train_seconds += time.perf_counter() - started
                if checkpoints is not None:
                    checkpoints.save(state, at)
                if stop:
                    raise Interrupted
                started = time.perf_counter()
        loss_value = ranks.sum(epoch_loss.item())[0] / ranks.count / steps_per_epoch
        at.train_seconds += time.perf_counter() - started
        val_loss, val_accuracy = evaluate(scored, data.normalise, *validation, device=device, ranks=ranks)
        diverged = not (math.isfinite(loss_value) and math.isfinite(val_loss))
        entry = {
            "epoch": epoch + 1,
            "lr": learning_rate(scheduled, (at.step - 1) / steps_per_epoch),
            "train_loss": _finite(loss_value),
            "val_loss": _finite(val_loss),
            "val_accuracy": 1 / images.classes if diverged else val_accuracy,
            "train_seconds": at.train_seconds,
        }
        at.history.append(entry)
        at.epoch, at.step_in_epoch, at.epoch_loss = epoch + 1, 0, 0.0
        if on_epoch is not None:
            on_epoch(entry)
        if diverged:
            break

    chance = 1 / images.classes
    test_loss, test_accuracy = math.nan, chance
    if not diverged and point.scored_on == "test":
        test_loss, test_accuracy = evaluate(scored, data.normalise, *test, device=device, ranks=ranks)
    sha256 = hash_weights(scored)
    if ranks.broadcast(sha256.encode()) != sha256.encode():
        raise RuntimeError("the ranks have come to different weights: something in this network is not shared by them")
    return Result(
        status="diverged" if diverged else "done",
        test_accuracy=test_accuracy if point.scored_on == "test" else None,
        test_loss=_finite(test_loss),
        test_images=len(images.test_y) if point.scored_on == "test" else None,
        val_accuracy=chance if diverged else val_accuracy,
        val_loss=_finite(val_loss),
        train_loss=_finite(loss_value),
        train_seconds=at.train_seconds,
        images_per_second=at.step * batch / at.train_seconds,
        weights_sha256=sha256,
        lowerings=at.lowerings | used_lowerings(model),
        history=at.history,
        resumed=at.resumed,
        troubles=[] if checkpoints is None else checkpoints.troubles,
    )


def _broadcast(ranks: Ranks, state: State, at: TrainingProgress) -> TrainingProgress:
    """What the first rank took from its checkpoint, on all ranks."""
    if ranks.count == 1:
        return at
    said = json.loads(ranks.broadcast(json.dumps(asdict(at)).encode()))
    if said["step"]:
        tensors = ranks.broadcast(save(state.tensors()) if ranks.rank == 0 else b"")
        if ranks.rank:
            state.load(load(tensors))
    return TrainingProgress(**said)


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network by torch.compile, as it would be in a process of its own, whatever this one compiled before.

    Without the reset torch gives up after eight networks of one class, without an error, and runs the next ones
    eagerly; and another batch or image than the last network's would get code for any size, with other last bits.
    """
    torch.compiler.reset()
    run: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
    return run


def training_step(
    point: Point, model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x_nchw: Tensor, y_n: Tensor
) -> Tensor:
    """Forward pass, backward pass, update. Returns the loss, in nats, as a tensor without a gradient."""
    with torch.autocast(x_nchw.device.type, torch.bfloat16, enabled=point.autocast):
        loss = cross_entropy(model(x_nchw), y_n, label_smoothing=point.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def keep_freed_memory() -> None:
    """Ask the C library to keep for the next step what this one frees, for the rest of the process.

    By default large blocks go back to the system at once and come again as empty pages, each at the price of a fault: a
    thousand of them in a step of the probe network. Does nothing where the C library has no such switch.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h of glibc
    mallopt = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


def _in_epochs(point: Point, images_per_epoch: int) -> Point:
    """The point, its schedule in epochs where it has it in images."""
    if point.decay_images is None:
        return point
    return point.model_copy(update={"decay_epochs": point.decay_images / images_per_epoch, "decay_images": None})


def learning_rate(point: Point, epoch: float) -> float:
    """The learning rate at a moment, in epochs from the start.

    Linear warm-up from 0 over `warmup_epochs`; then, with t from 0 to 1 over the rest,
    cosine: lr · (1 + cos πt) / 2 (Loshchilov & Hutter 2017); exponential: lr · decay^⌊epochs since / decay_epochs⌋
    (Chollet 2017: 0.94 every 2 epochs); one_cycle: up from lr/25 to lr in the first 30 %, then down to lr/10⁴, both
    along cosines (Smith & Topin 2018).
    """
    if epoch < point.warmup_epochs:
        return point.lr * epoch / point.warmup_epochs
    since = epoch - point.warmup_epochs
    t = since / (point.epochs - point.warmup_epochs)
    if point.schedule == "exponential":
        return point.lr * point.decay ** math.floor(since / point.decay_epochs + 1e-9)  # 0.3 / 0.1 is less than 3
    if point.schedule == "cosine":
        return _along_cosine(point.lr, 0.0, t)
    peak = 0.3
    if t < peak:
        return _along_cosine(point.lr / 25, point.lr, t / peak)
    return _along_cosine(point.lr, point.lr / 1e4, (t - peak) / (1 - peak))


def _along_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


def make_optimizer(point: Point, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a point; weight decay goes to weights of two and more dimensions, not to BN or bias."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": point.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if point.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=point.lr, momentum=point.momentum, nesterov=point.nesterov and point.momentum > 0, fused=True
        )
    if point.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=point.lr, betas=(point.momentum, 0.999), fused=True)
    return torch.optim.RMSprop(groups, lr=point.lr, alpha=0.9, eps=1e-3, momentum=point.momentum)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    x_nchw: Pixels,
    y_n: Tensor,
    *,
    device: torch.device | str,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy from 0 to 1, each image counted once, in evaluation mode."""
    model.eval()
    loss, correct = 0.0, 0
    height, width = x_nchw.shape[2:]
    batch = min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // (height * width)))
    parts = ranks.part(torch.arange(len(y_n))).split(batch)
    for part, x_nhwc in zip(parts, in_turn(x_nchw, parts), strict=True):
        x, y = x_nhwc.permute(0, 3, 1, 2).to(device), y_n[part].to(device)
        logits = model(normalise(x).contiguous(memory_format=torch.channels_last))
        loss += cross_entropy(logits, y, reduction="sum").item()
        correct += int((logits.argmax(1) == y).sum())
    loss, right, seen = ranks.sum(loss, correct, sum(map(len, parts)))
    assert seen == len(y_n), "each image is counted once"
    return loss / len(y_n), right / len(y_n)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _ema(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential average whose decay grows as (1 + n) / (10 + n), so that the first weights are soon forgotten."""

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        n = int(count)
        keep = min(decay, (1 + n) / (10 + n))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - keep)
            else:
                average.copy_(weight)

    return update


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Backends of a run's layers: those that its study's plan keeps for this machine, or those measured before the run.

A run keeps its choices until its end. A checkpoint stores them with the key of the machine. A run that resumes there
ends with the same bits, whatever was measured since. On another machine, it uses that machine's choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch

from spectrum.conv.backends.choice import AUTO, choice_for
from spectrum.conv.machine import machine_key
from spectrum.conv.tuning import DEVICES, Tuned, tune
from spectrum.data.splits import Images, count_used
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.training.ranks import ALONE, Ranks
from spectrum.training.step import keep_freed_memory


@dataclass(frozen=True)
class Choices:
    """Backends by shape class, and the key of the machine on which they hold."""

    machine: str = ""
    backends: dict[str, str] = field(default_factory=dict)


def choices_for(
    run: RunConfig,
    images: Images,
    device: str,
    kept: Mapping[str, Mapping[str, str]],
    *,
    measures: bool,
    ranks: Ranks = ALONE,
) -> Choices:
    """Choices for a run in this process; with several ranks, those of the first.

    Args:
        run: the run to train.
        images: its images.
        device: device of this process.
        kept: choices in the study's plan, by machine key.
        measures: whether to measure what is not kept.
        ranks: ranks that train the run together.
    """
    found = Choices()
    if ranks.rank == 0:
        machine = machine_key(device)
        stand = dict(kept.get(machine, {}))
        measured = tune_run(run, images, device, stand, parts=ranks.count).backends if measures else {}
        found = Choices(machine, {**measured, **stand})
    return Choices(**json.loads(ranks.broadcast(json.dumps(asdict(found)).encode())))


def tune_run(run: RunConfig, images: Images, device: str, known: Mapping[str, str], *, parts: int = 1) -> Tuned:
    """Measure the layers of a run's network at its batch size.

    Nothing is measured if a backend was named, or for a network that torch.compile compiles, since it would be timed
    uncompiled. A network that cannot be built or run is not measured either: its run reports why.

    Args:
        run: the run, of which network, batch size and autocast count.
        images: images on which it is trained.
        device: "cpu" or a device of CUDA; on others nothing is measured.
        known: choices that stay.
        parts: number of ranks that share each batch.
    """
    kind = torch.device(device).type
    unmeasured = Tuned(machine_key(device))
    if kind not in DEVICES or run.compile or choice_for(None, prepare=False).name != AUTO:
        return unmeasured
    keep_freed_memory()  # as in training
    batch = min(run.batch_size, count_used(images, run.validation_fraction, run.train_images)[0]) // parts
    channels, side, _ = images.shape
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast(kind, torch.bfloat16, enabled=run.autocast):
            model = build_model(run.model, run.network_options(channels, images.classes, side))
            model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            return tune(model, (batch, *images.shape), known=known)
    except Exception:
        return unmeasured

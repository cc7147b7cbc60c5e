"""Measured backends of a study: whether to measure, for which networks, and what the plan keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spectrum._records import SpecError
from spectrum.conv.backends.environment import TUNE, tune_of_environment
from spectrum.design.budgets import BUDGETS
from spectrum.design.hashes import digest
from spectrum.design.keys import images_key
from spectrum.design.run import RunConfig
from spectrum.engines.interface import Engine, Work
from spectrum.study.pace import MACS_PER_ACTIVATION
from spectrum.study.planning import CostedRun, network_of

Tune = Literal["auto", "on", "off"]
LOGGER = logging.getLogger("spectrum.tuning")
MACS_PER_SECOND = 5e9  # rough speed of training on one core: a constant, so that the same study always decides alike
TRAINED = 3  # MACs of a training step, in MACs of a forward pass
LAYER_SECONDS = 0.25  # longest time to measure a layer's 1×1 or its 3×3, for nearly all layers
PAYS = 20  # shortest training, in multiples of the time to measure


def asked_tune(asked: Tune | None) -> Tune:
    """Resolve the setting: as asked, else `$SPECTRUM_TUNE`, else "auto". Raises SpecError for anything else."""
    if asked is not None:
        return asked
    named = tune_of_environment()
    for known in ("auto", "on", "off"):
        if named in (None, known):
            return known
    raise SpecError(f"{TUNE}={named}: expected auto, on or off")


class StudyBackends:
    """Measured backends of one study.

    Args:
        asked: result of `asked_tune`.
        planned: all runs of the study, finished ones included.
        images: records of each data set in the plan.
        kept: backends in the plan: machine key → shape class → name of a backend.
    """

    def __init__(
        self,
        asked: Tune,
        planned: Sequence[CostedRun],
        images: Sequence[Mapping[str, Any]],
        kept: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.kept = {machine: dict(choices) for machine, choices in kept.items()}
        self.asked, self.planned, self.images = asked, planned, images
        self.is_told = False

    @property
    def measures(self) -> bool:
        """Whether to measure: as asked; with "auto", if the study trains at least 20 times as long as measuring takes.

        A study that matches step times measures too, since its widths were solved with measured backends.
        """
        if self.asked != "auto" or any(BUDGETS[one.match].is_timed for one in self.planned):
            return self.asked != "off"
        networks = {_network(one.run): one for one in self.planned}.values()
        takes = sum(2 * len(one.realised_segments) for one in networks) * LAYER_SECONDS
        return sum(map(self._seconds, {one.run.id: one for one in self.planned}.values())) >= PAYS * takes

    def work(self, work: Work, engine: Engine, left: Sequence[RunConfig]) -> Work:
        """Work for the engine: the known backends, and whether workers measure themselves.

        On this machine's CPU everything is measured here first, before workers would disturb each other.
        """
        measures = self.measures
        self._tell_once(measures)
        threads = engine.threads(work)
        if measures and threads is not None:
            self._measure(left, work, threads)
        in_workers = measures and threads is None
        choices = {machine: dict(known) for machine, known in self.kept.items()}
        return work.model_copy(update={"tune": "on" if in_workers else "off", "choices": choices})

    def note(self, provenance: Mapping[str, Any]) -> bool:
        """Keep what a worker has measured on a machine; return whether it was new. Kept choices are not replaced."""
        machine, choices = provenance.get("machine"), provenance.get("choices")
        if not machine or not choices:
            return False
        known = self.kept.get(machine, {})
        self.kept[machine] = {**choices, **known}
        return self.kept[machine] != known

    def _measure(self, left: Sequence[RunConfig], work: Work, threads: int) -> None:
        import torch

        from spectrum.conv.machine import machine_key
        from spectrum.data.images import images_of
        from spectrum.training.tuned import tune_run

        began, before = time.monotonic(), torch.get_num_threads()
        measured = known = missing = 0
        torch.set_num_threads(threads)
        try:
            for run in {_network(run): run for run in left}.values():
                choices = self.kept.setdefault(machine_key(work.device), {})
                tuned = tune_run(run, images_of(run), work.device, choices)
                choices |= {name: backend for name, backend in tuned.backends.items() if name not in choices}
                measured, known, missing = measured + tuned.measured, known + tuned.known, missing + tuned.left
        finally:
            torch.set_num_threads(before)
        if measured or missing:
            more = f"; {missing} are guessed for lack of time" if missing else ""
            LOGGER.warning(
                "spectrum: %d shape classes measured in %.1f s, %d known%s",
                measured,
                time.monotonic() - began,
                known,
                more,
            )

    def _tell_once(self, measures: bool) -> None:
        if self.is_told or self.asked == "off":
            return
        self.is_told = True
        if measures:
            LOGGER.warning("spectrum: the fastest backend of each layer is measured, at most 20 s for each network …")
        else:
            LOGGER.warning("spectrum: backends are guessed, as this study trains briefly; --tune on measures them")

    def _seconds(self, one: CostedRun) -> float:
        """Rough number of seconds of training."""
        key = images_key(dict(one.run))
        used = [max(train for train, _ in known["used"]) for known in self.images if images_key(known) == key]
        images = one.run.train_images or max(used, default=0)
        return TRAINED * (one.macs + MACS_PER_ACTIVATION * one.activations) * images * one.run.epochs / MACS_PER_SECOND


def _network(run: RunConfig) -> str:
    """Hash of the options that decide the shape classes of a run's layers."""
    sizes = (run.batch_size, run.autocast, run.compile, run.train_images, run.validation_fraction)
    return digest([network_of(run), *sizes, list(images_key(dict(run)))])

"""Find options of a run that have no effect, given its others: one list for every check and message.

Pure functions of a run's fields, from a row, a plan or a record. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from spectrum.models import unused_by
from spectrum.models.position import PLACES

Fields = Mapping[str, Any]


DECAYS = ("decay", "decay_epochs", "decay_images")
NEEDS_POINTWISE = ("order", "activation", "norm", "pointwise_segments", "shuffle")


def distinct(values: Iterable[Any]) -> list[Any]:
    """Distinct values, in order of first appearance; values need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def without_effect(run: Fields) -> dict[str, str]:
    """Options of a run that have no effect, whatever their value, each with what to do.

    Args:
        run: fields by name; missing fields take their defaults and are not reported.

    >>> without_effect({"schedule": "one_cycle", "optimizer": "sgd", "decay": 0.5, "nesterov": True})
    {'decay': 'schedule = "one_cycle" does not use it; leave it out, or set schedule = "exponential"'}
    """
    found = {
        **dict.fromkeys(unused_by(str(run.get("model", ""))), f"{run.get('model')!r} does not use it; leave it out"),
        **_of_the_network(run),
        **_of_the_training(run),
        **_of_the_images(run),
    }
    return {name: why for name, why in found.items() if name in run}


def _of_the_network(run: Fields) -> dict[str, str]:
    found = {name: "another option sets the segments" for name in PLACES if run.get(name) is None}
    if not run.get("pointwise", True):
        found |= dict.fromkeys(NEEDS_POINTWISE, "needs the 1×1, which pointwise = false removes; leave it out")
    elif run.get("pointwise_segments", 1) == 1:
        found["shuffle"] = "only relabels rows of a dense 1×1; set pointwise_segments above 1"
    if run.get("widths") is not None:
        found["width"] = "widths are used instead; keep one of the two"
    return found


def _of_the_training(run: Fields) -> dict[str, str]:
    found: dict[str, str] = {}
    schedule, optimizer = run.get("schedule", "cosine"), run.get("optimizer", "sgd")
    if schedule != "exponential":
        why = f'schedule = "{schedule}" does not use it; leave it out, or set schedule = "exponential"'
        found |= dict.fromkeys(DECAYS, why)
    elif run.get("decay_images") is not None:
        found["decay_epochs"] = "decay_images is used instead; keep one of the two"
    if optimizer != "sgd":
        found["nesterov"] = f'optimizer = "{optimizer}" does not use it; leave it out, or set optimizer = "sgd"'
    elif run.get("momentum") == 0:
        found["nesterov"] = "has no effect without momentum; leave it out, or set momentum above 0"
    if run.get("recipe") is None:
        found["recipe"] = "is not the name of a recipe"
    return found


def _of_the_images(run: Fields) -> dict[str, str]:
    found: dict[str, str] = {}
    if run.get("teacher_segments") is None:
        found |= dict.fromkeys(("label_noise", "teacher_seed"), "has no effect without a teacher; set teacher_segments")
    if run.get("image_size") is None:
        found["resize"] = "needs an image_size"
    return found

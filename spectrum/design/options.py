"""Which options of a run have no effect, given its others: one list for every check and message.

Pure functions of a run's fields, as a row, a plan or a record has them; nothing here loads torch.
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
    """Each value once, in the order in which it first comes; values need no hash."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def without_effect(run: Fields) -> dict[str, str]:
    """Options that change nothing of a run, whatever their value, and what to do about each.

    Args:
        run: fields, by name; those that are left out are taken for their defaults, and not reported.

    >>> without_effect({"schedule": "one_cycle", "optimizer": "sgd", "decay": 0.5, "nesterov": True})
    {'decay': 'schedule = "one_cycle" has no use for it; leave it out, or set schedule = "exponential"'}
    """
    found = {
        **dict.fromkeys(unused_by(str(run.get("model", ""))), f"{run.get('model')!r} has no use for it; leave it out"),
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
        why = f'schedule = "{schedule}" has no use for it; leave it out, or set schedule = "exponential"'
        found |= dict.fromkeys(DECAYS, why)
    elif run.get("decay_images") is not None:
        found["decay_epochs"] = "decay_images is used instead; keep one of the two"
    if optimizer != "sgd":
        found["nesterov"] = f'optimizer = "{optimizer}" has no use for it; leave it out, or set optimizer = "sgd"'
    elif run.get("momentum") == 0:
        found["nesterov"] = "there is no momentum; leave it out, or set momentum above 0"
    if run.get("recipe") is None:
        found["recipe"] = "names no set-up"
    return found


def _of_the_images(run: Fields) -> dict[str, str]:
    found: dict[str, str] = {}
    if run.get("teacher_segments") is None:
        found |= dict.fromkeys(("label_noise", "teacher_seed"), "belongs to a teacher; set teacher_segments")
    if run.get("image_size") is None:
        found["resize"] = "needs an image_size"
    return found

"""Which options of a run have no effect, given its others: one list for all who say or refuse it.

Pure functions of a run's fields, as a row, a plan or a record has them; nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spectrum.models import PLACES, ignored_by

Fields = Mapping[str, Any]


def _has_pointwise(run: Fields) -> bool:
    return bool(run.get("pointwise", True))


def _has_teacher(run: Fields) -> bool:
    return run.get("teacher_segments") is not None


NEEDS: Mapping[str, tuple[Callable[[Fields], bool], str]] = {  # an option, when it has an effect, and that in words
    "resize": (lambda run: run.get("image_size") is not None, "an image_size"),
    "label_noise": (_has_teacher, "teacher_segments"),
    "teacher_seed": (_has_teacher, "teacher_segments"),
    "width": (lambda run: run.get("widths") is None, "no widths"),
    "order": (_has_pointwise, "the 1×1"),
    "activation": (_has_pointwise, "the 1×1"),
    "norm": (_has_pointwise, "the 1×1"),
    "pointwise_segments": (_has_pointwise, "the 1×1"),
    "shuffle": (lambda run: _has_pointwise(run) and run.get("pointwise_segments", 1) > 1, "pointwise_segments above 1"),
    "nesterov": (lambda run: run.get("optimizer") == "sgd" and run.get("momentum", 0.9) > 0, "SGD with momentum"),
    "decay": (lambda run: run.get("schedule") == "exponential", 'schedule = "exponential"'),
    "decay_epochs": (
        lambda run: run.get("schedule") == "exponential" and run.get("decay_images") is None,
        'schedule = "exponential", and no decay_images',
    ),
    "decay_images": (lambda run: run.get("schedule") == "exponential", 'schedule = "exponential"'),
}


def without_effect(run: Fields) -> dict[str, str]:
    """Options that change nothing of a run, and what each would need.

    Args:
        run: all of its fields, by name.

    >>> without_effect({"schedule": "cosine", "optimizer": "adamw", "widths": None, "decay": 0.5, "nesterov": True})
    {'nesterov': 'SGD with momentum', 'decay': 'schedule = "exponential"'}
    """
    found = {name: words for name, (has_effect, words) in NEEDS.items() if name in run and not has_effect(run)}
    if run.get("recipe", "") is None:
        found["recipe"] = "a name"
    found |= {name: "another place on the spectrum" for name in PLACES if name in run and run[name] is None}
    ignored = ignored_by(str(run.get("model", "")))
    return found | {name: f"another model than {run['model']}" for name in ignored if name in run}

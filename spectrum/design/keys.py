"""Options that runs share: the same network, the same images. Used in hashes and to group rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectrum.design.run import OWN_SEED, RunConfig
from spectrum.models.options import NetworkFields

# Options that determine a run's network, except its widths. Hashes of frozen plans list their values in this order, so
# it must not change; later options enter a hash only if they are set.
_NETWORK_AT_FIRST = (
    *("model", "depth", "segments", "segment_width", "order", "activation", "norm", "pointwise", "pointwise_segments"),
    *("shuffle", "downsampling", "residual"),
)
# budgets solve for the first two; dropout does not change the counts of a network
_NOT_SAID = ("width", "widths", "dropout")
_NETWORK_ADDED = tuple(name for name in NetworkFields.model_fields if name not in (*_NETWORK_AT_FIRST, *_NOT_SAID))
NETWORK = (*_NETWORK_AT_FIRST, *_NETWORK_ADDED)

IMAGES = {  # fields that determine a run's images, with the values assumed for rows older than the field
    name: RunConfig.model_fields[name].default
    for name in ("dataset", "image_size", "resize", "teacher_segments", "label_noise", "teacher_seed")
}


def images_key(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Key of a run's or a row's images: equal for all runs that share them."""
    values = {name: fields.get(name, default) for name, default in IMAGES.items()}
    if values["teacher_seed"] == OWN_SEED:
        values["teacher_seed"] = fields["seed"]
    return tuple(values.values())


def network_key(run: RunConfig, *more: str) -> list[Any]:
    """Fields that determine a run's network, and the fields in `more`, for hashes.

    Fields added to RunConfig later are included only if they are set, so that hashes of frozen plans stay valid.
    """
    values = [getattr(run, name) for name in (*_NETWORK_AT_FIRST, *more)]
    added = {name: getattr(run, name) for name in _NETWORK_ADDED}
    added = {name: value for name, value in added.items() if value != RunConfig.model_fields[name].default}
    return [*values, added] if added else values

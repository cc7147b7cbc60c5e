"""What runs have in common: the same network, the same images. For hashes and for groups of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectrum.design.run import OWN_SEED, RunConfig
from spectrum.models.options import NetworkFields

# Options that say which network a run trains, but for its widths. Hashes of frozen plans list the values of these,
# in this order, and would change with it; each option that came later is in a hash only where it is set.
_NETWORK_AT_FIRST = (
    *("model", "depth", "segments", "segment_width", "order", "activation", "norm", "pointwise", "pointwise_segments"),
    *("shuffle", "downsampling", "residual"),
)
_NOT_SAID = ("width", "widths", "dropout")  # budgets solve for the first two; dropout changes no count of a network
_NETWORK_ADDED = tuple(name for name in NetworkFields.model_fields if name not in (*_NETWORK_AT_FIRST, *_NOT_SAID))
NETWORK = (*_NETWORK_AT_FIRST, *_NETWORK_ADDED)

IMAGES = {  # fields that say which images a run has, and what rows from before they were there mean
    name: RunConfig.model_fields[name].default
    for name in ("dataset", "image_size", "resize", "teacher_segments", "label_noise", "teacher_seed")
}


def images_key(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which images a row, or a run's fields, say there are: alike for all runs that share them."""
    values = {name: fields.get(name, default) for name, default in IMAGES.items()}
    if values["teacher_seed"] == OWN_SEED:
        values["teacher_seed"] = fields["seed"]
    return tuple(values.values())


def network_key(run: RunConfig, *more: str) -> list[Any]:
    """The fields that say which network a run trains, and `more` of them, for hashes.

    Those that were added to a RunConfig are there only where they are set, so that frozen hashes stay what they are.
    """
    values = [getattr(run, name) for name in (*_NETWORK_AT_FIRST, *more)]
    added = {name: getattr(run, name) for name in _NETWORK_ADDED}
    added = {name: value for name, value in added.items() if value != RunConfig.model_fields[name].default}
    return [*values, added] if added else values

"""`build_model`: a network from a name and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spectrum._registry import hint, imported
from spectrum.models.families import FAMILIES, OWN, check_model, own_values, stage_widths, unused_by
from spectrum.models.options import NetworkOptions

if TYPE_CHECKING:
    from torch import nn


def build_model(name: str, architecture: NetworkOptions | None = None, **options: Any) -> nn.Module:
    """Build a network by the name of its architecture, from images (N, C, H, W) to logits (N, classes).

    Args:
        name: an architecture, one of `list_models`.
        architecture: all options as one record, instead of `options`.
        **options: options by name, the fields of `NetworkOptions`.

    Raises ValueError for an unknown name or option, or a combination that the architecture does not support.

    >>> import torch
    >>> model = build_model("probe", segments=8, in_channels=1, image_size=28)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> build_model("probe", segmnets=8)
    Traceback (most recent call last):
    ValueError: segmnets: unknown option of build_model; did you mean 'segments'?
    """
    check_model(name)
    architecture = _options(architecture, options)
    _check_used(name, architecture)
    family = FAMILIES[name]
    own = {**family.own, **own_values(name, pointwise=architecture.pointwise)}
    architecture = architecture.with_defaults(**own)
    if architecture.stage_segments is not None:
        stages = len(stage_widths(name, architecture)) if family.stages is None else family.stages
        if len(architecture.stage_segments) != stages:
            raise ValueError(f"stage_segments: {len(architecture.stage_segments)} given; {name!r} has {stages} stages")
    network = imported(family.build)(architecture)
    if FAMILIES.home(name) is not None:
        _check_network(name, network)
    return network  # type: ignore[no-any-return]


def _options(given: object, by_name: Mapping[str, Any]) -> NetworkOptions:
    """The options given to `build_model`, as one record or by name."""
    if given is None:
        known = list(NetworkOptions.model_fields)
        for option in by_name:
            if option not in known:
                raise ValueError(f"{option}: unknown option of build_model; {hint(option, known)}")
        return NetworkOptions(**by_name)
    if by_name:
        raise ValueError("build_model: give NetworkOptions or options by name, not both")
    if not isinstance(given, NetworkOptions):
        raise ValueError(f"build_model: got {given!r}; give NetworkOptions, or options by name such as segments=8")
    return given


def _check_used(name: str, options: NetworkOptions) -> None:
    """Raise ValueError for an option that is set although the architecture does not use it."""
    for unused in unused_by(name):
        value, default = getattr(options, unused), NetworkOptions.model_fields[unused].default
        if value not in (default, OWN.get(unused), "per_channel" if unused == "segments" else None):
            raise ValueError(f"{unused}: the architecture {name!r} does not use it; leave it out")


def _check_network(name: str, network: Any) -> None:
    from torch import nn

    if not isinstance(network, nn.Module):
        raise ValueError(f"model={name!r}: its builder returned {type(network).__name__}; return a torch.nn.Module")

"""Networks made of the operation, by name.

A family is a function from one frozen `Architecture` to a module. Built-in families are imported when first built, so
that listing and checking names loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that determines a network, one record for every family. Words as in `SegmentedConv2d`.

    A layer with fewer channels than `segments` takes one segment a channel (see `realised_segments`).
    """

    in_channels: int = 3  # of the images
    num_classes: int = 10
    image_size: int = 32  # side in pixels
    width: float = 1.0  # factor on the family's stage widths
    widths: tuple[int, ...] | None = None  # explicit stage widths, instead of `width`
    depth: int | None = None  # blocks a stage; None is the family's own
    segments: int | Literal["per_channel"] | None = None  # None: per channel, unless segment_width says otherwise
    segment_width: int | None = None  # channels a segment, instead of `segments`
    order: Literal["pointwise_first", "spatial_first"] = "pointwise_first"
    activation: str = "none"  # between the halves
    norm: bool = False  # batch normalisation between the halves
    pointwise: bool = True  # False: the bare spatial convolution
    pointwise_segments: int = 1
    shuffle: bool = False
    residual: bool = True
    dropout: float = 0.0  # before the classifier

    def __post_init__(self) -> None:
        if self.segments is not None and self.segment_width is not None:
            raise ValueError("segments and segment_width: give one of the two")


Builder = Callable[[Architecture], "nn.Module"]

_FAMILIES: dict[str, str | Builder] = {"probe": "spectrum.models.probe:build_probe"}


def list_models() -> list[str]:
    """Names of all families, built in and registered."""
    return sorted(_FAMILIES)


def register_model(name: str, builder: Builder) -> None:
    """Add a family of your own: `builder(architecture)` returns a `torch.nn.Module` on images (N, C, H, W).

    Raises ValueError when the name is taken.
    """
    if name in _FAMILIES and _FAMILIES[name] is not builder:
        raise ValueError(f"model {name!r} is registered already; choose another name")
    _FAMILIES[name] = builder


def check_model(name: str) -> None:
    """Raise ValueError for a name that no family has."""
    if name not in _FAMILIES:
        close = get_close_matches(name, _FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"try {', '.join(map(repr, list_models()))}"
        raise ValueError(f"model={name!r}: unknown; {hint} (your own: register_model, and --import its module)")


def build_model(name: str, architecture: Architecture | None = None, **options: Any) -> nn.Module:
    """Build a network by family name.

        build_model("probe", segments=8, image_size=28, in_channels=1)

    Args:
        name: one of `list_models()`.
        architecture: the whole description; or
        **options: its fields by name (see `Architecture`).

    Raises ValueError for an unknown name or option, or a combination that the family cannot build.
    """
    check_model(name)
    if architecture is None:
        known = [field.name for field in fields(Architecture)]
        for option in options:
            if option not in known:
                close = get_close_matches(option, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                raise ValueError(f"{option}: unknown option of build_model; {hint}")
        architecture = Architecture(**options)
    elif options:
        raise ValueError("build_model: give an Architecture or options by name, not both")
    builder = _FAMILIES[name]
    if isinstance(builder, str):
        module, function = builder.split(":")
        builder = getattr(import_module(module), function)
    return builder(architecture)

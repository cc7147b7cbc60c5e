"""Networks of others in a study: built by their function, and converted by `segment_model` as the run's options say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from torch import nn

from spectrum._registry import nearest
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.models.blocks import mark_clamped
from spectrum.models.convert import inner_channels, segment_model
from spectrum.models.named import LIBRARIES, is_permitted, parts_of
from spectrum.models.options import NetworkOptions
from spectrum.models.position import Position

GIVEN = ("num_classes", "in_channels", "image_size")  # options that a function gets if it has such parameters
CONVERSION = "conversion"  # attribute of a converted network


def build_converted(name: str, arch: NetworkOptions) -> nn.Module:
    """Build a network of others, with segmented convolutions in place of its k×k convolutions.

    Args:
        name: "module:function", "torchvision:model" or "timm:model".
        arch: options, of which segments, segment_width, order, activation, norm, pointwise, width and widths are used.
            The last two change the channels between the two convolutions of each replaced layer.

    Layers with fewer channels than segments take one segment per channel. Raises ValueError for a function that cannot
    be called or returns no network, and if no layer can be replaced.
    """
    model = network_of(name, arch)
    more: dict[str, Any] = {}
    if arch.pointwise:
        usual = inner_channels(model, order=arch.order or "pointwise_first")
        inner = dict(zip(usual, arch.scaled_widths(usual), strict=True))
        more = {"mid_channels": inner.__getitem__, "activation": arch.activation, "norm": bool(arch.norm)}
    elif arch.width != 1.0 or arch.widths is not None:
        raise ValueError(
            f"width: {name!r} keeps its own widths; only the channels between a 1×1 and a k×k convolution change, and "
            "pointwise = false leaves the 1×1 out"
        )
    position = Position.of(arch)
    asked: dict[str, Any] = {"segments": position.asked_of()}
    if arch.segment_width is not None:
        asked = {"segment_width": arch.segment_width}
    converted, layers = segment_model(
        model, **asked, pointwise=arch.pointwise, order=arch.order or "pointwise_first", clamp=True, **more
    )
    for layer in converted.modules():
        if isinstance(layer, SegmentedConv2d):
            runs = layer.spatial.geometry.runs
            channels = min(sum(run.count * run.in_size for run in runs), sum(run.count * run.out_size for run in runs))
            mark_clamped(layer, position.clamped_by(channels))
    said = dict(zip(layers["layer"], layers["replaced"], strict=True))
    replaced = [layer for layer, why in said.items() if why == "yes"]
    left = {layer: why for layer, why in said.items() if why != "yes"}
    setattr(converted, CONVERSION, {"replaced": replaced, "left": left})
    return converted


def inner_widths(name: str, arch: NetworkOptions) -> tuple[int, ...]:
    """Channels between the two convolutions of the replaced layers: one number for each default, as they first occur.

    Raises ValueError for a network without a 1×1 beside its k×k convolutions.
    """
    if not arch.pointwise:
        raise ValueError(f"{name!r} with pointwise = false has no channels between two convolutions that could change")
    return arch.scaled_widths(inner_channels(network_of(name, arch), order=arch.order or "pointwise_first"))


def conversion_of(model: nn.Module) -> dict[str, Any] | None:
    """The k×k convolutions of a network of others that were replaced, and why others were not; else None."""
    found: dict[str, Any] | None = getattr(model, CONVERSION, None)
    return found


def network_of(name: str, arch: NetworkOptions) -> nn.Module:
    """The network that a function or a library returns, before it is converted.

    A function gets those of num_classes, in_channels and image_size that it has parameters for.
    """
    parts = parts_of(name)
    assert parts is not None, "the registry has resolved the name"
    home, function = parts
    if home in LIBRARIES:
        return _of_library(home, function, arch)
    if not is_permitted(home):
        raise ValueError(f"model={name!r}: name its module by import or --import, or by imports=[{home!r}] in Python")
    make = function_of(name)
    parameters = inspect.signature(make).parameters
    try:
        model = make(**{option: getattr(arch, option) for option in GIVEN if option in parameters})
    except Exception as error:  # whatever a function of someone else raises
        raise ValueError(f"model={name!r}: its function fails: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model={name!r}: its function returned {type(model).__name__}; return a torch.nn.Module")
    return model


def function_of(name: str) -> Callable[..., Any]:
    """The function with a name such as "my_module:function". Raises ValueError if its module has none."""
    home, function = parts_of(name) or ("", "")
    try:
        found: Any = attrgetter(function)(import_module(home))
    except AttributeError:
        raise ValueError(
            f"model={name!r}: module {home} has no {function}; give the name of a function in it"
        ) from None
    if not callable(found):
        raise ValueError(f"model={name!r}: is a {type(found).__name__}; give the name of a function")
    return found  # type: ignore[no-any-return]


def _of_library(home: str, model: str, arch: NetworkOptions) -> nn.Module:
    """A network of torchvision or timm with fresh weights, for these images."""
    name = f"{home}:{model}"
    try:
        library = import_module("torchvision.models" if home == "torchvision" else home)
    except ModuleNotFoundError as error:
        raise ValueError(f"model={name!r}: {error.name} is not installed; pip install {error.name}") from None
    except Exception as error:  # such as an operator that is missing, where it was built for another version of torch
        raise ValueError(f"model={name!r}: {home} cannot be imported: {type(error).__name__}: {error}") from error
    known = library.list_models()
    if model not in known:
        near = nearest(model, known)
        raise ValueError(f"model={name!r}: {home} has no such model" + (f"; did you mean {near!r}?" if near else ""))
    if home == "timm":
        made = library.create_model(model, num_classes=arch.num_classes, in_chans=arch.in_channels)
    elif arch.in_channels == 3:
        made = library.get_model(model, num_classes=arch.num_classes)
    else:
        raise ValueError(
            f"model={name!r}: torchvision's networks take images of 3 channels, and these have {arch.in_channels}; use "
            "timm, or a function of your own"
        )
    return made  # type: ignore[no-any-return]

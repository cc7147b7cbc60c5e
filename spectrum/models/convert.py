"""Networks of others with segmented convolutions in place of their k×k convolutions, as a table of layers says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from spectrum.conv.arguments import Order, choice, flag, whole
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.conv.segments import PER_CHANNEL, Segments, plain_segments, segments_of_width
from spectrum.models.approximate import approximate, energy_kept, energy_of

Select = str | Sequence[str] | Callable[[str, nn.Conv2d], bool] | None
Init = Literal["fresh", "from_trained"]
LEAST_CHANNELS = 16
COLUMNS = "layer replaced in_channels out_channels kernel_size segments mid_channels params_before params_after".split()
KEPT = ("kernel_energy", "energy_kept", "output_error")


class Conversion(NamedTuple):
    """A converted network, and the outcome for each of its k×k convolutions."""

    model: nn.Module
    layers: pd.DataFrame


def segment_model(
    model: nn.Module,
    segments: Segments | None = None,
    *,
    segment_width: int | None = None,
    select: Select = None,
    least_channels: int = LEAST_CHANNELS,
    pointwise: bool = True,
    order: Order = "pointwise_first",
    activation: Any = None,
    norm: bool = False,
    mid_channels: float | Callable[[int], int] | None = None,
    clamp: bool = False,
    init: Init = "fresh",
    batch: Any = None,
) -> Conversion:
    """Replace the k×k convolutions of a network by segmented ones. The network itself is left as it is.

    Args:
        model: any network of torch modules.
        segments: number of segments, or `"per_channel"`. Give this or segment_width.
        segment_width: channels per segment instead; their number follows from each layer's channels.
        select: which k×k convolutions: a layer's name, a pattern such as "layer3.*", several of these, or a function of
            name and layer. By default all with at least `least_channels` input and output channels.
        least_channels: layers with fewer input or output channels, such as a stem on images, are left as they are.
        pointwise: whether there is a 1×1 beside the segmented convolution, as in `SegmentedConv2d`.
        order: of the two, as there.
        activation: between the two, as there.
        norm: batch normalisation between the two, as there.
        mid_channels: channels between the two, as a multiple of each layer's default (out_channels pointwise-first,
            in_channels spatial-first), rounded; or a function from that default to their number.
        clamp: whether a layer with fewer channels than segments takes one segment per channel. By default it is left as
            it is.
        init: "fresh" initialises as `SegmentedConv2d` does. "from_trained" takes the best approximation of each trained
            kernel, for which nothing may stand between the two convolutions.
        batch: an input of the network. With it the table has each layer's output error on this batch.

    A replaced layer keeps stride, padding, dilation, bias, device, type, and whether it trains. Without a 1×1,
    "from_trained" keeps what lies in the blocks of the segments.

    Returns `model`, a converted copy, and `layers`, a table with a row per k×k convolution: its name, whether it was
    replaced ("yes", or why not), channels, segments, middle channels, and parameters before and after. With
    "from_trained", `kernel_energy` is the sum of the squared weights, and `energy_kept` the part of it that the new
    layers reproduce. `output_error` is ‖y − ŷ‖² / ‖y‖² of the layer's output without bias, on the inputs that the
    unchanged network gives it.

    Raises ValueError for contradictory arguments, for a name or pattern that no k×k convolution has, and if no layer
    can be replaced.

    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    >>> converted, layers = segment_model(net, segments=4)
    >>> layers[["layer", "replaced", "segments"]]
      layer                                     replaced  segments
    0     0  3 input channels, below least_channels=16      <NA>
    1     2                                          yes         4
    >>> converted[2]
    SegmentedConv2d(
      32, 32, segments=4, order='pointwise_first'
      ...
    )
    """
    wish = _Wish(segments, segment_width, pointwise, order, activation, norm, mid_channels, init, flag("clamp", clamp))
    wish.check()
    convolutions = _convolutions(model)
    if not convolutions:
        raise ValueError(f"model: {type(model).__name__} has no nn.Conv2d with a kernel above 1×1")
    chosen = _chosen(convolutions, select)
    converted, rows = copy.deepcopy(model), []
    replacements: dict[str, SegmentedConv2d] = {}
    for name, layer in convolutions.items():
        why = _why_not(name, layer, wish, chosen, least_channels)
        row: dict[str, Any] = {
            "layer": name,
            "replaced": why or "yes",
            "kernel_size": "×".join(map(str, layer.kernel_size)),
        }
        row |= {"in_channels": layer.in_channels, "out_channels": layer.out_channels, "params_before": _count(layer)}
        if why is None:
            if init == "from_trained":
                _check_weights(name, layer.weight)
            new = replacements[name] = wish.made_of(layer)
            row |= {"segments": new.segments, "params_after": _count(new), "mid_channels": new.mid_channels}
            if init == "from_trained":
                row |= {"kernel_energy": energy_of(layer), "energy_kept": energy_kept(layer, new)}
        rows.append(row)
    if not replacements:
        reasons = "; ".join(dict.fromkeys(f"{row['layer']}: {row['replaced']}" for row in rows))
        raise ValueError(f"model: no k×k convolution can be replaced ({reasons})")
    errors = _output_errors(model, replacements, batch) if batch is not None else {}
    for name, new in replacements.items():
        converted = _with(converted, name, new)
    table = pd.DataFrame(rows, columns=[*COLUMNS, *KEPT])
    table["output_error"] = table["layer"].map(errors).astype(float)
    whole = dict.fromkeys(("segments", "mid_channels", "params_after"), "Int64")
    return Conversion(converted, table.astype(whole))


def inner_channels(model: nn.Module, *, order: Order) -> tuple[int, ...]:
    """Default middle channels of the layers that `segment_model` replaces with `clamp`, each once, in their order."""
    wish = _Wish(1, None, True, order, None, False, None, "fresh", True)
    layers = _convolutions(model).items()
    replaced = (layer for name, layer in layers if _why_not(name, layer, wish, _all, LEAST_CHANNELS) is None)
    return tuple(dict.fromkeys(map(wish.middle_of, replaced)))


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a network with a kernel above 1×1, by name."""
    layers = model.named_modules()
    return {name: one for name, one in layers if isinstance(one, nn.Conv2d) and math.prod(one.kernel_size) > 1}


def _all(name: str, layer: nn.Conv2d) -> bool:
    return True


@dataclass
class _Wish:
    """Requested properties of the new layers."""

    segments: Segments | None
    segment_width: int | None
    pointwise: bool
    order: Order
    activation: Any
    norm: bool
    mid_channels: float | Callable[[int], int] | None
    init: Init
    clamp: bool
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.options = {"pointwise": self.pointwise, "order": self.order}
        if self.pointwise:
            self.options |= {"activation": self.activation, "norm": self.norm}

    def check(self) -> None:
        """Raise ValueError for arguments that contradict each other."""
        if (self.segments is None) == (self.segment_width is None):
            raise ValueError("segments, segment_width: give one of them")
        if self.segments is not None and isinstance(plain_segments(self.segments), tuple):
            raise ValueError(f"segments={self.segments!r}: expected a number or 'per_channel', which fit every layer")
        if isinstance(self.segments, int) and self.segments < 1:
            raise ValueError(f"segments={self.segments}: expected at least 1")
        choice("init", self.init, get_args(Init))
        is_multiple = self.mid_channels is not None and not callable(self.mid_channels)
        if (is_multiple and not self.mid_channels > 0) or (self.mid_channels is not None and not self.pointwise):  # type: ignore[operator]
            raise ValueError(f"mid_channels={self.mid_channels!r}: expected a multiple above 0, and a 1×1 beside it")
        self._check_between()

    def _check_between(self) -> None:
        """Raise ValueError for an activation or norm between the two convolutions where none is possible."""
        between = self.norm or self.activation not in (None, "none")
        if between and not self.pointwise:
            raise ValueError("activation, norm: need the 1×1, which pointwise=False leaves out")
        if between and self.init == "from_trained":
            raise ValueError(
                "init='from_trained': approximates a linear layer, so nothing may stand between the two convolutions; "
                "leave activation and norm out, or use init='fresh'"
            )

    def middle_of(self, layer: nn.Conv2d) -> int:
        """Middle channels of the new layer before segments are considered."""
        usual = layer.out_channels if self.order == "pointwise_first" else layer.in_channels
        if callable(self.mid_channels):
            return whole("mid_channels", self.mid_channels(usual))
        return usual if self.mid_channels is None else max(1, round(self.mid_channels * usual))

    def split_of(self, layer: nn.Conv2d) -> tuple[int, int]:
        """Channels that the spatial convolution splits, input or output whichever are fewer, and their segments."""
        if not self.pointwise:
            ends = (layer.in_channels, layer.out_channels)
        else:
            outer = layer.out_channels if self.order == "pointwise_first" else layer.in_channels
            ends = (outer, self.middle_of(layer))
        channels = min(ends)
        if self.segment_width is not None:
            return channels, min(channels, segments_of_width(channels, self.segment_width))
        segments = channels if self.segments == PER_CHANNEL else int(self.segments)  # type: ignore[arg-type]
        return channels, min(channels, segments) if self.clamp else segments

    def made_of(self, layer: nn.Conv2d) -> SegmentedConv2d:
        """The layer that replaces a convolution."""
        _, segments = self.split_of(layer)
        more: dict[str, Any] = {"mid_channels": self.middle_of(layer)} if self.pointwise else {}
        weight = layer.weight
        new = SegmentedConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            padding=_padding_of(layer),
            padding_mode=layer.padding_mode,
            segments=segments,
            bias=layer.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
            **self.options,
            **more,
        )
        if self.init == "from_trained":
            approximate(new, weight.detach())
            if layer.bias is not None and new.bias is not None:
                with torch.no_grad():
                    new.bias.copy_(layer.bias)
        for parameter in new.parameters():
            parameter.requires_grad_(weight.requires_grad)
        return new.train(layer.training)


def _check_weights(name: str, weight: Tensor) -> None:
    """Raise ValueError for weights that cannot be approximated."""
    if weight.is_meta:
        raise ValueError(f'{name}: the weights are on "meta" and have no numbers; load them first')
    if not torch.isfinite(weight).all():
        raise ValueError(f"{name}: the weights are not finite, so no approximation is best")


def _padding_of(layer: nn.Conv2d) -> Any:
    return 0 if layer.padding == "valid" else layer.padding


def _chosen(convolutions: dict[str, nn.Conv2d], select: Select) -> Callable[[str, nn.Conv2d], bool]:
    """Whether a layer is selected. Raises ValueError for a name or pattern that no k×k convolution has."""
    if select is None:
        return _all
    if callable(select):
        return select
    patterns = [select] if isinstance(select, str) else list(select)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in convolutions):
            names = ", ".join(list(convolutions)[:8]) + (", …" if len(convolutions) > 8 else "")
            raise ValueError(f"select={pattern!r}: no k×k convolution has such a name; there are {names}")
    return lambda name, layer: any(fnmatchcase(name, pattern) for pattern in patterns)


def _why_not(
    name: str, layer: nn.Conv2d, wish: _Wish, chosen: Callable[[str, nn.Conv2d], bool], least_channels: int
) -> str | None:
    """Reason why a layer is not replaced; None if it is replaced."""
    if not chosen(name, layer):
        return "not selected"
    if layer.groups > 1:
        return f"grouped already, groups={layer.groups}"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "has hooks, which a new layer would not have"
    if type(layer) is not nn.Conv2d:
        return f"is a {type(layer).__name__}, which may compute something else"
    for channels, side in ((layer.in_channels, "input"), (layer.out_channels, "output")):
        if channels < least_channels:
            return f"{channels} {side} channels, below least_channels={least_channels}"
    if layer.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)):
        return "padding='same' around an even kernel"
    channels, segments = wish.split_of(layer)
    return f"{channels} channels, fewer than {segments} segments" if segments > channels else None


@torch.no_grad()
def _output_errors(model: nn.Module, replacements: dict[str, SegmentedConv2d], batch: Any) -> dict[str, float]:
    """‖y − ŷ‖² / ‖y‖² of each replaced layer, summed over its calls, on the inputs of the unchanged network."""
    sums = {name: [0.0, 0.0] for name in replacements}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            bias = 0 if not isinstance(layer.bias, Tensor) else layer.bias.view(-1, 1, 1)
            new = replacements[name]
            ours: Tensor = new(inputs[0]) - (0 if new.bias is None else new.bias.view(-1, 1, 1))
            sums[name][0] += float((y - bias - ours).double().square().sum())
            sums[name][1] += float((y - bias).double().square().sum())

        return hook

    was_training = model.training
    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in replacements]
    try:
        model.eval()
        model(batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: error / energy if energy else float("nan") for name, (error, energy) in sums.items()}


def _with(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """The network with one layer replaced at every occurrence; the new layer, if the network is that layer."""
    if not name:
        return new
    old = model.get_submodule(name)
    places = [place for place, layer in model.named_modules(remove_duplicate=False) if layer is old]
    for place in places:
        parent, _, last = place.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def _count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())

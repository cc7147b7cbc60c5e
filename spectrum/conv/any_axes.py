"""The operation with any number of spatial axes: its arguments, its parts and how they are called in turn.

`segmented.py` has it for images, `one_and_three_axes.py` for sequences and volumes. Shapes: x is (N, C, …), with one,
two or three spatial axes.
"""

# Annotations are not strings here and in `spectrum.models`: modules traced by fx keep them, and are pickled with them.

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrum._torch import AnyBatchNorm
from spectrum.conv.arguments import (
    MOST_CHANNELS,
    ORDERS,
    PADDING_MODES,
    InputError,
    Order,
    PaddingMode,
    Sides,
    choice,
    flag,
    padding_pixels,
    sides,
    whole,
)
from spectrum.conv.backends.interface import Geometry
from spectrum.conv.backends.tracing import is_of_fx
from spectrum.conv.between import between, named_activation, shuffled
from spectrum.conv.grouped import GroupedConvNd
from spectrum.conv.padding import (
    Amounts,
    is_as_torchs,
    pad_in_mode,
    pad_same_in_mode,
    padding_refusal,
    same_amounts,
)
from spectrum.conv.segments import PER_CHANNEL, Segments, interleaved, segment_runs, segment_sizes, spatial_sizes

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
AXES = {1: "L", 2: "H, W", 3: "D, H, W"}  # names of the spatial axes, by their number

torch.fx.wrap("pad_same_in_mode")  # it reads the size of its input, which fx does not know
torch.fx.wrap("pad_in_mode")  # it reads the memory layout


class Makers(NamedTuple):
    """Makers of the parts, with their device and type."""

    spatial: Callable[[Geometry], GroupedConvNd]
    pointwise: Callable[[Geometry], GroupedConvNd]
    norm: Callable[[int, bool], tuple[nn.Module, ...]]  # of a number of channels; whether ReLU follows


class SegmentedConvNd(nn.Module):
    """What `SegmentedConv1d`, `SegmentedConv2d` and `SegmentedConv3d` share; they document the arguments."""

    axes: int  # spatial axes
    pads_first = False  # with the amounts of TensorFlow's "same", which depend on the input
    pads: Amounts | None = None  # amounts that are added before the spatial convolution
    padding_mode: PaddingMode = "zeros"  # these three also serve modules that an earlier version stored
    clamped_options: tuple[str, ...] = ()  # options that ask for more segments than the layer has channels

    @property
    def normalises(self) -> bool:
        """Whether there is batch normalisation between the 1×1 and the spatial convolution."""
        return isinstance(self.between, nn.Sequential) and isinstance(self.between[0], AnyBatchNorm)

    @property
    def mid_channels(self) -> int:
        """Channels between the two convolutions."""
        runs, pointwise_first = self.spatial.geometry.runs, self.order == "pointwise_first"
        return sum(run.count * (run.in_size if pointwise_first else run.out_size) for run in runs)

    def _makers(self, backend: str | None, device: Any, dtype: torch.dtype | None) -> Makers:
        """Makers of this module's parts."""
        raise NotImplementedError

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sides,
        *,
        stride: int | Sides,
        dilation: int | Sides,
        padding: str | int | Sides,
        padding_mode: PaddingMode,
        segments: Segments,
        order: Order,
        activation: str | nn.Module | type[nn.Module] | Callable[[Tensor], Tensor] | None,
        norm: bool,
        mid_channels: int | None,
        pointwise: bool,
        pointwise_segments: int,
        shuffle: bool,
        bias: bool,
        backend: str | None = None,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        # long: a third is the signature, and the order in which parts are made is that of a state_dict
        super().__init__()
        in_channels = whole("in_channels", in_channels, most=MOST_CHANNELS)
        out_channels = whole("out_channels", out_channels, most=MOST_CHANNELS)
        kernel_size, stride = sides("kernel_size", kernel_size, self.axes), sides("stride", stride, self.axes)
        dilation = sides("dilation", dilation, self.axes)
        pointwise_segments = whole("pointwise_segments", pointwise_segments)
        choice("order", order, ORDERS)
        choice("padding_mode", padding_mode, PADDING_MODES)
        norm, pointwise, shuffle = flag("norm", norm), flag("pointwise", pointwise), flag("shuffle", shuffle)
        bias = flag("bias", bias)
        activation = named_activation(activation)
        made: dict[str, Any] = {"device": _device(device), "dtype": _dtype(dtype)}
        self.in_channels, self.out_channels, self.order = in_channels, out_channels, order
        mid_channels = _mid_channels(mid_channels, in_channels, out_channels, order, pointwise)
        spatial_channels, pointwise_channels = (in_channels, mid_channels), (mid_channels, out_channels)
        if order == "pointwise_first":
            spatial_channels, pointwise_channels = pointwise_channels, spatial_channels
        _check_pointwise(pointwise, pointwise_segments, norm, activation, shuffle, min(pointwise_channels))
        if pointwise and isinstance(segments, str) and segments == PER_CHANNEL:
            segments = min(spatial_channels)
        in_sizes, out_sizes = spatial_sizes(*spatial_channels, segments)
        self.segments, self.segment_sizes = len(in_sizes), in_sizes
        pixels = self._padding(padding, padding_mode, kernel_size, stride, dilation)
        makers = self._makers(backend, **made)
        runs = segment_runs(in_sizes, out_sizes)
        self.spatial = makers.spatial(Geometry(runs, kernel_size, stride, pixels, dilation))

        self.pointwise: GroupedConvNd | None = None
        self.between: nn.Module = nn.Identity()
        if pointwise:
            runs = segment_runs(*(segment_sizes(c, pointwise_segments) for c in pointwise_channels))
            one, none = (1,) * self.axes, (0,) * self.axes
            self.pointwise = makers.pointwise(Geometry(runs, one, one, none, one))
            self.between = between(mid_channels, norm, activation, makers.norm)

        # Two dense convolutions with nothing between them equal one convolution.
        has_nothing_between = pointwise and not norm and activation == "none"
        self.folds = has_nothing_between and self.segments == pointwise_segments == 1
        self.folds = self.folds and set(stride) == {1} and not self.pads_first and self.pads is None

        self.shuffle: Tensor | None
        self.register_buffer("shuffle", None, persistent=False)
        if shuffle:
            self.shuffle = self._permutation(torch.empty(0, **made).device)
            self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

        self.bias = nn.Parameter(torch.empty(out_channels, **made)) if bias else None
        self._reset_bias()
        self.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]

    def _padding(self, padding: Any, mode: PaddingMode, kernel_size: Sides, stride: Sides, dilation: Sides) -> Sides:
        """Zeros that the spatial convolution itself adds on each side; other padding is noted, and applied before."""
        self.padding_mode = mode
        if isinstance(padding, str) and padding == "tf_same":
            self.pads_first, padding = not is_as_torchs(kernel_size, stride), "same"
        none = (0,) * self.axes
        if self.pads_first:
            return none
        pixels = padding_pixels(padding, kernel_size, dilation)
        if mode == "zeros" or pixels == none:
            return pixels
        self.pads = tuple((each, each) for each in pixels)
        return none

    def reset_parameters(self) -> None:
        """Initialise all weights anew, as at construction, for example for a module made on `meta`."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            last = self.spatial if self.pointwise is None or self.order == "pointwise_first" else self.pointwise
            bound = 1 / math.sqrt(last.largest_fan_in)
            nn.init.uniform_(self.bias, -bound, bound)

    def _permutation(self, device: torch.device) -> Tensor:
        """The shuffle: position c of the spatial convolution belongs to segment c mod P of the 1×1, in either order."""
        assert self.pointwise is not None
        segments = sum(run.count for run in self.pointwise.geometry.runs)
        permutation = torch.tensor(interleaved(self.mid_channels, segments), device="cpu")
        return (permutation if self.order == "pointwise_first" else permutation.argsort()).to(device)

    def _compute_shuffle(self) -> None:
        """Compute a permutation that is still on `meta` while the weights no longer are; no state_dict has it."""
        if self.shuffle is not None and self.shuffle.is_meta and not self.spatial.weights[0].is_meta:
            self.shuffle = self._permutation(self.spatial.weights[0].device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SegmentedConvNd":
        """Apply `.to()`, `to_empty` and similar; recompute the permutation, since no state_dict has it."""
        self._compute_shuffle()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.shuffle is not None and not self.shuffle.is_meta:
            with torch.no_grad():
                self.shuffle.copy_(self._permutation(self.shuffle.device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, in_channels, …) to (N, out_channels, …), or both without N; raises InputError."""
        if is_of_fx(x):  # torch's own operations take both shapes
            return self._forward(x)
        self._compute_shuffle()
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self._check(x)
        return self._forward(x) if x.dim() == self.axes + 2 else self._forward(x.unsqueeze(0)).squeeze(0)

    def _forward(self, x: Tensor) -> Tensor:
        x = self._convolve(self.spatial, x) if self.pointwise is None else self._both(x, self.pointwise)
        return x if self.bias is None else x + self.bias.view(-1, *(1,) * self.axes)

    def _both(self, x: Tensor, pointwise: GroupedConvNd) -> Tensor:
        """The 1×1 and the spatial convolution, in the module's order."""
        pointwise_first = self.order == "pointwise_first"
        first, second = (pointwise, self.spatial) if pointwise_first else (self.spatial, pointwise)
        x = self.between(self._convolve(first, x))
        if self.shuffle is not None:
            x = shuffled(x, self.shuffle, -1 - self.axes)
        return self._convolve(second, x)

    def _convolve(self, conv: GroupedConvNd, x: Tensor) -> Tensor:
        if conv is self.spatial and self.pads_first:
            g = conv.geometry
            x = pad_same_in_mode(x, g.kernel_size, g.stride, g.dilation, self.padding_mode)
        elif conv is self.spatial and self.pads is not None:
            x = pad_in_mode(x, self.pads, self.padding_mode)
        y: Tensor = conv(x)
        return y

    def _check(self, x: Any) -> None:
        """Raise InputError for an input that the module cannot take."""
        if not isinstance(x, Tensor):
            raise InputError(f"input of type {type(x).__name__}: expected a torch.Tensor")
        given, axes = f"input of shape {tuple(x.shape)}", AXES[self.axes]
        if x.dim() not in (self.axes + 1, self.axes + 2):
            raise InputError(f"{given}: expected (N, {self.in_channels}, {axes}) or ({self.in_channels}, {axes})")
        channels = x.shape[-1 - self.axes]
        if channels != self.in_channels:
            raise InputError(f"{given}: has {channels} channels, expected in_channels={self.in_channels}")
        if x.dim() == self.axes + 1 and self.normalises:
            raise InputError(f"{given}: norm=True needs a batch (N, C, {axes}); give x.unsqueeze(0)")
        why = self._padding_refusal(x)
        if why is not None:
            raise InputError(f"{given}: {why}")
        weight = self.spatial.weights[0]
        if weight.is_meta and not x.is_meta:
            raise InputError(
                f'input on "{x.device}": the weights are on "meta" and have no numbers; '
                "load them with assign=True, or use to_empty and reset_parameters"
            )
        dtype = weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"input of type {x.dtype}: the weights are {dtype}; give x.to({dtype}), or convert the module"
            )

    def _padding_refusal(self, x: Tensor) -> str | None:
        """Why this input cannot be padded, as text; its sides are those of the spatial convolution's input."""
        if self.padding_mode == "zeros" or (self.pads is None and not self.pads_first):
            return None
        g = self.spatial.geometry
        amounts = self.pads or same_amounts(x, g.kernel_size, g.stride, g.dilation)
        return padding_refusal(x.shape[-self.axes :], amounts, self.padding_mode)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, segments={self.segments}, order={self.order!r}"
        usual = _mid_channels(None, self.in_channels, self.out_channels, self.order, self.pointwise is not None)
        text += "" if self.mid_channels == usual else f", mid_channels={self.mid_channels}"
        if self.padding_mode == "zeros":
            return text
        pixels = "" if self.pads is None else f", padding={tuple(before for before, _ in self.pads)}"
        return f"{text}{pixels}, padding_mode={self.padding_mode!r}"


def _mid_channels(asked: Any, in_channels: int, out_channels: int, order: Order, pointwise: bool) -> int:
    """Channels between the two convolutions. Without a 1×1, those with which the spatial convolution has all others."""
    if not pointwise:
        if asked is not None:
            raise ValueError("mid_channels: needs the 1×1, which pointwise=False leaves out; leave mid_channels out")
        return in_channels if order == "pointwise_first" else out_channels
    if asked is None:
        return out_channels if order == "pointwise_first" else in_channels
    return whole("mid_channels", asked, most=MOST_CHANNELS)


def _before_loading(
    module: SegmentedConvNd,
    state_dict: dict[str, Tensor],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Explain weights of another split of the channels, of which torch only says that a shape differs."""
    own = {f"spatial.weights.{number}": tuple(weight.shape) for number, weight in enumerate(module.spatial.weights)}
    of_spatial = f"{prefix}spatial.weights."
    theirs = {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if name.startswith(of_spatial)
    }
    # keys that are only missing or unexpected are left to torch, since strict=False allows them
    if any(own.get(name, shape) != shape for name, shape in theirs.items()):
        how = (
            "; to approximate a trained nn.Conv2d by segments, use segment_model(network, segments=…, "
            "init='from_trained')"
        )
        errors.append(
            f"{prefix.removesuffix('.') or type(module).__name__}: the state_dict has weights of another split "
            f"({_listed(theirs)}) than this layer's {module.segments} segments ({_listed(own)}), which do not carry "
            f"over{how if module.axes == 2 else ''}"
        )


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _after_loading(module: SegmentedConvNd, incompatible: Any) -> None:
    module._compute_shuffle()


def _device(device: Any) -> Any:
    """The device, if torch accepts it. Raises ValueError for anything else."""
    try:
        if device is not None and not isinstance(device, bool):
            torch.device(device)
            return device
    except (RuntimeError, TypeError, ValueError):
        pass
    if device is not None:
        raise ValueError(f'device={device!r}: expected a device of torch, such as "cpu", "cuda:0" or "meta"')
    return None


def _dtype(dtype: Any) -> torch.dtype | None:
    """The type, if weights can have it. Raises ValueError for any other."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in FLOATS):
        return dtype
    raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(map(str, FLOATS))}")


def _check_pointwise(
    pointwise: bool, segments: int, norm: bool, activation: str | nn.Module, shuffle: bool, most: int
) -> None:
    """Raise ValueError for options of the 1×1, norm, activation and shuffle that contradict each other."""
    given = {"norm": norm, "activation": activation != "none", "pointwise_segments": segments != 1}
    for name, is_given in given.items():
        if is_given and not pointwise:
            raise ValueError(f"{name}: needs the 1×1, which pointwise=False leaves out; leave {name} at its default")
    if shuffle and segments == 1:
        raise ValueError("shuffle=True: after a dense 1×1 it only relabels rows; use pointwise_segments > 1")
    if segments > most:
        raise ValueError(f"pointwise_segments={segments}: expected 1 … {most}")

"""The whole spectrum from regular to depthwise separable convolution as one module.

A segmented convolution is a pointwise convolution (1×1, across channels) and a spatial convolution (k×k, inside each of
S segments of its channels), in either order, with or without normalisation and activation between them:

    segments            pointwise_first                        spatial_first
    1                   1×1, then a regular convolution        a regular convolution, then 1×1
    3 or 4              an Inception module's 1×1→k×k towers
    "per_channel"       extreme Inception                      a depthwise separable convolution

Shapes: x_nchw is (N, C, H, W).
"""

# Annotations are not strings here and in `spectrum.models`: modules traced by fx keep them, and are pickled with them.

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrum.conv.arguments import (
    MOST_CHANNELS,
    ORDERS,
    InputError,
    Order,
    Pair,
    choice,
    flag,
    padding_pixels,
    pair,
    whole,
)
from spectrum.conv.backends.choice import Choice, choice_for, worth_folding
from spectrum.conv.backends.tracing import is_of_fx
from spectrum.conv.between import between, named_activation, shuffled
from spectrum.conv.grouped import GroupedConv2d
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.padding import is_as_torchs, pad_same
from spectrum.conv.segments import PER_CHANNEL, Segments, interleaved, segment_runs, segment_sizes, spatial_sizes

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)

torch.fx.wrap("pad_same")  # it reads the size of its input, which fx does not know


class SegmentedConv2d(nn.Module):
    """A 1×1 and a spatial convolution, the latter separate in each of `segments` groups of channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the spatial kernel, or (height, width).
        stride: stride of the spatial convolution, one number or (vertical, horizontal); the 1×1 always has stride 1.
        dilation: dilation of the spatial convolution, one number or (vertical, horizontal).
        padding: padding of the spatial convolution. "same" pads dilation·(k−1)/2 zeros on each side. "tf_same" pads for
            ⌈H/stride⌉ outputs, an odd pixel at the bottom and the right, like "same" in Keras. Or a number of pixels
            (0 is "valid" in Keras), or (vertical, horizontal).
        segments: number of segments of the spatial convolution, 1 … C, divisible or not (sizes then differ by at most
            one); `"per_channel"`, which means C; or explicit sizes that sum to its input channels. C is the smaller of
            the spatial convolution's input and output channels. By default both are `out_channels` pointwise-first, and
            `in_channels` spatial-first.
        order: `"pointwise_first"` (1×1 first, as in Inception) or `"spatial_first"` (as in a depthwise separable
            convolution).
        activation: non-linearity between the 1×1 and the spatial convolution: None (or "none"), "relu", "elu", "gelu",
            "silu"; a module, which becomes a submodule and is not copied; a class of modules, made without arguments;
            or a function of a tensor.
        norm: whether to apply batch normalisation between the two convolutions, before the activation.
        mid_channels: channels between the two convolutions, so that a layer's inner width differs from its outer one
            (as in ResNeXt). By default `out_channels` pointwise-first and `in_channels` spatial-first. With
            `m * in_channels`, spatial-first and per-channel, m is the `depth_multiplier` of Keras.
        pointwise: False leaves out the 1×1, which gives a plain spatial convolution; with `segments=1` it is
            `nn.Conv2d`. Input and output channels are then both split.
        pointwise_segments: number of segments of the 1×1 itself.
        shuffle: whether to interleave channels between the two convolutions, so that neighbouring channels of the
            spatial one come from different segments of the 1×1. Needs pointwise_segments > 1: after a dense 1×1 it only
            relabels rows.
        bias: whether to add a per-channel bias to the output (as Keras' `SeparableConv2D` does).
        backend: backend of the spatial convolution, one of `list_backends()`; an input that it cannot compute is
            refused. The 1×1 and the normalisation use it if it can compute them, and torch otherwise. By default, and
            with "auto", the fastest that `tune` measured for the layer and its input on this machine, and a guess where
            nothing was measured; see `prefer_backend`. torch's own convolutions always run while a tracer must see
            them (a counter, an exporter, a transform of torch.func, forward-mode differentiation, a
            `TorchDispatchMode`), and for inputs of a subclass of Tensor. `backends_seen` records what was used.
        device: device of parameters and buffers, as for torch's own layers.
        dtype: type of parameters and buffers, floating-point or complex.

    Input (N, in_channels, H, W); output (N, out_channels, H', W') with
    H' = ⌊(H + 2·padding − dilation·(k−1) − 1) / stride⌋ + 1, or ⌈H/stride⌉ with "tf_same". Or (in_channels, H, W) to
    (out_channels, H', W'), except with `norm`, which needs a batch. Infinities and NaN reach the same outputs and
    gradients as in two successive convolutions of torch.

    There is one weight tensor per run of neighbouring segments of equal size: one run if the number divides C, else
    two; for explicit sizes, as many as they form. `spatial.weights.i` is (outputs of the run, inputs of one segment,
    kh, kw); `pointwise.weights.i` is the same for the 1×1, so (out, in, 1, 1) if it has one segment; `bias` is (out,).
    Initialised like `nn.Conv2d`, uniform in ±1/√fan_in, with the fan-in of a segment, k²·C/S.

    From F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, arXiv:1610.02357,
    sections 1.1 and 1.2.

    `torch.jit.trace`, `torch.export` and `torch.compile` support it; `torch.jit.script` does not.

    Raises ValueError with the argument's name and what would work. Calling it on an input of the wrong shape or type
    raises InputError, which is a ValueError and, as in torch, a RuntimeError.

    >>> conv = SegmentedConv2d(64, 128, segments=3)
    >>> conv
    SegmentedConv2d(
      64, 128, segments=3, order='pointwise_first'
      (spatial): GroupedConv2d(
        2×(43→43) + 1×(42→42), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
        ...
    )
    >>> conv(torch.zeros(8, 64, 32, 32)).shape
    torch.Size([8, 128, 32, 32])
    >>> SegmentedConv2d(64, 128, segments=(64, 32, 32)).segment_sizes
    (64, 32, 32)
    >>> separable = SegmentedConv2d(64, 128, segments="per_channel", order="spatial_first")
    >>> {name: tuple(weight.shape) for name, weight in separable.named_parameters()}
    {'spatial.weights.0': (64, 1, 3, 3), 'pointwise.weights.0': (128, 64, 1, 1)}
    >>> SegmentedConv2d(64, 128, segments=200)
    Traceback (most recent call last):
    ValueError: segments=200: more than the 128 channels; try 1 … 128 or "per_channel"
    """

    pads_first = False  # for modules that an earlier version stored
    clamped_options: tuple[str, ...] = ()  # options that ask for more segments than the layer has channels

    @property
    def normalises(self) -> bool:
        """Whether there is batch normalisation between the 1×1 and the spatial convolution."""
        return isinstance(self.between, nn.Sequential) and isinstance(self.between[0], BatchNormAct2d)

    @property
    def mid_channels(self) -> int:
        """Channels between the two convolutions."""
        runs, pointwise_first = self.spatial.geometry.runs, self.order == "pointwise_first"
        return sum(run.count * (run.in_size if pointwise_first else run.out_size) for run in runs)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair = 3,
        *,
        stride: int | Pair = 1,
        dilation: int | Pair = 1,
        padding: Literal["same", "tf_same"] | int | Pair = "same",
        segments: Segments = 1,
        order: Order = "pointwise_first",
        activation: str | nn.Module | type[nn.Module] | Callable[[Tensor], Tensor] | None = None,
        norm: bool = False,
        mid_channels: int | None = None,
        pointwise: bool = True,
        pointwise_segments: int = 1,
        shuffle: bool = False,
        bias: bool = False,
        backend: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # long: a third is the signature, and the order in which parts are made is that of a state_dict
        super().__init__()
        in_channels = whole("in_channels", in_channels, most=MOST_CHANNELS)
        out_channels = whole("out_channels", out_channels, most=MOST_CHANNELS)
        kernel_size, stride = pair("kernel_size", kernel_size), pair("stride", stride)
        dilation = pair("dilation", dilation)
        pointwise_segments = whole("pointwise_segments", pointwise_segments)
        choice("order", order, ORDERS)
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
        if isinstance(padding, str) and padding == "tf_same":
            self.pads_first, padding = not is_as_torchs(kernel_size, stride), "same"
        starts_on = torch.empty(0, **made).device
        of_spatial = choice_for(backend, prepare=starts_on.type == "cpu")
        self.spatial = GroupedConv2d(
            segment_runs(in_sizes, out_sizes),
            kernel_size,
            stride=stride,
            padding=(0, 0) if self.pads_first else padding_pixels(padding, kernel_size, dilation),
            dilation=dilation,
            choice=of_spatial,
            **made,
        )

        self.pointwise: GroupedConv2d | None = None
        self.between: nn.Module = nn.Identity()
        if pointwise:
            runs = segment_runs(*(segment_sizes(c, pointwise_segments) for c in pointwise_channels))
            self.pointwise = GroupedConv2d(runs, (1, 1), choice=Choice(of_spatial.name), **made)
            self.between = between(mid_channels, norm, activation, backend, made)

        # Two dense convolutions with nothing between them equal one convolution.
        has_nothing_between = pointwise and not norm and activation == "none"
        self.folds = has_nothing_between and self.segments == pointwise_segments == 1
        self.folds = self.folds and stride == (1, 1) and not self.pads_first

        self.shuffle: Tensor | None
        self.register_buffer("shuffle", None, persistent=False)
        if shuffle:
            self.shuffle = self._permutation(starts_on)
            self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

        self.bias = nn.Parameter(torch.empty(out_channels, **made)) if bias else None
        self._reset_bias()
        self.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SegmentedConv2d":
        """Apply `.to()`, `to_empty` and similar; recompute the permutation, since no state_dict has it."""
        self._compute_shuffle()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.shuffle is not None and not self.shuffle.is_meta:
            with torch.no_grad():
                self.shuffle.copy_(self._permutation(self.shuffle.device))
        return self

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Convolve (N, in_channels, H, W) to (N, out_channels, H', W'), in the input's layout; or both without N.

        Raises InputError for an input of the wrong shape or type.
        """
        if is_of_fx(x_nchw):  # torch's own operations take both shapes
            return self._forward(x_nchw)
        self._compute_shuffle()
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self._check(x_nchw)
        return self._forward(x_nchw) if x_nchw.dim() == 4 else self._forward(x_nchw.unsqueeze(0)).squeeze(0)

    def _forward(self, x_nchw: Tensor) -> Tensor:
        if self.pointwise is None:
            x_nchw = self._convolve(self.spatial, x_nchw)
        else:
            pointwise_first = self.order == "pointwise_first"
            first, second = (self.pointwise, self.spatial) if pointwise_first else (self.spatial, self.pointwise)
            if self.is_folded(x_nchw):
                x_nchw = self.spatial.folded(x_nchw, first.weights[0], second.weights[0])
            else:
                x_nchw = self.between(self._convolve(first, x_nchw))
                if self.shuffle is not None:
                    x_nchw = shuffled(x_nchw, self.shuffle)
                x_nchw = self._convolve(second, x_nchw)
        return x_nchw if self.bias is None else x_nchw + self.bias.view(-1, 1, 1)

    def is_folded(self, x_nchw: Tensor) -> bool:
        """Whether the 1×1 and the spatial convolution run as one for this input (N, in_channels, H, W)."""
        if not self.folds or self.pointwise is None:
            return False
        spatial, pointwise = self.spatial.weights[0], self.pointwise.weights[0]
        first, second = (pointwise, spatial) if self.order == "pointwise_first" else (spatial, pointwise)
        return worth_folding(self.spatial.choice.name, x_nchw, first, second)

    def _check(self, x_nchw: Any) -> None:
        if not isinstance(x_nchw, Tensor):
            raise InputError(f"input of type {type(x_nchw).__name__}: expected a torch.Tensor")
        if x_nchw.dim() not in (3, 4):
            raise InputError(
                f"input of shape {tuple(x_nchw.shape)}: expected (N, {self.in_channels}, H, W) or "
                f"({self.in_channels}, H, W)"
            )
        if x_nchw.shape[-3] != self.in_channels:
            raise InputError(
                f"input of shape {tuple(x_nchw.shape)}: has {x_nchw.shape[-3]} channels, expected "
                f"in_channels={self.in_channels}"
            )
        if x_nchw.dim() == 3 and self.normalises:
            raise InputError(
                f"input of shape {tuple(x_nchw.shape)}: norm=True needs a batch (N, C, H, W); give x.unsqueeze(0)"
            )
        weight = self.spatial.weights[0]
        if weight.is_meta and not x_nchw.is_meta:
            raise InputError(
                f'input on "{x_nchw.device}": the weights are on "meta" and have no numbers; '
                "load them with assign=True, or use to_empty and reset_parameters"
            )
        dtype = weight.dtype
        if x_nchw.dtype != dtype and not torch.is_autocast_enabled(x_nchw.device.type):
            raise InputError(
                f"input of type {x_nchw.dtype}: the weights are {dtype}; give x.to({dtype}), or convert the module"
            )

    def _convolve(self, conv: "GroupedConv2d", x_nchw: Tensor) -> Tensor:
        if self.pads_first and conv is self.spatial:
            g = conv.geometry
            x_nchw = pad_same(x_nchw, g.kernel_size, g.stride, g.dilation)
        y_nchw: Tensor = conv(x_nchw)
        return y_nchw

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, segments={self.segments}, order={self.order!r}"
        usual = _mid_channels(None, self.in_channels, self.out_channels, self.order, self.pointwise is not None)
        return text if self.mid_channels == usual else f"{text}, mid_channels={self.mid_channels}"


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
    module: SegmentedConv2d,
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
        errors.append(
            f"{prefix.removesuffix('.') or 'SegmentedConv2d'}: the state_dict has weights of another split "
            f"({_listed(theirs)}) than this layer's {module.segments} segments ({_listed(own)}), which do not carry "
            "over; to approximate a trained nn.Conv2d by segments, use segment_model(network, segments=…, "
            "init='from_trained')"
        )


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _after_loading(module: SegmentedConv2d, incompatible: Any) -> None:
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

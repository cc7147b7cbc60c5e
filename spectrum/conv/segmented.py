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

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrum.conv.any_axes import Makers, SegmentedConvNd
from spectrum.conv.arguments import Order, PaddingMode, Pair
from spectrum.conv.backends.choice import Choice, choice_for, worth_folding
from spectrum.conv.grouped import GroupedConv2d, GroupedConvNd
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.segments import Segments


class SegmentedConv2d(SegmentedConvNd):
    """A 1×1 and a spatial convolution, the latter separate in each of `segments` groups of channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the spatial kernel, or (height, width).
        stride: stride of the spatial convolution, one number or (vertical, horizontal); the 1×1 always has stride 1.
        dilation: dilation of the spatial convolution, one number or (vertical, horizontal).
        padding: padding of the spatial convolution. "same" adds dilation·(k−1)/2 pixels on each side. "tf_same" pads
            for ⌈H/stride⌉ outputs, an odd pixel at the bottom and the right, like "same" in Keras. Or a number of
            pixels (0 is "valid" in Keras), or (vertical, horizontal).
        padding_mode: values of the added pixels: "zeros", "reflect", "replicate" or "circular", as in `nn.Conv2d`.
            Keras has only zeros. Other values are added in a step of their own, before the spatial convolution.
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

    axes = 2
    spatial: GroupedConv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair = 3,
        *,
        stride: int | Pair = 1,
        dilation: int | Pair = 1,
        padding: Literal["same", "tf_same"] | int | Pair = "same",
        padding_mode: PaddingMode = "zeros",
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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            padding=padding,
            padding_mode=padding_mode,
            segments=segments,
            order=order,
            activation=activation,
            norm=norm,
            mid_channels=mid_channels,
            pointwise=pointwise,
            pointwise_segments=pointwise_segments,
            shuffle=shuffle,
            bias=bias,
            backend=backend,
            device=device,
            dtype=dtype,
        )

    def _makers(self, backend: str | None, device: Any, dtype: torch.dtype | None) -> Makers:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        choice = choice_for(backend, prepare=torch.empty(0, **made).device.type == "cpu")
        return Makers(
            spatial=partial(GroupedConv2d, choice=choice, **made),
            pointwise=partial(GroupedConv2d, choice=Choice(choice.name), **made),
            norm=lambda channels, relu: (BatchNormAct2d(channels, relu=relu, backend=backend, **made),),
        )

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Convolve (N, in_channels, H, W) to (N, out_channels, H', W'), in the input's layout; or both without N.

        Raises InputError for an input of the wrong shape or type.
        """
        return super().forward(x_nchw)

    def _both(self, x_nchw: Tensor, pointwise: GroupedConvNd) -> Tensor:
        if self.is_folded(x_nchw):
            return self.spatial.folded(x_nchw, *self._dense(pointwise))
        return super()._both(x_nchw, pointwise)

    def is_folded(self, x_nchw: Tensor) -> bool:
        """Whether the 1×1 and the spatial convolution run as one for this input (N, in_channels, H, W)."""
        if not self.folds or self.pointwise is None:
            return False
        return worth_folding(self.spatial.choice.name, x_nchw, *self._dense(self.pointwise))

    def _dense(self, pointwise: GroupedConvNd) -> tuple[Tensor, Tensor]:
        """The first weights of both convolutions, in the module's order."""
        of_pointwise, of_spatial = pointwise.weights[0], self.spatial.weights[0]
        return (of_pointwise, of_spatial) if self.order == "pointwise_first" else (of_spatial, of_pointwise)

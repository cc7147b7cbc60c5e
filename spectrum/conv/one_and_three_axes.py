"""The same operation for sequences (one spatial axis) and volumes (three).

Shapes: x_ncl is (N, C, L), x_ncdhw is (N, C, D, H, W).
"""

# Annotations are not strings here and in `spectrum.models`: modules traced by fx keep them, and are pickled with them.

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spectrum.conv.any_axes import Makers, SegmentedConvNd
from spectrum.conv.arguments import Order, PaddingMode
from spectrum.conv.grouped import GroupedConvNd
from spectrum.conv.segments import Segments

Triple = tuple[int, int, int]


class SegmentedConv1d(SegmentedConvNd):
    """A 1×1 and a convolution along a sequence, the latter separate in each of `segments` groups of channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: length of the spatial kernel.
        stride: stride of the spatial convolution; the 1×1 always has stride 1.
        dilation: dilation of the spatial convolution.
        padding: "same", which adds dilation·(k−1)/2 values on each side; "tf_same", which pads for ⌈L/stride⌉ outputs,
            an odd value at the end, like "same" in Keras; or a number of values.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular", as in `nn.Conv1d`.
        segments: number of segments of the spatial convolution, `"per_channel"`, or explicit sizes.
        order: `"pointwise_first"` or `"spatial_first"`.
        activation: non-linearity between the two convolutions: a name, a module, a class or a function.
        norm: whether to apply batch normalisation (`nn.BatchNorm1d`) between them, before the activation.
        mid_channels: channels between the two convolutions.
        pointwise: False leaves out the 1×1; with `segments=1` it is `nn.Conv1d`.
        pointwise_segments: number of segments of the 1×1 itself.
        shuffle: whether to interleave channels between the two convolutions; needs pointwise_segments > 1.
        bias: whether to add a per-channel bias to the output.
        device: device of parameters and buffers.
        dtype: type of parameters and buffers, floating-point or complex.

    Input (N, in_channels, L), output (N, out_channels, L'), or both without N. Defaults, limits, initialisation and
    the names in a state_dict are those of `SegmentedConv2d`, whose entry says more. There is no `backend`: torch
    computes these convolutions. Spatial-first and per-channel, it is `SeparableConv1D` of Keras.

    Raises ValueError with the argument's name and what would work. Calling it on an input of the wrong shape or type
    raises InputError, which is a ValueError and a RuntimeError.

    >>> conv = SegmentedConv1d(64, 128, segments="per_channel", order="spatial_first")
    >>> conv(torch.zeros(8, 64, 100)).shape
    torch.Size([8, 128, 100])
    >>> {name: tuple(weight.shape) for name, weight in conv.named_parameters()}
    {'spatial.weights.0': (64, 1, 3), 'pointwise.weights.0': (128, 64, 1)}
    """

    axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int] = 3,
        *,
        stride: int | tuple[int] = 1,
        dilation: int | tuple[int] = 1,
        padding: Literal["same", "tf_same"] | int | tuple[int] = "same",
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
            device=device,
            dtype=dtype,
        )

    def _makers(self, backend: str | None, device: Any, dtype: torch.dtype | None) -> Makers:
        return _makers_of(nn.BatchNorm1d, device, dtype)

    def forward(self, x_ncl: Tensor) -> Tensor:
        """Convolve (N, in_channels, L) to (N, out_channels, L'), or both without N.

        Raises InputError for an input of the wrong shape or type.
        """
        return super().forward(x_ncl)


class SegmentedConv3d(SegmentedConvNd):
    """A 1×1 and a spatial convolution of volumes, the latter separate in each of `segments` groups of channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: length of the spatial kernel, or (depth, height, width).
        stride: stride of the spatial convolution, or (depth, height, width); the 1×1 always has stride 1.
        dilation: dilation of the spatial convolution, or (depth, height, width).
        padding: "same", which adds dilation·(k−1)/2 values on each side; "tf_same", which pads for ⌈D/stride⌉ outputs,
            an odd value at the end, like "same" in Keras; or a number of values, or (depth, height, width).
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular", as in `nn.Conv3d`.
        segments: number of segments of the spatial convolution, `"per_channel"`, or explicit sizes.
        order: `"pointwise_first"` or `"spatial_first"`.
        activation: non-linearity between the two convolutions: a name, a module, a class or a function.
        norm: whether to apply batch normalisation (`nn.BatchNorm3d`) between them, before the activation.
        mid_channels: channels between the two convolutions.
        pointwise: False leaves out the 1×1; with `segments=1` it is `nn.Conv3d`.
        pointwise_segments: number of segments of the 1×1 itself.
        shuffle: whether to interleave channels between the two convolutions; needs pointwise_segments > 1.
        bias: whether to add a per-channel bias to the output.
        device: device of parameters and buffers.
        dtype: type of parameters and buffers, floating-point or complex.

    Input (N, in_channels, D, H, W), output (N, out_channels, D', H', W'), or both without N. Defaults, limits,
    initialisation and the names in a state_dict are those of `SegmentedConv2d`, whose entry says more. There is no
    `backend`: torch computes these convolutions, and chooses the output's memory layout. Keras has no separable
    convolution of volumes.

    Raises ValueError with the argument's name and what would work. Calling it on an input of the wrong shape or type
    raises InputError, which is a ValueError and a RuntimeError.

    >>> SegmentedConv3d(16, 32, (1, 3, 3), segments=3)(torch.zeros(2, 16, 8, 10, 10)).shape
    torch.Size([2, 32, 8, 10, 10])
    """

    axes = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        stride: int | Triple = 1,
        dilation: int | Triple = 1,
        padding: Literal["same", "tf_same"] | int | Triple = "same",
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
            device=device,
            dtype=dtype,
        )

    def _makers(self, backend: str | None, device: Any, dtype: torch.dtype | None) -> Makers:
        return _makers_of(nn.BatchNorm3d, device, dtype)

    def forward(self, x_ncdhw: Tensor) -> Tensor:
        """Convolve (N, in_channels, D, H, W) to (N, out_channels, D', H', W'), or both without N.

        Raises InputError for an input of the wrong shape or type.
        """
        return super().forward(x_ncdhw)


def _makers_of(batch_norm: type[nn.Module], device: Any, dtype: torch.dtype | None) -> Makers:
    """Makers of torch's convolutions and batch normalisation."""
    made: dict[str, Any] = {"device": device, "dtype": dtype}

    def norm(channels: int, relu: bool) -> tuple[nn.Module, ...]:
        normalised = batch_norm(channels, **made)
        return (normalised, nn.ReLU()) if relu else (normalised,)

    convolution = partial(GroupedConvNd, **made)
    return Makers(convolution, convolution, norm)

"""Keras' SeparableConv2D is the operation with one segment per channel, spatial-first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from spectrum import SegmentedConv2d

CASES = [  # kernel, stride, dilation; Keras has not both of the last two
    (3, 1, 1), (3, 2, 1), (3, 3, 1), (3, 1, 2), (3, 1, 3), (5, 1, 1), (5, 2, 1), (5, 1, 2), (2, 1, 1), (2, 2, 1),
    (4, 3, 1),
]  # fmt: skip


def both(keras: Any, kernel: int, stride: int, dilation: int, padding: str, bias: bool) -> tuple[Any, SegmentedConv2d]:
    """Keras' layer and ours with its weights."""
    theirs = keras.layers.SeparableConv2D(
        7, kernel, strides=stride, dilation_rate=dilation, padding=padding, use_bias=bias,
        bias_initializer="random_normal", data_format="channels_last",
    )  # fmt: skip
    theirs.build((None, None, None, 5))
    ours = SegmentedConv2d(
        5, 7, kernel, stride=stride, dilation=dilation, padding="tf_same" if padding == "same" else 0,
        segments="per_channel", order="spatial_first", bias=bias,
    )  # fmt: skip
    assert ours.pointwise is not None
    with torch.no_grad():
        ours.spatial.weights[0].copy_(theirs.depthwise_kernel.value.permute(2, 3, 0, 1))
        ours.pointwise.weights[0].copy_(theirs.pointwise_kernel.value.permute(3, 2, 0, 1))
        if ours.bias is not None:
            ours.bias.copy_(theirs.bias.value)
    return theirs, ours


@pytest.mark.medium
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(12, 12), (13, 10)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), CASES)
def test_outputs_and_gradients_are_those_of_keras(
    keras: Any, kernel: int, stride: int, dilation: int, padding: str, size: tuple[int, int], bias: bool
) -> None:
    theirs, ours = both(keras, kernel, stride, dilation, padding, bias)
    x_nchw = torch.randn(2, 5, *size, requires_grad=True)
    x_nhwc = x_nchw.detach().permute(0, 2, 3, 1).requires_grad_()
    y_nchw, y_nhwc = ours(x_nchw), theirs(x_nhwc)
    assert_close(y_nchw, y_nhwc.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(y_nchw)
    (y_nchw * weight).sum().backward()
    (y_nhwc * weight.permute(0, 2, 3, 1)).sum().backward()
    assert x_nchw.grad is not None and x_nhwc.grad is not None and ours.pointwise is not None  # noqa: PT018
    assert_close(x_nchw.grad, x_nhwc.grad.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    spatial, pointwise = theirs.depthwise_kernel.value.grad, theirs.pointwise_kernel.value.grad
    assert_close(ours.spatial.weights[0].grad, spatial.permute(2, 3, 0, 1), rtol=1e-4, atol=1e-4)
    assert_close(ours.pointwise.weights[0].grad, pointwise.permute(3, 2, 0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segments", [1, 3, "per_channel"])
@pytest.mark.parametrize("order", ["pointwise_first", "spatial_first"])
@pytest.mark.parametrize("kernel", [3, 4])
def test_padding_as_keras_has_it_needs_no_other_operation(segments: Any, order: Any, kernel: int) -> None:
    """With every segment and order, it is the operation without padding on an input of zeros around the same."""
    args = {"kernel_size": kernel, "stride": 2, "segments": segments, "order": order, "activation": "relu"}
    padded = SegmentedConv2d(6, 6, padding="tf_same", **args)
    bare = SegmentedConv2d(6, 6, padding=0, **args)
    bare.load_state_dict(padded.state_dict())
    x_nchw = torch.randn(2, 6, 8, 8)
    before, after = divmod(kernel - 2, 2)[0], kernel - 2 - (kernel - 2) // 2  # (8/2 − 1)·2 + k − 8 = k − 2
    around_nchw = torch.nn.functional.pad(x_nchw, (before, after, before, after))
    assert_close(padded(x_nchw), bare(around_nchw))
    assert padded(x_nchw).shape == (2, 6, 4, 4)


def test_on_odd_kernels_without_a_stride_both_kinds_of_same_are_one() -> None:
    assert SegmentedConv2d(4, 4, padding="tf_same").spatial.geometry == SegmentedConv2d(4, 4).spatial.geometry
    with pytest.raises(ValueError, match="tf_same"):
        SegmentedConv2d(4, 4, padding="valid")  # type: ignore[arg-type]


@pytest.mark.medium
@pytest.mark.parametrize("multiplier", [2, 3])
def test_an_inner_width_is_the_depth_multiplier_of_keras(keras: Any, multiplier: int) -> None:
    theirs = keras.layers.SeparableConv2D(
        7, 3, padding="same", depth_multiplier=multiplier, use_bias=False, data_format="channels_last"
    )
    theirs.build((None, None, None, 5))
    ours = SegmentedConv2d(5, 7, segments="per_channel", order="spatial_first", mid_channels=5 * multiplier)
    assert ours.pointwise is not None
    with torch.no_grad():  # kernel (3, 3, in, m): channel c·m + j of the middle is input c's j-th filter
        ours.spatial.weights[0].copy_(theirs.depthwise_kernel.value.permute(2, 3, 0, 1).reshape(-1, 1, 3, 3))
        ours.pointwise.weights[0].copy_(theirs.pointwise_kernel.value.permute(3, 2, 0, 1))
    x_nchw = torch.randn(2, 5, 9, 8)
    assert_close(ours(x_nchw), theirs(x_nchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)

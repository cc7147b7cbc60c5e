"""Infinities and NaN: where torch's own convolutions, one after another, have them, every lowering has them too."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d
from spectrum.conv import lowering
from spectrum.conv.kernels import ops
from spectrum.conv.lowering import CHOICES
from spectrum.conv.norm import BatchNormAct2d
from spectrum.models.blocks import PaddedMaxPool2d, every_pixel
from tests.conv import reference
from tests.conv.exact import LAYOUTS

INF, NAN = float("inf"), float("nan")
SPECIAL = (INF, -INF, NAN)
every_choice = pytest.mark.parametrize("choice", [*CHOICES, "library", "unbound"])


def assert_alike(ours, theirs, rtol=1e-3, atol=1e-3):
    """Infinities of one sign and NaN in the same places; the rest as near as float32 is."""
    for part, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(
            mine, other, rtol=rtol, atol=atol, equal_nan=True, msg=lambda said, part=part: f"part {part}: {said}"
        )


def set_some(tensor, places):
    """The tensor with some of its numbers replaced: (place, value) each, places counted round."""
    tensor = tensor.clone()  # keeps the layout
    for place, value in places:
        if tensor.numel():
            index = torch.unravel_index(torch.tensor(place % tensor.numel()), tensor.shape)
            tensor[index] = value
    return tensor


def chosen(module, choice):
    """The module with its lowerings chosen so; "unbound": kernels called from Python, as torch.compile does."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "lowering"):
            part.lowering = "auto" if choice == "unbound" else choice
    return module


def results(module, x_nchw, gy_nchw):
    """Output and all gradients."""
    x_nchw = x_nchw.detach().requires_grad_()
    y_nchw = module(x_nchw)
    gradients = torch.autograd.grad(y_nchw, [x_nchw, *module.parameters()], gy_nchw)
    return [y_nchw.detach(), *gradients]


def compare(module, choice, x_nchw, gy_nchw):
    with pytest.MonkeyPatch.context() as patch:
        if choice == "unbound":
            patch.setattr(ops, "_bound", lambda name: None)
        ours = results(chosen(module, choice), x_nchw, gy_nchw)
    assert_alike(ours, results(chosen(module, "native"), x_nchw, gy_nchw))


places = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from((*SPECIAL, 0.0))), max_size=3)


@st.composite
def spatial_halves(draw):
    """A spatial convolution alone: module, input, gradient of the output, with numbers that are not finite."""
    sizes = draw(
        st.lists(st.integers(1, 9), min_size=1, max_size=6)
        | st.lists(st.sampled_from([2, 3, 4]), max_size=9, min_size=2)
    )
    segments = draw(st.sampled_from([tuple(sizes), len(sizes), "per_channel", 1]))
    channels = sum(sizes)
    kernel = draw(st.sampled_from([3, 3, 3, 5, (1, 3), 1]))
    module = SegmentedConv2d(
        channels,
        channels,
        kernel,
        segments=segments,
        pointwise=False,
        stride=1 if kernel == 1 else draw(st.sampled_from([1, 1, 2, (2, 1), 3])),
        dilation=draw(st.sampled_from([1, 1, 2])),
        padding=draw(st.sampled_from(["same", "same", 0, 2, (1, 2), "tf_same"])),
        bias=draw(st.booleans()),
    )
    if draw(st.booleans()):
        module = module.to(memory_format=torch.channels_last)
    return draw_numbers(draw, module, st.integers(9, 12))


def draw_numbers(draw, module, side, least=1):
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    shape = draw(st.integers(least, 3)), module.in_channels, draw(side), draw(side)
    x_nchw = LAYOUTS[draw(st.sampled_from(["contiguous", "channels_last", "channels_last"]))](
        torch.randn(*shape, generator=generator)
    )
    y_nchw = chosen(module, "native")(x_nchw).detach()
    gy_nchw = set_some(
        torch.randn(y_nchw.shape, generator=generator).to(memory_format=torch.channels_last), draw(places)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(set_some(torch.randn(parameter.shape, generator=generator) / 3, draw(st.just([]) | places)))
    return module, set_some(x_nchw, draw(places)), gy_nchw


@every_choice
@settings(max_examples=60)
@given(case=spatial_halves())
def test_any_spatial_convolution_is_torchs_for_every_number(choice, case):
    compare(case[0], choice, *case[1:])


@st.composite
def operations(draw):
    in_channels, out_channels = draw(st.sampled_from([4, 6, 8, 12, 16])), draw(st.sampled_from([4, 8, 12, 16, 24]))
    order = draw(st.sampled_from(["pointwise_first", "spatial_first"]))
    pointwise_segments = draw(st.sampled_from([1, 1, 2, 3]))
    module = SegmentedConv2d(
        in_channels,
        out_channels,
        segments=draw(st.sampled_from([1, 1, 2, 3, 4])),
        order=order,
        padding=draw(st.sampled_from(["same", 0])),
        stride=draw(st.sampled_from([1, 1, 2])),
        pointwise_segments=pointwise_segments,
        shuffle=pointwise_segments > 1 and draw(st.booleans()),
        bias=draw(st.booleans()),
    )
    return draw_numbers(draw, module.to(memory_format=torch.channels_last), st.integers(9, 16))


@every_choice
@settings(max_examples=60)
@given(case=operations())
def test_any_operation_is_two_convolutions_for_every_number(choice, case):
    compare(case[0], choice, *case[1:])

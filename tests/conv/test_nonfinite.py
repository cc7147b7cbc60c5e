"""Every backend gives infinities and NaN where torch's own convolutions, one after another, give them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from spectrum import SegmentedConv2d
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.padding import pad_same
from spectrum.conv.seen import backends_seen
from spectrum.models.blocks import PaddedMaxPool2d, every_pixel
from tests.conv.exact import CHOICES, LAYOUTS, chosen, surroundings, without  # noqa: F401

INF, NAN = float("inf"), float("nan")
SPECIAL = (INF, -INF, NAN)
pytestmark = pytest.mark.usefixtures("surroundings")
# triton has its own tests, against float64: where a window reaches over the border it multiplies zeros, as the
# definition does, while torch on the CPU in channels_last leaves these products out and hides a NaN among the weights
every_choice = pytest.mark.parametrize(
    "choice", [*(name for name in CHOICES if name != "triton"), "library", "unbound"]
)


def assert_alike(ours, theirs, rtol=1e-3, atol=1e-3):
    """Infinities of one sign and NaN at the same indices; all other values within float32's accuracy."""
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


def results(module, x_nchw, gy_nchw):
    """Output and all gradients."""
    x_nchw = x_nchw.detach().requires_grad_()
    y_nchw = module(x_nchw)
    gradients = torch.autograd.grad(y_nchw, [x_nchw, *module.parameters()], gy_nchw)
    return [y_nchw.detach(), *gradients]


def compare(module, choice, x_nchw, gy_nchw):
    with without(choice):
        ours = results(chosen(module, choice), x_nchw, gy_nchw)
    assert_alike(ours, results(chosen(module, "native"), x_nchw, gy_nchw))


places = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from((*SPECIAL, 0.0))), max_size=3)


@st.composite
def spatial_halves(draw):
    """A plain 3×3: module, input, gradient of the output, with values that are not finite."""
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


@pytest.mark.medium
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


@pytest.mark.medium
@every_choice
@settings(max_examples=60)
@given(case=operations())
def test_any_operation_is_two_convolutions_for_every_number(choice, case):
    compare(case[0], choice, *case[1:])


# By hand: cases that revealed faults


def halves(segments, **options):
    """A spatial convolution of 8 channels, and an input and a gradient in channels_last."""
    torch.manual_seed(0)
    module = SegmentedConv2d(8, 8, segments=segments, pointwise=False, **options)
    x_nchw = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    y_nchw = module(x_nchw)
    return module, x_nchw, torch.randn_like(y_nchw)


@every_choice
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel_size": 5}], ids=str)
@pytest.mark.parametrize("value", SPECIAL)
def test_an_infinite_input_reaches_its_own_segment_only(choice, options, value):
    module, x_nchw, gy_nchw = halves(4, **options)
    x_nchw[0, 2, 4, 4] = value  # of the second segment, channels 2 and 3
    compare(module, choice, x_nchw, gy_nchw)
    y_nchw, gx_nchw, gw = results(chosen(module, choice), x_nchw, gy_nchw)
    reached = [c for c in range(8) if not y_nchw[:, c].isfinite().all()]
    assert reached == [2, 3]
    assert gx_nchw.isfinite().all()
    assert [o for o in range(8) if not gw[o].isfinite().all()] == [2, 3]


@every_choice
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel_size": 5}], ids=str)
@pytest.mark.parametrize("value", SPECIAL)
def test_an_infinite_gradient_reaches_its_own_segment_only(choice, options, value):
    module, x_nchw, gy_nchw = halves(4, **options)
    gy_nchw[1, 5, 0, 0] = value
    compare(module, choice, x_nchw, gy_nchw)
    _, gx_nchw, gw = results(chosen(module, choice), x_nchw, gy_nchw)
    assert [c for c in range(8) if not gx_nchw[:, c].isfinite().all()] == [4, 5]
    assert [o for o in range(8) if not gw[o].isfinite().all()] == [5]


@every_choice
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel_size": 5}], ids=str)
@pytest.mark.parametrize("value", SPECIAL)
def test_an_infinite_weight_reaches_its_own_output_only(choice, options, value):
    module, x_nchw, gy_nchw = halves(4, **options)
    with torch.no_grad():
        module.spatial.weights[0][3, 0, 0, 0] = value
    compare(module, choice, x_nchw, gy_nchw)
    y_nchw, gx_nchw, gw = results(chosen(module, choice), x_nchw, gy_nchw)
    assert [c for c in range(8) if not y_nchw[:, c].isfinite().all()] == [3]
    assert [c for c in range(8) if not gx_nchw[:, c].isfinite().all()] == [2]
    assert gw.isfinite().all()


@pytest.mark.parametrize("order", ["pointwise_first", "spatial_first"])
@pytest.mark.parametrize("where", ["input", "weight of the 1×1", "weight of the 3×3", "gradient"])
def test_infinities_that_cancel_between_the_halves_cancel_where_they_are_folded(order, where):
    """Infinities of opposite sign between the 1×1 and the 3×3 sum to NaN, although the folded kernel has one sign."""
    torch.manual_seed(0)
    module = SegmentedConv2d(4, 4, order=order)
    x_nchw = torch.randn(2, 4, 16, 16).to(memory_format=torch.channels_last)
    gy_nchw = torch.randn_like(x_nchw)
    with torch.no_grad():
        changed = {
            "input": x_nchw,
            "weight of the 1×1": module.pointwise.weights[0],
            "weight of the 3×3": module.spatial.weights[0],
            "gradient": gy_nchw,
        }[where]
        changed[0, 1, 0, 0] = INF
    compare(module, "auto", x_nchw, gy_nchw)
    own = chosen(module, "auto")
    with backends_seen(own) as seen:
        own(x_nchw)
    assert seen == {"": "folded"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_segments_that_lie_together_are_apart_in_every_type(dtype):
    module, x_nchw, gy_nchw = halves(4)
    module, x_nchw, gy_nchw = module.to(dtype), x_nchw.to(dtype), gy_nchw.to(dtype)
    x_nchw[0, 2, 4, 4] = INF
    own = chosen(module, "auto")
    assert_alike(results(own, x_nchw, gy_nchw), results(chosen(module, "native"), x_nchw, gy_nchw), rtol=0.05, atol=0.2)
    with backends_seen(own) as seen:
        own(x_nchw)
    assert seen == {"": "compiled" if dtype == torch.bfloat16 else "coalesced"}
    with torch.autocast("cpu", torch.bfloat16):
        y_nchw = chosen(module.float(), "auto")(x_nchw.float())
    assert [c for c in range(8) if not y_nchw[:, c].isfinite().all()] == [2, 3]


@pytest.mark.medium
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"segments": 1}], ids=str)
@pytest.mark.parametrize("special", [False, True])
def test_one_graph_of_torchs_compiler_has_the_same(options, special):
    torch.manual_seed(0)
    module = SegmentedConv2d(8, 8, **{"segments": 4} | options)
    x_nchw = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last)
    gy_nchw = torch.randn_like(module(x_nchw))
    if special:
        x_nchw[0, 2, 4, 4], gy_nchw[1, 5, 0, 0] = INF, NAN
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_alike(results(compiled, x_nchw, gy_nchw), results(chosen(module, "native"), x_nchw, gy_nchw))


def test_the_gradient_of_one_of_input_and_weights_alone_is_the_same():
    for options in ({}, {"stride": 2}, {"kernel_size": 5}):
        module, x_nchw, gy_nchw = halves(4, **options)
        gy_nchw[0, 0, 0, 0] = INF
        for which in ("input", "weights"):
            gradients = []
            for choice in ("auto", "native"):
                own = chosen(module, choice).requires_grad_(which == "weights")
                x = x_nchw.clone().requires_grad_(which == "input")
                wanted = [x] if which == "input" else list(own.parameters())
                gradients.append(torch.autograd.grad(own(x), wanted, gy_nchw))
            assert_alike(*gradients)


def test_a_batch_of_gradients_passes_what_lies_together():
    module, x_nchw, _ = halves(4, stride=2)
    x_nchw.requires_grad_()
    y_nchw = module(x_nchw)
    several = torch.randn(3, *y_nchw.shape)
    inputs = [x_nchw, *module.parameters()]
    together = torch.autograd.grad(y_nchw, inputs, several, is_grads_batched=True, retain_graph=True)
    for place, gy_nchw in enumerate(several):
        alone = torch.autograd.grad(y_nchw, inputs, gy_nchw, retain_graph=True)
        assert_alike([part[place] for part in together], alone)


# Batch normalisation with what follows it


@st.composite
def norms(draw):
    channels = draw(st.integers(1, 9))
    shape = draw(st.integers(2, 4)), channels, draw(st.integers(2, 7)), draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    module = BatchNormAct2d(channels, relu=draw(st.booleans()))

    def numbers(shape, offset=0.0):
        return set_some(torch.randn(shape, generator=generator) + offset, draw(st.just([]) | places))

    with torch.no_grad():
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            tensor.copy_(numbers(tensor.shape).abs() if tensor is module.running_var else numbers(tensor.shape))
    last = [numbers(shape).to(memory_format=torch.channels_last) for _ in range(3 if draw(st.booleans()) else 2)]
    return module, last


def normed(module, choice, tensors):
    module = chosen(module, choice)
    x_nchw, gy_nchw, *added = tensors
    inputs = [tensor.clone().requires_grad_() for tensor in (x_nchw, *added)]
    y_nchw = module(*inputs)
    gradients = torch.autograd.grad(y_nchw, [*inputs, *module.parameters()], gy_nchw)
    with torch.no_grad():
        evaluated = module.eval()(x_nchw, *added)
    return [y_nchw.detach(), *gradients, module.running_mean, module.running_var, evaluated]


@pytest.mark.medium
@pytest.mark.parametrize("choice", ["auto", "unbound"])
@settings(max_examples=100)
@given(case=norms())
def test_joined_normalisation_is_torchs_for_every_number(choice, case):
    module, tensors = case
    with without(choice):
        ours = normed(module, choice, tensors)
    assert_alike(ours, normed(module, "native", tensors))


# Pools and padding


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["tf_same", "torch"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(SPECIAL)), max_size=6),
)
def test_pools_are_those_of_a_padded_copy_for_every_number(height, width, padding, places):
    x_nchw = set_some(torch.randn(2, 3, height, width), places)
    if padding == "tf_same":
        padded = pad_same(x_nchw, (3, 3), (2, 2), value=-INF)
    else:
        padded = F.pad(x_nchw, (1, 1, 1, 1), value=-INF)
    pooled = PaddedMaxPool2d(3, 2, padding=padding)(x_nchw)
    assert_close(pooled, F.max_pool2d(padded, 3, 2), rtol=0, atol=0, equal_nan=True)
    assert_close(every_pixel(x_nchw, 2), x_nchw[:, :, ::2, ::2], rtol=0, atol=0, equal_nan=True)

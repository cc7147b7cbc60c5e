"""The operation against a slow definition of itself, and against each special case built from torch's own layers."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d
from tests.conv import reference
from tests.conv.exact import sizes_of

ORDERS = ("pointwise_first", "spatial_first")
DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
]


def with_gradients(function, x, parameters):
    """Output and gradients of a fixed random projection of it, with respect to input and parameters."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return (y.detach(), *torch.autograd.grad((y * projection).sum(), [x, *parameters]))


def assert_same(ours, theirs, x, parameters, their_parameters=None):
    for ours_part, theirs_part in zip(
        with_gradients(ours, x, parameters), with_gradients(theirs, x, their_parameters or parameters), strict=True
    ):
        assert_close(ours_part, theirs_part.reshape(ours_part.shape), rtol=1e-9, atol=1e-9)


@st.composite
def operations(draw):
    """A SegmentedConv2d in float64 with any arguments, and an input for it."""
    in_channels, out_channels = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    pointwise = draw(st.booleans())
    order = draw(st.sampled_from(ORDERS))
    kernel_size = draw(st.sampled_from([1, 3, 5, (1, 3), (3, 1)]))
    options = {
        "kernel_size": kernel_size,
        "stride": draw(st.sampled_from([1, 2, (1, 2)])),
        "dilation": draw(st.sampled_from([1, 2, (2, 1)])),
        "padding": draw(st.sampled_from(["same", 0, 1, (2, 1)])),
        "pointwise": pointwise,
        "order": order,
        "bias": draw(st.booleans()),
    }
    smaller = min(in_channels, out_channels)
    if pointwise:
        outer = (out_channels, in_channels) if order == "pointwise_first" else (in_channels, out_channels)
        mid = draw(st.none() | st.integers(1, 9))
        options["mid_channels"] = mid
        channels = outer[0] if mid is None else min(outer[0], mid)
        smaller = min(in_channels, out_channels) if mid is None else min(outer[1], mid)
        options["activation"] = draw(st.sampled_from([None, "none", "relu", "elu", "gelu", "silu"]))
        options["norm"] = draw(st.booleans())
        options["pointwise_segments"] = draw(st.integers(1, smaller))
        options["shuffle"] = options["pointwise_segments"] > 1 and draw(st.booleans())
    else:
        channels = smaller
    kind = draw(st.sampled_from(["count", "per_channel", "sizes"]))
    if kind == "sizes" and (options.get("mid_channels") is None if pointwise else in_channels == out_channels):
        options["segments"] = draw(sizes_of(channels))
    elif kind == "per_channel" and (pointwise or out_channels >= in_channels):
        options["segments"] = "per_channel"
    else:
        options["segments"] = draw(st.integers(1, channels))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    module = SegmentedConv2d(in_channels, out_channels, **options).double()
    side = st.integers(9, 12)  # no smaller than a dilated 5×5 kernel
    normed = any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    images = draw(st.integers(2 if normed else 1, 3))  # torch normalises no single value
    x = torch.randn(images, in_channels, draw(side), draw(side), dtype=torch.float64)
    return module, x


@pytest.mark.medium
@settings(max_examples=150)
@given(operations())
def test_any_operation_equals_its_slow_definition(case):
    module, x = case
    slow = copy.deepcopy(module)
    assert_same(
        module,
        lambda x: reference.segmented_conv2d(slow, x),
        x,
        list(module.parameters()),
        list(slow.parameters()),
    )


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_one_segment_bare_is_a_regular_convolution(in_channels, out_channels, stride, dilation):
    ours = SegmentedConv2d(in_channels, out_channels, pointwise=False, stride=stride, dilation=dilation, bias=True)
    theirs = nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation)
    theirs.load_state_dict({"weight": ours.spatial.weights[0], "bias": ours.bias})
    x = torch.randn(2, in_channels, 9, 7, dtype=torch.float64)
    ours, theirs = ours.double(), theirs.double()
    assert_same(ours, theirs, x, [ours.bias, ours.spatial.weights[0]], [theirs.bias, theirs.weight])


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(ORDERS))
def test_one_segment_is_a_1x1_and_a_regular_convolution(in_channels, out_channels, order):
    ours = SegmentedConv2d(in_channels, out_channels, order=order).double()
    between = out_channels if order == "pointwise_first" else in_channels
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False).double()
    spatial = nn.Conv2d(between, between, 3, padding=1, bias=False).double()
    pointwise.weight.data.copy_(ours.pointwise.weights[0])
    spatial.weight.data.copy_(ours.spatial.weights[0])
    halves = [pointwise, spatial] if order == "pointwise_first" else [spatial, pointwise]
    x = torch.randn(2, in_channels, 8, 8, dtype=torch.float64)
    assert_same(
        ours,
        nn.Sequential(*halves),
        x,
        [ours.pointwise.weights[0], ours.spatial.weights[0]],
        [pointwise.weight, spatial.weight],
    )


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2]))
def test_per_channel_spatial_first_is_a_depthwise_separable_convolution(in_channels, out_channels, stride):
    ours = SegmentedConv2d(
        in_channels, out_channels, segments="per_channel", order="spatial_first", stride=stride
    ).double()
    depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False).double()
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False).double()
    depthwise.weight.data.copy_(ours.spatial.weights[0])
    pointwise.weight.data.copy_(ours.pointwise.weights[0])
    x = torch.randn(2, in_channels, 8, 8, dtype=torch.float64)
    assert_same(
        ours,
        nn.Sequential(depthwise, pointwise),
        x,
        [ours.spatial.weights[0], ours.pointwise.weights[0]],
        [depthwise.weight, pointwise.weight],
    )


@pytest.mark.parametrize("segments", [3, (5, 4, 2)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_three_segments_are_three_inception_towers(segments, activation):
    """Each tower has its own 1×1 and 3×3; their outputs are concatenated (Chollet 2017, Fig. 2)."""
    ours = SegmentedConv2d(7, 11, segments=segments, activation=activation).double()
    kernels = reference.kernels_by_segment(ours.spatial)
    rows = ours.pointwise.weights[0].split([kernel.shape[0] for kernel in kernels])

    def towers(x):
        outputs = []
        for row, kernel in zip(rows, kernels, strict=True):
            hidden = nn.functional.conv2d(x, row)
            hidden = hidden.relu() if activation else hidden
            outputs.append(nn.functional.conv2d(hidden, kernel, padding=1))
        return torch.cat(outputs, dim=1)

    x = torch.randn(2, 7, 8, 8, dtype=torch.float64)
    assert_same(ours, towers, x, list(ours.parameters()))


@settings(max_examples=40)
@given(st.integers(1, 12).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))))
def test_any_segments_are_a_dense_convolution_with_a_block_diagonal_kernel(case):
    channels, segments = case
    ours = SegmentedConv2d(channels, channels, segments=segments, pointwise=False).double()

    def dense(x):
        kernel = reference.block_diagonal(reference.kernels_by_segment(ours.spatial))
        return nn.functional.conv2d(x, kernel, padding=1)

    x = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    assert_same(ours, dense, x, list(ours.parameters()))


def test_shuffle_lets_every_spatial_segment_see_every_segment_of_the_1x1():
    ours = SegmentedConv2d(8, 8, segments=4, pointwise_segments=2, shuffle=True)
    x = torch.zeros(1, 8, 3, 3)
    x[:, :4] = 1  # only the first segment of the 1×1 gets anything
    assert (ours(x).abs().amax(dim=(2, 3)) > 0).all()
    without = SegmentedConv2d(8, 8, segments=4, pointwise_segments=2)
    assert (without(x).abs().amax(dim=(2, 3)) > 0).sum() == 4


CASES = {
    "even": {"segments": 4},
    "uneven": {"segments": 3, "bias": True},
    "per channel": {"segments": "per_channel", "norm": True, "activation": "relu"},
    "shuffled": {"segments": 5, "pointwise_segments": 3, "shuffle": True, "activation": "gelu"},
    "spatial first": {"segments": 4, "order": "spatial_first", "stride": 2, "activation": "silu"},
    "bare": {"segments": 5, "pointwise": False, "activation": None},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


def build(options, seed=0):
    torch.manual_seed(seed)
    return SegmentedConv2d(12, 16, **options).eval()


@every_case
@pytest.mark.parametrize("device", DEVICES)
def test_channels_last_gives_the_same_and_stays_channels_last(options, device):
    module, x = build(options).to(device), torch.randn(2, 12, 8, 8).to(device)
    y = module.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_close(y, build(options).to(device)(x), rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


@every_case
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_computes_in_bfloat16(options, device):
    module, x = build(options).to(device), torch.randn(2, 12, 8, 8).to(device)
    with torch.autocast(device, torch.bfloat16):
        y = module(x)
    assert_close(y.float(), module(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    if module.bias is None:
        assert y.dtype == torch.bfloat16


@every_case
def test_a_state_dict_survives_the_way_through_a_file(options):
    module, other = build(options), build(options, seed=1)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 12, 8, 8)
    assert torch.equal(module(x), other(x))


@every_case
def test_export_gives_a_program_that_computes_the_same_for_any_batch(options):
    module, x = build(options), torch.randn(2, 12, 8, 8)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = torch.randn(5, 12, 8, 8)
    assert_close(program.module()(other), module(other))


@pytest.mark.medium
@every_case
def test_compile_gives_the_same_outputs_and_gradients(options):
    module, x = build(options), torch.randn(2, 12, 8, 8)
    compiled = torch.compile(module, fullgraph=True)
    parameters = list(module.parameters())
    for ours, theirs in zip(
        with_gradients(compiled, x, parameters), with_gradients(module, x, parameters), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_case
def test_an_empty_batch_is_a_batch(options):
    assert build(options)(torch.randn(0, 12, 8, 8)).shape[0] == 0


@pytest.mark.parametrize(("segments", "fan_in"), [(1, 9 * 64), (4, 9 * 16), ("per_channel", 9)])
def test_initial_weights_are_uniform_within_the_real_fan_in(segments, fan_in):
    torch.manual_seed(0)
    weight = SegmentedConv2d(64, 64, segments=segments).spatial.weights[0]
    bound = 1 / math.sqrt(fan_in)
    assert weight.abs().max() <= bound
    assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)


def test_initial_weights_are_distributed_like_those_of_conv2d():
    ours = SegmentedConv2d(64, 64, segments=4, pointwise=False).spatial.weights[0]
    theirs = nn.Conv2d(64, 64, 3, groups=4, bias=False).weight
    quantiles = torch.linspace(0, 1, 21)
    assert_close(ours.flatten().quantile(quantiles), theirs.flatten().quantile(quantiles), rtol=0, atol=0.005)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"segments": 0}, "segments=0"),
        ({"segments": -1}, "segments=-1"),
        ({"segments": 17}, "segments=17: more than the 16 channels"),
        ({"segments": 13, "pointwise": False}, "segments=13: more than the 12 channels"),
        ({"segments": (8, 9)}, "sum to 17, not to 16"),
        ({"segments": (5, 7), "pointwise": False}, "do not scale to 16"),
        ({"order": "spatial"}, "order='spatial': unknown; try 'pointwise_first'"),
        ({"activation": "rellu"}, "activation='rellu': unknown; try 'none', 'relu'"),
        ({"shuffle": True}, "shuffle=True: .* pointwise_segments > 1"),
        ({"pointwise_segments": 13}, "pointwise_segments=13: expected 1 … 12"),
        ({"pointwise_segments": 0}, "pointwise_segments=0"),
        ({"pointwise": False, "norm": True}, "norm: needs the 1×1"),
        ({"pointwise": False, "activation": "relu"}, "activation: needs the 1×1"),
        ({"pointwise": False, "pointwise_segments": 2}, "pointwise_segments: needs the 1×1"),
        ({"kernel_size": 2}, "even kernel_size"),
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"stride": 0}, "stride=0"),
        ({"dilation": (1, 2, 3)}, r"dilation=\(1, 2, 3\)"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": "valid"}, "padding='valid'"),
    ],
)
def test_wrong_arguments_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        SegmentedConv2d(12, 16, **arguments)


def test_a_bare_operation_cannot_be_per_channel_into_fewer_channels():
    with pytest.raises(ValueError, match='segments="per_channel": 16 inputs need as many outputs'):
        SegmentedConv2d(16, 12, pointwise=False, segments="per_channel")
    with pytest.raises(ValueError, match="in_channels=0"):
        SegmentedConv2d(0, 12)


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("SPECTRUM_BACKEND", "magic")
    with pytest.raises(ValueError, match="SPECTRUM_BACKEND=magic: no such backend; try 'auto', 'block_diagonal'"):
        SegmentedConv2d(4, 4)
    monkeypatch.setenv("SPECTRUM_BACKEND", " auto")
    with pytest.raises(ValueError, match="SPECTRUM_BACKEND=' auto': no such backend; did you mean 'auto'"):
        SegmentedConv2d(4, 4)


@pytest.mark.parametrize(("mid_channels", "segments"), [(4, "per_channel"), (12, "per_channel"), (7, 3), (20, 5)])
@pytest.mark.parametrize("order", ORDERS)
def test_an_inner_width_is_that_of_two_convolutions_of_torch(order, mid_channels, segments):
    ours = SegmentedConv2d(6, 10, segments=segments, order=order, mid_channels=mid_channels, activation="relu").double()
    first, second = ((6, mid_channels), (mid_channels, 10))
    inner = second if order == "pointwise_first" else first
    count = min(inner) if segments == "per_channel" else segments
    dense = reference.block_diagonal(reference.kernels_by_segment(ours.spatial))
    assert ours.segments == count
    assert dense.shape[:2] == inner[::-1]
    x, pointwise = torch.randn(2, 6, 8, 8, dtype=torch.float64), ours.pointwise.weights[0]
    if order == "pointwise_first":
        y = nn.functional.conv2d(nn.functional.conv2d(x, pointwise).relu(), dense, padding=1)
    else:
        y = nn.functional.conv2d(nn.functional.conv2d(x, dense, padding=1).relu(), pointwise)
    assert_close(ours(x), y)
    assert ours.mid_channels == mid_channels
    assert f"mid_channels={mid_channels}" in repr(ours)


def test_wrong_inner_widths_are_refused():
    for mid, said in ((0, "mid_channels=0: expected a whole"), ("8", "without quotes"), (2.5, "mid_channels=2.5")):
        with pytest.raises(ValueError, match=said):
            SegmentedConv2d(4, 4, mid_channels=mid)
    with pytest.raises(ValueError, match="mid_channels: needs the 1×1"):
        SegmentedConv2d(4, 4, mid_channels=8, pointwise=False)
    with pytest.raises(ValueError, match="segments=5: more than the 3 channels"):
        SegmentedConv2d(4, 8, mid_channels=3, segments=5)


@pytest.mark.parametrize(
    ("others", "shapes"),
    [
        (SegmentedConv2d(8, 8, segments=2), r"spatial\.weights\.0 \(8, 4, 3, 3\)"),
        (SegmentedConv2d(8, 8, segments=3), r"spatial\.weights\.0 \(6, 3, 3, 3\), spatial\.weights\.1 \(2, 2, 3, 3\)"),
    ],
)
def test_weights_of_another_split_are_refused_in_a_sentence_that_says_what_to_do(others, shapes):
    network = nn.Sequential(nn.ReLU(), SegmentedConv2d(8, 8, segments=4))
    said = (
        rf"1: the state_dict has weights of another split \({shapes}\) than this layer's 4 segments "
        rf"\(spatial\.weights\.0 \(8, 2, 3, 3\)\), which do not carry over; to approximate .* use segment_model\("
    )
    with pytest.raises(RuntimeError, match=said):
        network.load_state_dict(nn.Sequential(nn.ReLU(), others).state_dict())
    with pytest.raises(RuntimeError, match=said.replace("1: the", "SegmentedConv2d: the")):
        copy.deepcopy(network[1]).load_state_dict(others.state_dict())


def test_weights_of_the_same_split_or_of_a_part_are_loaded():
    one, other = SegmentedConv2d(8, 8, segments=3), SegmentedConv2d(8, 8, segments=3)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.spatial.weights[1], other.spatial.weights[1])
    part = {"spatial.weights.0": torch.zeros_like(other.spatial.weights[0])}
    one.load_state_dict(part, strict=False)
    assert not one.spatial.weights[0].any()
    with pytest.raises(RuntimeError, match="Missing key"):
        one.load_state_dict({"pointwise.weights.0": torch.zeros(8, 8, 1, 1)})

"""Every backend of a segmented convolution against its definition in float64, and the choice of backends."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from spectrum import SegmentedConv2d, measure_cost
from spectrum.conv import grouped
from spectrum.conv.backends import choice as choices
from spectrum.conv.backends.choice import BACKENDS, candidates, choose
from spectrum.conv.backends.coalesced import BlockDiagonal, Coalesced
from spectrum.conv.backends.derived import fold
from spectrum.conv.backends.interface import Geometry
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.segments import Run
from tests.conv import reference
from tests.conv.exact import (
    EVERY_CHOICE,
    LAYOUTS,
    assert_exact,
    doubled,
    function_of,
    noting_calls,
    sizes_of,
    threads,
    with_gradients,
    with_second_gradients,
    without,
)

ORDERS = ("pointwise_first", "spatial_first")
LAID_OUT = {name: LAYOUTS[name] for name in ("contiguous", "channels_last")}
every_choice = pytest.mark.parametrize("choice", EVERY_CHOICE)
every_order = pytest.mark.parametrize("order", ORDERS)
every_layout = pytest.mark.parametrize("arrange", LAID_OUT.values(), ids=LAID_OUT.keys())


class Definition(nn.Module):
    """A module's slow definition with its parameters."""

    def __init__(self, module):
        super().__init__()
        self.module = copy.deepcopy(module).double()

    def forward(self, x_nchw):
        return reference.segmented_conv2d(self.module, x_nchw)


def build(choice, *arguments, **options):
    """A SegmentedConv2d with this choice of backends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRUM_BACKEND", choice)
        return SegmentedConv2d(*arguments, **options)


def bare(choice, channels, segments, **options):
    return build(choice, channels, channels, segments=segments, pointwise=False, **options)


def images(*shape, layout="channels_last"):
    return LAYOUTS[layout](torch.randn(*shape, generator=torch.Generator().manual_seed(1)))


def inputs_of(module, x_nchw):
    return [x_nchw, *module.parameters()]


def assert_module_exact(module, x_nchw, gradients=with_gradients):
    inputs = inputs_of(module, x_nchw)
    exact = gradients(function_of(Definition(module)), doubled(inputs))
    n, c, h, w = x_nchw.shape
    terms = 4 * max(25 * max(c, module.out_channels), n * h * w)  # of the 1×1, the 3×3 and the activation
    if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        terms *= 16  # the gradient of what is normalised is a small difference of such sums
    assert_exact(gradients(function_of(module), inputs), exact, terms)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def used(monkeypatch):
    """The backends that 3×3s and 1×1s use from now on, in the order of their calls."""
    names = []

    def recording(name, function):
        return lambda *arguments: names.append(name) or function(*arguments)

    for name in candidates():
        monkeypatch.setattr(BACKENDS[name], "convolve", recording(name, BACKENDS[name].convolve))
    return names


@pytest.fixture
def folds(monkeypatch):
    """One entry per call of `fold`."""
    calls = []
    monkeypatch.setattr(grouped, "fold", lambda *weights: calls.append(weights) or fold(*weights))
    return calls


# The same function, whatever is chosen


@st.composite
def operations(draw):
    """Arguments of a SegmentedConv2d and an input. No ReLU: near its kink, float32 and float64 may differ."""
    in_channels, out_channels = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    pointwise, order = draw(st.booleans()), draw(st.sampled_from(ORDERS))
    options = {
        "kernel_size": draw(st.sampled_from([3, 3, 3, 1, 5, (1, 3), (3, 1)])),
        "stride": draw(st.sampled_from([1, 1, 1, 2, (1, 2)])),
        "dilation": draw(st.sampled_from([1, 1, 1, 2, (2, 1)])),
        "padding": draw(st.sampled_from(["same", "same", 0, 1, (2, 1), 3])),
        "pointwise": pointwise,
        "order": order,
        "bias": draw(st.booleans()),
    }
    if options["kernel_size"] == 1:
        # oneDNN's gradient of a strided 1×1 kernel over fewer than 16 channels_last channels writes past its workspace
        # (uxlfoundation/oneDNN issue 6035), and the process ends in an abort soon or later.
        options["stride"] = 1
    channels = smaller = min(in_channels, out_channels)
    if pointwise:
        channels = out_channels if order == "pointwise_first" else in_channels
        options["activation"] = draw(st.sampled_from([None, None, "gelu", "silu"]))
        options["norm"] = draw(st.booleans())
        options["pointwise_segments"] = draw(st.just(1) | st.integers(1, smaller))
        options["shuffle"] = options["pointwise_segments"] > 1 and draw(st.booleans())
    kind = draw(st.sampled_from(["count", "per_channel", "sizes", "one"]))
    if kind == "sizes" and (pointwise or in_channels == out_channels):
        options["segments"] = draw(sizes_of(channels))
    elif kind == "per_channel" and (pointwise or out_channels >= in_channels):
        options["segments"] = "per_channel"
    else:
        options["segments"] = 1 if kind == "one" else draw(st.integers(1, channels))
    fewest = 2 if options.get("norm") else 1  # torch normalises no single value
    shape = draw(st.integers(fewest, 3)), in_channels, draw(st.integers(9, 12)), draw(st.integers(9, 12))
    return (in_channels, out_channels), options, images(*shape, layout=draw(st.sampled_from(list(LAYOUTS))))


def away_from_zero(module):
    """Normalisation after small weights divides by a small deviation, and rounding with it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(parameter.sign() / 2)


@pytest.mark.medium
@every_choice
@settings(max_examples=50)
@given(case=operations(), memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_any_operation_is_exact_by_every_backend(choice, case, memory_format):
    channels, options, x_nchw = case
    torch.manual_seed(0)
    module = build(choice, *channels, **options).to(memory_format=memory_format)
    if options.get("norm"):
        away_from_zero(module)
    assert_module_exact(module, x_nchw)


@every_choice
@every_order
@pytest.mark.parametrize("layout", LAID_OUT)
def test_normalisation_joined_with_relu_between_the_halves_is_exact(choice, order, layout):
    module = build(choice, 12, 16, segments=4, order=order, norm=True, activation="relu")
    assert_module_exact(module, images(4, 12, 8, 8, layout=layout))


@every_choice
@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("segments", [4, 5, 16, (2, 2, 2, 10), (7, 9)])
def test_the_result_has_the_layout_of_the_input(choice, layout, segments):
    y_nchw = build(choice, 12, 16, segments=segments)(images(2, 12, 8, 8, layout=layout))
    assert y_nchw.stride() == LAYOUTS[layout](y_nchw).stride()


def test_the_result_of_folded_halves_has_the_layout_of_the_input(folds):
    y_nchw = build("auto", 12, 16)(images(2, 12, 8, 16, layout="contiguous"))
    assert folds
    assert y_nchw.is_contiguous()


@every_choice
@pytest.mark.parametrize("segments", [1, 4, "per_channel"])
def test_an_empty_batch_gives_an_empty_result_of_the_same_shape(choice, segments):
    assert build(choice, 12, 16, segments=segments)(images(0, 12, 8, 8)).shape == (0, 16, 8, 8)


@every_choice
@pytest.mark.parametrize("number", [1, 2])
def test_the_same_threads_give_the_same_bits(choice, number):
    module, x_nchw = build(choice, 24, 24, segments=(4, 4, 4, 3, 3, 6)), images(3, 24, 10, 9)
    with threads(number):
        first, second = (with_gradients(function_of(module), inputs_of(module, x_nchw)) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.medium
@every_choice
@pytest.mark.parametrize("segments", [1, 3, 4, (3, 3, 6, 4), "per_channel"])
def test_second_derivatives_are_exact(choice, segments):
    module = build(choice, 12, 16, segments=segments)
    assert_module_exact(module, images(2, 12, 5, 6), with_second_gradients)


@every_choice
def test_inference_mode_gives_the_same(choice):
    module, x_nchw = build(choice, 12, 16, segments=4), images(2, 12, 8, 8)
    with torch.inference_mode():
        y_nchw = module(x_nchw)
    assert torch.equal(y_nchw, module(x_nchw))


# Which backend is chosen

# channels, segments, options of the operation, layout: what auto, coalesced, compiled and auto without kernels choose
CHOSEN = {
    "4 channels a segment": (16, 4, {}, "channels_last", "compiled coalesced compiled coalesced"),
    "per channel": (16, "per_channel", {}, "channels_last", "compiled native compiled native"),
    "one segment": (16, 1, {}, "channels_last", "compiled native compiled native"),
    "32 channels a segment": (64, 2, {}, "channels_last", "compiled native compiled native"),
    "33 channels a segment": (66, 2, {}, "channels_last", "native native compiled native"),
    "one wide segment beside narrow ones": (
        44,
        (33, 4, 4, 3),
        {},
        "channels_last",
        "coalesced coalesced compiled coalesced",
    ),
    "no padding": (16, 4, {"padding": 0}, "channels_last", "compiled coalesced compiled coalesced"),
    "1 channel, planes": (16, 16, {}, "contiguous", "native native compiled native"),
    "2 channels, planes": (16, 8, {}, "contiguous", "compiled coalesced compiled native"),
    "4 channels, planes": (16, 4, {}, "contiguous", "compiled coalesced compiled native"),
    "8 channels, planes": (16, 2, {}, "contiguous", "compiled native compiled native"),
    "9 channels, planes": (18, 2, {}, "contiguous", "native native compiled native"),
    "stride 2": (16, 4, {"stride": 2}, "channels_last", "compiled coalesced compiled coalesced"),
    "stride (1, 2)": (16, 4, {"stride": (1, 2)}, "channels_last", "coalesced coalesced native coalesced"),
    "dilation 2": (16, 4, {"dilation": 2}, "channels_last", "compiled coalesced compiled coalesced"),
    "dilation 3": (16, 4, {"dilation": 3}, "channels_last", "coalesced coalesced native coalesced"),
    "5×5": (16, 4, {"kernel_size": 5}, "channels_last", "compiled coalesced compiled coalesced"),
    "7×7 with stride 2": (
        16,
        4,
        {"kernel_size": 7, "stride": 2},
        "channels_last",
        "compiled coalesced compiled coalesced",
    ),
    "9×9": (16, 4, {"kernel_size": 9}, "channels_last", "coalesced coalesced native coalesced"),
    "1×1": (16, 4, {"kernel_size": 1}, "channels_last", "compiled coalesced compiled coalesced"),
    "1×1, 33 channels": (66, 2, {"kernel_size": 1}, "channels_last", "native native native native"),
    "5×5, 1 channel": (16, 16, {"kernel_size": 5}, "channels_last", "compiled native compiled native"),
    "5×5, 1 channel, planes": (16, 16, {"kernel_size": 5}, "contiguous", "compiled native compiled native"),
    "stride 2, 1 channel": (16, 16, {"stride": 2}, "channels_last", "native native compiled native"),
    "5×5, 9 channels": (18, 2, {"kernel_size": 5}, "channels_last", "native native compiled native"),
    "stride and dilation 2, 16 channels": (
        32,
        2,
        {"stride": 2, "dilation": 2},
        "channels_last",
        "compiled native compiled native",
    ),
    "1×3": (16, 4, {"kernel_size": (1, 3)}, "channels_last", "coalesced coalesced native coalesced"),
    "padding 3": (16, 4, {"padding": 3}, "channels_last", "coalesced coalesced native coalesced"),
    "stride 2, 8 channels": (16, 2, {"stride": 2}, "channels_last", "compiled native compiled native"),
    "5×5, 8 channels": (16, 2, {"kernel_size": 5}, "channels_last", "compiled native compiled native"),
    "5×5, 8 channels, planes": (16, 2, {"kernel_size": 5}, "contiguous", "native native compiled native"),
    "stride 2, planes": (16, 4, {"stride": 2}, "contiguous", "compiled coalesced compiled native"),
    "stride 3, a prime number of segments": (14, 7, {"stride": 3}, "channels_last", "native native native native"),
    "stride 3, one run of two is narrow": (
        14,
        (2, 2, 10),
        {"stride": 3},
        "channels_last",
        "coalesced coalesced native coalesced",
    ),
}


@pytest.mark.parametrize("row", CHOSEN.values(), ids=CHOSEN.keys())
def test_the_backend_follows_from_shape_and_layout(row, used, monkeypatch):
    monkeypatch.setattr(choices, "maker", lambda: "AuthenticAMD")
    channels, segments, options, layout, expected = row
    x_nchw = images(2, channels, 9, 9, layout=layout)
    for choice in ("auto", "coalesced", "compiled"):
        bare(choice, channels, segments, **options)(x_nchw)
    geometry = bare("native", channels, segments, **options).spatial.geometry
    with without("library"):
        assert [*used, choose("auto", x_nchw, geometry)] == expected.split()
    assert choose("native", x_nchw, geometry) == "native"


@pytest.mark.parametrize(("maker", "widest"), [("AuthenticAMD", 32), ("GenuineIntel", 12), ("", 8), ("Another", 8)])
def test_the_guess_knows_two_makers_and_is_careful_with_others(maker, widest, monkeypatch):
    monkeypatch.setattr(choices, "maker", lambda: maker)
    for channels, expected in [(widest, "compiled"), (widest + 1, "native")]:
        geometry = Geometry((Run(2, channels, channels),), (3, 3), padding=(1, 1))
        assert choose("auto", images(2, 2 * channels, 9, 9, layout="channels_last"), geometry) == expected


@pytest.mark.parametrize(("segments", "expected"), [(4, "coalesced"), (2, "native")])
def test_float64_and_float16_are_the_librarys(segments, expected, used):
    module, x_nchw = bare("auto", 16, segments), images(2, 16, 9, 9)
    with torch.autocast("cpu", torch.float16):
        module(x_nchw)
    copy.deepcopy(module).double()(x_nchw.double())
    module.half()(x_nchw.half())
    assert used == 3 * [expected]


@pytest.mark.parametrize(("segments", "expected"), [(4, "compiled"), (2, "native")])
def test_narrow_segments_in_bfloat16_keep_their_kernels(segments, expected, used):
    module, x_nchw = bare("auto", 16, segments), images(2, 16, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x_nchw).dtype == torch.bfloat16
        assert module(x_nchw.bfloat16()).dtype == torch.bfloat16
    assert module.bfloat16()(x_nchw.bfloat16()).dtype == torch.bfloat16
    assert used == 3 * [expected]


@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "stride": 2}], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_rounded_once(options, autocast, layout):
    """The kernels compute in float32, so a result is bfloat16's nearest number to float32's, gradients included."""
    module, x_nchw = bare("compiled", 16, (4, 4, 4, 2, 2), **options), images(2, 16, 9, 9, layout=layout).bfloat16()
    module = module.bfloat16().float()  # weights that bfloat16 holds
    exact = with_gradients(function_of(module), inputs_of(module, x_nchw.float()))
    if not autocast:
        module.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = with_gradients(function_of(module), inputs_of(module, x_nchw))
    assert [part.dtype for part in ours[:2]] == 2 * [torch.bfloat16]
    assert torch.equal(ours[0], exact[0].bfloat16())
    for mine, true in zip(ours[1:], exact[1:], strict=True):  # of an output's gradient that was rounded
        assert_close(mine.float(), true, rtol=0.02, atol=0.02 * true.abs().max().item())


def test_infinite_weights_under_autocast_give_what_autocast_gives():
    module, x_nchw = bare("compiled", 16, 4), images(2, 16, 9, 9)
    with torch.no_grad():
        module.spatial.weights[0][3, 0, 0, 0] = torch.inf
    with torch.autocast("cpu", torch.bfloat16):
        y_nchw = module(x_nchw)
    exact = module(x_nchw)
    assert y_nchw.dtype == torch.bfloat16
    assert torch.equal(y_nchw.isfinite(), exact.isfinite())
    assert not exact.isfinite().all()


@pytest.mark.medium
@every_choice
@pytest.mark.parametrize("segments", [1, 4, 16])
def test_what_traces_or_counts_sees_the_librarys_convolutions(choice, segments, used):
    module, x_nchw = build(choice, 16, 16, segments=segments), images(2, 16, 9, 9)
    with FlopCounterMode(display=False):
        module(x_nchw).sum().backward()
    torch.jit.trace(module, x_nchw, check_trace=False)  # the check is a call that nothing traces
    torch.export.export(module, (x_nchw,))
    measure_cost(module, (16, 9, 9))
    with FakeTensorMode():
        build(choice, 16, 16, segments=segments)(images(2, 16, 9, 9))
    assert set(used) == {"native"}


def test_segments_lie_together_in_the_widest_group_that_divides_their_number():
    x_nchw = images(1, 48, 4, 4)
    for count, size, expected in [
        (8, 2, "coalesced"),
        (6, 2, "coalesced"),
        (5, 2, "native"),
        (9, 3, "coalesced"),
        (4, 3, "coalesced"),
        (7, 3, "native"),
        (3, 4, "native"),
        (4, 4, "coalesced"),
        (4, 1, "native"),
        (4, 5, "native"),
        (1, 2, "native"),
    ]:
        geometry = Geometry((Run(count, size, size),), (3, 3), (3, 3), (1, 1))
        assert choose("auto", x_nchw, geometry) == expected, (count, size)


# Counters and exporters


def macs_by_hand(module, pixels):
    return pixels * sum(weight.numel() for weight in module.parameters())


@every_choice
@every_order
@pytest.mark.parametrize("segments", [1, 3, 4, 16])
def test_macs_do_not_depend_on_the_backend(choice, order, segments):
    module, plain = (build(name, 16, 16, segments=segments, order=order) for name in (choice, "native"))

    def operations_with_gradients(module):
        with FlopCounterMode(display=False) as counter:
            y_nchw = module(images(2, 16, 9, 9))
            forward = counter.get_total_flops()
            y_nchw.sum().backward()
        return forward, counter.get_total_flops()

    counted = operations_with_gradients(module)
    assert counted == operations_with_gradients(plain)
    assert counted[0] == 2 * macs_by_hand(module, 2 * 81)
    assert measure_cost(module, (16, 9, 9)) == measure_cost(plain, (16, 9, 9))
    assert measure_cost(module, (16, 9, 9)).macs == macs_by_hand(module, 81)


@every_choice
@pytest.mark.parametrize("segments", [1, 4, 16])
def test_an_exported_program_has_torchs_convolutions_only(choice, segments):
    module, x_nchw = build(choice, 16, 16, segments=segments), images(2, 16, 9, 9)
    program = torch.export.export(module, (x_nchw,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == 2 * [torch.ops.aten.conv2d.default]
    assert_exact([program.module()(x_nchw)], [Definition(module)(x_nchw.double())], 9 * 16)


@every_choice
@pytest.mark.parametrize("segments", [1, 4, 16])
def test_a_trace_has_torchs_convolutions_only(choice, segments):
    module, x_nchw = build(choice, 16, 16, segments=segments), images(2, 16, 9, 9)
    traced = torch.jit.trace(module, x_nchw)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("aten::_convolution") == 2
    assert not [kind for kind in kinds if kind.split("::")[0] not in ("aten", "prim") or kind == "prim::PythonOp"]
    assert_exact([traced(x_nchw)], [Definition(module)(x_nchw.double())], 9 * 16)


# torch.compile


@pytest.mark.parametrize("segments", [4, (5, 5, 2, 4)])
def test_one_graph_holds_the_compiled_kernels(segments):
    module, x_nchw = build("compiled", 12, 16, segments=segments), images(2, 12, 8, 8)
    backend, called = noting_calls()
    assert_compiles(module, x_nchw, backend)
    assert [name for name in called if "segmented_conv2d" in name]


@pytest.mark.medium
@pytest.mark.parametrize("segments", [1, 4, (5, 5, 2, 4)])
@pytest.mark.parametrize("layout", LAID_OUT)
def test_compiling_changes_nothing(segments, layout):
    """Also where the 1×1 and the 3×3 are one convolution, with one segment."""
    assert_compiles(build("auto", 12, 16, segments=segments), images(2, 12, 8, 8, layout=layout), "inductor")


def assert_compiles(module, x_nchw, backend):
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    parameters = list(module.parameters())
    x_nchw.requires_grad_()
    y_nchw = compiled(x_nchw)
    gy = torch.randn(y_nchw.shape, generator=torch.Generator().manual_seed(0))
    ours = (y_nchw.detach(), *torch.autograd.grad(y_nchw, [x_nchw, *parameters], gy))
    exact = with_gradients(function_of(Definition(module)), doubled([x_nchw, *parameters]))
    assert_exact(ours, exact, 1000)


# Folding: the 1×1 and the 3×3 as one convolution


@pytest.mark.medium
@every_order
@pytest.mark.parametrize("channels", [(4, 32), (32, 4), (16, 16)])
@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 0}, {"padding": 1}, {"kernel_size": 5, "bias": True}, {"kernel_size": (1, 3)}, {"dilation": 2}],
)
def test_one_convolution_in_place_of_two_is_exact(order, channels, layout, options, folds):
    module = build("auto", *channels, order=order, **options)
    assert_module_exact(module, images(6, channels[0], 10, 9, layout=layout))
    assert bool(folds) == (channels != ((32, 4) if order == "pointwise_first" else (4, 32)))


@pytest.mark.parametrize("channels", [(4, 32), (16, 16)])
def test_second_derivatives_through_a_folded_convolution_are_exact(channels, folds):
    assert_module_exact(build("auto", *channels), images(2, channels[0], 10, 9), with_second_gradients)
    assert folds


@pytest.mark.parametrize("choice", ["auto", "coalesced", "compiled"])
@pytest.mark.parametrize(
    ("order", "in_channels", "out_channels", "side", "expected"),
    [
        ("pointwise_first", 4, 32, 16, True),  # 9·4·32 products a pixel in place of 4·32 + 9·32·32
        ("pointwise_first", 32, 4, 16, False),  # 9·4·32 in place of 4·32 + 9·4·4
        ("spatial_first", 32, 4, 16, True),
        ("spatial_first", 4, 32, 16, False),
        ("pointwise_first", 16, 16, 16, True),  # 9·16·16 in place of 10·16·16
        ("pointwise_first", 16, 16, 12, False),  # folding itself takes 9·16³, more than 144 pixels save
        ("pointwise_first", 16, 16, 13, True),
    ],
)
def test_halves_are_folded_where_that_takes_less(choice, order, in_channels, out_channels, side, expected, folds):
    build(choice, in_channels, out_channels, order=order)(images(1, in_channels, side, side))
    assert len(folds) == (expected and choice == "auto")  # who names a backend gets that one


@pytest.mark.parametrize(
    "options",
    [
        {"norm": True},
        {"activation": "relu"},
        {"activation": "silu"},
        {"segments": 2},
        {"segments": "per_channel"},
        {"stride": 2},
        {"stride": (1, 2)},
        {"pointwise_segments": 2},
        {"pointwise_segments": 2, "shuffle": True},
        {"pointwise": False},
    ],
    ids=str,
)
def test_halves_with_something_between_them_are_not_folded(options, folds):
    build("auto", 4, 32, **options)(images(2, 4, 16, 16))
    assert not folds


def test_nothing_is_folded_natively_or_under_a_counter(folds):
    x_nchw = images(2, 4, 16, 16)
    build("native", 4, 32)(x_nchw)
    module = build("auto", 4, 32)
    with FlopCounterMode(display=False):
        module(x_nchw)
    torch.jit.trace(module, x_nchw, check_trace=False)  # the check is a call that nothing traces
    torch.export.export(module, (x_nchw,))
    measure_cost(module, (4, 16, 16))
    assert not folds
    module(x_nchw)
    assert folds


def test_folding_leaves_parameters_and_state_as_they_are(folds):
    module, plain = build("auto", 4, 32, bias=True), build("native", 4, 32, bias=True)
    before = copy.deepcopy(module.state_dict())
    module(images(2, 4, 16, 16)).sum().backward()
    assert folds
    assert list(module.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is not None for parameter in module.parameters())
    plain.load_state_dict(module.state_dict())
    x_nchw = images(2, 4, 16, 16)
    assert_exact([module(x_nchw)], [plain(x_nchw)], 9 * 32)


# Coalescing: several segments in one group


@pytest.mark.parametrize("backend", [Coalesced(), BlockDiagonal()], ids=["some together", "all together"])
@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize(
    "runs",
    [
        (Run(8, 2, 2),),
        (Run(6, 3, 3),),
        (Run(4, 4, 4),),
        (Run(7, 2, 2),),
        (Run(5, 3, 3),),
        (Run(1, 2, 2),),
        (Run(6, 2, 3),),
        (Run(4, 3, 1),),
        (Run(3, 4, 4), Run(4, 3, 3)),
        (Run(2, 4, 4), Run(2, 9, 9), Run(5, 1, 1)),
    ],
    ids=str,
)
def test_joined_segments_are_a_convolution_with_a_block_diagonal_kernel(runs, layout, backend):
    """Gradients too: they reach the blocks and nothing between them."""
    geometry = Geometry(runs, (3, 3), (2, 1), (1, 2), (1, 2))
    x_nchw = images(2, sum(run.count * run.in_size for run in runs), 8, 9, layout=layout)
    weights = [torch.randn(run.count * run.out_size, run.in_size, 3, 3) for run in runs]

    def dense(x_nchw, *weights):
        kernels = [k for run, weight in zip(runs, weights, strict=True) for k in weight.split(run.out_size)]
        kernel = reference.block_diagonal(kernels)
        return F.conv2d(x_nchw, kernel, None, geometry.stride, geometry.padding, geometry.dilation)

    inputs = [x_nchw, *weights]
    ours = with_gradients(lambda x, *weights: backend.convolve(x, weights, geometry), inputs)
    assert_exact(ours, with_gradients(dense, doubled(inputs)), 2 * 8 * 9)
    ours = with_second_gradients(lambda x, *weights: backend.convolve(x, weights, geometry), inputs)
    assert_exact(ours, with_second_gradients(dense, doubled(inputs)), 4 * 2 * 8 * 9)


# What cannot be convolved, and what else torch can do with a convolution


@pytest.mark.parametrize("choice", ["native", "auto"])
def test_weights_of_another_type_than_the_input_are_refused(choice):
    with pytest.raises(RuntimeError):
        bare(choice, 16, 4).double()(images(2, 16, 8, 8))


@pytest.mark.parametrize("choice", ["native", "auto"])
def test_an_input_with_other_channels_is_refused(choice):
    with pytest.raises(RuntimeError):
        bare(choice, 16, 4)(images(2, 12, 8, 8))


@pytest.mark.parametrize("choice", ["native", "auto"])
def test_an_image_without_room_for_the_kernel_is_refused(choice):
    with pytest.raises(RuntimeError):
        bare(choice, 16, 4, padding=0)(images(2, 16, 2, 8))


def test_an_empty_batch_gives_gradients_of_zero():
    module = bare("auto", 16, 4)
    torch.use_deterministic_algorithms(True)  # what is not written is then not a number
    try:
        module(images(0, 16, 8, 8)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert (module.spatial.weights[0].grad == 0).all()


TRANSFORMS = {
    "grad": lambda module, x: torch.func.grad(lambda x: module(x).pow(2).sum())(x),
    "vmap": lambda module, x: torch.func.vmap(lambda one: module(one))(x.unsqueeze(1)),
    "jvp": lambda module, x: torch.func.jvp(module, (x,), (x,))[1],
}


@pytest.mark.parametrize("choice", EVERY_CHOICE)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_torchs_function_transforms_work(choice, transform, is_compiled):
    module, x_nchw = bare(choice, 16, 4), images(2, 16, 8, 8)
    torch._dynamo.reset()

    def transformed(x_nchw):
        return transform(module, x_nchw)

    exact = transform(copy.deepcopy(module).double(), x_nchw.double())
    run = torch.compile(transformed, fullgraph=True, backend="aot_eager") if is_compiled else transformed
    assert_exact([run(x_nchw)], [exact], 9 * 16)


# What torch does to tensors behind one's back


def modules_and_inputs():
    x_nchw = torch.randn(2, 12, 5, 4).contiguous(memory_format=torch.channels_last)
    return [(SegmentedConv2d(12, 12, segments=4, pointwise=False), x_nchw), (BatchNormAct2d(12, relu=True), x_nchw)]


@pytest.mark.parametrize("which", [0, 1], ids=["convolution", "norm"])
def test_a_tensor_that_is_only_marked_as_negative_is_negative(which):
    module, x_nchw = modules_and_inputs()[which]
    torch.testing.assert_close(module(torch._neg_view(x_nchw)), module(-x_nchw))
    x_nchw.requires_grad_()
    y_nchw = module(x_nchw)
    gy_nchw = torch.randn_like(y_nchw)
    inputs = [x_nchw, *module.parameters()]
    marked = torch.autograd.grad(y_nchw, inputs, torch._neg_view(gy_nchw), retain_graph=True)
    torch.testing.assert_close(marked, torch.autograd.grad(y_nchw, inputs, -gy_nchw))


@pytest.mark.parametrize("which", [0, 1], ids=["convolution", "norm"])
def test_a_batch_of_gradients_is_that_of_each(which):
    module, x_nchw = modules_and_inputs()[which]
    x_nchw.requires_grad_()
    y_nchw = module(x_nchw)
    several = torch.randn(3, *y_nchw.shape)
    (together,) = torch.autograd.grad(y_nchw, x_nchw, several, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y_nchw, x_nchw, gy_nchw, retain_graph=True)[0] for gy_nchw in several]
    torch.testing.assert_close(together, torch.stack(one_by_one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1], ids=["convolution", "norm"])
def test_forward_mode_differentiation_is_torchs_own(which):
    module, x_nchw = modules_and_inputs()[which]
    tangent = torch.randn_like(x_nchw)
    with torch.autograd.forward_ad.dual_level():
        y_nchw = module(torch.autograd.forward_ad.make_dual(x_nchw, tangent))
        forward = torch.autograd.forward_ad.unpack_dual(y_nchw).tangent
    double = copy.deepcopy(module).double()
    _, exact = torch.autograd.functional.jvp(double, x_nchw.double(), tangent.double())
    torch.testing.assert_close(forward.double(), exact, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_relu_passes_what_is_not_a_number_as_torchs_does():
    ours, x_nchw = modules_and_inputs()[1]
    plain = torch.nn.Sequential(torch.nn.BatchNorm2d(12))
    for broken in (0, 1):
        gradients = []
        for function in (ours, lambda x, added: torch.relu(plain(x) + added)):
            inputs = [x_nchw.clone(), torch.zeros_like(x_nchw)]
            inputs[broken][0, 0, 0, 0] = float("nan")
            inputs = [tensor.requires_grad_() for tensor in inputs]
            gradients.append(torch.autograd.grad(function(*inputs).sum(), inputs))
        torch.testing.assert_close(*gradients, equal_nan=True, rtol=1e-4, atol=1e-4)

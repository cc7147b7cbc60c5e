"""The operation accepts what torch's own layers accept, with the same effects: arguments, inputs, fx, meta, copies."""

import copy
import functools
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d, build_model
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.seen import backends_seen
from tests.conv.exact import EVERY_CHOICE, chosen, surroundings  # noqa: F401
from tests.conv.test_nonfinite import results

CASES = {
    "plain": {},
    "one segment": {"segments": 1},
    "even": {"segments": 4, "bias": True},
    "uneven, strided": {"segments": 3, "stride": 2},
    "per channel": {"segments": "per_channel", "activation": "relu"},
    "shuffled": {"segments": 5, "pointwise_segments": 3, "shuffle": True, "activation": "gelu"},
    "spatial first": {"segments": 4, "order": "spatial_first", "stride": 2, "activation": "silu"},
    "shuffled, spatial first": {"pointwise_segments": 3, "shuffle": True, "order": "spatial_first"},
    "padded as TensorFlow": {"segments": 4, "padding": "tf_same", "stride": 2},
    "bare": {"segments": 5, "pointwise": False, "bias": True},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
every_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "last"])


def build(**options):
    torch.manual_seed(0)
    return SegmentedConv2d(12, 16, **options)


def images(*shape, layout=torch.channels_last):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)


pytestmark = pytest.mark.usefixtures("surroundings")

# One image without a batch


@pytest.mark.parametrize("choice", [*EVERY_CHOICE, "library"])
@every_case
def test_one_image_gives_what_it_gives_in_a_batch_of_one(choice, options):
    module, x_nchw = chosen(build(**options), choice), images(1, 12, 9, 8)
    y_nchw = module(x_nchw)
    assert_close(module(x_nchw[0]), y_nchw[0], rtol=1e-4, atol=1e-5)
    gy_nchw = torch.randn_like(y_nchw)
    batch, alone = results(module, x_nchw, gy_nchw), results(module, x_nchw[0], gy_nchw[0])
    assert_close([part[0] for part in batch[:2]] + batch[2:], alone, rtol=1e-4, atol=1e-4)


def test_one_segment_bare_takes_one_image_as_conv2d_does():
    ours, theirs = SegmentedConv2d(3, 5, pointwise=False), nn.Conv2d(3, 5, 3, padding=1, bias=False)
    theirs.weight = ours.spatial.weights[0]
    x_chw = torch.randn(3, 8, 8)
    assert_close(ours(x_chw), theirs(x_chw))


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("training", [True, False])
def test_one_image_is_refused_where_a_batch_is_normalised(activation, training):
    module = build(norm=True, activation=activation).train(training)
    with pytest.raises(RuntimeError, match=r"\(12, 8, 8\): norm=True needs a batch .* give x.unsqueeze\(0\)"):
        module(torch.randn(12, 8, 8))


# Inputs


@every_case
@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(12, 8), r"shape \(12, 8\): expected \(N, 12, H, W\) or \(12, H, W\)"),
        (torch.zeros(12), r"shape \(12,\): expected"),
        (torch.zeros(()), r"shape \(\): expected"),
        (torch.zeros(1, 1, 12, 8, 8), r"shape \(1, 1, 12, 8, 8\): expected"),
        (torch.zeros(2, 8, 8, 12), r"shape \(2, 8, 8, 12\): has 8 channels, expected in_channels=12"),
        (torch.zeros(8, 8, 12), r"shape \(8, 8, 12\): has 8 channels"),
        (torch.zeros(2, 12, 8, 8, dtype=torch.int64), r"type torch.int64: the weights are torch.float32; give x.to\("),
        (torch.zeros(2, 12, 8, 8, dtype=torch.uint8), r"type torch.uint8"),
        (torch.zeros(2, 12, 8, 8, dtype=torch.bool), r"type torch.bool"),
        (torch.zeros(2, 12, 8, 8, dtype=torch.float64), r"type torch.float64: the weights are torch.float32"),
        (torch.zeros(2, 12, 8, 8, dtype=torch.complex64), r"type torch.complex64"),
    ],
    ids=lambda value: f"{value.dtype}{tuple(value.shape)}" if isinstance(value, torch.Tensor) else "",
)
def test_an_input_of_another_shape_or_type_is_named(options, x, says):
    for kind in (RuntimeError, ValueError):  # as torch's own, and as all of this package's
        with pytest.raises(kind, match=says):
            build(**options)(x)


@pytest.mark.parametrize("choice", [*EVERY_CHOICE, "library"])
@settings(max_examples=30)
@given(
    st.integers(0, 2),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([3, 1]),
)
def test_an_input_without_images_or_pixels_is_as_in_conv2d(choice, count, height, width, padding, stride, kernel):
    """An empty result, zeros, or torch's own refusal."""
    module = chosen(SegmentedConv2d(8, 8, kernel, segments=4, pointwise=False, padding=padding, stride=stride), choice)
    x_nchw = torch.randn(count, 8, height, width).to(memory_format=torch.channels_last).requires_grad_()
    weight = module.spatial.weights[0]

    def both(function):
        y_nchw = function(x_nchw)
        return [y_nchw.detach(), *torch.autograd.grad(y_nchw.sum(), [x_nchw, weight])]

    try:
        theirs = both(lambda x: F.conv2d(x, weight, None, stride, padding, 1, 4))
    except RuntimeError:
        with pytest.raises(RuntimeError):
            both(module)
    else:
        assert_close(both(module), theirs, rtol=1e-4, atol=1e-4)


def test_complex_numbers_are_convolved_as_torch_does():
    module = build(segments=4, dtype=torch.complex64)
    x_nchw = torch.randn(2, 12, 8, 8, dtype=torch.complex64).to(memory_format=torch.channels_last)
    between = F.conv2d(x_nchw, module.pointwise.weights[0])
    assert_close(module(x_nchw), F.conv2d(between, module.spatial.weights[0], padding=1, groups=4))


# Arguments

NUMPY = {
    "kernel_size": (np.int64(3), [3, 3], np.array([3, 3])),
    "stride": (np.int32(1), [1, 1], (np.int64(1), 1)),
    "dilation": (np.int64(1), [1, 1]),
    "padding": (np.int64(1), [1, 1], np.array([1, 1])),
    "segments": (np.int64(4), np.uint8(4), [4, 4, 4, 4], np.array([4, 4, 4, 4]), (np.int64(4),) * 4),
    "pointwise_segments": (np.int64(1),),
    "bias": (np.bool_(False),),
    "norm": (np.False_,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NUMPY.items() for value in values])
def test_numbers_of_numpy_and_lists_are_taken_as_pythons_own(name, value):
    plain = {"segments": 4}
    ours = build(**plain | {name: value})
    assert repr(ours) == repr(build(**plain))
    pickled = pickle.dumps(ours)
    assert b"numpy" not in pickled.replace(b"numpy_", b"")
    assert_close(list(ours.parameters()), list(build(**plain).parameters()), rtol=0, atol=0)


def test_channels_may_be_numpys():
    module = SegmentedConv2d(np.int64(12), np.int32(16))
    assert (type(module.in_channels), type(module.out_channels)) == (int, int)
    assert module(images(2, 12, 5, 5)).shape == (2, 16, 5, 5)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *((name, True, f"{name}=True: expected a whole number") for name in ("kernel_size", "stride", "dilation")),
        *((name, 1.0, f"{name}=1.0: expected a whole number") for name in ("kernel_size", "stride", "dilation")),
        *((name, "3", f"{name}='3': expected a whole number") for name in ("kernel_size", "stride", "dilation")),
        *((name, None, f"{name}=None: expected a whole number") for name in ("kernel_size", "stride", "dilation")),
        ("kernel_size", (3, True), r"kernel_size=\(3, True\)"),
        ("padding", True, "padding=True"),
        ("padding", 1.5, "padding=1.5"),
        ("padding", None, "padding=None"),
        ("padding", (1, -1), r"padding=\(1, -1\)"),
        ("segments", True, "segments=True"),
        ("segments", np.True_, "segments="),
        ("segments", 2.0, "segments=2.0"),
        ("segments", None, "segments=None"),
        ("segments", np.array([4.0, 12.0]), "a list of sizes needs whole numbers"),
        ("pointwise_segments", True, "pointwise_segments=True"),
        ("pointwise_segments", 1.0, "pointwise_segments=1.0"),
        ("pointwise_segments", "2", "pointwise_segments='2'.*without quotes"),
        *((name, 1, f"{name}=1: expected True or False") for name in ("norm", "pointwise", "shuffle", "bias")),
        *((name, "no", f"{name}='no': expected True or False") for name in ("norm", "pointwise", "shuffle", "bias")),
        ("order", 3, "order=3: unknown; try 'pointwise_first' or 'spatial_first'"),
        ("order", ["spatial_first"], "order="),
        ("activation", 3, "activation=3: expected a name"),
        ("activation", True, "activation=True: expected a name"),
        ("activation", nn.Threshold, "activation=Threshold: cannot be made without arguments .* give an instance"),
        ("activation", int, "activation=<class 'int'>: expected a name"),
    ],
)
def test_an_argument_of_another_type_is_named(name, value, says):
    with pytest.raises(ValueError, match=says):
        SegmentedConv2d(12, 16, **{name: value})


@pytest.mark.parametrize("value", [True, 0, -1, 1.0, "3", None, np.True_, np.float64(3)])
@pytest.mark.parametrize("which", ["in_channels", "out_channels"])
def test_channels_of_another_type_are_named(which, value):
    with pytest.raises(ValueError, match=f"{which}="):
        SegmentedConv2d(**{"in_channels": 12, "out_channels": 16} | {which: value})


# Activations


def test_an_activation_is_a_name_a_class_or_a_module():
    x_nchw = images(2, 12, 8, 8)
    by_name = build(segments=4, activation="relu")
    for activation in (nn.ReLU, nn.ReLU(), nn.ReLU(inplace=True), functools.partial(nn.ReLU), torch.relu, F.relu):
        for norm in (False, True):
            ours, named = (build(segments=4, norm=norm, activation=kind) for kind in (activation, "relu"))
            assert_close(ours(x_nchw), named(x_nchw), rtol=1e-4, atol=1e-5)
            named.load_state_dict(ours.state_dict())
    assert repr(build(segments=4, activation=nn.ReLU)) == repr(by_name)


@pytest.mark.parametrize("activation", [None, "none", nn.Identity, nn.Identity()])
def test_nothing_between_the_halves_is_folded_whatever_it_is_called(activation):
    module = build(activation=activation)
    with backends_seen(module) as seen:
        module(images(2, 12, 16, 16))
    assert seen == {"": "folded"}


def test_a_module_between_the_halves_is_a_part_of_the_operation_and_not_copied():
    prelu = nn.PReLU()
    module, x_nchw = build(segments=4, activation=prelu), images(2, 12, 8, 8)
    assert module.between[1] is prelu
    assert "between.1.weight" in module.state_dict()
    module(x_nchw).sum().backward()
    assert prelu.weight.grad is not None
    with torch.no_grad():
        prelu.weight.fill_(1.0)
    assert_close(module(x_nchw), build(segments=4)(x_nchw), rtol=1e-4, atol=1e-5)
    assert "PReLU" in repr(module)
    assert copy.deepcopy(module).between[1] is not prelu


def test_a_function_between_the_halves_has_its_name_in_the_text_and_no_state():
    module = build(segments=4, activation=torch.tanh)
    assert "Elementwise(tanh)" in repr(module)
    assert module.state_dict().keys() == build(segments=4).state_dict().keys()
    loaded = pickle.loads(pickle.dumps(module))
    x_nchw = images(2, 12, 8, 8)
    assert torch.equal(loaded(x_nchw), module(x_nchw))


def test_an_activation_needs_the_1x1():
    with pytest.raises(ValueError, match="activation: needs the 1×1"):
        SegmentedConv2d(12, 16, pointwise=False, activation=nn.ReLU())


# Devices and types


@every_case
def test_type_and_device_are_those_asked_for(options):
    module = build(**options, dtype=torch.float64, device="cpu")
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float64}
    x_nchw = images(2, 12, 9, 9)
    assert module(x_nchw.double()).dtype == torch.float64
    meta = build(**options, device="meta")
    assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))
    assert meta(x_nchw.to("meta")).shape == module(x_nchw.double()).shape
    with torch.device("meta"):
        by_context = build(**options)
    assert all(tensor.is_meta for tensor in (*by_context.parameters(), *by_context.buffers()))


def test_type_and_device_reach_the_normalisation():
    module = build(norm=True, activation="relu", dtype=torch.float64, device="meta")
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    assert {(tensor.dtype, tensor.device.type) for tensor in floats} == {(torch.float64, "meta")}
    assert BatchNormAct2d(4, dtype=torch.bfloat16).weight.dtype == torch.bfloat16


@every_case
def test_a_module_made_without_numbers_computes_the_same_once_it_has_them(options):
    module, x_nchw = build(**options), images(2, 12, 9, 9)
    empty = build(**options, device="meta").to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    assert_close(empty(x_nchw), module(x_nchw), rtol=1e-4, atol=1e-5)
    assigned = build(**options, device="meta")
    assigned.load_state_dict(module.state_dict(), assign=True)
    assert not any(buffer.is_meta for buffer in assigned.buffers())
    assert_close(assigned(x_nchw), module(x_nchw), rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    drawn = build(**options, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    drawn.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in drawn.parameters())
    assert all(parameter.std() > 0 for parameter in drawn.parameters())


@pytest.mark.parametrize("order", ["pointwise_first", "spatial_first"])
def test_a_permutation_left_on_meta_is_computed_when_the_weights_are_replaced_one_by_one(order):
    options = {"segments": 6, "pointwise_segments": 3, "shuffle": True, "order": order}
    module, x_nchw = SegmentedConv2d(12, 12, **options), images(2, 12, 9, 9)
    for moves in (lambda m: m, lambda m: m.to("cpu"), copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        replaced = SegmentedConv2d(12, 12, **options, device="meta")
        for half in ("spatial", "pointwise"):
            getattr(replaced, half).weights[0] = nn.Parameter(getattr(module, half).weights[0].detach().clone())
        assert_close(moves(replaced)(x_nchw), module(x_nchw), rtol=1e-4, atol=1e-5)


def test_a_network_built_on_meta_computes_the_same_once_its_state_is_assigned():
    options = {"segments": 6, "pointwise_segments": 2, "shuffle": True, "width": 0.25}
    network, x_nchw = build_model("probe", **options).eval(), images(2, 3, 32, 32)
    with torch.device("meta"):
        assigned = build_model("probe", **options).eval()
    assigned.load_state_dict(network.state_dict(), assign=True)
    assert_close(assigned(x_nchw), network(x_nchw), rtol=1e-4, atol=1e-5)


def test_numbers_do_not_meet_weights_that_have_none():
    with pytest.raises(ValueError, match='the weights are on "meta" and have no numbers; load them with assign=True'):
        build(device="meta")(images(2, 12, 9, 9))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float32"}, "dtype='float32': expected one of torch.float32"),
        ({"dtype": torch.int64}, "dtype=torch.int64: expected one of"),
        ({"dtype": int}, "dtype=<class 'int'>: expected one of"),
        ({"device": "gpu"}, "device='gpu': expected a device of torch"),
        ({"device": 1.5}, "device=1.5: expected a device of torch"),
        ({"device": True}, "device=True: expected a device of torch"),
        ({"stride": 10**20}, "stride=100000000000000000000: too large; expected at most 2147483647"),
        ({"stride": (1, 2**31)}, "stride=.*: too large"),
        ({"dilation": 10**20}, "dilation=.*: too large"),
        ({"padding": 10**20}, "padding=.*: too large"),
        ({"kernel_size": 10**20}, "kernel_size=.*: too large"),
        ({"kernel_size": 10**6 + 1}, "in_channels, out_channels, kernel_size: a weight of shape .* has more than"),
    ],
)
def test_what_no_weight_can_be_made_of_is_refused_by_name(options, says):
    with pytest.raises(ValueError, match=says):
        SegmentedConv2d(12, 16, **options)


@pytest.mark.parametrize("channels", [(10**10, 4), (4, 10**10), (10**20, 4), (10**6, 10**6)])
def test_more_channels_than_a_layer_can_have_are_refused_by_name(channels):
    with pytest.raises(ValueError, match=r"^(in_channels|out_channels)\b"):
        SegmentedConv2d(*channels)


@pytest.mark.parametrize("x", [np.zeros((1, 12, 5, 5), np.float32), [[1.0]], None])
def test_what_is_no_tensor_is_refused_with_its_type(x):
    with pytest.raises(ValueError, match=f"input of type {type(x).__name__}: expected a torch.Tensor"):
        build()(x)


def test_weights_of_a_seed_are_what_they_always_were():
    torch.manual_seed(0)
    module = SegmentedConv2d(12, 16, segments=3, pointwise_segments=2, norm=True, bias=True)
    torch.manual_seed(0)
    for weight, fan_in in [(w, w[0].numel()) for w in (*module.spatial.weights, *module.pointwise.weights)]:
        bound = fan_in**-0.5
        assert torch.equal(weight, torch.empty(weight.shape).uniform_(-bound, bound))
    bound = module.spatial.largest_fan_in**-0.5
    assert torch.equal(module.bias, torch.empty(16).uniform_(-bound, bound))


# fx, and whatever else copies or follows a module


def with_all(module, x_nchw):
    """Output and gradients, by name: fx has the parameters in the order of their use."""
    y_nchw = module(x_nchw)
    gy_nchw = torch.randn(y_nchw.shape, generator=torch.Generator().manual_seed(2))
    names = ["output", "input", *(name for name, _ in module.named_parameters())]
    return dict(zip(names, results(module, x_nchw, gy_nchw), strict=True))


@every_case
@every_layout
def test_fx_traces_the_operation(options, layout):
    module, x_nchw = build(**options), images(2, 12, 9, 8, layout=layout)
    traced = torch.fx.symbolic_trace(module)
    traced.graph.lint()
    assert traced.state_dict().keys() >= module.state_dict().keys()
    assert_close(with_all(traced, x_nchw), with_all(module, x_nchw), rtol=1e-4, atol=1e-4)
    assert_close(traced(x_nchw[0]), module(x_nchw[0]), rtol=1e-4, atol=1e-5)
    other = images(1, 12, 12, 11)
    assert_close(traced(other), module(other), rtol=1e-4, atol=1e-5)
    assert torch.conv2d in {node.target for node in traced.graph.nodes}


@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_a_traced_operation_normalises_by_its_mode(activation):
    module, x_nchw = build(segments=4, norm=True, activation=activation), images(4, 12, 8, 8)
    before = copy.deepcopy(module.state_dict())
    traced = torch.fx.symbolic_trace(module)
    assert_close(module.state_dict(), before, rtol=0, atol=0)  # tracing moves no statistics
    traced = copy.deepcopy(traced)
    for training in (True, False, True):
        module.train(training), traced.train(training)
        assert_close(with_all(traced, x_nchw), with_all(module, x_nchw), rtol=1e-3, atol=1e-4)
    ours, theirs = (
        {name: tensor for name, tensor in one.state_dict().items() if "running" in name or "batches" in name}
        for one in (module, traced)
    )
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.medium
@every_case
def test_what_is_copied_stored_or_traced_computes_the_same(options):
    module, x_nchw = build(**options).eval(), images(2, 12, 9, 9)
    exact = module(x_nchw)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
        *([] if module.pads_first else [torch.jit.trace(module, x_nchw)]),  # which looks at sizes, and warns of it
        torch.export.export(module, (x_nchw,)).module(),
        pickle.loads(pickle.dumps(torch.fx.symbolic_trace(module))),
    ]
    for other in copies:
        assert_close(other(x_nchw), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(2, 12, 9, 9), (12, 9, 9)])
def test_one_graph_takes_a_batch_or_an_image(shape):
    module, x = build(segments=3, bias=True), torch.randn(*shape)
    torch._dynamo.reset()
    assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x), rtol=1e-4, atol=1e-5)

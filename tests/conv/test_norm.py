"""Batch normalisation with what follows it, against torch's own layers one after another in float64."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectrum.conv.backends.choice import BACKENDS
from spectrum.conv.kernels import batch_norm, torch_operation
from spectrum.conv.norm import BatchNormAct2d
from tests.conv.exact import (
    GRADIENT_LAYOUTS,
    LAYOUTS,
    assert_exact,
    doubled,
    noting_calls,
    threads,
    with_gradients,
    with_second_gradients,
)


class Separate(nn.Module):
    """torch's layers, one after another; over (N, C, H·W), since in four dimensions torch's gradients may be wrong."""

    def __init__(self, channels, relu):
        super().__init__()
        self.norm, self.relu = nn.BatchNorm1d(channels), relu

    def forward(self, x_nchw, added_nchw=None):
        y_nchw = self.norm(x_nchw.flatten(2)).reshape(x_nchw.shape)
        y_nchw = y_nchw if added_nchw is None else y_nchw + added_nchw
        return F.relu(y_nchw) if self.relu else y_nchw


def pair(channels, relu=False, **attributes):
    """Our layer in float32 and torch's layers in float64, with the same weights and statistics."""
    ours = BatchNormAct2d(channels, relu=relu)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 1.5)
        ours.bias.normal_()
        ours.running_mean.normal_()
        ours.running_var.uniform_(0.5, 2)
    exact = Separate(channels, relu)
    exact.norm.load_state_dict(ours.state_dict())
    for name, value in attributes.items():
        setattr(ours, name, value)
        setattr(exact.norm, name, value)
    return ours, exact.double()


def function_of(module):
    """A layer as a function of input, weight, bias and what is added."""
    layer = module.norm if isinstance(module, Separate) else module
    prefix = "norm." if isinstance(module, Separate) else ""

    def run(x_nchw, weight, bias, *added):
        values = {f"{prefix}weight": weight, f"{prefix}bias": bias}
        return torch.func.functional_call(module, values, (x_nchw, *added))

    return run, [layer.weight, layer.bias]


def inputs_of(module, x_nchw, *added):
    return [x_nchw, *function_of(module)[1], *added]


def away_from_the_kink(exact, x_nchw, *added):
    """x with those pixels moved whose result is so near to ReLU's kink that float32 may fall on its other side."""
    before = copy.deepcopy(exact)
    before.relu = False
    for _ in range(20):
        near = before(x_nchw.double(), *doubled(added)).abs() < 1e-4
        if not near.any():
            return x_nchw
        x_nchw[near] += 0.01
    raise AssertionError("no such input found")


def images(*shape, layout="channels_last", seed=1, scale=1.0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return LAYOUTS[layout](torch.randn(*shape, generator=generator) * scale + mean)


def assert_layer_exact(ours, exact, x_nchw, *added, arrange=lambda gradient: gradient, gradients=with_gradients):
    inputs = inputs_of(ours, x_nchw, *added)
    arguments = (arrange,) if gradients is with_gradients else ()
    mine = gradients(function_of(ours)[0], inputs, *arguments)
    true = gradients(function_of(exact)[0], doubled(inputs), *arguments)
    pixels = x_nchw.numel() // x_nchw.shape[1]
    assert_exact(mine, true, 16 * pixels)  # divided by a deviation that may be small
    moments = [[layer.running_mean, layer.running_var] for layer in (ours, exact.norm)]
    assert_exact(*moments, pixels)
    assert ours.num_batches_tracked == exact.norm.num_batches_tracked


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def joined(monkeypatch):
    """One entry a call of a joined kernel."""
    calls = []
    for name in ("normalise", "normalise_by"):
        kernel = getattr(BACKENDS["compiled"], name)
        monkeypatch.setattr(
            BACKENDS["compiled"],
            name,
            lambda *inputs, kernel=kernel: calls.append(inputs) or kernel(*inputs),
            raising=False,
        )
    return calls


every_ending = pytest.mark.parametrize(
    ("relu", "adds"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["alone", "relu", "added", "added, relu"],
)


# The same function


@st.composite
def shapes(draw):
    n, c, h, w = draw(st.integers(1, 5)), draw(st.integers(1, 40)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return (n, c, h, w if n * h * w >= 4 else w + 3)  # of two values the deviation is no more than their rounding


@settings(max_examples=80)
@given(
    shapes(),
    st.booleans(),
    st.booleans(),
    *(st.sampled_from(list(LAYOUTS)) for _ in range(2)),
    st.sampled_from(list(GRADIENT_LAYOUTS)),
    st.integers(0, 2**20),
)
def test_any_input_is_normalised_exactly(shape, relu, adds, layout, added_layout, gradient, seed):
    torch.manual_seed(seed)
    ours, exact = pair(shape[1], relu)
    added = [images(*shape, layout=added_layout, seed=seed + 1)] if adds else []
    x_nchw = images(*shape, layout=layout, seed=seed)
    if relu:
        x_nchw = away_from_the_kink(exact, x_nchw, *added)
    assert_layer_exact(ours, exact, x_nchw, *added, arrange=GRADIENT_LAYOUTS[gradient])


@every_ending
def test_the_joined_kernels_serve_channels_last_and_nothing_else(relu, adds, joined):
    layer, _ = pair(6, relu)
    x_nchw = images(3, 6, 4, 5)
    added = [images(3, 6, 4, 5, seed=2)] if adds else []
    layer(x_nchw, *added)
    assert len(joined) == 1
    layer(x_nchw.contiguous(), *added)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x_nchw, *added)
    layer.eval()(x_nchw, *added)
    layer.train().double()(x_nchw.double(), *doubled(added))
    assert len(joined) == 1
    with torch.no_grad():
        layer.float().eval()(x_nchw, *added)
        assert len(joined) == 2
        layer(x_nchw.contiguous(), *added)
        layer.double()(x_nchw.double(), *doubled(added))
    assert len(joined) == 2


@settings(max_examples=80)
@given(shapes(), st.booleans(), st.booleans(), *(st.sampled_from(list(LAYOUTS)) for _ in range(2)), st.booleans())
def test_any_input_is_evaluated_exactly(shape, relu, adds, layout, added_layout, bound):
    ours, exact = (layer.eval() for layer in pair(shape[1], relu))
    x_nchw = images(*shape, layout=layout, mean=3)
    added = [images(*shape, layout=added_layout, seed=2)] if adds else []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        if not bound:
            patch.setattr(torch_operation, "bound", lambda name: None)
        y_nchw = ours(x_nchw, *added)
        assert_exact([y_nchw], [exact(x_nchw.double(), *doubled(added))], 16)
        assert layout != "channels_last" or y_nchw.is_contiguous(memory_format=torch.channels_last)


def test_statistics_that_are_not_kept_are_those_of_the_batch_in_evaluation_too():
    ours, theirs = (kind(4).eval() for kind in (BatchNormAct2d, nn.BatchNorm2d))
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
    with torch.no_grad():
        torch.testing.assert_close(ours(images(3, 4, 5, 5)), theirs(images(3, 4, 5, 5)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # torch's own check of the batch size, in training
def test_a_trace_has_torchs_operations_only(joined):
    """In evaluation mode: torch's own normalisation cannot be traced in training without a warning."""
    layer, x_nchw = pair(6, relu=True)[0].eval(), images(3, 6, 4, 5)
    traced = torch.jit.trace(layer, x_nchw, check_trace=False)
    assert not joined
    assert {node.kind().split("::")[0] for node in traced.inlined_graph.nodes()} == {"aten", "prim"}
    assert "prim::PythonOp" not in [node.kind() for node in traced.inlined_graph.nodes()]


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_program_has_torchs_operations_only(training, joined):
    layer, x_nchw = pair(6, relu=True)[0].train(training), images(3, 6, 4, 5)
    program = torch.export.export(layer, (x_nchw,))
    called = {node.target.namespace for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten"}
    assert not joined


@pytest.mark.parametrize("choice", ["native", "coalesced"])
def test_nothing_is_joined_where_it_is_not_asked_for(choice, monkeypatch, joined):
    monkeypatch.setenv("SPECTRUM_BACKEND", choice)
    BatchNormAct2d(6, relu=True)(images(3, 6, 4, 5))
    assert not joined


@every_ending
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_and_results_stay_exact_over_several_steps_and_in_evaluation(relu, adds, layout):
    ours, exact = pair(7, relu)
    for step in range(5):
        added = [images(4, 7, 5, 5, layout=layout, seed=100 + step)] if adds else []
        x_nchw = images(4, 7, 5, 5, layout=layout, seed=step, scale=3, mean=step)
        if relu:
            x_nchw = away_from_the_kink(exact, x_nchw, *added)
        ours, exact = ours.train(step < 3), exact.train(step < 3)
        assert_layer_exact(ours, exact, x_nchw, *added)
    assert ours.num_batches_tracked == 3


@pytest.mark.parametrize("attributes", [{"momentum": 0.0}, {"momentum": 0.37}, {"momentum": 1.0}, {"eps": 0.1}])
def test_momentum_and_eps_are_those_of_the_layer(attributes):
    ours, exact = pair(5, **attributes)
    for step in range(3):
        assert_layer_exact(ours, exact, images(4, 5, 5, 5, seed=step))


@every_ending
def test_double_numbers_are_normalised_in_double(relu, adds):
    ours, exact = pair(5, relu)
    x_nchw, added = images(4, 5, 3, 3).double(), [images(4, 5, 3, 3, seed=2).double()] if adds else []
    for mine, true in zip(
        with_gradients(function_of(ours.double())[0], inputs_of(ours, x_nchw, *added)),
        with_gradients(function_of(exact)[0], inputs_of(ours, x_nchw, *added)),
        strict=True,
    ):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)


def test_what_is_added_may_be_of_another_shape_as_for_torch():
    ours, exact = pair(5)
    assert_layer_exact(ours, exact, images(4, 5, 3, 3), images(1, 5, 1, 1))
    assert_layer_exact(ours, exact, images(4, 5, 3, 3), images(4, 1, 3, 3))


def test_the_same_tensor_may_be_normalised_and_added():
    ours, exact = pair(5)
    x_nchw = images(4, 5, 3, 3)
    mine, true = (
        with_gradients(lambda x, layer=layer: layer(x, x), [x])
        for layer, x in ((ours, x_nchw), (exact, x_nchw.double()))
    )
    assert_exact(mine, true, 16 * 36)


@pytest.mark.parametrize("number", [1, 2])
@every_ending
def test_the_same_threads_give_the_same_bits_and_exact_ones(number, relu, adds):
    ours, exact = pair(33, relu)
    added = [images(3, 33, 9, 9, seed=2)] if adds else []
    x_nchw = away_from_the_kink(exact, images(3, 33, 9, 9), *added)
    function, _ = function_of(ours)
    with threads(number):
        first, second = (with_gradients(function, inputs_of(ours, x_nchw, *added)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    true = with_gradients(function_of(exact)[0], doubled(inputs_of(ours, x_nchw, *added)))
    assert_exact(first, true, 16 * 243)


# Numbers that are hard to normalise


@pytest.mark.parametrize(("mean", "deviation"), [(1000, 0.1), (-1000, 0.1), (1e4, 1.0), (10, 0.01)])
def test_a_small_variance_about_a_large_mean_is_not_lost(mean, deviation):
    """y = x·scale + offset has terms of mean/deviation, whose rounding is what y may be off by: eps·mean/deviation.

    The gradient of x is as large as 1/deviation. Moments are exact to a few eps, as x's own numbers allow.
    """
    ours, exact = pair(4, momentum=1.0)
    x_nchw = images(8, 4, 16, 16, scale=deviation, mean=mean)
    mine = with_gradients(function_of(ours)[0], inputs_of(ours, x_nchw))
    true = with_gradients(function_of(exact)[0], doubled(inputs_of(ours, x_nchw)))
    eps = torch.finfo(torch.float32).eps
    for part, exact_part in zip(mine, true, strict=True):
        error = (part - exact_part).abs().max().item()
        assert error <= 4 * eps * abs(mean) / deviation * exact_part.abs().max().item()
    torch.testing.assert_close(ours.running_mean.double(), exact.norm.running_mean, rtol=4 * eps, atol=0)
    torch.testing.assert_close(ours.running_var.double(), exact.norm.running_var, rtol=1e-5, atol=0)


def test_a_border_unlike_the_rest_does_not_spoil_the_moments():
    """Sums are taken about the mean of the first pixels."""
    ours, exact = pair(3, momentum=1.0)
    x_nchw = images(16, 3, 32, 32, scale=0.1, mean=100)
    x_nchw[0, :, :2] = 0
    ours(x_nchw)
    exact(x_nchw.double())
    torch.testing.assert_close(ours.running_var.double(), exact.norm.running_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.running_mean.double(), exact.norm.running_mean, rtol=1e-6, atol=0)


def test_a_constant_channel_becomes_its_bias():
    ours, _ = pair(3, momentum=1.0)
    y_nchw = ours(torch.full((4, 3, 5, 5), 7.25).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y_nchw, ours.bias.detach().view(1, -1, 1, 1).expand_as(y_nchw), rtol=0, atol=1e-2)
    assert (ours.running_var == 0).all()


@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
@every_ending
def test_what_is_not_a_number_spoils_its_channel_and_no_other(strange, relu, adds):
    ours, exact = pair(5, relu, momentum=1.0)
    x_nchw, added = images(4, 5, 3, 3), [images(4, 5, 3, 3, seed=2)] if adds else []
    x_nchw[1, 2, 1, 1] = strange
    y_nchw, true = ours(x_nchw, *added), exact(x_nchw.double(), *doubled(added))
    assert torch.equal(y_nchw.isnan(), true.isnan())
    assert y_nchw[:, 2].isnan().all()
    assert not y_nchw[:, [0, 1, 3, 4]].isnan().any()
    assert torch.equal(ours.running_var.isnan(), exact.norm.running_var.isnan())


def test_what_is_added_hides_nothing_from_relu():
    ours, exact = pair(5, relu=True)
    x_nchw, added = images(4, 5, 3, 3), images(4, 5, 3, 3, seed=2)
    added[0, 1, 0, 0], added[0, 2, 0, 0], added[0, 3, 0, 0] = torch.nan, torch.inf, -torch.inf
    y_nchw, true = ours(x_nchw, added), exact(x_nchw.double(), added.double())
    assert torch.equal(y_nchw.isnan(), true.isnan())
    assert torch.equal(y_nchw.isposinf(), true.isposinf())
    assert y_nchw[0, 3, 0, 0] == 0


def test_a_gradient_that_is_not_a_number_spoils_its_channel_and_no_other():
    ours, _ = pair(5, relu=True)

    def arrange(gradient):
        gradient[0, 1] = torch.nan
        return gradient

    _, of_x, of_weight, of_bias = with_gradients(function_of(ours)[0], inputs_of(ours, images(4, 5, 3, 3)), arrange)
    for gradient in (of_x.transpose(0, 1), of_weight, of_bias):
        assert gradient[1].isnan().any()
        assert not gradient[[0, 2, 3, 4]].isnan().any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (1, 1, 1, 1)])
def test_one_value_a_channel_is_refused_in_torchs_words(layout, shape):
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        BatchNormAct2d(shape[1])(images(*shape, layout=layout))
    assert BatchNormAct2d(shape[1]).eval()(images(*shape, layout=layout)).shape == shape


@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (1, 5, 1, 2)])
def test_two_values_a_channel_are_enough(shape):
    ours, exact = pair(5)
    assert_exact([ours(images(*shape))], [exact(images(*shape).double())], 16)
    assert_exact([ours.running_var], [exact.norm.running_var], 16)


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(4, 3, 1, 5), (4, 3, 5, 1), (4, 3, 1, 1), (2, 3, 4, 5), (1, 3, 4, 5), (1, 2, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_exact_for_every_order_of_input_and_gradient_in_memory(shape, dtype, relu):
    x, gy = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    layer = BatchNormAct2d(shape[1], relu=relu).to(dtype)
    slow = x.double().requires_grad_()
    centred = slow - slow.mean((0, 2, 3), keepdim=True)
    y = centred / ((centred**2).mean((0, 2, 3), keepdim=True) + layer.eps).sqrt()
    (exact,) = torch.autograd.grad(y.clamp_min(0) if relu else y, slow, gy.double())
    for of_x, of_gradient in itertools.product(itertools.permutations(range(4)), repeat=2):
        ours = in_order(x, of_x).requires_grad_()
        (gx,) = torch.autograd.grad(layer(ours), ours, in_order(gy, of_gradient))
        torch.testing.assert_close(gx.double(), exact, rtol=1e-4, atol=1e-5)


def in_order(x, order):
    """The same numbers, with the dimensions laid in memory in this order, those of one element too."""
    strides, stride = [0] * x.dim(), 1
    for dimension in order:
        strides[dimension] = stride
        stride *= x.shape[dimension]
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_gives_what_torch_gives(training):
    ours, exact = pair(5)
    theirs = nn.BatchNorm2d(5)
    theirs.load_state_dict(exact.norm.float().state_dict())
    for layer in (ours, theirs):
        layer.train(training)
        layer(images(0, 5, 3, 3)).sum().backward()
    assert ours(images(0, 5, 3, 3)).shape == (0, 5, 3, 3)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    theirs(images(0, 5, 3, 3))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), equal_nan=True)


@pytest.mark.parametrize("shape", [(5, 3, 3), (5,), (2, 5, 3, 3, 3)])
def test_other_dimensions_are_refused_in_torchs_words(shape):
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormAct2d(5)(torch.randn(shape))


# As part of a network


def test_state_goes_to_torchs_layer_and_back():
    ours, theirs = pair(5)[0], nn.BatchNorm2d(5)
    ours(images(4, 5, 3, 3))
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    again = BatchNormAct2d(5, relu=True)
    again.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)
    x_nchw = images(4, 5, 3, 3)
    assert torch.equal(again.eval()(x_nchw), F.relu(theirs.eval()(x_nchw)))


def test_statistics_carry_no_gradient():
    ours, _ = pair(5)
    y_nchw, mean, variance = batch_norm.batch_norm_act(images(4, 5, 3, 3), None, ours.weight, ours.bias, 1e-5, False)
    assert y_nchw.requires_grad
    assert not mean.requires_grad
    assert not variance.requires_grad


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_a_frozen_input_takes_nothing_from_the_others(frozen):
    ours, exact = pair(5)
    x_nchw, added = images(4, 5, 3, 3), images(4, 5, 3, 3, seed=2)

    def of_the_rest(layer, inputs):
        function, fixed = function_of(layer)[0], inputs.pop(frozen)
        return with_gradients(lambda *rest: function(*rest[:frozen], fixed, *rest[frozen:]), inputs)

    inputs = [tensor.detach() for tensor in inputs_of(ours, x_nchw, added)]
    assert_exact(of_the_rest(ours, list(inputs)), of_the_rest(exact, doubled(inputs)), 16 * 36)


@every_ending
def test_second_derivatives_are_exact(relu, adds):
    ours, exact = pair(5, relu)
    added = [images(3, 5, 4, 3, seed=2)] if adds else []
    x_nchw = away_from_the_kink(exact, images(3, 5, 4, 3), *added)
    assert_layer_exact(ours, exact, x_nchw, *added, gradients=with_second_gradients)


@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_of_a_residual_block_are_exact(relu):
    """x depends on what is added to it."""
    ours, exact = pair(5, relu)
    weight = torch.randn(5, 5, 3, 3) / 6

    def block(layer):
        return lambda x_nchw, weight: layer(F.conv2d(x_nchw, weight, padding=1), x_nchw)

    inputs = [images(3, 5, 4, 3), weight]
    assert_exact(
        with_second_gradients(block(ours), inputs), with_second_gradients(block(exact), doubled(inputs)), 10**4
    )


def test_second_derivatives_of_x_added_to_itself_are_exact():
    ours, exact = pair(5)
    x_nchw = images(3, 5, 4, 3)
    mine, true = (
        with_second_gradients(lambda x, layer=layer: layer(x, x), [x])
        for layer, x in ((ours, x_nchw), (exact, x_nchw.double()))
    )
    assert_exact(mine, true, 10**4)


def test_the_result_may_be_changed_in_place_as_torchs_may():
    ours, _ = pair(5)
    F.relu(ours(images(4, 5, 3, 3)), inplace=True).sum().backward()


def test_what_was_added_may_be_changed_in_place_as_with_torch():
    ours, _ = pair(5)
    added = images(4, 5, 3, 3)
    y_nchw = ours(images(4, 5, 3, 3), added)
    added.add_(1)
    y_nchw.sum().backward()


def test_without_momentum_statistics_are_plain_averages():
    ours, exact = pair(5, momentum=None)
    for layer in (ours, exact.norm):
        layer.reset_running_stats()
    for step in range(3):
        assert_layer_exact(ours, exact, images(4, 5, 3, 3, seed=step))


def test_weights_with_gaps_are_read_where_they_lie():
    """512 numbers: as large as what the kernel itself asks memory for."""
    weight, bias = torch.arange(1.0, 1025).view(-1, 2)[:, 0], torch.zeros(1024)[::2]
    x_nchw = images(4, 512, 5, 5)
    mine = with_gradients(
        lambda *inputs: batch_norm.batch_norm_act(inputs[0], None, *inputs[1:], 1e-5, False)[0], [x_nchw, weight, bias]
    )
    true = with_gradients(
        lambda *inputs: batch_norm.plain_batch_norm_act(inputs[0], None, *inputs[1:], 1e-5, False),
        doubled([x_nchw, weight, bias]),
    )
    assert_exact(mine, true, 16 * 100)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_added_may_be_of_another_type_as_for_torch(dtype):
    ours, exact = pair(5)
    x_nchw, added = images(4, 5, 3, 3), images(4, 5, 3, 3, seed=2).to(dtype)
    y_nchw = ours(x_nchw, added)
    assert y_nchw.dtype == torch.promote_types(dtype, torch.float32)
    assert_exact([y_nchw], [exact(x_nchw.double(), added.double())], 16 * 36)


@pytest.mark.medium
def test_an_input_with_other_channels_is_refused():
    """In a process of its own: memory is spoilt."""
    code = """
import torch
from spectrum.conv.norm import BatchNormAct2d
try:
    BatchNormAct2d(8)(torch.randn(2, 4096, 4, 4).contiguous(memory_format=torch.channels_last))
except (RuntimeError, ValueError):
    raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 7


# torch.compile


def assert_compiles(relu, adds, backend):
    torch._dynamo.reset()
    ours, exact = pair(5, relu)
    added = [images(4, 5, 6, 6, seed=2)] if adds else []
    x_nchw = away_from_the_kink(exact, images(4, 5, 6, 6), *added)
    inputs = [tensor.requires_grad_() for tensor in (x_nchw, *added)]
    y_nchw = torch.compile(ours, fullgraph=True, backend=backend)(*inputs)
    gy = torch.randn(y_nchw.shape, generator=torch.Generator().manual_seed(0))
    of_x, *rest = torch.autograd.grad(y_nchw, [x_nchw, ours.weight, ours.bias, *added], gy)
    exact_inputs = doubled(inputs_of(ours, x_nchw, *added))
    assert_exact([y_nchw.detach(), of_x, *rest], with_gradients(function_of(exact)[0], exact_inputs), 16 * 144)
    assert_exact([ours.running_mean, ours.running_var], [exact.norm.running_mean, exact.norm.running_var], 144)
    assert ours.num_batches_tracked == 1


def test_one_graph_holds_the_joined_kernel():
    backend, called = noting_calls()
    assert_compiles(True, True, backend)
    assert [name for name in called if "batch_norm_act" in name]


@pytest.mark.medium
@every_ending
def test_compiling_changes_nothing(relu, adds):
    assert_compiles(relu, adds, "inductor")

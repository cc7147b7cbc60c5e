"""Networks of others with segmented convolutions: what is replaced, and how good the approximation of kernels is."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d, segment_model
from spectrum.models.approximate import approximate, kernel_of

ORDERS = ("pointwise_first", "spatial_first")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 24, 3, padding=1, groups=2),
        nn.Conv2d(24, 24, 1),
        nn.Conv2d(24, 16, 5, padding="same", dilation=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def squared(tensor):
    return float(tensor.detach().double().square().sum())


@pytest.mark.parametrize("order", ORDERS)
def test_layers_are_replaced_or_the_table_says_why_not(order):
    before = network()
    kept = copy.deepcopy(before.state_dict())
    model, layers = segment_model(before, 4, order=order)
    said = dict(zip(layers["layer"], layers["replaced"], strict=True))
    assert said == {
        "0": "3 input channels, below least_channels=16",
        "2": "yes",
        "4": "grouped already, groups=2",
        "6": "yes",
    }
    assert {name for name, part in model.named_modules() if isinstance(part, SegmentedConv2d)} == {"2", "6"}
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, kept[name])  # the network itself is as it was
    x = torch.randn(2, 3, 20, 20)
    for inner in ("2", "6"):
        old, new = before.get_submodule(inner), model.get_submodule(inner)
        y = torch.randn(1, old.in_channels, 9, 9)
        assert new(y).shape == old(y).shape
        assert (new.bias is None) == (old.bias is None)
        row = layers.set_index("layer").loc[inner]
        assert row["params_after"] == sum(one.numel() for one in new.parameters())
        assert row["params_before"] == sum(one.numel() for one in old.parameters())
    assert model(x).shape == before(x).shape


@st.composite
def problems(draw):
    """A kernel, and a linear layer to approximate it with."""
    order = draw(st.sampled_from(ORDERS))
    inputs, outputs, mid = (draw(st.integers(1, 6)) for _ in range(3))
    outer = outputs if order == "pointwise_first" else inputs
    layer = SegmentedConv2d(
        inputs,
        outputs,
        draw(st.sampled_from([3, (1, 3), 2])),
        padding=0,
        order=order,
        mid_channels=mid,
        segments=draw(st.integers(1, min(outer, mid))),
    ).double()
    torch.manual_seed(draw(st.integers(0, 1000)))
    return layer, torch.randn(outputs, inputs, *layer.spatial.geometry.kernel_size, dtype=torch.float64)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_no_step_from_the_approximation_comes_closer_to_the_kernel(problem):
    """Alternating least squares from the result, and from elsewhere: neither finds a smaller error."""
    layer, kernel = problem
    approximate(layer, kernel)
    error = squared(kernel - kernel_of(layer))
    other = copy.deepcopy(layer)
    torch.manual_seed(1)
    other.reset_parameters()
    for start in (copy.deepcopy(layer), other):
        optimizer = torch.optim.LBFGS(start.parameters(), max_iter=60, line_search_fn="strong_wolfe")

        def closure(start=start, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (kernel - kernel_of(start)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert squared(kernel - kernel_of(start)) >= error * (1 - 1e-9) - 1e-12


@given(problems())
@settings(max_examples=30, deadline=None)
def test_the_kernel_of_a_layer_is_what_it_computes(problem):
    layer, _ = problem
    x = torch.randn(2, layer.in_channels, 7, 7, dtype=torch.float64)
    assert_close(layer(x), nn.functional.conv2d(x, kernel_of(layer)))


@pytest.mark.parametrize(("order", "segments", "multiple"), [
    ("pointwise_first", 1, 2.0), ("spatial_first", 1, 9.0),  # the middle reaches the rank
    ("spatial_first", "per_channel", 9.0), ("pointwise_first", "per_channel", 9.0),  # k² per channel
])  # fmt: skip
def test_trained_weights_are_kept_exactly_where_the_rank_is_reached(order, segments, multiple):
    model = network().double().eval()
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    new, layers = segment_model(
        model, segments, order=order, select="2", mid_channels=multiple, init="from_trained", batch=x
    )
    assert_close(new(x), model(x))
    row = layers.set_index("layer").loc["2"]
    assert row["energy_kept"] == pytest.approx(1)
    assert row["output_error"] < 1e-20


def test_energy_and_output_error_are_those_of_the_layers():
    model = network().double().eval()
    x = torch.randn(4, 3, 20, 20, dtype=torch.float64)
    new, layers = segment_model(model, 4, init="from_trained", batch=x)
    rows = layers.set_index("layer")
    kernel, theirs = model[2].weight, kernel_of(new[2])
    assert rows.loc["2", "energy_kept"] == pytest.approx(1 - squared(kernel - theirs) / squared(kernel))
    inner = model[:2](x)
    assert rows.loc["2", "output_error"] == pytest.approx(
        squared(model[2](inner) - new[2](inner)) / squared(model[2](inner))
    )
    at = model[:6](x)  # of the unchanged network
    bias = model[6].bias.view(-1, 1, 1)
    assert rows.loc["6", "output_error"] == pytest.approx(
        squared(model[6](at) - new[6](at)) / squared(model[6](at) - bias)
    )


def test_without_a_1x1_the_blocks_of_the_segments_are_kept():
    model = network()
    new, layers = segment_model(model, 2, pointwise=False, select="2", init="from_trained")
    weight = model[2].weight
    expected = torch.zeros_like(weight)
    expected[:12, :8], expected[12:, 8:] = weight[:12, :8], weight[12:, 8:]
    assert_close(kernel_of(new[2]), expected)
    assert layers.set_index("layer").loc["2", "energy_kept"] == pytest.approx(squared(expected) / squared(weight))


def test_more_segments_never_keep_more():
    model = network()
    for order in ORDERS:
        kept = [
            segment_model(model, s, order=order, select="2", init="from_trained").layers.set_index("layer")
            for s in (1, 2, 4, 8, 16)
        ]
        values = [table.loc["2", "energy_kept"] for table in kept]
        assert values == sorted(values, reverse=True)


def test_device_type_gradients_and_mode_are_kept():
    model = network().to(torch.float64).eval()
    model[2].weight.requires_grad_(False)
    new, _ = segment_model(model, 4, select="2")
    assert {one.dtype for one in new[2].parameters()} == {torch.float64}
    assert not any(one.requires_grad for one in new[2].parameters())
    assert not new[2].training


def test_a_layer_that_stands_in_two_places_stays_one_layer():
    shared = nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    new, layers = segment_model(model, 4)
    assert new[0] is new[2]
    assert isinstance(new[0], SegmentedConv2d)
    assert len(layers) == 1
    alone, _ = segment_model(shared, 4)
    assert isinstance(alone, SegmentedConv2d)


class Twin(nn.Conv2d):
    """A subclass."""


def with_hook():
    layer = nn.Conv2d(16, 16, 3)
    layer.register_forward_hook(lambda *given: None)
    return layer


@pytest.mark.parametrize(("layer", "said"), [
    (Twin(16, 16, 3), "is a Twin, which may compute something else"),
    (nn.Conv2d(16, 16, 4, padding="same"), "padding='same' around an even kernel"),
    (nn.Conv2d(16, 16, 3, groups=16), "grouped already, groups=16"),
    (nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3)), "is a ParametrizedConv2d"),
    (with_hook(), "has hooks"),
    (nn.Conv2d(8, 16, 3), "8 input channels, below least_channels=16"),
])  # fmt: skip
def test_what_cannot_be_replaced_is_left_and_said(layer, said):
    layers = segment_model(nn.Sequential(layer, nn.Conv2d(16, 16, 3)), 4).layers
    assert layers["replaced"][0].startswith(said)
    assert layers["replaced"][1] == "yes"


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_padding_mode_is_kept(order, mode):
    """One segment with enough inner channels holds the trained kernel exactly, so the outputs stay."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, stride=2, padding=(2, 1), padding_mode=mode).double()
    new, _ = segment_model(layer, 1, order=order, init="from_trained", mid_channels=9.0)
    assert new.padding_mode == mode
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64)
    assert_close(new(x), layer(x))


def test_too_few_channels_are_said():
    layers = segment_model(network(), 20, order="pointwise_first").layers.set_index("layer")
    assert layers.loc["6", "replaced"] == "16 channels, fewer than 20 segments"
    assert layers.loc["2", "segments"] == 20


@pytest.mark.parametrize(("asked", "said"), [
    ({}, "segments, segment_width: give one"),
    ({"segments": 4, "segment_width": 4}, "segments, segment_width: give one"),
    ({"segments": 0}, "segments=0"),
    ({"segments": (8, 8)}, "expected a number or 'per_channel'"),
    ({"segments": "all"}, "segments='all'"),
    ({"segments": 4, "init": "svd"}, "init='svd': unknown; try 'fresh' or 'from_trained'"),
    ({"segments": 4, "init": "from_trained", "activation": "relu"}, "nothing may stand between"),
    ({"segments": 4, "init": "from_trained", "norm": True}, "nothing may stand between"),
    ({"segments": 4, "pointwise": False, "norm": True}, "need the 1×1"),
    ({"segments": 4, "mid_channels": 0}, "mid_channels=0: expected a multiple above 0"),
    ({"segments": 4, "select": "layer9.*"}, "select='layer9.*': no k×k convolution has such a name; there are 0, 2, 4"),
    ({"segments": 400}, "no k×k convolution can be replaced"),
])  # fmt: skip
def test_contradictory_arguments_are_refused(asked, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(".", r"\.").replace("*", r"\*")):
        segment_model(network(), **asked)


def test_a_network_without_such_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Conv2d with a kernel above 1×1"):
        segment_model(nn.Sequential(nn.Conv2d(16, 16, 1)), 4)


def test_weights_that_are_not_finite_or_not_there_are_refused_for_an_approximation():
    model = network()
    with torch.no_grad():
        model[2].weight[0] = float("nan")
    with pytest.raises(ValueError, match="2: the weights are not finite"):
        segment_model(model, 4, init="from_trained")
    with pytest.raises(ValueError, match='2: the weights are on "meta"'):
        segment_model(network().to("meta"), 4, init="from_trained")

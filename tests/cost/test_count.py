"""fvcore's counts against closed forms from the built modules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectrum import SegmentedConv2d, build_model, measure_cost
from spectrum.conv.segments import segment_sizes
from spectrum.cost.speed import time_training_step


def closed_form_macs(model, shape):
    """Multiply-adds of every convolution and linear layer, from weight sizes and output areas seen by hooks."""
    total = 0

    def count(module, _, output):
        nonlocal total
        if isinstance(module, nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, nn.Conv2d):
            total += module.weight.numel() * math.prod(output.shape[2:])
        else:
            total += sum(weight.numel() for weight in module.weights) * math.prod(output.shape[2:])

    counted = [
        m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) or type(m).__name__ == "SegmentedHalf"
    ]
    hooks = [module.register_forward_hook(count) for module in counted]
    model.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.data())
def test_an_operation_costs_what_its_segments_say(in_channels, out_channels, data):
    segments = data.draw(st.integers(1, out_channels))
    module = SegmentedConv2d(in_channels, out_channels, segments=segments)
    cost = measure_cost(module, (in_channels, 6, 5))
    spatial = 9 * sum(size**2 for size in segment_sizes(out_channels, segments))
    assert cost.params == in_channels * out_channels + spatial
    assert cost.macs == 6 * 5 * (in_channels * out_channels + spatial)
    assert cost.flops == 2 * cost.macs


@pytest.mark.parametrize("segments", [1, 3, 8, "per_channel"])
@pytest.mark.parametrize("order", ["pointwise_first", "spatial_first"])
def test_a_network_costs_the_sum_of_its_layers(segments, order):
    model = build_model("probe", segments=segments, order=order, activation="elu", norm=True, image_size=28)
    cost = measure_cost(model, (3, 28, 28))
    assert cost.macs == closed_form_macs(model, (3, 28, 28))
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_activations_are_the_outputs_of_convolutions_and_linear_layers():
    model = nn.Sequential(SegmentedConv2d(3, 8, segments=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    assert measure_cost(model, (3, 4, 4)).activations == 2 * 8 * 16 + 10


def test_counting_leaves_the_mode_of_every_module_as_it_was():
    model = build_model("probe", width=0.25).train()
    model.stem.eval()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = model.stem[1].running_mean.clone()
    measure_cost(model, (3, 32, 32))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(model.stem[1].running_mean, statistics)


def test_frozen_parameters_are_not_counted():
    model = nn.Conv2d(3, 4, 1)
    model.bias.requires_grad_(False)
    assert measure_cost(model, (3, 2, 2)).params == 12


@pytest.mark.parametrize("shape", [(3, 32), (3, 0, 32), ()])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match="input_shape"):
        measure_cost(nn.Conv2d(3, 4, 1), shape)


def test_a_training_step_takes_time():
    model = build_model("probe", width=0.25, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.stem[0].weight.clone()
    assert 0 < time_training_step(model, optimizer, (4, 3, 8, 8), 10).median < 5
    assert not torch.equal(before, model.stem[0].weight), "the update is timed too"

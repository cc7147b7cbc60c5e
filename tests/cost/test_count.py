"""Costs against fvcore, torch's counter, closed forms and counting one by one."""

import itertools
import logging
import math
from dataclasses import dataclass, replace

import numpy
import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spectrum import SegmentedConv2d, build_model, measure_cost
from spectrum.conv.machine import processor
from spectrum.conv.segments import segment_sizes
from spectrum.cost.count import forward_macs
from spectrum.cost.speed import peak_memory, time_training_step


def fvcore_macs(model, shape):
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    counts = FlopCountAnalysis(model.eval(), torch.zeros(1, *shape)).by_operator()
    return sum(count for name, count in counts.items() if name in ("conv", "linear", "addmm", "matmul"))


def torch_macs(model, shape):
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def counted_one_by_one(module, shape):
    """Multiply-adds of an operation, each counted by itself; padding is multiplied as any pixel is."""
    total = 0
    places = list(itertools.product(range(shape[1]), range(shape[2])))
    halves = (
        [module.pointwise, module.spatial] if module.order == "pointwise_first" else [module.spatial, module.pointwise]
    )
    for half in filter(None, halves):
        g = half.geometry
        if half is module.spatial:
            spans = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel_size, strict=True)]
            sides = [side + 2 * pad - span + 1 for side, pad, span in zip(shape[1:], g.padding, spans, strict=True)]
            places = list(itertools.product(*(range(0, n, step) for n, step in zip(sides, g.stride, strict=True))))
        for run in g.runs:
            taps = itertools.product(*map(range, (run.count, run.out_size, run.in_size, *g.kernel_size)))
            total += sum(1 for _ in taps for _ in places)
    return total


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
        m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) or type(m).__name__ == "GroupedConv2d"
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


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.data(),
    st.sampled_from([1, 3, (3, 1)]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from(["pointwise_first", "spatial_first"]),
    st.booleans(),
)
def test_every_counter_that_can_count_agrees_on_any_operation(
    in_channels, out_channels, data, kernel_size, stride, dilation, order, pointwise
):
    channels = min(in_channels, out_channels) if not pointwise else out_channels if order[0] == "p" else in_channels
    module = SegmentedConv2d(
        in_channels,
        out_channels,
        kernel_size,
        segments=data.draw(st.integers(1, channels)),
        stride=stride,
        dilation=dilation,
        order=order if pointwise else "pointwise_first",
        pointwise=pointwise,
        activation=data.draw(st.sampled_from(["none", "elu"])) if pointwise else None,
    )
    shape = (in_channels, 7, 6)
    macs = measure_cost(module, shape).macs
    assert macs == fvcore_macs(module, shape) == torch_macs(module, shape) == counted_one_by_one(module, shape)


@pytest.mark.parametrize("backend", ["auto", "native", "coalesced", "compiled"])
def test_counts_are_those_of_the_operation_whatever_the_backend(backend, monkeypatch):
    expected = measure_cost(build_model("probe", segments=16), (3, 32, 32))
    monkeypatch.setenv("SPECTRUM_BACKEND", backend)
    model = build_model("probe", segments=16).to(memory_format=torch.channels_last)
    assert measure_cost(model, (3, 32, 32)) == expected


@pytest.mark.parametrize("segments", [1, 3, 16, "per_channel"])
def test_the_backward_pass_is_what_runs_there(segments, monkeypatch):
    """torch's own record of the backward pass, with the segments put right."""
    monkeypatch.setenv("SPECTRUM_BACKEND", "native")
    model = build_model("probe", segments=segments).eval()
    macs = 0

    class Backward(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal macs
            if func is torch.ops.aten.convolution_backward.default:
                gradient, _, weight = args[:3]
                macs += sum(args[10][:2]) * gradient.numel() * weight[0].numel()
            elif func is torch.ops.aten.mm.default:
                macs += args[0].numel() * args[1].shape[1]
            return func(*args, **(kwargs or {}))

    loss = model(torch.randn(1, 3, 32, 32)).sum()
    with Backward():
        loss.backward()
    cost = measure_cost(model, (3, 32, 32))
    assert cost.backward_macs == macs
    stem = next(layer for layer in cost.layers if layer.name == "stem.0")
    assert stem.backward_macs == stem.macs, "nobody needs the gradient of the image"
    assert cost.backward_macs == 2 * cost.macs - stem.macs


def test_layers_that_are_functions_are_counted_where_they_are_called():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(6, 2, 3, 3))
            self.mix = nn.Parameter(torch.zeros(6, 6), requires_grad=False)

        def forward(self, x_nchw):
            y_nchw = F.conv2d(x_nchw, self.kernel, groups=2).relu()
            return torch.einsum("nchw,cd->nd", y_nchw, self.mix)

    cost = measure_cost(nn.Sequential(Functional(), nn.Linear(6, 2)), (4, 5, 5))
    assert [(layer.name, layer.params) for layer in cost.layers] == [("0", 108), ("1", 14)]
    assert cost.layers[0].macs == 9 * 108 + 6 * 6
    assert cost.layers[0].backward_macs == 9 * 108 + 6 * 6, "of the kernel, and of the product's input"
    assert cost.nonlinearities == 1


def test_a_transposed_convolution_spreads_its_inputs():
    model = nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2)
    assert measure_cost(model, (4, 5, 6)).macs == 5 * 6 * 4 * 2 * 9 == torch_macs(model, (4, 5, 6))


def test_a_network_without_numbers_can_be_counted():
    with torch.device("meta"):
        model = build_model("probe", segments=3, activation="relu", norm=True)
    real = build_model("probe", segments=3, activation="relu", norm=True)
    assert measure_cost(model, (3, 32, 32)) == measure_cost(real, (3, 32, 32))


def test_norms_and_non_linearities_are_counted_as_they_run():
    plain, rich = (build_model("probe", activation=a, norm=n, depth=2) for a, n in (("none", False), ("gelu", True)))
    plain, rich = measure_cost(plain, (3, 32, 32)), measure_cost(rich, (3, 32, 32))
    operations = 3 * 2 * 2
    assert (plain.norms, plain.nonlinearities) == (1 + operations + 2, operations + 1)
    assert (rich.norms, rich.nonlinearities) == (plain.norms + operations, plain.nonlinearities + operations)


@pytest.mark.medium
@pytest.mark.parametrize("segments", [1, 3, 8, "per_channel"])
@pytest.mark.parametrize("order", ["pointwise_first", "spatial_first"])
def test_a_network_costs_the_sum_of_its_layers(segments, order):
    model = build_model("probe", segments=segments, order=order, activation="elu", norm=True, image_size=28)
    cost = measure_cost(model, (3, 28, 28))
    assert cost.macs == closed_form_macs(model, (3, 28, 28))
    assert cost.macs == fvcore_macs(model, (3, 28, 28)) == torch_macs(model, (3, 28, 28))
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.activations == ActivationCountAnalysis(model, torch.zeros(1, 3, 28, 28)).total()


def test_forward_macs_alone_are_the_same():
    model = build_model("probe", segments=3)
    assert forward_macs(model, (3, 32, 32)) == measure_cost(model, (3, 32, 32)).macs


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


@pytest.mark.parametrize(
    "shape", [(3, 0, 32), (), (-1,), 32, 3.5, (3, 32.0), (True, 3), "3", torch.zeros(3, 4), nn.ReLU()]
)
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"input_shape=.*example_inputs"):
        measure_cost(nn.Conv2d(3, 4, 1), shape)


@pytest.mark.parametrize("shape", [[3, 4, 5], torch.Size([3, 4, 5]), tuple(numpy.array([3, 4, 5]))])
def test_a_shape_is_any_sequence_of_whole_numbers(shape):
    assert measure_cost(nn.Conv2d(3, 4, 1), shape).macs == 12 * 20


def test_an_input_that_the_network_does_not_take_says_what_it_was_given():
    with pytest.raises(RuntimeError) as raised:
        measure_cost(nn.Embedding(9, 4), (3,))
    assert raised.value.__notes__ == [
        "The network was called with zeros of shape (1, 3) and type torch.float32. input_shape is the shape of one "
        "example without the batch, such as (3, 32, 32) for an image; other inputs go into example_inputs."
    ]


def test_inputs_and_a_network_are_asked_for():
    with pytest.raises(ValueError, match="got neither"):
        measure_cost(nn.ReLU())
    with pytest.raises(ValueError, match="got both"):
        measure_cost(nn.ReLU(), (3,), example_inputs=torch.zeros(3))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got str"):
        measure_cost("probe", (3,))
    with pytest.raises(ValueError, match="weight: its layer is lazy"):
        measure_cost(nn.LazyLinear(3), (3,))


class Many(nn.Module):
    """Takes words, an image, a scale by name, and nested extras; gives a dataclass."""

    @dataclass
    class Output:
        scores: torch.Tensor
        maps: dict
        nothing: None = None

    def __init__(self):
        super().__init__()
        self.words, self.image, self.head = nn.Embedding(9, 4), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, words, image, *, extras):
        maps = self.image(image)
        joined = self.words(words).mean(1) + maps.mean((2, 3)) + extras["bias"][0]
        return self.Output(self.head(joined), {"maps": [maps, None]})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_is_called_as_it_is_called(device):
    words, image, extras = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3, 6, 6), {"bias": [torch.zeros(2, 4)]}
    model = Many().to(device)
    cost = measure_cost(model, example_inputs={"words": words, "image": image, "extras": extras})
    assert [(layer.name, layer.macs, layer.backward_macs) for layer in cost.layers] == [
        ("words", 0, 0),
        ("image", 2 * 36 * 12, 2 * 36 * 12),
        ("head", 2 * 8, 2 * 2 * 8),
    ]
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_counts_are_of_exactly_the_inputs_that_are_given(wrap):
    for batch in (1, 3):
        cost = measure_cost(nn.Linear(4, 5), example_inputs=wrap(torch.zeros(batch, 4)))
        assert (cost.macs, cost.backward_macs, cost.activations) == (20 * batch, 20 * batch, 5 * batch)


def test_inputs_are_copied_and_one_tensor_stays_one():
    class Same(nn.Module):
        def forward(self, x, y):
            assert x is y
            assert x.requires_grad
            x = x * 1
            return x.add_(1)

    x = torch.zeros(3, requires_grad=True)
    measure_cost(Same(), example_inputs=(x, x))
    measure_cost(nn.ReLU(inplace=True), example_inputs=(negative := torch.full((3,), -1.0)))
    assert torch.equal(negative, torch.full((3,), -1.0))
    assert x.grad is None


def test_a_network_without_parameters_or_inputs_is_counted():
    class Constant(nn.Module):
        def forward(self):
            return torch.ones(2, 3) @ torch.ones(3, 4)

    assert measure_cost(Constant(), example_inputs=()).macs == 24
    assert measure_cost(nn.Flatten(), (3, 4)) == measure_cost(nn.Identity(), (5,))


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_a_network_gets_numbers_of_its_own_type(dtype):
    each = 4 if dtype.is_complex else 1
    assert measure_cost(nn.Linear(4, 5).to(dtype), (4,)).macs == 20 * each


def test_shared_layers_and_tied_weights_count_once_in_params_and_each_time_in_macs():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 9, False)
            self.head.weight = self.words.weight
            self.again = self.body

        def forward(self, words):
            return self.head(self.again(self.body(self.words(words))))

    cost = measure_cost(Tied(), example_inputs=torch.zeros(1, 3, dtype=torch.long))
    assert {layer.name: (layer.params, layer.macs) for layer in cost.layers} == {
        "words": (36, 0),
        "body": (16, 2 * 3 * 16),
        "head": (0, 3 * 36),
    }
    assert cost.backward_macs == 2 * cost.macs


def test_counting_leaves_buffers_and_random_numbers_as_they_were():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("other", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.other = self.other + torch.rand(())
            return x

    model, state = Counts(), torch.get_rng_state()
    calls, other = model.calls, model.other
    measure_cost(model, (3,))
    assert model.calls is calls
    assert model.other is other
    assert (float(calls), float(other)) == (0, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_traced_and_compiled_networks_are_counted():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).eval()
    expected = measure_cost(model, (1, 5, 5))
    others = [torch.jit.script(model), torch.jit.trace(model, torch.zeros(1, 1, 5, 5)), torch.compile(model)]
    for other in others:
        cost = measure_cost(other, (1, 5, 5))
        assert (cost.params, cost.macs, cost.backward_macs) == (
            expected.params,
            expected.macs,
            expected.backward_macs,
        )
        assert cost.not_counted == ()


@pytest.mark.filterwarnings("ignore")  # torch.ao's, of its future
def test_quantised_layers_are_counted_or_named():
    model = nn.Sequential(nn.Linear(4, 6), nn.LSTM(6, 5))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM})
    cost = measure_cost(quantised, example_inputs=torch.zeros(3, 2, 4))
    assert cost.macs == 3 * 2 * 24
    assert [(one.operator, one.layer) for one in cost.not_counted] == [("aten.quantized_lstm", "1")]


def test_speed_is_of_classifiers_of_any_input_and_else_refused_in_words():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(12, 3)).double()
    assert 0 < measure_cost(model, (3, 5), batch_size=2).speed.step < 5
    for model, said in (
        (nn.Conv1d(3, 4, 1), r"one example gives a tensor of shape \(1, 4, 5\)"),
        (nn.Flatten(), "no trainable weights"),
        (nn.Conv1d(3, 4, 1, device="meta"), 'a network on "meta" cannot be run'),
        (nn.Sequential(nn.Flatten(), nn.Linear(15, 3), Listed()), "one example gives list"),
    ):
        with pytest.raises(ValueError, match=f"batch_size: .*{said}"):
            measure_cost(model, (3, 5), batch_size=2)
    with pytest.raises(ValueError, match="give input_shape"):
        measure_cost(model, example_inputs=torch.zeros(1, 3, 5), batch_size=2)


class Listed(nn.Module):
    def forward(self, x):
        return [x]


def test_a_training_step_takes_time():
    model = build_model("probe", width=0.25, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.stem[0].weight.clone()
    assert 0 < time_training_step(model, optimizer, (4, 3, 8, 8), 10).median < 5
    assert not torch.equal(before, model.stem[0].weight), "the update is timed too"


def step_of(model, batch=8):
    return peak_memory(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), (batch, 3, 16, 16), 10)


def test_peak_memory_is_not_spoilt_by_what_ran_before():
    model = build_model("probe", width=0.5, image_size=16)
    alone = step_of(model)
    ballast = torch.zeros(50_000_000)
    step_of(build_model("probe", width=2, image_size=16))
    assert step_of(model) == alone
    del ballast


def test_peak_memory_is_that_of_the_fullest_moment():
    """One linear layer: weights, gradients, momentum, batch, and at most a few copies of what the loss keeps."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10, bias=False))
    weights, batch = 768 * 10 * 4, 8 * 768 * 4
    peak = step_of(model)
    copies = 2 * batch  # Flatten turns channels_last into a row, by copying
    assert 3 * weights + copies <= peak <= 3 * weights + copies + 5 * 8 * 10 * 4 + 2048
    assert 15 * copies <= step_of(model, 128) - peak <= 15 * (copies + 5 * 8 * 10 * 4) + 2048
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 256, 10))
    assert step_of(wide) > step_of(model) + 2 * 8 * 64 * 256 * 4, "activations that the backward pass needs"


def test_speed_is_measured_where_asked_and_leaves_the_network_alone():
    model = build_model("probe", width=0.25, image_size=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost = measure_cost(model, (3, 8, 8), batch_size=4)
    assert cost.speed is not None
    assert cost.speed.batch_size == 4
    assert 0 < cost.speed.latency < cost.speed.step < 5
    assert cost.speed.latency_iqr >= 0
    assert cost.speed.step_iqr >= 0
    assert cost.speed.peak_memory > 4 * cost.params
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="batch_size=0: expected a whole number of at least 1"):
        measure_cost(model, (3, 8, 8), batch_size=0)


def test_latency_is_measured_where_asked_and_leaves_the_network_alone():
    model = build_model("probe", width=0.25, image_size=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, cost = measure_cost(model, (3, 8, 8)), measure_cost(model, (3, 8, 8), latency=True, threads=2)
    assert plain.latency is None
    assert 0 < cost.latency.milliseconds < 5000
    assert cost.latency.iqr >= 0
    assert (cost.latency.threads, cost.latency.device) == (2, processor())
    assert str(cost.latency).endswith(f" on {processor()}, 2 threads")
    assert repr(cost) == repr(plain).replace(" layers)", f" layers, latency={cost.latency.milliseconds:.3g} ms)")
    assert replace(cost, latency=None) == plain
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert measure_cost(nn.Bilinear(2, 3, 4), example_inputs=(torch.ones(1, 2), torch.ones(1, 3)), latency=True).latency
    with pytest.raises(ValueError, match='latency: a network on "meta" cannot be run'):
        measure_cost(nn.Conv2d(3, 4, 1, device="meta"), (3, 8, 8), latency=True)
    with pytest.raises(ValueError, match="latency=1: expected True or False"):
        measure_cost(model, (3, 8, 8), latency=1)


def test_a_network_is_counted_where_gradients_are_off():
    model = build_model("probe", segments=4)
    expected = measure_cost(model, (3, 32, 32))
    with torch.inference_mode():
        assert measure_cost(model, (3, 32, 32)) == expected


def test_attention_is_two_products():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x_nchw):
            heads = x_nchw * self.scale
            return F.scaled_dot_product_attention(heads, heads, heads)

    assert measure_cost(Attention(), (4, 10, 8)).macs == 2 * 4 * 10 * 10 * 8

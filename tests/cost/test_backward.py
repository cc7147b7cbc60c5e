"""The counted backward pass is the one that autograd runs, by torch's own record of a real one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from spectrum import SegmentedConv2d, measure_cost

WIDTH = 4


def backward_macs_of_torch(model, *inputs):
    """Of a real backward pass from the sum of all outputs; torch's counter is right without segments."""
    model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        output = model(*inputs)
    outputs = [one for one in (output if isinstance(output, tuple) else (output,)) if one.requires_grad]
    with FlopCounterMode(display=False) as counter:
        if outputs:
            sum(one.sum() for one in outputs).backward()
    return counter.get_total_flops() // 2


class Steps(nn.Module):
    """A chain of steps on (N, WIDTH), some of which cut or bend autograd's graph."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        aside = []
        for step, which in self.steps:
            layer = self.layers[which]
            if step == "layer":
                x = layer(x)
            elif step == "detached":
                x = layer(x).detach()
            elif step == "no_grad":
                with torch.no_grad():
                    x = layer(x)
            elif step == "unused":
                layer(x)
            elif step == "second output":
                aside.append(layer(x))
            elif step == "skip":
                x = x + layer(x)
            elif step == "square":
                x = x @ self.weight @ self.weight.T
            elif step == "frozen weight":
                x = x @ self.weight.detach()
            elif step == "gram":
                x = (x @ x.T) @ x
            elif step == "checkpoint":
                x = x + torch.relu(layer(x))
        return (x, *aside)


KINDS = (
    *("layer", "detached", "no_grad", "unused", "second output", "skip", "square", "frozen weight", "gram"),
    "checkpoint",
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2)), min_size=1, max_size=6),
    st.sets(st.integers(0, 2)),
    st.booleans(),
)
def test_it_is_what_runs_whatever_cuts_the_graph(steps, frozen, wants_input):
    model = Steps(steps)
    for which in frozen:
        model.layers[which].requires_grad_(False)
    x = torch.randn(3, WIDTH, requires_grad=wants_input)
    cost = measure_cost(model, example_inputs=x)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert cost.backward_macs == backward_macs_of_torch(model, x)
    assert cost.not_counted == ()


@pytest.mark.parametrize("frozen", ["", "0", "2", "0 2", "0 2 4"])
@pytest.mark.parametrize("wants_input", [False, True])
def test_frozen_layers_pass_gradients_on_only_where_somebody_needs_them(frozen, wants_input):
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 5, 1), nn.Flatten(), nn.Linear(25, 2))
    for which in frozen.split():
        model[int(which)].requires_grad_(False)
    x = torch.randn(2, 3, 7, requires_grad=wants_input)
    cost = measure_cost(model, example_inputs=x)
    assert cost.backward_macs == backward_macs_of_torch(model, x)
    macs = {layer.name: layer.macs for layer in cost.layers}
    first = min((int(name) for name in macs if name not in frozen.split()), default=9)
    wanted = {
        name: (name not in frozen.split()) + (wants_input or int(name) > first) for name in macs
    }  # the gradients of its weight and of its input
    assert {layer.name: layer.backward_macs for layer in cost.layers} == {
        name: count * macs[name] for name, count in wanted.items()
    }


@pytest.mark.parametrize(
    "model",
    [
        nn.GRU(WIDTH, 5, 2),
        nn.LSTM(WIDTH, 5, bidirectional=True),
        nn.MultiheadAttention(WIDTH, 2),
        nn.TransformerEncoderLayer(WIDTH, 2, 8),
        nn.Conv1d(6, 5, 3, padding=1),
        nn.ConvTranspose1d(6, 5, 3),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.filterwarnings("ignore:TF32")
def test_it_is_what_runs_in_layers_of_torch(model):
    x = torch.randn(7, 6, WIDTH)
    inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    found = measure_cost(model, example_inputs=inputs).backward_macs

    class First(nn.Module):
        def forward(self, *args):
            output = model(*args)
            return output if isinstance(output, torch.Tensor) else (output[0], *nest(output[1]))

    def nest(value):
        return value if isinstance(value, tuple) else (value,)

    with torch.backends.mkldnn.flags(enabled=False):  # a fused kernel would hide the products of an LSTM
        assert found == backward_macs_of_torch(First(), *inputs)


def test_what_a_checkpoint_runs_again_counts_as_backward():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.second(checkpoint(lambda x: torch.relu(self.first(x)), x, use_reentrant=False))

    cost = measure_cost(Checkpointed(), (WIDTH,))
    each = WIDTH * WIDTH
    assert [(layer.name, layer.macs, layer.backward_macs) for layer in cost.layers] == [
        ("first", each, 2 * each),  # run again, and the gradient of its weight
        ("second", each, 2 * each),
    ]


def test_a_product_with_a_vector_has_gradients_too():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.direction = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5))

        def forward(self, x):
            return self.direction @ (self.weight @ x)

    cost = measure_cost(Vector(), example_inputs=torch.zeros(3))
    assert (cost.macs, cost.backward_macs) == (15 + 5, 15 + 5 + 5)


def test_a_function_with_a_backward_pass_of_its_own_is_seen():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, gradient):
            x, _ = ctx.saved_tensors
            return None, x.T @ gradient  # of the weight alone

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.weight = nn.Linear(3, 4), nn.Parameter(torch.ones(4, 5))

        def forward(self, x):
            return Product.apply(self.before(x), self.weight)

    cost = measure_cost(Layer(), (3,))
    assert (cost.macs, cost.backward_macs) == (12 + 20, 20)


def test_a_backward_pass_that_fails_is_named():
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            y = torch.sigmoid(self.layer(x))
            z = self.layer(y * y)
            y.add_(1)
            return z + y

    cost = measure_cost(Spoilt(), (3,))
    assert cost.macs == 18
    assert [one.backward for one in cost.not_counted] == [True]
    assert "modified by an inplace operation" in cost.caveat


def test_gradients_that_are_there_and_hooks_of_autograd_stay():
    model = SegmentedConv2d(4, 6, segments=2)
    model(torch.ones(1, 4, 5, 5)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    accumulated = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(accumulated.append)
    measure_cost(model, (4, 5, 5))
    assert not accumulated
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)

"""float32 results with all their gradients against the same in float64, in every layout that a tensor may have."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import strategies as st
from torch._dynamo.backends.debugging import aot_eager

from spectrum.conv.backends import compiled
from spectrum.conv.backends.choice import Choice, candidates
from spectrum.conv.grouped import GroupedConv2d
from spectrum.conv.kernels import torch_operation
from spectrum.conv.norm import BatchNormAct2d

LAST = torch.channels_last

# Rounding adds up like a random walk: a sum of n products is off by about eps·√n of its size, eps = 1.2e-7. This is
# over a hundred times that, for sums of sums; a wrong tap or channel is off by as much as the result. Sizes below 1
# count as 1, which is the size of the inputs, so that results are not held to a precision that cancellation took.
TOLERANCE = 2e-5


def assert_exact(ours, exact, terms):
    """Each of our tensors is as near to the exact one as a sum of `terms` products in float32 can be."""
    for part, (mine, true) in enumerate(zip(ours, exact, strict=True)):
        assert mine.shape == true.shape, part
        if mine.numel():
            error = (mine.double() - true.double()).abs().max().item()
            allowed = TOLERANCE * math.sqrt(terms) * max(1.0, true.abs().max().item())
            assert error <= allowed, f"part {part} (0 is the output, then gradients): off by {error}, allowed {allowed}"


def with_gradients(function, inputs, arrange=lambda gradient: gradient):
    """Output, and gradients of each input, for a gradient of the output that is the same in float32 and float64."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    return (y.detach(), *torch.autograd.grad(y, inputs, arrange(_fixed(y, 0))))


def with_second_gradients(function, inputs):
    """Gradients of a fixed mixture of all first gradients, with respect to inputs and the output's gradient."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    gy = _fixed(y, 0).requires_grad_()
    gradients = torch.autograd.grad(y, inputs, gy, create_graph=True)
    mixture = sum((gradient * _fixed(gradient, i + 1)).sum() for i, gradient in enumerate(gradients))
    return (mixture.detach(), *torch.autograd.grad(mixture, [*inputs, gy], materialize_grads=True))


def doubled(tensors):
    return [tensor.detach().double() for tensor in tensors]


def _fixed(like, seed):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.dtype)


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inside(room, view, x_nchw):
    """The same numbers as a view into a larger tensor, whose other numbers are NaN."""
    view = view(room.fill_(torch.nan))
    assert view.shape == x_nchw.shape
    return view.copy_(x_nchw)


def _sliced(x_nchw):
    n, c, h, w = x_nchw.shape
    return _inside(x_nchw.new_empty(n, c + 2, h + 1, 2 * w), lambda room: room[:, 1:-1, 1:, ::2], x_nchw)


def _sliced_last(x_nchw):
    n, c, h, w = x_nchw.shape
    room = torch.empty(n, c + 3, h, w + 1, dtype=x_nchw.dtype, memory_format=LAST)
    return _inside(room, lambda room: room[:, 2:-1, :, 1:], x_nchw)


LAYOUTS = {
    "contiguous": lambda x_nchw: x_nchw.contiguous(),
    "channels_last": lambda x_nchw: x_nchw.contiguous(memory_format=LAST),
    "transposed": lambda x_nchw: x_nchw.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": _sliced,
    "sliced channels_last": _sliced_last,
}
# What `y.sum().backward()` gives: one number everywhere, without strides.
GRADIENT_LAYOUTS = {**LAYOUTS, "expanded": lambda gradient: gradient.new_ones(()).expand(gradient.shape)}


CHOICES = ("auto", *candidates())  # what a layer may be made with
# one call of Triton's interpreter takes seconds; tests/conv/test_triton.py has its quick cases
EVERY_CHOICE = [pytest.param(name, marks=pytest.mark.slow) if name == "triton" else name for name in CHOICES]


def chosen(module, choice):
    """A copy of the module that prefers this backend; "unbound" and "library" are auto, see `without`."""
    module = copy.deepcopy(module)
    name = choice if choice in CHOICES else "auto"
    for part in module.modules():
        if isinstance(part, GroupedConv2d):
            part.choice = Choice(name)
        elif isinstance(part, BatchNormAct2d):
            part.backend = name
    return module


@contextmanager
def without(choice):
    """ "unbound" calls kernels from Python, as torch.compile does; "library" runs without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        if choice == "unbound":
            patch.setattr(torch_operation, "bound", lambda name: None)
        if choice == "library":
            patch.setattr(compiled, "_has_kernels", lambda: False)
        yield


@pytest.fixture
def surroundings(request):
    """Surroundings of a whole test for the choice of `without`."""
    with without(getattr(request.node, "callspec", None) and request.node.callspec.params.get("choice")):
        yield


def noting_calls():
    """A backend for torch.compile, and the list of what its graphs call."""
    called = []

    def backend(graph, example):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return aot_eager(graph, example)

    return backend, called


def function_of(module):
    """A module as a function of input and parameters."""
    names = [name for name, _ in module.named_parameters()]
    return lambda x, *values: torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))


@st.composite
def sizes_of(draw, channels):
    """Explicit sizes of up to five segments."""
    cuts = sorted(draw(st.sets(st.integers(1, channels - 1), max_size=4))) if channels > 1 else []
    return tuple(b - a for a, b in zip([0, *cuts], [*cuts, channels], strict=True))

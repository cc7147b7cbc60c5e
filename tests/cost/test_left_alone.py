"""Counting restores a network, sees its outputs, and refuses with a reason what it cannot count."""

import threading
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from spectrum import measure_cost
from spectrum.cost.operators import macs_of
from spectrum.cost.outputs import tensors_in

# What it leaves


class LowRank(nn.Linear):
    """A linear layer that adds two small factors to its weight for evaluation, as adapters do."""

    def __init__(self):
        super().__init__(4, 4)
        self.down, self.up = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(4, 1))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
        return self


class Shrinks(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(0.5)
        return super().forward(x)


class Swaps(nn.Linear):
    """Replaces its memory, and then its parameter, by others."""

    def forward(self, x):
        self.weight.data = self.weight.data.double()[:2].float() * 3
        self.bias = nn.Parameter(torch.zeros(2))
        self.added = nn.Parameter(torch.zeros(2))
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Embedding(9, 4, max_norm=0.5), torch.arange(9)),
        (nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), LowRank()), torch.arange(9)),
        (LowRank(), torch.ones(2, 4)),
        (LowRank().eval(), torch.ones(2, 4)),
        (nn.Sequential(LowRank().eval(), LowRank()), torch.ones(2, 4)),
        (nn.Sequential(nn.Sequential(LowRank()).eval(), LowRank()).eval(), torch.ones(2, 4)),
        (Shrinks(4, 4), torch.ones(2, 4)),
        (Swaps(4, 4), torch.ones(2, 4)),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_parameters_and_modes_are_what_they_were(model, x, fails):
    parameters = dict(model.named_parameters())
    places = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    numbers = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    modes = [(module.training, getattr(module, "merged", None)) for module in model.modules()]
    if fails:

        class Fails(nn.Sequential):
            def forward(self, x):
                super().forward(x)
                raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            measure_cost(Fails(model), example_inputs=x)
    else:
        measure_cost(model, example_inputs=x)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.data_ptr() == places[name]
        assert torch.equal(parameter, numbers[name])
    assert modes == [(module.training, getattr(module, "merged", None)) for module in model.modules()]


# What it sees


@pytest.mark.parametrize("pool", [ThreadPoolExecutor(1), None], ids=["pool", "thread"])
def test_layers_that_another_thread_calls_are_named(pool):
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            if pool is not None:
                return pool.submit(self.second, self.first(x)).result()
            found = []
            thread = threading.Thread(target=lambda: found.append(self.second(self.first(x))))
            thread.start()
            thread.join()
            return found[0]

    cost = measure_cost(Threaded(), (4,))
    assert "second" in [one.layer for one in cost.not_counted]
    assert "another thread" in cost.caveat


def test_functions_in_another_thread_are_named_where_the_backward_pass_shows_them():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(nn.functional.linear, x, self.weight).result()

    cost = measure_cost(Functions(), (4,))
    assert cost.macs == 0
    assert "a forward pass that was not seen, such as one in another thread" in cost.caveat


class Slotted:
    __slots__ = ("__hidden", "scores")

    def __init__(self, scores):
        self.scores, self.__hidden = None, scores


class Wraps(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(3, 4), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: deque([y]),
        Slotted,
        lambda y: {y},
        lambda y: frozenset([y]),
        lambda y: {"y": y}.values(),
        lambda y: {"y": y}.items(),
        lambda y: OrderedDict(y=[deque([Slotted(y)])]).values(),
    ],
)
def test_outputs_are_found_in_what_can_be_looked_into(wrap):
    cost = measure_cost(Wraps(wrap), (3,))
    assert (cost.macs, cost.backward_macs, cost.not_counted) == (12, 12, ())


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda y: iter([y]), "list_iterator"),
        (lambda y: (one for one in [y]), "generator"),
        (lambda y: lambda: y, "function"),
        (lambda y: [map(abs, [y])], "map"),
        (lambda y: (y, iter([y])), "list_iterator"),
    ],
)
def test_outputs_that_cannot_be_looked_into_are_named(wrap, kind):
    cost = measure_cost(Wraps(wrap), (3,))
    (one,) = cost.not_counted
    assert one.operator == f"the backward pass (no tensor found in the output of type {kind})"
    assert one.backward


@pytest.mark.parametrize(
    "wrap", [lambda y: None, lambda y: [], lambda y: 5, lambda y: y.detach(), lambda y: {"a": 1.0}]
)
def test_outputs_without_a_gradient_hide_nothing(wrap):
    cost = measure_cost(Wraps(wrap), (3,))
    assert (cost.backward_macs, cost.not_counted) == (0, ())


@pytest.mark.parametrize("fixes", [lambda m, x: torch.export.export(m, (x,)).module(), lambda m, x: frozen(m)])
@pytest.mark.parametrize("inside", [False, True])
def test_exported_and_frozen_networks_are_counted(fixes, inside):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.ones(1, 3, 5, 5)
    fixed = fixes(model, x)
    network = nn.Sequential(fixed, nn.Conv2d(4, 2, 1), nn.Dropout()) if inside else fixed
    cost = measure_cost(network, example_inputs=x)
    assert cost.macs == 4 * 27 * 9 + 8 * 9 * inside
    assert not inside or [network.training, network[1].training, network[2].training] == [True] * 3


def frozen(model):
    return torch.jit.freeze(torch.jit.script(model))


# Complex numbers and operators of others


def test_a_product_of_complex_numbers_is_four_of_real_ones_in_every_operator():
    aten, made = torch.ops.aten, {}
    for dtype in (torch.float32, torch.complex64):
        n_k, k_m = torch.ones(2, 3, dtype=dtype), torch.ones(3, 4, dtype=dtype)
        n_m, k = torch.ones(2, 4, dtype=dtype), torch.ones(3, dtype=dtype)
        many = [one.expand(5, *one.shape) for one in (n_k, k_m)]
        calls = {
            aten.mm.default: (n_k, k_m),
            aten.bmm.default: tuple(many),
            aten.mv.default: (n_k, k),
            aten.dot.default: (k, k),
            aten.vdot.default: (k, k),
            aten.addmm.default: (n_m, n_k, k_m),
            aten.addbmm.default: (n_m, *many),
            aten.baddbmm.default: (n_m.expand(5, 2, 4), *many),
            aten.addmv.default: (k[:2], n_k, k),
            aten.addr.default: (n_k, k[:2], k),
            aten.linear.default: (n_k, k_m.T),
        }
        made[dtype] = {str(op): macs_of(op, args, {}, op(*args)) for op, args in calls.items()}
    assert made[torch.complex64] == {name: 4 * macs for name, macs in made[torch.float32].items()}
    assert all(made[torch.float32].values())


def test_operators_of_others_are_named_whatever_their_schema_looks_like():
    library = torch.library.Library("spectrum_test_of_others", "DEF")
    library.define("make(int n) -> Tensor")
    library.define("squared(Tensor(a) x) -> Tensor(a)")
    library.define("size(Tensor x) -> int")
    library.define("doubled(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,))
    ours = torch.ops.spectrum_test_of_others
    library.impl("make", lambda n: torch.ones(n, n), "CompositeExplicitAutograd")
    library.impl("squared", lambda x: x.copy_(x @ x), "CompositeExplicitAutograd")
    library.impl("size", lambda x: x.shape[0], "CompositeExplicitAutograd")
    library.impl("doubled", lambda x: 2 * x, "CompositeExplicitAutograd")

    class Others(nn.Module):
        def forward(self, x):
            ours.size(x)
            return ours.doubled(ours.squared(ours.make(x.shape[0])))

    cost = measure_cost(Others(), example_inputs=torch.ones(3))
    named = {one.operator.partition(".")[2] for one in cost.not_counted}
    assert {"make", "squared", "size"} <= named
    assert "doubled" not in named


# What it refuses


@pytest.mark.parametrize("extra", [torch.Size([2, 4]), torch.max(torch.ones(2, 2), 0), OrderedDict(a=torch.ones(1))])
def test_subclasses_of_tuples_come_as_they_are(extra):
    class Takes(nn.Linear):
        def forward(self, x, extra):
            assert type(extra) is type(self.expects)
            return super().forward(x)

    model = Takes(4, 4)
    model.expects = extra
    assert measure_cost(model, example_inputs=(torch.ones(2, 4), extra)).macs == 32


@dataclass(frozen=True)
class Held:
    tensor: torch.Tensor


@pytest.mark.parametrize("hold", [lambda x: deque([x], 3), lambda x: frozenset([x]), Held, lambda x: [Held(x)]])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inputs_are_copied_in_whatever_holds_them(hold, device):
    class Changes(nn.Linear):
        def forward(self, held):
            return super().forward(next(tensors_in(held)).zero_())

    x = torch.ones(2, 4)
    assert measure_cost(Changes(4, 4, device=device), example_inputs=(hold(x),)).macs == 32
    assert torch.equal(x, torch.ones(2, 4))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({"batch_size": wrong}, "batch_size=.*: expected a whole number") for wrong in ("4", 2.5, True, 0, -1)),
        *(({"threads": wrong}, "threads=.*: expected a whole number") for wrong in (0, -1, "2", True, 1.5, None)),
        *(({"input_shape": wrong}, "input_shape=.*: expected") for wrong in (b"\x08", bytearray(b"\x08"), (10**20,))),
    ],
)
def test_what_is_no_number_is_refused_by_name(options, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        measure_cost(nn.Linear(8, 2), **{"input_shape": (8,), **options})


def test_the_note_on_zeros_is_of_networks_that_were_called():
    class NoModes(nn.Linear):
        def train(self, mode=True):
            raise RuntimeError("no modes")

    with pytest.raises(RuntimeError, match="no modes") as caught:
        measure_cost(NoModes(3, 4), (3,))
    assert not getattr(caught.value, "__notes__", [])
    with pytest.raises(RuntimeError) as caught:
        measure_cost(nn.Linear(3, 4), (5,))
    assert "The network was called with zeros of shape (1, 5)" in caught.value.__notes__[0]

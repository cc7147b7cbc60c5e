"""What a built network costs, layer by layer: parameters, MACs and FLOPs forward and backward, activations.

One MAC is one multiply-add; FLOPs are 2 × MACs. Counted are convolutions and matrix products, for one example or for
the inputs that are given: what papers quote. Batch normalisation, biases, activations and pools are left out.

The network runs once, in evaluation mode, forward and then backward. Every product that torch runs is counted by a
closed form of its shapes (`operators.py`); hooks say which layer asked for it. So a layer written with
`torch.nn.functional` counts as a module does, and a gradient counts where autograd computes it, not where
`requires_grad` suggests it. What ran and has no known cost is named in the result.

While a network is counted, attention runs as its two products and recurrent layers run step by step, in place of the
library's fused kernels. So a count is the same on every device, and no kernel hides its products.
"""

from __future__ import annotations

import dataclasses
import operator
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from spectrum._torch import (
    OpOverload,
    TorchDispatchMode,
    backward_node,
    dispatch_modes,
    has_composite_kernel,
    next_sequence_number,
    sequence_number,
    without_libraries,
)
from spectrum.conv.arguments import LARGEST, whole
from spectrum.cost.operators import macs_of
from spectrum.cost.speed import Speed, measure_speed

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs. Counts are of one example, or of the inputs that were given."""

    name: str  # of its module
    kind: str  # the module's class
    params: int  # trainable numbers of its own
    macs: int  # multiply-adds, forward
    backward_macs: int  # of the gradients of its inputs and of its weights, where autograd computes them
    activations: int  # numbers that its convolutions and matrix products put out


@dataclass(frozen=True)
class NotCounted:
    """An operator that ran and whose arithmetic is unknown, so that the counts lack it."""

    operator: str  # such as "aten._fft_r2c"
    layer: str  # name of the module that ran it
    calls: int
    backward: bool  # whether it ran in the backward pass


@dataclass(frozen=True, repr=False)
class Cost:
    """What one network costs at one input size. Counts are of one example, or of the inputs that were given.

    With `not_counted`, MACs and activations are lower bounds.
    """

    layers: tuple[LayerCost, ...]  # those with parameters or products, in the order of the modules
    norms: int  # batch normalisations of a forward pass
    nonlinearities: int  # ReLUs and the like of a forward pass
    speed: Speed | None = None  # measured, where `measure_cost` was asked to
    not_counted: tuple[NotCounted, ...] = ()

    @property
    def params(self) -> int:
        """Trainable numbers; a weight that several layers share counts once."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of a forward pass; a weight that is used several times counts each time."""
        return sum(layer.macs for layer in self.layers)

    @property
    def backward_macs(self) -> int:
        """Multiply-adds of a backward pass from all outputs: the gradients that autograd computes."""
        return sum(layer.backward_macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Numbers that convolutions and matrix products put out."""
        return sum(layer.activations for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass: 2 × MACs."""
        return 2 * self.macs

    @property
    def backward_flops(self) -> int:
        """Floating-point operations of a backward pass: 2 × MACs."""
        return 2 * self.backward_macs

    @property
    def caveat(self) -> str | None:
        """A sentence on what ran and was not counted; None where everything was."""
        if not self.not_counted:
            return None
        named = "; ".join(_said(one) for one in self.not_counted)
        return f"Not counted, since what it multiplies is unknown: {named}. The MACs are a lower bound."

    def __repr__(self) -> str:
        names = ("params", "macs", "backward_macs", "activations")
        counts = [*(f"{name}={getattr(self, name)}" for name in names), f"{len(self.layers)} layers"]
        if self.not_counted:
            counts.append(f"not counted: {', '.join(sorted({one.operator for one in self.not_counted}))}")
        return f"Cost({', '.join(counts)})"


def _said(one: NotCounted) -> str:
    calls = "call" if one.calls == 1 else "calls"
    where = f" in {one.layer!r}" if one.layer else ""
    return f"{one.operator} ({one.calls} {calls}{where}{', backward' if one.backward else ''})"


class Inputs(NamedTuple):
    """What a network is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def measure_cost(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    example_inputs: Any = None,
    batch_size: int | None = None,
    threads: int = 1,
) -> Cost:
    """Count a network's parameters and the arithmetic of one forward and one backward pass; measure its speed if asked.

    Args:
        model: on any device, "meta" too unless speed is measured. Parameters, gradients, buffers, modes and the state
            of random numbers are left as they were; hooks run. A compiled model is counted as the eager one.
        input_shape: of one example, without the batch: (C, H, W), (L,), (C, L), (C, D, H, W) or any other. The network
            is called with a batch of one, of zeros of its own floating type.
        example_inputs: in place of `input_shape`, what the network is called with: a tensor, a tuple or list of
            arguments, or a dict of keyword arguments, nested as they need be. A single argument that is itself a
            list or dict goes into a tuple: `([image, image],)`. Counts are of exactly these inputs, a batch in them
            included: divide by its size for one example. They are copied, for a model on "meta" to "meta". A gradient
            of an input is counted where the input requires one.
        batch_size: images a training step, of which time and peak memory are then measured, beside the latency of one
            image: see `Speed`. Takes some seconds, and needs `input_shape` and a classifier. None only counts.
        threads: that torch may use for the measurements.

    The backward pass starts from every output that has a gradient, in whatever structure the outputs come. Modules that
    another thread calls are named as not counted; bare functions that run in another thread are not seen.

    Raises ValueError for a shape that is not of positive whole numbers, for both or neither of shape and inputs, for
    layers that have no shape yet, for a batch size or threads that are no whole number of at least 1, and for a speed
    that cannot be measured; TypeError for what is no module; and what the network raises for an input that it does not
    take.

    >>> from spectrum import build_model
    >>> cost = measure_cost(build_model("probe", segments=8, in_channels=1, image_size=28), (1, 28, 28))
    >>> cost
    Cost(params=94314, macs=2877824, backward_macs=5699200, activations=57290, 25 layers)
    >>> cost.layers[0]
    LayerCost(name='stem.0', kind='Conv2d', params=288, macs=56448, backward_macs=56448, activations=6272)

    >>> from torch import nn, zeros
    >>> measure_cost(nn.MultiheadAttention(8, 2), example_inputs=3 * (zeros(5, 1, 8),)).macs  # 4 · 5·8·8 + 2 · 5·5·8
    1680
    """
    inputs = inputs_of(model, input_shape, example_inputs)
    threads = whole("threads", threads)
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size)
    if batch_size is not None and input_shape is None:
        raise ValueError("batch_size: speed is measured of a classifier with random inputs; give input_shape")
    speed = None
    if batch_size is not None and input_shape is not None:
        with torch.inference_mode(False), torch.enable_grad():
            speed = measure_speed(model, (batch_size, *inputs.args[0].shape[1:]), threads=threads)
    products = _count(model, inputs, zeros=input_shape is not None)
    modules = dict(model.named_modules())
    params = dict.fromkeys(modules, 0)
    owners: dict[str, str] = {}  # modules that are never called, such as lists of parameters, belong to their parents
    seen: set[Tensor] = set()
    for name, module in modules.items():
        owners[name] = owners[name.rpartition(".")[0]] if isinstance(module, nn.ParameterList) and name else name
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                params[owners[name]] += parameter.numel()
    layers = tuple(
        LayerCost(name, type(modules[name]).__name__, params[name], *products.of.get(name, (0, 0, 0)))
        for name in params
        if params[name] or name in products.of
    )
    not_counted = tuple(NotCounted(*which[:2], calls, which[2]) for which, calls in products.unknown.items())
    return Cost(layers, products.norms, products.nonlinearities, speed, not_counted)


def inputs_of(model: nn.Module, input_shape: Sequence[int] | None, example_inputs: Any) -> Inputs:
    """What to call a network with: one example of zeros, or a copy of the inputs that are given.

    Raises as `measure_cost` does.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if (input_shape is None) == (example_inputs is None):
        given = "neither" if input_shape is None else "both"
        raise ValueError(f"input_shape, example_inputs: got {given}; give one of them")
    like = _typical(model)
    with torch.inference_mode(False), torch.no_grad():
        if input_shape is not None:
            return Inputs((torch.zeros(1, *_checked(input_shape), dtype=like.dtype, device=like.device),), {})
        copied = _copied(example_inputs, like.device, {})
    if isinstance(copied, Mapping):
        return Inputs((), {str(name): value for name, value in copied.items()})
    return Inputs(tuple(copied) if type(copied) in (tuple, list) else (copied,), {})


def _checked(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, Sequence) and not isinstance(shape, str | bytes | bytearray) and shape:
        try:
            sizes = tuple(0 if isinstance(size, bool) else operator.index(size) for size in shape)
        except TypeError:
            sizes = ()
        if sizes and min(sizes) >= 1 and max(sizes) <= LARGEST:
            return sizes
    said = type(shape).__name__ if isinstance(shape, Tensor | nn.Module) else repr(shape)
    raise ValueError(
        f"input_shape={said}: expected the positive whole numbers of one example's shape, such as (3, 32, 32); "
        "other inputs go into example_inputs"
    )


def _typical(model: nn.Module) -> Tensor:
    """A tensor of the type and on the device that a network's inputs have."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ValueError(f"{name}: its layer is lazy and has no shape yet; call the network once, then count it")
    floating = [tensor for _, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    device = tensors[0][1].device if tensors else torch.empty(0).device
    return floating[0] if floating else torch.empty(0, device=device)


def _copied(value: Any, device: torch.device, known: dict[int, Tensor]) -> Any:
    """The same structure with copies of its tensors, one each, which the network may then change in place."""
    if isinstance(value, Tensor):
        if id(value) not in known:
            copied = value.detach().to("meta") if device.type == "meta" else value.detach().clone()
            known[id(value)] = copied.requires_grad_() if value.requires_grad else copied
        return known[id(value)]
    if isinstance(value, Mapping):
        items = {name: _copied(item, device, known) for name, item in value.items()}
        return items if type(value) is dict else _rebuilt(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # one with names
        return tuple.__new__(type(value), [_copied(item, device, known) for item in value])
    if isinstance(value, list | tuple):
        items_listed = [_copied(item, device, known) for item in value]
        plain = list if isinstance(value, list) else tuple
        return plain(items_listed) if type(value) is plain else _rebuilt(value, plain(items_listed))
    if isinstance(value, deque | set | frozenset):
        return type(value)(_copied(item, device, known) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        instance = copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(instance, field.name, _copied(getattr(value, field.name), device, known))
        return instance
    return value


def _rebuilt(value: Any, items: Any) -> Any:
    try:
        return type(value)(items)
    except Exception:  # a container that is made otherwise; its items are what counts
        return items


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a network's output, in whatever structure: containers, dataclasses, objects with attributes."""
    return (one for one in _leaves_of(value) if isinstance(one, Tensor))


def _leaves_of(value: Any) -> Iterator[Any]:
    """What a structure is made of at its ends: tensors, and what holds nothing that can be looked at."""
    waiting, met = [value], dict[int, Any]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif id(one) not in met:
            met[id(one)] = one  # kept, so that no other gets its id
            parts = _parts_of(one)
            if parts is None:
                yield one
            else:
                waiting.extend(parts)


def _parts_of(value: Any) -> list[Any] | None:
    """What a container or an object holds; None for what cannot be looked at without changing it."""
    if isinstance(value, _PLAIN):
        return []
    parts = list[Any]()
    if isinstance(value, Mapping):
        parts.extend(value.values())
    elif isinstance(value, _CONTAINERS):
        parts.extend(value)
    if dataclasses.is_dataclass(value):
        parts.extend(getattr(value, field.name, None) for field in dataclasses.fields(value))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            parts.append(getattr(value, f"_{kind.__name__.lstrip('_')}{name}" if private else name, None))
    parts.extend(getattr(value, "__dict__", {}).values())
    return parts if parts or isinstance(value, (Mapping, *_CONTAINERS)) else None


_PLAIN = (str, bytes, type, nn.Module, bool, int, float, complex, type(None), torch.dtype, torch.device)
_CONTAINERS = (list, tuple, set, frozenset, deque, KeysView, ValuesView, ItemsView)


def _hides_tensors(output: Any) -> str | None:
    """The type of what may hold tensors that are not found; None where there is no such thing."""
    leaves = list(_leaves_of(output))
    hidden = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    if len(hidden) < len(leaves):  # something is found; only what gives one thing after another may have more
        hidden = [leaf for leaf in hidden if isinstance(leaf, Iterator)]
    return type(hidden[0]).__name__ if hidden else None


def run_backward(output: Any) -> None:
    """Compute what `backward()` from all outputs at once would, without changing any `grad`."""
    started = list({id(t): t for t in tensors_in(output) if t.grad_fn is not None}.values())
    leaves = _leaves([tensor.grad_fn for tensor in started])
    if started and leaves:
        torch.autograd.grad(started, leaves, [torch.zeros_like(t) for t in started], allow_unused=True)


def _leaves(nodes: list[Any]) -> list[Tensor]:
    """Everything that autograd would accumulate a gradient in."""
    waiting, met, leaves = list(nodes), set(nodes), list[Tensor]()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        new = {following for following, _ in node.next_functions if following is not None} - met
        met |= new
        waiting.extend(new)
    return leaves


def forward_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs of a forward pass of one example, as `measure_cost` counts them, without the time that all else takes."""
    products = _count(model, inputs_of(model, input_shape, None), backward=False)
    return sum(forward for forward, _, _ in products.of.values())


def _called(model: nn.Module, inputs: Inputs, zeros: bool) -> Any:
    """The output; an error says with what the network was called, where the caller gave only a shape."""
    try:
        return model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        if zeros:
            x = inputs.args[0]
            error.add_note(
                f"The network was called with zeros of shape {tuple(x.shape)} and type {x.dtype}; "
                "give example_inputs for others."
            )
        raise


def _count(model: nn.Module, inputs: Inputs, *, backward: bool = True, zeros: bool = False) -> _Products:
    """Run a network forward and backward; forward alone, where torch has no backward pass for it on this device."""
    products = _Products()
    try:
        with _watched(model, products), torch.enable_grad():
            before = next_sequence_number()
            output = _called(model, inputs, zeros)
            wants_gradient = next_sequence_number() > before
            products.backward = True
            if backward:
                if wants_gradient and (hidden := _hides_tensors(output)):
                    name = f"the backward pass (no tensor found in the output of type {hidden})"
                    products.unknown[name, "", True] += 1
                _run_backward_of(output, products)
                products.name_what_ran_elsewhere()
    except NotImplementedError as error:
        if _typical(model).is_meta or products.backward:
            raise  # numbers may be all that it lacks
        products = _Products()
        with _watched(model, products), torch.no_grad():
            _called(model, inputs, zeros)
        products.unknown[f"the backward pass ({first_line(error)})", "", True] += 1
    return products


def _run_backward_of(output: Any, products: _Products) -> None:
    try:
        run_backward(output)
    except Exception as error:
        if any(tensor.is_meta for tensor in tensors_in(output)):
            raise  # numbers may be all that it lacks
        products.unknown[f"the rest of the backward pass ({first_line(error)})", "", True] += 1


@contextmanager
def _watched(model: nn.Module, products: _Products) -> Iterator[None]:
    """While entered, `products` sees everything that runs, and the network is in evaluation mode."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with (
        torch.inference_mode(False),
        torch.random.fork_rng(devices=list(devices)),
        _keeping_numbers(model),
        _evaluating(model),
        _without_fused_kernels(),
        _telling(model, products),
        products,
        _Leaving(products),
    ):
        yield


def first_line(error: BaseException) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class _Products(TorchDispatchMode):
    """Counts every convolution and matrix product that runs while it is entered, for the layer that runs it.

    Under it the operation takes the library's own convolutions, whatever the lowering, so that none is missed.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        self.backward = False
        self.of: dict[str, tuple[int, int, int]] = {}  # MACs, backward MACs, activations
        self.unknown: Counter[tuple[str, str, bool]] = Counter()  # operator, layer, backward
        self.norms = self.nonlinearities = 0
        self.since: list[int] = []  # the next node of autograd's graph when another module began to run …
        self.ran: list[str] = []  # … and which it was

    def enters(self, name: str) -> None:
        if not self._watches():
            self.unknown["a module that was called in another thread", name, self.backward] += 1
            return
        self.running.append(name)
        self._changes()

    def leaves(self) -> None:
        if self._watches():
            self.running.pop()
            self._changes()

    def _watches(self) -> bool:
        """Whether what runs here is seen: torch's modes hold in the thread that entered them."""
        return any(mode is self for mode in dispatch_modes())

    def name_what_ran_elsewhere(self) -> None:
        """Name layers of which the backward pass has products and the forward pass had none that were seen."""
        named = {layer for _, layer, backward in self.unknown if not backward}
        for layer, (forward, backward, _) in self.of.items():
            if backward and not forward and layer not in named:
                self.unknown["a forward pass that was not seen, such as one in another thread", layer, False] += 1

    def _changes(self) -> None:
        self.since.append(next_sequence_number())
        self.ran.append(self.running[-1] if self.running else "")

    def layer(self) -> str:
        """The module that runs; in the backward pass, the one whose forward pass is being differentiated."""
        if self.running or not self.backward:
            return self.running[-1] if self.running else ""
        node = backward_node()
        place = bisect_right(self.since, sequence_number(node)) if node is not None else 0
        return self.ran[place - 1] if place else ""

    def misses(self, name: str) -> None:
        """Remember what has no known cost."""
        self.unknown[name, self.layer(), self.backward] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a class of tensors that says itself what it is made of
        if torch.is_inference_mode_enabled() and isinstance(func, OpOverload) and has_composite_kernel(func):
            with self:  # in this mode torch has not yet made the others of it when it is seen
                return func.decompose(*args, **kwargs)
        packet = getattr(func, "overloadpacket", func)
        if self.backward and packet is aten.convolution_backward:
            result: Any = _gradients_of_nothing(*args)
        else:
            result = func(*args, **kwargs)
        if not self.backward:
            self.norms += packet in _NORMS
            self.nonlinearities += packet in _NONLINEARITIES
        macs = macs_of(func, args, kwargs, result)
        if macs == 0 and packet is aten.mul and self._multiplies_vectors():
            macs = result.numel() * (4 if result.is_complex() else 1)
        if macs is None:
            self.misses(str(packet))
        elif macs:
            outputs = result if isinstance(result, Tensor) else result[0]
            self._add(macs, 0 if outputs is None else outputs.numel())
        return result

    def _add(self, macs: int, outputs: int) -> None:
        layer = self.layer()
        forward, backward, activations = self.of.get(layer, (0, 0, 0))
        if self.backward:
            self.of[layer] = (forward, backward + macs, activations)
        else:
            self.of[layer] = (forward + macs, backward, activations + outputs)

    def _multiplies_vectors(self) -> bool:
        """Whether autograd differentiates a product with a vector, whose gradient it writes as an outer product."""
        node = backward_node()
        return node is not None and node.name().startswith(("MvBackward", "AddmvBackward", "DotBackward", "VdotBackw"))


def _gradients_of_nothing(gradient: Tensor, x: Tensor, weight: Tensor, biases: Any, *rest: Any) -> tuple[Any, ...]:
    """What convolution_backward gives for the gradient that the count sends, which is zero; at once."""
    of_x, of_weight, of_bias = rest[-1]
    return (
        torch.zeros_like(x) if of_x else None,
        torch.zeros_like(weight) if of_weight else None,
        gradient.new_zeros(biases) if of_bias else None,
    )


class _Leaving(TorchFunctionMode):
    """Sees numbers leave torch, for numpy or another library's kernel, and runs recurrent layers step by step."""

    def __init__(self, products: _Products) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _EXITS:
            self.products.misses(f"Tensor.{func.__name__}")
        elif getattr(func, "__name__", "") in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            with without_libraries():  # which run it as one kernel
                return func(*args, **kwargs)
        return func(*args, **kwargs)


_EXITS = (Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__)
_NORMS = (aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit_no_training)
_NONLINEARITIES = (
    *(aten.relu, aten.relu_, aten.elu, aten.elu_, aten.gelu, aten.silu, aten.silu_, aten.leaky_relu, aten.hardtanh),
    *(aten.hardtanh_, aten.hardswish, aten.hardsigmoid, aten.mish, aten.softplus, aten.sigmoid, aten.tanh, aten.celu),
)


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Attention as its two products, and what is compiled as it is written."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _telling(model: nn.Module, products: _Products) -> Iterator[None]:
    """While entered, `products` knows the modules that are being called, the innermost last."""

    def enters(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: products.enters(name)

    def leaves(module: nn.Module, inputs: Any, output: Any) -> None:
        products.leaves()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.RecursiveScriptModule):  # type: ignore[attr-defined]
                continue  # takes no hooks; what it runs belongs to the module that calls it
            hooks.callback(module.register_forward_pre_hook(enters(name)).remove)
            hooks.callback(module.register_forward_hook(leaves, always_call=True).remove)
        yield


@contextmanager
def _keeping_numbers(model: nn.Module) -> Iterator[None]:
    """Afterwards every parameter and buffer is the one that it was, with the numbers that it had."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for table in (module._parameters, module._buffers)
    ]
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    kept = [_Kept(tensor) for tensor in tensors.values()]
    try:
        yield
    finally:
        for table, entries in tables:
            table.clear()
            table.update(entries)
        for one in kept:
            one.restore()


class _Kept:
    """A tensor's numbers, and the memory that it had them in."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.memory = tensor, tensor.detach()
        has_numbers = not tensor.is_meta and tensor.layout == torch.strided
        self.numbers = self.memory.clone() if has_numbers else None
        self.is_plain = type(tensor) in (Tensor, nn.Parameter)
        self.version = None if self.is_plain or tensor.is_inference() else tensor._version

    def restore(self) -> None:
        if self.numbers is None or not (self.is_plain or self.tensor._version != self.version):
            return  # classes of their own may not compare
        with torch.no_grad():
            if _place(self.tensor) != _place(self.memory):
                self.tensor.data = self.memory
            if not torch.equal(self.tensor, self.numbers):
                self.tensor.copy_(self.numbers)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory, and how."""
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):  # classes of their own need not lie anywhere
        return (tensor.shape, tensor.dtype)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own mode again.

    Modes are changed by the modules' own methods, which may do more, from the outermost to the innermost.
    """
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    try:
        put_in_evaluation(model)
        yield
    finally:
        for module, was_training in modes.items():
            if module.training != was_training:
                _put_in_mode(module, was_training)
        for module, was_training in modes.items():
            if module.training != was_training:
                module.training = was_training


def put_in_evaluation(model: nn.Module) -> nn.Module:
    """The network in evaluation mode; parts that have no modes stay as they are."""
    for module in model.modules():
        if getattr(module, "training", False):
            _put_in_mode(module, False)
    return model


def _put_in_mode(module: nn.Module, training: bool) -> None:
    with suppress(NotImplementedError):  # of an exported network, which runs as it was exported
        module.train() if training else module.eval()


def macs_of_weights(model: nn.Module, pixels: dict[str, int]) -> int | None:
    """MACs of a network like one that was counted before, but of other widths: each layer's weights by its `pixels`.

    None where it has a layer with weights that the other had not, such as a 1×1 beside a block that changes its width.
    """
    macs = 0
    for name, module in model.named_modules():
        weights = sum(weight.numel() for weight in _weights(module))
        if weights and name not in pixels:
            return None
        macs += weights * pixels.get(name, 0)
    return macs


def pixels_by_layer(model: nn.Module, layers: Sequence[LayerCost]) -> dict[str, int] | None:
    """How often each layer uses each of its weights on one image, whatever the widths.

    None where MACs are no multiple of the weights.
    """
    modules = dict(model.named_modules())
    pixels: dict[str, int] = {}
    for layer in layers:
        weights = sum(weight.numel() for weight in _weights(modules[layer.name]))
        if layer.macs and (not weights or layer.macs % weights):
            return None
        pixels[layer.name] = layer.macs // weights if weights else 0
    return pixels


def _weights(module: nn.Module) -> list[Tensor]:
    lists = [child for child in module.children() if isinstance(child, nn.ParameterList)]
    own = [*module.parameters(recurse=False), *(weight for weights in lists for weight in weights)]
    return [weight for weight in own if weight.dim() > 1 and weight.numel()]

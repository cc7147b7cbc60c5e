"""Record the products that torch runs, and the layers that run them.

A dispatch mode sees every operator, forward and backward; hooks tell which module runs it. Attention runs as its two
products and recurrent layers step by step, since torch's fused kernels would hide their products.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
from spectrum.cost.left_alone import evaluating, keeping_numbers
from spectrum.cost.operators import macs_of

aten = torch.ops.aten


@contextmanager
def watched(model: nn.Module, products: Products) -> Iterator[None]:
    """Let `products` see all operators of the block, with the network in evaluation mode."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with (
        torch.inference_mode(False),
        torch.random.fork_rng(devices=list(devices)),
        keeping_numbers(model),
        evaluating(model),
        _without_fused_kernels(),
        _telling(model, products),
        products,
        _Leaving(products),
    ):
        yield


class Products(TorchDispatchMode):
    """A dispatch mode that counts every convolution and matrix product for the layer that runs it.

    While it is active, `SegmentedConv2d` uses torch's own convolutions, whatever the backend, so none is missed.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        self.backward = False
        self.of: dict[str, tuple[int, int, int]] = {}  # MACs, backward MACs, activations
        self.unknown: Counter[tuple[str, str, bool]] = Counter()  # operator, layer, backward
        self.norms = self.nonlinearities = 0
        self.since: list[int] = []  # autograd's next node number when another module began to run …
        self.ran: list[str] = []  # … and that module

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
        """Whether this thread is observed: torch's modes apply only to the thread that entered them."""
        return any(mode is self for mode in dispatch_modes())

    def name_what_ran_elsewhere(self) -> None:
        """List layers with products in the backward pass but none seen in the forward pass."""
        named = {layer for _, layer, backward in self.unknown if not backward}
        for layer, (forward, backward, _) in self.of.items():
            if backward and not forward and layer not in named:
                self.unknown["a forward pass that was not seen, such as one in another thread", layer, False] += 1

    def _changes(self) -> None:
        self.since.append(next_sequence_number())
        self.ran.append(self.running[-1] if self.running else "")

    def layer(self) -> str:
        """The module that runs; in the backward pass, the module whose forward pass is being differentiated."""
        if self.running or not self.backward:
            return self.running[-1] if self.running else ""
        node = backward_node()
        place = bisect_right(self.since, sequence_number(node)) if node is not None else 0
        return self.ran[place - 1] if place else ""

    def misses(self, name: str) -> None:
        """Record an operator of unknown cost."""
        self.unknown[name, self.layer(), self.backward] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a tensor class that runs its own operators on its parts
        if torch.is_inference_mode_enabled() and isinstance(func, OpOverload) and has_composite_kernel(func):
            with self:  # in this mode torch decomposes it only later
                return func.decompose(*args, **kwargs)
        packet = getattr(func, "overloadpacket", func)
        if self.backward and packet is aten.convolution_backward:
            result: Any = _gradients_of_nothing(*args)
        else:
            result = func(*args, **kwargs)
        if not self.backward:
            self.norms += packet in _NORMS
            self.nonlinearities += packet in _NONLINEARITIES
        self._count(func, packet, args, kwargs, result)
        return result

    def _count(self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        macs = macs_of(func, args, kwargs, result)
        if macs == 0 and packet is aten.mul and self._multiplies_vectors():
            macs = result.numel() * (4 if result.is_complex() else 1)
        if macs is None:
            self.misses(str(packet))
        elif macs:
            outputs = result if isinstance(result, Tensor) else result[0]
            self._add(macs, 0 if outputs is None else outputs.numel())

    def _add(self, macs: int, outputs: int) -> None:
        layer = self.layer()
        forward, backward, activations = self.of.get(layer, (0, 0, 0))
        if self.backward:
            self.of[layer] = (forward, backward + macs, activations)
        else:
            self.of[layer] = (forward + macs, backward, activations + outputs)

    def _multiplies_vectors(self) -> bool:
        """Whether autograd differentiates a product with a vector, whose gradient is an outer product."""
        node = backward_node()
        return node is not None and node.name().startswith(("MvBackward", "AddmvBackward", "DotBackward", "VdotBackw"))


def _gradients_of_nothing(gradient: Tensor, x: Tensor, weight: Tensor, biases: Any, *rest: Any) -> tuple[Any, ...]:
    """The result of convolution_backward for a zero gradient, which the count uses, without computing it."""
    of_x, of_weight, of_bias = rest[-1]
    return (
        torch.zeros_like(x) if of_x else None,
        torch.zeros_like(weight) if of_weight else None,
        gradient.new_zeros(biases) if of_bias else None,
    )


class _Leaving(TorchFunctionMode):
    """A mode that sees data leave torch, for numpy or another library, and runs recurrent layers step by step."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _EXITS:
            self.products.misses(f"Tensor.{func.__name__}")
        elif getattr(func, "__name__", "") in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            with without_libraries():  # libraries run it as one kernel
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
    """Run attention as its two products, and compiled functions as eager ones."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _telling(model: nn.Module, products: Products) -> Iterator[None]:
    """Tell `products` which modules are being called inside the block, the innermost last."""

    def enters(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: products.enters(name)

    def leaves(module: nn.Module, inputs: Any, output: Any) -> None:
        products.leaves()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.RecursiveScriptModule):  # type: ignore[attr-defined]
                continue  # accepts no hooks; its products count for the module that calls it
            hooks.callback(module.register_forward_pre_hook(enters(name)).remove)
            hooks.callback(module.register_forward_hook(leaves, always_call=True).remove)
        yield

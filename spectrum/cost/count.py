"""What a built network costs, layer by layer: parameters, MACs and FLOPs forward and backward, activations.

One MAC is one multiply-add; FLOPs are 2 × MACs. Counted are convolutions and matrix products, for one image: what
papers quote. Batch normalisation, biases, activations and pools are left out.

The network runs once, in evaluation mode, and every product that torch is asked for is counted by a closed form of its
shapes; hooks say which layer asked for it. So a layer written with `torch.nn.functional` counts as a module does. What
runs as one fused recurrent kernel (`nn.LSTM`) is not seen. The backward pass is not run: a product of two tensors costs
as many MACs again for each of the two whose gradient is wanted, in any number of segments. (`torch.utils.flop_counter`
leaves the segments out of a weight's gradient, which it overstates by their number; see `spectrum audit`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from spectrum.cost.speed import Speed, measure_speed

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs. Counts are of one image."""

    name: str  # of its module
    kind: str  # the module's class
    params: int  # trainable numbers of its own
    macs: int  # multiply-adds, forward
    backward_macs: int  # of the gradients of its input and of its weights, where they are wanted
    activations: int  # numbers that its convolutions and matrix products put out


@dataclass(frozen=True, repr=False)
class Cost:
    """What one network costs at one input size. Counts are of one image."""

    layers: tuple[LayerCost, ...]  # those with parameters or products, in the order of the modules
    norms: int  # batch normalisations of a forward pass
    nonlinearities: int  # ReLUs and the like of a forward pass
    speed: Speed | None = None  # measured, where `measure_cost` was asked to

    @property
    def params(self) -> int:
        """Trainable numbers."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of a forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def backward_macs(self) -> int:
        """Multiply-adds of a backward pass: the gradients of all weights, and of all inputs but the image."""
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

    def __repr__(self) -> str:
        names = ("params", "macs", "backward_macs", "activations")
        return f"Cost({', '.join(f'{name}={getattr(self, name)}' for name in names)}, {len(self.layers)} layers)"


def measure_cost(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    batch_size: int | None = None,
    threads: int = 1,
) -> Cost:
    """Count a network's parameters and the arithmetic of one forward and one backward pass; measure its speed if asked.

    Args:
        model: eager (not compiled), on any device, "meta" too unless speed is measured; it is left as it was.
        input_shape: (channels, height, width) of one image.
        batch_size: images a training step, of which time and peak memory are then measured, beside the latency of one
            image: see `Speed`. Takes some seconds. None only counts.
        threads: that torch may use for the measurements.

    Raises ValueError for a shape that is not three positive numbers, or a batch size below 1, and what the network
    raises for an image that it does not take.

    >>> from spectrum import build_model
    >>> cost = measure_cost(build_model("probe", segments=8, in_channels=1, image_size=28), (1, 28, 28))
    >>> cost
    Cost(params=94314, macs=2877824, backward_macs=5699200, activations=57290, 25 layers)
    >>> cost.layers[0]
    LayerCost(name='stem.0', kind='Conv2d', params=288, macs=56448, backward_macs=56448, activations=6272)
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape={input_shape!r}: expected (channels, height, width)")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    speed = None if batch_size is None else measure_speed(model, (batch_size, *input_shape), threads=threads)
    products = _Products()
    some = next(model.parameters(), torch.empty(0))
    with torch.inference_mode(False), _evaluating(model), torch.enable_grad(), _telling(model, products), products:
        model(torch.zeros(1, *input_shape, dtype=some.dtype, device=some.device))
    modules = dict(model.named_modules())
    params = dict.fromkeys(modules, 0)
    owners: dict[str, str] = {}  # modules that are never called, such as lists of parameters, belong to their parents
    seen: set[Tensor] = set()
    for name, module in modules.items():
        owners[name] = owners[name.rpartition(".")[0]] if isinstance(module, nn.ParameterList) else name
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                params[owners[name]] += parameter.numel()
    layers = tuple(
        LayerCost(name, type(modules[name]).__name__, params[name], *products.of.get(name, (0, 0, 0)))
        for name in params
        if params[name] or name in products.of
    )
    return Cost(layers, products.norms, products.nonlinearities, speed)


class _Products(TorchDispatchMode):
    """Counts every convolution and matrix product that runs while it is entered, for the layer that runs it.

    Under it the operation takes the library's own convolutions, whatever the lowering, so that none is missed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        self.of: dict[str, tuple[int, int, int]] = {}  # MACs, backward MACs, activations
        self.norms = self.nonlinearities = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        self.norms += packet in _NORMS
        self.nonlinearities += packet in _NONLINEARITIES
        if packet in _FIRST_FACTOR:
            first = _FIRST_FACTOR[packet]
            if packet is aten.convolution:
                macs = macs_of_convolution(args, result)
            else:  # (…, n, k) by (…, k, m), or by (k,)
                macs = result.numel() * args[first].shape[-1]
            wanted = sum(factor.requires_grad for factor in args[first : first + 2])
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu:  # two products: queries · keys, and by values
            query, key, value = args[:3]
            macs = query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            wanted = 2 * any(factor.requires_grad for factor in args[:3])
        elif packet in flop_registry:  # attention on other devices
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
            wanted = 2 * any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        else:
            return result
        outputs = result.numel() if isinstance(result, Tensor) else result[0].numel()
        layer = self.running[-1]
        before = self.of.get(layer, (0, 0, 0))
        self.of[layer] = (before[0] + macs, before[1] + wanted * macs, before[2] + outputs)
        return result


def macs_of_convolution(args: tuple[Any, ...], result: Tensor) -> int:
    """Of one call of aten.convolution, from its arguments and its result.

    Every output number is a sum over taps and over the inputs of its segment: all but the first axis of the weight. In
    a transposed convolution every input number is spread so.
    """
    x, weight, transposed = args[0], args[1], args[6]
    return int((x if transposed else result).numel() * weight[0].numel())


_FIRST_FACTOR = {  # where among the arguments of a convolution or product the first of its two factors stands
    aten.convolution: 0,
    aten.mm: 0,
    aten.bmm: 0,
    aten.mv: 0,
    aten.dot: 0,
    aten.addmm: 1,
    aten.baddbmm: 1,
    aten.addmv: 1,
}
_NORMS = (aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit_no_training)
_NONLINEARITIES = (
    *(aten.relu, aten.relu_, aten.elu, aten.elu_, aten.gelu, aten.silu, aten.silu_, aten.leaky_relu, aten.hardtanh),
    *(aten.hardtanh_, aten.hardswish, aten.hardsigmoid, aten.mish, aten.softplus, aten.sigmoid, aten.tanh, aten.celu),
)


@contextmanager
def _telling(model: nn.Module, products: _Products) -> Iterator[None]:
    """While entered, `products.running` names the modules that are being called, the innermost last."""

    def enters(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: products.running.append(name)

    def leaves(module: nn.Module, inputs: Any, output: Any) -> None:
        products.running.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(enters(name)).remove)
            hooks.callback(module.register_forward_hook(leaves).remove)
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own mode again."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


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

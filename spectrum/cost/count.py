"""Count the cost of a network per layer: parameters, MACs and FLOPs forward and backward, activations.

One MAC is one multiply-add; FLOPs are 2 × MACs. As in papers, only convolutions and matrix products are counted, for
one example or for given inputs. Batch normalisation, biases, activations and pools are not counted.

The network runs once, in evaluation mode, forward and then backward. Every product that torch runs is counted by a
closed form of its shapes (`operators.py`); hooks tell which layer runs it (`watch.py`). So a layer written with
`torch.nn.functional` counts like a module, and a gradient counts if autograd computes it, whatever `requires_grad`
suggests. Operators of unknown cost are listed in the result.

While a network is counted, attention runs as its two products and recurrent layers run step by step, instead of torch's
fused kernels. So a count is the same on every device, and no kernel hides its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrum._torch import next_sequence_number
from spectrum.conv.arguments import flag, whole
from spectrum.cost.inputs import Inputs, inputs_of, typical
from spectrum.cost.outputs import hides_tensors, run_backward, tensors_in
from spectrum.cost.speed import Latency, Speed, measure_latency, measure_speed, random_inputs
from spectrum.cost.watch import Products, watched


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer, for one example or the given inputs."""

    name: str  # name of the module
    kind: str  # class of the module
    params: int  # its own trainable parameters
    macs: int  # multiply-adds, forward
    backward_macs: int  # multiply-adds of the gradients of inputs and weights that autograd computes
    activations: int  # output values of its convolutions and matrix products


@dataclass(frozen=True)
class NotCounted:
    """An operator of unknown cost that ran; the counts do not include it."""

    operator: str  # such as "aten._fft_r2c"
    layer: str  # name of the module that ran it
    calls: int
    backward: bool  # whether it ran in the backward pass


@dataclass(frozen=True, repr=False)
class Cost:
    """The cost of a network at one input size, for one example or the given inputs.

    If `not_counted` is not empty, MACs and activations are lower bounds.
    """

    layers: tuple[LayerCost, ...]  # layers with parameters or products, in the order of the modules
    norms: int  # number of batch normalisations in a forward pass
    nonlinearities: int  # number of activation functions in a forward pass
    speed: Speed | None = None  # measured if `measure_cost` got a batch size
    not_counted: tuple[NotCounted, ...] = ()
    latency: Latency | None = None  # of one example or the given inputs, measured if `measure_cost` was asked to

    @property
    def params(self) -> int:
        """Trainable parameters; a weight that several layers share counts once."""
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
        """Output values of convolutions and matrix products."""
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
        """A sentence that lists operators that were not counted; None if all were."""
        if not self.not_counted:
            return None
        named = "; ".join(_operator_label(one) for one in self.not_counted)
        return f"Not counted, since the cost is unknown: {named}. The MACs are a lower bound."

    def __repr__(self) -> str:
        names = ("params", "macs", "backward_macs", "activations")
        counts = [*(f"{name}={getattr(self, name)}" for name in names), f"{len(self.layers)} layers"]
        counts += [] if self.latency is None else [f"latency={self.latency.milliseconds:.3g} ms"]
        if self.not_counted:
            counts.append(f"not counted: {', '.join(sorted({one.operator for one in self.not_counted}))}")
        return f"Cost({', '.join(counts)})"


def _operator_label(one: NotCounted) -> str:
    calls = "call" if one.calls == 1 else "calls"
    where = f" in {one.layer!r}" if one.layer else ""
    return f"{one.operator} ({one.calls} {calls}{where}{', backward' if one.backward else ''})"


def measure_cost(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    example_inputs: Any = None,
    batch_size: int | None = None,
    latency: bool = False,
    threads: int = 1,
) -> Cost:
    """Count parameters and MACs of a forward and a backward pass, per layer; measure latency and speed if asked.

    Args:
        model: a network on any device ("meta" too, unless speed is measured). Parameters, gradients, buffers, modes and
            the random state are not changed; hooks run. A compiled model is counted like the eager one.
        input_shape: shape of one example, without the batch: (C, H, W), (L,), (C, L), (C, D, H, W) or any other. The
            network is called with a batch of one, zeros of its own floating-point type.
        example_inputs: inputs of the network, instead of `input_shape`: a tensor, a tuple or list of arguments, or a
            dict of keyword arguments, nested as needed. A single argument that is itself a list or dict goes into a
            tuple: `([image, image],)`. Counts are of exactly these inputs, their batch included: divide by its size
            for one example. They are copied (to "meta" for a model on "meta"). The gradient of an input is counted if
            the input requires one.
        batch_size: images per training step. If given, also measures the time and peak memory of a step and the latency
            of one image, see `Speed`. Takes some seconds, and needs `input_shape` and a classifier. None only counts.
        latency: whether to measure the time of a forward pass of one example, or of the given inputs, in evaluation
            mode: median, quartiles, device and threads, see `Latency`. Takes about a second.
        threads: threads that torch may use for the measurements.

    The backward pass starts from every output that has a gradient, in any structure. Modules that another thread calls
    are listed as not counted; functions outside modules that run in another thread are not seen.

    Raises ValueError for an invalid shape, for both or neither of shape and inputs, for lazy layers, for
    an invalid batch size or number of threads, and if speed cannot be measured; TypeError if `model` is not a module;
    and the network's own error for an input that it refuses.

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
        raise ValueError("batch_size: speed is measured with random inputs; give input_shape instead of example_inputs")
    speed = None
    if batch_size is not None and input_shape is not None:
        with torch.inference_mode(False), torch.enable_grad():
            speed = measure_speed(model, (batch_size, *inputs.args[0].shape[1:]), threads=threads)
    time = None
    if flag("latency", latency):
        # zeros may be faster or slower than other numbers
        given = inputs if input_shape is None else Inputs((random_inputs(model, inputs.args[0].shape),), {})
        time = measure_latency(model, given, threads=threads)
    products = _count(model, inputs, zeros=input_shape is not None)
    modules = dict(model.named_modules())
    params = _params_by_layer(modules)
    layers = tuple(
        LayerCost(name, type(modules[name]).__name__, params[name], *products.of.get(name, (0, 0, 0)))
        for name in params
        if params[name] or name in products.of
    )
    not_counted = tuple(NotCounted(*which[:2], calls, which[2]) for which, calls in products.unknown.items())
    return Cost(layers, products.norms, products.nonlinearities, speed, not_counted, time)


def _params_by_layer(modules: dict[str, nn.Module]) -> dict[str, int]:
    """Trainable parameters of each module itself; shared ones count at the first module."""
    params = dict.fromkeys(modules, 0)
    owners: dict[str, str] = {}  # modules that are never called, such as lists of parameters, count for their parents
    seen: set[Tensor] = set()
    for name, module in modules.items():
        owners[name] = owners[name.rpartition(".")[0]] if isinstance(module, nn.ParameterList) and name else name
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                params[owners[name]] += parameter.numel()
    return params


def forward_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs of a forward pass of one example, as in `measure_cost` but faster, since nothing else is counted."""
    products = _count(model, inputs_of(model, input_shape, None), backward=False)
    return sum(forward for forward, _, _ in products.of.values())


def _called(model: nn.Module, inputs: Inputs, zeros: bool) -> Any:
    """Call the network; if the caller gave only a shape, an error also describes the input."""
    try:
        return model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        if zeros:
            x = inputs.args[0]
            error.add_note(
                f"The network was called with zeros of shape {tuple(x.shape)} and type {x.dtype}. input_shape is the "
                "shape of one example without the batch, such as (3, 32, 32) for an image; other inputs go into "
                "example_inputs."
            )
        raise


def _count(model: nn.Module, inputs: Inputs, *, backward: bool = True, zeros: bool = False) -> Products:
    """Run a network forward and backward; only forward if torch has no backward pass for it on this device."""
    products = Products()
    try:
        with watched(model, products), torch.enable_grad():
            before = next_sequence_number()
            output = _called(model, inputs, zeros)
            wants_gradient = next_sequence_number() > before
            products.backward = True
            if backward:
                if wants_gradient and (hidden := hides_tensors(output)):
                    name = f"the backward pass (no tensor found in the output of type {hidden})"
                    products.unknown[name, "", True] += 1
                _run_backward_of(output, products)
                products.name_what_ran_elsewhere()
    except NotImplementedError as error:
        if typical(model).is_meta or products.backward:
            raise  # values may be all that it lacks
        products = Products()
        with watched(model, products), torch.no_grad():
            _called(model, inputs, zeros)
        products.unknown[f"the backward pass ({first_line(error)})", "", True] += 1
    return products


def _run_backward_of(output: Any, products: Products) -> None:
    try:
        run_backward(output)
    except Exception as error:
        if any(tensor.is_meta for tensor in tensors_in(output)):
            raise  # values may be all that it lacks
        products.unknown[f"the rest of the backward pass ({first_line(error)})", "", True] += 1


def first_line(error: BaseException) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def macs_of_weights(model: nn.Module, pixels: dict[str, int]) -> int | None:
    """MACs of a network of other widths than one counted before: each layer's weights times its `pixels`.

    None if it has a layer with weights that the other lacks, such as the 1×1 of a skip where a block changes width.
    """
    macs = 0
    for name, module in model.named_modules():
        weights = sum(weight.numel() for weight in _weights(module))
        if weights and name not in pixels:
            return None
        macs += weights * pixels.get(name, 0)
    return macs


def pixels_by_layer(model: nn.Module, layers: Sequence[LayerCost]) -> dict[str, int] | None:
    """Number of times that each layer uses each of its weights on one image, which does not depend on the widths.

    None if a layer's MACs are not a multiple of its weights.
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

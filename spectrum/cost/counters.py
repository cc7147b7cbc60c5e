"""Other counters of MACs: how each is called, and the rules by which it differs from ours.

A rule is computed from the layers' sizes as in the counter's source code, never from the difference to our count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spectrum._torch import AnyBatchNorm, AnyInstanceNorm, TorchDispatchMode
from spectrum.cost.count import Cost
from spectrum.cost.inputs import Inputs
from spectrum.cost.left_alone import put_in_evaluation
from spectrum.cost.operators import macs_of_convolution_backward
from spectrum.cost.outputs import run_backward

aten = torch.ops.aten
TORCH, TORCH_BOTH = "torch forward", "torch forward + backward"


@dataclass(frozen=True)
class _Call:
    """One call of one module: shapes of its first input and of its output."""

    name: str
    module: nn.Module
    x: torch.Size
    y: torch.Size


class Seen(TorchDispatchMode):
    """Data for the rules: calls of modules, recorded by hooks; convolutions, recorded while it is entered."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = modules
        self.calls: list[_Call] = []
        self.group_error = 0  # MACs with the weight's gradient counted once per segment
        self.biases = 0  # values to which a convolution or a matrix product adds a bias

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def called(module: nn.Module, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                self.calls.append(_Call(name, module, inputs[0].shape, output.shape))

        return called

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket is aten.convolution:
            self.biases += 0 if args[2] is None else result.numel()
        elif func._overloadpacket is aten.convolution_backward:
            segments, of_weight = args[9], [False, args[10][1], False]
            self.group_error += (segments - 1) * macs_of_convolution_backward((*args[:10], of_weight), result)
        elif func._overloadpacket is aten.addmm:
            self.biases += result.numel()
        return result


def look(model: nn.Module, inputs: Inputs) -> Seen:
    model = put_in_evaluation(deepcopy(model))
    seen = Seen(dict(model.named_modules()))
    for name, module in seen.modules.items():
        module.register_forward_hook(seen.hook(name))
    with suppress(Exception), torch.inference_mode(False), torch.enable_grad(), seen:
        run_backward(model(*inputs.args, **inputs.kwargs))  # counters that differentiate will report a failure
    return seen


Count = tuple[int, int | None]  # a counter's figure, and its parameters if it reports them
Reasons = Iterator[tuple[str, int]]


@dataclass(frozen=True)
class Counter:
    """Another counter: its call, and its differences. `package` begins with the name it is installed under."""

    name: str
    package: str
    word: str
    per_mac: int
    count: Callable[[Any, nn.Module, Inputs], Count]
    reasons: Callable[[Seen, Cost], Reasons]


def _label(module: nn.Module) -> str:
    return "BN" if isinstance(module, AnyBatchNorm) else type(module).__name__


def _unknown_classes(seen: Seen, cost: Cost) -> Reasons:
    """Reasons for products of classes outside torch, which a counter with a table of torch's classes ignores."""
    for layer in cost.layers:
        if layer.macs and not type(seen.modules[layer.name]).__module__.startswith("torch.nn."):
            yield f"{layer.kind} not seen", -layer.macs


def _without_keywords(inputs: Inputs) -> tuple[Any, ...]:
    if inputs.kwargs:
        raise ValueError("it accepts no keyword arguments; give example_inputs as a tuple")
    return inputs.args


# fvcore goes by the operations of a traced graph, and has rules beside those for products.


def _count_by_fvcore(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    analysis = package.FlopCountAnalysis(model, _without_keywords(inputs))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total()), None


def _reasons_of_fvcore(seen: Seen, cost: Cost) -> Reasons:
    for call in seen.calls:
        module = call.module
        if isinstance(module, AnyBatchNorm) and module.running_mean is not None:
            each = 1 if module.weight is None else 2
        elif isinstance(module, (AnyBatchNorm, AnyInstanceNorm, nn.LayerNorm, nn.GroupNorm)):  # statistics of the image
            each = 4 if module.weight is None else 5
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            each = 1
        else:
            continue
        yield f"{_label(module)} at {each} per value", each * call.x.numel()


# torch goes by the operations that run, and has rules for products only.


def _count_by_torch(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    with package.FlopCounterMode(display=False) as counter:
        model(*inputs.args, **inputs.kwargs)
    return int(counter.get_total_flops()), None


def _count_both_by_torch(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    with package.FlopCounterMode(display=False) as counter:
        run_backward(model(*inputs.args, **inputs.kwargs))
    return int(counter.get_total_flops()), None


def counts_segments_of_gradients_too_often() -> bool:
    """Whether torch's counter has the group error, tested on a convolution with 1 MAC in each of 2 segments."""
    x, weight = (torch.zeros(1, 2, 1, device="meta", requires_grad=True), torch.zeros(2, 1, 1, device="meta"))
    y = torch.nn.functional.conv1d(x, weight.requires_grad_(), None, 1, 0, 1, 2)  # the last: segments
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(y, weight, torch.zeros_like(y))
    return int(counter.get_total_flops()) == 2 * 2 * 2


def _reasons_of_torch(seen: Seen, cost: Cost) -> Reasons:
    yield from ()


def _reasons_of_both_by_torch(seen: Seen, cost: Cost) -> Reasons:
    if counts_segments_of_gradients_too_often():
        yield "group error", seen.group_error


# ptflops has two backends: aten goes by the operations that run; pytorch, its default, hooks modules of exactly the
# classes in a table and patches torch.nn.functional, so that it counts what is in both twice.

_ACTIVATIONS = (nn.ReLU, nn.ELU, nn.PReLU, nn.GELU)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLS = (
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_HOOKED = (*_ACTIVATIONS, nn.ReLU6, nn.LeakyReLU, *_POOLS, *_ADAPTIVE_POOLS)
_PATCHED = (*_ACTIVATIONS, nn.SiLU, nn.Softmax, *_POOLS, *_ADAPTIVE_POOLS)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    nn.LayerNorm,
)


def _count_by_aten(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    return _count_by_ptflops(package, model, inputs, "aten")


def _count_by_hooks(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    return _count_by_ptflops(package, model, inputs, "pytorch")


def _count_by_ptflops(package: Any, model: nn.Module, inputs: Inputs, backend: str) -> Count:
    given = inputs.kwargs or inputs.args[0]
    if len(inputs.args) + bool(inputs.kwargs) != 1:
        raise ValueError("it accepts one input or keyword arguments; give example_inputs as a dict")
    if backend == "pytorch" and isinstance(given, Tensor) and given.dim() and len(given) != 1:
        raise ValueError("it returns the mean over a batch; give one example")
    with redirect_stdout(StringIO()) as printed:
        macs, params = package.get_model_complexity_info(
            model,
            (1,),  # not looked at
            input_constructor=lambda _: given,
            print_per_layer_stat=False,
            as_strings=False,
            backend=backend,
        )
    if macs is None:  # it prints the error in its second line
        raise RuntimeError(printed.getvalue().partition("\n")[2])
    return int(macs), int(params)


def _reasons_of_aten(seen: Seen, cost: Cost) -> Reasons:
    yield "biases", seen.biases


def _reasons_of_hooks(seen: Seen, cost: Cost) -> Reasons:
    yield from _unknown_classes(seen, cost)
    for call in seen.calls:
        module, kind = call.module, type(call.module)
        if kind in (*_CONVOLUTIONS, nn.Linear):
            yield "biases", 0 if module.bias is None else call.y.numel()
        if kind in (*_NORMS, nn.GroupNorm):
            each = 2 if getattr(module, "affine", False) else 1
        else:
            each = (kind in _HOOKED) + isinstance(module, _PATCHED)
        if each:
            yield f"{_label(module)} at {each} per value", each * call.x.numel()


# thop hooks modules of exactly the classes in a table. It ignores biases, activations and max pools.


def _count_by_thop(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    macs, params = package.profile(model, _without_keywords(inputs), verbose=False)
    return int(macs), int(params)


def _reasons_of_thop(seen: Seen, cost: Cost) -> Reasons:
    yield from _unknown_classes(seen, cost)
    for call in seen.calls:
        module, kind = call.module, type(call.module)
        if kind in (*_NORMS, nn.SyncBatchNorm):
            each = 2 if module.weight is None else 4
            yield f"{_label(module)} at {each} per value", each * call.x.numel()
        elif kind is nn.PReLU:
            yield "PReLU at 1 per value", call.x.numel()
        elif isinstance(module, nn.Softmax) and kind is nn.Softmax:
            assert module.dim is not None
            channels = call.x[module.dim]
            yield "Softmax at 3 per value minus 1", call.x.numel() // channels * (3 * channels - 1)
        elif kind in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d):
            yield f"{kind.__name__} at 1 per output", call.y.numel()
        elif kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d):
            window = math.prod(x / y for x, y in zip(call.x[2:], call.y[2:], strict=True))
            # as it does: in floating point, then cut off
            yield f"{kind.__name__} at its window + 1 per output", int((window + 1) * call.y.numel())


# torchinfo uses the parameters of modules without children: each parameter named weight or bias counts once per image,
# or once per output pixel if the class is named a convolution.


def _count_by_torchinfo(package: Any, model: nn.Module, inputs: Inputs) -> Count:
    given = inputs.kwargs or list(inputs.args)
    statistics = package.summary(model, input_data=given, verbose=0)
    package.torchinfo.clear_cached_forward_pass()  # the cache would keep the copy
    return int(statistics.total_mult_adds), int(statistics.total_params)


def _reasons_of_torchinfo(seen: Seen, cost: Cost) -> Reasons:
    counted = {layer.name: 0 for layer in cost.layers if layer.macs}  # MACs of weights as counted by torchinfo
    for call in seen.calls:
        if any(call.module.children()):  # its own condition: an empty container is no child
            continue
        for name, parameter in call.module.named_parameters():
            macs = parameter.numel() * _uses_in_torchinfo(call, name)
            if call.name not in counted:
                yield f"parameters of {_label(call.module)}", macs
            elif "bias" in name:
                yield "biases", macs
            else:
                counted[call.name] += macs
    for layer in cost.layers:
        if layer.macs:
            how = "by its parameters" if counted[layer.name] else "not seen"
            yield f"{layer.kind} {how}", counted[layer.name] - layer.macs


def _uses_in_torchinfo(call: _Call, name: str) -> int:
    if name in ("weight", "bias"):
        pixels = call.y[2:] if "Conv" in type(call.module).__name__ else ()
        return call.y[0] * math.prod(pixels)
    return math.prod(call.y[:2]) if "weight" in name or "bias" in name else 0


COUNTERS = (
    Counter("fvcore", "fvcore.nn", "flops", 1, _count_by_fvcore, _reasons_of_fvcore),
    Counter(TORCH, "torch.utils.flop_counter", "FLOPs", 2, _count_by_torch, _reasons_of_torch),
    Counter(TORCH_BOTH, "torch.utils.flop_counter", "FLOPs", 2, _count_both_by_torch, _reasons_of_both_by_torch),
    Counter("ptflops aten", "ptflops", "MACs", 1, _count_by_aten, _reasons_of_aten),
    Counter("ptflops pytorch", "ptflops", "MACs", 1, _count_by_hooks, _reasons_of_hooks),
    Counter("thop", "thop", "MACs", 1, _count_by_thop, _reasons_of_thop),
    Counter("torchinfo", "torchinfo", "mult-adds", 1, _count_by_torchinfo, _reasons_of_torchinfo),
)

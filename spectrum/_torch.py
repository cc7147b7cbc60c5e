"""All private names of torch that this package needs, in one module; no public name does the same.

tests/test_private_torch.py lists the torch version of each name, and checks that the installed torch still behaves as
described here. No other module of the package reads a private name of torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm as AnyInstanceNorm
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_in_torch_dispatch_mode,
)
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode_stack as dispatch_modes,
)

__all__ = [
    "AnyBatchNorm",
    "AnyInstanceNorm",
    "OpOverload",
    "TorchDispatchMode",
    "assume_constant_result",
    "backward_node",
    "dispatch_modes",
    "has_composite_kernel",
    "is_batched",
    "is_in_forward_mode",
    "is_in_torch_dispatch_mode",
    "is_in_transform",
    "memory_changes",
    "next_sequence_number",
    "sequence_number",
    "shares_memory",
    "version",
    "without_libraries",
]

Function = TypeVar("Function")

_BATCHED = [torch._C._dispatch_key_parse(name) for name in ("Batched", "FuncTorchBatched")]


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor represents a batch of tensors, as inside vmap and with `is_grads_batched`."""
    keys = torch._C._dispatch_keys(tensor)
    return any(keys.has(key) for key in _BATCHED)


def assume_constant_result(function: Function) -> Function:
    """Mark a function whose result torch.compile takes as constant.

    As `torch.compiler.assume_constant_result`, which would import torch's compiler: over a second for each process.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@assume_constant_result
def is_in_transform() -> bool:
    """Whether a function transform of torch.func (grad, vmap, jvp, functionalize) is active.

    torch.compile calls this while it compiles, and recompiles for another nesting of transforms.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


@cache
def has_composite_kernel(operator: OpOverload) -> bool:
    """Whether torch composes an operator of other operators on every device."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd"))


def next_sequence_number() -> int:
    """The number that autograd will give the next node recorded in this thread; numbers only grow."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def backward_node() -> Any | None:
    """The node of autograd's graph whose gradient is being computed in this thread; None outside of a backward pass."""
    return torch._C._current_autograd_node()


def sequence_number(node: Any) -> int:
    """The number that a node received when it was recorded."""
    return int(node._sequence_nr())


def version(tensor: Tensor) -> int:
    """Number of in-place changes of a tensor; 0 where torch does not count, as in inference mode."""
    return 0 if tensor.is_inference() else int(tensor._version)


def shares_memory(first: Tensor, second: Tensor) -> bool:
    """Whether tensors are views of the same memory; False if one has no memory to compare."""
    if first.is_meta or second.is_meta or not (first.numel() and second.numel()):
        return False
    return bool(torch._C._is_alias_of(first, second))  # type: ignore[attr-defined]


def memory_changes(profiler: Any) -> list[int]:
    """Bytes allocated (or, negative, freed), in order of time, as recorded by a `torch.profiler.profile`."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


@contextmanager
def without_libraries() -> Iterator[None]:
    """Disable oneDNN and cuDNN. torch's public flags also set TF32, which warns on a machine without a GPU."""
    on_cpu, on_cuda = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(on_cpu)
        torch._C._set_cudnn_enabled(on_cuda)

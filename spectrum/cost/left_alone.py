"""Restore the parameters, buffers and modes of a network after it was counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def keeping_numbers(model: nn.Module) -> Iterator[None]:
    """Restore every parameter and buffer, as an object and in its values, at the end of the block."""
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
    """A tensor's values, and the memory that held them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.memory = tensor, tensor.detach()
        has_numbers = not tensor.is_meta and tensor.layout == torch.strided
        self.numbers = self.memory.clone() if has_numbers else None
        self.is_plain = type(tensor) in (Tensor, nn.Parameter)
        self.version = None if self.is_plain or tensor.is_inference() else tensor._version

    def restore(self) -> None:
        if self.numbers is None or not (self.is_plain or self.tensor._version != self.version):
            return  # tensors of other classes may not compare
        with torch.no_grad():
            if _place(self.tensor) != _place(self.memory):
                self.tensor.data = self.memory
            if not torch.equal(self.tensor, self.numbers):
                self.tensor.copy_(self.numbers)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The address and layout of a tensor in memory."""
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):  # tensors of other classes may have no memory
        return (tensor.shape, tensor.dtype)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode inside the block; afterwards restore the mode of every module.

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
    """Put the network in evaluation mode; modules without modes are not changed."""
    for module in model.modules():
        if getattr(module, "training", False):
            _put_in_mode(module, False)
    return model


def _put_in_mode(module: nn.Module, training: bool) -> None:
    with suppress(NotImplementedError):  # from an exported network, which always runs as exported
        module.train() if training else module.eval()

"""The inputs of a network while it is counted: an example of zeros, or a copy of given inputs."""

from __future__ import annotations

import dataclasses
import operator
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spectrum.conv.arguments import LARGEST


class Inputs(NamedTuple):
    """The arguments of a call of a network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def inputs_of(model: nn.Module, input_shape: Sequence[int] | None, example_inputs: Any) -> Inputs:
    """Make the inputs of a network: one example of zeros, or a copy of given inputs.

    Raises as `measure_cost` does.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if (input_shape is None) == (example_inputs is None):
        given = "neither" if input_shape is None else "both"
        raise ValueError(f"input_shape, example_inputs: got {given}; give one of them")
    like = typical(model)
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
    given = type(shape).__name__ if isinstance(shape, Tensor | nn.Module) else repr(shape)
    raise ValueError(
        f"input_shape={given}: expected the positive whole numbers of one example's shape, such as (3, 32, 32); "
        "other inputs go into example_inputs"
    )


def typical(model: nn.Module) -> Tensor:
    """An empty tensor with the type and device of a network's inputs."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ValueError(f"{name}: its layer is lazy and has no shape yet; call the network once, then count it")
    floating = [tensor for _, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    device = tensors[0][1].device if tensors else torch.empty(0).device
    return floating[0] if floating else torch.empty(0, device=device)


def _copied(value: Any, device: torch.device, known: dict[int, Tensor]) -> Any:
    """Copy a structure and each of its tensors once, so that the network may change them in place."""

    def copied(item: Any) -> Any:
        return _copied(item, device, known)

    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = _copied_tensor(value, device)
        return known[id(value)]
    if isinstance(value, Mapping):
        items = {name: copied(item) for name, item in value.items()}
        return items if type(value) is dict else _rebuilt(value, items)
    if isinstance(value, list | tuple):
        return _with_items(value, [copied(item) for item in value])
    if isinstance(value, deque | set | frozenset):
        return type(value)(copied(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        instance = copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(instance, field.name, copied(getattr(value, field.name)))
        return instance
    return value


def _copied_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor, to "meta" for a network there; the copy requires a gradient if the original does."""
    copied = tensor.detach().to("meta") if device.type == "meta" else tensor.detach().clone()
    return copied.requires_grad_() if tensor.requires_grad else copied


def _with_items(value: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    """Make a list or tuple of the same type with other items."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return tuple.__new__(type(value), items)
    plain = list if isinstance(value, list) else tuple
    return plain(items) if type(value) is plain else _rebuilt(value, plain(items))


def _rebuilt(value: Any, items: Any) -> Any:
    try:
        return type(value)(items)
    except Exception:  # a container with another constructor; only its items matter
        return items

"""The output tensors of a network, in any structure, and the backward pass from all of them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor, nn


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a network's output, in any structure: containers, dataclasses, objects with attributes."""
    return (one for one in _leaves_of(value) if isinstance(one, Tensor))


def _leaves_of(value: Any) -> Iterator[Any]:
    """The leaves of a structure: tensors, and objects that cannot be inspected."""
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
    """The parts of a container or an object; None if they cannot be inspected without changing it."""
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


def hides_tensors(output: Any) -> str | None:
    """The type of a leaf that may hide tensors; None if there is none."""
    leaves = list(_leaves_of(output))
    hidden = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    if len(hidden) < len(leaves):  # a tensor was found; only an iterator may have more
        hidden = [leaf for leaf in hidden if isinstance(leaf, Iterator)]
    return type(hidden[0]).__name__ if hidden else None


def run_backward(output: Any) -> None:
    """Run the backward pass from all outputs at once, without changing any `grad`."""
    started = list({id(t): t for t in tensors_in(output) if t.grad_fn is not None}.values())
    leaves = _leaves([tensor.grad_fn for tensor in started])
    if started and leaves:
        torch.autograd.grad(started, leaves, [torch.zeros_like(t) for t in started], allow_unused=True)


def _leaves(nodes: list[Any]) -> list[Tensor]:
    """All tensors in which autograd would accumulate a gradient."""
    waiting, met, leaves = list(nodes), set(nodes), list[Tensor]()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        new = {following for following, _ in node.next_functions if following is not None} - met
        met |= new
        waiting.extend(new)
    return leaves

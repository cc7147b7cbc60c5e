"""A kernel as a torch operation: differentiable, and supported by torch.compile.

Each kernel is bound twice: as a `torch.library` operation for torch.compile, and in C++ (binding.cpp) for eager mode,
where a call through Python would take as long as a small kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spectrum._torch import is_in_transform
from spectrum.conv.kernels.build import binding, library

LAST = torch.channels_last


def operation(
    name: str,
    kernel: Callable[..., Any],
    like: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Make a torch operation from a kernel, a function that allocates its results, and its derivative."""
    made = torch.library.custom_op(f"spectrum::{name}", kernel, mutates_args=(), device_types="cpu")
    made.register_fake(like)
    made.register_autograd(backward, setup_context=save)

    def call(x: Tensor, *others: Any) -> Any:
        plain = type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
        plain = plain and not is_in_transform()
        found = bound(name) if plain else None
        return (found or made)(x, *others)

    return call


@cache
def bound(name: str) -> Callable[..., Any] | None:
    """The operation of the C++ binding, if there is one."""
    packet = getattr(torch.ops.spectrum_eager, name, None) if binding() else None
    return None if packet is None else packet.default


def loaded_kernels() -> ctypes.CDLL:
    """The kernels; callers have checked with `library` that there are any."""
    kernels = library()
    assert kernels is not None, "callers ask first"
    return kernels

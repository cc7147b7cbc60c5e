"""Whether a tracer observes the operation, and the memory layout of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Proxy

from spectrum._torch import is_batched, is_in_forward_mode, is_in_torch_dispatch_mode, is_in_transform


def is_traced(x_nchw: Tensor) -> bool:
    """Whether something is active that must see torch's own operators: a counter, an exporter,
    a function transform, forward-mode differentiation, fake tensors."""
    if torch.compiler.is_compiling():
        is_exporting = bool(getattr(torch.compiler, "is_exporting", lambda: False)())
        return is_exporting or is_in_forward_mode() or is_in_transform()
    in_a_mode = is_in_torch_dispatch_mode() or is_in_forward_mode() or is_in_transform()
    return in_a_mode or not is_plain(x_nchw) or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_plain(tensor: Tensor) -> bool:
    """Whether it is a plain torch.Tensor or Parameter; other subclasses may have no memory of their own."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def is_of_fx(x_nchw: object) -> bool:
    """Whether fx is tracing, which knows neither shape nor layout."""
    return isinstance(x_nchw, Proxy)


def layout_of(x_nchw: Tensor) -> torch.memory_format:
    """The memory format: channels_last (channels_last_3d for five axes) if the tensor has it, else contiguous."""
    if x_nchw.dim() == 5 and not is_in_transform() and x_nchw.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.channels_last if is_channels_last(x_nchw) else torch.contiguous_format


def is_channels_last(x_nchw: Tensor) -> bool:
    """Whether all channels of one pixel lie together, as in (N, H, W, C). Unknown for a tensor batched by vmap."""
    if is_in_transform() and (torch.compiler.is_compiling() or is_batched(x_nchw)):
        return False
    return x_nchw.is_contiguous(memory_format=torch.channels_last)

"""Who looks on while the operation runs, and how a tensor is laid out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Proxy

from spectrum._torch import is_in_forward_mode, is_in_torch_dispatch_mode, is_in_transform


def is_traced(x_nchw: Tensor) -> bool:
    """Whether something looks on that should see torch's own operations: a counter, an exporter,
    a function transform, forward-mode differentiation, fake tensors."""
    if torch.compiler.is_compiling():
        is_exporting = bool(getattr(torch.compiler, "is_exporting", lambda: False)())
        return is_exporting or is_in_forward_mode() or is_in_transform()
    in_a_mode = is_in_torch_dispatch_mode() or is_in_forward_mode() or is_in_transform()
    of_a_tracer = type(x_nchw) not in (Tensor, torch.nn.Parameter)
    return in_a_mode or of_a_tracer or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_of_fx(x_nchw: object) -> bool:
    """Whether fx looks on, which knows neither shape nor layout."""
    return isinstance(x_nchw, Proxy)


def layout_of(x_nchw: Tensor) -> torch.memory_format:
    """channels_last where the tensor is laid out so, else contiguous."""
    return torch.channels_last if is_channels_last(x_nchw) else torch.contiguous_format


def is_channels_last(x_nchw: Tensor) -> bool:
    """Whether all channels of one pixel lie together, as in (N, H, W, C)."""
    return x_nchw.is_contiguous(memory_format=torch.channels_last)

"""Record which backend computes which layer; `forward` itself keeps no record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectrum.conv.grouped import GroupedConv2d
from spectrum.conv.segmented import SegmentedConv2d


@contextmanager
def backends_seen(model: nn.Module) -> Iterator[dict[str, str]]:
    """Record the backend of the spatial convolution of each `SegmentedConv2d` that is called, by module name.

    The value is "folded" if the 1×1 and the spatial convolution run as one. Layers that are not called are missing, and
    so are layers that run in torch.compile.

    >>> import torch
    >>> from spectrum import build_model, prefer_backend
    >>> with prefer_backend("native"):
    ...     model = build_model("probe", segments=4)
    >>> with backends_seen(model) as seen:
    ...     _ = model(torch.zeros(1, 3, 32, 32))
    >>> set(seen.values())
    {'native'}
    """
    seen: dict[str, str] = {}
    layers = {module: name for name, module in model.named_modules() if isinstance(module, SegmentedConv2d)}
    spatial = {module.spatial: name for module, name in layers.items()}

    # Copies of the network that are made inside the block copy the hooks too, but are not in the tables.
    def note_folded(module: SegmentedConv2d, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (*inputs, *named.values())
        if module not in layers or torch.compiler.is_compiling() or not _is_one_input(given):
            return  # forward raises the error for another input
        x_nchw = given[0] if given[0].dim() == 4 else given[0].unsqueeze(0)
        if module.is_folded(x_nchw):
            seen[layers[module]] = "folded"

    def note_backend(conv: GroupedConv2d, inputs: tuple[Any, ...]) -> None:
        if conv in spatial and not torch.compiler.is_compiling():
            seen[spatial[conv]] = conv.backend_for(inputs[0])

    with ExitStack() as hooks:
        for module in layers:
            hooks.callback(module.register_forward_pre_hook(note_folded, with_kwargs=True).remove)
            hooks.callback(module.spatial.register_forward_pre_hook(note_backend).remove)
        yield seen


def _is_one_input(given: tuple[Any, ...]) -> bool:
    return len(given) == 1 and isinstance(given[0], Tensor) and given[0].dim() in (3, 4)

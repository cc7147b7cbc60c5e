"""By which backend the convolutions of a network are computed, for whoever asks; `forward` itself keeps no record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from spectrum.conv.half import SegmentedHalf
from spectrum.conv.segmented import SegmentedConv2d


@contextmanager
def backends_seen(model: nn.Module) -> Iterator[dict[str, str]]:
    """Watch a network's calls: the backend of each segmented convolution's spatial half, by its module's name.

    "folded" where both halves are computed as one convolution. Those that are not called are not there, and none is
    under torch.compile.

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
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, SegmentedConv2d):
                hooks.callback(module.register_forward_pre_hook(_note_folded(seen, name), with_kwargs=True).remove)
                hooks.callback(module.spatial.register_forward_pre_hook(_note_backend(seen, name)).remove)
        yield seen


def _note_folded(seen: dict[str, str], name: str) -> Any:
    def note(module: SegmentedConv2d, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        (x_nchw,) = (*inputs, *named.values())
        fits = isinstance(x_nchw, Tensor) and x_nchw.dim() in (3, 4)  # else forward says what is wrong
        if fits and module.is_folded(x_nchw if x_nchw.dim() == 4 else x_nchw.unsqueeze(0)):
            seen[name] = "folded"

    return note


def _note_backend(seen: dict[str, str], name: str) -> Any:
    def note(half: SegmentedHalf, inputs: tuple[Any, ...]) -> None:
        seen[name] = half.backend_for(inputs[0])

    return note

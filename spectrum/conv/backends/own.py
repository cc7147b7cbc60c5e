"""Checks of a user's backend: shape, type, device, memory and gradient of its results, but not their values."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectrum._torch import shares_memory, version
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.tracing import is_traced, layout_of


class Checked(Backend):
    """A user's backend with checked results, in the input's memory layout. Prepared once, before its first result.

    Raises TypeError for a result of the wrong shape, type or device, without a required gradient, or that shares memory
    with an input; and for inputs that were changed.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.backend = name, backend
        self.is_prepared, self.preparing = False, threading.Lock()

    def prepare(self) -> None:
        if self.is_prepared:
            return
        with self.preparing:
            if not self.is_prepared:
                self.backend.prepare()
                self.is_prepared = True

    def refusal_of(self, geometry: Geometry) -> str | None:
        return self._reason("refusal_of", self.backend.refusal_of(geometry))

    def refusal(self, x_nchw: Tensor, geometry: Geometry) -> str | None:
        return self._reason("refusal", self.backend.refusal(x_nchw, geometry))

    def convolve(self, x_nchw: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> Tensor:
        y_nchw: Tensor = self._given("convolve", (x_nchw, *weights), x_nchw, weights, geometry)
        self._check("convolve", y_nchw, geometry.output_shape(x_nchw.shape), x_nchw, weights)
        return y_nchw.contiguous(memory_format=layout_of(x_nchw))

    def can_normalise(self, x_nchw: Tensor) -> bool:
        return not is_traced(x_nchw) and self.backend.can_normalise(x_nchw)

    def normalise(
        self, x_nchw: Tensor, added_nchw: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        sources = [weight, bias] if added_nchw is None else [weight, bias, added_nchw]
        given = self._given("normalise", (x_nchw, *sources), x_nchw, added_nchw, weight, bias, eps, relu)
        if not isinstance(given, tuple) or len(given) != 3:
            raise self._wrong("normalise", f"{type(given).__name__}", "a tuple of y, mean and variance")
        y_nchw, mean, variance = given
        self._check("normalise", y_nchw, tuple(x_nchw.shape), x_nchw, sources)
        for moment in (mean, variance):
            with torch.autocast(x_nchw.device.type, enabled=False):  # the type of running statistics
                self._check("normalise", moment, tuple(weight.shape), x_nchw)
        return y_nchw.contiguous(memory_format=layout_of(x_nchw)), mean.detach(), variance.detach()

    def normalise_by(
        self,
        x_nchw: Tensor,
        added_nchw: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        relu: bool,
    ) -> Tensor:
        inputs = (x_nchw, weight, bias, mean, variance)
        y_nchw: Tensor = self._given("normalise_by", inputs, x_nchw, added_nchw, *inputs[1:], eps, relu)
        self._check("normalise_by", y_nchw, tuple(x_nchw.shape), x_nchw)
        return y_nchw.contiguous(memory_format=layout_of(x_nchw))

    def _reason(self, method: str, why: object) -> str | None:
        if why is None or (isinstance(why, str) and why.strip()):
            return why
        raise self._wrong(method, repr(why), "None, or the reason as text")

    def _check(
        self, method: str, y: object, shape: tuple[int, ...], x_nchw: Tensor, differentiable: Sequence[Tensor] = ()
    ) -> None:
        """Args: y: the result; differentiable: tensors other than x_nchw that must receive gradients from it."""
        if not isinstance(y, Tensor):
            raise self._wrong(method, type(y).__name__, f"a tensor of shape {shape}")
        if tuple(y.shape) != shape:
            raise self._wrong(method, f"shape {tuple(y.shape)}", f"a tensor of shape {shape}")
        kind = x_nchw.device.type
        types = {x_nchw.dtype, *([torch.get_autocast_dtype(kind)] if torch.is_autocast_enabled(kind) else [])}
        if y.dtype not in types or y.device != x_nchw.device:
            wanted = f"{' or '.join(sorted(map(str, types)))} on {x_nchw.device}"
            raise self._wrong(method, f"{y.dtype} on {y.device}", f"{wanted}, as the input")
        if not torch.compiler.is_compiling() and shares_memory(y, x_nchw):
            raise self._wrong(method, "memory of its input", "a tensor of its own")
        asked = torch.is_grad_enabled() and any(one.requires_grad for one in (x_nchw, *differentiable))
        if differentiable and asked and not y.requires_grad:
            raise self._wrong(method, "a tensor without a gradient", "one that autograd can follow to its inputs")

    def _given(self, method: str, inputs: Sequence[Tensor], *arguments: Any) -> Any:
        """Call a method of the prepared backend; raise TypeError if it changes its inputs."""
        self.prepare()
        before = _versions(inputs)
        given = getattr(self.backend, method)(*arguments)
        if _versions(inputs) != before:
            raise TypeError(f"backend {self.name!r}: its {method} changed an input in place; work on a copy")
        return given

    def _wrong(self, method: str, given: str, expected: str) -> TypeError:
        return TypeError(f"backend {self.name!r}: its {method} gave {given}; expected {expected}")


def _versions(inputs: Sequence[Tensor]) -> list[int]:
    """How often each tensor was changed in place; empty under torch.compile, which does not know."""
    return [] if torch.compiler.is_compiling() else list(map(version, inputs))

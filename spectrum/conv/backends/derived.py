"""A convolution in place of another, with a kernel derived from its weights; exact for every input.

    Blocks      several narrow segments joined into one wider group, with zeros between them
    Folded      a 1×1 and a spatial convolution, in either order, as one convolution
    Turned      the same convolution in the other memory layout
    OneByOne    the same convolution, segment by segment

Zero times infinity is NaN, and infinities cancel differently in two successive convolutions than in the folded one. So
a result that is not finite is computed again by its definition, and so are gradients. (torch's own convolution also
treats infinities at the border differently in different layouts.) One pass over the output is
enough: a value that is not finite and reaches another segment's output also reaches that of its own segment. For the
gradient of the output, the small gradient of the kernel is checked instead.

Shapes: x (N, C_in, H, W); result (N, C_out, H', W').
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectrum._torch import is_batched
from spectrum.conv.arguments import Sides
from spectrum.conv.backends.tracing import layout_of
from spectrum.conv.segments import Run


@dataclass(frozen=True)
class Window:
    """Stride, padding and dilation of a spatial convolution."""

    stride: Sides
    padding: Sides
    dilation: Sides


class _Form(ABC):
    """A derived kernel: its gradient as gradients of the weights, and the convolutions that it replaces."""

    window: Window

    @property
    @abstractmethod
    def groups(self) -> int: ...

    @abstractmethod
    def gradients(self, weights: Sequence[Tensor], gkernel: Tensor) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def by_definition(self, x_nchw: Tensor, weights: Sequence[Tensor]) -> Tensor: ...

    @abstractmethod
    def gradients_by_definition(
        self, x: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]: ...

    def by_kernel(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The convolution with the derived kernel."""
        return _conv2d(x, kernel, self.window, self.groups)

    def gradients_by_kernel(self, x: Tensor, kernel: Tensor, gy: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of x and the derived kernel, where needed."""
        return _conv2d_backward(gy, x, kernel, self.window, self.groups, needs)


@dataclass(frozen=True)
class Blocks(_Form):
    """`together` neighbouring segments of a run in each group. Weights: one, (count·out, in, kh, kw)."""

    run: Run
    together: int
    window: Window

    @property
    def groups(self) -> int:
        return self.run.count // self.together

    def kernel(self, weight: Tensor) -> Tensor:
        """The kernel (count·out, together·in, kh, kw), without a gradient."""
        run, taps = self.run, weight.shape[2:]
        with torch.no_grad():
            kernel = weight.new_zeros(run.count * run.out_size, self.together * run.in_size, *taps)
            self._diagonal(kernel).copy_(self._apart(weight))
        return kernel

    def gradients(self, weights: Sequence[Tensor], gkernel: Tensor) -> tuple[Tensor, ...]:
        """The blocks of the kernel's gradient; values between the blocks are ignored, finite or not."""
        gradient = torch.empty_like(weights[0])
        self._apart(gradient).copy_(self._diagonal(gkernel))
        return (gradient,)

    def by_definition(self, x_nchw: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return _conv2d(x_nchw, weights[0], self.window, self.run.count)

    def gradients_by_definition(
        self, x: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of x and the weight, where needed."""
        return _conv2d_backward(gy, x, weights[0], self.window, self.run.count, needs)

    def _apart(self, weight: Tensor) -> Tensor:
        """The weight by segment (groups, out, in, kh, kw, together), as a view."""
        run = self.run
        return weight.view(self.groups, self.together, run.out_size, run.in_size, *weight.shape[2:]).movedim(1, -1)

    def _diagonal(self, kernel: Tensor) -> Tensor:
        """The blocks of a kernel, in the same shape."""
        run, n = self.run, self.together
        return kernel.view(self.groups, n, run.out_size, n, run.in_size, *kernel.shape[2:]).diagonal(dim1=1, dim2=3)


@dataclass(frozen=True)
class Turned(_Form):
    """The run's own convolution in another layout than `last` says, of x and of the kernel. Weights: one."""

    run: Run
    last: bool  # whether the definition is in channels_last
    window: Window

    @property
    def groups(self) -> int:
        return self.run.count

    def gradients(self, weights: Sequence[Tensor], gkernel: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(weights[0]).copy_(gkernel),)

    def by_definition(self, x_nchw: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return _conv2d(self._laid(x_nchw), weights[0], self.window, self.groups)

    def gradients_by_definition(
        self, x: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        return _conv2d_backward(self._laid(gy), self._laid(x), weights[0], self.window, self.groups, needs)

    def _laid(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last if self.last else torch.contiguous_format)


@dataclass(frozen=True)
class OneByOne(_Form):
    """One convolution per segment of a run. Weights: one, which is the kernel too."""

    run: Run
    window: Window

    @property
    def groups(self) -> int:
        return self.run.count

    def by_kernel(self, x: Tensor, kernel: Tensor) -> Tensor:
        return torch.cat([_conv2d(part, one, self.window) for part, one in self._apart(x, kernel)], dim=-3)

    def gradients_by_kernel(self, x: Tensor, kernel: Tensor, gy: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        apart = zip(gy.split(self.run.out_size, dim=-3), self._apart(x, kernel), strict=True)
        found = [_conv2d_backward(gradient, part, one, self.window, 1, needs) for gradient, (part, one) in apart]
        gx, gkernel = ([one for one in of if one is not None] for of in zip(*found, strict=True))
        return [torch.cat(gx, dim=-3) if gx else None, torch.cat(gkernel) if gkernel else None]

    def gradients(self, weights: Sequence[Tensor], gkernel: Tensor) -> tuple[Tensor, ...]:
        return (gkernel,)

    def by_definition(self, x_nchw: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return _conv2d(x_nchw, weights[0], self.window, self.groups)

    def gradients_by_definition(
        self, x: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        return _conv2d_backward(gy, x, weights[0], self.window, self.groups, needs)

    def _apart(self, x: Tensor, kernel: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Input and kernel of each segment."""
        return zip(x.split(self.run.in_size, dim=-3), kernel.split(self.run.out_size), strict=True)


@dataclass(frozen=True)
class Folded(_Form):
    """Two dense convolutions as one. Weights: the first's (mid, in, ·, ·) and the second's (out, mid, ·, ·)."""

    window: Window

    @property
    def groups(self) -> int:
        return 1

    def gradients(self, weights: Sequence[Tensor], gkernel: Tensor) -> tuple[Tensor, ...]:
        first, second = weights
        if _is_1x1(first):
            one = torch.einsum("oihw,omhw->mi", gkernel, second)[:, :, None, None]
            return one, torch.einsum("oihw,mi->omhw", gkernel, first[:, :, 0, 0])
        one = torch.einsum("oihw,mihw->om", gkernel, first)[:, :, None, None]
        return torch.einsum("oihw,om->mihw", gkernel, second[:, :, 0, 0]), one

    def by_definition(self, x_nchw: Tensor, weights: Sequence[Tensor]) -> Tensor:
        first, second = self._windows(weights)
        return _conv2d(_conv2d(x_nchw, weights[0], first), weights[1], second)

    def gradients_by_definition(
        self, x: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of x and both weights, where needed."""
        first, second = self._windows(weights)
        between = _conv2d(x, weights[0], first)
        gbetween, gsecond = _conv2d_backward(gy, between, weights[1], second, 1, (needs[0] or needs[1], needs[2]))
        if gbetween is None:
            return [None, None, gsecond]
        return [*_conv2d_backward(gbetween, x, weights[0], first, 1, needs[:2]), gsecond]

    def _windows(self, weights: Sequence[Tensor]) -> tuple[Window, Window]:
        plain = Window((1, 1), (0, 0), (1, 1))
        return (plain, self.window) if _is_1x1(weights[0]) else (self.window, plain)


def fold(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of one convolution that equals `first` and then `second`, both dense, one of them 1×1.

    From (mid, in, ·, ·) and (out, mid, ·, ·) to (out, in, kh, kw). Exact with zero padding too: the 1×1 has no bias.
    """
    if _is_1x1(first):
        return torch.einsum("omhw,mi->oihw", second, first[:, :, 0, 0]).contiguous()
    return torch.einsum("om,mihw->oihw", second[:, :, 0, 0], first).contiguous()


def convolve(form: _Form, x_nchw: Tensor, weights: Sequence[Tensor], kernel: Tensor) -> Tensor:
    """Convolve with a kernel derived from the weights as defined by `form`, on the CPU.

    Differentiable with respect to x and the weights, to any order; torch.compile supports it.
    """
    if torch.is_autocast_enabled("cpu"):
        to = torch.get_autocast_dtype("cpu")
        x_nchw, kernel, *weights = (t if t.dtype == torch.float64 else t.to(to) for t in (x_nchw, kernel, *weights))
    if torch.compiler.is_compiling():
        followed: Tensor = _operation(x_nchw, kernel, list(weights), _code(form))
        return followed
    y_nchw: Tensor = _Function.apply(form, x_nchw, kernel, *weights)  # type: ignore[no-untyped-call]
    return y_nchw


def can_derive(x_nchw: Tensor) -> bool:
    """Whether a derived kernel is exact and faster for this tensor: floating point, on the CPU."""
    return x_nchw.device.type == "cpu" and x_nchw.is_floating_point()


def types_fit(x_nchw: Tensor, weight: Tensor) -> bool:
    """Whether input and weight have one type, or autocast gives them one; else torch raises its own error."""
    return x_nchw.dtype == weight.dtype or torch.is_autocast_enabled("cpu")


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite, in one pass. May also be False if their sum overflows."""
    wider = torch.float32 if tensor.dtype == torch.float16 else None
    return math.isfinite(tensor.sum(dtype=wider).item())


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: _Form, x: Tensor, kernel: Tensor, *weights: Tensor) -> Tensor:
        y = form.by_kernel(x, kernel)
        ctx.form, ctx.is_by_definition = form, not is_finite(y)
        ctx.save_for_backward(x, kernel, *weights)
        return form.by_definition(x, weights) if ctx.is_by_definition else y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        x, kernel, *weights = ctx.saved_tensors
        needs = [ctx.needs_input_grad[1], *ctx.needs_input_grad[3:]]
        if torch.is_grad_enabled():
            gx, *gweights = _followed_gradients(ctx.form, x, weights, gy, needs)
        elif ctx.is_by_definition or is_batched(gy):
            gx, *gweights = ctx.form.gradients_by_definition(x, weights, gy, needs)
        else:
            gx, *gweights = _gradients(ctx.form, x, kernel, weights, gy, needs)
        return None, gx, None, *gweights


def _gradients(
    form: _Form, x: Tensor, kernel: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x and each weight, where needed. The kernel is finite."""
    gx, gkernel = form.gradients_by_kernel(x, kernel, gy, (needs[0], any(needs[1:])))
    shown = gx if gkernel is None else gkernel
    if shown is not None and not is_finite(shown):
        return form.gradients_by_definition(x, weights, gy, needs)
    gweights = form.gradients(weights, gkernel) if gkernel is not None else [None for _ in weights]
    return [gx, *(g if need else None for g, need in zip(gweights, needs[1:], strict=True))]


def _followed_gradients(
    form: _Form, x: Tensor, weights: Sequence[Tensor], gy: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The same gradients, themselves differentiable."""
    # Gradients of aliases, so that hooks of the tensors themselves are not called inside this operation.
    tensors = [tensor.view_as(tensor) for tensor in (x, *weights)]
    asked = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    with torch.autocast("cpu", enabled=False):  # from the types of the forward pass to those of the tensors now
        found = iter(torch.autograd.grad(form.by_definition(tensors[0], tensors[1:]), asked, gy, create_graph=True))
    return [next(found) if need else None for need in needs]


# A torch operation, opaque to torch.compile: whether values are finite is unknown while it compiles.


def _code(form: _Form) -> list[int]:
    """The form as plain numbers, which a torch operation can take: its window, its kind, and what else it has."""
    window = [number for pair in astuple(form.window) for number in pair]
    if isinstance(form, Blocks):
        return [*window, 0, *astuple(form.run), form.together]
    if isinstance(form, Turned):
        return [*window, 1, *astuple(form.run), int(form.last)]
    return [*window, 2, *astuple(form.run)] if isinstance(form, OneByOne) else window


def _form(code: Sequence[int]) -> _Form:
    window = Window((code[0], code[1]), (code[2], code[3]), (code[4], code[5]))
    if len(code) == 6:
        return Folded(window)
    kind, run = code[6], Run(*code[7:10])
    if kind == 2:
        return OneByOne(run, window)
    return Blocks(run, code[10], window) if kind == 0 else Turned(run, bool(code[10]), window)


@torch.library.custom_op("spectrum::derived_conv2d", mutates_args=(), device_types="cpu")
def _operation(x: Tensor, kernel: Tensor, weights: list[Tensor], code: list[int]) -> Tensor:
    form = _form(code)
    y = form.by_kernel(x, kernel)
    return _laid_like(x, y if is_finite(y) else form.by_definition(x, weights))


@_operation.register_fake
def _(x: Tensor, kernel: Tensor, weights: list[Tensor], code: list[int]) -> Tensor:
    return _laid_like(x, _form(code).by_definition(x, weights))


@torch.library.custom_op("spectrum::derived_conv2d_backward", mutates_args=(), device_types="cpu")
def _operation_backward(
    x: Tensor, kernel: Tensor, weights: list[Tensor], gy: Tensor, code: list[int], needs_x: bool, needs_w: bool
) -> list[Tensor]:
    form, needs = _form(code), [needs_x, *(needs_w for _ in weights)]
    if is_finite(kernel):
        found = _gradients(form, x, kernel, weights, gy, needs)
    else:
        found = form.gradients_by_definition(x, weights, gy, needs)
    return [_like(given, gradient) for given, gradient in zip((x, *weights), found, strict=True)]


@_operation_backward.register_fake
def _(
    x: Tensor, kernel: Tensor, weights: list[Tensor], gy: Tensor, code: list[int], needs_x: bool, needs_w: bool
) -> list[Tensor]:
    return [torch.empty_like(given) for given in (x, *weights)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, weights, ctx.code = inputs
    ctx.save_for_backward(x, kernel, *weights)


def _backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
    x, kernel, *weights = ctx.saved_tensors
    needs_x, needs_w = ctx.needs_input_grad[0], any(ctx.needs_input_grad[2])
    gx, *gweights = _operation_backward(x, kernel, weights, gy, ctx.code, needs_x, needs_w)
    return gx if needs_x else None, None, gweights if needs_w else [None for _ in gweights], None


_operation.register_autograd(_backward, setup_context=_save)


def _laid_like(x: Tensor, y: Tensor) -> Tensor:
    return y.contiguous(memory_format=layout_of(x))


def _like(given: Tensor, gradient: Tensor | None) -> Tensor:
    """The gradient with the strides that `register_fake` promises; zeros if it is not needed."""
    room = torch.empty_like(given)
    return room.zero_() if gradient is None else room.copy_(gradient)


def _conv2d(x: Tensor, weight: Tensor, window: Window, segments: int = 1) -> Tensor:
    return F.conv2d(x, weight, None, window.stride, window.padding, window.dilation, segments)


def _conv2d_backward(
    gy: Tensor, x: Tensor, weight: Tensor, window: Window, segments: int, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x and weight, where needed; also inside an operation, where autograd records nothing."""
    geometry = list(window.stride), list(window.padding), list(window.dilation), False, [0, 0], segments
    found = torch.ops.aten.convolution_backward(gy, x, weight, None, *geometry, [*needs, False])
    return [gradient if need else None for gradient, need in zip(found[:2], needs, strict=True)]


def _is_1x1(weight: Tensor) -> bool:
    return weight.shape[2:] == (1, 1)

"""Derivatives of a convolution operation, to any order: the output is linear in x and in w, so they are convolutions.

Both operations take plain lists of numbers after their tensors, and `backward` says at the end which gradients are
needed; one that is not needed is returned empty.

    forward(x, weight, *numbers) -> y
    backward(x, weight, gy, *numbers, needs_x, needs_w) -> gx, gw
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Setup = Callable[[Any, tuple[Any, ...], Any], None]
Derivative = Callable[..., tuple[Any, ...]]


class Derivatives(NamedTuple):
    """What autograd needs of both operations: what each saves, and its derivative."""

    save: Setup
    backward: Derivative
    save_backward: Setup
    backward_of_backward: Derivative


def derivatives(forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, Tensor]]) -> Derivatives:
    """Write the derivatives of two operations in terms of these operations.

    Args:
        forward: calls the convolution.
        backward: calls its gradient.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, *ctx.numbers = inputs
        ctx.save_for_backward(x, weight)

    def of_forward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_w = ctx.needs_input_grad[:2]
        gx, gw = backward(x, weight, gy, *ctx.numbers, needs_x, needs_w)
        return gx if needs_x else None, gw if needs_w else None, *(None for _ in ctx.numbers)

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, gy, *ctx.numbers, ctx.needs_x, ctx.needs_w = inputs
        ctx.save_for_backward(x, weight, gy)

    def of_backward(ctx: Any, ggx: Tensor, ggw: Tensor) -> tuple[Any, ...]:
        # gx is linear in (gy, w) and gw in (x, gy), so their derivatives are the same three operations.
        x, weight, gy = ctx.saved_tensors
        grad_x = grad_w = grad_gy = None
        needs_x, needs_w, needs_gy = ctx.needs_input_grad[:3]
        if ctx.needs_x:
            if needs_w:
                grad_w = backward(ggx, weight, gy, *ctx.numbers, False, True)[1]
            if needs_gy:
                grad_gy = forward(ggx, weight, *ctx.numbers)
        if ctx.needs_w:
            if needs_x:
                grad_x = backward(x, ggw, gy, *ctx.numbers, True, False)[0]
            if needs_gy:
                more = forward(x, ggw, *ctx.numbers)
                grad_gy = more if grad_gy is None else grad_gy + more
        return grad_x, grad_w, grad_gy, *(None for _ in ctx.numbers), None, None

    return Derivatives(save, of_forward, save_backward, of_backward)

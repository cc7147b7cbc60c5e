"""The MACs of torch's operators.

Convolutions and matrix products are counted. An operator is one of three kinds:

    product        `macs_of` has a formula of its shapes: its own, or one of `torch.utils.flop_counter`, to which
                   `register_flop_formula` adds the formula of your own operator
    free           it has no products, according to `free.py`
    unknown        every other operator, in every namespace; `measure_cost` lists each by name

A product of complex numbers counts as four of real ones. An operator of another library is unknown unless it has a
formula or the tag `pointwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from spectrum.cost.free import is_free

Arguments = tuple[Any, ...]
Formula = Callable[[Arguments, Any], int]


def macs_of(operator: Any, args: Arguments, kwargs: dict[str, Any], result: Any) -> int | None:
    """Multiply-adds of one call of an operator, from its arguments and its result.

    0 for a free operator, None for an unknown one, or for tensors without a plain shape.
    """
    formula = _formula(operator)
    if formula is None:
        return 0 if is_free(operator) else None
    try:
        macs = formula(args, kwargs, result)
    except Exception:  # shapes that the formula does not know, such as those of nested tensors
        return None
    return macs if isinstance(macs, int) else None


def is_product(operator: Any) -> bool:
    """Whether `macs_of` has a formula for this operator."""
    return _formula(operator) is not None


def _formula(operator: Any) -> Callable[[Arguments, dict[str, Any], Any], int] | None:
    own = _own_formula(operator)
    if own is not None:
        return lambda args, kwargs, result: own(args, result) * _real_products(args)
    registered = flop_registry.get(getattr(operator, "overloadpacket", operator))
    if registered is not None:
        return lambda args, kwargs, result: registered(*args, **kwargs, out_val=result) // 2
    return None


def _real_products(args: Arguments) -> int:
    """Real products per product of two values: four if they are complex, else one."""
    factors = [arg for arg in args if isinstance(arg, Tensor) and (arg.is_floating_point() or arg.is_complex())]
    complex_ones = sum(factor.is_complex() for factor in factors)
    return 1 if not complex_ones else 4 if complex_ones == len(factors) else 2


@cache
def _own_formula(operator: Any) -> Formula | None:
    return _FORMULAS.get(str(getattr(operator, "overloadpacket", operator)))


def macs_of_convolution(args: Arguments, result: Tensor) -> int:
    """MACs of aten.convolution.

    Every output value is a sum over kernel positions and the inputs of its segment: all but the first axis of the
    weight. In a transposed convolution the same holds for every input value.
    """
    x, weight, transposed = args[0], args[1], args[6]
    return int((x if transposed else result).numel() * math.prod(weight.shape[1:]))


def macs_of_convolution_backward(args: Arguments, result: Any) -> int:
    """MACs of the gradients of input and weight: each, if requested, costs as much as the convolution."""
    gradient, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return int(sum(wanted[:2]) * (x if transposed else gradient).numel() * math.prod(weight.shape[1:]))


def _convolution_in_time(args: Arguments, result: Any) -> int:
    """MACs of conv_tbc: result (T, B, C_out), weight (taps, C_in, C_out)."""
    return int(result.numel() * math.prod(args[1].shape[:2]))


def _convolution_in_time_backward(args: Arguments, result: Any) -> int:
    """MACs of both gradients, which torch always computes."""
    gradient, _, weight = args[:3]
    return int(2 * gradient.numel() * math.prod(weight.shape[:2]))


def _product(first: int) -> Formula:
    """MACs of (…, n, k) times (…, k, m) or (k,); the factors are the arguments `first` and `first + 1`.

    For a sparse factor, only stored values count.
    """

    def macs(args: Arguments, result: Any) -> int:
        a, b = args[first], args[first + 1]
        if a.layout == b.layout == torch.strided:
            return int(result.numel() * a.shape[-1])
        if b.layout == torch.strided:
            return int(_stored(a) * (b.shape[-1] if b.dim() > 1 else 1))
        if a.layout == torch.strided:
            return int(_stored(b) * a.shape[-2])
        raise NotImplementedError("the cost of two sparse factors does not follow from their shapes")

    return macs


def _stored(sparse: Tensor) -> int:
    return int((sparse._values() if sparse.layout == torch.sparse_coo else sparse.values()).numel())


def _batched_product(args: Arguments, result: Any) -> int:
    """MACs of addbmm: products of (b, n, k) and (b, k, m), summed over b."""
    return int(result.numel() * args[1].shape[0] * args[1].shape[-1])


def _inner_size(args: Arguments, result: Any) -> int:
    """MACs of a linear layer with a packed weight, from its input (…, k) and its output."""
    return int(result.numel() * args[0].shape[-1])


def _packed_convolution(args: Arguments, result: Any) -> int:
    """MACs of a quantised convolution, whose weight is packed."""
    return int(result.numel() * math.prod(args[1].unpack()[0].shape[1:]))


def _outer(args: Arguments, result: Any) -> int:
    return int(result.numel())


def _trilinear(args: Arguments, result: Any) -> int:
    """MACs of sums over products of three factors, as in nn.Bilinear: two factors are multiplied, then the third.

    As in torch, the first product is summed at once over dimensions that the third factor lacks, one step of the
    unrolled dimension after the other.
    """
    factors, expanded, summed = args[:3], args[3:6], args[6]
    unrolled = args[7] if len(args) > 7 else 1
    sizes = list[int]()
    present = list[tuple[bool, ...]]()
    axes = [iter(factor.shape) for factor in factors]
    for dim in range(factors[0].dim() + len(expanded[0])):
        here = tuple(dim not in missing for missing in expanded)
        found = [next(axis) for axis, is_here in zip(axes, here, strict=True) if is_here]
        sizes.append(max(found, default=1))
        present.append(here)
    both = [dim for dim, here in enumerate(present) if here[0] or here[1] or dim == unrolled]
    kept = [dim for dim in both if not (dim in summed and not present[dim][2] and dim != unrolled)]
    third = [dim for dim, here in enumerate(present) if here[2] and dim not in kept]
    return math.prod(sizes[dim] for dim in both) + math.prod(sizes[dim] for dim in [*kept, *third])


def _attention_on_cpu(args: Arguments, result: Any) -> int:
    """MACs of two products: queries · keys, then times values."""
    query, key, value = args[:3]
    return int(query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_on_cpu_backward(args: Arguments, result: Any) -> int:
    """MACs of five products: the scores again, and the gradients of weights, values, queries and keys."""
    _, query, key, value = args[:4]
    return int(query[..., 0].numel() * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _recurrent_layer(args: Arguments, result: Any) -> int:
    """MACs of one layer and direction: both weights, at every step."""
    x, from_input, from_state = args[:3]
    return int(x.numel() // x.shape[-1] * (from_input.numel() + from_state.numel()))


def _weighted_bag(args: Arguments, result: Any) -> int:
    """MACs of a sum of rows: none, or with a weight per row those of a sparse matrix product."""
    return int(args[1].numel() * args[0].shape[-1]) if args[6] is not None else 0


def _weighted_bag_backward(indices: int, weights: int) -> Formula:
    """Make the formula; `indices` and `weights` are positions among the arguments, whose first is the gradient."""

    def macs(args: Arguments, result: Any) -> int:
        return int(args[indices].numel() * args[0].shape[-1]) if args[weights] is not None else 0

    return macs


def _linear_backward(args: Arguments, result: Any) -> int:
    """MACs of the gradients of input and weight, each if requested."""
    _, gradient, weight, wanted = args
    return int(sum(wanted[:2]) * gradient.numel() * weight.shape[-1])


def _grouped_product(args: Arguments, result: Any) -> int:
    """MACs of (n, k) times (groups, k, m) with one group per row, or of (n, k) times (k, m) with k in groups."""
    a, b = args[:2]
    groups = result.shape[0] if a.dim() == b.dim() == 2 else 1
    return int(result.numel() * a.shape[-1] // groups)


def _affine_grid(args: Arguments, result: Any) -> int:
    """MACs of (H·W, 3) times (3, 2), or (D·H·W, 4) times (4, 3)."""
    return int(result.numel() * args[0].shape[-1])


_FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("aten.convolution", "aten._convolution"), macs_of_convolution),
    "aten.convolution_backward": macs_of_convolution_backward,
    "aten.conv_tbc": _convolution_in_time,
    "aten.conv_tbc_backward": _convolution_in_time_backward,
    **dict.fromkeys(("aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot", "aten.matmul"), _product(0)),
    **dict.fromkeys(("aten._int_mm", "aten._scaled_mm", "aten._sparse_mm"), _product(0)),
    **dict.fromkeys((f"aten.{name}{at}" for name in ("addmm", "baddbmm", "addmv") for at in ("", "_")), _product(1)),
    **dict.fromkeys(("aten._addmm_activation", "aten._sparse_addmm"), _product(1)),
    **dict.fromkeys(("aten.addbmm", "aten.addbmm_"), _batched_product),
    **dict.fromkeys(("aten.addr", "aten.addr_"), _outer),
    **dict.fromkeys(
        (f"quantized.linear{name}" for name in ("", "_relu", "_dynamic", "_relu_dynamic", "_dynamic_fp16")), _inner_size
    ),
    "aten.linear": _inner_size,
    **dict.fromkeys(
        (f"quantized.conv{dims}d{then}" for dims in (1, 2, 3) for then in ("", "_relu")), _packed_convolution
    ),
    **dict.fromkeys(("aten._weight_int8pack_mm", "aten._weight_int4pack_mm"), _inner_size),
    "aten._trilinear": _trilinear,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention_on_cpu,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _attention_on_cpu_backward,
    "aten.mkldnn_rnn_layer": _recurrent_layer,
    "aten.mkldnn_rnn_layer_backward": lambda args, result: 2 * _recurrent_layer(args, result),
    **dict.fromkeys(("aten._embedding_bag", "aten._embedding_bag_forward_only"), _weighted_bag),
    "aten._embedding_bag_backward": _weighted_bag_backward(1, 10),
    "aten._embedding_bag_dense_backward": _weighted_bag_backward(1, 8),
    "aten._embedding_bag_per_sample_weights_backward": _weighted_bag_backward(2, 1),
    "aten.linear_backward": _linear_backward,
    "aten._grouped_mm": _grouped_product,
    "aten.affine_grid_generator": _affine_grid,
}

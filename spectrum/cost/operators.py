"""Which of torch's operators multiply, how much, and which are known to carry no products.

Counted are convolutions and matrix products. An operator is one of three:

    a product      `macs_of` has a closed form of its shapes: its own, or one of `torch.utils.flop_counter`, in which
                   `register_flop_formula` enters the formula of an operator of one's own
    free           element by element, a reduction, a view, a copy, indexing, padding, pooling, resampling,
                   normalisation, softmax, a loss, random numbers: by convention these cost no MACs
    unknown        everything else, in every namespace; `measure_cost` reports each by name

A product of complex numbers counts as four of real ones. An operator of another library is unknown unless it has a
formula or the tag `pointwise`.

So an operator that torch adds is reported until somebody has looked at it. What is free follows from torch's own
description where it has one (the tag `pointwise`, the aliases that mark a view), and from `_FREE` below where not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from spectrum._torch import OpOverload

aten = torch.ops.aten

Arguments = tuple[Any, ...]
Formula = Callable[[Arguments, Any], int]


def macs_of(operator: Any, args: Arguments, kwargs: dict[str, Any], result: Any) -> int | None:
    """Multiply-adds of one call of an operator, from its arguments and its result.

    0 for an operator that is free, None for one that is unknown or whose tensors have no plain shape.
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
    """Whether `macs_of` has a closed form."""
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
    """Products of real numbers that one of the factors' numbers takes: four where they are complex."""
    factors = [arg for arg in args if isinstance(arg, Tensor) and (arg.is_floating_point() or arg.is_complex())]
    complex_ones = sum(factor.is_complex() for factor in factors)
    return 1 if not complex_ones else 4 if complex_ones == len(factors) else 2


@cache
def _own_formula(operator: Any) -> Formula | None:
    return _FORMULAS.get(str(getattr(operator, "overloadpacket", operator)))


def macs_of_convolution(args: Arguments, result: Tensor) -> int:
    """Of one call of aten.convolution.

    Every output number is a sum over taps and over the inputs of its segment: all but the first axis of the weight. In
    a transposed convolution every input number is spread so.
    """
    x, weight, transposed = args[0], args[1], args[6]
    return int((x if transposed else result).numel() * math.prod(weight.shape[1:]))


def macs_of_convolution_backward(args: Arguments, result: Any) -> int:
    """The gradients of input and weight cost as much as the convolution did, each where it is asked for."""
    gradient, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return int(sum(wanted[:2]) * (x if transposed else gradient).numel() * math.prod(weight.shape[1:]))


def _convolution_in_time(args: Arguments, result: Any) -> int:
    """Of conv_tbc: result (T, B, C_out), weight (taps, C_in, C_out)."""
    return int(result.numel() * math.prod(args[1].shape[:2]))


def _convolution_in_time_backward(args: Arguments, result: Any) -> int:
    """Both gradients, which the library computes whether they are wanted or not."""
    gradient, _, weight = args[:3]
    return int(2 * gradient.numel() * math.prod(weight.shape[:2]))


def _product(first: int) -> Formula:
    """Of (…, n, k) by (…, k, m), or by (k,); the factors are the arguments `first` and `first + 1`.

    A sparse factor costs what it stores.
    """

    def macs(args: Arguments, result: Any) -> int:
        a, b = args[first], args[first + 1]
        if a.layout == b.layout == torch.strided:
            return int(result.numel() * a.shape[-1])
        if b.layout == torch.strided:
            return int(_stored(a) * (b.shape[-1] if b.dim() > 1 else 1))
        if a.layout == torch.strided:
            return int(_stored(b) * a.shape[-2])
        raise NotImplementedError("what two sparse factors cost follows from no shape")

    return macs


def _stored(sparse: Tensor) -> int:
    return int((sparse._values() if sparse.layout == torch.sparse_coo else sparse.values()).numel())


def _batched_product(args: Arguments, result: Any) -> int:
    """Of addbmm: products of (b, n, k) by (b, k, m), which are summed over b."""
    return int(result.numel() * args[1].shape[0] * args[1].shape[-1])


def _inner_size(args: Arguments, result: Any) -> int:
    """Of a linear layer whose weight is packed: all that is known is its input (…, k) and its output."""
    return int(result.numel() * args[0].shape[-1])


def _packed_convolution(args: Arguments, result: Any) -> int:
    """Of a quantised convolution, whose weight is packed."""
    return int(result.numel() * math.prod(args[1].unpack()[0].shape[1:]))


def _outer(args: Arguments, result: Any) -> int:
    return int(result.numel())


def _trilinear(args: Arguments, result: Any) -> int:
    """Of sums over products of three factors, as nn.Bilinear has them: two factors are multiplied, then the third.

    The first product is summed at once over what the third factor lacks; as torch does it, one step of the unrolled
    dimension after the other.
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
    """Two products: queries · keys, and by values."""
    query, key, value = args[:3]
    return int(query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_on_cpu_backward(args: Arguments, result: Any) -> int:
    """Five products: the scores again, and the gradients of weights, values, queries and keys."""
    _, query, key, value = args[:4]
    return int(query[..., 0].numel() * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1]))


def _recurrent_layer(args: Arguments, result: Any) -> int:
    """Of one layer and direction: both weights, at every step."""
    x, from_input, from_state = args[:3]
    return int(x.numel() // x.shape[-1] * (from_input.numel() + from_state.numel()))


def _weighted_bag(args: Arguments, result: Any) -> int:
    """A sum of rows is free; with a weight per row it is a sparse matrix product."""
    return int(args[1].numel() * args[0].shape[-1]) if args[6] is not None else 0


def _weighted_bag_backward(indices: int, weights: int) -> Formula:
    """Where among the arguments the indices stand, and the weights; the gradient is the first."""

    def macs(args: Arguments, result: Any) -> int:
        return int(args[indices].numel() * args[0].shape[-1]) if args[weights] is not None else 0

    return macs


def _linear_backward(args: Arguments, result: Any) -> int:
    """The gradients of input and weight, each where it is asked for."""
    _, gradient, weight, wanted = args
    return int(sum(wanted[:2]) * gradient.numel() * weight.shape[-1])


def _grouped_product(args: Arguments, result: Any) -> int:
    """Of (n, k) by (groups, k, m), where each row has one group, or of k in groups: (n, k) by (k, m)."""
    a, b = args[:2]
    groups = result.shape[0] if a.dim() == b.dim() == 2 else 1
    return int(result.numel() * a.shape[-1] // groups)


def _affine_grid(args: Arguments, result: Any) -> int:
    """Of (H·W, 3) by (3, 2), or (D·H·W, 4) by (4, 3)."""
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


_OF_TORCH = ("aten", "prim", "prims", "profiler", "quantized")


@cache
def is_free(operator: Any) -> bool:
    """Whether an operator is known to carry no products."""
    if not isinstance(operator, OpOverload):  # one of a higher order: it runs functions
        return False
    if operator.namespace not in _OF_TORCH:  # a schema of somebody's own does not say what it computes
        return torch.Tag.pointwise in operator.tags
    if _says_that_it_is_free(operator):
        return True
    if operator.namespace == "quantized":
        return _FREE_QUANTISED.fullmatch(operator.overloadpacket.__name__) is not None
    schema = operator._schema
    if not schema.is_mutable and not any("Tensor" in str(made.type) for made in schema.returns):
        return True  # asks for a property
    return _is_free_name(operator.overloadpacket.__name__)


def _says_that_it_is_free(operator: Any) -> bool:
    """By its tags and its schema: element by element, a view, or a tensor made from numbers alone."""
    if torch.Tag.pointwise in operator.tags:
        return True
    aliases = [made.alias_info for made in operator._schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        return True
    taken = " ".join(str(argument.type) for argument in operator._schema.arguments)
    return "Tensor" not in taken and "__torch__" not in taken


@cache
def _is_free_name(name: str) -> bool:
    """By what an operator is called: variants of a free one, in place or backward, are free too."""
    if _FREE.fullmatch(name):
        return True
    packet = getattr(aten, name, None)
    if packet is not None and any(_says_that_it_is_free(getattr(packet, which)) for which in packet.overloads()):
        return True
    shorter = {re.sub(affix, "", name) for affix in _AFFIXES} - {name, ""}
    return any(_is_free_name(one) for one in shorter)


_AFFIXES = ("^_foreach_", "^_", "_$", "_copy$", "_backward$", "_backward_data$", "_functional$")
_FREE = re.compile(
    "|".join(
        (
            # creation, copies, shapes
            "(zeros|ones|empty|full|rand|randn|randint)_like|new_(empty|empty_strided|full|ones|zeros)|linspace|logspace",
            "range|new_zeros_with_same_feature_meta|_?to_copy|copy|copy_from|lift|fill|zero|set|resize|resize_as|pin_memory",
            "cat|chunk_cat|stack|repeat|repeat_interleave|flip|roll|rot90|tril|triu|diag_embed|block_diag|record_stream",
            "unsafe_(view|split|split_with_sizes)|narrow_copy|(constant_pad_nd|(reflection|replication)_pad[123]d)|im2col",
            "col2im|pixel_(un)?shuffle|channel_shuffle|(as_strided|slice|select|diagonal)_scatter|unfold|complex|polar",
            # indexing, sorting
            "(unsafe_)?index|index_(add|copy|fill|put|reduce|select)|index_put_impl|unsafe_index_put|gather|take|put",
            "unsafe_masked_index(_put_accumulate)?|scatter(_add|_reduce)?|masked_(scatter|select|scale)|nonzero(_static)?",
            "embedding|embedding_dense|embedding_renorm|bucketize|searchsorted|sort|topk|kthvalue|(nan)?median|mode|isin",
            "unique2?|unique_(consecutive|dim|dim_consecutive)|bincount|histc|histogram|histogramdd_.*",
            # reductions, scans
            "sum|nansum|mean|prod|amax|amin|aminmax|all|any|argmax|argmin|std|std_mean|var|var_mean|norm|native_norm|dist",
            "linalg_(vector_norm|_powsum)|powsum|logsumexp|count_nonzero|trace|segment_reduce|allclose|hash_tensor|renorm",
            "cumsum|cumprod|cummax|cummin|cummax_helper|cummin_helper|logcumsumexp|linalg_cross",
            # softmax, normalisation
            "(log_|masked_|safe_)?softmax|(native_|cudnn_|miopen_|quantized_)?batch_norm(_.*)?|native_(layer|group)_norm",
            "native_batch_norm_legit(_no_training)?|fused_rms_norm|weight_norm_interface",
            # pooling, resampling
            "(mkldnn_)?adaptive_(avg|max)_pool[23]d|avg_pool[23]d|fractional_max_pool[23]d|max_unpool[23]d",
            "(mkldnn_|quantized_)?max_pool[123]d(_with_indices)?|upsample_.*|(cudnn_)?grid_sampler(_[23]d.*)?",
            # activations and losses that torch does not tag
            "glu|glu_jvp|prelu_kernel|rrelu_with_noise|log_sigmoid_forward|log_sigmoid|hardswish|add_relu|floor_divide",
            "thnn_fused_(lstm|gru)_cell|thnn_fused_lstm_cell_backward_impl|transform_bias_rescale_qkv",
            "mse_loss|(smooth_l1|huber|soft_margin|multi_margin)_loss|(nll_loss|nll_loss2d|multilabel_margin_loss)_forward",
            "nll_loss|nll_loss2d|multilabel_margin_loss|binary_cross_entropy(_with_logits)?|(cudnn_|miopen_)?ctc_loss",
            # random numbers
            "bernoulli|normal|uniform|random|multinomial|exponential|geometric|cauchy|log_normal|poisson|binomial",
            "standard_gamma|standard_gamma_grad|sample_dirichlet|dirichlet_grad|(native_|fused_)?dropout|philox_.*",
            # types and layouts
            "quantize_per_(tensor|channel)(_dynamic)?|dequantize|int_repr|(make|empty)_per_.*|fake_quantize_.*|q_.*",
            "fused_moving_avg_obs_fq_helper|to_(dense|sparse.*|mkldnn|padded_tensor)|mkldnn_(reshape|transpose)|coalesced?",
            "sparse_(mask|mask_projection|sum|softmax|log_softmax|resize|resize_and_clear|csr_sum)|copy_sparse_to_sparse",
            "sparse_coo_tensor_.*|sparse_compressed_tensor.*|convert_indices_.*|validate_.*|resize_as_sparse|pack_padded_sequence",
            "amp_.*|is_(all|any)_true|resize_output|lazy_clone|copy_from_and_resize|avg_pool1d|adaptive_avg_pool1d|lu_unpack",
            "glu_backward_jvp|spdiags|sparse_csr_prod|__i?(and|or|xor|lshift|rshift)__|mkldnn_reorder_.*|efficientzerotensor",
            "cudnn_rnn_flatten_weight|fill_mem_eff_dropout_mask|functional_sym_constrain_.*|fused_(sgd|adamw?|adagrad)",
            "nested_(from_padded.*|tensor_.*|view_.*|select|sum|compute_.*|get_.*)|(padded|jagged)_.*|(functional_)?assert_.*",
        )
    )
)

_FREE_QUANTISED = re.compile(
    "(add|mul|cat)(_relu|_out|_relu_out|_scalar.*)?|(batch_norm[123]?d?|layer_norm|group_norm|instance_norm)(_relu)?|"
    "relu6|leaky_relu|elu|celu|hardswish|sigmoid|softmax|threshold|prelu|dropout|clamp|max_pool[123]d|embedding_.*byte|"
    "(conv[123]d|conv_transpose[123]d|linear)_(prepack|unpack).*"
)

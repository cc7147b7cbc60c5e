"""The torch operators known to cost no MACs.

Element by element, a reduction, a view, a copy, indexing, padding, pooling, resampling, normalisation, softmax, a loss,
random numbers: by convention these cost no MACs. torch's own description decides if there is one (the tag `pointwise`,
the aliases that mark a view), else the list `_FREE` below. So a new operator of torch is not free until it is listed.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch

from spectrum._torch import OpOverload

aten = torch.ops.aten

_OF_TORCH = ("aten", "prim", "prims", "profiler", "quantized")


@cache
def is_free(operator: Any) -> bool:
    """Whether an operator is known to cost no MACs."""
    if not isinstance(operator, OpOverload):  # one of a higher order: it runs functions
        return False
    if operator.namespace not in _OF_TORCH:  # the schema of a user's operator does not tell what it computes
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
    """Whether tags and schema mark an operator as elementwise, a view, or one that makes a tensor from numbers."""
    if torch.Tag.pointwise in operator.tags:
        return True
    aliases = [made.alias_info for made in operator._schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        return True
    taken = " ".join(str(argument.type) for argument in operator._schema.arguments)
    return "Tensor" not in taken and "__torch__" not in taken


@cache
def _is_free_name(name: str) -> bool:
    """Whether the name is on the list; in-place and backward variants of a free operator are free too."""
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

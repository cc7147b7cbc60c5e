"""Every layer of torch against closed forms: its products are counted, or what carries them is named."""

import re
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from spectrum import measure_cost
from spectrum.cost.free import is_free
from spectrum.cost.operators import is_product, macs_of

N, T, E = 2, 7, 12  # examples, steps, features


class Call(nn.Module):
    """A function of its weight and its inputs."""

    def __init__(self, function, *shape, dtype=None):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(*shape, dtype=dtype))

    def forward(self, *inputs):
        return self.function(self.weight, *inputs)


def zeros(*shape, dtype=None):
    return torch.zeros(*shape, dtype=dtype)


def words(*shape):
    return torch.zeros(*shape, dtype=torch.long)


def lstm(**options):
    return nn.LSTM(E, 5, **options)


def recurrent_macs(gates, layers=1, directions=1, width=5, out=None):
    """Of every step: gates of the input and of the state, and the projection of the state."""
    out = width if out is None else out
    sizes = [E] + [directions * out] * (layers - 1)
    projection = 0 if out == width else width * out
    return sum(N * T * directions * (gates * width * (size + out) + projection) for size in sizes)


def attention_macs(queries, keys, heads_width=E):
    return 2 * N * queries * keys * heads_width


SEQUENCE = zeros(T, N, E)
PRODUCTS = {  # a network, its inputs, its MACs
    "linear": (nn.Linear(E, 5), zeros(N, E), N * E * 5),
    "linear, a vector": (nn.Linear(E, 5), zeros(E), E * 5),
    "linear, four dimensions": (nn.Linear(E, 5, bias=False), zeros(N, 3, 4, E), N * 12 * E * 5),
    "F.linear": (Call(lambda w, x: F.linear(x, w), 5, E), zeros(N, T, E), N * T * E * 5),
    "Conv1d": (nn.Conv1d(4, 6, 3, groups=2), zeros(N, 4, 9), N * 6 * 7 * 2 * 3),
    "Conv1d, no batch": (nn.Conv1d(4, 6, 3, dilation=2), zeros(4, 9), 6 * 5 * 4 * 3),
    "Conv3d": (nn.Conv3d(2, 4, (1, 2, 3), stride=2), zeros(N, 2, 4, 5, 6), N * 4 * 2 * 2 * 2 * 2 * 6),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, groups=2), zeros(N, 4, 9), N * 4 * 9 * 3 * 3),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 4, 2, stride=2), zeros(N, 2, 3, 3, 3), N * 2 * 27 * 4 * 8),
    "conv_tbc": (Call(lambda w, x: torch.conv_tbc(x, w, zeros(5)), 3, E, 5), SEQUENCE, N * (T - 2) * 3 * E * 5),
    "Bilinear": (nn.Bilinear(4, 5, 6), (zeros(N, 4), zeros(N, 5)), N * 6 * (4 * 5 + 5)),
    "mm": (Call(lambda w, x: x @ w, E, 5), zeros(N, E), N * E * 5),
    "mv": (Call(lambda w, x: w @ x, 5, E), zeros(E), 5 * E),
    "dot": (Call(lambda w, x: w @ x, E), zeros(E), E),
    "matmul, broadcast": (Call(lambda w, x: x @ w, 3, E, 5), zeros(N, 1, T, E), N * 3 * T * E * 5),
    "bmm": (Call(lambda w, x: torch.bmm(x, w), N, E, 5), zeros(N, T, E), N * T * E * 5),
    "baddbmm": (Call(lambda w, x: torch.baddbmm(x[..., :5], x, w), N, E, 5), zeros(N, T, E), N * T * E * 5),
    "addbmm": (Call(lambda w, x: torch.addbmm(x[0, :, :5], x, w), N, E, 5), zeros(N, T, E), N * T * E * 5),
    "addmv": (Call(lambda w, x: torch.addmv(x[:5], w, x), 5, E), zeros(E), 5 * E),
    "addr": (Call(lambda w, x: torch.addr(zeros(5, E), w, x), 5), zeros(E), 5 * E),
    "einsum": (Call(lambda w, x: torch.einsum("nte,eo->nto", x, w), E, 5), zeros(N, T, E), N * T * E * 5),
    "tensordot": (Call(lambda w, x: torch.tensordot(x, w, 1), E, 5), zeros(N, T, E), N * T * E * 5),
    "complex": (Call(lambda w, x: x @ w, E, 5, dtype=torch.cfloat), zeros(N, E, dtype=torch.cfloat), 4 * N * E * 5),
    "sparse": (Call(lambda w, x: torch.sparse.mm(torch.eye(E).to_sparse(), w), E, 5), zeros(1), E * 5),
    "compressed": (Call(lambda w, x: torch.eye(E).to_sparse_csr() @ w, E, 5), zeros(1), E * 5),
    "unfolded": (Call(lambda w, x: w @ F.unfold(x, 3), 5, 27), zeros(N, 3, 4, 6), N * 8 * 27 * 5),
    "affine grid": (Call(lambda w, x: F.affine_grid(w, x.shape, False), 1, 2, 3), zeros(1, 3, 4, 5), 4 * 5 * 3 * 2),
    "integers": (Call(lambda w, x: torch._int_mm(x, x.t()), 1), zeros(32, 32, dtype=torch.int8), 32**3),
    "RNN": (nn.RNN(E, 5), SEQUENCE, recurrent_macs(1)),
    "RNN, ReLU": (nn.RNN(E, 5, nonlinearity="relu", num_layers=2), SEQUENCE, recurrent_macs(1, 2)),
    "GRU": (nn.GRU(E, 5, bidirectional=True), SEQUENCE, recurrent_macs(3, directions=2)),
    "LSTM": (lstm(), SEQUENCE, recurrent_macs(4)),
    "LSTM, all": (
        lstm(num_layers=2, bidirectional=True, proj_size=3),
        SEQUENCE,
        recurrent_macs(4, 2, 2, out=3),
    ),
    "LSTM, packed": (lstm(), (pack_padded_sequence(SEQUENCE, torch.tensor([T, 4])),), (T + 4) * 20 * (E + 5)),
    "LSTMCell": (nn.LSTMCell(E, 5), zeros(N, E), N * 20 * (E + 5)),
    "Embedding": (nn.Sequential(nn.Embedding(9, E), nn.Linear(E, 5)), words(N, T), N * T * E * 5),
    "weighted bag": (nn.EmbeddingBag(9, E, mode="sum"), (words(N, 3), None, zeros(N, 3)), N * 3 * E),
    "attention": (
        Call(lambda w, x: F.scaled_dot_product_attention(x * w, x, x), 1),
        zeros(N, 4, T, 3),
        attention_macs(T, T),
    ),
    "attention, grouped queries": (
        Call(lambda w, x: F.scaled_dot_product_attention(x * w, x[:, :2], x[:, :2], enable_gqa=True), 1),
        zeros(N, 4, T, 3),
        attention_macs(T, T),
    ),
    "attention, masked": (
        Call(lambda w, x: F.scaled_dot_product_attention(x * w, x, x, attn_mask=zeros(T, T)), 1),
        zeros(N, 4, T, 3),
        attention_macs(T, T),
    ),
    "MultiheadAttention": (
        nn.MultiheadAttention(E, 4),
        {"query": zeros(3, N, E), "key": SEQUENCE, "value": SEQUENCE},
        attention_macs(3, T) + 2 * N * (3 + T) * E * E,
    ),
    "MultiheadAttention, no weights": (
        nn.MultiheadAttention(E, 4, batch_first=True),
        {"query": zeros(N, T, E), "key": zeros(N, T, E), "value": zeros(N, T, E), "need_weights": False},
        attention_macs(T, T) + 4 * N * T * E * E,
    ),
    "TransformerEncoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 4, 20, batch_first=True), 2),
        zeros(N, T, E),
        2 * (attention_macs(T, T) + 4 * N * T * E * E + 2 * N * T * E * 20),
    ),
    "TransformerEncoder, padded": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 4, 20, batch_first=True), 2),
        {"src": zeros(N, T, E), "src_key_padding_mask": torch.arange(T).expand(N, T) > 3},
        2 * (attention_macs(T, T) + 4 * N * T * E * E + 2 * N * T * E * 20),
    ),
    "Transformer": (
        nn.Transformer(E, 4, 1, 1, 20, batch_first=True),
        (zeros(N, T, E), zeros(N, 3, E)),
        attention_macs(T, T) + attention_macs(3, 3) + attention_macs(3, T)
        + 4 * N * (T + 3) * E * E + 2 * N * (3 + T) * E * E + 2 * N * (T + 3) * E * 20,
    ),
}  # fmt: skip
WAYS = ("training", "frozen", "no_grad", "inference_mode", "meta")


class Without(nn.Module):
    """A network that runs under a context of its own."""

    def __init__(self, model, context):
        super().__init__()
        self.model, self.context = model, context

    def forward(self, *args, **kwargs):
        with self.context():
            return self.model(*args, **kwargs)


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_counted_however_they_run(name, way):
    model, inputs, macs = PRODUCTS[name]
    if way == "meta":
        if name in ("sparse", "compressed", "LSTM, packed", "attention, masked", "addr", "conv_tbc"):
            pytest.skip("looks at numbers, or mixes devices")
        model = deepcopy(model).to("meta")
    elif way in ("no_grad", "inference_mode"):
        model = Without(model, getattr(torch, way))
    model.requires_grad_(way != "frozen")
    try:
        cost = measure_cost(model, example_inputs=inputs)
    finally:
        model.requires_grad_(True)
    assert (cost.macs, cost.not_counted) == (macs, ())
    assert cost.backward_macs == 0 or way in ("training", "meta")
    assert cost.params == (0 if way == "frozen" else sum(p.numel() for p in model.parameters()))


UNKNOWN = {  # a network, its inputs, an operator that must be named
    "cdist": (Call(lambda w, x: torch.cdist(x, w), 3, E), zeros(N, E), "aten._cdist_forward"),
    "cdist, large": (Call(lambda w, x: torch.cdist(x, w), 40, E), zeros(40, E), "aten._euclidean_dist"),
    "pdist": (Call(lambda w, x: F.pdist(w), 3, E), zeros(1), "aten._pdist_forward"),
    "fft": (Call(lambda w, x: torch.fft.irfft(torch.fft.rfft(x) * w), 7), zeros(N, E), "aten._fft_r2c"),
    "stft": (Call(lambda w, x: torch.stft(x, 4, window=w, return_complex=True), 4), zeros(N, 16), "aten._fft_r2c"),
    "solve": (Call(lambda w, x: torch.linalg.solve(torch.eye(E) * w, x), 1), zeros(E, 2), "aten._linalg_solve_ex"),
    "cholesky": (Call(lambda w, x: torch.linalg.cholesky(torch.eye(E) * w), 1), zeros(1), "aten.linalg_cholesky_ex"),
    "svd": (Call(lambda w, x: torch.linalg.svdvals(x * w), 1), torch.eye(E), "aten._linalg_svd"),
    "inverse": (Call(lambda w, x: torch.linalg.inv(torch.eye(E) * w), 1), zeros(1), "aten.linalg_inv_ex"),
    "matrix_exp": (Call(lambda w, x: torch.matrix_exp(x * w), 1), zeros(E, E), "aten.linalg_matrix_exp"),
    "fast attention": (
        Call(
            lambda w, x: torch._native_multi_head_attention(
                x, x, x, E, 4, zeros(3 * E, E), zeros(3 * E), zeros(E, E), zeros(E)
            ),
            1,
        ),
        zeros(N, T, E),
        "aten._native_multi_head_attention",
    ),
    "nested": (
        Call(lambda w, x: F.linear(torch.nested.nested_tensor([x, x[:1]]), w).to_padded_tensor(0.0), 5, E),
        zeros(N, E),
        "aten.linear",
    ),
    "numpy": (Call(lambda w, x: torch.from_numpy(x.numpy() @ w.detach().numpy()), E, 5), zeros(N, E), "Tensor.numpy"),
    "asarray": (Call(lambda w, x: torch.tensor(x.__array__() * 2), 1), zeros(N, E), "Tensor.__array__"),
    "pointer": (Call(lambda w, x: x * (x.data_ptr() > 0), 1), zeros(N, E), "Tensor.data_ptr"),
    "cond": (
        Call(lambda w, x: torch.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w), E, E),
        zeros(N, E),
        "cond",
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of nested tensors
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_is_named(name):
    model, inputs, operator = UNKNOWN[name]
    cost = measure_cost(model, example_inputs=inputs)
    assert operator in {one.operator for one in cost.not_counted if not one.backward}
    assert f"{operator} (" in cost.caveat
    assert operator in repr(cost)


def test_what_is_named_says_where_and_how_often():
    class Mixer(nn.Module):
        def forward(self, x):
            return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real

    model = nn.Sequential(nn.Linear(E, E), Mixer(), nn.Linear(E, 5))
    cost = measure_cost(model, (T, E))
    found = {(one.operator, one.layer, one.calls, one.backward) for one in cost.not_counted}
    assert ("aten._fft_r2c", "1", 1, False) in found
    assert ("aten._fft_c2c", "1", 1, False) in found
    assert {(layer, backward) for _, layer, _, backward in found} == {("1", False), ("1", True)}
    assert "aten._fft_c2c (1 call in '1')" in cost.caveat
    assert measure_cost(model[0], (T, E)).caveat is None


IN = zeros(N, E)
FREE = [
    *((kind(), zeros(N, 4, 6, 6)) for kind in (nn.ReLU, nn.ReLU6, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)),
    *((kind(), zeros(N, 4, 6, 6)) for kind in (nn.CELU, nn.SELU, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.RReLU)),
    *((kind(), zeros(N, 4, 6, 6)) for kind in (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink)),
    *((kind(), zeros(N, 4, 6, 6)) for kind in (nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanhshrink, nn.Softmax2d)),
    *((kind(1), zeros(N, 4, 6, 6)) for kind in (nn.GLU, nn.Softmax, nn.Softmin, nn.LogSoftmax)),
    *((kind(), zeros(N, 4, 6, 6)) for kind in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Flatten, nn.Identity)),
    *((kind(2), zeros(N, 4, 6)) for kind in (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d)),
    *((kind(2), zeros(N, 4, 6, 6)) for kind in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d)),
    *((kind(2), zeros(N, 4, 6, 6)) for kind in (nn.AdaptiveAvgPool2d, nn.ReflectionPad2d, nn.ReplicationPad2d)),
    *((kind(2), zeros(N, 4, 6, 6)) for kind in (nn.CircularPad2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unfold)),
    *((kind(2), zeros(N, 4, 4, 6, 6)) for kind in (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d)),
    *((kind(2, output_size=3), zeros(N, 4, 6, 6)) for kind in (nn.FractionalMaxPool2d,)),
    *((nn.LPPool2d(2, 2), zeros(N, 4, 6, 6)), (nn.LocalResponseNorm(2), zeros(N, 4, 6, 6))),
    *((kind(4), zeros(N, 4, 6, 6)) for kind in (nn.BatchNorm2d, nn.InstanceNorm2d)),
    *((kind(4, affine=False), zeros(N, 4, 6)) for kind in (nn.BatchNorm1d, nn.InstanceNorm1d)),
    *((nn.GroupNorm(2, 4), zeros(N, 4, 6)), (nn.LayerNorm(6), zeros(N, 4, 6)), (nn.RMSNorm(6), zeros(N, 4, 6))),
    *((nn.Upsample(scale_factor=2, mode=mode), zeros(N, 4, 6, 6)) for mode in ("nearest", "bilinear", "bicubic")),
    *((nn.Upsample(scale_factor=2, mode=mode), zeros(N, 4, 6)) for mode in ("linear", "area", "nearest-exact")),
    *((nn.Fold((4, 4), 2), zeros(N, 8, 9)), (nn.ChannelShuffle(2), zeros(N, 4, 6, 6))),
    *((nn.Embedding(9, E, max_norm=1.0), words(N, T)), (nn.EmbeddingBag(9, E), words(N, T))),
    *((kind(), (zeros(N, 4).requires_grad_(), zeros(N, 4))) for kind in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss)),
    *((kind(), (zeros(N, 4).requires_grad_(), zeros(N, 4))) for kind in (nn.BCEWithLogitsLoss, nn.HuberLoss)),
    *((kind(), (zeros(N, 4).requires_grad_(), zeros(N, 4))) for kind in (nn.SoftMarginLoss, nn.BCELoss)),
    *((kind(), (zeros(N, 4).requires_grad_(), words(N))) for kind in (nn.CrossEntropyLoss, nn.MultiMarginLoss)),
    *((nn.CosineSimilarity(), (zeros(N, 4), zeros(N, 4))), (nn.PairwiseDistance(), (zeros(N, 4), zeros(N, 4)))),
    (Call(lambda w, x: (x * w).cumsum(1).sort().values.topk(2).values.std(), 1), zeros(N, E)),
    (Call(lambda w, x: torch.where(x > 0, x, w).clamp(0, 1).pow(2).sum().item() * w, 1), zeros(N, E)),
    (Call(lambda w, x: torch.cat([x, x.flip(0)]).roll(1).tril() * torch.arange(E) + torch.randn(1) * w, 1), IN),
    (Call(lambda w, x: w[x] + F.one_hot(x, E).to(w), 9, E), words(N)),
    (Call(lambda w, x: x.scatter_add(0, words(N, E), w).gather(0, words(1, E)).index_select(0, words(1)), N, E), IN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "inputs"), FREE, ids=[f"{type(model).__name__} {i}" for i, (model, _) in enumerate(FREE)]
)
def test_what_is_no_product_costs_no_macs_and_is_not_reported(model, inputs):
    cost = measure_cost(model, example_inputs=inputs)
    assert (cost.macs, cost.backward_macs, cost.not_counted) == (0, 0, ())


def operators():
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, full = name.partition("::")
        base, _, overload = full.partition(".")
        if namespace in ("aten", "quantized", "mkldnn", "onednn"):
            yield getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")


def test_no_operator_that_sounds_like_a_product_is_free():
    sounds = re.compile(
        r"(^|_)(add|badd|b|s|sp|int|scaled|grouped)?(mm|mv|bmm)(_|$)|conv(olution)?[123]?d?(_|$)|conv_|(^|_)linear(_|$)|"
        r"attention|matmul|(^|_)(lstm|gru|rnn)_?|fft_[cr]|cdist|pdist|euclidean|bilinear$|trilinear$|cholesky|svd|solve"
    )
    innocent = re.compile(
        r"thnn_fused|upsample|flatten_weight|mkldnn_reorder|prepack|unpack|compute_linear|rnn_flatten|fftfreq|vmap|"
        r"dropout_mask|_params|_use_|is_|choose|init_|_make_|stride|padding|dilation|groups|transpose$|output_padding|resolve_|_search"
    )
    kept = [op for op in operators() if sounds.search(op.overloadpacket.__name__)]
    assert len(kept) > 100
    assert not [
        str(op)
        for op in kept
        if is_free(op)
        and not is_product(op)
        and not innocent.search(op.overloadpacket.__name__)
        and any("Tensor" in str(argument.type) for argument in op._schema.arguments)
    ]


def test_an_operator_of_ones_own_is_named_until_it_has_a_formula():
    library = torch.library.Library("spectrum_test", "DEF")
    try:
        library.define("product(Tensor a, Tensor b) -> Tensor")
        library.impl("product", lambda a, b: a @ b, "CompositeExplicitAutograd")
        model = Call(lambda w, x: torch.ops.spectrum_test.product(x, w.detach()), E, 5)
        cost = measure_cost(model, (E,))
        assert [(one.operator, one.calls) for one in cost.not_counted] == [("spectrum_test.product", 1)]
        assert cost.macs == 0

        @register_flop_formula(torch.ops.spectrum_test.product)
        def flops(a, b, *args, out_shape=None, **kwargs):
            return 2 * a[0] * a[1] * b[1]

        cost = measure_cost(model, (E,))
        assert (cost.macs, cost.not_counted) == (E * 5, ())
    finally:
        library._destroy()


def test_a_formula_that_does_not_fit_counts_as_unknown():
    assert macs_of(torch.ops.aten.mm.default, (torch.zeros(2, 3), None), {}, torch.zeros(2, 2)) is None


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_that_asks_for_its_kernel_is_counted(backend):
    class Attention(nn.Module):
        def forward(self, x):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(x, x, x)

    x = zeros(N, 4, T, 3)
    cost = measure_cost(Attention(), example_inputs=x.requires_grad_())
    assert (cost.macs, cost.not_counted) == (attention_macs(T, T), ())
    scores_again = attention_macs(T, T) // 2 if backend == SDPBackend.FLASH_ATTENTION else 0
    assert cost.backward_macs == 2 * cost.macs + scores_again


def test_torchs_counter_agrees_where_it_counts():
    for name in ("linear", "Conv1d", "Conv3d", "mm", "bmm", "einsum", "TransformerEncoder", "Transformer", "unfolded"):
        model, inputs, macs = PRODUCTS[name]
        args, kwargs = (
            ((), inputs) if isinstance(inputs, dict) else (inputs if type(inputs) is tuple else (inputs,), {})
        )
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.eval()(*args, **kwargs)
        assert counter.get_total_flops() == 2 * macs, name

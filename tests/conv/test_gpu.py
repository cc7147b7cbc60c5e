"""On a card: backends equal the definition in float64, and a rerun of the Triton kernels gives the same bits."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from spectrum import SegmentedConv2d, prefer_backend
from spectrum.bench import models, op, train
from spectrum.bench.cells import Cell
from spectrum.conv.backends.native import native
from tests.conv.triton_cases import CASES, DTYPES, ROUNDING, definition, results, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # torch.compile says that it could be faster
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA card here"),
]
SHOWN = ("per channel", "2 per segment", "4 in, 8 out", "8 per segment", "16 per segment", "uneven")
WAYS = ("triton", "native", "native, compiled", "triton, compiled")


@pytest.fixture(autouse=True)
def no_rounding_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def function_of(way, geometry):
    """A convolution by one implementation, as a function of input and weights."""
    if way.startswith("triton"):
        pytest.importorskip("triton", reason="Triton is not installed")
        from spectrum.conv.kernels.triton_convolution import segmented_conv2d
    else:
        segmented_conv2d = native
    torch._dynamo.reset()
    called = torch.compile(segmented_conv2d) if way.endswith("compiled") else segmented_conv2d
    return lambda x_nchw, weights: called(x_nchw, list(weights), geometry)


def exactly(geometry, x_nchw, gy_nchw, weights):
    """The definition in float64, on the card."""
    doubled = x_nchw.double(), gy_nchw.double(), [weight.double() for weight in weights]
    return results(lambda x, ws: definition(x, ws, geometry), *doubled)


CHOSEN = [
    (case, dtype, way)
    for case, dtype, way in itertools.product(SHOWN, DTYPES, WAYS)
    if not way.endswith("compiled") or (case in ("2 per segment", "uneven") and dtype == torch.float32)
]


@pytest.mark.parametrize(("case", "dtype", "way"), CHOSEN)
def test_output_and_gradients_are_those_of_the_definition(case, dtype, way):
    given = tensors(CASES[case], dtype, "cuda", side=(33, 20))
    ours, exact = results(function_of(way, CASES[case]), *given), exactly(CASES[case], *given)
    for part, (mine, true) in enumerate(zip(ours, exact, strict=True)):
        error, size = (mine.double() - true).abs().max().item(), true.abs().max().item()
        assert error <= 4 * ROUNDING[dtype] * size, f"part {part}: off by {error}, of {size}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHOWN)
def test_a_rerun_of_the_kernels_gives_the_same_bits(case, dtype):
    given = tensors(CASES[case], dtype, "cuda", side=(65, 64), images=8)
    first, *others = (results(function_of("triton", CASES[case]), *given) for _ in range(4))
    assert all(all(map(torch.equal, first, other)) for other in others)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("case", ["2 per segment", "8 per segment", "16 per segment"])
def test_infinities_and_nan_reach_what_the_definition_says_and_no_other_segment(case, value):
    x_nchw, gy_nchw, weights = tensors(CASES[case], device="cuda")
    x_nchw[0, 1, 2, 2], gy_nchw[1, 2, 1, 1] = value, -value
    ours, exact = (
        results(function_of("triton", CASES[case]), x_nchw, gy_nchw, weights),
        exactly(CASES[case], x_nchw, gy_nchw, weights),
    )
    for mine, true in zip(ours, exact, strict=True):
        assert_close(mine.double(), true, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_tf32_is_used_where_torch_may(monkeypatch):
    given = tensors(CASES["16 per segment"], device="cuda", side=(33, 20))
    exact = exactly(CASES["16 per segment"], *given)[0]
    errors = []
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        ours = results(function_of("triton", CASES["16 per segment"]), *given)[0]
        errors.append(((ours.double() - exact).abs().max() / exact.abs().max()).item())
    assert errors[0] < 2.0**-20 < errors[1] < 2.0**-8


def test_a_layer_trains_by_the_kernels_as_by_torch():
    pytest.importorskip("triton", reason="Triton is not installed")
    torch.manual_seed(0)
    with prefer_backend("native"):
        module = SegmentedConv2d(32, 32, segments=4).cuda()
    ours = SegmentedConv2d(32, 32, segments=4, backend="triton", device="cuda")
    ours.load_state_dict(module.state_dict())
    x_nchw = torch.randn(4, 32, 16, 16, device="cuda")
    for precision in (torch.float32, torch.float16, torch.bfloat16):
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            pairs = zip(
                *(torch.autograd.grad(m(x_nchw).square().sum(), [*m.parameters()]) for m in (ours, module)), strict=True
            )
        for mine, theirs in pairs:
            assert_close(mine, theirs, rtol=5e-2, atol=0.05 * theirs.abs().max().item())


def test_benchmarks_of_the_operation_and_of_networks_run_on_a_card():
    table = op.measure([Cell((2, 32, 8, 8), 4)], device="cuda", dtype=torch.float16)
    assert {"grouped", op.OURS} <= set(table.way)
    assert (table.ms > 0).all()
    table = models.measure(("ours", "torch.nn"), device="cuda", image_size=71, batch_size=2, rounds=2)
    assert (table.ms > 0).all()


def test_a_step_is_measured_on_a_card():
    table = train.measure([{"segments": 1}], (train.DEFAULT, train.OURS), device="cuda", rounds=2, steps=1)
    assert (table.ms > 0).all()
    assert table.data_percent.between(0, 100).all()

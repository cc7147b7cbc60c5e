"""The Triton kernels, under Triton's interpreter on the CPU, equal the definition in float64, for every number."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.testing import assert_close

from spectrum import SegmentedConv2d, prefer_backend
from spectrum.conv.arguments import InputError
from spectrum.conv.backends import triton as backend
from tests.conv.exact import noting_calls
from tests.conv.triton_cases import CASES, DTYPES, assert_near, definition, geometry, results, tensors

INF, NAN = float("inf"), float("nan")
LAST = torch.channels_last
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # numpy's


@pytest.fixture(scope="module")
def kernels():
    """The module of the operation, interpreted."""
    pytest.importorskip("triton", reason='Triton is not installed: pip install "convolution-spectrum[triton]"')
    from spectrum.conv.kernels import triton_convolution

    if not triton_convolution.INTERPRETED:
        pytest.skip("there is a card, which computes what the interpreter does elsewhere: make gpu")
    return triton_convolution


def of(kernels, geometry):
    return lambda x_nchw, weights: kernels.segmented_conv2d(x_nchw, weights, geometry)


def every_third_is_quick(*names):
    """All combinations as cases of one test; `make test` runs a third of them, which still has every value."""
    marks = (pytest.mark.medium if n % 3 == n // 3 % 3 else pytest.mark.slow for n in itertools.count())
    return [pytest.param(*values, marks=next(marks)) for values in itertools.product(*names)]


@pytest.mark.parametrize(("case", "dtype"), every_third_is_quick(CASES, DTYPES))
def test_output_and_gradients_are_those_of_the_definition(kernels, case, dtype):
    x_nchw, gy_nchw, weights = tensors(CASES[case], dtype)
    ours = results(of(kernels, CASES[case]), x_nchw, gy_nchw, weights)
    exact = results(lambda x, ws: definition(x, ws, CASES[case]), *_doubled(x_nchw, gy_nchw, weights))
    assert ours[0].is_contiguous(memory_format=LAST)
    assert_near(ours, exact, dtype)


def _doubled(x_nchw, gy_nchw, weights):
    return x_nchw.double(), gy_nchw.double(), [weight.double() for weight in weights]


@pytest.mark.medium
@pytest.mark.parametrize("case", ["2 per segment", "8 per segment", "uneven"])
def test_second_derivatives_are_those_of_the_definition(kernels, case):
    x_nchw, gy_nchw, weights = tensors(CASES[case], side=(4, 3))

    def second(function, x_nchw, gy_nchw, weights):
        inputs = [tensor.detach().requires_grad_() for tensor in (x_nchw, gy_nchw, *weights)]
        y_nchw = function(inputs[0], inputs[2:])
        first = torch.autograd.grad(y_nchw, [inputs[0], *inputs[2:]], inputs[1], create_graph=True)
        mixed = sum((gradient * (n + 1 + gradient.detach())).sum() for n, gradient in enumerate(first))
        return torch.autograd.grad(mixed, inputs)

    ours = second(of(kernels, CASES[case]), x_nchw, gy_nchw, weights)
    exact = second(lambda x, ws: definition(x, ws, CASES[case]), *_doubled(x_nchw, gy_nchw, weights))
    assert_near(ours, exact, torch.float32)


PLACES = ("input", "border", "weight", "gradient")
SIZES = ("2 per segment", "5 per segment", "8 per segment", "32 per segment")


@pytest.mark.parametrize(("case", "where", "value"), every_third_is_quick(SIZES, PLACES, (INF, -INF, NAN)))
def test_infinities_and_nan_reach_what_the_definition_says_and_no_other_segment(kernels, case, where, value):
    x_nchw, gy_nchw, weights = tensors(CASES[case])
    if where == "input":
        x_nchw[0, 1, 2, 2] = value
    elif where == "border":
        x_nchw[1, -1, 0, 0] = gy_nchw[0, 0, 0, 0] = value
    elif where == "weight":
        weights[0][1, 0, 0, 0] = value
    else:
        gy_nchw[1, 2, 1, 1] = value
    ours = results(of(kernels, CASES[case]), x_nchw, gy_nchw, weights)
    exact = results(lambda x, ws: definition(x, ws, CASES[case]), *_doubled(x_nchw, gy_nchw, weights))
    assert not all(part.isfinite().all() for part in ours)
    for mine, true in zip(ours, exact, strict=True):
        assert_close(mine.double(), true, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.medium
def test_a_sum_that_overflows_is_infinite_in_its_own_place_only(kernels):
    case = CASES["8 per segment"]
    x_nchw, _, weights = tensors(case)
    x_nchw[0, 3], weights = 3e38, [weights[0].abs()]
    ours, exact = of(kernels, case)(x_nchw, weights), definition(x_nchw, weights, case)
    assert_close(ours, exact.float(), rtol=1e-4, atol=1e-4)
    assert ours[0, :8].isinf().any()
    assert ours[1].isfinite().all()
    assert ours[0, 8:].isfinite().all(), "of other segments"


@pytest.mark.medium
@pytest.mark.parametrize("case", ["2 per segment", "16 per segment"])
def test_gradients_summed_in_several_parts_are_the_same_and_a_rerun_gives_the_same_bits(kernels, monkeypatch, case):
    x_nchw, gy_nchw, weights = tensors(CASES[case], side=(18, 18))
    function = of(kernels, CASES[case])
    in_one = results(function, x_nchw, gy_nchw, weights)
    monkeypatch.setattr(kernels, "LEAST_PIXELS", 64)
    pixels = gy_nchw.numel() // gy_nchw.shape[1]
    assert kernels.parts_of(pixels, weights[0].numel(), 128)[0] > 1
    in_several, again = (results(function, x_nchw, gy_nchw, weights) for _ in range(2))
    assert all(map(torch.equal, in_several, again))
    assert all(map(torch.equal, in_several[:2], in_one[:2]))
    assert_close(in_several[2], in_one[2], rtol=1e-5, atol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "weights in channels_last"])
def test_any_layout_of_the_tensors_gives_the_same(kernels, layout):
    case = CASES["8 per segment"]
    x_nchw, gy_nchw, weights = tensors(case)
    expected = results(of(kernels, case), x_nchw, gy_nchw, weights)
    if layout == "contiguous":
        x_nchw, gy_nchw = x_nchw.contiguous(), gy_nchw.contiguous(memory_format=LAST)
    elif layout == "sliced":
        x_nchw = torch.full((4, 26, 7, 5), NAN)[::2, 1:-1, 1:-1, 1:].copy_(x_nchw)
        weights = [torch.full((24, 8, 3, 6), NAN)[..., ::2].copy_(weights[0])]
    else:
        weights = [weights[0].contiguous(memory_format=LAST)]
    assert all(map(torch.equal, results(of(kernels, case), x_nchw, gy_nchw, weights), expected))


def test_nothing_in_is_nothing_out(kernels):
    x_nchw, gy_nchw, weights = tensors(CASES["8 per segment"], images=0)
    y_nchw, gx_nchw, gw = results(of(kernels, CASES["8 per segment"]), x_nchw, gy_nchw, weights)
    assert y_nchw.shape == gy_nchw.shape
    assert gx_nchw.shape == x_nchw.shape
    assert not gw.any()


@pytest.mark.medium
def test_torchs_compiler_takes_the_layer_as_one_graph(kernels):
    torch.manual_seed(0)
    module = SegmentedConv2d(10, 10, segments=3, pointwise=False, backend="triton")
    x_nchw = torch.randn(2, 10, 6, 5).to(memory_format=LAST)
    torch._dynamo.reset()
    noted, called = noting_calls()
    compiled = torch.compile(module, fullgraph=True, backend=noted)
    for function in (compiled, torch.compile(module, fullgraph=True, backend=aot_eager)):
        ours, eager = (
            torch.autograd.grad(f(x_nchw).square().sum(), [*module.parameters()]) for f in (function, module)
        )
        assert all(map(torch.equal, ours, eager))
    assert "spectrum.triton_conv2d.default" in " ".join(called)


@pytest.mark.medium
def test_autocast_and_a_batch_of_gradients_are_those_of_torch(kernels):
    torch.manual_seed(0)
    with prefer_backend("native"):
        native = SegmentedConv2d(8, 8, segments=2)
    ours = SegmentedConv2d(8, 8, segments=2, backend="triton")
    ours.load_state_dict(native.state_dict())
    x_nchw = torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(ours(x_nchw), native(x_nchw), rtol=2e-2, atol=2e-2)
    x_nchw.requires_grad_()
    several = torch.randn(3, 2, 8, 5, 5)
    batches = [
        torch.autograd.grad(m(x_nchw), [x_nchw, *m.parameters()], several, is_grads_batched=True)
        for m in (ours, native)
    ]
    assert_close(*batches, rtol=1e-4, atol=1e-4)


def test_what_the_kernels_cannot_compute_is_refused_and_a_preference_leaves_it_to_torch(kernels):
    with pytest.raises(ValueError, match="backend='triton': it computes only kernels with sides of 1, 3, 5 or 7"):
        SegmentedConv2d(8, 8, kernel_size=9, backend="triton")
    with pytest.raises(ValueError, match="a 1×1 in one segment is a matrix product, which it leaves to torch"):
        SegmentedConv2d(8, 8, kernel_size=1, pointwise=False, backend="triton")
    with pytest.raises(ValueError, match="strides and dilations of 1 or 2"):
        SegmentedConv2d(8, 8, stride=3, backend="triton")
    module = SegmentedConv2d(8, 8, segments=2, backend="triton").double()
    x_nchw = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    with pytest.raises(InputError, match="float32, float16 and bfloat16 only"):
        module(x_nchw)
    with prefer_backend("triton"):
        preferred = SegmentedConv2d(8, 8, segments=2).double()
    assert preferred.spatial.backend_for(x_nchw) == "native"
    assert preferred.float().spatial.backend_for(x_nchw.float()) == "triton"
    assert preferred.pointwise.backend_for(x_nchw.float()) == "native"


def test_more_pixels_than_the_kernels_count_are_refused(kernels):
    few, many = (torch.empty(1).expand(2**15, 1, 2**14, width) for width in (1, 2))
    assert backend.Triton().refusal(few, geometry(1, 1, 1)) is None
    assert "fewer than 1073741824 pixels" in backend.Triton().refusal(many, geometry(1, 1, 1))


def test_on_a_cpu_without_the_interpreter_it_is_refused(kernels, monkeypatch):
    monkeypatch.setattr(backend, "_devices", lambda: ("cuda",))
    module = SegmentedConv2d(8, 8, segments=2, backend="triton")
    with pytest.raises(InputError, match="it takes tensors on CUDA only"):
        module(torch.randn(1, 8, 5, 5))


def test_without_triton_the_backend_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(backend, "_is_found", lambda: False)
    with pytest.raises(
        ValueError, match=r'backend=.triton.: triton is not installed; pip install "convolution-spectrum'
    ):
        SegmentedConv2d(8, 8, backend="triton")
    assert backend.Triton().refusal(torch.ones(1, 8, 5, 5), geometry(8, 8, 1)) == backend.ABSENT


def test_the_kernels_are_imported_only_where_they_are_used():
    code = "import sys, torch, spectrum; spectrum.SegmentedConv2d(4, 4)(torch.ones(1, 4, 5, 5))"
    code += "; sys.exit(any('.triton_' in name for name in sys.modules if name.startswith('spectrum')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_channel_has_its_tile(kernels, itemsize):
    for count in (1, 2, 3, 7, 64):
        for size in range(1, 80):
            tiles = kernels.tiles_of(count, size, size, itemsize)
            assert (tiles.together == 0) == (size <= 4), "few by multiply-adds, more by matrix products"
            if tiles.together:
                assert min(tiles.pixels, tiles.target, tiles.source) >= 16
                assert tiles.together * size <= max(16, size), "no wider than one tile"
                assert tiles.blocks(count, size) * tiles.target >= count * size
                assert tiles.blocks(count, size, size) >= tiles.blocks(count, size)
            else:
                assert tiles.blocks(count, size) * tiles.target >= count * size


def test_parts_cover_all_pixels_once(kernels):
    for pixels in (1, 127, 128, 1025, 100_000, 10**8):
        for weights in (9, 2**20, 2**25):
            number, each = kernels.parts_of(pixels, weights, 128)
            assert each % 128 == 0
            assert (number - 1) * each < pixels <= number * each
            assert number * weights <= max(weights, kernels.MOST_PARTIAL)


# Bytes of shared memory that one program may have, and registers of a thread (CUDA C++ Programming Guide, tables of
# compute capabilities). Bytes of a thread's stack: a few registers' worth is rounding of the assembler.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
REGISTERS, STACK = 255, 64


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_ahead_of_time_within_the_limits_of_a_card(capability, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.conv.ahead_of_time", str(capability)],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["sum_of_parts"]["registers"] <= REGISTERS
    assert len(said["kernels"]) > 100
    for row in said["kernels"]:
        assert row["shared"] <= SHARED[capability], row
        assert row["registers"] <= REGISTERS, row
        assert row["stack"] <= STACK, row
        rounds = row["dtype"] != "torch.float32" or row["precision"] == "tf32"
        assert row["has_matrix_units"] == (row["size"] > 4 and rounds), row

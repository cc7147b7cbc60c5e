"""The compiled kernels against torch's own convolution in float64, at every width of vectors."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrum.conv.kernels import batch_norm, build, torch_operation
from spectrum.conv.kernels import convolution as kernel
from spectrum.conv.segments import Run
from tests.conv.exact import (
    GRADIENT_LAYOUTS,
    LAST,
    LAYOUTS,
    assert_exact,
    doubled,
    threads,
    with_gradients,
    with_second_gradients,
)

SIZES = (*range(1, 21), 31, 32, 33, 43)  # below, at and beside what one or two vectors hold


class Convolution(NamedTuple):
    x_nchw: Tensor
    weights: list[Tensor]
    runs: list[Run]
    padding: tuple[int, int]
    stride: int = 1
    dilation: int = 1

    @property
    def terms(self):
        """Products in the longest sum: of a window's taps, or of a kernel's gradient over all pixels."""
        n, _, h, w = self.x_nchw.shape
        taps = self.weights[0][0, 0].numel()
        return max(n * (h + 4) * (w + 4), *(taps * max(run.in_size, run.out_size) for run in self.runs))

    def ours(self, x_nchw, *weights):
        return kernel.segmented_conv2d(x_nchw, weights, self.runs, self.padding, self.stride, self.dilation)

    def exact(self, x_nchw, *weights):
        parts = x_nchw.split([run.count * run.in_size for run in self.runs], dim=1)
        return torch.cat(
            [
                F.conv2d(part, weight, None, self.stride, self.padding, self.dilation, run.count)
                for part, weight, run in zip(parts, weights, self.runs, strict=True)
            ],
            dim=1,
        )


def convolution(runs, batch=2, height=6, width=5, padding=(1, 1), layout="channels_last", k=3, stride=1, dilation=1):
    x_nchw = torch.randn(batch, sum(run.count * run.in_size for run in runs), height, width)
    weights = [torch.randn(run.count * run.out_size, run.in_size, k, k) for run in runs]
    return Convolution(LAYOUTS[layout](x_nchw), weights, runs, padding, stride, dilation)


def windowed(runs, k, stride, dilation, padding=None, batch=2, height=17, width=15):
    """The same with another window; padding "same" unless it is given."""
    same = dilation * (k - 1) // 2
    return convolution(runs, batch, height, width, padding or (same, same), k=k, stride=stride, dilation=dilation)


def assert_convolves_exactly(case, gradient="contiguous"):
    arrange = GRADIENT_LAYOUTS[gradient]
    inputs = [case.x_nchw, *case.weights]
    ours = with_gradients(case.ours, inputs, arrange)
    assert ours[0].is_contiguous(memory_format=LAST)
    assert_exact(ours, with_gradients(case.exact, doubled(inputs), arrange), case.terms)


@pytest.fixture(autouse=True, scope="module")
def unwritten_memory_is_not_a_number():
    """torch then fills what it allocates, so that a result that no kernel has written is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@st.composite
def convolutions(draw):
    """Any runs, image, padding and layout that the kernels take."""
    size = st.integers(1, 20) | st.just(43)
    runs = []
    for _ in range(draw(st.integers(1, 3))):
        in_size = draw(size)
        most = 6 if in_size > 1 else 70  # several vectors of segments of one channel
        runs.append(Run(draw(st.integers(1, most)), in_size, in_size if draw(st.booleans()) else draw(size)))
    k, stride, dilation = draw(st.sampled_from([3, *kernel.KERNELS])), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    reach = dilation * (k - 1)
    padding = draw(st.integers(0, reach)), draw(st.integers(0, reach))
    height, width = (draw(st.integers(max(1, reach + 1 - 2 * p), reach + 12)) for p in padding)
    torch.manual_seed(draw(st.integers(0, 2**20)))
    layout, batch = draw(st.sampled_from(list(LAYOUTS))), draw(st.integers(1, 4))
    return convolution(runs, batch, height, width, padding, layout, k, stride, dilation)


WINDOWS = [(k, stride, dilation) for k in kernel.KERNELS for stride in (1, 2) for dilation in (1, 2)]
every_window = pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w[0]}x{w[0]}-stride{w[1]}-dilation{w[2]}")


@pytest.mark.medium
@settings(max_examples=150)
@given(convolutions(), st.sampled_from(list(GRADIENT_LAYOUTS)))
def test_any_segments_of_any_image_are_convolved_exactly(case, gradient):
    assert_convolves_exactly(case, gradient)


@pytest.mark.parametrize("padding", [(0, 2), (1, 1), (2, 0)])
@pytest.mark.parametrize("channels", [16, 21, 150])
def test_one_channel_a_segment_is_convolved_exactly_in_rows_of_any_length(padding, channels):
    for width in range(3, 20):
        assert_convolves_exactly(convolution([Run(channels, 1, 1)], 2, 3 + width % 4, width, padding))


@every_window
@pytest.mark.parametrize("size", [1, 3, 5, 8, 13, 20])
def test_every_window_is_convolved_exactly(window, size):
    """Also without padding and with as much as there may be, and of unequal segments."""
    reach = window[2] * (window[0] - 1)
    runs = [Run(19 if size == 1 else 3, size, size), Run(2, size, 21 - size)]
    for padding in (None, (0, reach), (reach, 0)):
        assert_convolves_exactly(windowed(runs, *window, padding))


@every_window
@pytest.mark.parametrize("size", [1, 4, 20])
def test_every_window_is_convolved_exactly_in_images_smaller_than_it(window, size):
    k, _, dilation = window
    reach = dilation * (k - 1)
    for height, width in ((1, 1), (1, 9), (9, 2)):
        padding = tuple(min(reach, reach // 2 + 1) for _ in range(2))
        assert_convolves_exactly(windowed([Run(3, size, size)], *window, padding, height=height, width=width))


@every_window
def test_every_window_of_an_image_that_is_cut_into_strips_is_convolved_exactly(window):
    """Half a megabyte holds 58 rows of 35 pixels of 64 channels."""
    assert_convolves_exactly(windowed([Run(16, 4, 4)], *window, batch=1, height=151, width=31))


@every_window
def test_second_derivatives_are_exact_for_every_window(window):
    case = windowed([Run(3, 4, 2), Run(2, 5, 5)], *window, batch=1, height=9, width=10)
    inputs = [case.x_nchw, *case.weights]
    ours, exact = with_second_gradients(case.ours, inputs), with_second_gradients(case.exact, doubled(inputs))
    assert_exact(ours, exact, 4 * case.terms)


@every_window
@pytest.mark.parametrize("number", [1, 2])
def test_the_same_threads_give_the_same_bits_for_every_window(window, number):
    case = windowed([Run(20, 1, 1), Run(6, 4, 4), Run(2, 12, 12)], *window, batch=3)
    with threads(number):
        first, second = (with_gradients(case.ours, [case.x_nchw, *case.weights]) for _ in range(2))
    assert all(map(torch.equal, first, second))


@every_window
def test_an_empty_batch_of_every_window_has_gradients_of_zero(window):
    assert_convolves_exactly(windowed([Run(2, 4, 4), Run(1, 3, 3)], *window, batch=0))


@every_window
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
@pytest.mark.parametrize("of", ["input", "weight", "gradient"])
def test_what_is_not_a_number_stays_in_its_segment_in_every_window(window, strange, of):
    case = windowed([Run(18, 1, 1), Run(3, 4, 4), Run(2, 9, 9)], *window)
    channels = [3, 22, 38]  # of each run
    with torch.no_grad():
        if of == "input":
            case.x_nchw[1, channels, 4, 4] = strange
        if of == "weight":
            for weight in case.weights:
                weight[1, 0, 0, -1] = strange

    def arrange(gradient):
        if of == "gradient":
            gradient[1, channels, 1, 2] = strange
        return gradient

    inputs = [case.x_nchw, *case.weights]
    ours, exact = (with_gradients(f, t, arrange) for f, t in ((case.ours, inputs), (case.exact, doubled(inputs))))
    # In float32, for its choice of what to leave out; but not of 1×1 kernels, which leave nothing out: see
    # uxlfoundation/oneDNN issue 6035.
    library = exact if window[0] == 1 else with_gradients(case.exact, inputs, arrange)
    assert not all(part.isfinite().all() for part in exact)
    for mine, true in zip(ours, library, strict=True):
        assert torch.equal(mine.isnan(), true.isnan())
        assert torch.equal(mine.isinf(), true.isinf())


@pytest.mark.parametrize("size", [4, 15])
@pytest.mark.parametrize("padding", [(0, 2), (1, 1), (2, 0)])
def test_an_image_that_is_cut_into_strips_is_convolved_exactly(size, padding):
    """Half a megabyte holds 24 rows of 20 pixels of 256 channels."""
    assert_convolves_exactly(convolution([Run(300 // size, size, size)], 1, 150, 20, padding))


@pytest.mark.parametrize("runs", [[Run(7, 43, 43)], [Run(300, 1, 1)], [Run(30, 3, 10), Run(1, 20, 1)]])
def test_long_strips_of_unequal_runs_are_convolved_exactly(runs):
    assert_convolves_exactly(convolution(runs, 1, 61, 20))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (3, 40)])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 20])
def test_images_smaller_than_the_kernel_are_convolved_exactly(height, width, size):
    for padding in ((1, 1), (2, 2), (1, 2)):
        assert_convolves_exactly(convolution([Run(3, size, size)], 2, height, width, padding))


@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
def test_an_empty_batch_has_an_empty_result(padding):
    case = convolution([Run(2, 4, 4), Run(1, 3, 3)], batch=0, padding=padding)
    assert case.ours(case.x_nchw, *case.weights).shape == case.exact(case.x_nchw, *case.weights).shape


def test_an_empty_batch_has_gradients_of_zero():
    assert_convolves_exactly(convolution([Run(2, 4, 4), Run(1, 3, 3)], batch=0))


@pytest.mark.parametrize("size", [1, 2, 4, 6, 20])
def test_the_gradient_of_one_input_alone_is_the_same_as_with_the_other(size):
    case = convolution([Run(5, size, size), Run(2, size, size + 1)])
    inputs = [case.x_nchw, *case.weights]
    _, of_x, *of_weights = with_gradients(case.ours, inputs)
    (_, only_x) = with_gradients(lambda x_nchw: case.ours(x_nchw, *case.weights), [case.x_nchw])
    (_, *only_weights) = with_gradients(lambda *weights: case.ours(case.x_nchw, *weights), case.weights)
    (_, first_weight) = with_gradients(lambda first: case.ours(case.x_nchw, first, case.weights[1]), case.weights[:1])
    assert torch.equal(only_x, of_x)
    assert all(map(torch.equal, only_weights, of_weights))
    assert torch.equal(first_weight, of_weights[0])


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 12, 20])
def test_what_is_not_a_number_reaches_its_window_and_its_segment_and_nothing_else(size, strange):
    case = convolution([Run(3, size, size), Run(2, size, 2)], height=9, width=7)
    case.x_nchw[1, size, 4, 3] = strange  # the second segment's first channel
    inputs = [case.x_nchw, *case.weights]
    ours, exact = with_gradients(case.ours, inputs), with_gradients(case.exact, doubled(inputs))
    for mine, true in zip(ours, exact, strict=True):
        assert torch.equal(mine.isnan(), true.isnan())
        assert torch.equal(mine.isinf(), true.isinf())
    assert not ours[0].isfinite().all()


def test_a_gradient_that_is_not_a_number_reaches_what_it_is_a_gradient_of():
    case = convolution([Run(3, 3, 3)], height=9, width=7)

    def arrange(gradient):
        gradient[0, 4, 2, 2] = torch.nan
        return gradient

    inputs = [case.x_nchw, *case.weights]
    ours, exact = (
        with_gradients(function, tensors, arrange)
        for function, tensors in ((case.ours, inputs), (case.exact, doubled(inputs)))
    )
    for mine, true in zip(ours, exact, strict=True):
        assert torch.equal(mine.isnan(), true.isnan())


RUNS = {
    "narrow": [Run(5, 3, 3)],
    "wide": [Run(2, 9, 9)],
    "unequal": [Run(3, 4, 2), Run(2, 5, 6)],
}
every_run = pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS.keys())


@every_run
def test_second_derivatives_are_exact(runs):
    case = convolution(runs, height=5, width=4)
    inputs = [case.x_nchw, *case.weights]
    ours, exact = with_second_gradients(case.ours, inputs), with_second_gradients(case.exact, doubled(inputs))
    assert_exact(ours, exact, 4 * case.terms)


@every_run
@pytest.mark.parametrize("which", [0, 1])
def test_second_derivatives_of_one_input_alone_are_exact(runs, which):
    case = convolution(runs, height=5, width=4)
    inputs = [case.x_nchw, *case.weights]

    def of_one(function, tensors):
        return lambda tensor: function(*(tensor if i == which else other for i, other in enumerate(tensors))) ** 2

    ours = with_second_gradients(of_one(case.ours, inputs), [inputs[which]])
    exact = with_second_gradients(of_one(case.exact, doubled(inputs)), doubled([inputs[which]]))
    assert_exact(ours, exact, 4 * case.terms)


@every_run
def test_third_derivatives_are_exact(runs):
    case = convolution(runs, batch=1, height=4, width=3)

    def third(function, inputs):
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        directions = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)).to(t) for t in inputs]
        value = (function(*inputs) / 10).pow(3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, inputs, create_graph=True)
            value = sum((g * d).mean() for g, d in zip(gradients, directions, strict=True))
        return [value.detach(), *(gradient.detach() for gradient in gradients)]

    inputs = [case.x_nchw, *case.weights]
    assert_exact(third(case.ours, inputs), third(case.exact, doubled(inputs)), 9 * case.terms)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("runs", [[Run(75, 4, 4)], [Run(3, 20, 20), Run(10, 3, 3)]])
def test_the_same_threads_give_the_same_bits_and_exact_ones(number, runs):
    case = convolution(runs, 3, 14, 11)
    inputs = [case.x_nchw, *case.weights]
    with threads(number):
        first, second = with_gradients(case.ours, inputs), with_gradients(case.ours, inputs)
    assert all(map(torch.equal, first, second))
    assert_exact(first, with_gradients(case.exact, doubled(inputs)), case.terms)


def test_more_threads_than_work_is_no_fault():
    with threads(2):
        assert_convolves_exactly(convolution([Run(1, 1, 1)], 1, 1, 1))


@pytest.mark.parametrize("number", [1, 2])
def test_summing_a_hundred_thousand_pixels_stays_as_exact_as_the_librarys(number):
    case = convolution([Run(2, 4, 4)], 32, 64, 64)
    weights = doubled(case.weights)
    with threads(number):
        ours = with_gradients(lambda *weights: case.ours(case.x_nchw, *weights), case.weights)
    exact = with_gradients(lambda *weights: case.exact(case.x_nchw.double(), *weights), weights)
    assert_exact(ours, exact, case.terms)


@pytest.mark.medium
def test_the_operations_are_what_torch_asks_of_operations():
    case = convolution([Run(2, 3, 3)], batch=1)
    sizes, window, flat = [2, 3, 3], [3, 1, 1, 1, 1, 0], case.weights[0].flatten()
    x, weight, bias = torch.randn(2, 6, 3, 4).contiguous(memory_format=LAST), torch.rand(6) + 1, torch.rand(6)
    added = torch.randn_like(x)
    library = torch.ops.spectrum
    with_grad = [t.clone().requires_grad_() for t in (case.x_nchw, flat)]
    torch.library.opcheck(library.segmented_conv2d, (*with_grad, sizes, window))
    gy = case.ours(case.x_nchw, *case.weights).requires_grad_()
    torch.library.opcheck(library.segmented_conv2d_backward, (*with_grad, gy, sizes, window, True, True))
    torch.library.opcheck(library.segmented_conv2d_backward, (*with_grad, gy, sizes, window, False, True))
    norm = [t.requires_grad_() for t in (x, added, weight, bias)]
    torch.library.opcheck(library.batch_norm_act, (*norm, 1e-5, True))
    torch.library.opcheck(library.batch_norm_act, (x, None, weight, bias, 1e-5, False))


@pytest.mark.parametrize("window", [(3, 1, 1), (5, 2, 1), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("bound", [True, False])
def test_bound_or_called_from_python_the_kernels_give_the_same_bits(bound, window, monkeypatch):
    case = windowed([Run(3, 4, 4), Run(2, 5, 3)], *window, height=7, width=9)
    x, added, weight, bias = (t.contiguous(memory_format=LAST) if t.dim() > 1 else t for t in norm_inputs())
    both = {
        "convolution": (case.ours, [case.x_nchw, *case.weights]),
        "norm": (lambda *inputs: batch_norm.batch_norm_act(*inputs, 1e-5, True)[0], [x, added, weight, bias]),
    }
    plain = {}
    for name, (function, inputs) in both.items():
        plain[name] = with_gradients(function, inputs)
    calls = []
    find = torch_operation.bound

    def watched(name):
        calls.append(name)
        return find(name) if bound else None

    monkeypatch.setattr(torch_operation, "bound", watched)
    for name, (function, inputs) in both.items():
        assert all(map(torch.equal, with_gradients(function, inputs), plain[name]))
    assert set(calls) >= {"segmented_conv2d", "batch_norm_act"}


def norm_inputs():
    return torch.randn(3, 11, 4, 5), torch.randn(3, 11, 4, 5), torch.rand(11) + 0.5, torch.randn(11)


def widths_case(in_size, out_size, padding=(1, 1)):
    """More channels than a vector holds and a number that it does not divide, twice over."""
    count = 35 // in_size + 2
    return convolution([Run(count, in_size, out_size), Run(1, in_size, in_size)], 2, 5, 14, padding)


def check_library(library):
    """Both operations of a library, with segments of all sizes, called from Python."""
    before = torch_operation.loaded_kernels, torch_operation.bound
    torch_operation.loaded_kernels, torch_operation.bound = lambda: library, lambda name: None
    try:
        for size in SIZES:
            assert_convolves_exactly(widths_case(size, size))
            assert_convolves_exactly(widths_case(size, 21 - size if size < 21 else 5, (size % 3, 2)))
        for window in WINDOWS:
            for size in (1, 3, 4, 8, 13, 33):
                assert_convolves_exactly(windowed([Run(3, size, size), Run(19 // size + 1, size, size)], *window))
                assert_convolves_exactly(
                    windowed([Run(2, size, 5)], *window, (0, window[2] * (window[0] - 1)), batch=1)
                )
        for channels, width in ((16, 9), (35, 13), (150, 3)):
            for padding in ((1, 1), (2, 0)):
                assert_convolves_exactly(convolution([Run(channels, 1, 1)], 2, 5, width, padding))
        assert_convolves_exactly(convolution([Run(75, 4, 4)], 1, 70, 20))
        inputs = [torch.randn(3, 37, 5, 4).contiguous(memory_format=LAST), torch.rand(37) + 0.5, torch.randn(37)]
        for relu in (False, True):
            ours = with_gradients(
                lambda x, w, b, relu=relu: batch_norm.batch_norm_act(x, None, w, b, 1e-5, relu)[0], inputs
            )
            exact = with_gradients(
                lambda x, w, b, relu=relu: batch_norm.plain_batch_norm_act(x, None, w, b, 1e-5, relu), doubled(inputs)
            )
            assert_exact(ours, exact, 60)
    finally:
        torch_operation.loaded_kernels, torch_operation.bound = before


def library_of(folder, lanes, *flags):
    library = build.load(build.build(folder, (*build.FLAGS, f"-DSPECTRUM_LANES={lanes}", *flags)))
    assert library.spectrum_lanes() == lanes
    return library


@pytest.mark.slow
def test_narrow_vectors_give_exact_results_unoptimised(tmp_path):
    check_library(library_of(tmp_path, 4, "-O0"))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_vectors_of_any_width_give_exact_results(lanes, tmp_path):
    check_library(library_of(tmp_path, lanes))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_nothing_undefined_happens_and_no_memory_is_read_that_is_not_theirs(lanes, tmp_path):
    flags = ("-O0", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    sanitisers = [_library_file(name) for name in ("libasan.so", "libubsan.so")]
    if not all(path.is_absolute() for path in sanitisers):
        pytest.skip("the compiler brings no sanitisers")
    try:
        path = build.build(tmp_path, (*build.FLAGS, f"-DSPECTRUM_LANES={lanes}", *flags))
    except build.BuildError as error:
        pytest.skip(f"the compiler has no sanitisers: {error}")
    code = f"from tests.conv import test_kernels as t; t.check_library(t.build.load(t.Path({str(path)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"LD_PRELOAD": " ".join(map(str, sanitisers)), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _library_file(name):
    words = [*build._compiler(), f"-print-file-name={name}"]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    return Path(answer.stdout.strip())

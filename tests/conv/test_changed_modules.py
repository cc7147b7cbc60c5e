"""Layers whose parameters, statistics or types were changed from outside: as torch's own, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, replace_all_batch_norm_modules_
from torch.testing._internal.two_tensor import TwoTensor

from spectrum import SegmentedConv2d
from spectrum.conv.arguments import InputError
from spectrum.conv.norm import BatchNormAct2d
from tests.conv import reference
from tests.conv.exact import assert_exact


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", [None, "native", "coalesced", "compiled"])
@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (8, 2, 3, 3), (8, 4, 3), (8, 4, 5, 5), (16, 4, 3, 3), (0, 4, 3, 3)])
def test_weights_of_another_shape_are_refused_and_never_read_beyond(backend, shape):
    module = SegmentedConv2d(8, 8, segments=2, pointwise=False, backend=backend)
    with pytest.raises(InputError, match=r"a weight has shape .*; expected \(8, 4, 3, 3\)"):
        functional_call(module, {"spatial.weights.0": torch.ones(shape)}, images(4, 8, 5, 5))
    module.spatial.weights[0].data = torch.ones(shape)
    with pytest.raises(InputError, match=r"expected \(8, 4, 3, 3\)"):
        module(images(4, 8, 5, 5))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_a_parameter_of_a_norm_with_too_few_numbers_is_refused(name, mode):
    norm = BatchNormAct2d(8, relu=True).train(mode)
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"{name} should contain 8 elements not 4"):
        functional_call(norm, {name: torch.ones(4)}, images(4, 8, 5, 5))


def untracked(norm):
    norm.track_running_stats = False


def uncounted(norm):
    norm.num_batches_tracked = None


def averaged(norm):
    norm.momentum = None


def uncounted_average(norm):
    uncounted(norm)
    averaged(norm)


def without_weight(norm):
    norm.weight = None


@pytest.mark.parametrize(
    "change", [untracked, uncounted, averaged, uncounted_average, without_weight, replace_all_batch_norm_modules_]
)
@pytest.mark.parametrize("shape", [(4, 8, 5, 5), (4, 8, 1, 5)])
def test_a_norm_whose_statistics_are_kept_otherwise_is_as_torchs(change, shape):
    ours, torchs = BatchNormAct2d(8), nn.BatchNorm2d(8)
    for norm in (ours, torchs):
        change(norm)
    for _ in range(3):
        x_nchw = images(*shape)
        torch.testing.assert_close(ours(x_nchw), torchs(x_nchw))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name))
    x_nchw = images(*shape)
    torch.testing.assert_close(ours.eval()(x_nchw), torchs.eval()(x_nchw))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_convolutions_are_not_folded_where_that_loses_digits(dtype):
    module = SegmentedConv2d(3, 64).to(dtype)
    x_nchw = images(2, 3, 16, 16).to(dtype)
    assert module.is_folded(x_nchw) == (dtype == torch.bfloat16)
    with torch.autocast("cpu", torch.float16):
        assert not SegmentedConv2d(3, 64).is_folded(x_nchw.float())
    assert SegmentedConv2d(3, 64).is_folded(x_nchw.float())


@pytest.mark.parametrize("options", [{"segments": 4, "backend": "coalesced"}, {"segments": 1}])
def test_gradients_that_are_asked_for_under_autocast_keep_the_types_of_the_forward_pass(options):
    module, x_nchw = SegmentedConv2d(16, 16, **options), images(2, 16, 6, 6).requires_grad_()
    y_nchw = module(x_nchw)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y_nchw.pow(2).sum(), x_nchw, create_graph=True)
    exact = x_nchw.detach().double().requires_grad_()
    y_exact = reference.segmented_conv2d(copy.deepcopy(module).double(), exact)
    (expected,) = torch.autograd.grad(y_exact.pow(2).sum(), exact)
    assert_exact([found], [expected], 9 * 16 * 16 * 16)


@pytest.mark.parametrize(
    "module",
    [
        SegmentedConv2d(8, 8, segments=4, pointwise_segments=2, shuffle=True),
        SegmentedConv2d(8, 8, segments=4, padding="tf_same", stride=2),
        SegmentedConv2d(8, 8, segments=1),
    ],
)
def test_a_batch_of_batches_is_each_of_them(module):
    x = torch.randn(3, 2, 8, 5, 5)
    torch.testing.assert_close(torch.vmap(lambda one: module(one))(x), torch.stack([module(one) for one in x]))


def test_a_norm_without_statistics_takes_a_batch_of_batches_with_sides_of_one():
    norm = BatchNormAct2d(8)
    replace_all_batch_norm_modules_(norm)
    x = torch.randn(3, 2, 8, 1, 5)
    torch.testing.assert_close(torch.vmap(lambda one: norm(one))(x), torch.stack([norm(one) for one in x]))


@pytest.mark.parametrize("backend", [None, "native", "coalesced", "compiled"])
def test_weights_of_a_subclass_of_tensor_are_computed_by_torch(backend):
    module, x_nchw = SegmentedConv2d(8, 8, segments=4, backend=backend), images(4, 8, 5, 5)
    expected = module(x_nchw)
    for half in (module.spatial, module.pointwise):
        weight = half.weights[0].detach()
        half.weights[0] = nn.Parameter(TwoTensor(weight, weight.clone()))
    torch.testing.assert_close(module(x_nchw).a, expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_shuffle_outlives_memory_that_is_not_initialised(device):
    with torch.device(device):
        module = SegmentedConv2d(8, 8, segments=4, pointwise_segments=2, shuffle=True)
    module.to_empty(device="cpu")
    assert module.shuffle.tolist() == SegmentedConv2d(8, 8, pointwise_segments=2, shuffle=True).shuffle.tolist()

"""Backends by name: your own ones, limits of each, and preferences for one."""

import copy
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrum import SegmentedConv2d, build_model, list_backends, prefer_backend, register_backend
from spectrum.conv.arguments import InputError
from spectrum.conv.backends import choice
from spectrum.conv.backends.choice import candidates
from spectrum.conv.backends.interface import Backend
from spectrum.conv.backends.native import native
from spectrum.conv.norm import BatchNormAct2d
from spectrum.conv.seen import backends_seen
from tests.conv import reference
from tests.conv.exact import assert_exact, doubled, function_of, with_gradients
from tests.registries import restored


class Unfolded(Backend):
    """A convolution by im2col and one product per segment; without stride, and only in float32."""

    calls = 0

    def refusal_of(self, geometry):
        return None if geometry.stride == (1, 1) else "it takes stride 1"

    def refusal(self, x_nchw, geometry):
        return None if x_nchw.dtype == torch.float32 else "it takes float32"

    def convolve(self, x_nchw, weights, geometry):
        Unfolded.calls += 1
        n, _, height, width = x_nchw.shape
        sides = zip((height, width), geometry.kernel_size, geometry.padding, geometry.dilation, strict=True)
        size = [side + 2 * pad - dilation * (k - 1) for side, k, pad, dilation in sides]
        outputs, channel = [], 0
        for run, weight in zip(geometry.runs, weights, strict=True):
            for kernel in weight.split(run.out_size):
                part = x_nchw[:, channel : channel + run.in_size]
                columns = F.unfold(part, geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride)
                outputs.append((kernel.flatten(1) @ columns).view(n, run.out_size, *size))
                channel += run.in_size
        return torch.cat(outputs, dim=1)


@pytest.fixture(autouse=True)
def unfolded(monkeypatch):
    torch.manual_seed(0)
    restored(monkeypatch, choice.BACKENDS)
    monkeypatch.setattr(Unfolded, "calls", 0)
    monkeypatch.delenv("SPECTRUM_BACKEND", raising=False)
    register_backend("unfolded", Unfolded)


def images(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("segments", [1, 3, 4, "per_channel", (2, 2, 8)])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "dilation": 2}, {"order": "spatial_first", "norm": True}])
def test_a_backend_of_ones_own_computes_what_it_is_asked_for(segments, options):
    module = SegmentedConv2d(12, 12, segments=segments, backend="unfolded", **options)
    x_nchw = images(3, 12, 7, 6)
    with backends_seen(module) as seen:
        y_nchw = module(x_nchw)
    assert seen == {"": "unfolded"}
    assert Unfolded.calls == 2  # both halves
    exact = reference.segmented_conv2d(copy.deepcopy(module).double(), x_nchw.double())
    assert_exact([y_nchw], [exact], 9 * 12 * 12 * 16)


def test_its_gradients_are_exact():
    module = SegmentedConv2d(12, 8, segments=3, pointwise=False, backend="unfolded")
    native = copy.deepcopy(module).double()

    inputs = [images(2, 12, 5, 5), *module.parameters()]
    native.spatial.choice = choice.Choice("native")
    assert_exact(
        with_gradients(function_of(module), inputs), with_gradients(function_of(native), doubled(inputs)), 9 * 12
    )


def test_a_network_prefers_it_and_torch_computes_the_rest():
    with prefer_backend("unfolded"):
        model = build_model("probe", segments=4, downsampling="stride", image_size=16)
    with backends_seen(model) as seen:
        model(images(2, 3, 16, 16))
    assert set(seen.values()) == {"unfolded", "native"}
    assert SegmentedConv2d(8, 8).spatial.choice == choice.Choice("auto")  # the preference is over


@pytest.mark.parametrize("said", [None, ""])
def test_an_empty_variable_says_nothing(said, monkeypatch):
    if said is not None:
        monkeypatch.setenv("SPECTRUM_BACKEND", said)
    assert SegmentedConv2d(8, 8).spatial.choice == choice.Choice("auto")


def test_the_environment_prefers_it_too(monkeypatch):
    monkeypatch.setenv("SPECTRUM_BACKEND", "unfolded")
    assert SegmentedConv2d(8, 8, stride=2)(images(1, 8, 4, 4)).shape == (1, 8, 2, 2)
    assert not SegmentedConv2d(8, 8).spatial.choice.binding
    with prefer_backend("native"):
        assert SegmentedConv2d(8, 8).spatial.choice.name == "native"
        assert SegmentedConv2d(8, 8, backend="compiled").spatial.choice == choice.Choice("compiled", binding=True)


# What a named backend cannot compute


@pytest.mark.parametrize(
    ("backend", "options", "why"),
    [
        ("compiled", {"stride": 3}, "square kernels of 1, 3, 5 or 7 pixels with stride 1 or 2"),
        ("compiled", {"stride": (1, 2)}, "stride 1 or 2"),
        ("compiled", {"kernel_size": 9}, "this layer is .*stride"),
        ("compiled", {"kernel_size": (3, 1)}, "square kernels"),
        ("compiled", {"dilation": 3}, "dilation 1 or 2"),
        ("compiled", {"padding": 3}, "padding up to dilation"),
        ("coalesced", {"segments": 1}, "2 to 4 input channels"),
        ("coalesced", {"segments": "per_channel"}, "2 to 4 input channels"),
        ("unfolded", {"stride": 2}, "it takes stride 1"),
    ],
)
def test_a_named_backend_refuses_a_geometry_when_the_layer_is_made(backend, options, why):
    with pytest.raises(ValueError, match=f"backend='{backend}': .*{why}"):
        SegmentedConv2d(16, 16, **{"segments": 4, "backend": backend} | options)


@pytest.mark.parametrize("backend", ["compiled", "unfolded"])
def test_a_named_backend_refuses_an_input_and_computes_no_other_way(backend):
    module = SegmentedConv2d(16, 16, segments=4, backend=backend, pointwise=False)
    module(images(1, 16, 4, 4))
    with pytest.raises(InputError, match=f"float64 on cpu: backend='{backend}' cannot compute it: it takes float32"):
        copy.deepcopy(module).double()(images(1, 16, 4, 4).double())
    if backend == "compiled":
        with torch.autocast("cpu", torch.float16), pytest.raises(InputError, match="float32 and bfloat16"):
            module(images(1, 16, 4, 4))


def test_complex_numbers_are_not_coalesced():
    module = SegmentedConv2d(16, 16, segments=4, backend="coalesced", pointwise=False, dtype=torch.complex64)
    with pytest.raises(InputError, match="floating-point tensors"):
        module(torch.zeros(1, 16, 4, 4, dtype=torch.complex64))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("backend", candidates())
def test_a_named_backend_computes_in_every_layout(backend, layout):
    module = SegmentedConv2d(16, 16, segments=4, backend=backend)
    with backends_seen(module) as seen:
        y_nchw = module(images(2, 16, 5, 5).contiguous(memory_format=layout))
    assert seen == {"": backend}
    assert y_nchw.is_contiguous(memory_format=layout)


def test_whoever_counts_or_exports_sees_torchs_convolutions():
    module = SegmentedConv2d(16, 16, segments=4, backend="compiled")
    program = torch.export.export(module, (images(1, 16, 4, 4),))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == 2 * [torch.ops.aten.conv2d.default]


def test_batch_norm_takes_a_backend_too():
    norm = BatchNormAct2d(8, backend="native")
    assert norm.backend == "native"
    assert SegmentedConv2d(8, 8, norm=True, backend="native").between[0].backend == "native"
    with pytest.raises(ValueError, match="backend='magic': no such backend"):
        BatchNormAct2d(8, backend="magic")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("magic", "try 'auto', 'block_diagonal'"),
        ("compild", "did you mean 'compiled'"),
        (3, "no such"),
        ("", "no such"),
    ],
)
def test_an_unknown_backend_is_refused(name, why):
    with pytest.raises(ValueError, match=f"backend=.*{why}"):
        SegmentedConv2d(8, 8, backend=name)
    with pytest.raises(ValueError, match=why), prefer_backend(name):
        pass


class Wrong(Backend):
    """A correct backend whose results are changed by `spoil`."""

    spoil = None

    def convolve(self, x_nchw, weights, geometry):
        return Wrong.spoil(native(x_nchw, weights, geometry))

    def can_normalise(self, x_nchw):
        return True

    def normalise(self, x_nchw, added_nchw, weight, bias, eps, relu):
        variance, mean = torch.var_mean(x_nchw.detach(), (0, 2, 3), correction=0)
        return Wrong.spoil((F.batch_norm(x_nchw, None, None, weight, bias, training=True, eps=eps), mean, variance))

    def normalise_by(self, x_nchw, added_nchw, weight, bias, mean, variance, eps, relu):
        return Wrong.spoil(F.batch_norm(x_nchw, mean, variance, weight, bias, eps=eps))


@pytest.fixture
def wrong(monkeypatch):
    register_backend("wrong", Wrong)
    return lambda spoil: monkeypatch.setattr(Wrong, "spoil", staticmethod(spoil))


SPOILT = [
    (lambda y: y[:, :1], r"gave shape \(2, 1, 4, 3\); expected a tensor of shape \(2, 8, 4, 3\)"),
    (lambda y: None, "gave NoneType; expected a tensor"),
    (lambda y: y.double(), "gave torch.float64 on cpu; expected torch.float32 on cpu, as the input"),
    (lambda y: y.to("meta"), "gave torch.float32 on meta; expected torch.float32 on cpu"),
    (lambda y: y.detach(), "gave a tensor without a gradient; expected one that autograd can follow"),
]


class Careless(Backend):
    """A backend that changes its inputs, or returns parts of them."""

    does = None

    def convolve(self, x_nchw, weights, geometry):
        return Careless.does(x_nchw, *weights)

    def can_normalise(self, x_nchw):
        return True

    def normalise(self, x_nchw, added_nchw, weight, bias, eps, relu):
        return Careless.does(x_nchw, weight), weight.detach().clone(), weight.detach().clone()

    def normalise_by(self, x_nchw, added_nchw, weight, bias, mean, variance, eps, relu):
        return Careless.does(x_nchw, mean)


@pytest.mark.parametrize("layer", ["convolve", "normalise", "normalise_by"])
@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda x, weight: x, "gave memory of its input; expected a tensor of its own"),
        (lambda x, weight: x.view_as(x), "gave memory of its input"),
        (lambda x, weight: x.mul_(2).clone(), "changed an input in place; work on a copy"),
        (lambda x, weight: (weight.data.mul_(2), weight.zero_(), x.clone())[2], "changed an input in place"),
    ],
    ids=["itself", "a view", "the input", "the weight"],
)
def test_a_backend_that_is_careless_with_its_inputs_is_refused(layer, does, says, monkeypatch):
    register_backend("careless", Careless)
    monkeypatch.setattr(Careless, "does", staticmethod(does))
    if layer == "convolve":
        module = SegmentedConv2d(8, 8, segments=4, pointwise=False, backend="careless")
    else:
        module = BatchNormAct2d(8, backend="careless").train(layer == "normalise")
    with torch.no_grad(), pytest.raises(TypeError, match=f"backend 'careless': its {layer} {says}"):
        module(images(2, 8, 4, 4))


def test_threads_prepare_a_backend_once(monkeypatch, wrong):
    done = []
    wrong(lambda y: y)
    monkeypatch.setattr(Wrong, "prepare", lambda self: (time.sleep(0.05), done.append("prepared")))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: SegmentedConv2d(8, 8, backend="wrong"), range(8)))
    assert done == ["prepared"]


def test_a_backend_that_cannot_be_prepared_says_why(monkeypatch, wrong):
    def fail(self):
        raise RuntimeError("no library")

    monkeypatch.setattr(Wrong, "prepare", fail)
    with pytest.raises(ValueError, match="backend='wrong': cannot be prepared: RuntimeError: no library"):
        SegmentedConv2d(8, 8, backend="wrong")


def test_moments_under_autocast_have_the_type_of_the_statistics(wrong):
    wrong(lambda given: (given[0], given[1].bfloat16(), given[2]))
    norm = BatchNormAct2d(8, backend="wrong")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"gave torch\.bfloat16 on cpu"):
        norm(images(2, 8, 4, 3))
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(("spoil", "says"), SPOILT)
def test_what_a_backend_of_ones_own_gives_in_place_of_the_result_is_refused(spoil, says, wrong):
    wrong(spoil)
    module = SegmentedConv2d(12, 8, pointwise=False, stride=2, backend="wrong")
    with pytest.raises(TypeError, match=f"backend 'wrong': its convolve {says}"):
        module(images(2, 12, 7, 5))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        *((lambda given, spoil=spoil: (spoil(given[0]), *given[1:]), says) for spoil, says in SPOILT),
        (lambda given: given[0], "gave Tensor; expected a tuple of y, mean and variance"),
        (lambda given: (given[0], given[1][:1], given[2]), r"gave shape \(1,\); expected a tensor of shape \(8,\)"),
        (lambda given: (given[0], given[1], given[2].double()), "gave torch.float64"),
    ],
)
def test_so_it_is_in_place_of_a_normalised_one(spoil, says, wrong):
    wrong(spoil)
    norm = BatchNormAct2d(8, backend="wrong")
    with pytest.raises(TypeError, match=f"backend 'wrong': its normalise {says}"):
        norm(images(2, 8, 4, 3))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(8))


@pytest.mark.parametrize(("spoil", "says"), SPOILT[:-1])
def test_so_it_is_in_evaluation(spoil, says, wrong):
    wrong(spoil)
    with torch.no_grad(), pytest.raises(TypeError, match=f"backend 'wrong': its normalise_by {says}"):
        BatchNormAct2d(8, backend="wrong").eval()(images(2, 8, 4, 3))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_its_results_have_the_layout_of_the_input(layout, wrong):
    wrong(lambda y: y if isinstance(y, tuple) else y.contiguous())
    module, x_nchw = SegmentedConv2d(12, 8, norm=True, backend="wrong"), images(2, 12, 7, 5)
    assert module(x_nchw.contiguous(memory_format=layout)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("why", ["", "  ", False, True, 3])
def test_a_reason_is_text_or_none(why, monkeypatch, wrong):
    wrong(lambda y: y)
    module = SegmentedConv2d(8, 8, backend="wrong")
    monkeypatch.setattr(Wrong, "refusal", lambda self, x_nchw, geometry: why)
    with pytest.raises(TypeError, match=f"its refusal gave {why!r}; expected None, or the reason as text"):
        module(images(1, 8, 4, 4))
    monkeypatch.setattr(Wrong, "refusal_of", lambda self, geometry: why)
    with pytest.raises(TypeError, match=f"its refusal_of gave {why!r}"):
        SegmentedConv2d(8, 8, backend="wrong")


def test_a_backend_is_prepared_once_and_before_its_first_result(monkeypatch, wrong):
    done = []
    wrong(lambda y: done.append("computed") or y)
    monkeypatch.setattr(Wrong, "prepare", lambda self: done.append("prepared"))
    with torch.device("meta"):
        module = SegmentedConv2d(8, 8, pointwise=False, backend="wrong")
    assert done == []
    module.to_empty(device="cpu").reset_parameters()
    module(images(1, 8, 4, 4))
    SegmentedConv2d(8, 8, norm=True, backend="wrong")(images(1, 8, 4, 4))
    assert done == ["prepared", *4 * ["computed"]]


class Logger(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_who_looks_on_sees_torchs_convolutions_and_is_told_so():
    module, x_nchw = SegmentedConv2d(8, 8, segments=4, backend="compiled"), images(1, 8, 4, 4)
    with backends_seen(module) as seen, Logger():
        module(x_nchw)
    assert seen == {"": "native"}


def test_a_named_backend_gives_shapes_on_meta():
    module = SegmentedConv2d(8, 8, segments=4, backend="compiled", device="meta")
    assert module(torch.empty(2, 8, 5, 5, device="meta")).shape == (2, 8, 5, 5)
    assert "backend='compiled'" in repr(module)
    assert "backend" not in repr(SegmentedConv2d(8, 8))


def test_calls_are_seen_however_the_input_is_given():
    module = SegmentedConv2d(8, 8, segments=4)
    with backends_seen(module) as seen:
        module(x_nchw=images(2, 8, 5, 5))
        with pytest.raises(InputError, match="type str"):
            module("x")
        for wrong in [(), (1, 2)]:
            with pytest.raises(TypeError, match="positional argument"):
                module(*wrong)
    assert seen == {"": "compiled"}


def test_a_copy_is_not_taken_for_the_network_that_is_watched():
    module = SegmentedConv2d(8, 8, segments=4)
    with backends_seen(module) as seen:
        copied = copy.deepcopy(module)
        copied(images(1, 8, 4, 4))
    copied(images(1, 8, 4, 4))
    assert seen == {}


def test_what_torch_compiles_is_not_seen_wherever_it_is_compiled():
    module, x_nchw = SegmentedConv2d(8, 8, segments=4), images(1, 8, 4, 4)
    torch._dynamo.reset()
    with backends_seen(module) as seen:
        compiled = torch.compile(module, backend="eager")
        compiled(x_nchw)
    with backends_seen(module) as again:
        compiled(x_nchw)
    assert (seen, again) == ({}, {})


# Registering


def test_what_is_no_backend_is_refused():
    for factory, why in [(3, "factory=3"), (dict, "gave dict"), (Backend, "has no convolve")]:
        with pytest.raises(ValueError, match=why):
            register_backend("mine", factory)
    for name, why in [
        ("auto", "the fastest one"),
        ("folded", "computed as one"),
        ("library", "without kernels"),
        ("native", "registered already"),
        ("", "expected a name"),
    ]:
        with pytest.raises(ValueError, match=why):
            register_backend(name, pytest.fail)  # not called for an invalid name
    assert list_backends() == sorted([*candidates(), "unfolded"])


def test_a_stored_layer_says_that_its_backend_is_not_registered():
    stored = pickle.dumps(SegmentedConv2d(8, 8, backend="unfolded"))
    assert pickle.loads(stored)(images(1, 8, 4, 4)).shape == (1, 8, 4, 4)
    del choice.BACKENDS._entries["unfolded"]
    with pytest.raises(ValueError, match=r"backend 'unfolded': unknown; .*\(your own: register_backend\)"):
        pickle.loads(stored)(images(1, 8, 4, 4))


def test_forward_keeps_no_record():
    module = SegmentedConv2d(16, 16, segments=4)
    before = {name: dict(part.__dict__) for name, part in module.named_modules()}
    module(images(1, 16, 4, 4))
    assert {name: dict(part.__dict__) for name, part in module.named_modules()} == before


def test_those_that_are_not_called_are_not_seen():
    model = nn.ModuleList([SegmentedConv2d(8, 8, segments=4), SegmentedConv2d(8, 8)])
    with backends_seen(model) as seen:
        model[0](images(1, 8, 4, 4))
    model[1](images(1, 8, 4, 4))
    assert set(seen) == {"0"}
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.medium
def test_building_networks_on_meta_starts_no_compiler(tmp_path):
    code = """
import torch
from spectrum.models import build_model, list_models
with torch.device("meta"):
    for name in list_models():
        build_model(name, image_size=299 if name == "inception_v3" else 96)
"""
    environment = {**os.environ, "SPECTRUM_CACHE": str(tmp_path / "cache"), "CXX": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "kernels" not in done.stderr
    assert not (Path(tmp_path) / "cache").exists()

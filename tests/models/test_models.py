"""One check for every architecture, and properties of the probe."""

import json
import pickle
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d, build_model, list_models, measure_cost, models, register_model
from spectrum.conv.norm import BatchNormAct2d
from spectrum.models import NetworkOptions
from spectrum.models.blocks import MiddleFlowBlock, clamped_layers, every_pixel, realised_segments
from spectrum.models.families import FAMILIES
from tests.models import golden
from tests.registries import restored

SMALL = {"in_channels": 1, "image_size": 12, "num_classes": 5, "width": 0.25}
SMALLEST = {
    "inception": SMALL | {"depth": 1},
    "inception_v3": {"in_channels": 1, "image_size": 75, "num_classes": 5},
    "mobilenet_v1": SMALL | {"image_size": 32, "width": 0.1, "depth": 1},
    "probe": SMALL,
    "resnext": SMALL | {"image_size": 32, "width": 0.05, "depth": 1},
    "resnext_small": SMALL | {"depth": 1},
    "vgg": SMALL | {"image_size": 32, "width": 0.1, "depth": 1},
    "xception": SMALL | {"image_size": 71, "width": 0.05, "depth": 1},
}
CASES = {
    "one segment": {"segments": 1},
    "not dividing": {"segments": 3},
    "per channel": {"segments": "per_channel", "activation": "relu", "norm": True},
    "spatial first": {"segments": 4, "order": "spatial_first", "residual": False},
    "by width": {"segment_width": 2, "activation": "gelu", "dropout": 0.5},
    "shuffled": {"segments": 2, "pointwise_segments": 2, "shuffle": True},
    "bare": {"segments": 2, "pointwise": False},
    "elu, spatial first": {"segments": 3, "order": "spatial_first", "activation": "elu", "norm": True},
    "silu": {"segments": 4, "activation": "silu", "norm": False},
    "of its own": {},
}
ORDERS, ACTIVATIONS = ("pointwise_first", "spatial_first"), ("none", "relu", "elu", "gelu", "silu")
BUILT_IN = [name for name in models.list_models() if FAMILIES.maker(name) is None]
every_family = pytest.mark.parametrize("family", BUILT_IN)
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


def built(family, **options):
    """A small network, without the options that the architecture does not use."""
    ignored = models.unused_by(family)
    kept = {name: value for name, value in options.items() if name not in ignored}
    if options and not kept:
        pytest.skip(f"{family} has no use for these")
    return build_model(family, **SMALLEST[family] | kept)


def images_of(family, count):
    side = SMALLEST[family]["image_size"]
    return torch.randn(count, 1, side, side)


@pytest.mark.medium
@every_family
@every_case
def test_a_network_trains_exports_and_takes_either_layout(family, options):
    check(family, options)


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_order_and_activation_trains_exports_takes_either_layout_and_compiles(family, order, activation):
    if family == "inception_v3":
        pytest.skip("it has neither")
    model, x = check(family, {"segments": 3, "order": order, "activation": activation})  # 3 divides few of the widths
    torch.compiler.reset()  # what it remembers of other networks of this class
    assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


def check(family, options):
    """Forward, backward, export and channels_last; the network, then in evaluation mode, and its images."""
    torch.manual_seed(0)
    model = built(family, **options)
    x = images_of(family, 3)
    logits = model(x)
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)

    model.eval()
    assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    channels_last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert_close(channels_last, model(x), rtol=1e-4, atol=1e-5)
    return model, x


@pytest.mark.medium
@every_family
@every_case
def test_a_state_dict_fits_a_network_of_the_same_architecture_only(family, options):
    model, other = (built(family, **options) for _ in range(2))
    other.load_state_dict(model.state_dict())
    x = images_of(family, 2)
    assert torch.equal(model.eval()(x), other.eval()(x))
    with pytest.raises(RuntimeError, match="Error"):
        built(family, num_classes=6, **options).load_state_dict(model.state_dict())


@pytest.mark.slow
@every_family
def test_a_compiled_network_gives_the_same(family):
    torch._dynamo.reset()  # or families that share code count as one network at sizes that vary
    model = built(family, segments=3).eval()
    x = images_of(family, 2)
    assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.medium
@every_family
def test_fx_traces_every_family(family):
    """Same outputs, gradients and statistics; the traced network can change its mode like any other."""
    torch.manual_seed(0)
    model = built(family, segments=3, order="spatial_first", activation="relu", padding="tf_same", auxiliary=False)
    copied, x = deepcopy(model), images_of(family, 3).to(memory_format=torch.channels_last)
    traced = torch.fx.symbolic_trace(model)
    assert_close(model.state_dict(), copied.state_dict(), rtol=0, atol=0)  # tracing moves no statistics
    if family != "inception_v3":  # large, and of the same parts
        found = [outputs_gradients_and_moments(network, x) for network in (traced, copied)]
        for ours, theirs in zip(*found, strict=True):
            largest = max(t.abs().max().item() for t in theirs.values())
            assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)
        traced = pickle.loads(pickle.dumps(traced))
    with torch.no_grad():
        assert_close(traced.eval()(x), copied.eval()(x), rtol=1e-3, atol=1e-4)


def outputs_gradients_and_moments(network, x):
    logits = network(x)
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"": logits.detach()}, gradients, {name: buffer.double() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("form", ["canonical", "simplified", "segments", "extreme"])
def test_fx_traces_every_form_of_an_inception_module(form):
    model, x = built("inception", form=form).eval(), images_of("inception", 2)
    assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_fx_traces_strides_shuffles_and_the_auxiliary_tower():
    for family, options in [
        ("probe", {"downsampling": "stride", "pointwise_segments": 2, "shuffle": True, "dropout": 0.5}),
        ("xception", {"residual": False, "padding": "torch", "norm": True}),
    ]:
        model, x = built(family, **options).eval(), images_of(family, 2)
        assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        tower = build_model("inception_v3", image_size=299, auxiliary=True)
    assert [logits.shape for logits in torch.fx.symbolic_trace(tower)(torch.empty(2, 3, 299, 299, device="meta"))] == [
        (2, 10),
        (2, 10),
    ]


@every_family
def test_every_stage_can_have_segments_of_its_own(family):
    if family == "inception_v3":
        pytest.skip("it has no segments")
    stages = FAMILIES[family].stages or len(models.stage_widths(family, NetworkOptions()))
    schedule = tuple([1, 2, "per_channel", 3, 2, 1][:stages])
    model = built(family, stage_segments=schedule)
    assert model(images_of(family, 2)).shape == (2, 5)
    alike = built(family, stage_segments=(2,) * stages)
    assert [m.segment_sizes for m in alike.modules() if isinstance(m, SegmentedConv2d)] == [
        m.segment_sizes for m in built(family, segments=2).modules() if isinstance(m, SegmentedConv2d)
    ]
    with pytest.raises(ValueError, match=f"stage_segments: {stages + 1} given; '{family}' has {stages} stages"):
        built(family, stage_segments=(1,) * (stages + 1))


def test_segments_of_stages_are_those_of_the_schedule():
    assert realised_segments(build_model("probe", stage_segments=(1, 4, "per_channel"))) == [1, 1, 4, 4, 128, 128]
    with pytest.raises(ValueError, match="segments and stage_segments: give one of the two"):
        NetworkOptions(segments=2, stage_segments=(1, 2, 3))


@pytest.mark.medium
@every_family
def test_counts_are_those_of_the_golden_table(family):
    expected = json.loads(golden.FILE.read_text())[family]
    assert golden.table(family) == expected, "make golden"


@pytest.mark.parametrize("name", [None, 5, "", "  ", ["a"], b"a"])
def test_a_family_needs_a_name(name):
    before = list_models()
    with pytest.raises(ValueError, match=r"^name=.*: expected a name"):
        register_model(name, lambda architecture: nn.Identity())
    assert list_models() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"builder": "build"}, "builder='build': must return"),
        ({"builder": None}, "builder=None: must return"),
        ({"widths": (16, 32)}, r"widths=\(16, 32\): must return"),
        ({"uses": 5}, "uses=5: expected names of fields"),
        ({"uses": [5]}, "uses=5: no option of a network"),
        ({"uses": [None]}, "uses=None: no option of a network"),
        ({"uses": [["segments"]]}, "uses=.*: no option of a network"),
    ],
)
def test_what_registers_nothing_is_refused_by_name(options, says):
    with pytest.raises(ValueError, match=says):
        register_model("refused", **{"builder": lambda architecture: nn.Identity(), **options})
    assert "refused" not in list_models()


@pytest.mark.parametrize("built", [None, 5, nn.Linear, lambda x: x])
def test_a_builder_that_returns_no_module_is_told_so(built, monkeypatch):
    restored(monkeypatch, FAMILIES)
    register_model("of no module", lambda architecture: built)
    with pytest.raises(ValueError, match=f"its builder returned {type(built).__name__}; return a torch.nn.Module"):
        build_model("of no module")


@pytest.mark.parametrize(
    "options",
    [
        {"width": 1e9},
        {"width": 64.1},
        {"widths": (10**9, 1, 1)},
        {"hidden": (10**9,)},
        {"segment_width": 10**9},
        {"pointwise_segments": 10**9},
        {"in_channels": 10**9},
        {"num_classes": 10**9},
        {"depth": 10**20},
        {"depth": 10**5},
    ],
)
def test_a_size_that_no_network_has_is_refused_by_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}(\.0)?: input should be less than or equal to \d+ \(got "):
        build_model("probe", **options)


def test_every_family_is_in_the_golden_table():
    assert set(json.loads(golden.FILE.read_text())) == set(BUILT_IN)


@pytest.mark.parametrize(
    ("family", "options", "params"),
    [
        ("resnext", {"segments": 32}, 25_028_904),  # ResNeXt-50, 32×4d
        ("mobilenet_v1", {}, 4_231_976),
    ],
)
def test_published_networks_have_their_published_parameters(family, options, params):
    with torch.device("meta"):
        model = build_model(family, image_size=224, num_classes=1000, **options)
    assert sum(p.numel() for p in model.parameters()) == params


def test_vggs_bare_convolutions_are_those_of_configuration_d():
    with torch.device("meta"):
        model = build_model("vgg", image_size=224, segments=1, pointwise=False)
    weights = [p.numel() for name, p in model.named_parameters() if "spatial" in name]
    assert len(weights) == 13
    assert sum(weights) == 14_714_688 - 4_224  # as published, less the biases


def test_bsconvs_swap_drops_13_relus_and_13_norms_and_moves_the_1x1():
    with torch.device("meta"):
        mobilenet = build_model("mobilenet_v1", image_size=32)
        bsconv = build_model("mobilenet_v1", image_size=32, order="pointwise_first", activation="none", norm=False)
        held = build_model("mobilenet_v1", image_size=32, order="pointwise_first")

    def norms(model):
        return [m.relu for m in model.modules() if isinstance(m, BatchNormAct2d)]

    assert (len(norms(mobilenet)), len(norms(bsconv))) == (27, 14)
    assert norms(held) == norms(mobilenet)
    assert all(norms(mobilenet))
    assert measure_cost(bsconv, (3, 32, 32)).macs > 1.4 * measure_cost(mobilenet, (3, 32, 32)).macs


def test_the_default_probe_has_one_to_three_million_macs_at_28_pixels():
    cost = measure_cost(build_model("probe", in_channels=1, image_size=28), (1, 28, 28))
    assert 1e6 <= cost.macs <= 3e6


@pytest.mark.parametrize("size", [8, 12, 16, 28, 32])
def test_the_probe_takes_images_of_8_to_32_pixels(size):
    model = build_model("probe", image_size=size, width=0.25)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_widths_and_depth_are_data():
    model = build_model("probe", widths=(8, 24), depth=3, image_size=8)
    operations = [m for m in model.modules() if isinstance(m, SegmentedConv2d)]
    assert [m.out_channels for m in operations] == [8] * 6 + [24] * 6


def test_without_residuals_no_block_has_a_skip():
    with_skips, without = (build_model("probe", residual=residual) for residual in (True, False))
    assert "skip" in str(with_skips)
    assert "skip" not in str(without)


def test_swapping_the_order_moves_no_stride_and_changes_only_the_operations():
    for order in ("pointwise_first", "spatial_first"):
        model = build_model("probe", order=order, segments=4)
        assert all(m.spatial.geometry.stride == (1, 1) for m in model.modules() if isinstance(m, SegmentedConv2d))
    others = [
        [str(m) for m in build_model("probe", order=order).modules() if isinstance(m, (nn.BatchNorm2d, nn.ReLU))]
        for order in ("pointwise_first", "spatial_first")
    ]
    assert others[0] == others[1]


def with_strided_1x1s(model):
    """A copy whose skips take the stride in their 1×1s, by torch alone, with the same weights under the same names."""
    model = deepcopy(model)
    for block in model.modules():
        if isinstance(block, MiddleFlowBlock) and block.stride > 1:
            weight = block.skip[0].weight
            block.skip[0] = nn.Conv2d(*weight.shape[1::-1], 1, block.stride, bias=False).to(weight.dtype)
            block.skip[0].weight, block.stride = weight, 1
    return model


@pytest.mark.parametrize("side", [8, 9])
def test_a_strided_block_equals_one_with_a_strided_1x1_but_calls_none(side):
    """oneDNN's own may write past its workspace: see docs/performance.md."""
    block = MiddleFlowBlock(NetworkOptions(segments=2), 8, 16, stride=2).double()
    assert block.skip[0].stride == (1, 1)
    strided = with_strided_1x1s(block)
    assert strided.skip[0].stride == (2, 2)
    assert strided.state_dict().keys() == block.state_dict().keys()
    x_nchw = torch.randn(4, 8, side, side, dtype=torch.float64, requires_grad=True)
    y_nchw, expected_nchw = block(x_nchw), strided(x_nchw)
    assert_close(y_nchw, expected_nchw)
    gradient_nchw = torch.randn_like(y_nchw)
    gradients, expected = (
        torch.autograd.grad(y, [x_nchw, *of.parameters()], gradient_nchw)
        for y, of in ((y_nchw, block), (expected_nchw, strided))
    )
    assert_close(gradients, expected)


def test_strided_blocks_cost_what_strided_1x1s_do_and_keep_channels_last():
    model = build_model("probe", width=0.25, downsampling="stride", in_channels=1, image_size=28)
    assert measure_cost(model, (1, 28, 28)) == measure_cost(with_strided_1x1s(model), (1, 28, 28))
    x_nchw = torch.randn(2, 8, 14, 14).contiguous(memory_format=torch.channels_last).requires_grad_()
    y_nchw = every_pixel(x_nchw, 2)
    assert torch.equal(y_nchw, x_nchw[:, :, ::2, ::2])
    (gradient_nchw,) = torch.autograd.grad(
        y_nchw, x_nchw, torch.randn(2, 8, 7, 7).to(memory_format=torch.channels_last)
    )
    for tensor in (y_nchw, gradient_nchw):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


ASKED = [
    {"segments": 40},
    {"segments": "per_channel"},
    {"segment_width": 40},
    {"segments": 3, "segment_shares": (20, 1, 1)},
    {"segments": 40, "segment_shares": (1,) * 40},
    {"pointwise_segments": 40},
    {"segments": 40, "pointwise_segments": 40, "shuffle": True},
    {"segments": 40, "pointwise": False},
    {"segments": 40, "order": "spatial_first"},
]


def short_of(layer, asked):
    """The options that ask a layer for more than it has, told from what it is."""
    channels, found = sum(layer.segment_sizes), set()
    if "segment_shares" in asked:
        shares = asked["segment_shares"]
        exact = [channels * share / sum(shares) for share in shares]
        if len(layer.segment_sizes) < len(shares) or any(size < 0.5 for size in exact):
            found.add("segment_shares")
    elif isinstance(asked.get("segments"), int) and layer.segments < asked["segments"]:
        found.add("segments")
    if channels < asked.get("segment_width", 0):
        found.add("segment_width")
    if layer.pointwise is not None and sum(run.count for run in layer.pointwise.geometry.runs) < asked.get(
        "pointwise_segments", 1
    ):
        found.add("pointwise_segments")
    return found


@pytest.mark.medium
@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("family", ["probe", "vgg", "resnext_small", "mobilenet_v1", "xception", "inception"])
def test_layers_that_fall_short_of_what_is_asked_are_counted(family, asked):
    ignored = set(asked) & set(models.unused_by(family))
    if ignored or (family == "resnext_small" and asked.get("pointwise") is False):
        pytest.skip(f"{family} has no use for {', '.join(ignored)}")
    with torch.device("meta"):
        model = build_model(family, **asked, width=0.5, image_size=96)
    layers = [module for module in model.modules() if isinstance(module, SegmentedConv2d)]
    expected = Counter(option for layer in layers for option in short_of(layer, asked))
    assert clamped_layers(model) == dict(expected)


def test_a_schedule_by_stage_is_clamped_stage_by_stage_and_counted():
    model = build_model("probe", stage_segments=(33, "per_channel", 200))
    assert realised_segments(model) == [32, 32, 64, 64, 128, 128]
    assert clamped_layers(model) == {"stage_segments": 4}
    assert clamped_layers(build_model("probe", stage_segments=(32, 64, 128))) == {}


@pytest.mark.parametrize("form", ["simplified", "segments"])
def test_modules_of_towers_count_theirs_too(form):
    assert clamped_layers(build_model("inception", form=form, segments=40)) == {"segments": 2}
    assert clamped_layers(build_model("inception", form=form, stage_segments=(40, 8, 200))) == {"stage_segments": 4}
    assert clamped_layers(build_model("inception", form=form, segment_width=40)) == {"segment_width": 2}


def test_segments_are_clamped_layer_by_layer():
    assert realised_segments(build_model("probe", segments=64)) == [32, 32, 64, 64, 64, 64]
    assert realised_segments(build_model("probe", segments="per_channel")) == [32, 32, 64, 64, 128, 128]
    assert realised_segments(build_model("probe", segment_width=16)) == [2, 2, 4, 4, 8, 8]


def test_a_family_of_ones_own_is_built_by_name():
    def build_tiny(architecture: NetworkOptions) -> nn.Module:
        return nn.Sequential(
            SegmentedConv2d(architecture.in_channels, 8, segments=architecture.segments),
            nn.Flatten(),
            nn.LazyLinear(architecture.num_classes),
        )

    register_model("tiny of this test", build_tiny)
    assert "tiny of this test" in list_models()
    assert build_model("tiny of this test", segments=2)(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="is registered already"):
        register_model("tiny of this test", lambda architecture: nn.Identity())
    del FAMILIES._entries["tiny of this test"]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("prob", {}, "model='prob': unknown; did you mean 'probe'?"),
        ("zzz", {}, "model='zzz': unknown; try .*'probe'"),
        ("probe", {"segment": 3}, "segment: unknown option of build_model; did you mean 'segments'?"),
        ("probe", {"segments": 3, "segment_width": 2}, "give one of t"),
        ("probe", {"widths": (8, 8), "width": 2.0}, "width and widths"),
        ("probe", {"image_size": 2}, "image_size=2: too small for 3 stages"),
        ("probe", {"activation": "rellu"}, "activation: 'rellu' is unknown; did you mean \"relu\"?"),
        ("probe", {"architecture": NetworkOptions(), "depth": 2}, "not both"),
    ],
)
def test_wrong_input_is_named(name, options, says):
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        build_model(name, **options)


WRONG = {  # of each field: values that no network can have
    **dict.fromkeys(("in_channels", "num_classes", "image_size"), (0, -1, "1", 1.0, True, None, [1])),
    **dict.fromkeys(("depth", "segment_width", "stem_stride"), (0, -1, "1", 1.0, True, [1])),
    "pointwise_segments": (0, "1", 1.0, True, None),
    "width": (0, -1.0, "1", float("nan"), float("inf"), True, None, [1.0]),
    "widths": (8, (), (8, 0), (8, "8"), (8, 8.0), "8", (8, True)),
    "hidden": (64, (0,), ("64",), None, "64"),
    "segments": (0, -3, "4", 2.5, True, (4, 4), "per channel"),
    "stage_segments": (3, (), (1, 0), (1, "2"), "per_channel", (1, True)),
    "segment_shares": ("odd", 3, (), (3, 0), (3, "1"), None),
    "order": ("pointwise", 3, True),
    "activation": ("rellu", 3, nn.ReLU(), nn.ReLU),
    **dict.fromkeys(("norm",), (1, 0, "yes")),
    **dict.fromkeys(("pointwise", "shuffle", "residual", "auxiliary"), (1, 0, "yes", None)),
    "downsampling": ("pooling", None, True),
    "dropout": (1, 1.5, -0.1, "0.5", float("nan"), None, True),
    "padding": ("same", 1),
    "form": ("deep", 1),
    "norm_eps": (0, -1e-3, "1e-3", float("inf"), True),
    "norm_momentum": (0, 1.1, -0.1, "0.1", True),
}


def test_every_field_has_values_that_are_refused():
    assert WRONG.keys() == set(NetworkOptions.model_fields)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_of_another_type_or_range_is_named_with_what_would_work(name, value):
    with pytest.raises(ValueError, match=rf"^{name}(\.\d)?: .*(expected|try|should|mean|larger|takes|write) "):
        build_model("probe", **{name: value})


def test_numbers_of_numpy_and_lists_are_pythons_own_in_an_architecture():
    ours = NetworkOptions(
        in_channels=np.int64(1),
        widths=np.array([8, 16, 16]),
        depth=np.int32(1),
        stage_segments=[np.int64(1), 2, "per_channel"],
        dropout=np.float32(0.5),
        hidden=[np.int64(4)],
        norm=np.bool_(True),
    )
    plain = NetworkOptions(
        in_channels=1,
        widths=(8, 16, 16),
        depth=1,
        stage_segments=(1, 2, "per_channel"),
        dropout=0.5,
        hidden=(4,),
        norm=True,
    )
    assert ours == plain
    assert "np." not in repr(ours)
    assert hash(ours) == hash(plain)
    assert realised_segments(build_model("probe", ours)) == [1, 1, 2, 2, 16, 16]


def test_what_a_network_is_built_from_is_an_architecture_or_options():
    with pytest.raises(ValueError, match=r"build_model: .*; give NetworkOptions, or options by name"):
        build_model("probe", {"segments": 8})
    with pytest.raises(ValueError, match="model=8: expected a name"):
        build_model(8)
    with pytest.raises(ValueError, match=r"shuffle: .* set pointwise_segments above 1"):
        build_model("probe", shuffle=True)

"""Sequences, volumes and padding with other values than zeros, against layers composed of torch's own in float64."""

from __future__ import annotations

import copy
import io
import logging
import math
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from spectrum import SegmentedConv1d, SegmentedConv2d, SegmentedConv3d, measure_cost
from spectrum.conv.any_axes import AXES, SegmentedConvNd
from spectrum.conv.arguments import ORDERS, PADDING_MODES, InputError
from spectrum.conv.padding import same_padding
from tests.conv.exact import sizes_of
from tests.conv.reference import block_diagonal, collect, deal_round, kernels_by_segment
from tests.conv.test_segmented import assert_same

OURS: dict[int, Any] = {1: SegmentedConv1d, 2: SegmentedConv2d, 3: SegmentedConv3d}
TORCHS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
every_number_of_axes = pytest.mark.parametrize("axes", [1, 2, 3])
one_and_three = pytest.mark.parametrize("axes", [1, 3])


def composed(module: SegmentedConvNd, padding: Any, x: Tensor) -> Tensor:
    """The module's result from torch's dense layers with block-diagonal kernels."""

    def dense(half: Any, x: Tensor, padding: Any, mode: str = "zeros") -> Tensor:
        kernel, g = block_diagonal(kernels_by_segment(half)), half.geometry
        layer = TORCHS[module.axes](
            kernel.shape[1], kernel.shape[0], g.kernel_size, g.stride, padding, g.dilation, bias=False,
            padding_mode=mode,
        )  # fmt: skip
        y: Tensor = torch.func.functional_call(layer, {"weight": kernel}, (x,))
        return y

    def spatial(x: Tensor) -> Tensor:
        return dense(module.spatial, x, padding, module.padding_mode)

    if module.pointwise is None:
        y = spatial(x)
    else:
        segments = sum(run.count for run in module.pointwise.geometry.runs)
        if module.order == "pointwise_first":
            y = module.between(dense(module.pointwise, x, 0))
            y = spatial(y if module.shuffle is None else deal_round(y, segments))
        else:
            y = module.between(spatial(x))
            y = dense(module.pointwise, y if module.shuffle is None else collect(y, segments), 0)
    return y if module.bias is None else y + module.bias.view(-1, *[1] * module.axes)


@st.composite
def operations(draw: Any, axes: int) -> tuple[SegmentedConvNd, Any, Tensor]:
    """A module in float64 with any arguments, its padding for torch's layers, and an input."""
    in_channels, out_channels = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    order, pointwise = draw(st.sampled_from(ORDERS)), draw(st.booleans())
    sizes = st.sampled_from([1, 3, 5] if axes < 3 else [1, 3])
    steps = st.sampled_from([1, 2])
    kernel = draw(sizes | st.tuples(*[sizes] * axes))
    options: dict[str, Any] = {
        "stride": draw(steps | st.tuples(*[steps] * axes)),
        "dilation": draw(steps | st.tuples(*[steps] * axes)),
        "padding": draw(st.just("same") | st.integers(0, 2) | st.tuples(*[st.integers(0, 2)] * axes)),
        "padding_mode": draw(st.sampled_from(PADDING_MODES)),
        "order": order, "pointwise": pointwise, "bias": draw(st.booleans()),
    }  # fmt: skip
    channels = min(in_channels, out_channels)
    if pointwise:
        mid = draw(st.none() | st.integers(1, 7))
        usual = out_channels if order == "pointwise_first" else in_channels
        inner = usual if mid is None else mid
        outer = in_channels if order == "pointwise_first" else out_channels
        channels = min(inner, out_channels if order == "pointwise_first" else in_channels)
        options |= {
            "mid_channels": mid,
            "activation": draw(st.sampled_from([None, "relu", "elu", "gelu", "silu"])),
            "norm": draw(st.booleans()),
            "pointwise_segments": draw(st.integers(1, min(inner, outer))),
        }
        options["shuffle"] = options["pointwise_segments"] > 1 and draw(st.booleans())
        if mid is None and draw(st.booleans()):
            options["segments"] = draw(sizes_of(channels))
    if "segments" not in options:
        may_be_per_channel = pointwise or out_channels >= in_channels
        options["segments"] = draw(st.integers(1, channels) | st.just("per_channel" if may_be_per_channel else 1))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    module = OURS[axes](in_channels, out_channels, kernel, **options).double()
    x = torch.randn(2, in_channels, *[draw(st.integers(9, 11))] * axes, dtype=torch.float64)
    padding = options["padding"]
    if padding == "same":
        pairs = zip(module.spatial.geometry.kernel_size, module.spatial.geometry.dilation, strict=True)
        padding = tuple(dilation * (k - 1) // 2 for k, dilation in pairs)
    return module, padding, x


@pytest.mark.medium
@every_number_of_axes
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_operation_equals_its_composition_of_torchs_layers(axes: int, data: Any) -> None:
    module, padding, x = data.draw(operations(axes))
    slow = copy.deepcopy(module)
    assert_same(module, lambda x: composed(slow, padding, x), x, list(module.parameters()), list(slow.parameters()))


@every_number_of_axes
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_one_segment_without_a_1x1_is_torchs_layer(axes: int, mode: str) -> None:
    ours = OURS[axes](5, 7, stride=2, dilation=2, pointwise=False, bias=True, padding_mode=mode).double()
    theirs = TORCHS[axes](5, 7, 3, 2, padding=2, dilation=2, padding_mode=mode).double()
    theirs.load_state_dict({"weight": ours.spatial.weights[0], "bias": ours.bias})
    x = torch.randn(2, 5, *[9, 7, 8][:axes], dtype=torch.float64)
    assert_same(ours, theirs, x, [ours.bias, ours.spatial.weights[0]], [theirs.bias, theirs.weight])
    assert_close(ours(x[0]), theirs(x[0]))


@every_number_of_axes
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_per_channel_is_torchs_grouped_layer_and_a_1x1(axes: int, mode: str) -> None:
    ours = OURS[axes](6, 9, segments="per_channel", order="spatial_first", padding_mode=mode).double()
    depthwise = TORCHS[axes](6, 6, 3, padding=1, groups=6, bias=False, padding_mode=mode).double()
    pointwise = TORCHS[axes](6, 9, 1, bias=False).double()
    depthwise.weight.data.copy_(ours.spatial.weights[0])
    pointwise.weight.data.copy_(ours.pointwise.weights[0])
    x = torch.randn(2, 6, *[9, 7, 8][:axes], dtype=torch.float64)
    theirs = nn.Sequential(depthwise, pointwise)
    assert_same(ours, theirs, x, list(ours.parameters()), list(theirs.parameters()))


@every_number_of_axes
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 8), (3, 2, 9), (4, 1, 9), (2, 3, 10)])
def test_tensorflows_same_padding_adds_the_values_of_the_mode(
    axes: int, mode: str, kernel: int, stride: int, side: int
) -> None:
    args: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "segments": 3, "activation": "relu"}
    padded = OURS[axes](4, 6, padding="tf_same", padding_mode=mode, **args).double()
    bare = OURS[axes](4, 6, padding=0, **args).double()
    bare.load_state_dict(padded.state_dict())
    x = torch.randn(2, 4, *[side] * axes, dtype=torch.float64)
    around = nn.functional.pad(x, same_padding(side, kernel, stride) * axes, "constant" if mode == "zeros" else mode)
    assert padded(x).shape[2:] == (math.ceil(side / stride),) * axes
    assert_close(padded(x), bare(around))  # the 1×1 has no bias, so it may be padded before or after


CASES: dict[str, dict[str, Any]] = {
    "uneven": {"segments": 3, "bias": True},
    "per channel": {"segments": "per_channel", "norm": True, "activation": "relu"},
    "shuffled": {"segments": 5, "pointwise_segments": 3, "shuffle": True, "activation": "gelu"},
    "spatial first": {"segments": 4, "order": "spatial_first", "stride": 2, "activation": "silu"},
    "circular": {"segments": 4, "padding_mode": "circular"},
    "reflect, as TensorFlow": {"segments": 1, "padding_mode": "reflect", "padding": "tf_same", "stride": 2},
    "replicate, no 1×1": {"segments": 5, "pointwise": False, "padding_mode": "replicate"},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


def build(axes: int, options: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return OURS[axes](12, 16, **options).eval()


def inputs(axes: int, images: int = 2) -> Tensor:
    return torch.randn(images, 12, *[8, 6, 5][:axes], generator=torch.Generator().manual_seed(1))


@pytest.mark.medium
@every_number_of_axes
@every_case
def test_compile_gives_the_same_outputs_and_gradients(axes: int, options: dict[str, Any]) -> None:
    module, x = build(axes, options).double(), inputs(axes).double()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(compiled, module, x, list(module.parameters()))


@every_number_of_axes
@every_case
def test_export_and_fx_give_what_computes_the_same(axes: int, options: dict[str, Any]) -> None:
    module, other = build(axes, options), inputs(axes, images=5)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(module, (inputs(axes),), dynamic_shapes=dynamic)
    assert_close(program.module()(other), module(other))
    assert_close(torch.fx.symbolic_trace(module)(other), module(other))


@every_number_of_axes
@every_case
def test_layouts_batches_and_files_change_nothing(axes: int, options: dict[str, Any]) -> None:
    module, other, x = build(axes, options), build(axes, options, seed=1), inputs(axes)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(module(x), other(x))
    assert module(x[:0]).shape == (0, *module(x).shape[1:])
    if not module.normalises:
        assert_close(module(x[0]), module(x)[0])
    if axes > 1:
        last = torch.channels_last if axes == 2 else torch.channels_last_3d
        y = module.to(memory_format=last)(x.contiguous(memory_format=last))
        assert axes == 3 or y.is_contiguous(memory_format=last)  # torch chooses that of volumes
        assert_close(y, other(x), rtol=1e-4, atol=1e-5)


@one_and_three
@every_case
def test_names_in_a_state_dict_are_those_of_two_axes(axes: int, options: dict[str, Any]) -> None:
    shapes = {name: tuple(value.shape) for name, value in build(axes, options).state_dict().items()}
    of_images = {name: tuple(value.shape) for name, value in build(2, options).state_dict().items()}
    assert shapes == {
        name: (*shape[:2], *shape[2:3] * axes) if len(shape) == 4 else shape for name, shape in of_images.items()
    }


@one_and_three
@pytest.mark.parametrize("segments", [1, 3, "per_channel"])
def test_initial_weights_are_uniform_within_the_real_fan_in(axes: int, segments: Any) -> None:
    torch.manual_seed(0)
    module = OURS[axes](48, 48, segments=segments, bias=True)
    weight = module.spatial.weights[0]
    bound = 1 / math.sqrt(weight[0].numel())
    assert weight.shape[1] == (1 if segments == "per_channel" else 48 // segments)
    assert weight.abs().max() <= bound
    assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.15, atol=0)
    made = OURS[axes](48, 48, segments=segments, bias=True, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    made.reset_parameters()
    assert all(one.isfinite().all() and one.abs().max() <= 1 for one in made.parameters())


@every_number_of_axes
@every_case
def test_costs_are_those_of_the_weights_and_of_fvcore(axes: int, options: dict[str, Any]) -> None:
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    module, x = build(axes, {**options, "norm": False}), inputs(axes, images=1)
    cost = measure_cost(module, example_inputs=(x,))
    assert cost.params == sum(one.numel() for one in module.parameters())
    assert cost.macs == FlopCountAnalysis(module, x).total()
    y = module(x)
    before, after = (x[0, 0].numel(), y[0, 0].numel())
    weights = {name: sum(one.numel() for one in half.parameters()) for name, half in module.named_children() if half}
    pixels_of_1x1 = before if module.order == "pointwise_first" else after
    assert cost.macs == weights["spatial"] * after + weights.get("pointwise", 0) * pixels_of_1x1


@pytest.mark.medium
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (4, 3, 1)])
def test_along_a_sequence_it_is_the_layer_of_keras(
    keras: Any, kernel: int, stride: int, dilation: int, padding: str
) -> None:
    theirs = keras.layers.SeparableConv1D(
        7, kernel, strides=stride, dilation_rate=dilation, padding=padding, bias_initializer="random_normal",
        data_format="channels_last",
    )  # fmt: skip
    theirs.build((None, None, 5))
    ours = SegmentedConv1d(
        5, 7, kernel, stride=stride, dilation=dilation, padding="tf_same" if padding == "same" else 0,
        segments="per_channel", order="spatial_first", bias=True,
    )  # fmt: skip
    assert ours.pointwise is not None
    assert ours.bias is not None
    with torch.no_grad():
        ours.spatial.weights[0].copy_(theirs.depthwise_kernel.value.permute(1, 2, 0))
        ours.pointwise.weights[0].copy_(theirs.pointwise_kernel.value.permute(2, 1, 0))
        ours.bias.copy_(theirs.bias.value)
    x_ncl = torch.randn(2, 5, 23)
    assert_close(ours(x_ncl), theirs(x_ncl.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-5)


@every_number_of_axes
def test_wrong_arguments_are_named(axes: int) -> None:
    more = {1: "", 2: ", or two of them", 3: ", or three of them"}[axes]
    for name in ("kernel_size", "stride", "dilation"):
        for value in (0, (1,) * (axes + 1)):
            with pytest.raises(ValueError, match=rf"{name}=.*: expected a whole number of at least 1{more}$"):
                OURS[axes](4, 4, **{name: value})
    with pytest.raises(ValueError, match=rf'padding=-1: expected "same", "tf_same", a number of pixels{more}$'):
        OURS[axes](4, 4, padding=-1)
    with pytest.raises(ValueError, match="padding_mode='mirror': unknown; try 'zeros', 'reflect', 'replicate'"):
        OURS[axes](4, 4, padding_mode="mirror")
    if axes != 2:
        with pytest.raises(TypeError, match="backend"):
            OURS[axes](4, 4, backend="native")


@every_number_of_axes
def test_wrong_inputs_are_named(axes: int) -> None:
    module, names = OURS[axes](4, 4, norm=True), AXES[axes]
    for rank in {1, 2, 3, 4, 5, 6} - {axes + 1, axes + 2}:
        with pytest.raises(InputError, match=rf"expected \(N, 4, {names}\) or \(4, {names}\)"):
            module(torch.zeros([4] * rank))
    with pytest.raises(InputError, match="has 5 channels, expected in_channels=4"):
        module(torch.zeros(2, 5, *[4] * axes))
    with pytest.raises(InputError, match=rf"norm=True needs a batch \(N, C, {names}\)"):
        module(torch.zeros([4] * (axes + 1)))
    for mode, side in (("reflect", 3), ("circular", 2)):
        narrow, x = OURS[axes](4, 4, 5, padding_mode=mode), torch.randn(1, 4, *[side] * axes)
        assert narrow(x).shape == x.shape
        with pytest.raises(InputError, match=f"'{mode}' with padding 2 needs sides of at least {side}, not {side - 1}"):
            narrow(x[..., 1:])


@every_number_of_axes
def test_padding_with_other_values_is_shown(axes: int) -> None:
    shown = repr(OURS[axes](4, 4, padding=2, padding_mode="circular"))
    assert f"padding={(2,) * axes}, padding_mode='circular'" in shown
    assert "padding_mode" not in repr(OURS[axes](4, 4))

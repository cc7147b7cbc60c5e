"""Xception: its counts, its parts, and Keras's own network with the same weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d, build_model, measure_cost
from spectrum.conv.padding import pad_same
from spectrum.models.blocks import PaddedMaxPool2d, realised_segments
from spectrum.models.weights import WeightsError, load_keras_weights
from tests.models import of_keras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's, on numpy 2

SMALL = {"width": 0.1, "image_size": 71, "num_classes": 5, "depth": 1}


def buffers(model):
    return sum(b.numel() for name, b in model.named_buffers() if not name.endswith("num_batches_tracked"))


# Counts of the paper and of the reference implementations


def test_the_papers_network_has_the_papers_parameters():
    model = build_model("xception", image_size=299, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 22_855_952
    assert buffers(model) == 54_528
    assert measure_cost(model, (3, 299, 299)).macs == 8_357_403_496


@pytest.mark.medium
@pytest.mark.parametrize(
    ("segments", "params", "macs"),
    [
        (1, 183.6e6, 71.4e9),
        (3, 76.3e6, 29.3e9),  # none of the widths is divisible by 3
        (4, 62.9e6, 24.0e9),
        (32, 27.7e6, 10.2e9),
        (104, 24.2e6, 8.84e9),  # clamped at the layer of 64 channels
    ],
)
def test_a_sweep_of_segments_costs_what_it_should(segments, params, macs):
    model = build_model("xception", order="spatial_first", segments=segments, image_size=299, num_classes=1000)
    cost = measure_cost(model, (3, 299, 299))
    assert cost.params == pytest.approx(params, rel=0.002)
    assert cost.macs == pytest.approx(macs, rel=0.003)


@pytest.mark.parametrize(("segments", "params"), [("per_channel", 22_873_808), (1, 221_328_776)])
def test_the_1x1_first_is_not_neutral(segments, params):
    model = build_model("xception", segments=segments, order="pointwise_first", image_size=299, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == params


def test_it_has_36_convolutions_in_14_modules():
    model = build_model("xception", order="spatial_first", image_size=299)
    separable = [m for m in model.modules() if isinstance(m, SegmentedConv2d)]
    skips = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and name.endswith("skip")]
    stem = [m for m in model.stem if isinstance(m, nn.Conv2d)]
    assert len(separable) + len(stem) == 36
    assert len(skips) == 4
    assert realised_segments(model)[:3] == [64, 128, 128]
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


# What can be chosen


def test_fully_connected_layers_and_dropout_stand_before_the_logistic_regression():
    model = build_model("xception", **SMALL, hidden=(40, 30), dropout=0.5)
    assert [type(m).__name__ for m in model.classifier] == [
        "AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip
    assert [m.out_features for m in model.classifier if isinstance(m, nn.Linear)] == [40, 30, 5]


def test_without_residuals_only_the_skips_go():
    whole, without = (build_model("xception", **SMALL, residual=residual) for residual in (True, False))
    gone = set(whole.state_dict()) - set(without.state_dict())
    assert gone
    assert all("skip" in name for name in gone)
    x = torch.randn(2, 3, 71, 71)
    assert without(x).shape == (2, 5)


def test_padding_and_norm_can_be_those_of_torch():
    model = build_model("xception", **SMALL, padding="torch", norm_eps=1e-5, norm_momentum=0.1)
    assert {m.padding for m in model.modules() if isinstance(m, PaddedMaxPool2d)} == {"torch"}
    assert {(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-5, 0.1)}
    same = build_model("xception", **SMALL, norm_eps=1e-5, norm_momentum=0.1)
    same.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 75, 75)  # 37 and 18 pixels come after 37, where the two paddings differ
    assert not torch.allclose(model.eval()(x), same.eval()(x))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 64}, "image_size=64: xception needs at least 71 pixels"),
        ({"widths": (8, 8)}, "expected 8 stage widths"),
        ({"downsampling": "stride"}, "downsampling: the architecture 'xception' does not use it"),
    ],
)
def test_what_cannot_be_built_says_why(options, says):
    with pytest.raises(ValueError, match=says):
        build_model("xception", **{"image_size": 71} | options)


def test_a_family_refuses_what_it_would_ignore():
    with pytest.raises(ValueError, match="padding: the architecture 'probe' does not use it"):
        build_model("probe", padding="torch")


# Pooling


def padded_by_hand(x, before):
    """3×3 windows with stride 2, the first of which begins so many pixels before the image."""
    height, width = x.shape[-2:]
    rows = []
    for top in range(-before, 2 * -(-height // 2) - before, 2):
        cells = []
        for left in range(-before, 2 * -(-width // 2) - before, 2):
            window = x[..., max(top, 0) : top + 3, max(left, 0) : left + 3]
            cells.append(window.amax(dim=(-2, -1)))
        rows.append(torch.stack(cells, -1))
    return torch.stack(rows, -2)


@pytest.mark.parametrize("side", [7, 8, 37, 74])
def test_the_two_paddings_are_what_they_say(side):
    x = torch.randn(2, 3, side, side, dtype=torch.float64) - 5  # zeros would win, if they took part
    assert_close(PaddedMaxPool2d(3, 2, padding="torch")(x), padded_by_hand(x, 1))
    assert_close(PaddedMaxPool2d(3, 2, padding="tf_same")(x), padded_by_hand(x, side % 2))


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
@pytest.mark.parametrize("stride", [2, 3])
def test_pools_see_the_same_windows_as_on_a_padded_copy(kernel_size, stride):
    for height in range(kernel_size, 14):
        x = torch.randn(2, 3, height, 27 - height)
        padded = pad_same(x, (kernel_size, kernel_size), (stride, stride), value=float("-inf"))
        pool = PaddedMaxPool2d(kernel_size, stride, padding="tf_same")
        assert torch.equal(pool(x), torch.nn.functional.max_pool2d(padded, kernel_size, stride))


# Keras


@pytest.fixture(scope="module")
def at_71_pixels(keras, tmp_path_factory):
    """The network, and the folder of its weights in both layouts."""
    model = of_keras.network_of(keras, "Xception", 71)
    return model, of_keras.write(model, tmp_path_factory.mktemp("keras"))


@pytest.mark.medium
@pytest.mark.parametrize("layout", ["new.weights.h5", "old.h5"])
def test_keras_gives_the_same_logits_at_71_pixels(at_71_pixels, layout):
    model, folder = at_71_pixels
    of_keras.assert_same_logits(model, "xception", 71, folder / layout)


@pytest.mark.medium
def test_keras_gives_the_same_logits_at_299_pixels(keras, tmp_path):
    model = of_keras.network_of(keras, "Xception", 299)
    of_keras.assert_same_logits(model, "xception", 299, of_keras.write(model, tmp_path) / "new.weights.h5")


@pytest.mark.medium
def test_a_file_of_another_network_is_refused_with_the_first_layers_that_differ(at_71_pixels):
    _, folder = at_71_pixels
    net = build_model("xception", order="spatial_first", image_size=71, width=0.5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first = r"block1_conv1 \(stem.0 here\): \(32, 3, 3, 3\) in the file, \(16, 3, 3, 3\)"
    with pytest.raises(WeightsError, match=first):
        load_keras_weights(net, folder / "old.h5")
    with pytest.raises(WeightsError, match="order='spatial_first'"):
        load_keras_weights(build_model("xception", image_size=71, order="pointwise_first"), folder / "old.h5")
    with pytest.raises(WeightsError, match="order='spatial_first'"):
        load_keras_weights(
            build_model("xception", image_size=71, order="spatial_first", activation="relu"), folder / "old.h5"
        )
    with pytest.raises(WeightsError, match="separable_conv2d: 34 layers in the file, 31 in the network"):
        load_keras_weights(build_model("xception", image_size=71, order="spatial_first", depth=7), folder / "old.h5")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    pytest.importorskip("h5py")
    net = build_model("xception", order="spatial_first", **SMALL)
    (tmp_path / "junk.h5").write_bytes(b"junk")
    for name, why in (("junk.h5", "is not a file of Keras weights"), ("none.h5", "no such file")):
        with pytest.raises(WeightsError, match=f"{name}: {why}"):
            load_keras_weights(net, tmp_path / name)

"""Inception: the paper's figures are one function, and Inception V3 is that of Keras."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spectrum import SegmentedConv2d, build_model, measure_cost
from spectrum.models.inception import InceptionModule
from tests.models import of_keras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's, on numpy 2


def outputs_and_gradients(module, x, weights):
    """What a module gives, and the gradients of a fixed sum of it by input and by weights."""
    x = x.clone().requires_grad_()
    y = module(x)
    scale = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * scale).sum(), [x, *weights(module)])]


def towers_of(simplified):
    return [weight for branch in simplified.branches for weight in (branch[0].weight, branch[1].weight)]


# Figures 1 to 4


@pytest.mark.parametrize(("channels", "segments"), [(12, 3), (13, 3), (16, 4), (10, (5, 3, 2)), (8, 1)])
def test_figure_2_and_figure_3_are_one_function(channels, segments):
    simplified = InceptionModule(6, channels, form="simplified", segments=segments).double()
    whole = InceptionModule(6, channels, form="segments", segments=segments).double()
    whole.load_towers(simplified)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)

    y, dx, *by_tower = outputs_and_gradients(simplified, x, towers_of)
    again, dx_again, *by_weight = outputs_and_gradients(whole, x, lambda module: module.parameters())
    assert_close(again, y)
    assert_close(dx_again, dx)
    pointwise = torch.cat([weight.flatten() for weight in by_tower[::2]])
    spatial = torch.cat([weight.flatten() for weight in by_tower[1::2]])
    named = dict(zip([name for name, _ in whole.named_parameters()], by_weight, strict=True))
    assert_close(torch.cat([g.flatten() for n, g in named.items() if "pointwise" in n]), pointwise)
    assert_close(torch.cat([g.flatten() for n, g in named.items() if "spatial" in n]), spatial)


def test_three_segments_are_three_towers_that_know_nothing_of_each_other():
    simplified = InceptionModule(6, 12, form="simplified", segments=3).double()
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    apart = [branch[1](branch[0](x)) for branch in simplified.branches]
    assert_close(simplified(x), torch.cat(apart, dim=1))


def test_figure_4_is_one_segment_a_channel_and_a_depthwise_convolution_after_a_1x1():
    extreme = InceptionModule(6, 9, form="extreme").double()
    segments = InceptionModule(6, 9, form="segments", segments=9).double()
    segments.load_state_dict(extreme.state_dict())
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    whole = [outputs_and_gradients(module, x, lambda m: m.parameters()) for module in (extreme, segments)]
    for one, other in zip(*whole, strict=True):
        assert_close(one, other)
    pointwise, depthwise = nn.Conv2d(6, 9, 1, bias=False), nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False)
    pointwise.weight, depthwise.weight = extreme.operation.pointwise.weights[0], extreme.operation.spatial.weights[0]
    assert_close(depthwise(pointwise(x)), extreme(x))


def test_the_canonical_module_without_its_pool_1x1_and_double_branch_is_the_simplified_one():
    canonical = InceptionModule(6, 16).double()
    simplified = InceptionModule(6, 4, form="simplified", segments=1).double()
    simplified.branches[0].load_state_dict(canonical.branches[1].state_dict())
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    assert_close(canonical(x)[:, 4:8], simplified(x))


def test_the_canonical_module_is_its_figure():
    module = InceptionModule(6, 18)
    kinds = [[(type(m).__name__, getattr(m, "kernel_size", None)) for m in b.modules() if not list(m.children())]
             for b in module.branches]  # fmt: skip
    one, three, pool = ("Conv2d", (1, 1)), ("Conv2d", (3, 3)), ("AvgPool2d", 3)
    assert kinds == [[one], [one, three], [one, three, three], [pool, one]]
    assert module(torch.randn(2, 6, 7, 7)).shape == (2, 18, 7, 7)


def test_weights_go_only_into_a_form_that_has_their_segments():
    simplified = InceptionModule(6, 12, form="simplified", segments=3)
    for other in (InceptionModule(6, 12, form="segments", segments=4), InceptionModule(6, 12)):
        with pytest.raises(ValueError, match="of the same segments"):
            other.load_towers(simplified)
    with pytest.raises(ValueError, match="form='extrem': unknown; try 'canonical'"):
        InceptionModule(6, 12, form="extrem")


@pytest.mark.parametrize("form", ["canonical", "simplified", "segments", "extreme"])
def test_the_small_network_is_made_of_one_form(form):
    asked = {} if form in ("canonical", "extreme") else {"segments": 3}
    model = build_model("inception", form=form, image_size=12, width=0.25, **asked)
    modules = [m for m in model.modules() if isinstance(m, InceptionModule)]
    assert {m.form for m in modules} == {form}
    assert len(modules) == 6
    assert model(torch.randn(2, 3, 12, 12)).shape == (2, 10)


@pytest.mark.parametrize("form", ["canonical", "extreme"])
@pytest.mark.parametrize("asked", [{"segments": 3}, {"segment_width": 2}, {"stage_segments": (1, 2, 3)}])
def test_a_form_with_segments_of_its_own_takes_no_others(form, asked):
    with pytest.raises(ValueError, match=f"{next(iter(asked))}: form = '{form}' fixes the segments; leave it out"):
        build_model("inception", form=form, **asked)


# Inception V3


def test_inception_v3_has_its_published_parameters():
    with torch.device("meta"):
        plain = build_model("inception_v3", image_size=299, num_classes=1000)
        tower = build_model("inception_v3", image_size=299, num_classes=1000, auxiliary=True)
    buffers = [b.numel() for name, b in plain.named_buffers() if not name.endswith("num_batches_tracked")]
    assert sum(p.numel() for p in plain.parameters()) == 23_834_568
    assert sum(buffers) == 34_432
    assert sum(p.numel() for p in tower.parameters()) == 27_161_264
    assert measure_cost(plain, (3, 299, 299)).macs == pytest.approx(5.7e9, rel=0.01)
    assert not [m for m in plain.modules() if isinstance(m, SegmentedConv2d)]


@pytest.mark.medium
def test_the_auxiliary_tower_speaks_in_training_only():
    model = build_model("inception_v3", image_size=299, auxiliary=True)
    x = torch.randn(2, 3, 299, 299)
    logits, others = model(x)
    assert logits.shape == others.shape == (2, 10)
    assert model.eval()(x).shape == (2, 10)


def test_averages_count_padding_in_as_torch_does_or_not_as_tensorflow_does():
    counted = {
        padding: {m.count_include_pad for m in build_model("inception_v3", image_size=75, padding=padding).modules()
                  if isinstance(m, nn.AvgPool2d)}
        for padding in ("torch", "tf_same", None)
    }  # fmt: skip
    assert counted == {"torch": {True}, "tf_same": {False}, None: {False}}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 74}, "inception_v3 needs at least 75 pixels"),
        ({"image_size": 298, "auxiliary": True}, "inception_v3 needs at least 299 pixels"),
        ({"image_size": 75, "segments": 4}, "segments: the architecture 'inception_v3' does not use it"),
    ],
)
def test_what_cannot_be_built_says_why(options, says):
    with pytest.raises(ValueError, match=says):
        build_model("inception_v3", **options)


@pytest.mark.medium
@pytest.mark.parametrize("size", [75, 299])
def test_keras_gives_the_same_logits(keras, size, tmp_path):
    model = of_keras.network_of(keras, "InceptionV3", size)
    folder = of_keras.write(model, tmp_path)
    for layout in ("new.weights.h5", "old.h5"):
        of_keras.assert_same_logits(model, "inception_v3", size, folder / layout)

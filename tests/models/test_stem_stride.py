"""The stride of the first convolution: one network for small and for large images."""

from math import ceil

import pytest
import torch

from spectrum import build_model, measure_cost
from spectrum.design.effects import check_effects
from spectrum.design.run import RunConfig
from spectrum.design.study_file import parse_study
from spectrum.models import unused_by

SMALL = {
    "mobilenet_v1": {"width": 0.1, "depth": 1},
    "probe": {"width": 0.25},
    "resnext": {"width": 0.05, "depth": 1},
    "resnext_small": {"width": 0.25, "depth": 1},
    "xception": {"width": 0.05, "depth": 1},
}
LEAST = {"mobilenet_v1": 16, "probe": 4, "resnext": 16, "resnext_small": 4, "xception": 20}  # pixels, at a stride of 1


def stem_of(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize(("side", "stride"), [(32, 1), (80, 2), (160, 4)])
def test_the_first_convolution_has_the_stride_and_the_rest_is_the_same(family, side, stride):
    torch.manual_seed(0)
    model = build_model(family, image_size=side, stem_stride=stride, **SMALL[family]).eval()
    torch.manual_seed(0)
    other = build_model(family, image_size=96, **SMALL[family])
    for one, two in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert one[0] == two[0]
        assert torch.equal(one[1], two[1])
    shapes = []
    stem_of(model).register_forward_hook(lambda module, args, output: shapes.append(output.shape[-1]))
    assert model(torch.randn(2, 3, side, side)).shape == (2, 10)
    kernel, padding = stem_of(model).kernel_size[0], stem_of(model).padding[0]
    assert shapes == [(side + 2 * padding - kernel) // stride + 1]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_probe_counts_as_its_stride_says(stride):
    side, widths = 24, (8, 16, 32)
    pixels = ceil(side / stride)
    macs = 9 * 3 * widths[0] * pixels**2
    for before, after in zip((widths[0], *widths), widths, strict=False):
        macs += pixels**2 * (before * after + after * after + 2 * 9 * after * after)
        macs += pixels**2 * before * after if before != after else 0
        pixels = ceil(pixels / 2)
    model = build_model("probe", widths=widths, segments=1, image_size=side, stem_stride=stride)
    assert measure_cost(model, (3, side, side)).macs == macs + widths[-1] * 10


@pytest.mark.parametrize("family", sorted(SMALL.keys() - {"xception"}))  # whose first convolutions are not padded
def test_twice_the_stride_on_images_of_twice_the_side_costs_the_same_after_the_stem(family):
    macs = []
    for stride in (1, 2):
        model = build_model(family, image_size=32 * stride, stem_stride=stride, segments=2, **SMALL[family])
        macs.append(measure_cost(model, (3, 32 * stride, 32 * stride)).macs)
    assert macs[0] == macs[1]


@pytest.mark.parametrize("family", SMALL)
def test_left_open_it_is_the_architectures_own(family):
    outputs = []
    for options in ({}, {"stem_stride": None}, {"stem_stride": 2}):
        torch.manual_seed(1)
        model = build_model(family, image_size=80, **options, **SMALL[family]).eval()
        outputs.append(model(torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert (
        RunConfig(model=family).id
        == RunConfig(model=family, stem_stride=None).id
        != RunConfig(model=family, stem_stride=2).id
    )


@pytest.mark.parametrize(("family", "least"), LEAST.items())
def test_images_that_are_too_small_for_it_are_refused(family, least):
    for stride in (1, 2):
        smallest = 17 * stride + 3 if family == "xception" else least * stride
        model = build_model(family, image_size=smallest, stem_stride=stride, **SMALL[family]).eval()
        assert model(torch.randn(1, 3, smallest, smallest)).shape == (1, 10)
        with pytest.raises(ValueError, match=f"image_size={smallest - 1}: "):
            build_model(family, image_size=smallest - 1, stem_stride=stride, **SMALL[family])


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_what_is_no_stride_is_refused_in_a_file_and_in_python(value):
    with pytest.raises(ValueError, match=r"^stem_stride: "):
        build_model("probe", stem_stride=value)
    with pytest.raises(ValueError, match=r"^base\.stem_stride: "):
        parse_study({"base": {"stem_stride": value}, "axes": {"seed": [0]}}, "x")


@pytest.mark.parametrize("family", ["vgg", "inception", "inception_v3"])
def test_architectures_without_such_a_stem_refuse_it(family):
    assert "stem_stride" in unused_by(family)
    with pytest.raises(ValueError, match=r"stem_stride: .* does not use it"):
        build_model(family, stem_stride=2, image_size=96)
    with pytest.raises(ValueError, match=r"stem_stride: .* does not use it"):
        check_effects(parse_study({"base": {"model": family, "stem_stride": 2}, "axes": {"seed": [0]}}, "x"))

"""MobileNet and BSConv-U's swap of the 1×1 and the 3×3, compared with the package of its authors."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spectrum import build_model

published = pytest.importorskip("bsconv.pytorch")

SWAPPED = {"order": "pointwise_first", "activation": "none", "norm": False}
NAMES = {"mobilenetv1_w1": {}, "mobilenetv1_w1_bsconvu": SWAPPED}


def as_it_runs(named, *, pointwise_first):
    """Named tensors of our network in the order in which the convolutions run; a module lists its 3×3 first."""
    named = list(named)
    if pointwise_first:
        for at, (name, _) in enumerate(tuple(named)):
            if "spatial" in name:
                named[at], named[at + 1] = named[at + 1], named[at]
    return [tensor for _, tensor in named]


@pytest.mark.medium
@pytest.mark.parametrize(("name", "options"), NAMES.items(), ids=NAMES.keys())
def test_it_is_the_published_network(name, options):
    torch.manual_seed(0)
    theirs = published.get_model(name, num_classes=7).double()
    theirs.backbone.data_bn = nn.Identity()  # of the images themselves, which ours leaves to the data
    as_theirs = {"image_size": 64, "num_classes": 7, "norm_eps": 1e-5, "norm_momentum": 0.1}
    ours = build_model("mobilenet_v1", **as_theirs, **options).double()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.bias.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
        mine = as_it_runs(ours.state_dict().items(), pointwise_first=options == SWAPPED)
        for tensor, other in zip(mine, theirs.state_dict().values(), strict=True):
            tensor.copy_(other.reshape(tensor.shape))

    x_nchw = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for training in (False, True):
        logits = [model.train(training)(x_nchw) for model in (ours, theirs)]
        assert_close(*logits)
        for model, y_nk in zip((ours, theirs), logits, strict=True):
            model.zero_grad()
            y_nk.square().sum().backward()
        mine = [p.grad for p in as_it_runs(ours.named_parameters(), pointwise_first=options == SWAPPED)]
        assert_close(mine, [p.grad.reshape(m.shape) for p, m in zip(theirs.parameters(), mine, strict=True)])


@pytest.mark.parametrize(("name", "options"), NAMES.items(), ids=NAMES.keys())
def test_it_has_the_published_parameters(name, options):
    theirs = published.get_model(name, num_classes=1000)
    with torch.device("meta"):
        ours = build_model("mobilenet_v1", image_size=224, num_classes=1000, **options)
    of_the_images = 6  # weights of their norm of the images
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - of_the_images

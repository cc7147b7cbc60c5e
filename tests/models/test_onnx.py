"""Networks exported by torch's own exporter to ONNX, run by onnx's reference evaluator, against the eager logits."""

import importlib.util

import pytest
import torch
from torch import nn

from spectrum import SegmentedConv2d, load_model, run_study
from spectrum.data.images import images_of
from spectrum.study.store import read_rows
from tests.runs import tiny

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnx and onnxscript"),
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),  # of the exporter itself
]


def exported(model, x):
    """What the exported network gives for these inputs, exported with another number of examples."""
    from onnx.reference import ReferenceEvaluator

    program = torch.onnx.export(
        model, (x[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    (name,) = (one.name for one in program.model.graph.inputs)
    return torch.from_numpy(ReferenceEvaluator(program.model_proto).run(None, {name: x.numpy()})[0])


def test_every_kind_of_segmented_convolution_is_exported_as_it_computes():
    torch.manual_seed(0)
    model = nn.Sequential(
        SegmentedConv2d(3, 12, segments=1, bias=True),
        SegmentedConv2d(12, 16, segments=3, norm=True, activation="relu"),
        SegmentedConv2d(16, 16, segments="per_channel", order="spatial_first", stride=2, padding="tf_same"),
        SegmentedConv2d(16, 16, segments=(8, 5, 3), pointwise_segments=4, shuffle=True, dilation=2),
        SegmentedConv2d(16, 8, 5, segments=2, mid_channels=6, activation="silu"),
        SegmentedConv2d(8, 4, segments=4, pointwise=False),
    )
    model[1].between[0].running_mean.normal_()
    model.eval()
    x_nchw = torch.randn(3, 3, 9, 11)
    torch.testing.assert_close(exported(model, x_nchw), model(x_nchw).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_trained_network_is_exported_with_its_normalisation(study_folder):
    run_study(tiny(axes={"segments": [3]}), "out", workers=1, device="cpu", keep_weights=True)
    (row,) = read_rows(study_folder / "out")
    model = load_model(row["id"], "out")
    pixels = images_of(model.run).test_x[:5].float()
    logits = model(pixels).detach()
    torch.testing.assert_close(exported(model, pixels), logits, rtol=1e-4, atol=1e-5)

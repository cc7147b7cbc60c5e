"""Weights as files of safetensors."""

import pytest
import torch

from spectrum import build_model
from spectrum.models.weights import WeightsError, load_weights, save_weights

SMALL = {"width": 0.25, "image_size": 12, "in_channels": 1}


def test_what_is_saved_is_loaded(tmp_path):
    model, other = (build_model("probe", **SMALL, segments=3, activation="relu", norm=True) for _ in range(2))
    model, other = (one.to(memory_format=torch.channels_last) for one in (model, other))
    model(torch.randn(4, 1, 12, 12))  # buffers of BN move
    save_weights(model, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_file_of_another_network_is_refused_and_changes_nothing(tmp_path):
    model, other = build_model("probe", **SMALL, segments=1), build_model("probe", **SMALL, segments=3)
    save_weights(model, tmp_path / "a.safetensors")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(WeightsError, match="does not fit the network") as refused:
        load_weights(other, tmp_path / "a.safetensors")
    assert "spatial.weights.1: not in the file" in str(refused.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04\x95cos\nsystem\n."])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(build_model("probe", **SMALL), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(build_model("probe", **SMALL), tmp_path / "none.safetensors")

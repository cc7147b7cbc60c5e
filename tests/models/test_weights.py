"""Weights as files of safetensors."""

import zipfile

import pytest
import torch

from spectrum import build_model
from spectrum.models.weights import WeightsError, load_keras_weights, load_weights, save_weights

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


# Files of Keras that hold no weights alone, as Keras writes them


def keras_archive(file):
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")


def other_archive(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "no model")


def whole_hdf5(file):
    import h5py

    with h5py.File(file, "w") as whole:
        whole.attrs["model_config"] = "{}"
        whole.create_group("model_weights").attrs["layer_names"] = ["conv2d"]


def other_hdf5(file):
    import h5py

    with h5py.File(file, "w") as other:
        other["x"] = 1


def convolution_with_bias(file):
    import h5py

    with h5py.File(file, "w") as weights:
        stored = weights.create_group("layers/conv2d/vars")
        stored["0"], stored["1"] = torch.zeros(3, 3, 3, 4).numpy(), torch.zeros(4).numpy()


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("model.keras", keras_archive, "is a complete Keras model, not a file of weights; .*save_weights"),
        ("renamed.weights.h5", keras_archive, "is a complete Keras model, not a file of weights; .*save_weights"),
        ("model.h5", whole_hdf5, "is a complete Keras model, not a file of weights; .*save_weights"),
        ("a.zip", other_archive, "is not a file of Keras weights: .*save_weights"),
        ("a.h5", other_hdf5, "is not a file of Keras weights: it has no layers; .*save_weights"),
        ("a.weights.h5", convolution_with_bias, r"does not fit the network: layer conv2d .*\(3, 3, 3, 4\), \(4,\)"),
        ("folder.h5", lambda file: file.mkdir(), "is not a file of Keras weights: it is a folder"),
        ("none.h5", lambda file: None, "no such file"),
    ],
)
def test_what_is_said_of_a_file_of_keras_without_weights_alone_is_true(tmp_path, name, write, says):
    pytest.importorskip("h5py")
    write(tmp_path / name)
    model = build_model("xception", order="spatial_first", image_size=71, width=0.05, depth=1)
    with pytest.raises(WeightsError, match=says):
        load_keras_weights(model, tmp_path / name)

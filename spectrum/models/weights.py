"""Files of weights: safetensors, and files of Keras.

save_weights(model, "xception.safetensors")        load_weights(model, "xception.safetensors")
load_keras_weights(model, "xception.weights.h5")   written by keras.Model.save_weights, or in the older layout
                                                   of the published ImageNet weights
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from spectrum._files import write_whole
from spectrum.conv.segmented import SegmentedConv2d

SHOWN = 5  # mismatches that a message lists
REMEDY = 'write it in Keras by model.save_weights("name.weights.h5")'
KINDS = {  # ranks of a layer's weights in a file: its kind in Keras
    (4,): "conv2d",
    (4, 4): "separable_conv2d",
    (1, 1, 1, 1): "batch_normalization",
    (1, 1, 1): "batch_normalization",  # without a scale
    (2, 1): "dense",
}


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit a network."""


class UnknownLayer(ValueError):
    """A layer of a kind that no network of this package has."""


def save_weights(model: nn.Module, file: str | Path) -> None:
    """Write a network's parameters and buffers, under the names of its state_dict.

    Args:
        model: any network.
        file: file to write; by convention its name ends in .safetensors.

    Raises OSError if it cannot be written; an old file is then unchanged.
    """
    write_whole(file, weights_as_bytes(model))


def weights_as_bytes(model: nn.Module) -> bytes:
    """The content of a file of `save_weights`. A tensor that several layers share is written for each of them."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()})


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load a file of `save_weights` into a network of the same architecture.

    Args:
        model: network that receives the weights.
        file: file to read.

    Nothing in the file is ever executed. Raises WeightsError if it cannot be read or does not fit; the network then
    keeps its weights.
    """
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file}: cannot be read: {error}") from None
    have = model.state_dict()
    faults = [f"{name}: not in the file" for name in have if name not in found]
    faults += [f"{name}: not in the network" for name in found if name not in have]
    faults += [
        f"{name}: {_shape(found[name])} in the file, {_shape(have[name])} in the network"
        for name in have
        if name in found and found[name].shape != have[name].shape
    ]
    _refuse(file, faults)
    model.load_state_dict(found)


@dataclass(frozen=True)
class _Layer:
    """A layer with weights: its kind in Keras, its name and its weights."""

    kind: str
    name: str
    weights: tuple[Any, ...]  # tensors of a network, or arrays of a file


def load_keras_weights(model: nn.Module, file: str | Path) -> None:
    """Load the weights of the same network in Keras.

    Args:
        model: network of an architecture that Keras has too: "xception" with one segment per channel, or
            "inception_v3".
        file: a .weights.h5 of Keras 3, or an .h5 in the older layout, such as the published ImageNet weights.

    Layers are matched by kind, in the order in which they were made. Needs h5py, which is installed with Keras. A file
    of `keras.Model.save` (.keras or .h5) is refused: write one with Keras' `save_weights`. Raises WeightsError if the
    file cannot be read or does not fit, naming the first layers that do not; the network then keeps its weights.
    """
    ours = _in_kerass_order(model)
    theirs = _layers_of(Path(file))
    faults = []
    for kind in dict.fromkeys(KINDS.values()):
        have, found = ([layer for layer in layers if layer.kind == kind] for layers in (ours, theirs))
        if len(have) != len(found):
            faults.append(f"{kind}: {len(found)} layers in the file, {len(have)} in the network")
        for one, other in zip(have, found, strict=False):
            for tensor, array in zip(one.weights, other.weights, strict=True):
                if tensor.shape != array.shape:
                    shapes = f"{_shape(array)} in the file, {_shape(tensor)} in the network"
                    faults.append(f"{other.name} ({one.name} here): {shapes}")
    _refuse(file, faults)
    with torch.no_grad():
        for kind in dict.fromkeys(KINDS.values()):
            have, found = ([layer for layer in layers if layer.kind == kind] for layers in (ours, theirs))
            for one, other in zip(have, found, strict=True):
                for tensor, array in zip(one.weights, other.weights, strict=True):
                    tensor.copy_(torch.from_numpy(array))


def _in_kerass_order(model: nn.Module) -> list[_Layer]:
    """The network's layers in the order of Keras: as they run, with a skip connection after the body of its block."""
    layers: list[_Layer] = []
    for name, module in model.named_modules():
        if isinstance(module, SegmentedConv2d):
            _check_separable(name, module)
            assert module.pointwise is not None
            layers.append(_Layer("separable_conv2d", name, (module.spatial.weights[0], module.pointwise.weights[0])))
        elif isinstance(module, nn.Conv2d):
            layers.append(_Layer("conv2d", name, (module.weight,)))
        elif isinstance(module, nn.BatchNorm2d):
            weights = (module.weight, module.bias, module.running_mean, module.running_var)
            layers.append(_Layer("batch_normalization", name, weights))
        elif isinstance(module, nn.Linear):
            layers.append(_Layer("dense", name, (module.weight, module.bias)))
    return layers


def _check_separable(name: str, module: SegmentedConv2d) -> None:
    """Raise WeightsError for an operation that is not a separable convolution."""
    plain = all(isinstance(part, nn.Identity | nn.Sequential) for part in module.between.modules())
    dense = module.pointwise is not None and len(module.pointwise.weights) == 1 and module.shuffle is None
    if not (dense and plain and module.order == "spatial_first" and set(module.segment_sizes) == {1}):
        raise WeightsError(
            f"{name}: is not a separable convolution of Keras; build the network with order='spatial_first', one "
            "segment per channel, and no norm or activation before the 1×1"
        )


def _layers_of(path: Path) -> list[_Layer]:
    """The layers with weights in a file of Keras, in the file's order."""
    try:
        import h5py
    except ImportError:
        raise WeightsError('h5py is not installed. In a checkout of the repository: pip install ".[keras]"') from None

    if _is_keras_archive(path):
        raise WeightsError(f"{path}: is a complete Keras model, not a file of weights; {REMEDY}")
    try:
        with h5py.File(path) as file:
            if "model_weights" in file or "model_config" in file.attrs:
                raise WeightsError(f"{path}: is a complete Keras model, not a file of weights; {REMEDY}")
            if "layer_names" not in file.attrs and "layers" not in file:
                raise ValueError("it has no layers")
            return _as_made(list(_older(file) if "layer_names" in file.attrs else _newer(file)))
    except WeightsError:
        raise
    except UnknownLayer as error:
        raise WeightsError(f"{path}: does not fit the network: {error}") from None
    except (OSError, KeyError, ValueError, IndexError, AttributeError) as error:
        if not path.exists():
            raise WeightsError(f"{path}: no such file") from None
        reason = "it is a folder" if path.is_dir() else error
        raise WeightsError(f"{path}: is not a file of Keras weights: {reason}; {REMEDY}") from None


def _is_keras_archive(path: Path) -> bool:
    """Whether it is a .keras file, which is a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "model.weights.h5" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _older(file: Any) -> Iterator[_Layer]:
    """The layers of the older layout: one group per layer; attributes list layers and weights in order."""
    for name in map(_text, file.attrs["layer_names"]):
        weights = tuple(np.asarray(file[name][_text(weight)]) for weight in file[name].attrs["weight_names"])
        if weights:
            yield _layer_of(name, weights)


def _newer(file: Any) -> Iterator[_Layer]:
    """The layers of the newer layout: one group per layer, named by class and number, with numbered weights."""
    for name in sorted(file["layers"], key=_numbered):
        stored = file["layers"][name].get("vars", {})
        weights = tuple(np.asarray(stored[key]) for key in sorted(stored, key=int))
        if weights:
            yield _layer_of(_text(stored.attrs.get("name", name)), weights)


def _as_made(layers: list[_Layer]) -> list[_Layer]:
    """Layers in the order in which they were made: by number if Keras numbered all of a kind, else as listed.

    Keras lists layers by their distance from the output, which mixes branches of different lengths.
    """
    made: list[_Layer] = []
    for kind in dict.fromkeys(KINDS.values()):
        of_kind = [layer for layer in layers if layer.kind == kind]
        numbered = all(_numbered(layer.name)[0] == kind for layer in of_kind)
        made += sorted(of_kind, key=lambda layer: _numbered(layer.name)) if numbered else of_kind
    return made


def _layer_of(name: str, weights: Sequence[NDArray[Any]]) -> _Layer:
    """A layer with its weights in torch's layout."""
    kind = KINDS.get(tuple(weight.ndim for weight in weights))
    if kind is None:
        shapes = ", ".join(map(_shape, weights))
        raise UnknownLayer(
            f"layer {name} has weights of shapes {shapes}; the networks here have convolutions without bias, batch "
            "normalization, and dense layers with bias"
        )
    turned = [_as_torch(weight) for weight in weights]
    if kind == "batch_normalization" and len(turned) == 3:
        turned.insert(0, np.ones_like(turned[0]))
    if kind == "separable_conv2d":
        turned[0] = weights[0].transpose(2, 3, 0, 1)  # (h, w, C, 1) to (C, 1, h, w)
    return _Layer(kind, name, tuple(np.ascontiguousarray(weight) for weight in turned))


def _as_torch(array: NDArray[Any]) -> NDArray[Any]:
    """Transpose (h, w, in, out) to (out, in, h, w), and (in, out) to (out, in)."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _numbered(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    assert found is not None
    return found[1], int(found[2] or 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _shape(tensor: Tensor | NDArray[Any]) -> str:
    return str(tuple(tensor.shape))


def _refuse(file: str | Path, faults: Sequence[str]) -> None:
    if faults:
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise WeightsError("\n".join([f"{file}: does not fit the network", *faults[:SHOWN], *more]))

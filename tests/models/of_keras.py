"""Keras's networks, for the tests to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.testing import assert_close

from spectrum import build_model, load_keras_weights


def images(count: int, size: int, seed: int) -> torch.Tensor:
    """Noise at a scale that survives pooling."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


def network_of(keras: Any, family: str, size: int) -> Any:
    """Keras's network with the statistics of a batch, and all weights slightly off their initial values."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, family)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    rng = torch.Generator().manual_seed(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0  # the statistics become those of the batch
        shape = layer.beta.shape
        if layer.gamma is not None:
            layer.gamma.assign(0.7 + 0.6 * torch.rand(shape, generator=rng))
        layer.beta.assign(torch.randn(shape, generator=rng) / 4)
    with torch.no_grad():
        model(images(8, size, 2).permute(0, 2, 3, 1), training=True)
        for layer in norms:
            shape = layer.beta.shape
            layer.moving_mean.assign(layer.moving_mean.value + torch.randn(shape, generator=rng) / 20)
            layer.moving_variance.assign(layer.moving_variance.value * (0.8 + 0.4 * torch.rand(shape, generator=rng)))
    return model


def write(model: Any, folder: Path) -> Path:
    """Write its weights in both layouts, as Keras does: new.weights.h5 and old.h5."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    model.save_weights(folder / "new.weights.h5")
    with h5py.File(folder / "old.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return folder


def assert_same_logits(model: Any, family: str, size: int, file: Path) -> None:
    """A network of this package gives the same logits as Keras's, with the weights of the file."""
    net = build_model(family, image_size=size).eval()
    load_keras_weights(net, file)
    x = images(3, size, 1)
    with torch.no_grad():
        ours, theirs = net(x), model(x.permute(0, 2, 3, 1), training=False)
    assert (theirs[0] - theirs[1]).abs().max() > 0.05 * theirs.abs().max()  # logits depend on the image
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))

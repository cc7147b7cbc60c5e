"""Data sets as arrays, from a registered loader or an .npz file: checked, resized and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from spectrum.data.pixels import Array, DataError, Decoder, Resize
from spectrum.data.splits import About, Images, carve, make_images
from spectrum.design.own_data import Arrays, Loader

NAMES = ("train_x", "train_y", "test_x", "test_y", "classes")  # arrays of an .npz file
CARVED = "a fixed sixth of the training images, carved off, since there are no test images"


def registered_images(name: str, loader: Loader, image_size: int | None, resize: Resize) -> Images:
    """Load the images of a registered loader.

    Args:
        name: name of the data set.
        loader: loader registered under this name.
        image_size: side in pixels to resize to; None keeps the images.
        resize: as for `load_images`.

    Raises DataError for a loader that fails, and for invalid arrays: names the array, its value and what is expected.
    """
    try:
        arrays = loader()
    except Exception as error:  # a user's function may raise anything
        raise DataError(f"dataset={name!r}: its loader fails: {type(error).__name__}: {error}") from error
    if not isinstance(arrays, Arrays):
        raise DataError(f"dataset={name!r}: its loader gave {type(arrays).__name__}; return spectrum.Arrays(…)")
    read = f"arrays of {loader.__module__}.{getattr(loader, '__qualname__', 'a loader')}"
    return _images(name, arrays, read, "test_x of the loader", Decoder(image_size, resize))


def npz_images(name: str, image_size: int | None, resize: Resize) -> Images:
    """Load the images of an .npz file of numpy: train_x and train_y, and if it has them test_x, test_y and classes.

    Args:
        name: path of the file.
        image_size: side in pixels to resize to; None keeps the images.
        resize: as for `load_images`.

    Nothing in the file is executed. Raises DataError for a file that cannot be read, and for invalid arrays.
    """
    try:
        with Path(name).expanduser().open("rb") as opened:  # numpy leaves a damaged file open
            arrays = _read_npz(np.load(opened, allow_pickle=False))
    except FileNotFoundError:
        raise DataError(f"dataset={name!r}: no such file; give its path from the current folder") from None
    except DataError as error:
        raise DataError(f"dataset={name!r}: {error}") from None
    except Exception as error:  # a damaged archive raises any of many types
        raise DataError(f"dataset={name!r}: cannot be read: {error}; save arrays with numpy.savez") from error
    classes = arrays.pop("classes", np.array([], str))
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise DataError(f"dataset={name!r}: classes: {classes.dtype} of shape {classes.shape}; expected names")
    given = Arrays(**arrays, classes=tuple(classes.tolist()))
    return _images(name, given, "an .npz file", "test_x of the file", Decoder(image_size, resize))


def _read_npz(file: Any) -> dict[str, Array]:
    """The arrays of an opened file, by name. Raises DataError for other arrays than those of a data set."""
    if not isinstance(file, NpzFile):
        raise DataError("is one array; save train_x and train_y with numpy.savez")
    found = set(file.files)
    if not {"train_x", "train_y"} <= found <= set(NAMES):
        raise DataError(
            f"has the arrays {', '.join(sorted(found)) or 'none'}; expected train_x and train_y, and no others than "
            "test_x, test_y and classes"
        )
    return {array: file[array] for array in file.files}


def _images(name: str, arrays: Arrays, read: str, test_source: str, decoder: Decoder) -> Images:
    """Check, resize and split arrays; `read` and `test_source` say where the images and the test images are from."""
    if (arrays.test_x is None) != (arrays.test_y is None):
        raise DataError(f"dataset={name!r}: give both test_x and test_y, or neither")
    try:
        train = _checked("train", arrays.train_x, arrays.train_y)
        test = None if arrays.test_x is None else _checked("test", arrays.test_x, arrays.test_y)
        classes = _classes(arrays, train[1], None if test is None else test[1])
        height, width = train[0].shape[1:3]
        if height != width and decoder.image_size is None:
            raise DataError(f"train_x: images are {height}×{width}; set image_size to make them square")
        if test is not None and train[0].shape[1:] != test[0].shape[1:]:
            raise DataError(
                f"test_x: images of {_size(test[0])}, but train_x has {_size(train[0])}; give both one size"
            )
    except DataError as error:
        raise DataError(f"dataset={name!r}: {error}") from None
    about = About(read=read, classes=classes)
    train_x, train_y = _tensors(*train, decoder)
    if test is not None:
        return make_images(train_x, train_y, *_tensors(*test, decoder), _with_test(about, test_source))
    kept, carved = carve(train_y, 1 / 6)
    return make_images(train_x[kept], train_y[kept], train_x[carved], train_y[carved], _with_test(about, CARVED))


def _with_test(about: About, test_source: str) -> About:
    return About(read=about.read, classes=about.classes, test=test_source)


def _checked(split: str, x: Any, y: Any) -> tuple[Array, Array]:
    """Pixels (N, H, W, C) and labels (N,), as numpy arrays."""
    pixels, labels = _numpy(f"{split}_x", x), _numpy(f"{split}_y", y)
    if pixels.dtype != np.uint8:
        raise DataError(f"{split}_x: {pixels.dtype}; expected uint8, from 0 to 255")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise DataError(
            f"{split}_x: shape {tuple(np.shape(x))}; expected images, (N, H, W) or (N, H, W, C) with 1 or 3 channels"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{split}_y: {labels.dtype} of shape {labels.shape}; expected whole numbers of shape (N,)")
    if len(labels) != len(pixels):
        raise DataError(f"{split}_y: {len(labels):,} labels for {len(pixels):,} images")
    if labels.min() < 0:
        raise DataError(f"{split}_y: the label {labels.min()}; expected numbers from 0 up")
    return pixels, labels


def _numpy(name: str, value: Any) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise DataError(f"{name}: {type(value).__name__}; expected an array of numpy or torch")
    return value


def _classes(arrays: Arrays, train_y: Array, test_y: Array | None) -> tuple[str, ...]:
    """Names of the classes. Raises DataError if a label has no training image, or names and labels do not match."""
    found = set(np.unique(train_y).tolist())
    count = max(found) + 1
    if not isinstance(arrays.classes, tuple | list) or not all(isinstance(name, str) for name in arrays.classes):
        raise DataError(f"classes: {arrays.classes!r}; expected names, in the order of labels")
    if missing := sorted(set(range(count)) - found)[:3]:
        raise DataError(f"train_y: no image has the label {missing[0]}, though there are labels up to {count - 1}")
    if test_y is not None and (beyond := set(np.unique(test_y).tolist()) - found):
        raise DataError(f"test_y: the label {min(beyond)} has no training image")
    if count < 2:
        raise DataError("train_y: one class; expected two or more")
    if arrays.classes and len(arrays.classes) != count:
        raise DataError(f"classes: {len(arrays.classes)} names for {count} labels")
    return tuple(arrays.classes) or tuple(map(str, range(count)))


def _size(pixels: Array) -> str:
    height, width, channels = pixels.shape[1:]
    return f"{height}×{width} pixels and {channels} channel{'' if channels == 1 else 's'}"


def _tensors(pixels: Array, labels: Array, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Pixels, uint8 (N, C, H, W), resized if requested, and int64 labels."""
    if decoder.image_size is not None:
        pixels = np.stack([decoder.resized(one) for one in pixels])
    x_nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return x_nchw, torch.from_numpy(labels.astype(np.int64))

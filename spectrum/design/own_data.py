"""Your own data sets, by name: each is a function that returns arrays. Nothing here loads torch or images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectrum._registry import Registry, calling_module, check_maker
from spectrum.design.run import GAUSSIAN

HUB_IDS = {  # short names of data sets of the hub, which are also the names of their folders in $SPECTRUM_DATA
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
BUILT_IN = ("digits", *HUB_IDS, GAUSSIAN)


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set as arrays, of numpy or torch.

    Without test images, a fixed sixth of the training images, balanced by class, is held out for the test.
    """

    train_x: Any
    """Pixels, uint8 from 0 to 255: (N, H, W) in grey, or (N, H, W, C) with 1 or 3 channels."""
    train_y: Any
    """Labels, integers (N,) from 0 to classes − 1; each class has at least one image."""
    test_x: Any = None
    test_y: Any = None
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of labels; by default their numbers."""


Loader = Callable[[], Arrays]


# Built-in data sets are listed here only to reserve their names.
DATASETS: Registry[Loader | None] = Registry("dataset", dict.fromkeys(BUILT_IN))


def register_dataset(name: str, loader: Loader) -> None:
    """Add a data set of your own, for `dataset = NAME` in a study.

    Args:
        name: a new name. It has no slash and does not start with a dot, since these mark a hub id and a folder.
        loader: called without arguments, in every process that trains; returns `Arrays`. It is called for every run, so
            that changed images are never confused with those of an earlier run. Cache whatever is slow to make.

    Write the loader into a module and name that with `import` in the study's file or with --import, since worker
    processes import it. Rows record a hash of the pixels and labels. Raises ValueError for a name that is taken or
    invalid, and for a loader that cannot be called without arguments.

    >>> import numpy as np
    >>> def stripes():
    ...     labels = np.arange(120) % 2
    ...     pixels = np.zeros((120, 8, 8), np.uint8)
    ...     pixels[labels == 0, ::2], pixels[labels == 1, :, ::2] = 255, 255
    ...     return Arrays(pixels, labels, classes=("rows", "columns"))
    >>> register_dataset("stripes", stripes)
    >>> from spectrum.data.load import load_images
    >>> load_images("stripes").shape
    (1, 8, 8)
    """
    if not isinstance(name, str) or not name.strip() or "/" in name or name.startswith((".", "~")):
        raise ValueError(f"name={name!r}: expected a name for the data set, such as 'mine', without a slash")
    check_maker("loader", loader, "Arrays")
    DATASETS.add(name, loader, maker=loader, home=calling_module())


def list_datasets() -> list[str]:
    """Names of the registered data sets."""
    return DATASETS.own()


def loader_of(name: str) -> Loader | None:
    """Loader of a registered data set; None for any other name."""
    return DATASETS.get(name)

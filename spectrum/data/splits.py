"""A data set, its fixed splits, and the normalisation of its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spectrum.data.pixels import DataError, Pixels

NAMED_CLASSES = 12  # classes listed in the description of a data set; more are summarised
MOMENTS_OF = 2_000  # images for the mean and standard deviation of a data set that stays encoded

Normalisation = Literal["moments", "plus_minus_one"]


@dataclass(frozen=True)
class About:
    """The origin of images, and files left out, in words."""

    read: str = ""  # what was read: a folder of images, or columns of Parquet files
    classes: tuple[str, ...] = ()  # names, in the order of labels
    test: str = ""  # where the test images come from
    left_out: tuple[str, ...] = ()  # files that are not used, and why
    notes: tuple[str, ...] = ()  # other notes for the reader


@dataclass(frozen=True, eq=False)
class Images:
    """A data set. Pixels uint8 (N, C, H, W), in memory or encoded; labels int64 (N,) from 0 to classes − 1."""

    train_x: Pixels
    train_y: Tensor
    test_x: Pixels
    test_y: Tensor
    classes: int
    fingerprint: str  # 16 hex digits of a SHA-256 of pixels and labels; of the files' bytes, where they stay encoded
    about: About = About()

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Split:
    """The images of one run: training and validation images, and the normalisation."""

    train_x: Pixels
    train_y: Tensor
    validation_x: Pixels
    validation_y: Tensor
    mean: Tensor  # mean of pixels from 0 to 255, per channel
    std: Tensor

    def normalise(self, x_nchw: Tensor) -> Tensor:
        """Convert uint8 pixels to float32, subtract the mean and divide by the standard deviation."""
        return normalised(x_nchw, self.mean, self.std)


def normalised(x_nchw: Tensor, mean_c: Tensor, std_c: Tensor) -> Tensor:
    """Pixels from 0 to 255 as float32, less the mean and divided by the standard deviation of their channel."""
    mean, std = (t.to(x_nchw.device).view(1, -1, 1, 1) for t in (mean_c, std_c))
    return (x_nchw.float() - mean).div_(std)


def record(images: Images) -> dict[str, Any]:
    """The facts about a data set that plan.json records."""
    train, test = (y.bincount(minlength=images.classes).tolist() for y in (images.train_y, images.test_y))
    about = images.about
    return {
        "fingerprint": images.fingerprint,
        "shape": list(images.shape),
        "classes": list(about.classes) or list(map(str, range(images.classes))),
        "train_images": train,
        "test_images": test,
        "test": about.test,
        "read": about.read,
        "left_out": list(about.left_out),
        "notes": list(about.notes),
    }


def summarise(name: str, known: Mapping[str, Any]) -> list[str]:
    """Summarise a data set in a line of about 100 columns. The origin of test images, notes and files left out follow.

    Args:
        name: name of the data set.
        known: the result of `record`, with `used` as of `described` if known.
    """
    used = known.get("used", [])
    train = _span([train for train, _ in used]) if used else f"{sum(known['train_images']):,}"
    validation = f", {_span([held for _, held in used])} validation" if used else ""
    counts = f"{train} training{validation} and {sum(known['test_images']):,} test images"
    return [
        f"{name}: {len(known['classes']):,} classes · {_size(known)} · {counts}",
        f"test images: {known['test'] or 'unknown'}",
        *known["notes"],
        *(f"left out: {files}" for files in known["left_out"]),
    ]


def describe(name: str, known: Mapping[str, Any]) -> str:
    """Describe a data set completely: images by split and class, size, origin of test images, files left out.

    Args:
        name: name of the data set.
        known: the result of `record`, with `used` as of `described` if known.
    """
    parts = [
        f"{name}: {sum(known['train_images']):,} training and {sum(known['test_images']):,} test images",
        _class_counts(known["classes"], known["train_images"], known["test_images"]),
        *(f"a run trains on {train:,} and validates on {held:,} of them" for train, held in known.get("used", [])),
        _size(known),
        f"test images: {known['test'] or 'unknown'}",
        known["read"] or "arrays",
        *known["notes"],
        f"left out: {'; '.join(known['left_out']) or 'nothing'}",
    ]
    return " · ".join(parts)


def _size(known: Mapping[str, Any]) -> str:
    channels, height, width = known["shape"]
    return f"{height}×{width} pixels, {channels} channel{'' if channels == 1 else 's'}"


def _class_counts(names: Sequence[str], train: Sequence[int], test: Sequence[int]) -> str:
    """Training and test images of each class; for many classes, the least and the most."""
    counts = f"{len(names):,} classes of {_span(train)} training and {_span(test)} test images"
    if len(names) > NAMED_CLASSES:
        return counts
    if len(set(train)) == len(set(test)) == 1:
        return f"{counts}: {', '.join(names)}"
    each = (f"{name} {a:,}/{b:,}" for name, a, b in zip(names, train, test, strict=True))
    return f"{len(names)} classes, training/test: {', '.join(each)}"


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def make_images(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, about: About = About()) -> Images:
    tensors = (train_x, train_y, test_x, test_y)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return Images(*tensors, classes=int(train_y.max()) + 1, fingerprint=digest.hexdigest()[:16], about=about)


def carve(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split off a fixed, class-balanced part of about `fraction` of the images, at least one per class: (kept, part).

    The part is the same for every seed, so images used for selection are never trained on. At least one image of each
    class is kept, so none is split off a class with one image.
    """
    carved = [members[: min(max(1, round(fraction * len(members))), len(members) - 1)] for members in _by_class(labels)]
    part = torch.cat(carved).sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[part] = False
    return kept.nonzero().squeeze(1), part


def balanced(labels: Tensor, count: int) -> Tensor:
    """Indices of a fixed subset of `count` images with classes as equal as possible; larger subsets contain smaller."""
    by_class = _by_class(labels)
    order = torch.cat([torch.arange(len(members)) for members in by_class])
    members = torch.cat(by_class)
    return members[order.argsort(stable=True)][:count].sort().values


def _by_class(labels: Tensor) -> list[Tensor]:
    """The images of each class, in a fixed random order."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(20170407))
    _, classes, counts = labels[shuffled].unique(return_inverse=True, return_counts=True)
    return list(shuffled[classes.argsort(stable=True)].split(counts.tolist()))


def split(
    images: Images,
    validation_fraction: float,
    train_images: int | None = None,
    normalisation: Normalisation = "moments",
) -> Split:
    """Split the validation images off the training set, then take a balanced part of the rest.

    Args:
        images: data set of the study.
        validation_fraction: fraction of the training set that becomes the validation split.
        train_images: size of the balanced part; None takes all.
        normalisation: "moments" normalises to mean 0 and standard deviation 1 over the training split before the part
            is taken (for images that stay encoded, over a balanced 2,000 of it); "plus_minus_one" scales to −1 … 1.

    Raises DataError if there are too few images.
    """
    train, validation = _carved(images, validation_fraction)
    if normalisation == "plus_minus_one":
        mean = std = torch.full((images.shape[0],), 127.5)
    else:
        mean, std = _moments(_sample(images, train))
    train = _part(images, train, train_images)
    train_x = images.train_x[train]
    if isinstance(train_x, Tensor):
        train_x = train_x.contiguous(memory_format=torch.channels_last)  # the layout of batches
    return Split(train_x, images.train_y[train], images.train_x[validation], images.train_y[validation], mean, std)


def count_used(images: Images, validation_fraction: float, train_images: int | None = None) -> tuple[int, int]:
    """The number of training and of validation images of a run. Raises DataError as `split` does."""
    train, validation = _carved(images, validation_fraction)
    return len(_part(images, train, train_images)), len(validation)


def count_train_images(images: Images, validation_fraction: float, train_images: int | None = None) -> int:
    """The number of images in an epoch. Raises DataError as `split` does."""
    return count_used(images, validation_fraction, train_images)[0]


def _carved(images: Images, validation_fraction: float) -> tuple[Tensor, Tensor]:
    train, validation = carve(images.train_y, validation_fraction)
    if not len(validation):
        raise DataError("the training set has one image per class, so none is left for validation")
    return train, validation


def _part(images: Images, train: Tensor, count: int | None) -> Tensor:
    if count is None:
        return train
    if count > len(train):
        raise DataError(f"train_images={count}: only {len(train)} are left after the validation split")
    return train[balanced(images.train_y[train], count)]


def _sample(images: Images, train: Tensor) -> Tensor:
    """Pixels, uint8 (N, C, H, W), from which the moments are computed."""
    if isinstance(images.train_x, Tensor):
        return images.train_x[train]
    return images.train_x[train[balanced(images.train_y[train], MOMENTS_OF)]].decode().permute(0, 3, 1, 2)


def _moments(x_nchw: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation per channel, from counts of the 256 levels."""
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([x_nchw[:, c].flatten().bincount(minlength=256) for c in range(x_nchw.shape[1])]).double()
    total = counts.sum(1)
    mean = counts @ levels / total
    variance = (counts @ levels.square() / total - mean.square()).clamp(min=0)
    std = variance.sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()

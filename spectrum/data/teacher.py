"""Labels from a random frozen network whose coupling of channels and space is known.

    gaussian_images(…) or load_images(…)  →  relabelled(images, segments=S, …)  →  images for a study of the students

The teacher looks as the probe family does: a stem, then the operation with S segments, 1×1 first, once:

    stem       3×3 convolution, stride 2 from 16 px up; normalised, ReLU
    operation  1×1, then 3×3 in S segments; normalised, ReLU
    head       global average pool; less what brightness and contrast explain; whitened; a random direction a class

An untrained network left as it is gives nearly the same logits for all images, and what differs is brightness. So each
layer is normalised over a calibration batch, a linear fit to the mean and the mean square of each image channel is
taken off the pooled features, and what is left is whitened: no direction of it outweighs the others.

Teachers of one seed share all weights before normalisation, but that more segments cut those of the 3×3 that cross
segments. They are WIDTH channels wide, because more hide the dial: in trials with 8 and 16 channels the widest student,
per channel, won under a teacher of 1 segment too. At 6, probe students of one stage and 4,000 parameters, after 8
epochs of 16,000 Gaussian images of 16×16×3, score on 4,000 others (two seeds of teacher and images, one of students):

    teacher's segments    student's: 1        4            per channel
    1                     0.760  0.757    0.760  0.784    0.612  0.606
    4                     0.749           0.771           0.685
    per channel           0.717  0.753    0.806  0.800    0.808  0.812

Float64 throughout and by the library's own convolution, so that labels hang neither on the number of threads nor on the
backend: rounding, of some 1e-14, is far below what parts two images. Every function depends on its arguments only and
leaves torch's generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from spectrum.conv.backends.interface import Geometry
from spectrum.conv.backends.native import native
from spectrum.conv.segments import PER_CHANNEL, Run, segment_runs, segment_sizes
from spectrum.data.pixels import in_memory
from spectrum.data.splits import Images, make_images
from spectrum.design.run import MOST_TEACHER_SEGMENTS

WIDTH = MOST_TEACHER_SEGMENTS  # channels
SCALES = (1, 2, 4)  # side in pixels of the squares over which noise is averaged
CALIBRATION = 1_000  # images
BATCH = 500
SWEEPS = 300
CLOSE = 1e-10  # of logits of variance 1

Segments = int | Literal["per_channel"]


@dataclass(frozen=True)
class Half:
    """A convolution without bias."""

    geometry: Geometry
    weights: tuple[Tensor, ...]  # one a run of equal segments, (out, in per segment, k, k)

    def __call__(self, x_nchw: Tensor) -> Tensor:
        return native(x_nchw, self.weights, self.geometry)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation a channel, over images and pixels, (1, C, 1, 1)."""

    mean: Tensor
    std: Tensor

    def standardise(self, x_nchw: Tensor) -> Tensor:
        return (x_nchw - self.mean) / self.std


@dataclass(frozen=True)
class Teacher:
    """Images, uint8 (N, C, H, W), to logits, float64 (N, classes)."""

    pixels: Moments
    layers: tuple[tuple[tuple[Half, ...], Moments], ...]  # each normalised, then ReLU
    explained: Tensor  # (1 + 2·C, WIDTH): the features' fit to brightness and contrast
    head: Tensor  # (WIDTH, classes)

    @torch.no_grad()
    def __call__(self, x_nchw: Tensor) -> Tensor:
        return torch.cat([self._logits(x) for x in x_nchw.split(BATCH)])

    def _logits(self, x_nchw: Tensor) -> Tensor:
        x_nchw = self.pixels.standardise(x_nchw.double())
        simple = _brightness_and_contrast(x_nchw)
        for halves, moments in self.layers:
            x_nchw = moments.standardise(_through(halves, x_nchw)).relu()
        return (x_nchw.mean((2, 3)) - simple @ self.explained) @ self.head


def gaussian_images(count_train: int, count_test: int, side: int, channels: int, seed: int) -> Images:
    """Images of Gaussian noise at three scales, mean 127.5 and standard deviation 50 of 255, all labelled 0.

    Noise of single pixels, and noise averaged over squares of 2 and of 4 pixels, in equal parts. White noise alone has
    no scale, and its images differ little once pooled: of the labels of a teacher, students then learn far less.

    Raises ValueError for a count, side or number of channels below 1.
    """
    sizes = {"count_train": count_train, "count_test": count_test, "side": side, "channels": channels}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    train_x, test_x = (
        _noise(count, side, channels, _generator(seed, stream))
        for stream, count in enumerate((count_train, count_test))
    )
    labels = (torch.zeros(count, dtype=torch.int64) for count in (count_train, count_test))
    return make_images(train_x, next(labels), test_x, next(labels))


def relabelled(images: Images, *, segments: Segments, label_noise: float, seed: int, classes: int = 10) -> Images:
    """The same pixels, with the labels that a teacher gives them.

    Args:
        images: their own labels are not looked at.
        segments: of the teacher, 1 … WIDTH or "per_channel".
        label_noise: part of the labels, of training and test images alike, that is drawn anew among all classes; the
            images with much noise include those with little.
        seed: of the teacher's weights and of the noise.
        classes: how many.

    Before noise, the classes of the training images are equal to one image, and those of the test images as sampling
    has it: the same biases are applied to them, not found anew. Identical images have one label, so that many of them
    may leave the classes less equal.

    Raises ValueError for arguments out of range, for images that look all alike, and for images that are not in memory.
    """
    noise_ceiling(label_noise, classes)  # raises
    train_x, test_x = in_memory(images.train_x), in_memory(images.test_x)
    count = len(train_x)
    if classes > count:
        raise ValueError(f"classes={classes}: more than the {count} training images; try 2 … {count}")
    every = math.ceil(count / CALIBRATION)  # spread out, since images may be stored class by class
    teacher = teacher_network(train_x[::every], classes=classes, segments=segments, seed=seed)
    train_logits, test_logits = teacher(train_x), teacher(test_x)
    biases = balancing_biases(train_logits)
    train_y, test_y = (
        _with_noise((logits + biases).argmax(1), label_noise, classes, _generator(seed, 3 + stream))
        for stream, logits in enumerate((train_logits, test_logits))
    )
    return replace(make_images(train_x, train_y, test_x, test_y), classes=classes)


def noise_ceiling(label_noise: float, classes: int) -> float:
    """The best accuracy to be expected where a part `label_noise` of the labels was drawn anew among all classes.

    A label that was drawn anew is right by chance: 1 − noise · (K − 1) / K. Raises ValueError outside [0, 1), or for
    fewer than 2 classes.
    """
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise={label_noise}: expected a part from 0 to below 1; try 0.1")
    if classes < 2:
        raise ValueError(f"classes={classes}: expected at least 2")
    return 1 - label_noise * (classes - 1) / classes


@torch.no_grad()
def teacher_network(calibration_nchw: Tensor, *, classes: int, segments: Segments, seed: int) -> Teacher:
    """A random network, normalised over a batch of images, uint8 (N, C, H, W).

    Raises ValueError for segments that the teacher's channels cannot have, and for images that look all alike to it.
    """
    _check_segments(segments)
    channels, side = calibration_nchw.shape[1], calibration_nchw.shape[2]
    generator = _generator(seed, 2)
    stem, pointwise, spatial, directions = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((WIDTH, channels, 3, 3), (WIDTH, WIDTH, 1, 1), (WIDTH, WIDTH, 3, 3), (WIDTH, classes))
    )
    stem_stride = 2 if side >= 16 else 1  # as the probe's, whose students would else not see all that decides
    sizes = segment_sizes(WIDTH, segments)
    runs = segment_runs(sizes, sizes)
    layers = (
        (_half([stem], [Run(1, channels, WIDTH)], stride=stem_stride),),
        (_half([pointwise], [Run(1, WIDTH, WIDTH)]), _half(_cut(spatial, runs), runs)),
    )

    x_nchw = calibration_nchw.double()
    pixels = _moments(x_nchw)
    x_nchw = pixels.standardise(x_nchw)
    simple = _brightness_and_contrast(x_nchw)
    normalised = []
    for halves in layers:
        x_nchw = _through(halves, x_nchw)
        normalised.append((halves, _moments(x_nchw)))
        x_nchw = normalised[-1][1].standardise(x_nchw).relu()
    features = x_nchw.mean((2, 3))
    explained = torch.linalg.pinv(simple, rtol=1e-9) @ features
    head = _whitening(features - simple @ explained) @ (directions / directions.norm(dim=0))
    return Teacher(pixels, tuple(normalised), explained, head)


def balancing_biases(logits: Tensor) -> Tensor:
    """Biases (K,) with which the largest of logits and bias falls on each class equally often, to one image.

    Gauss-Seidel on the dual of the assignment problem, as in Bertsekas' relaxation method (1988): class by class, the
    bias is set half-way between the last image that the class is to have and the first that it is not, until nothing
    moves. Images alike to within CLOSE are kept together, lest rounding tell them apart, and the classes may then be
    less equal.
    """
    count, classes = logits.shape
    wanted = [count // classes + (k < count % classes) for k in range(classes)]
    biases = torch.zeros(classes, dtype=logits.dtype)
    for _ in range(SWEEPS):
        for k, quota in enumerate(wanted):
            shifted = logits + biases
            shifted[:, k] = -math.inf
            needed = (shifted.max(1).values - logits[:, k]).sort().values  # bias from which an image is of class k
            cuts = (needed.diff() > CLOSE).nonzero().squeeze(1)
            if len(cuts):
                last = cuts[(cuts - (quota - 1)).abs().argmin()]
                biases[k] = (needed[last] + needed[last + 1]) / 2
        if (logits + biases).argmax(1).bincount(minlength=classes).tolist() == wanted:
            break
    return biases


def _check_segments(segments: Segments) -> None:
    if segments == PER_CHANNEL:
        return
    if isinstance(segments, bool) or not isinstance(segments, int) or not 1 <= segments <= WIDTH:
        raise ValueError(f'segments={segments!r}: the teacher has {WIDTH} channels; try 1 … {WIDTH} or "{PER_CHANNEL}"')


def _half(weights: Sequence[Tensor], runs: Sequence[Run], *, stride: int = 1) -> Half:
    side = weights[0].shape[2]
    return Half(Geometry(tuple(runs), (side, side), (stride, stride), (side // 2, side // 2)), tuple(weights))


def _cut(weight: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """Of a dense weight (C, C, k, k), what lies inside the segments: one tensor a run, as `native` wants them."""
    weights, start = [], 0
    for run in runs:
        size = run.in_size
        starts = range(start, start + run.count * size, size)
        weights.append(torch.cat([weight[s : s + size, s : s + size] for s in starts]))
        start = starts.stop
    return weights


def _through(halves: Sequence[Half], x_nchw: Tensor) -> Tensor:
    for half in halves:
        x_nchw = half(x_nchw)
    return x_nchw


def _moments(x_nchw: Tensor) -> Moments:
    std, mean = torch.std_mean(x_nchw, (0, 2, 3), correction=0, keepdim=True)
    return Moments(mean, torch.where(std > 0, std, 1.0))


def _brightness_and_contrast(x_nchw: Tensor) -> Tensor:
    """One, and each channel's mean and mean square: (N, 1 + 2·C)."""
    one = torch.ones(len(x_nchw), 1, dtype=x_nchw.dtype)
    return torch.cat([one, x_nchw.mean((2, 3)), x_nchw.square().mean((2, 3))], 1)


def _whitening(features: Tensor) -> Tensor:
    """A matrix (C, C) that takes features of mean 0, (N, C), to unit covariance in the directions in which they vary.

    Of all such, the symmetric one: ZCA (Bell & Sejnowski 1997).

    Raises ValueError when there is none.
    """
    variances, directions = torch.linalg.eigh(features.T @ features / len(features))
    varies = variances > 1e-12  # of ReLUs of standardised inputs, whose variance is about 1
    if not varies.any():
        raise ValueError(
            "the images look all alike to a teacher, brightness and contrast left aside; give more and more varied ones"
        )
    scaled = directions / variances.clamp(min=1e-12).sqrt() * varies
    whitening: Tensor = scaled @ directions.T  # turned back, so that the signs that eigh happens to choose cancel
    return whitening


def _with_noise(y_n: Tensor, label_noise: float, classes: int, generator: torch.Generator) -> Tensor:
    """The labels, a part of them drawn anew."""
    drawn = torch.randint(classes, y_n.shape, generator=generator)
    chosen = torch.randperm(len(y_n), generator=generator)[: round(label_noise * len(y_n))]
    return y_n.index_copy(0, chosen, drawn[chosen])


def _noise(count: int, side: int, channels: int, generator: torch.Generator) -> Tensor:
    parts = []
    for size in (min(BATCH, count - start) for start in range(0, count, BATCH)):
        x_nchw = torch.zeros(size, channels, side, side)
        for scale in SCALES:
            wider = side + scale - 1
            white = torch.randn(size, channels, wider, wider, generator=generator)
            x_nchw += avg_pool2d(white, scale, stride=1) * (scale / math.sqrt(len(SCALES)))  # of variance 1 / 3
        parts.append((127.5 + 50 * x_nchw).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _generator(seed: int, stream: int) -> torch.Generator:
    """Streams: training images, test images, weights, noise of training labels, noise of test labels."""
    return torch.Generator().manual_seed(seed * 1_000_003 + stream)

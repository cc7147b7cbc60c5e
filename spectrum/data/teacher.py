"""Labels from a random frozen network whose coupling of channels and space is known.

    gaussian_images(…) or load_images(…)  →  relabelled(images, segments=S, …)  →  images for a study of the students

The teacher resembles the network `probe`: a stem, then one operation with S segments, pointwise-first:

    stem       3×3 convolution, stride 2 from 16 px up; normalised, ReLU
    operation  1×1, then 3×3 in S segments; normalised, ReLU
    head       global average pool; minus a fit to brightness and contrast; whitened; a random direction per class

An untrained network gives nearly the same logits for all images, and differences come from brightness. So each layer is
normalised over a calibration batch, a linear fit to the mean and the mean square of each image channel is subtracted
from the pooled features, and the rest is whitened, so that no direction outweighs the others.

Teachers of one seed share all weights before normalisation, except that more segments remove the 3×3 weights between
segments. They have WIDTH channels, since more channels hide the effect of the teacher's segments: in trials with 8 and
16 channels the widest student, per-channel, was also best under a teacher of 1 segment. With 6, probe students of one
stage and 4,000 parameters, after 8 epochs of 16,000 Gaussian images of 16×16×3, have these accuracies on 4,000 other
images (two seeds of teacher and images, one of students):

    teacher's segments    student's: 1        4            per channel
    1                     0.760  0.757    0.760  0.784    0.612  0.606
    4                     0.749           0.771           0.685
    per channel           0.717  0.753    0.806  0.800    0.808  0.812

All computations use float64 and torch's own convolution, so labels depend neither on the number of threads nor on the
backend: rounding, of about 1e-14, is far below the difference of two images. Every function depends only on its
arguments and does not use torch's global generator.
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
CLOSE = 1e-10  # difference of logits, whose variance is 1

Segments = int | Literal["per_channel"]


@dataclass(frozen=True)
class _Conv:
    """A convolution without bias."""

    geometry: Geometry
    weights: tuple[Tensor, ...]  # one per run of equal segments, (out, in per segment, k, k)

    def __call__(self, x_nchw: Tensor) -> Tensor:
        return native(x_nchw, self.weights, self.geometry)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per channel, over images and pixels, (1, C, 1, 1)."""

    mean: Tensor
    std: Tensor

    def standardise(self, x_nchw: Tensor) -> Tensor:
        return (x_nchw - self.mean) / self.std


@dataclass(frozen=True)
class Teacher:
    """A frozen network from images, uint8 (N, C, H, W), to logits, float64 (N, classes)."""

    pixels: Moments
    layers: tuple[tuple[tuple[_Conv, ...], Moments], ...]  # convolutions, then normalisation and ReLU
    explained: Tensor  # (1 + 2·C, WIDTH): linear fit of the features to brightness and contrast
    head: Tensor  # (WIDTH, classes)

    @torch.no_grad()
    def __call__(self, x_nchw: Tensor) -> Tensor:
        return torch.cat([self._logits(x) for x in x_nchw.split(BATCH)])

    def _logits(self, x_nchw: Tensor) -> Tensor:
        x_nchw = self.pixels.standardise(x_nchw.double())
        simple = _brightness_and_contrast(x_nchw)
        for convs, moments in self.layers:
            x_nchw = moments.standardise(_through(convs, x_nchw)).relu()
        return (x_nchw.mean((2, 3)) - simple @ self.explained) @ self.head


def gaussian_images(count_train: int, count_test: int, side: int, channels: int, seed: int) -> Images:
    """Generate images of Gaussian noise at three scales, mean 127.5 and standard deviation 50 of 255, all labelled 0.

    Equal parts of noise of single pixels and noise averaged over squares of 2 and of 4 pixels. Images of white noise
    alone differ little once pooled, and students learn far less from a teacher's labels of them.

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
    """Replace the labels of images by those of a teacher.

    Args:
        images: images to label; their own labels are ignored.
        segments: segments of the teacher, 1 … WIDTH or "per_channel".
        label_noise: fraction of training and test labels that is redrawn among all classes; the images redrawn at a
            high noise include those redrawn at a lower one.
        seed: seed of the teacher's weights and of the noise.
        classes: number of classes.

    Before noise, the sizes of the training classes differ by at most one image. Test images get the same biases, so
    their classes vary as in a sample. Identical images have the same label, so many of them can unbalance classes.

    Raises ValueError for arguments out of range, for images that a teacher cannot tell apart, and for images that are
    not in memory.
    """
    noise_ceiling(label_noise, classes)  # raises
    train_x, test_x = in_memory(images.train_x), in_memory(images.test_x)
    count = len(train_x)
    if classes > count:
        raise ValueError(f"classes={classes}: more than the {count} training images; try 2 … {count}")
    every = math.ceil(count / CALIBRATION)  # spread out, since images may be stored by class
    teacher = teacher_network(train_x[::every], classes=classes, segments=segments, seed=seed)
    train_logits, test_logits = teacher(train_x), teacher(test_x)
    biases = balancing_biases(train_logits)
    train_y, test_y = (
        _with_noise((logits + biases).argmax(1), label_noise, classes, _generator(seed, 3 + stream))
        for stream, logits in enumerate((train_logits, test_logits))
    )
    return replace(make_images(train_x, train_y, test_x, test_y), classes=classes)


def noise_ceiling(label_noise: float, classes: int) -> float:
    """The best expected accuracy if a fraction `label_noise` of the labels was redrawn among all classes.

    A redrawn label may be right by chance: 1 − noise · (K − 1) / K. Raises ValueError for a noise outside [0, 1), or
    for fewer than 2 classes.
    """
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise={label_noise}: expected a fraction from 0 to below 1; try 0.1")
    if classes < 2:
        raise ValueError(f"classes={classes}: expected at least 2")
    return 1 - label_noise * (classes - 1) / classes


@torch.no_grad()
def teacher_network(calibration_nchw: Tensor, *, classes: int, segments: Segments, seed: int) -> Teacher:
    """Make a random network, normalised over a batch of images, uint8 (N, C, H, W).

    Raises ValueError for an invalid number of segments, and for images that the network cannot tell apart.
    """
    _check_segments(segments)
    channels, side = calibration_nchw.shape[1], calibration_nchw.shape[2]
    generator = _generator(seed, 2)
    stem, pointwise, spatial, directions = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((WIDTH, channels, 3, 3), (WIDTH, WIDTH, 1, 1), (WIDTH, WIDTH, 3, 3), (WIDTH, classes))
    )
    stem_stride = 2 if side >= 16 else 1  # as in `probe`; else students would not see all the pixels that matter
    sizes = segment_sizes(WIDTH, segments)
    runs = segment_runs(sizes, sizes)
    layers = (
        (_conv([stem], [Run(1, channels, WIDTH)], stride=stem_stride),),
        (_conv([pointwise], [Run(1, WIDTH, WIDTH)]), _conv(_cut(spatial, runs), runs)),
    )

    x_nchw = calibration_nchw.double()
    pixels = _moments(x_nchw)
    x_nchw = pixels.standardise(x_nchw)
    simple = _brightness_and_contrast(x_nchw)
    normalised = []
    for convs in layers:
        x_nchw = _through(convs, x_nchw)
        normalised.append((convs, _moments(x_nchw)))
        x_nchw = normalised[-1][1].standardise(x_nchw).relu()
    features = x_nchw.mean((2, 3))
    explained = torch.linalg.pinv(simple, rtol=1e-9) @ features
    head = _whitening(features - simple @ explained) @ (directions / directions.norm(dim=0))
    return Teacher(pixels, tuple(normalised), explained, head)


def balancing_biases(logits: Tensor) -> Tensor:
    """Find biases (K,) with which argmax(logits + bias) picks all classes equally often, to within one image.

    Gauss-Seidel on the dual of the assignment problem, as in Bertsekas' relaxation method (1988): class by class, the
    bias is set half-way between the last image that the class should have and the first that it should not, until
    nothing changes. Images within CLOSE of each other stay together, so that rounding does not separate them; classes
    may then be less equal.
    """
    count, classes = logits.shape
    wanted = [count // classes + (k < count % classes) for k in range(classes)]
    biases = torch.zeros(classes, dtype=logits.dtype)
    for _ in range(SWEEPS):
        for k, quota in enumerate(wanted):
            shifted = logits + biases
            shifted[:, k] = -math.inf
            needed = (shifted.max(1).values - logits[:, k]).sort().values  # bias above which an image is of class k
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


def _conv(weights: Sequence[Tensor], runs: Sequence[Run], *, stride: int = 1) -> _Conv:
    side = weights[0].shape[2]
    return _Conv(Geometry(tuple(runs), (side, side), (stride, stride), (side // 2, side // 2)), tuple(weights))


def _cut(weight: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """Cut the weights inside segments out of a dense weight (C, C, k, k): one tensor per run, as `native` needs."""
    weights, start = [], 0
    for run in runs:
        size = run.in_size
        starts = range(start, start + run.count * size, size)
        weights.append(torch.cat([weight[s : s + size, s : s + size] for s in starts]))
        start = starts.stop
    return weights


def _through(convs: Sequence[_Conv], x_nchw: Tensor) -> Tensor:
    for conv in convs:
        x_nchw = conv(x_nchw)
    return x_nchw


def _moments(x_nchw: Tensor) -> Moments:
    std, mean = torch.std_mean(x_nchw, (0, 2, 3), correction=0, keepdim=True)
    return Moments(mean, torch.where(std > 0, std, 1.0))


def _brightness_and_contrast(x_nchw: Tensor) -> Tensor:
    """A constant 1, and each channel's mean and mean square: (N, 1 + 2·C)."""
    one = torch.ones(len(x_nchw), 1, dtype=x_nchw.dtype)
    return torch.cat([one, x_nchw.mean((2, 3)), x_nchw.square().mean((2, 3))], 1)


def _whitening(features: Tensor) -> Tensor:
    """The symmetric matrix (C, C) that whitens features (N, C) of mean 0 in the directions in which they vary.

    This is ZCA (Bell & Sejnowski 1997). Raises ValueError if the features do not vary.
    """
    variances, directions = torch.linalg.eigh(features.T @ features / len(features))
    varies = variances > 1e-12  # features are ReLUs of standardised inputs, with a variance of about 1
    if not varies.any():
        raise ValueError(
            "a teacher cannot tell the images apart, except by brightness and contrast; give more and more varied ones"
        )
    scaled = directions / variances.clamp(min=1e-12).sqrt() * varies
    whitening: Tensor = scaled @ directions.T  # rotated back, so that the arbitrary signs of eigh cancel
    return whitening


def _with_noise(y_n: Tensor, label_noise: float, classes: int, generator: torch.Generator) -> Tensor:
    """Redraw a fraction of the labels."""
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
            # each part has variance 1 / 3
            x_nchw += avg_pool2d(white, scale, stride=1) * (scale / math.sqrt(len(SCALES)))
        parts.append((127.5 + 50 * x_nchw).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _generator(seed: int, stream: int) -> torch.Generator:
    """Make a generator; streams: training images, test images, weights, noise of training and of test labels."""
    return torch.Generator().manual_seed(seed * 1_000_003 + stream)

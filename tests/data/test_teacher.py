"""A teacher's labels: the same everywhere, balanced, about channels and space and not about brightness."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import conv2d

from spectrum.conv.segments import segment_runs, segment_sizes
from spectrum.data import teacher
from spectrum.data.load import load_images
from spectrum.data.splits import Images
from spectrum.data.teacher import (
    WIDTH,
    balancing_biases,
    gaussian_images,
    noise_ceiling,
    relabelled,
    teacher_network,
)

SEGMENTS = (1, 2, 3, 4, WIDTH, "per_channel")

pytestmark = pytest.mark.medium  # half a minute in all


@pytest.fixture(scope="module")
def noise() -> Images:
    return gaussian_images(3_000, 2_000, 16, 3, seed=0)


def agreement(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


def brightness_and_contrast(x_nchw: Tensor) -> Tensor:
    x = x_nchw.double().flatten(2)
    return torch.cat([x.mean(2), x.std(2)], 1)


def score_of_neighbours(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of a vote of the 50 nearest training examples, by standardised measurements (N, M)."""
    mean, std = train.mean(0), train.std(0)
    _, nearest = KDTree((train - mean) / std).query((test - mean) / std, k=50)
    return agreement(labels[torch.from_numpy(nearest)].mode(1).values, test_labels)


# Images


def test_gaussian_images_are_bytes_about_grey_of_unlike_pixels(noise: Images) -> None:
    assert (noise.train_x.shape, noise.test_x.shape) == ((3_000, 3, 16, 16), (2_000, 3, 16, 16))
    assert (noise.train_x.dtype, noise.train_y.dtype, noise.classes) == (torch.uint8, torch.int64, 1)
    x = noise.train_x.double()
    assert abs(x.mean() - 127.5) < 0.5
    assert abs(x.std() - 50) < 1
    assert ((noise.train_x == 0) | (noise.train_x == 255)).double().mean() < 0.02, "few are cut off"
    for side in (x[..., 0, 0], x[..., 8, 8]):
        assert abs(side.std() - 50) < 2, "as varied at the border as in the middle"
    assert abs(torch.corrcoef(x[:, :, 5, 5].T)[0, 1]) < 0.08, "channels are independent"


@pytest.mark.parametrize(("distance", "expected"), [(1, (0 + 1 / 2 + 3 / 4) / 3), (2, (2 / 4) / 3), (4, 0)])
def test_gaussian_images_have_three_scales(noise: Images, distance: int, expected: float) -> None:
    x = noise.train_x.double()
    pairs = torch.stack([x[..., distance:].flatten(), x[..., :-distance].flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(expected, abs=0.01)


def test_test_images_depend_on_their_own_number_only() -> None:
    first, second = gaussian_images(5, 7, 8, 1, seed=3), gaussian_images(600, 7, 8, 1, seed=3)
    assert torch.equal(first.test_x, second.test_x)
    assert not torch.equal(first.train_x, first.test_x[:5])


# The same everywhere


def labelled_by(seed: int, segments: Any = 3) -> Images:
    return relabelled(gaussian_images(700, 300, 8, 2, seed), segments=segments, label_noise=0.1, seed=seed)


def test_another_process_with_other_threads_and_backends_gives_the_same() -> None:
    code = (
        "import torch; torch.set_num_threads(2); torch.manual_seed(9)\n"
        "from spectrum.data.teacher import gaussian_images, relabelled\n"
        "images = gaussian_images(700, 300, 8, 2, 5)\n"
        "for s in (3, 1): print(relabelled(images, segments=s, label_noise=0.1, seed=5).fingerprint)\n"
        "print(torch.get_num_threads())"
    )
    environment = {**os.environ, "SPECTRUM_BACKEND": "native", "PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [labelled_by(5).fingerprint, labelled_by(5, 1).fingerprint, "2"], done.stderr


@pytest.mark.parametrize("segments", [1, 4, "per_channel"])
def test_the_number_of_threads_changes_no_label(segments: Any) -> None:
    noise = gaussian_images(600, 200, 16, 3, seed=0)
    one = relabelled(noise, segments=segments, label_noise=0, seed=1)
    torch.set_num_threads(2)
    try:
        two = relabelled(noise, segments=segments, label_noise=0, seed=1)
    finally:
        torch.set_num_threads(1)
    assert one.fingerprint == two.fingerprint


def test_no_label_is_decided_by_rounding(noise: Images) -> None:
    network = teacher_network(noise.train_x[:500], classes=10, segments=4, seed=0)
    logits = network(noise.train_x)
    best_two = (logits + balancing_biases(logits)).topk(2).values
    assert (best_two[:, 0] - best_two[:, 1]).min() > 1e-8
    alone = torch.cat([network(x.unsqueeze(0)) for x in noise.train_x[:50]])
    assert torch.allclose(alone, logits[:50], rtol=0, atol=1e-12), "an image's logits hang on the others of its batch"


def test_global_state_is_left_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    labelled_by(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == (1, torch.float32, True)
    torch.manual_seed(124)
    assert labelled_by(0).fingerprint == labelled_by(0).fingerprint


def test_labels_can_be_trained_on() -> None:
    images = labelled_by(0)
    logits = torch.zeros(len(images.train_y), 10, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, images.train_y).backward()  # refuses tensors of inference mode
    assert logits.grad is not None


def test_seeds_differ(noise: Images) -> None:
    assert len({gaussian_images(5, 5, 8, 1, seed).fingerprint for seed in range(20)}) == 20
    labels = [relabelled(noise, segments=2, label_noise=0, seed=seed).test_y for seed in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert agreement(labels[one], labels[other]) < 0.25


# Labels


def test_pixels_stay_and_labels_of_old_do_not_matter(noise: Images) -> None:
    once = relabelled(noise, segments=2, label_noise=0.2, seed=4)
    assert torch.equal(once.train_x, noise.train_x)
    assert torch.equal(once.test_x, noise.test_x)
    assert (once.train_y.dtype, once.test_y.dtype, once.classes) == (torch.int64, torch.int64, 10)
    assert once.fingerprint != noise.fingerprint
    assert relabelled(once, segments=2, label_noise=0.2, seed=4).fingerprint == once.fingerprint


@pytest.mark.parametrize("segments", SEGMENTS)
def test_classes_are_balanced_to_one_image_and_in_the_test_set_as_sampling_has_it(noise: Images, segments: Any) -> None:
    labels = relabelled(noise, segments=segments, label_noise=0, seed=0)
    assert labels.train_y.bincount().tolist() == [300] * 10
    # Both the test images and the biases, from the training images, are a sample.
    deviation = math.sqrt(2_000 * 0.1 * 0.9 * (1 + 2_000 / 3_000))
    assert (labels.test_y.bincount(minlength=10) - 200).abs().max() < 4 * deviation


@settings(max_examples=30)
@given(count=st.integers(2, 300), classes=st.integers(2, 12), seed=st.integers(0, 1_000))
def test_biases_balance_any_logits(count: int, classes: int, seed: int) -> None:
    classes = min(classes, count)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    counts = (logits + balancing_biases(logits)).argmax(1).bincount(minlength=classes)
    assert counts.max() - counts.min() <= 1


def test_identical_images_have_one_label() -> None:
    images = gaussian_images(90, 1, 8, 1, seed=0)
    twice = Images(images.train_x.repeat(3, 1, 1, 1), images.train_y.repeat(3), images.test_x, images.test_y, 1, "")
    labels = relabelled(twice, segments=1, label_noise=0, seed=0).train_y.view(3, 90)
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(labels[0], labels[2])


@pytest.mark.parametrize(("classes", "segments"), [(2, 1), (3, 4), (10, 2), (40, "per_channel")])
def test_real_images_of_another_shape_are_labelled_too(classes: int, segments: Any) -> None:
    digits = load_images("digits")
    labels = relabelled(digits, segments=segments, label_noise=0, seed=0, classes=classes)
    counts = labels.train_y.bincount(minlength=classes)
    assert (len(counts), labels.classes) == (classes, classes)
    assert counts.max() - counts.min() <= 1


def test_images_may_be_stored_class_by_class() -> None:
    digits = load_images("digits")
    order = digits.train_y.argsort()
    in_order = Images(digits.train_x[order], digits.train_y[order], digits.test_x, digits.test_y, 10, "")
    labels = relabelled(in_order, segments=1, label_noise=0, seed=0).test_y
    assert agreement(labels, relabelled(digits, segments=1, label_noise=0, seed=0).test_y) > 0.85


# Noise


@pytest.mark.parametrize("label_noise", [0.0, 0.1, 0.25, 0.333, 0.999])
def test_noise_draws_exactly_its_part(label_noise: float) -> None:
    drawn = teacher._with_noise(torch.full((1_001,), -1), label_noise, 7, torch.Generator().manual_seed(0))
    assert int((drawn >= 0).sum()) == round(label_noise * 1_001)
    assert int(drawn.max()) < 7


def test_much_noise_includes_little(noise: Images) -> None:
    clean, little, much = (relabelled(noise, segments=2, label_noise=part, seed=0) for part in (0, 0.1, 0.4))
    changed = little.train_y != clean.train_y
    assert changed.any()
    assert torch.equal(much.train_y[changed], little.train_y[changed])


@pytest.mark.parametrize(("label_noise", "classes"), [(0.1, 10), (0.5, 4), (0.9, 2)])
def test_the_ceiling_is_what_the_teacher_itself_scores(noise: Images, label_noise: float, classes: int) -> None:
    clean = relabelled(noise, segments=2, label_noise=0, seed=0, classes=classes)
    noisy = relabelled(noise, segments=2, label_noise=label_noise, seed=0, classes=classes)
    ceiling = noise_ceiling(label_noise, classes)
    assert ceiling == pytest.approx(1 - label_noise * (classes - 1) / classes)
    for one, other in ((clean.train_y, noisy.train_y), (clean.test_y, noisy.test_y)):
        assert abs(agreement(one, other) - ceiling) < 4 * math.sqrt(ceiling * (1 - ceiling) / len(one))


def test_without_noise_the_ceiling_is_one() -> None:
    assert noise_ceiling(0, 10) == 1


# What labels depend on


@pytest.mark.parametrize("segments", [1, "per_channel"])
def test_brightness_and_contrast_tell_next_to_nothing(noise: Images, segments: Any) -> None:
    labels = relabelled(noise, segments=segments, label_noise=0, seed=0)
    simple = [brightness_and_contrast(x) for x in (labels.train_x, labels.test_x)]
    assert score_of_neighbours(simple[0], labels.train_y, simple[1], labels.test_y) < 0.17, "chance is 0.1"
    tenths = [(10 * x[:, 0].argsort().argsort() // len(x)) for x in simple]  # labels that brightness does tell
    assert score_of_neighbours(simple[0], tenths[0], simple[1], tenths[1]) > 0.3

    logits = teacher_network(noise.train_x[:1_000], classes=10, segments=segments, seed=0)(noise.test_x)
    predictors = torch.cat([torch.ones(2_000, 1), simple[1], simple[1].square()], 1).double()
    residual = logits - predictors @ torch.linalg.lstsq(predictors, logits).solution
    assert (1 - residual.var(0) / logits.var(0)).max() < 0.05, "R²"


def test_all_directions_of_the_logits_vary_alike(noise: Images) -> None:
    network = teacher_network(noise.train_x[:1_000], classes=10, segments=3, seed=0)
    logits = network(noise.train_x[:1_000])
    assert torch.allclose(logits.std(0, correction=0), torch.ones(10, dtype=torch.float64))
    assert torch.allclose(network(noise.test_x).std(0), torch.ones(10, dtype=torch.float64), atol=0.15)
    assert int(torch.linalg.matrix_rank(logits)) == WIDTH


def test_places_matter_and_so_do_channels(noise: Images) -> None:
    def labels(change: Callable[[Tensor], Tensor]) -> Tensor:
        network = teacher_network(noise.train_x[:1_000], classes=10, segments=3, seed=0)
        return network(change(noise.test_x)).argmax(1)

    as_is = labels(lambda x: x)
    scattered = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    assert agreement(as_is, labels(lambda x: x.flatten(2)[:, :, scattered].view_as(x))) < 0.4
    assert agreement(as_is, labels(lambda x: x.roll(1, 1))) < 0.4
    assert agreement(as_is, labels(lambda x: x.flip(3))) < 0.4


def test_segments_change_the_labels(noise: Images) -> None:
    labels = [relabelled(noise, segments=s, label_noise=0, seed=0).test_y for s in (1, 2, 3, 4, "per_channel")]
    for i in range(len(labels)):
        for j in range(i):
            assert agreement(labels[i], labels[j]) < 0.75, (i, j)
    assert agreement(labels[0], labels[4]) < 0.4, "a single segment and one a channel"
    assert torch.equal(labels[4], relabelled(noise, segments=WIDTH, label_noise=0, seed=0).test_y)


@pytest.mark.parametrize("segments", SEGMENTS)
def test_teachers_of_one_seed_differ_in_what_crosses_segments_only(noise: Images, segments: Any) -> None:
    (stem, _), (operation, _) = teacher_network(noise.train_x, classes=10, segments=segments, seed=0).layers
    (dense_stem, _), (dense, _) = teacher_network(noise.train_x, classes=10, segments=1, seed=0).layers
    assert torch.equal(stem[0].weights[0], dense_stem[0].weights[0])
    assert torch.equal(operation[0].weights[0], dense[0].weights[0])
    segment = torch.repeat_interleave(torch.tensor(segment_sizes(WIDTH, segments)))
    inside = segment.view(-1, 1) == segment
    x_nchw = torch.randn(3, WIDTH, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = conv2d(x_nchw, dense[1].weights[0] * inside.view(WIDTH, WIDTH, 1, 1), padding=1)
    assert torch.allclose(operation[1](x_nchw), expected)
    sizes = segment_sizes(WIDTH, segments)
    assert operation[1].geometry.runs == segment_runs(sizes, sizes)


@pytest.mark.parametrize(("side", "stride"), [(8, 1), (15, 1), (16, 2), (28, 2)])
def test_the_teacher_sees_at_the_resolution_of_its_students(side: int, stride: int) -> None:
    images = gaussian_images(50, 1, side, 1, seed=0)
    network = teacher_network(images.train_x, classes=3, segments=1, seed=0)
    assert network.layers[0][0][0].geometry.stride == (stride, stride)


# Errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"segments": 0}, "segments=0: the teacher has 6 channels; try 1 … 6"),
        ({"segments": 7}, "segments=7: the teacher has 6 channels; try 1 … 6"),
        ({"segments": True}, "segments=True"),
        ({"segments": 2.0}, "segments=2.0"),
        ({"segments": "all"}, "segments='all'"),
        ({"segments": [3, 3]}, r"segments=\[3, 3\]"),
        ({"label_noise": -0.1}, "label_noise=-0.1: expected a fraction from 0 to below 1"),
        ({"label_noise": 1.0}, "label_noise=1.0"),
        ({"label_noise": math.nan}, "label_noise=nan"),
        ({"classes": 1}, "classes=1: expected at least 2"),
        ({"classes": 31}, "classes=31: more than the 30 training images; try 2 … 30"),
    ],
)
def test_arguments_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    images = gaussian_images(30, 10, 8, 1, seed=0)
    with pytest.raises(ValueError, match=message):
        relabelled(images, **({"segments": 1, "label_noise": 0.0, "seed": 0} | changed))


@pytest.mark.parametrize("name", ["count_train", "count_test", "side", "channels"])
def test_images_that_cannot_be_made_are_refused(name: str) -> None:
    said = {"count_train": 3, "count_test": 3, "side": 8, "channels": 1}
    with pytest.raises(ValueError, match=f"{name}=0: expected at least 1"):
        gaussian_images(**(said | {name: 0}), seed=0)


def test_images_that_a_teacher_cannot_tell_apart_are_refused() -> None:
    grey = torch.full((30, 1, 8, 8), 9, dtype=torch.uint8)
    labels = torch.zeros(30, dtype=torch.int64)
    with pytest.raises(ValueError, match="cannot tell the images apart"):
        relabelled(Images(grey, labels, grey, labels, 1, ""), segments=1, label_noise=0, seed=0)

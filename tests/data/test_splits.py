"""Splits that are fixed, and how their pixels are normalised."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum.data.pixels import DataError
from spectrum.data.splits import Images, _by_class, balanced, carve, make_images, split

# Splitting

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(torch.tensor)


@pytest.mark.medium
@given(labels=label_lists, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
@settings(max_examples=100)
def test_carving_is_complete_disjoint_balanced_and_fixed(labels: torch.Tensor, fraction: float, seed: int) -> None:
    torch.manual_seed(seed)
    kept, part = carve(labels, fraction)
    assert sorted([*kept.tolist(), *part.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert part.tolist() == sorted(part.tolist())
    sizes = Counter(labels.tolist())
    carved = Counter(labels[part].tolist())
    for label, size in sizes.items():
        assert carved[label] in (1, size - 1) or abs(carved[label] - fraction * size) <= 0.5
        assert 1 <= carved[label] < size or (carved[label], size) == (0, 1)
    torch.manual_seed(seed + 1)
    again = carve(labels, fraction)
    assert torch.equal(again[0], kept)
    assert torch.equal(again[1], part)


def by_class_slowly(labels: torch.Tensor) -> list[list[int]]:
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(20170407)).tolist()
    return [[n for n in shuffled if labels[n] == label] for label in sorted(set(labels.tolist()))]


@given(labels=label_lists, scale=st.integers(1, 5))
@settings(max_examples=100)
def test_classes_are_dealt_with_as_in_a_slow_loop(labels: torch.Tensor, scale: int) -> None:
    assert [members.tolist() for members in _by_class(labels * scale)] == by_class_slowly(labels * scale)


def test_what_is_carved_is_not_simply_the_first_or_last_of_a_class() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    _, part = carve(labels, 0.2)
    assert 35 < (part % 100).double().mean() < 65


@given(labels=label_lists, data=st.data())
@settings(max_examples=100)
def test_balanced_subsets_nest_and_are_balanced_within_one(labels: torch.Tensor, data: st.DataObject) -> None:
    large = data.draw(st.integers(1, len(labels)))
    small = data.draw(st.integers(1, large))
    chosen = {count: balanced(labels, count).tolist() for count in (small, large)}
    assert set(chosen[small]) <= set(chosen[large])
    sizes = Counter(labels.tolist())
    for count, indices in chosen.items():
        assert len(set(indices)) == count
        taken = Counter(labels[indices].tolist())
        unfinished = [taken[label] for label, size in sizes.items() if taken[label] < size]
        assert not unfinished or max(taken.values()) <= min(unfinished) + 1


def some_images(count: int = 200, channels: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([0, 40, 100])[:channels], torch.tensor([256, 90, 256])[:channels]
    x = torch.rand(count, channels, 5, 5, generator=generator) * (high - low).view(-1, 1, 1) + low.view(-1, 1, 1)
    y = torch.arange(count) % 4
    return make_images(x.to(torch.uint8), y, x[:4].to(torch.uint8), y[:4])


def rows_of(x_nchw: torch.Tensor) -> set[bytes]:
    return {x.numpy().tobytes() for x in x_nchw}


def test_the_validation_split_is_the_same_for_any_number_of_training_images() -> None:
    images = some_images()
    splits = [split(images, 0.25, count) for count in (None, 40, 100)]
    assert [len(part.train_y) for part in splits] == [152, 40, 100]
    assert all(torch.equal(part.validation_x, splits[0].validation_x) for part in splits)
    assert splits[0].validation_y.bincount().tolist() == [12] * 4
    assert rows_of(splits[1].train_x) < rows_of(splits[2].train_x) < rows_of(splits[0].train_x)
    assert not rows_of(splits[0].train_x) & rows_of(splits[0].validation_x)


def test_more_training_images_than_there_are_is_an_error() -> None:
    assert len(split(some_images(), 0.5, 100).train_y) == 100
    with pytest.raises(DataError, match="train_images=101: only 100 are left after the validation split"):
        split(some_images(), 0.5, 101)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_training_images_have_mean_0_and_deviation_1(channels: int) -> None:
    part = split(some_images(channels=channels), 0.1)
    pixels = part.train_x.numpy().astype(np.float64)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    np.testing.assert_allclose(part.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(part.std, std, rtol=1e-6)
    normalised = part.normalise(part.train_x)
    assert normalised.dtype == torch.float32
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    np.testing.assert_allclose(normalised.double().mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(normalised.double().std((0, 2, 3), correction=0), 1, atol=1e-6)


def test_a_channel_that_is_the_same_everywhere_becomes_0() -> None:
    images = some_images()
    x = images.train_x.clone()
    x[:, 1] = 7
    part = split(replace(images, train_x=x), 0.1)
    assert part.normalise(part.train_x)[:, 1].unique().tolist() == [0.0]

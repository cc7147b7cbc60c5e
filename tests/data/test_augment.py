"""Batches of an epoch, and augmentation that depends on the image and nothing else."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spectrum.data import augment
from spectrum.data.augment import batches, draw_augmentation, move, square
from spectrum.data.splits import Split


def toy(count: int = 40, side: int = 7, channels: int = 2, seed: int = 0) -> Split:
    """Random images without a pixel at the mean; the label of an image is its number."""
    generator = torch.Generator().manual_seed(seed)
    x_nchw = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    y_n = torch.arange(count)
    return Split(
        x_nchw, y_n, x_nchw[:1], y_n[:1], torch.tensor([101.3, 77.7][:channels]), torch.tensor([55.0, 60.0][:channels])
    )


def by_number(data: Split, **options: Any) -> dict[int, torch.Tensor]:
    """One epoch's images by their number."""
    drawn = {
        int(number): x_chw
        for x_nchw, y_n in batches(data, **options)
        for x_chw, number in zip(x_nchw, y_n, strict=True)
    }
    return dict(sorted(drawn.items()))


# Batches


@pytest.mark.parametrize("batch_size", [1, 7, 20, 40, 41, 1000])
def test_an_epoch_shows_each_image_at_most_once_and_no_partial_batch(batch_size: int) -> None:
    steps = [y_n for _, y_n in batches(toy(40), batch_size=batch_size, seed=0, epoch=0)]
    size = min(batch_size, 40)
    assert [len(y_n) for y_n in steps] == [size] * (40 // size)
    shown = torch.cat(steps).tolist()
    assert len(set(shown)) == len(shown)


def test_batches_are_float32_in_channels_last_with_the_right_labels() -> None:
    part = toy(40)
    for x_nchw, y_n in batches(part, batch_size=10, seed=0, epoch=0, flip=True, shift=1, cutout=2):
        assert (x_nchw.shape, x_nchw.dtype, y_n.dtype) == ((10, 2, 7, 7), torch.float32, torch.int64)
        assert x_nchw.is_contiguous(memory_format=torch.channels_last)
    for x_nchw, y_n in batches(part, batch_size=10, seed=0, epoch=0):
        assert torch.equal(x_nchw, part.normalise(part.train_x[y_n]))


def order(seed: int, epoch: int, **options: Any) -> list[int]:
    return torch.cat([y for _, y in batches(toy(40), batch_size=8, seed=seed, epoch=epoch, **options)]).tolist()


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    torch.manual_seed(1)
    assert order(3, 2) == order(3, 2, flip=True, shift=2, cutout=3)
    large = torch.cat([y for _, y in batches(toy(40), batch_size=20, seed=3, epoch=2)]).tolist()
    assert large == order(3, 2), "for batches of any size"


@pytest.mark.medium
def test_the_first_batch_is_drawn_from_all_images_alike() -> None:
    part = toy(40)
    first = Counter(int(next(batches(part, batch_size=1, seed=0, epoch=epoch))[1]) for epoch in range(2000))
    assert stats.chisquare([first[number] for number in range(40)]).pvalue > 1e-4


AUGMENTATIONS = [{"flip": True}, {"shift": 3}, {"cutout": 4}, {"flip": True, "shift": 2, "cutout": 3}]


@pytest.mark.parametrize("options", AUGMENTATIONS, ids=str)
def test_an_image_is_moved_the_same_way_in_any_batch(options: dict[str, Any]) -> None:
    part = toy(40)
    alone = by_number(part, batch_size=1, seed=5, epoch=6, **options)
    assert len(alone) == 40
    for batch_size in (7, 40):
        together = by_number(part, batch_size=batch_size, seed=5, epoch=6, **options)
        assert len(together) >= 35
        assert all(torch.equal(x_chw, alone[number]) for number, x_chw in together.items())


@pytest.mark.parametrize("options", AUGMENTATIONS, ids=str)
def test_an_image_is_moved_otherwise_at_another_seed_or_epoch(options: dict[str, Any]) -> None:
    part = toy(40)
    base = by_number(part, batch_size=40, seed=5, epoch=6, **options)
    for changes in ({"seed": 6}, {"epoch": 7}):
        other = by_number(part, batch_size=40, **({"seed": 5, "epoch": 6} | changes), **options)
        moved = sum(not torch.equal(x_chw, other[number]) for number, x_chw in base.items())
        assert moved >= 10, "a flip is the same by chance in half of the cases"


def test_equal_images_are_moved_each_in_its_own_way() -> None:
    part = toy(40)
    part = replace(part, train_x=part.train_x[:1].expand(40, -1, -1, -1))
    moved = by_number(part, batch_size=40, seed=0, epoch=0, flip=True, shift=3)
    assert len({x_chw.numpy().tobytes() for x_chw in moved.values()}) > 25  # of 98 ways


def augmented_slowly(
    part: Split, number: int, seed: int, epoch: int, flip: bool, shift: int, cutout: int
) -> np.ndarray[Any, Any]:
    """One image pixel by pixel, from the numbers drawn for it: moved, mirrored, normalised, a square cut out."""

    def drawn(stream: int, choices: int) -> int:
        return int(augment._draw(seed, epoch, torch.tensor([number]), stream, choices))

    source = part.train_x[number].numpy().astype(np.float64)
    channels, height, width = source.shape
    down, right = (drawn(stream, 2 * shift + 1) - shift if shift else 0 for stream in (1, 2))
    moved = np.zeros(source.shape)
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                moved[:, i, j] = source[:, i + down, j + right]
    if flip and drawn(0, 2) == 1:
        moved = np.stack([np.fliplr(moved[c]) for c in range(channels)])
    result = (moved - part.mean.view(-1, 1, 1).numpy()) / part.std.view(-1, 1, 1).numpy()
    if cutout:
        top, left = (drawn(stream, side) - cutout // 2 for stream, side in ((3, height), (4, width)))
        for i in range(max(top, 0), min(top + cutout, height)):
            for j in range(max(left, 0), min(left + cutout, width)):
                result[:, i, j] = 0
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 9])
@pytest.mark.parametrize("cutout", [0, 1, 4, 20])
def test_augmentation_is_that_of_a_slow_loop(flip: bool, shift: int, cutout: int) -> None:
    part = toy(12)
    images = by_number(part, batch_size=6, seed=3, epoch=4, flip=flip, shift=shift, cutout=cutout)
    for number, x_chw in images.items():
        expected = augmented_slowly(part, number, 3, 4, flip, shift, cutout)
        np.testing.assert_allclose(x_chw, expected, atol=1e-5)


def drawn_slowly(seed: int, epoch: int, number: int, stream: int, choices: int) -> int:
    """SplitMix64's finaliser after each part, on whole numbers modulo 2^64."""
    h = number
    for part in (seed, epoch, stream):
        h = (h + (part + 1) * 0x9E3779B97F4A7C15) % 2**64
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
        h ^= h >> 31
    return (h >> 16) % 2**32 % choices


@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10_000),
    numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    stream=st.integers(0, 4),
    choices=st.integers(1, 1000),
)
def test_draws_are_those_of_exact_arithmetic(
    seed: int, epoch: int, numbers: list[int], stream: int, choices: int
) -> None:
    drawn = augment._draw(seed, epoch, torch.tensor(numbers), stream, choices).tolist()
    assert drawn == [drawn_slowly(seed, epoch, number, stream, choices) for number in numbers]


def marked(count: int, side: int, row: int, column: int) -> torch.Tensor:
    """Black images with one white pixel."""
    x_nchw = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    x_nchw[:, :, row, column] = 255
    return x_nchw


def test_flips_and_all_shifts_are_equally_frequent_and_independent() -> None:
    count, shift, side = 20_000, 2, 13
    drawn = draw_augmentation(7, 1, count, (side, side), shift=shift)
    x_nhwc = marked(count, side, 6, 3).permute(0, 2, 3, 1)
    x_nchw = move(x_nhwc, drawn.mirrored, drawn.down, drawn.right, shift).permute(0, 3, 1, 2)
    assert x_nchw.flatten(1).long().sum(1).unique().tolist() == [255], "no mark is lost or doubled"
    places = Counter(x_nchw.flatten(1).long().argmax(1).tolist())
    expected = {
        (6 + down) * side + start + right for start in (3, 9) for down in range(-2, 3) for right in range(-2, 3)
    }
    assert set(places) == expected
    assert stats.chisquare(list(places.values())).pvalue > 1e-4
    flipped = sum(times for place, times in places.items() if place % side > 6)
    assert abs(flipped / count - 0.5) < 0.02


def test_the_shifts_of_two_epochs_and_of_two_seeds_are_independent() -> None:
    numbers = torch.arange(20_000)
    first = augment._draw(0, 0, numbers, 1, 5)
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        pairs = (first * 5 + augment._draw(seed, epoch, numbers, 1, 5)).bincount(minlength=25)
        assert stats.chisquare(pairs.tolist()).pvalue > 1e-4
    neighbours = (first[:-1] * 5 + first[1:]).bincount(minlength=25)
    assert stats.chisquare(neighbours.tolist()).pvalue > 1e-4


@pytest.mark.parametrize("cutout", [1, 2, 3, 6, 30])
def test_cutout_sets_one_square_to_the_mean_and_never_more_than_asked(cutout: int) -> None:
    part = toy(300, side=9)
    images = by_number(part, batch_size=300, seed=0, epoch=0, cutout=cutout)
    areas = []
    for number, x_chw in images.items():
        cut_hw = (x_chw == 0).all(0)
        assert torch.equal((x_chw == 0).any(0), cut_hw), "the same place in all channels"
        rows, columns = cut_hw.any(1), cut_hw.any(0)
        assert torch.equal(cut_hw, rows.unsqueeze(1) & columns), "a rectangle"
        assert max(int(rows.sum()), int(columns.sum())) <= cutout
        untouched = part.normalise(part.train_x[number].unsqueeze(0))[0]
        assert torch.equal(x_chw[:, ~cut_hw], untouched[:, ~cut_hw])
        areas.append(int(cut_hw.sum()))
    assert min(areas) >= 1
    assert max(areas) == min(cutout, 9) ** 2


def test_every_pixel_is_cut_out_sometimes() -> None:
    drawn = draw_augmentation(0, 0, 9_000, (6, 6), shift=0)
    cut = square((6, 6), drawn.cut_row, drawn.cut_column, 1)
    assert stats.chisquare(cut.sum(0).flatten().tolist()).pvalue > 1e-4


def test_augmentation_leaves_the_images_themselves_alone() -> None:
    part = toy(40)
    before = part.train_x.clone()
    by_number(part, batch_size=10, seed=0, epoch=0, flip=True, shift=3, cutout=3)
    assert torch.equal(part.train_x, before)

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spectrum.conv.segments import (
    PER_CHANNEL,
    Run,
    clamp_segments,
    interleaved,
    proportional_sizes,
    segment_runs,
    segment_sizes,
    segments_of_width,
)

channels_and_segments = st.integers(1, 300).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c)))


@given(channels_and_segments)
def test_sizes_cover_all_channels_and_differ_by_at_most_one(case):
    channels, segments = case
    sizes = segment_sizes(channels, segments)
    assert len(sizes) == segments
    assert sum(sizes) == channels
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


@given(channels_and_segments)
def test_two_runs_serve_any_count(case):
    sizes = segment_sizes(*case)
    runs = segment_runs(sizes, sizes)
    assert len(runs) == (1 if case[0] % case[1] == 0 else 2)
    assert sum(run.count for run in runs) == case[1]


@given(st.integers(1, 300), st.lists(st.integers(1, 40), min_size=1, max_size=8))
@example(8, [13, 1, 1, 1])
@example(5, [10, 1, 1])
def test_proportional_sizes_are_the_nearest_whole_ones(channels, shares):
    sizes = proportional_sizes(channels, shares)
    assert sum(sizes) == channels
    assert len(sizes) == min(channels, len(shares))
    assert min(sizes) >= 1
    exact = [channels * share / sum(shares) for share in shares]
    if min(exact) >= 1:
        assert all(abs(size - wanted) < 1 for size, wanted in zip(sizes, exact, strict=True))


@given(channels_and_segments)
def test_equal_proportions_are_even_sizes(case):
    channels, segments = case
    assert proportional_sizes(channels, (3,) * segments) == segment_sizes(channels, segments)


@pytest.mark.parametrize("shares", [(), (1, 0), (2, -1)])
def test_proportions_are_above_zero(shares):
    with pytest.raises(ValueError, match="expected whole numbers of at least 1"):
        proportional_sizes(8, shares)


@given(st.integers(1, 64))
def test_per_channel_is_one_segment_a_channel(channels):
    assert segment_sizes(channels, PER_CHANNEL) == segment_sizes(channels, channels) == (1,) * channels


def test_explicit_sizes_are_kept_in_order():
    assert segment_sizes(256, (96, 96, 64)) == (96, 96, 64)
    assert segment_runs((96, 96, 64), (96, 96, 64)) == (Run(2, 96, 96), Run(1, 64, 64))


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        (0, "segments=0: at least 1"),
        (-1, "segments=-1: at least 1"),
        (9, "segments=9: more than the 8 channels; try 1 … 8"),
        (True, "segments=True"),
        ("per channel", "segments='per channel'"),
        ((3, 4), r"segments=\[3, 4\]: the sizes sum to 7, not to 8 channels; try \[3, 5\]"),
        ((8, 8), r"the sizes sum to 16, not to 8 channels$"),
        ((), r"segments=\[\]"),
        ((8, 0), r"segments=\[8, 0\]"),
        (3.5, r'segments=3.5: expected a number, "per_channel", or a list of sizes'),
        ((4.0, 4), r"segments=\[4.0, 4\]"),
    ],
)
def test_wrong_segments_say_what_would_work(segments, says):
    with pytest.raises(ValueError, match=says):
        segment_sizes(8, segments)


@given(channels_and_segments)
def test_interleaving_deals_channels_of_neighbouring_segments_round(case):
    channels, segments = case
    order = interleaved(channels, segments)
    assert sorted(order) == list(range(channels))
    owner = [s for s, size in enumerate(segment_sizes(channels, segments)) for _ in range(size)]
    assert [owner[c] for c in order] == [position % segments for position in range(channels)]


def test_interleaving_is_the_channel_shuffle_of_shufflenet_where_segments_are_equal():
    # reshape (segments, channels / segments), transpose, flatten
    assert interleaved(6, 3) == (0, 2, 4, 1, 3, 5)


def test_a_layer_takes_as_many_segments_as_it_has_channels_for():
    assert clamp_segments(32, 64) == clamp_segments(32, PER_CHANNEL) == 32
    assert clamp_segments(32, 3) == 3


@given(st.integers(1, 300), st.integers(1, 400))
def test_a_segment_width_gives_segments_as_near_to_it_as_can_be(channels, width):
    segments = segments_of_width(channels, width)
    assert 1 <= segments <= channels
    assert segments == 1 or abs(channels / width - segments) <= 0.5
    if channels % width == 0:
        assert set(segment_sizes(channels, segments)) == {width}


def test_a_segment_width_below_one_is_refused():
    with pytest.raises(ValueError, match="segment_width=0"):
        segments_of_width(8, 0)

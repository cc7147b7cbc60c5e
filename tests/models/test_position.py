"""Position of a network on the spectrum, compared with slow and obvious versions."""

from fractions import Fraction
from itertools import combinations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum.conv.segments import PER_CHANNEL, segment_sizes
from spectrum.models.position import Position

counts = st.one_of(st.integers(1, 40), st.just(PER_CHANNEL))
positions = st.one_of(
    st.builds(Position, segments=counts, pointwise=st.booleans()),
    st.builds(Position, segment_width=st.integers(1, 40), pointwise=st.booleans()),
    st.builds(Position, stage_segments=st.tuples(counts, counts, counts), pointwise=st.booleans()),
    st.lists(st.integers(1, 9), min_size=1, max_size=5).map(
        lambda shares: Position(segments=len(shares), segment_shares=tuple(shares))
    ),
    st.just(Position()),
)


@given(positions, st.integers(1, 60), st.integers(0, 2))
def test_a_layer_has_the_segments_nearest_to_what_is_asked(position, channels, stage):
    sizes = segment_sizes(channels, position.segments_of(channels, stage))
    assert sum(sizes) == channels
    assert min(sizes) >= 1
    if position.segment_shares != "even":
        assert len(sizes) == min(channels, len(position.segment_shares))
    elif position.segment_width is not None:  # the number of segments nearest to channels / width
        exact = Fraction(channels, position.segment_width)
        assert abs(len(sizes) - exact) == min(abs(number - exact) for number in range(1, channels + 1))
    else:
        asked = [position.segments] * 3 if position.stage_segments is None else position.stage_segments
        every = [
            number for number in range(1, channels + 1) if asked[stage] in (None, PER_CHANNEL) or number <= asked[stage]
        ]
        assert len(sizes) == every[-1]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 9))
def test_shares_give_the_sizes_that_are_closest_to_them(shares, channels):
    position = Position(segments=len(shares), segment_shares=tuple(shares))
    if channels < len(shares):
        assert position.segments_of(channels) == (1,) * channels
        return
    cuts = combinations(range(1, channels), len(shares) - 1)  # every way to split the channels
    ways = [tuple(b - a for a, b in zip((0, *cut), (*cut, channels), strict=True)) for cut in cuts]

    def distance(sizes):
        return sum(
            (size - Fraction(channels * share, sum(shares))) ** 2 for size, share in zip(sizes, shares, strict=True)
        )

    assert distance(position.segments_of(channels)) == min(map(distance, ways))


@given(positions, st.integers(1, 60), st.integers(0, 2))
def test_a_layer_is_clamped_where_its_channels_do_not_allow_what_is_asked(position, channels, stage):
    if position.segment_shares != "even":
        whole = sum(position.segment_shares)
        unmet = [share for share in position.segment_shares if Fraction(channels * share, whole) < Fraction(1, 2)]
        expected = "segment_shares" if unmet or channels < len(position.segment_shares) else None
    elif position.segment_width is not None:
        expected = "segment_width" if channels < position.segment_width else None
    elif position.stage_segments is not None:
        asked = position.stage_segments[stage]
        expected = "stage_segments" if asked != PER_CHANNEL and channels < asked else None
    else:
        expected = "segments" if isinstance(position.segments, int) and channels < position.segments else None
    assert position.clamped_by(channels, stage) == expected


@given(counts, st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_clamped_layers_are_counted_from_what_the_layers_have_where_that_tells(segments, channels):
    position = Position(segments=segments)
    realised = tuple(len(segment_sizes(c, position.segments_of(c))) for c in channels)
    assert position.clamped_count(realised) == sum(position.clamped_by(c) is not None for c in channels)
    assert Position(segment_width=4).clamped_count(realised) is None
    assert Position(stage_segments=(1,)).clamped_count(realised) is None
    assert Position(segments=1, segment_shares=(1,)).clamped_count(realised) is None


@given(positions)
def test_a_table_keeps_the_position(position):
    said = dict(vars(position))
    assert Position.of(said) == Position.of(position)
    row = pd.DataFrame([said, {"segments": 2, "segment_width": 4.0}]).iloc[0]  # pandas turns None and 4 into floats
    expected = position if position != Position() else Position(segments=None)
    assert Position.of(row) == expected


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ({}, "per-channel"),
        ({"segments": "per_channel", "segment_width": float("nan")}, "per-channel"),
        ({"segments": "4"}, "4"),
        ({"segments": None, "segment_width": 8.0}, "width 8"),
        ({"segments": 1, "pointwise": False}, "plain 3×3"),
        ({"stage_segments": [1, 8, "per_channel"]}, "1, 8, per-channel"),
        ({"stage_segments": (2, 4), "pointwise": False}, "2, 4, no 1×1"),
    ],
)
def test_a_position_is_called_alike_whichever_table_it_comes_from(said, label):
    assert Position.of(said).label == label

"""The position of a network on the spectrum: parsed, resolved per layer, clamped and labelled in one module.

    Position.of(row) → position.segments_of(channels, stage) → SegmentedConv2d
                     → position.label                        → tables, figures, pages
                     → position.words                        → sentences

Pure Python, so that tables of results are labelled without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spectrum.conv.segments import PER_CHANNEL, clamp_segments, proportional_sizes, segments_of_width

Count = int | Literal["per_channel"]
PLACES = ("segments", "segment_width", "stage_segments")  # options of which at most one is set
POSITION = (*PLACES, "segment_shares", "pointwise")
PLAIN, END = "plain 3×3", "per-channel"  # what both ends of the spectrum are called


@dataclass(frozen=True)
class Position:
    """Split of the spatial convolutions of a network. At most one of the first three fields is not None.

    >>> Position(segments=4).label, Position(segment_width=4).label, Position(segments=1, pointwise=False).label
    ('4', 'width 4', 'plain 3×3')
    >>> Position(segments=64).segments_of(32), Position(segment_width=4).segments_of(32), Position().segments_of(32)
    (32, 8, 32)
    """

    segments: Count | None = None  # segments of every layer; None: per channel, unless another field is set
    segment_width: int | None = None  # channels per segment
    stage_segments: tuple[Count, ...] | None = None  # segments of the layers of each stage
    segment_shares: tuple[int, ...] | Literal["even"] = "even"  # proportions of the segments' sizes
    pointwise: bool = True  # False: plain 3×3, without the 1×1

    @classmethod
    def of(cls, run: Any) -> Position:
        """The position of a run: a record with these fields, or a mapping such as a row of a table or of plan.json.

        A mapping may lack fields, and may hold pandas' forms of numbers: NaN for None, 8.0 or "8" for 8.
        """
        if not isinstance(run, Mapping) and not hasattr(run, "iloc"):
            return cls(*(getattr(run, name) for name in POSITION))
        fields = {name: run.get(name) for name in POSITION}
        stages, shares = fields["stage_segments"], fields["segment_shares"]
        listed = isinstance(stages, tuple | list)
        width = _whole(fields["segment_width"])
        return cls(
            None if listed or width is not None else _count(fields["segments"]),
            None if listed else width,
            tuple(_count(one) or PER_CHANNEL for one in stages) if listed else None,
            tuple(shares) if isinstance(shares, tuple | list) else "even",
            True if fields["pointwise"] is None else bool(fields["pointwise"]),
        )

    def asked_of(self, stage: int = 0) -> Count:
        """The number of segments requested for the layers of a stage, if given as a number."""
        if self.stage_segments is not None:
            return self.stage_segments[stage]
        return PER_CHANNEL if self.segments is None else self.segments

    def segments_of(self, channels: int, stage: int = 0) -> int | tuple[int, ...]:
        """Segments of a layer, clamped to its channels: their number, or with shares their sizes.

        Args:
            channels: channels that the spatial convolution splits.
            stage: number of the layer's stage in the network, from 0.
        """
        if self.segment_shares != "even":
            return proportional_sizes(channels, self.segment_shares)
        if self.segment_width is not None:
            return segments_of_width(channels, self.segment_width)
        return clamp_segments(channels, self.asked_of(stage))

    def clamped_by(self, channels: int, stage: int = 0) -> str | None:
        """The option for which a layer has too few channels; None if it has enough.

        Too few means: more segments than channels, a segment width above the channels, or a share that would be below
        half a channel and is rounded up to one.
        """
        if self.segment_shares != "even":
            whole, least = sum(self.segment_shares), min(self.segment_shares)
            enough = channels >= len(self.segment_shares) and 2 * channels * least >= whole
            return None if enough else "segment_shares"
        if self.segment_width is not None:
            return "segment_width" if self.segment_width > channels else None
        asked = self.asked_of(stage)
        option = "segments" if self.stage_segments is None else "stage_segments"
        return option if asked != PER_CHANNEL and asked > channels else None

    def clamped_count(self, realised: tuple[int, ...]) -> int | None:
        """Number of layers with fewer segments than requested; None if the layers' segments alone do not tell.

        For plans of earlier versions, which do not record how many layers each option clamped.
        """
        if self.segment_width is not None or self.stage_segments is not None or self.segment_shares != "even":
            return None
        asked = self.asked_of()
        return 0 if asked == PER_CHANNEL else sum(have < asked for have in realised)

    @property
    def split(self) -> str:
        """The label of the segments, with or without a 1×1."""
        if self.stage_segments is not None:
            return ", ".join(map(_called, self.stage_segments))
        return _called(self.asked_of()) if self.segment_width is None else f"width {self.segment_width}"

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain 3×3: one segment, and no 1×1."""
        return not self.pointwise and self.split == "1"

    @property
    def label(self) -> str:
        """The label of the position in tables and on axes."""
        if self.is_plain:
            return PLAIN
        return self.split if self.pointwise else f"{self.split}, no 1×1"

    @property
    def words(self) -> str:
        """The position in a sentence.

        >>> Position(segments=4).words, Position(segment_width=4).words, Position(stage_segments=(1, 8)).words
        ('4 segments', '4 channels per segment', '1/8 segments by stage')
        >>> Position(segment_width=1).words, Position(segments=1, pointwise=False).words
        ('per-channel', 'plain 3×3')
        """
        if self.is_plain:
            return PLAIN
        if self.stage_segments is not None:
            words = f"{'/'.join(map(_called, self.stage_segments))} segments by stage"
        elif self.segment_width not in (None, 1):
            words = f"{self.segment_width} channels per segment"
        else:
            count = PER_CHANNEL if self.segment_width == 1 else self.asked_of()
            words = END if count == PER_CHANNEL else f"{count} segment{'' if count == 1 else 's'}"
        return words if self.pointwise else f"{words} without the 1×1"


def _called(count: Count) -> str:
    return END if count == PER_CHANNEL else str(count)


def _count(value: Any) -> Count | None:
    return PER_CHANNEL if isinstance(value, str) and value == PER_CHANNEL else _whole(value)


def _whole(value: Any) -> int | None:
    """A whole number in any of pandas' forms (8, 8.0 or "8"); None for None, NaN and other missing values."""
    try:
        return int(float(value))
    except (TypeError, ValueError):
        return None

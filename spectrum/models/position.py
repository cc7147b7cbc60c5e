"""Where on the spectrum a network stands: parsed once, resolved layer by layer, labelled and clamped in one place.

    Position.of(row) → position.segments_of(channels, stage) → SegmentedConv2d
                     → position.label                        → tables, figures, pages

Pure Python: a table of results is labelled without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spectrum.conv.segments import PER_CHANNEL, clamp_segments, proportional_sizes, segments_of_width

Count = int | Literal["per_channel"]
PLACES = ("segments", "segment_width", "stage_segments")  # options of which one says where a network stands
POSITION = (*PLACES, "segment_shares", "pointwise")


@dataclass(frozen=True)
class Position:
    """How finely the spatial convolutions of a network are split. At most one of the first three is not None.

    >>> Position(segments=4).label, Position(segment_width=4).label, Position(segments=1, pointwise=False).label
    ('4', 'width 4', 'plain 3×3')
    >>> Position(segments=64).segments_of(32), Position(segment_width=4).segments_of(32), Position().segments_of(32)
    (32, 8, 32)
    """

    segments: Count | None = None  # of every layer; None: per channel, unless another field says otherwise
    segment_width: int | None = None  # channels per segment
    stage_segments: tuple[Count, ...] | None = None  # segments of the layers of each stage
    segment_shares: tuple[int, ...] | Literal["even"] = "even"  # sizes of the segments, in proportion
    pointwise: bool = True  # False: plain 3×3, without the 1×1

    @classmethod
    def of(cls, run: Any) -> Position:
        """The position of a run: a record with these fields, or a mapping such as a row of a table or of plan.json.

        A mapping may leave fields out, and have numbers as pandas has them: NaN for None, 8.0 or "8" for 8.
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
        """The segments that are asked of the layers of a stage, where a count says it."""
        if self.stage_segments is not None:
            return self.stage_segments[stage]
        return PER_CHANNEL if self.segments is None else self.segments

    def segments_of(self, channels: int, stage: int = 0) -> int | tuple[int, ...]:
        """Segments of a layer, clamped to its channels: their number, or all their sizes where shares say them.

        Args:
            channels: that the spatial convolution splits.
            stage: of the network that the layer is in, from 0.
        """
        if self.segment_shares != "even":
            return proportional_sizes(channels, self.segment_shares)
        if self.segment_width is not None:
            return segments_of_width(channels, self.segment_width)
        return clamp_segments(channels, self.asked_of(stage))

    def clamped_by(self, channels: int, stage: int = 0) -> str | None:
        """The option that asks a layer for what its channels do not allow; None where they do.

        A number of segments above the channels, a width of segments above them, or shares of which one would have less
        than half a channel and has a whole one.
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
        """Layers that have fewer segments than asked for, from what they have; None where that alone cannot tell.

        For plans of earlier versions, which do not say which option clamped how many layers.
        """
        if self.segment_width is not None or self.stage_segments is not None or self.segment_shares != "even":
            return None
        asked = self.asked_of()
        return 0 if asked == PER_CHANNEL else sum(have < asked for have in realised)

    @property
    def split(self) -> str:
        """What the segments are called, whether or not the 1×1 is there."""
        if self.stage_segments is not None:
            return ", ".join(map(_called, self.stage_segments))
        return _called(self.asked_of()) if self.segment_width is None else f"width {self.segment_width}"

    @property
    def label(self) -> str:
        """What the position is called in tables and on axes."""
        if self.pointwise:
            return self.split
        return "plain 3×3" if self.split == "1" else f"{self.split}, no 1×1"


def _called(count: Count) -> str:
    return "per-channel" if count == PER_CHANNEL else str(count)


def _count(value: Any) -> Count | None:
    return PER_CHANNEL if isinstance(value, str) and value == PER_CHANNEL else _whole(value)


def _whole(value: Any) -> int | None:
    """A whole number as pandas may have it: 8, 8.0 or "8"; None for None, NaN and its other kinds of nothing."""
    try:
        return int(float(value))
    except (TypeError, ValueError):
        return None

"""The options of a network, each declared once: name, type, check, default, and what it does.

A run (design/run.py) has those of `NetworkFields`, and so have the axes of a study, flags of the command and columns
of tables. To add an option, declare it here with the default None or off, name it under `uses` of the architectures
that look at it (models/families.py), and look at it there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from spectrum._records import Fraction, Positive, Rate, Record, as_tuple
from spectrum.conv.arguments import MOST_CHANNELS, Activation, Order
from spectrum.conv.segments import PER_CHANNEL
from spectrum.models.position import PLACES

MOST_SEGMENTS = 65_536
MOST_BLOCKS = 10_000  # of a stage; more take minutes to build, and no network has them
Count = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]


def segments_given(value: object) -> object:
    """A number of segments, "per_channel" or None; raises ValueError for anything else."""
    if value is None or value == PER_CHANNEL:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SEGMENTS:
        raise ValueError(f'{value!r} is not a number of segments; try 1, 2, 3, 4, 8 … or "{PER_CHANNEL}"')
    return value


def _schedule(value: object) -> object:
    """Each stage's as a study file gives it."""
    return tuple(segments_given(one) for one in value) if isinstance(value, list | tuple) else value


def _shares(value: object) -> object:
    whole = isinstance(value, list | tuple) and all(type(one) is int and one >= 1 for one in value)
    if value != "even" and not (whole and value):
        raise ValueError(f'{value!r} are no proportions; try "even", or whole numbers of at least 1 such as [3, 2, 1]')
    return as_tuple(value)


class NetworkFields(Record):
    """Options of a network that a study can set."""

    width: float = Field(1.0, gt=0, le=64, allow_inf_nan=False)
    """Factor on the family's stage widths."""
    widths: Annotated[tuple[Count, ...] | None, BeforeValidator(as_tuple)] = Field(None, min_length=1)
    """Explicit stage widths in channels, instead of width."""
    depth: Annotated[int, Field(ge=1, le=MOST_BLOCKS)] | None = None
    """Blocks a stage; otherwise the family's own."""
    segments: Annotated[int | Literal["per_channel"] | None, BeforeValidator(segments_given)] = None
    """Segments of every spatial convolution, clamped to its channels; per_channel if not said."""
    segment_width: Count | None = None
    """Channels a segment, instead of segments."""
    stage_segments: Annotated[tuple[int | Literal["per_channel"], ...] | None, BeforeValidator(_schedule)] = Field(
        None, min_length=1
    )
    """Segments of each stage of the network, the first stage's first, instead of segments."""
    segment_shares: Annotated[tuple[int, ...] | Literal["even"], BeforeValidator(_shares)] = "even"
    """Proportions of the sizes of the segments, such as [6, 3, 2, 1], which is then their number."""
    order: Order | None = None
    """Which half of the operation runs first; if it is not said, the family's own."""
    activation: Activation | None = None
    """Non-linearity between the halves; if it is not said, the family's own."""
    norm: bool | None = None
    """Batch normalisation between the halves; if it is not said, the family's own."""
    pointwise: bool = True
    """False: the bare spatial convolution, without a 1×1."""
    pointwise_segments: Count = 1
    """Segments of the 1×1 itself."""
    shuffle: bool = False
    """Interleave channels between the halves."""
    downsampling: Literal["pool", "stride"] = "pool"
    """Where resolution falls: in pools between the stages, or in the first spatial half of each."""
    stem_stride: Positive | None = None
    """Stride of the first convolution, which fits a network to small or large images; otherwise the family's own."""
    residual: bool = True
    """Whether blocks have skip connections."""
    dropout: Fraction = 0.0
    """Before the classifier."""
    hidden: Annotated[tuple[Count, ...], BeforeValidator(as_tuple)] = ()
    """Sizes of fully connected layers before the classifier."""
    padding: Literal["tf_same", "torch"] | None = None
    """Of strided windows and of averages, in families that can have either; otherwise the family's own."""
    form: Literal["canonical", "simplified", "segments", "extreme"] | None = None
    """Of Inception modules; otherwise the family's own."""
    norm_eps: Rate | None = None
    """Added to the variance in every batch normalisation; otherwise the family's own."""
    norm_momentum: float | None = Field(None, gt=0, le=1)
    """Weight of a new batch in the running statistics, as torch has it; otherwise the family's own."""

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        places = [name for name in PLACES if getattr(self, name) is not None]
        if len(places) > 1:
            raise ValueError(f"{' and '.join(places)}: give one of the {'two' if len(places) == 2 else 'three'}")
        if self.segment_shares != "even":
            if places and self.segments is None:
                raise ValueError(f"{places[0]} and segment_shares: give one of the two")
            if self.segments != len(self.segment_shares):
                raise ValueError(
                    f"segment_shares: are {len(self.segment_shares)}; set segments to that number, or leave it out"
                )
        if self.widths is not None and self.width != 1.0:
            raise ValueError("width and widths: give one of the two")
        if self.shuffle and self.pointwise_segments == 1:
            raise ValueError("shuffle: only relabels rows of a dense 1×1; set pointwise_segments above 1")
        return self


class NetworkOptions(NetworkFields):
    """All that determines a network, one record for every architecture. Words as in `SegmentedConv2d`.

    A layer with fewer channels than `segments` takes one segment per channel (see `realised_segments`). numpy's
    integers and lists are taken, and kept as Python's own. Raises SpecError, a ValueError, with the option's name and
    what would work.

    >>> NetworkOptions(in_channels=0)
    Traceback (most recent call last):
    spectrum._records.SpecError: in_channels: input should be greater than or equal to 1 (got 0)
    """

    in_channels: Count = 3
    """Channels of the images."""
    num_classes: Count = 10
    """Classes of the data set."""
    image_size: Count = 32
    """Side of the images in pixels."""
    auxiliary: bool = False
    """Whether there is a second classifier half-way, for training."""

    def with_defaults(self, **own: Any) -> NetworkOptions:
        """The architecture with a family's own values where it says None."""
        return self.model_copy(update={name: value for name, value in own.items() if getattr(self, name) is None})

    def scaled_widths(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """Stage widths: explicit ones, or a family's own times `width`, rounded to whole channels.

        Raises ValueError for both, or for another number of explicit ones.
        """
        if self.widths is None:
            return tuple(max(1, round(self.width * width)) for width in own)
        if self.width != 1.0:
            raise ValueError("width and widths: give one of the two")
        if len(self.widths) != len(own):
            raise ValueError(f"widths={list(self.widths)}: expected {len(own)} stage widths, as in {list(own)}")
        return self.widths

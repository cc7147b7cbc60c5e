"""The options of a network, each declared once: name, type, check, default and description.

A run (design/run.py), the axes of a study, the command's flags and the columns of tables all take them from
`NetworkFields`. To add an option, declare it here with a default that changes nothing, list it under `uses` of the
architectures that read it (models/families.py), and read it there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from spectrum._records import Fraction, Positive, Rate, Record, as_tuple
from spectrum._registry import nearest
from spectrum.conv.arguments import MOST_CHANNELS, Activation, Order
from spectrum.conv.segments import PER_CHANNEL
from spectrum.models.position import PLACES

MOST_SEGMENTS = 65_536
MOST_BLOCKS = 10_000  # per stage; more take minutes to build, and no published network has them
Count = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]


def segments_given(value: object) -> object:
    """A number of segments, "per_channel" or None. Raises ValueError for anything else."""
    if value is None or value == PER_CHANNEL:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SEGMENTS:
        if isinstance(value, str) and nearest(value, [PER_CHANNEL]):
            raise ValueError(f'{value!r} is not a number of segments; did you mean "{PER_CHANNEL}"?')
        if isinstance(value, str) and value.strip().isdecimal():
            raise ValueError(f"{value!r} is text, not a number of segments; write {value.strip()} without quotes")
        raise ValueError(f'{value!r} is not a number of segments; try 1, 2, 3, 4, 8 … or "{PER_CHANNEL}"')
    return value


def _schedule(value: object) -> object:
    """The segments of each stage, as given in a study file."""
    return tuple(segments_given(one) for one in value) if isinstance(value, list | tuple) else value


def _shares(value: object) -> object:
    whole = isinstance(value, list | tuple) and all(type(one) is int and one >= 1 for one in value)
    if value != "even" and not (whole and value):
        raise ValueError(f'{value!r} are not proportions; try "even", or whole numbers of at least 1 such as [3, 2, 1]')
    return as_tuple(value)


class NetworkFields(Record):
    """Options of a network that a study can set."""

    width: float = Field(1.0, gt=0, le=64, allow_inf_nan=False)
    """Factor that multiplies the architecture's stage widths."""
    widths: Annotated[tuple[Count, ...] | None, BeforeValidator(as_tuple)] = Field(None, min_length=1)
    """Stage widths in channels, instead of width."""
    depth: Annotated[int, Field(ge=1, le=MOST_BLOCKS)] | None = None
    """Blocks per stage; by default the architecture's own number."""
    segments: Annotated[int | Literal["per_channel"] | None, BeforeValidator(segments_given)] = None
    """Segments of every spatial convolution, clamped to its channels; by default per_channel."""
    segment_width: Count | None = None
    """Channels per segment, instead of segments."""
    stage_segments: Annotated[tuple[int | Literal["per_channel"], ...] | None, BeforeValidator(_schedule)] = Field(
        None, min_length=1
    )
    """Segments of each stage, first stage first, instead of segments."""
    segment_shares: Annotated[tuple[int, ...] | Literal["even"], BeforeValidator(_shares)] = "even"
    """Proportions of the segments' sizes, such as [6, 3, 2, 1] for four segments; by default even."""
    order: Order | None = None
    """Whether the 1×1 or the 3×3 comes first; by default the architecture's own order."""
    activation: Activation | None = None
    """Non-linearity between the 1×1 and the 3×3; by default the architecture's own."""
    norm: bool | None = None
    """Batch normalisation between the 1×1 and the 3×3; by default the architecture's own."""
    pointwise: bool = True
    """Whether there is a 1×1; false gives a plain 3×3."""
    pointwise_segments: Count = 1
    """Segments of the 1×1 itself."""
    shuffle: bool = False
    """Whether to interleave channels between the 1×1 and the 3×3."""
    downsampling: Literal["pool", "stride"] = "pool"
    """How resolution is halved: by pools between stages, or by a stride in the first 3×3 of each stage."""
    stem_stride: Positive | None = None
    """Stride of the first convolution, for small or large images; by default the architecture's own."""
    residual: bool = True
    """Whether blocks have skip connections."""
    dropout: Fraction = 0.0
    """Dropout probability before the classifier."""
    hidden: Annotated[tuple[Count, ...], BeforeValidator(as_tuple)] = ()
    """Sizes of fully connected layers before the classifier."""
    padding: Literal["tf_same", "torch"] | None = None
    """Padding of strided windows and average pools, if an architecture supports both; by default its own."""
    form: Literal["canonical", "simplified", "segments", "extreme"] | None = None
    """Form of Inception modules; by default the architecture's own."""
    norm_eps: Rate | None = None
    """Epsilon added to the variance in batch normalisation; by default the architecture's own."""
    norm_momentum: float | None = Field(None, gt=0, le=1)
    """Weight of a new batch in the running statistics, as in torch; by default the architecture's own."""

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
                    f"segment_shares: has {len(self.segment_shares)}; set segments to that number, or leave it out"
                )
        if self.widths is not None and self.width != 1.0:
            raise ValueError("width and widths: give one of the two")
        if self.shuffle and self.pointwise_segments == 1:
            raise ValueError("shuffle: only relabels rows of a dense 1×1; set pointwise_segments above 1")
        return self


class NetworkOptions(NetworkFields):
    """All options of a network, one record for every architecture. Terms are those of `SegmentedConv2d`.

    A layer with fewer channels than `segments` takes one segment per channel (see `realised_segments`). numpy's
    integers and lists are converted to Python's own. Raises SpecError, a ValueError, with the option's name and what
    would work.

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
    """Whether there is a second classifier half-way through the network, for training."""

    def with_defaults(self, **own: Any) -> NetworkOptions:
        """The options with None replaced by an architecture's own defaults."""
        return self.model_copy(update={name: value for name, value in own.items() if getattr(self, name) is None})

    def scaled_widths(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """Stage widths: `widths` if given, else an architecture's own times `width`, rounded to whole channels.

        Raises ValueError if both are given, or for a wrong number of `widths`.
        """
        if self.widths is None:
            return tuple(max(1, round(self.width * width)) for width in own)
        if self.width != 1.0:
            raise ValueError("width and widths: give one of the two")
        if len(self.widths) != len(own):
            raise ValueError(f"widths={list(self.widths)}: expected {len(own)} stage widths, as in {list(own)}")
        return self.widths

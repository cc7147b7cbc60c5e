"""A Point: one training run, fully described by a flat frozen record.

Records are strict; a key that is not known is an error. Nothing here loads torch, so that a wrong file is refused at
once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from spectrum._records import (
    Fraction,
    NotNegative,
    Positive,
    Rate,
    Record,
    Seed,
    SpecError,
    explain,
)
from spectrum.conv.arguments import Activation, Order
from spectrum.conv.segments import PER_CHANNEL
from spectrum.design.recipes import RECIPES
from spectrum.models import NetworkOptions, check_model, own_values
from spectrum.models.options import NetworkFields, segments_given
from spectrum.models.position import PLACES

SCHEMA = 1  # of a Point; raise it only when an old row would mean something else
MOST_TEACHER_SEGMENTS = 6  # the teacher has so many channels
OWN_SEED = "seed"  # of a teacher: the seed of the run
GAUSSIAN = "gaussian"  # images of noise, made on the spot for a teacher to label


# Options that say which network a point trains, but for its widths. Hashes of frozen plans list the values of these,
# in this order, and would change with it; each option that came later is in a hash only where it is set.
_NETWORK_AT_FIRST = (
    *("model", "depth", "segments", "segment_width", "order", "activation", "norm", "pointwise", "pointwise_segments"),
    *("shuffle", "downsampling", "residual"),
)
_NOT_SAID = ("width", "widths", "dropout")  # budgets solve for the first two; dropout changes no count of a network
_NETWORK_ADDED = tuple(name for name in NetworkFields.model_fields if name not in (*_NETWORK_AT_FIRST, *_NOT_SAID))
NETWORK = (*_NETWORK_AT_FIRST, *_NETWORK_ADDED)


def _teacher_seed(value: object) -> object:
    if value != OWN_SEED and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
        raise ValueError(f'{value!r} is no seed; try 0, 1, 2 … or "{OWN_SEED}", each run\'s own')
    return value


class _Images(Record):
    """The images of a run, and the architecture that it trains on them."""

    # data
    dataset: str = Field("digits", min_length=1)
    """digits, fashion_mnist, cifar10, cifar100, gaussian (with a teacher), a hub id (owner/name), a folder (./path), or
    a name of `register_dataset`."""
    image_size: Positive | None = None
    """Side in pixels that images are resized to; otherwise they keep theirs and must all have one size."""
    resize: Literal["stretch", "centre_crop"] = "stretch"
    """To image_size: the whole image to a square, or a square of 0.875 of its shorter side from its middle."""
    train_images: Positive | None = None
    """Size of a fixed, balanced part of the training split; otherwise all of it."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Part of the official training set that is carved off, the same for every seed, for validation."""
    normalisation: Literal["moments", "plus_minus_one"] = "moments"
    """Of pixels: to mean 0 and standard deviation 1 over the training split, or to −1 … 1."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    shift: int = Field(0, ge=0)
    """Move each training image by up to so many pixels both ways, zeros moving in."""
    cutout: int = Field(0, ge=0)
    """Side in pixels of a square of each training image that is set to the mean."""
    teacher_segments: Annotated[int | Literal["per_channel"] | None, BeforeValidator(segments_given)] = None
    """Replace the labels by those of a random frozen network with so many segments."""
    label_noise: Fraction = 0.0
    """Part of a teacher's labels that is drawn anew, which bounds every accuracy."""
    teacher_seed: Annotated[Seed | Literal["seed"], BeforeValidator(_teacher_seed)] = 0
    """Of the teacher's weights, its images where it has them made, and its noise; "seed": the run's, so that every seed
    has a teacher of its own and intervals speak of teachers too."""

    # network
    model: str = "probe"
    """A family: see list_models()."""


class Point(NetworkFields, _Images):
    """One training run, fully described.

    >>> point = Point(dataset="digits", segments=8, seed=1)
    >>> point.epochs, point.order
    (8, 'pointwise_first')
    >>> point.id == Point(segments=8, seed=1, epochs=8).id  # what is at its default is not in the id
    True
    >>> Point(segments=8, activation="rleu")
    Traceback (most recent call last):
    spectrum._records.SpecError: activation: 'rleu' is unknown; did you mean "relu"?

    Frozen. Raises SpecError, a ValueError, for a field that is not known or a value that cannot be. `model_fields_set`
    are the fields that were named: what a family or a recipe filled in is not among them.
    """

    # what an architecture leaves open, its own fills in: see `own_values`
    order: Order = "pointwise_first"
    """Which half of the operation runs first; if it is not said, the family's own, which for probe is this."""
    activation: Activation = "none"
    """Non-linearity between the halves; if it is not said, the family's own."""
    norm: bool = False
    """Batch normalisation between the halves; if it is not said, the family's own."""

    # training
    recipe: Literal["imagenet_xception", "imagenet_inception", "jft"] | None = None
    """A training set-up of the Xception paper, for the fields below (and dropout) that nothing else names. A field that
    is named keeps its value, also where that is the default."""
    epochs: Positive = 8
    """Passes over the training images."""
    batch_size: Positive = 128
    """Images a step; the last, smaller batch of an epoch is left out."""
    optimizer: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    """SGD with momentum, AdamW, or RMSprop with momentum."""
    lr: Rate = 0.1
    """Peak learning rate; the default suits SGD, the other optimisers need a far smaller one."""
    momentum: Fraction = 0.9
    """Momentum of SGD and RMSprop, first beta of AdamW."""
    nesterov: bool = True
    """Nesterov's form of SGD's momentum."""
    weight_decay: NotNegative = 5e-4
    """On convolution and classifier weights, not on BN or bias."""
    schedule: Literal["cosine", "one_cycle", "exponential"] = "cosine"
    """Of the learning rate, after the warm-up."""
    warmup_epochs: NotNegative = 0.0
    """Epochs in which the learning rate rises linearly from 0."""
    decay: float = Field(0.94, gt=0, le=1)
    """Factor of the exponential schedule every decay_epochs."""
    decay_epochs: Rate = 2.0
    """Epochs between two steps of the exponential schedule."""
    decay_images: Positive | None = None
    """Images between two steps of the exponential schedule, instead of decay_epochs."""
    label_smoothing: Fraction = 0.0
    """Part of the target spread evenly over all classes."""
    ema: Fraction = 0.0
    """Decay of an exponential average of the weights, which is then what is scored; 0 is off."""
    autocast: bool = False
    """bfloat16 where torch's autocast has it."""
    compile: bool = False
    """torch.compile the network."""
    seed: Seed = 0
    """Of initial weights, order of images, augmentation and dropout."""
    scored_on: Literal["test", "validation"] = "test"
    """validation: the test set is not read, and its columns stay empty."""

    @model_validator(mode="wrap")
    @classmethod
    def _filled(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill what is left open; what counts as set is what was named."""
        if not isinstance(values, dict):
            return handler(values)
        point = handler(_with_defaults(values))
        object.__setattr__(point, "__pydantic_fields_set__", values.keys() & cls.model_fields.keys())
        return point

    @model_validator(mode="after")
    def _check(self) -> Point:
        if self.segment_shares != "even" and not self.pointwise:
            raise ValueError("segment_shares: need the 1×1; leave out pointwise = false")
        if self.resize != "stretch" and self.image_size is None:
            raise ValueError(f"resize: {self.resize!r} needs an image_size")
        if not self.pointwise:
            for field in ("activation", "norm", "pointwise_segments", "order"):
                if getattr(self, field) != Point.model_fields[field].default:
                    raise ValueError(f"{field}: there is no second half with pointwise = false; leave it out")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        check_model(self.model)
        return self

    @property
    def id(self) -> str:
        """A hash of what differs from the defaults, so that a new field orphans no old row."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"recipe"})  # whose values are all there
        return digest({"schema": SCHEMA, "point": fields})

    def network_options(self, in_channels: int, num_classes: int, image_size: int) -> NetworkOptions:
        """The network of this point, for images of one shape.

        Args:
            in_channels: of the images.
            num_classes: of the data set.
            image_size: side in pixels.
        """
        options = {name: getattr(self, name) for name in NetworkFields.model_fields}
        return NetworkOptions(in_channels=in_channels, num_classes=num_classes, image_size=image_size, **options)


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """One segment per channel, a recipe, and what the family has between its halves, where a point leaves them open."""
    if all(values.get(name) is None for name in PLACES):
        shares = values.get("segment_shares")
        some = isinstance(shares, list | tuple) and len(shares) > 0
        values = {**values, "segments": len(shares) if some else PER_CHANNEL}  # type: ignore[arg-type]
    recipe = values.get("recipe")
    if isinstance(recipe, str):
        values = {**RECIPES.get(recipe, {}), **values}
    if values.get("pointwise") is False:
        return values
    return {**own_values(str(values.get("model", "probe"))), **values}


IMAGES = {  # fields that say which images a point has, and what rows from before they were there mean
    name: Point.model_fields[name].default
    for name in ("dataset", "image_size", "resize", "teacher_segments", "label_noise", "teacher_seed")
}


def images_key(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which images a row, or a point's fields, say there are: alike for all runs that share them."""
    values = {name: fields.get(name, default) for name, default in IMAGES.items()}
    if values["teacher_seed"] == OWN_SEED:
        values["teacher_seed"] = fields["seed"]
    return tuple(values.values())


def named(point: Point) -> dict[str, Any]:
    """The fields of a point that were named, and their values; the others follow from these."""
    return {name: getattr(point, name) for name in Point.model_fields if name in point.model_fields_set}


def merged(base: Point, changes: Mapping[str, Any]) -> Point:
    """A point with some of its fields changed. What the base names stays; what it leaves open is filled anew.

    Raises SpecError, which says the changes, where there is no such point.
    """
    return from_named(named(base), changes)


def from_named(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> Point:
    """A point of the fields that are named, and of changes to them. Raises SpecError as `merged` does."""
    kept = dict(fields)
    if changes.keys() & set(PLACES):  # the place on the spectrum is another one
        gone: Sequence[str] = (*PLACES, "segment_shares")
    else:
        gone = PLACES if changes.get("segment_shares", "even") != "even" else ()
    for name in gone:
        kept.pop(name, None)
    try:
        return Point.model_validate(kept | dict(changes))
    except ValidationError as error:
        settings = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
        raise SpecError("\n".join(f"{line} (at {settings})" for line in explain(error, Point).splitlines())) from None


def all_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a point of which plan.json keeps those that differ from their defaults.

    What is at its default is left out there, also where a family or a recipe has another value of its own.
    """
    fields = {name: field.default for name, field in Point.model_fields.items()} | dict(stored)
    return fields | ({"segments": PER_CHANNEL} if all(fields[name] is None for name in PLACES) else {})


def network_key(point: Point, *more: str) -> list[Any]:
    """The fields that say which network a point trains, and `more` of them, for hashes.

    Those that were added to a Point are there only where they are set, so that frozen hashes stay what they are.
    """
    values = [getattr(point, name) for name in (*_NETWORK_AT_FIRST, *more)]
    added = {name: getattr(point, name) for name in _NETWORK_ADDED}
    added = {name: value for name, value in added.items() if value != Point.model_fields[name].default}
    return [*values, added] if added else values


def digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def choices(field: str) -> tuple[str, ...]:
    """The values that a field of a Point with fixed choices can take."""
    kinds = get_args(Point.model_fields[field].annotation)
    return tuple(value for kind in kinds for value in get_args(kind) or (kind,) if isinstance(value, str))

"""RunConfig: one training run, fully described by a flat frozen record.

Records are strict: an unknown key is an error. Nothing here loads torch, so that an invalid file is refused at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from spectrum._records import (
    Fraction,
    NotNegative,
    Positive,
    Rate,
    Record,
    Seed,
)
from spectrum.conv.arguments import Activation, Order
from spectrum.conv.segments import PER_CHANNEL
from spectrum.design.hashes import digest
from spectrum.design.recipes import RECIPES
from spectrum.models import NetworkOptions, check_model, own_values
from spectrum.models.options import NetworkFields, segments_given
from spectrum.models.position import PLACES

SCHEMA = 1  # version of RunConfig; raise it only if old rows would change their meaning
MOST_TEACHER_SEGMENTS = 6  # number of channels of a teacher
OWN_SEED = "seed"  # teacher_seed that follows the run's own seed
GAUSSIAN = "gaussian"  # data set of generated noise images, labelled by a teacher


def _teacher_seed(value: object) -> object:
    if value != OWN_SEED and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31):
        raise ValueError(f'{value!r} is not a seed; try 0, 1, 2 … or "{OWN_SEED}", each run\'s own')
    return value


class _Images(Record):
    """Images of a run, and the architecture trained on them."""

    # data
    dataset: str = Field("digits", min_length=1)
    """digits, fashion_mnist, cifar10, cifar100, gaussian (with a teacher), a hub id (owner/name), a folder (./path), or
    a name of `register_dataset`."""
    image_size: Positive | None = None
    """Side in pixels to which images are resized; by default they keep their size, which must be the same for all."""
    resize: Literal["stretch", "centre_crop"] = "stretch"
    """How to reach image_size: stretch the whole image, or crop 0.875 of its shorter side from its centre."""
    train_images: Positive | None = None
    """Train on a fixed, balanced part of the training split, with this many images; by default on all of it."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Part of the official training set that is held out for validation, the same for every seed."""
    normalisation: Literal["moments", "plus_minus_one"] = "moments"
    """Normalise pixels to mean 0 and standard deviation 1 over the training split, or to −1 … 1."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    shift: int = Field(0, ge=0)
    """Shift each training image by up to this many pixels along both axes; zeros fill the gap."""
    cutout: int = Field(0, ge=0)
    """Side in pixels of a random square of each training image that is set to the mean (cutout)."""
    teacher_segments: Annotated[int | Literal["per_channel"] | None, BeforeValidator(segments_given)] = None
    """Replace the labels by those of a random frozen network with this many segments, the teacher."""
    label_noise: Fraction = 0.0
    """Part of a teacher's labels replaced by random ones, which limits the highest possible accuracy."""
    teacher_seed: Annotated[Seed | Literal["seed"], BeforeValidator(_teacher_seed)] = 0
    """Seed of the teacher's weights, its generated images and its noise. "seed" takes the run's seed: every seed then
    has its own teacher, and intervals cover the variation between teachers."""

    # network
    model: str = "probe"
    """An architecture: one of list_models(), or of your own; or a function that returns any network, whose k×k
    convolutions are replaced: my_module:function, torchvision:resnet18, timm:resnet18."""


class RunConfig(NetworkFields, _Images):
    """One training run, fully described.

    >>> run = RunConfig(dataset="digits", segments=8, seed=1)
    >>> run.epochs, run.order
    (8, 'pointwise_first')
    >>> run.id == RunConfig(segments=8, seed=1, epochs=8).id  # what is at its default is not in the id
    True
    >>> RunConfig(segments=8, activation="rleu")
    Traceback (most recent call last):
    spectrum._records.SpecError: activation: 'rleu' is unknown; did you mean "relu"?

    Frozen. Raises SpecError, a ValueError, for an unknown field or an invalid value. `model_fields_set` contains the
    fields that were set explicitly, without those that an architecture or a recipe filled in.
    """

    # defaults of an architecture replace these: see `own_values`
    order: Order = "pointwise_first"
    """Whether the 1×1 or the 3×3 runs first; by default the architecture's own order, which for probe is this."""
    activation: Activation = "none"
    """Non-linearity between the 1×1 and the 3×3; by default the architecture's own."""
    norm: bool = False
    """Batch normalisation between the 1×1 and the 3×3; by default the architecture's own."""

    # training
    recipe: Literal["imagenet_xception", "imagenet_inception", "jft"] | None = None
    """Training settings of the Xception paper. A recipe fills in those of the options below, and dropout, that are not
    set; an option that is set keeps its value, even if that is the default."""
    epochs: Positive = 8
    """Passes over the training images."""
    batch_size: Positive = 128
    """Images per step, at most as many as the run trains on; the last, smaller batch of an epoch is left out."""
    optimizer: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    """SGD with momentum, AdamW, or RMSprop with momentum."""
    lr: Rate = 0.1
    """Peak learning rate; the default suits SGD, other optimisers need a far smaller one."""
    momentum: Fraction = 0.9
    """Momentum of SGD and RMSprop, first beta of AdamW."""
    nesterov: bool = True
    """Nesterov's form of SGD's momentum."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of convolution and classifier weights, not of BN or biases."""
    schedule: Literal["cosine", "one_cycle", "exponential"] = "cosine"
    """Schedule of the learning rate, after the warm-up."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    decay: float = Field(0.94, gt=0, le=1)
    """Factor that the exponential schedule applies every decay_epochs."""
    decay_epochs: Rate = 2.0
    """Epochs between two steps of the exponential schedule."""
    decay_images: Positive | None = None
    """Images between two steps of the exponential schedule, instead of decay_epochs."""
    label_smoothing: Fraction = 0.0
    """Part of the target spread evenly over all classes (label smoothing)."""
    ema: Fraction = 0.0
    """Decay of an exponential average of the weights, which is then scored instead of the last weights; 0 is off."""
    autocast: bool = False
    """Use bfloat16 for the operations that torch's autocast selects."""
    compile: bool = False
    """Compile the network with torch.compile."""
    seed: Seed = 0
    """Seed of initial weights, order of images, augmentation and dropout."""
    scored_on: Literal["test", "validation"] = "test"
    """Images on which the run is scored. With validation, the test set is not read, and its columns stay empty."""

    @model_validator(mode="wrap")
    @classmethod
    def _filled(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill in open fields; `model_fields_set` keeps only the fields that were given."""
        if not isinstance(values, dict):
            return handler(values)
        run = handler(_with_defaults(values))
        object.__setattr__(run, "__pydantic_fields_set__", values.keys() & cls.model_fields.keys())
        return run

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.segment_shares != "even" and not self.pointwise:
            raise ValueError("segment_shares: need the 1×1; leave out pointwise = false")
        if self.resize != "stretch" and self.image_size is None:
            raise ValueError(f"resize: {self.resize!r} needs an image_size; set one")
        if not self.pointwise:
            for field in ("activation", "norm", "pointwise_segments", "order"):
                if getattr(self, field) != RunConfig.model_fields[field].default:
                    raise ValueError(f"{field}: needs the 1×1, which pointwise = false removes; leave it out")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} must be below epochs = {self.epochs}; give fewer")
        check_model(self.model)
        return self

    @property
    def id(self) -> str:
        """Hash of the fields that differ from their defaults, so that a new field does not change existing ids."""
        # the fields contain all values of a recipe
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"recipe"})
        return digest({"schema": SCHEMA, "point": fields})

    def network_options(self, in_channels: int, num_classes: int, image_size: int) -> NetworkOptions:
        """Options of this run's network, for images of one shape.

        Args:
            in_channels: channels of the images.
            num_classes: classes of the data set.
            image_size: side of the images in pixels.
        """
        options = {name: getattr(self, name) for name in NetworkFields.model_fields}
        return NetworkOptions(in_channels=in_channels, num_classes=num_classes, image_size=image_size, **options)


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a run leaves open: one segment per channel, its recipe, and the defaults of its architecture."""
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

"""The registry of architectures: built-in ones with the options that each uses, and those that users register.

An architecture is a function from frozen `NetworkOptions` to a module. Built-in ones are imported when first built, so
listing and checking names does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from spectrum._registry import Registry, calling_module, check_maker, hint, imported
from spectrum.models.named import parts_of
from spectrum.models.options import NetworkOptions

if TYPE_CHECKING:
    from torch import nn


Builder = Callable[[NetworkOptions], "nn.Module"]
StageWidths = Callable[[NetworkOptions], tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """An entry of the registry: a builder and its stage widths; those of built-in ones are imported when used."""

    build: str | Builder
    widths: str | StageWidths | None
    uses: tuple[str, ...] | None = None  # options that its networks use; None: not declared
    own: Mapping[str, Any] = field(default_factory=dict)  # defaults of options that are None
    stages: int | None = None  # stages that `stage_segments` can set; None: one per stage width


OWN = {"order": "pointwise_first", "activation": "none", "norm": False}  # unless an architecture has its own
# Options that architectures use, by the parts that they are made of. Add a new option to those that read it.
_IMAGES = ("in_channels", "num_classes", "image_size")  # every architecture, registered ones too
_ANY = (*_IMAGES, "hidden", "dropout", "norm_eps", "norm_momentum")  # every built-in one: classifier and BN
_SIZED = (*_ANY, "width", "widths", "depth")
_SEGMENTED = (  # architectures made of `segmented`
    *(*_SIZED, "segments", "segment_width", "stage_segments", "segment_shares"),
    *("order", "activation", "norm", "pointwise", "pointwise_segments", "shuffle"),
)
_CONVERTED = ("segments", "segment_width", "order", "activation", "norm", "pointwise", "width", "widths")
_BUILT_IN = {
    "inception": Family(
        "spectrum.models.inception:build_inception",
        "spectrum.models.inception:inception_widths",
        uses=(*_SIZED, "segments", "segment_width", "stage_segments", "form"),
    ),
    "inception_v3": Family(
        "spectrum.models.inception:build_inception_v3",
        None,
        uses=(*_ANY, "padding", "auxiliary"),
        own={"padding": "tf_same", "norm_eps": 1e-3, "norm_momentum": 0.01},
        stages=0,
    ),
    "mobilenet_v1": Family(
        "spectrum.models.plain:build_mobilenet_v1",
        "spectrum.models.plain:mobilenet_widths",
        uses=(*_SEGMENTED, "stem_stride"),
        own={"order": "spatial_first", "activation": "relu", "norm": True},
    ),
    "probe": Family(
        "spectrum.models.probe:build_probe",
        "spectrum.models.probe:probe_widths",
        uses=(*_SEGMENTED, "residual", "downsampling", "stem_stride"),
    ),
    "resnext": Family(
        "spectrum.models.resnext:build_resnext",
        "spectrum.models.resnext:resnext_widths",
        uses=(*_SEGMENTED, "residual", "padding", "stem_stride"),
        own={"activation": "relu", "norm": True},
    ),
    "resnext_small": Family(
        "spectrum.models.resnext:build_resnext_small",
        "spectrum.models.resnext:resnext_small_widths",
        uses=(*_SEGMENTED, "residual", "stem_stride"),
        own={"activation": "relu", "norm": True},
    ),
    "vgg": Family(
        "spectrum.models.plain:build_vgg",
        "spectrum.models.plain:vgg_widths",
        uses=_SEGMENTED,
    ),
    "xception": Family(
        "spectrum.models.xception:build_xception",
        "spectrum.models.xception:xception_widths",
        uses=(*_SEGMENTED, "residual", "padding", "stem_stride"),
        own={"order": "spatial_first", "padding": "tf_same", "norm_eps": 1e-3, "norm_momentum": 0.01},
        stages=6,
    ),
}


class _Families(Registry[Family]):
    """Architectures by name. A name such as "my_module:function" needs no entry: its function builds the network."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or parts_of(name) is not None

    def __getitem__(self, name: str) -> Family:
        if name not in self._entries and parts_of(name) is not None:
            build, widths = (partial(_of_function, what, name) for what in ("build_converted", "inner_widths"))
            return Family(build, widths, uses=(*_IMAGES, *_CONVERTED))
        return super().__getitem__(name)

    def home(self, name: str) -> str | None:
        """The module of a function, or the module that registered a name; None for a built-in or unknown one."""
        found = None if name in self._entries else parts_of(name)
        return super().home(name) if found is None else found[0]

    def is_at_import(self, name: str) -> bool:
        """Whether importing its home is enough to find this name."""
        return super().is_at_import(name) if name in self._entries else parts_of(name) is not None


def _of_function(what: str, name: str, options: NetworkOptions) -> Any:
    """Call a function of `converted.py`, which loads torch."""
    return imported(f"spectrum.models.converted:{what}")(name, options)


FAMILIES: Registry[Family] = _Families("model", _BUILT_IN)


def list_models() -> list[str]:
    """Names of all architectures, built-in and registered.

    >>> "probe" in list_models()
    True
    """
    return FAMILIES.names()


def register_model(
    name: str, builder: Builder, *, widths: StageWidths | None = None, uses: Iterable[str] | None = None
) -> None:
    """Register an architecture of your own.

    Args:
        name: a new name.
        builder: function from `NetworkOptions` to a `torch.nn.Module` on images (N, C, H, W).
        widths: function from `NetworkOptions` to the stage widths of the network: its `widths` if given, else the
            default widths times its `width`. Needed only for budgets, which are met by changing stage widths.
        uses: names of the options that the builder reads, such as ("segments", "order"); any other option is then
            refused if set. The image's shape, and width and widths if `widths` is given, need not be listed. Without
            `uses`, plans compare the built networks and refuse an option that changes none.

    Raises ValueError for an invalid or taken name, for a builder that cannot be called with options, and for an
    unknown option in `uses`.

    >>> from torch import nn
    >>> from spectrum import build_model
    >>> from spectrum.models.blocks import segmented
    >>> def tiny(arch):
    ...     layers = segmented(arch, arch.in_channels, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ...     return nn.Sequential(*layers, nn.Linear(16, arch.num_classes))
    >>> register_model("tiny", tiny)
    >>> "tiny" in list_models()
    True
    >>> build_model("tiny", segments=4)[0].segment_sizes
    (4, 4, 4, 4)
    """
    check_maker("builder", builder, "a torch.nn.Module", takes=("NetworkOptions",))
    if widths is not None:
        check_maker("widths", widths, "stage widths", takes=("NetworkOptions",))
    family = Family(builder, widths, uses=_checked_uses(uses, widths))
    FAMILIES.add(name, family, maker=builder, home=calling_module())


def _checked_uses(uses: Iterable[str] | None, widths: StageWidths | None) -> tuple[str, ...] | None:
    """Options that a registered architecture declares to use; None if it does not declare them."""
    if uses is None:
        return None
    try:
        used: list[Any] = [uses] if isinstance(uses, str) else list(uses)
    except TypeError:
        raise ValueError(f"uses={uses!r}: expected names of fields, such as ('segments', 'order')") from None
    known = list(NetworkOptions.model_fields)
    for name in used:
        if name not in known:
            raise ValueError(f"uses={name!r}: no option of a network; {hint(name, known)}")
    return (*used, *_IMAGES, *(("width", "widths") if widths is not None else ()))


def stage_widths(name: str, architecture: NetworkOptions) -> tuple[int, ...]:
    """Channels of each stage of a network.

    Args:
        name: an architecture, one of `list_models`.
        architecture: options of the network.

    Raises ValueError for an architecture without stage widths.

    >>> stage_widths("probe", NetworkOptions(width=0.5))
    (16, 32, 64)
    """
    check_model(name)
    widths = FAMILIES[name].widths
    if widths is None:
        raise ValueError(f"model={name!r}: has no stage widths; pass `widths` to register_model")
    return tuple(imported(widths)(architecture))


def own_values(name: str, *, pointwise: bool = True) -> dict[str, Any]:
    """An architecture's own defaults of order, activation and norm.

    Args:
        name: one of `list_models`; an unknown name gets the defaults of architectures without their own.
        pointwise: whether there is a 1×1; without it there is neither activation nor norm before the 3×3.

    >>> own_values("mobilenet_v1")
    {'order': 'spatial_first', 'activation': 'relu', 'norm': True}
    """
    own = FAMILIES[name].own if name in FAMILIES else {}
    values = {field: own.get(field, value) for field, value in OWN.items()}
    return values if pointwise else values | {"activation": "none", "norm": False}


def unused_by(name: str) -> tuple[str, ...]:
    """Options that an architecture does not use; none if it does not declare them, or for an unknown name."""
    used = FAMILIES[name].uses if name in FAMILIES else None
    return () if used is None else tuple(known for known in NetworkOptions.model_fields if known not in used)


def declares_uses(name: str) -> bool:
    """Whether an architecture declares the options that it uses; registered ones need not."""
    return FAMILIES[name].uses is not None


def registered_in(name: str) -> str | None:
    """The module that registered an architecture; None for a built-in one, or an unknown name."""
    return FAMILIES.home(name)


def check_model(name: str) -> None:
    """Raise ValueError for an unknown architecture."""
    if not isinstance(name, str):
        raise ValueError(f"model={name!r}: expected a name, such as 'probe'")
    if name.startswith("__main__:"):
        raise ValueError(f"model={name!r}: put the function into a module, which worker processes can import")
    if name not in FAMILIES:
        raise ValueError(
            f"model={name!r}: unknown; {FAMILIES.hint(name)} "
            '(your own: "my_module:function", or register_model, and name its module by import or --import)'
        )

"""The registry of backends, and the rule that chooses one for a layer and its input.

    native            torch's own grouped convolution, one call per run
    converted         the same in the layout that the input does not have
    separate          torch's own convolution, one call per segment
    coalesced         several narrow segments as one wider group with a block-diagonal kernel
    block_diagonal    all segments as one dense convolution with a block-diagonal kernel
    compiled          kernels of this project (conv/kernels/): 1×1 to 7×7, stride and dilation 1 or 2, CPU
    triton            kernels of this project in Triton, on CUDA; needs the extra "triton"

A layer's backend is, in this order: its argument `backend=`, `prefer_backend`, `$SPECTRUM_BACKEND`, "auto".
"auto" takes what was measured for the layer on this machine (conv/tuning.py); without that it guesses. The argument is
binding: an input that its backend cannot compute is refused. `prefer_backend` and `$SPECTRUM_BACKEND` are preferences
for a whole network or process: torch's own convolution computes what the named backend cannot.

A counter, an exporter, a function transform or a dispatch mode must see the true convolutions. While one is active, and
for subclasses of Tensor, native is always used. `groups`, torch's word for equal segments, appears in this package and
in the benchmark that writes a network with `torch.nn`, nowhere else.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from spectrum._registry import Registry, calling_module, check_maker, hint
from spectrum.conv.backends.coalesced import BlockDiagonal, Coalesced
from spectrum.conv.backends.compiled import Compiled, is_fastest, takes_convolution
from spectrum.conv.backends.converted import Converted
from spectrum.conv.backends.derived import can_derive
from spectrum.conv.backends.environment import VARIABLE, backend_of_environment
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import Native
from spectrum.conv.backends.own import Checked
from spectrum.conv.backends.separate import Separate
from spectrum.conv.backends.table import NOTHING, Measured, lookup, widest_compiled
from spectrum.conv.backends.tracing import is_channels_last, is_plain, is_traced
from spectrum.conv.backends.triton import Triton
from spectrum.conv.kernels.build import library
from spectrum.conv.machine import maker

AUTO = "auto"
TAKEN = {  # names with another meaning
    AUTO: "means that the fastest one is chosen",
    "folded": "says, where backends are seen, that two convolutions were computed as one",
    "library": 'says, in rows of results, "auto" without kernels',
}
_BACKENDS: dict[str, Backend] = {
    "native": Native(),
    "converted": Converted(),
    "separate": Separate(),
    "coalesced": Coalesced(),
    "block_diagonal": BlockDiagonal(),
    "compiled": Compiled(),
    "triton": Triton(),
}
BACKENDS: Registry[Backend] = Registry("backend", _BACKENDS)

_preferred: ContextVar[str | None] = ContextVar("preferred backend", default=None)


class Choice(NamedTuple):
    """How the backend of a layer is chosen: "auto" or a backend's name, and whether no other may compute it."""

    name: str
    binding: bool = False


def list_backends() -> list[str]:
    """Names of all backends, built in and registered. "auto" chooses among the built-in ones.

    >>> list_backends()[:3]
    ['block_diagonal', 'coalesced', 'compiled']
    """
    return BACKENDS.names()


def register_backend(name: str, factory: Callable[[], Backend]) -> None:
    """Register a backend of your own, for `SegmentedConv2d(…, backend=NAME)` and `$SPECTRUM_BACKEND`.

    Args:
        name: a new name. The same factory may be registered again, and so may its new version in a reloaded module.
        factory: a subclass of `Backend`, or a function that returns a Backend; called once, at once, without arguments.

    Raises ValueError for an invalid or taken name, and for a factory that does not return a Backend.
    """
    if (meaning := TAKEN.get(str(name))) is not None:
        raise ValueError(f"name={name!r}: {meaning}; choose another name")
    home = calling_module()
    BACKENDS.check(name, maker=factory, home=home)
    if BACKENDS.maker(name) == factory:
        return
    check_maker("factory", factory, "a Backend")
    made = factory()
    if not isinstance(made, Backend):
        raise ValueError(f"factory: gave {type(made).__name__}; give a subclass of Backend")
    BACKENDS.add(name, Checked(name, made), maker=factory, home=home)


@contextmanager
def prefer_backend(name: str) -> Iterator[None]:
    """Prefer a backend for layers made inside the block; torch's own convolution computes what it cannot.

    It holds in this thread only. `run_study`, whose workers are other processes, refuses to run inside the block; set
    `$SPECTRUM_BACKEND` instead. Raises ValueError for an unknown name.

    >>> from spectrum import build_model
    >>> with prefer_backend("native"):
    ...     model = build_model("probe", segments=4)
    """
    before = _preferred.set(_checked(f"prefer_backend({name!r})", name))
    try:
        yield
    finally:
        _preferred.reset(before)


def preferred_backend() -> str | None:
    """The backend that `prefer_backend` has set; None outside its block."""
    return _preferred.get()


def choice_for(backend: str | None, *, prepare: bool) -> Choice:
    """The choice of backend for a new layer.

    Args:
        backend: the layer's argument; None if it was left out.
        prepare: whether to build or load now what the backend needs.

    Raises ValueError for an unknown name, and for a backend that cannot be prepared.
    """
    if backend is not None:
        source = f"backend={backend!r}"
        choice = Choice(_checked(source, backend), binding=backend != AUTO)
    elif (preferred := _preferred.get()) is not None:
        source, choice = f"prefer_backend({preferred!r})", Choice(preferred)
    elif (name := backend_of_environment()) is not None:
        source = f"{VARIABLE}={shlex.quote(name)}"
        choice = Choice(_checked(source, name))
    else:
        source, choice = AUTO, Choice(AUTO)
    if prepare:
        try:
            _prepare(choice.name)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        except Exception as error:  # a user's backend may raise anything
            raise ValueError(f"{source}: cannot be prepared: {type(error).__name__}: {error}") from error
    return choice


def _prepare(name: str) -> None:
    if name != AUTO:
        BACKENDS[name].prepare()
    elif library() is not None:  # else a warning was given, and "auto" works without
        BACKENDS["compiled"].prepare()


def recorded_choice(*, on_cpu: bool = True) -> str:
    """How this process chooses backends, as recorded in rows; "library" is "auto" without kernels. Prepares them."""
    name = choice_for(None, prepare=on_cpu).name
    return "library" if on_cpu and name == AUTO and library() is None else name


def choose(name: str, x_nchw: Tensor, geometry: Geometry, measured: Measured = NOTHING) -> str:
    """The name of the backend that computes this input, by "auto" or by a preference.

    Args:
        name: "auto", or the preferred backend.
        x_nchw: input (N, C, H, W).
        geometry: of the layer.
        measured: what was measured for the layer, for "auto".
    """
    if name == "native" or is_traced(x_nchw):
        return "native"
    if name == AUTO:
        found = lookup(measured, x_nchw) if measured else None
        # A network that was moved to another machine may not have the backend there.
        can = found is not None and found in BACKENDS and refusal(found, x_nchw, geometry) is None
        return found if found is not None and can else guess(x_nchw, geometry)
    return name if refusal(name, x_nchw, geometry) is None else "native"


def refusal(name: str, x_nchw: Tensor, geometry: Geometry) -> str | None:
    """Why a backend cannot compute this input; None if it can."""
    backend = BACKENDS[name]
    return backend.refusal_of(geometry) or backend.refusal(x_nchw, geometry)


def candidates() -> list[str]:
    """Names of the built-in backends, of which "auto" chooses the fastest."""
    own = BACKENDS.own()
    return [name for name in BACKENDS.names() if name not in own]


def guess(x_nchw: Tensor, geometry: Geometry) -> str:
    """The backend for an input for which nothing was measured, by type, layout, geometry and the processor's maker.

    On other devices than the CPU it is native: asking whether a result is finite would make a GPU wait.
    """
    last = is_channels_last(x_nchw)
    computes = takes_convolution(x_nchw) and BACKENDS["compiled"].refusal_of(geometry) is None
    if computes and is_fastest(geometry, x_nchw, widest=widest_compiled(maker())):
        return "compiled"
    if last and can_derive(x_nchw) and BACKENDS["coalesced"].refusal_of(geometry) is None:
        return "coalesced"
    return "native"


def worth_folding(name: str, x_nchw: Tensor, first: Tensor, second: Tensor) -> bool:
    """Whether one folded convolution, including the folding and its gradient, takes fewer MACs than the two.

    Assumes stride 1 and "same" padding, where every pixel costs the same. True only for the choice "auto", and never in
    float16, where the product of two small weights underflows.
    """
    if name != AUTO or is_traced(x_nchw) or not can_derive(x_nchw):  # in this order: nothing is known of a traced input
        return False
    if not (is_plain(first) and is_plain(second)):
        return False
    computed_in = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_nchw.dtype
    if torch.float16 in (computed_in, first.dtype):
        return False
    pixels = x_nchw.shape[0] * x_nchw.shape[2] * x_nchw.shape[3]
    (out, mid), taps = second.shape[:2], (first[0, 0].numel() * second[0, 0].numel())
    inputs = first.shape[1]
    return pixels * taps * out * inputs + taps * out * mid * inputs < pixels * (first.numel() + second.numel())


def _checked(source: str, name: object) -> str:
    """The name, if a backend has it. Raises ValueError, which begins with the source, for an unknown name."""
    if not isinstance(name, str) or (name != AUTO and name not in BACKENDS):
        raise ValueError(
            f"{source}: no such backend; {hint(name, [AUTO, *list_backends()])} (your own: register_backend)"
        )
    return name

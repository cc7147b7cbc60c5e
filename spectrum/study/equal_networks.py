"""Find runs that train the same network under two names, and options that your own architecture ignores.

Built networks are compared: those with the same initial weights, outputs, gradients and statistics from one seed are
the same network, whatever their options. Cheap comparisons come first, and costly ones only see networks that are still
alike.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from spectrum._records import SpecError
from spectrum.data.images import images_of
from spectrum.design.changes import choices
from spectrum.design.hashes import digest
from spectrum.design.keys import IMAGES, NETWORK
from spectrum.design.options import without_effect
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study
from spectrum.models import declares_uses, registered_in
from spectrum.models.options import NetworkFields
from spectrum.models.position import PLACES
from spectrum.study.planning import CostedRun, build, network_of

if TYPE_CHECKING:
    from torch import Tensor, nn

OF_NETWORK = (*NETWORK, "width", "widths", "dropout")
IMAGES_SEEN = 2  # batch size of the comparison


def _plain_values(option: str) -> tuple[Any, ...]:
    """Values of an option that is a boolean, a choice of words, or an integer; empty for other options."""
    kind = RunConfig.model_fields[option].annotation
    kinds = [get_args(one)[0] if get_origin(one) is Annotated else one for one in (kind, *get_args(kind))]
    words = choices(option)
    if bool in kinds:
        return (False, True)
    return words if len(words) > 1 else (1, 2) if int in kinds else ()


OTHER_VALUES: Mapping[str, tuple[Any, ...]] = {  # values of a field, any two of which should make two networks
    **{name: values for name in NetworkFields.model_fields if (values := _plain_values(name))},
    "depth": (1, 2, 3),
    "segment_shares": ((1, 1), (3, 1)),
    "activation": ("none", "relu"),
    "dropout": (0.0, 0.5),
    "hidden": ((), (4,)),
    "norm_eps": (1e-3, 1e-1),
    "norm_momentum": (0.1, 0.5),
    "width": (1.0, 2.0),
}
T = TypeVar("T")


def told_apart(study: Study, planned: Sequence[CostedRun]) -> list[CostedRun]:
    """The runs of a plan; those that train the same network as an earlier one are marked (`same_as`).

    Raises SpecError for an axis that changes no network, and for an option that your own architecture ignores.
    """
    if any("seed" in case for case in study.cases):  # then no seed has every cell
        return list(planned)
    cells = _cells(study, planned)
    groups = _groups([one for _, one in cells])
    first_of = {one.run.id: group[0].run.id for group in groups for one in group}
    _check_axes(study, cells, first_of)
    _check_options(study, [one for _, one in cells])
    if not groups:
        return list(planned)
    same = {_unseeded(one): first for one in (one for _, one in cells) if (first := first_of.get(one.run.id))}
    by_seed = {(one.run.seed, _unseeded(one)): one.run.id for one in planned}
    unseeded = {one.run.id: _unseeded(one) for _, one in cells}
    marked = []
    for one in planned:
        first = same.get(_unseeded(one))
        other = None if first is None else by_seed[one.run.seed, unseeded[first]]
        marked.append(one if other in (None, one.run.id) else replace(one, same_as=other))
    return marked


def coincidences(study: Study, planned: Sequence[CostedRun]) -> list[str]:
    """A sentence for each pair of configurations in a plan that train the same network."""
    by_id = {one.run.id: one for one in planned}
    pairs: dict[tuple[str, str], tuple[CostedRun, CostedRun]] = {}
    for one in planned:
        if one.same_as in by_id:
            pairs.setdefault(_unseeded(one), (by_id[one.same_as], one))
    return [_sentence(study, *pair) for pair in pairs.values()]


def _sentence(study: Study, first: CostedRun, second: CostedRun) -> str:
    """State how the options of the two differ in the study, and at which values of the other axes."""
    fields = ["budget", *(name for name in study.varied() if name not in ("match", *PLACES)), *PLACES]

    def settings_of(one: CostedRun) -> dict[str, str]:
        values = {"budget": one.match} | {name: getattr(one.asked, name) for name in fields[1:]}
        shown = {name: value for name, value in values.items() if value is not None or name not in PLACES}
        return {name: f"{name} {'not set' if value is None else f'= {value}'}" for name, value in shown.items()}

    one, other = settings_of(first), settings_of(second)
    unlike = [name for name in fields if one.get(name) != other.get(name)]
    varied = {*study.varied(), *(["budget"] if len(study.budget.match) > 1 else [])}
    alike = [one[name] for name in fields if name in one and name in varied and name not in unlike]
    sides = (", ".join(side[name] for name in unlike if name in side) for side in (one, other))
    where = f" (at {', '.join(alike)})" if alike else ""
    return f"{' and '.join(sides)} train the same network{where}; one of the two is enough"


Cell = tuple[dict[str, Any], CostedRun]  # the value of each axis, the case and the budget of a run


def _cells(study: Study, planned: Sequence[CostedRun]) -> list[Cell]:
    """Runs with the first seed."""
    axes = {name: range(len(values)) for name, values in study.axes.items() if name != "seed"}
    axes |= {"case": range(len(study.cases) or 1)}
    places = [dict(zip(axes, at, strict=True)) for at in itertools.product(*axes.values())]
    named = [at | {"match": match} for match in study.budget.match for at in places]
    return list(zip(named, planned[: len(named)], strict=True))


def _check_axes(study: Study, cells: Sequence[Cell], first_of: Mapping[str, str]) -> None:
    """Refuse an axis that changes no network and would change none at other values. If only these values agree, a note
    tells."""
    for axis, values in study.axes.items():
        if len(values) < 2 or axis not in OTHER_VALUES.keys() | {"widths", "stage_segments"}:
            continue
        rows: dict[str, set[str]] = {}
        networks: dict[str, RunConfig] = {}
        for at, one in cells:
            others = digest({name: place for name, place in at.items() if name != axis})
            rows.setdefault(others, set()).add(first_of.get(one.run.id, one.run.id))
            networks.setdefault(digest(network_of(one.asked)), one.asked)
        if any(len(trained) > 1 for trained in rows.values()):
            continue
        if any(_heeds(run, axis) for run in networks.values()):
            continue
        models = sorted({run.model for run in networks.values() if registered_in(run.model)})
        use = f", or let the builder of {models[0]!r} use arch.{axis}" if models else ""
        two_values = " and ".join(map(repr, values[:2]))
        raise SpecError(f"axes.{axis}: has no effect: {two_values} train the same network; leave the axis out{use}")


def _place_of(study: Study, field: str, alone: Sequence[str]) -> str:
    """Name of the setting of a field in a study: an axis of one value, a flag, or an option of its base."""
    if field in alone:
        return f"axes.{field}"
    return field if field in study.overrides else f"base.{field}"


def _check_options(study: Study, cells: Sequence[CostedRun]) -> None:
    """Refuse fields set by the base, or by an axis of one value, that change none of your own networks."""
    alone = [axis for axis, values in study.axes.items() if len(values) == 1]
    for field in OF_NETWORK:
        if field == "model" or field not in study.base.model_fields_set | set(alone):
            continue
        having: dict[str, RunConfig] = {}
        for one in cells:
            if field in one.asked.model_fields_set:
                having.setdefault(digest(network_of(one.asked)), one.asked)
        own = {run.model for run in having.values() if registered_in(run.model)}
        if not having or len(own) < len({run.model for run in having.values()}) or any(map(declares_uses, own)):
            continue  # an architecture that declares the options it uses is believed
        if not any(_heeds(run, field) for run in having.values()):
            place, name = _place_of(study, field, alone), min(own)
            raise SpecError(
                f"{place}: has no effect on {name!r}: its network is the same at other values; leave it out, "
                f"or let its builder use arch.{field}"
            )


def _heeds(run: RunConfig, field: str) -> bool:
    """Whether another value of a field would make another network, or could not be built."""
    for value in _other_values(run, field):
        places = dict.fromkeys(PLACES) | {"segment_shares": "even"} if field in (*PLACES, "segment_shares") else {}
        shares = {"segments": len(value)} if field == "segment_shares" else {}
        other = run.model_copy(update={**places, **shares, field: value})
        try:
            alike = _alike([run, other])
        except SpecError:
            return True  # an error is an effect, too
        if not alike:
            return True
    return not _other_values(run, field)


def _other_values(run: RunConfig, field: str) -> list[Any]:
    own = getattr(run, field)
    if field == "widths" and own is not None:
        return [tuple(2 * width for width in own)]
    if field == "stage_segments" and own is not None:
        return [(1,) * len(own), ("per_channel",) * len(own)]
    return [value for value in OTHER_VALUES.get(field, ()) if value != own]


def _alike(runs: Sequence[RunConfig]) -> bool:
    return all(len({key(run) for run in runs}) == 1 for key in (_started, _scored, _stepped))


def _groups(planned: Sequence[CostedRun]) -> list[list[CostedRun]]:
    """Groups of two or more runs that train alike under different ids."""
    by_id = {one.run.id: one for one in planned}
    groups = [list(by_id.values())]
    keys: tuple[Callable[[CostedRun], str], ...] = (
        # Your own models may differ in training although all their options agree.
        lambda one: digest([one.run.model if registered_in(one.run.model) else ""]),
        lambda one: digest([one.params, one.macs, one.activations, one.norms, one.nonlinearities]),
        lambda one: _trained(one.run),
        _once(lambda one: _started(one.run)),
        _once(lambda one: _scored(one.run)),
        _once(lambda one: _stepped(one.run)),
    )
    for key in keys:
        groups = [part for group in groups for part in _parts(group, key) if len(part) > 1]
    return groups


def _once(key: Callable[[CostedRun], str]) -> Callable[[CostedRun], str]:
    """Cache a key, one value per network and shape of images."""
    known: dict[str, str] = {}

    def found(one: CostedRun) -> str:
        images = images_of(one.run)
        network = digest([network_of(one.run), images.shape, images.classes])
        if network not in known:
            known[network] = key(one)
        return known[network]

    return found


def _parts(items: Sequence[T], key: Callable[[T], str]) -> list[list[T]]:
    parts: dict[str, list[T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())


def _unseeded(one: CostedRun) -> tuple[str, str]:
    return one.asked.model_copy(update={"seed": 0}).id, one.match


def _trained(run: RunConfig) -> str:
    """Hash of a run without its network: its images, and the training options that have an effect."""
    images = images_of(run)
    apart = {*OF_NETWORK, *IMAGES, *without_effect(dict(run)), "recipe", "seed"}
    return digest([run.model_dump(mode="json", exclude=apart), images.fingerprint, images.shape])


def _started(run: RunConfig) -> str:
    """Hash of the initial network."""
    from spectrum.training.evaluation import hash_weights

    with _seeded():
        model = build(run, images_of(run))
        return digest([hash_weights(model), [p.requires_grad for p in model.parameters()]])


def _scored(run: RunConfig) -> str:
    """Hash of the network's outputs for random images, in evaluation mode."""
    import torch

    with _seeded(), torch.no_grad():
        return _hash(build(run, images_of(run)).eval()(_random(run)[0]))


def _stepped(run: RunConfig) -> str:
    """Hash of the gradients and statistics after one training step on random images."""
    from torch.nn.functional import cross_entropy

    from spectrum.training.evaluation import hash_weights

    with _seeded():
        model = build(run, images_of(run))
        x_nchw, y_n = _random(run)
        try:
            loss = cross_entropy(model.train()(x_nchw), y_n)
            loss.backward()
        except Exception:  # from your own model; the run will report it
            return run.id
        return digest([_hash(loss), *map(_gradient, model.parameters()), hash_weights(model)])


def _random(run: RunConfig) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) of noise, and labels (N,)."""
    import torch

    images = images_of(run)
    x_nchw = torch.randn(IMAGES_SEEN, *images.shape).contiguous(memory_format=torch.channels_last)
    return x_nchw, torch.randint(images.classes, (IMAGES_SEEN,))


def _gradient(parameter: nn.Parameter) -> str:
    return "none" if parameter.grad is None else _hash(parameter.grad)


def _hash(tensor: Tensor) -> str:
    import torch

    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@contextmanager
def _seeded() -> Iterator[None]:
    """Use a fixed seed and one thread inside; restore all random generators afterwards."""
    import numpy as np
    import torch

    from spectrum.training.checkpoint import seed_generators

    before, threads = (random.getstate(), np.random.get_state()), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        seed_generators(0)
        torch.set_num_threads(1)  # enough for two images
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(before[0])
            np.random.set_state(before[1])

"""A run keeps the backends that it began with, and on another machine goes on with that one's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spectrum.conv.backends.choice import candidates
from spectrum.conv.kept import Timed
from spectrum.conv.machine import machine_key
from spectrum.conv.tuning import classes_of
from spectrum.data.load import load_images
from spectrum.data.splits import Images
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.training import tuned
from spectrum.training.checkpoint import Checkpoints
from spectrum.training.checkpoint_files import Interrupted
from spectrum.training.loop import Result, train
from spectrum.training.ranks import Ranks
from spectrum.training.tuned import Choices, choices_for, tune_run
from tests.training.test_checkpoint import after, kept_in, told

RUN = RunConfig(train_images=120, epochs=3, width=0.5, batch_size=40, segments=4)  # nine steps


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images("digits")


@pytest.fixture(scope="module")
def classes(digits: Images) -> list[str]:
    """Of the run's layers, as it trains."""
    channels, side, _ = digits.shape
    model = build_model(RUN.model, RUN.network_options(channels, digits.classes, side))
    return [str(one) for one in classes_of(model.to(memory_format=torch.channels_last), (40, *digits.shape))]  # type: ignore[call-overload]


def all_by(name: str, classes: list[str], machine: str = "here") -> Choices:
    return Choices(machine, dict.fromkeys(classes, name))


def resumed(digits: Images, folder: Path, first: Choices, then: Choices) -> Result:
    with pytest.raises(Interrupted):
        train(RUN, digits, checkpoints=kept_in(folder, minutes=60, stop=after(5)), choices=first)
    return train(RUN, digits, checkpoints=kept_in(folder, minutes=60), choices=then)


def test_a_run_has_the_backends_of_its_choices(digits: Images, classes: list[str]) -> None:
    hashes = set()
    for name in ("native", "converted", "coalesced"):
        result = train(RUN, digits, choices=all_by(name, classes))
        spatial = set(result.lowerings.values())
        assert spatial == {name} if name != "coalesced" else "coalesced" in spatial
        assert result.choices == dict.fromkeys(classes, name)
        hashes.add(result.weights_sha256)
    assert len(hashes) == 3, "so that the next tests can tell which of them was taken"


def test_the_exponential_average_is_scored_by_the_same_backends(digits: Images, classes: list[str]) -> None:
    run = RUN.model_copy(update={"ema": 0.9})
    first, second = (train(run, digits, choices=all_by("native", classes)) for _ in range(2))
    assert told(first) == told(second)


def test_a_run_goes_on_with_its_own_choices_to_the_same_bits(
    digits: Images, classes: list[str], tmp_path: Path
) -> None:
    """Whatever was measured on this machine since; and the guess is another one."""
    whole = train(RUN, digits, choices=all_by("converted", classes))
    assert whole.weights_sha256 != train(RUN, digits, choices=Choices("here")).weights_sha256
    pieces = resumed(digits, tmp_path, all_by("converted", classes), all_by("native", classes))
    assert told(pieces) == told(whole)
    assert pieces.choices == dict.fromkeys(classes, "converted")


def test_a_run_that_guessed_goes_on_guessing(digits: Images, classes: list[str], tmp_path: Path) -> None:
    whole = train(RUN, digits, choices=Choices("here"))
    pieces = resumed(digits, tmp_path, Choices("here"), all_by("converted", classes))
    assert told(pieces) == told(whole)


def test_on_another_machine_a_run_goes_on_with_its_choices(digits: Images, classes: list[str], tmp_path: Path) -> None:
    first, then = all_by("converted", classes), all_by("native", classes, "there")
    pieces = resumed(digits, tmp_path, first, then)
    assert pieces.choices == then.backends
    assert set(pieces.lowerings.values()) == {"native"}
    stays = resumed(digits, tmp_path / "again", first, first)
    assert pieces.weights_sha256 != stays.weights_sha256


def test_a_checkpoint_of_before_goes_on_with_the_choices_of_now(
    digits: Images, classes: list[str], tmp_path: Path
) -> None:
    """An earlier version stored no machine."""
    with pytest.raises(Interrupted):
        train(RUN, digits, checkpoints=kept_in(tmp_path, minutes=60, stop=after(5)))
    result = train(RUN, digits, checkpoints=kept_in(tmp_path, minutes=60), choices=all_by("native", classes))
    assert result.choices == dict.fromkeys(classes, "native")


def test_the_machine_that_a_run_left_is_told(digits: Images, classes: list[str], tmp_path: Path) -> None:
    def checkpoints(machine: str, **more: Any) -> Checkpoints:
        return Checkpoints(tmp_path, {"point": "a"}, {"machine": machine}, minutes=60, **more)

    with pytest.raises(Interrupted):
        train(RUN, digits, checkpoints=checkpoints("here", stop=after(5)), choices=all_by("native", classes))
    result = train(RUN, digits, checkpoints=checkpoints("there"), choices=Choices("there"))
    assert result.resumed == [{"step": 5, "before": {"machine": "here"}}]


# What is measured for a run


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The classes that are measured from now on, each by native; nothing is kept from other tests."""
    seen: list[str] = []
    machine_key("cpu")
    monkeypatch.setenv("SPECTRUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "spectrum.conv.tuning.measure", lambda one, *_: seen.append(str(one)) or Timed("native", {"native": 1.0})
    )
    return seen


def test_what_is_measured_is_what_training_looks_up(digits: Images, classes: list[str], measured: list[str]) -> None:
    found = choices_for(RUN, digits, "cpu", {}, measures=True)
    assert found == Choices(machine_key("cpu"), dict.fromkeys(classes, "native"))
    assert sorted(measured) == sorted(classes)
    assert set(train(RUN, digits, choices=found).lowerings.values()) == {"native"}


def test_what_the_plan_keeps_for_this_machine_stands(digits: Images, classes: list[str], measured: list[str]) -> None:
    machine = machine_key("cpu")
    kept = {machine: dict.fromkeys(classes, "converted"), "another": {"of": "no use"}}
    assert choices_for(RUN, digits, "cpu", kept, measures=True) == Choices(machine, kept[machine])
    some = {machine: {classes[0]: "converted"}}
    found = choices_for(RUN, digits, "cpu", some, measures=True).backends
    assert found == {classes[0]: "converted"} | dict.fromkeys(classes[1:], "native")
    assert sorted(measured) == sorted(classes[1:])


def test_without_measuring_only_the_plan_counts(digits: Images, classes: list[str], measured: list[str]) -> None:
    machine = machine_key("cpu")
    kept = {machine: {classes[0]: "converted"}}
    assert choices_for(RUN, digits, "cpu", kept, measures=False) == Choices(machine, kept[machine])
    assert choices_for(RUN, digits, "cpu", {"another": kept[machine]}, measures=False) == Choices(machine)
    assert not measured


@pytest.mark.parametrize("why", ["compile", "preferred", "cannot be built", "another device"])
def test_where_nothing_can_be_measured_nothing_is(
    digits: Images, measured: list[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    run, device = RUN, "cpu"
    if why == "compile":
        run = RUN.model_copy(update={"compile": True})
    elif why == "preferred":
        monkeypatch.setenv("SPECTRUM_BACKEND", "native")
    elif why == "cannot be built":
        run = RUN.model_copy(update={"model": "unknown"})
    else:
        device = "meta"
    assert tune_run(run, digits, device, {}).backends == {}
    assert not measured


def test_measuring_leaves_random_numbers_as_they_are(digits: Images, measured: list[str]) -> None:
    before = torch.get_rng_state()
    tune_run(RUN, digits, "cpu", {})
    assert measured
    assert torch.equal(torch.get_rng_state(), before)


def test_of_several_ranks_the_first_one_measures_its_part_of_a_batch(
    digits: Images, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []

    def broadcast(ranks: Ranks, data: bytes) -> bytes:
        said.append(data)
        return said[0]

    monkeypatch.setattr(Ranks, "broadcast", broadcast)
    first = choices_for(RUN, digits, "cpu", {}, measures=True, ranks=Ranks(0, 5))
    assert {text.split(", ")[1].split(" of")[0] for text in measured} == {"8"}, "40 images on 5 ranks"
    monkeypatch.setattr(tuned, "tune_run", pytest.fail)
    assert choices_for(RUN, digits, "cpu", {}, measures=True, ranks=Ranks(1, 5)) == first
    assert first.backends


def test_candidates_are_the_built_in_backends() -> None:
    assert {"native", "converted", "separate", "coalesced", "block_diagonal", "compiled"} <= set(candidates())

"""A run interrupted anywhere ends with the weights of an uninterrupted one, whatever happens to its checkpoints."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spectrum.data.load import load_images
from spectrum.data.splits import Images
from spectrum.design.run import RunConfig
from spectrum.models import NetworkOptions
from spectrum.models.families import FAMILIES, Family
from spectrum.training import checkpoint
from spectrum.training.checkpoint import Checkpoints, State, TrainingProgress
from spectrum.training.checkpoint_files import Interrupted, name_of
from spectrum.training.loop import Result, train
from spectrum.training.optimisation import make_optimizer
from tests.registries import restored

TINY: dict[str, Any] = {"train_images": 120, "epochs": 3, "width": 0.25, "batch_size": 40}  # nine steps
IDENTITY, ENVIRONMENT = {"point": "a"}, {"threads": 2}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images("digits")


def kept_in(folder: Path, minutes: float = 0.0, stop: Callable[[], bool] = lambda: False) -> Checkpoints:
    return Checkpoints(folder, IDENTITY, ENVIRONMENT, minutes=minutes, stop=stop)


def after(steps: int) -> Callable[[], bool]:
    """Asks a run to stop after so many steps."""
    left = iter(range(1, 10**6))
    return lambda: next(left) >= steps


def cut_at(run: RunConfig, images: Images, folder: Path, *cuts: int) -> Result:
    """Trained in pieces, each by a new network, and saved only at each cut."""
    for steps in cuts:
        random.seed(), np.random.seed(), torch.manual_seed(random.randrange(2**31))
        with pytest.raises(Interrupted):
            train(run, images, checkpoints=kept_in(folder, minutes=60, stop=after(steps)))
    return train(run, images, checkpoints=kept_in(folder, minutes=60))


def told(result: Result) -> dict[str, Any]:
    """All of a result except times and how it was reached."""
    left_out = ("train_seconds", "images_per_second", "resumed", "troubles")
    said = {name: value for name, value in asdict(result).items() if name not in left_out}
    said["history"] = [{k: v for k, v in entry.items() if k != "train_seconds"} for entry in said["history"]]
    return said


# Cut anywhere


@pytest.mark.medium
@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (4,), (8,), (9,), (1, 1, 1), (3, 3), (4, 4, 1)])
def test_a_run_in_pieces_is_a_run_in_one(digits: Images, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    run = RunConfig(**TINY, flip=True, shift=1, dropout=0.3, ema=0.9, warmup_epochs=0.5)
    whole, pieces = train(run, digits), cut_at(run, digits, tmp_path, *cuts)
    assert told(pieces) == told(whole)
    assert [one["step"] for one in pieces.resumed] == list(np.cumsum(cuts))
    assert not pieces.troubles
    assert len(pieces.history) == 3
    seconds = [entry["train_seconds"] for entry in pieces.history]
    assert seconds == sorted(seconds)


SPLITS: dict[str, dict[str, Any]] = {
    "1 segment": {"segments": 1},
    "uneven": {"segments": 3},
    "32 segments": {"segments": 32, "width": 1.0},
    "per channel": {"segments": "per_channel"},
}


AUGMENTED: dict[str, Any] = {"flip": True, "shift": 2, "cutout": 3}


@pytest.mark.medium
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="plain", marks=pytest.mark.medium),
        pytest.param(AUGMENTED, id="augmented", marks=pytest.mark.medium),
        pytest.param({"ema": 0.9}, id="averaged", marks=pytest.mark.medium),
        pytest.param(AUGMENTED | {"ema": 0.9}, id="augmented and averaged"),
    ],
)
def test_a_run_at_each_split_goes_on_bit_for_bit(
    digits: Images, tmp_path: Path, split: dict[str, Any], more: dict[str, Any]
) -> None:
    run = RunConfig(**TINY | split | more)
    assert told(cut_at(run, digits, tmp_path, 5)) == told(train(run, digits))


OPTIONS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.5, "hidden": (16,)},
    "plain SGD": {"momentum": 0.0, "nesterov": False},
    "AdamW": {"optimizer": "adamw", "lr": 0.01},
    "RMSprop": {"optimizer": "rmsprop", "lr": 0.01},
    "one cycle": {"schedule": "one_cycle"},
    "steps": {"schedule": "exponential", "decay_epochs": 0.3},
    "bfloat16": {"autocast": True},
    "spatial first": {"order": "spatial_first", "activation": "relu", "norm": True, "segments": 4},
}


@pytest.mark.medium
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_whatever_is_trained_goes_on_bit_for_bit(digits: Images, tmp_path: Path, options: dict[str, Any]) -> None:
    run = RunConfig(**TINY | options)
    assert told(cut_at(run, digits, tmp_path, 5)) == told(train(run, digits))


GOES_ON = """
import json, sys
from pathlib import Path
import torch
from spectrum.data.load import load_images
from spectrum.design.run import RunConfig
from spectrum.training.loop import train
from tests.training.test_checkpoint import kept_in, told

torch.set_num_threads(1)
run = RunConfig.model_validate_json(sys.argv[2])
result = train(run, load_images("digits"), checkpoints=kept_in(Path(sys.argv[1]), minutes=60))
print(json.dumps([told(result), result.resumed]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_a_compiled_network_goes_on_in_another_process_bit_for_bit(
    digits: Images, tmp_path: Path, split: dict[str, Any]
) -> None:
    run = RunConfig(**TINY | split, compile=True, dropout=0.2, ema=0.9, shift=1)
    with pytest.raises(Interrupted):
        train(run, digits, checkpoints=kept_in(tmp_path, minutes=60, stop=after(5)))
    words = [sys.executable, "-c", GOES_ON, str(tmp_path), run.model_dump_json()]
    other = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert other.returncode == 0, other.stderr
    said, resumed = json.loads(other.stdout)
    assert resumed == [{"step": 5, "before": {}}]
    assert said == json.loads(json.dumps(told(train(run, digits))))


class Drawing(nn.Module):
    """A network of your own that uses all random generators."""

    def __init__(self, arch: NetworkOptions) -> None:
        super().__init__()
        self.layer = nn.Linear(arch.in_channels * arch.image_size**2, arch.num_classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        factor = random.gauss(1, 0.3) + float(np.random.normal(0, 0.3)) + float(torch.randn(()))
        logits_nk: Tensor = self.layer(x_nchw.flatten(1)) * (factor if self.training else 1)
        return logits_nk


def test_every_generator_goes_on(digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(monkeypatch, FAMILIES)
    FAMILIES.add("drawing", Family(Drawing, None), maker=Drawing)
    run = RunConfig(**TINY | {"model": "drawing", "width": 1.0})
    assert told(cut_at(run, digits, tmp_path, 5)) == told(train(run, digits))


def test_a_diverged_run_goes_on_to_diverge(digits: Images, tmp_path: Path) -> None:
    run = RunConfig(**TINY, lr=1e30)
    assert told(cut_at(run, digits, tmp_path, 2)) == told(train(run, digits))


# When, how many


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[0]) for path in folder.iterdir())


def test_two_are_kept(digits: Images, tmp_path: Path) -> None:
    train(RunConfig(**TINY), digits, checkpoints=kept_in(tmp_path))
    assert steps_of(tmp_path) == [8, 9]
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


def test_time_decides_whatever_the_clock_on_the_wall_does(
    digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10**6, 25))  # seconds; asked after every step, and for every checkpoint
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(checkpoint.time, "time", lambda: -1e9)
    saved: list[int] = []
    real = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, state, at: (saved.append(at.step), real(self, state, at)))
    result = train(RunConfig(**TINY), digits, checkpoints=kept_in(tmp_path, minutes=1))
    assert saved == [3, 6, 9]
    assert result.train_seconds > 0


# Broken, foreign and malicious files


def small_state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(RunConfig(), model)
    model(torch.randn(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    return State(model, None, optimizer)


def saved_one(folder: Path, step: int = 1) -> tuple[Checkpoints, State]:
    checkpoints, state = kept_in(folder), small_state(step)
    checkpoints.save(state, TrainingProgress(step=step))
    return checkpoints, state


def equal(state: State, other: dict[str, Tensor]) -> bool:
    mine = state.tensors()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_what_is_restored_is_what_was_saved_in_the_layout_of_what_is_there(tmp_path: Path) -> None:
    _, state = saved_one(tmp_path)
    saved = state.tensors()
    fresh = small_state(5)
    assert not equal(fresh, saved)
    standing = kept_in(tmp_path).restore(fresh)
    assert standing.step == 1
    torch.set_rng_state(saved["generator.torch"])
    assert equal(fresh, saved)
    (weight, *_) = fresh.model.parameters()
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert fresh.optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


def damages(data: bytes) -> Iterator[bytes]:
    """Cut anywhere, or with one bit flipped anywhere."""
    for cut in range(60):
        yield data[: len(data) * cut // 60]
    generator = random.Random(0)
    for _ in range(60):
        place, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
        yield data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def test_no_cut_and_no_flip_is_restored(tmp_path: Path) -> None:
    saved_one(tmp_path, 1)
    saved_one(tmp_path, 2)
    latest = max(tmp_path.iterdir())
    for data in damages(latest.read_bytes()):
        latest.write_bytes(data)
        state, again = small_state(9), kept_in(tmp_path)
        assert again.restore(state).step == 1, "the one before it"
        assert again.troubles == ["the checkpoint at step 2 was skipped: its bytes have changed"]


def test_where_all_are_damaged_the_run_starts_anew_and_says_so(digits: Images, tmp_path: Path) -> None:
    run = RunConfig(**TINY)
    with pytest.raises(Interrupted):
        train(run, digits, checkpoints=kept_in(tmp_path, stop=after(4)))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    result = train(run, digits, checkpoints=kept_in(tmp_path, minutes=60))
    assert told(result) == told(train(run, digits))
    assert len(result.troubles) == 2
    assert not result.resumed


def named_by_hash(folder: Path, data: bytes, step: int = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name_of(step, data)
    path.write_bytes(data)
    return path


class Canary:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


def malicious(canary: Path) -> Iterator[bytes]:
    import io

    thing = Canary(str(canary))
    yield pickle.dumps(thing)
    for new_format in (True, False):
        file = io.BytesIO()
        torch.save({"model": thing}, file, _use_new_zipfile_serialization=new_format)
        yield file.getvalue()
    yield checkpoint.save({"standing": checkpoint._bytes(pickle.dumps(thing))})


def test_a_malicious_file_executes_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for number, data in enumerate(malicious(canary)):
        folder = tmp_path / str(number)
        named_by_hash(folder, data)
        state = small_state()
        before, again = state.tensors(), kept_in(folder)
        assert again.restore(state) == TrainingProgress()
        assert equal(state, before)
        assert len(again.troubles) == 1
    assert not canary.exists()


def test_a_checkpoint_of_another_network_run_or_data_is_passed_over(tmp_path: Path) -> None:
    saved_one(tmp_path)
    other = Checkpoints(tmp_path, {"point": "b"}, ENVIRONMENT)
    assert other.restore(small_state()) == TrainingProgress()
    assert other.troubles == ["the checkpoint at step 1 was skipped: it belongs to another run or to other images"]
    wider = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    state = State(wider, None, make_optimizer(RunConfig(), wider))
    before, again = state.tensors(), kept_in(tmp_path)
    assert again.restore(state) == TrainingProgress()
    assert "size mismatch" in again.troubles[0] or "Error(s) in loading" in again.troubles[0]
    assert equal(state, before), "nothing of it is left behind"


def test_checkpoints_of_a_run_that_was_passed_over_make_room(digits: Images, tmp_path: Path) -> None:
    """Were the latest steps what is kept, those of a run on other images would outlive all that are written after."""
    for step in (900, 1000):
        Checkpoints(tmp_path, {"point": "a", "images": "older"}, ENVIRONMENT).save(
            small_state(), TrainingProgress(step=step)
        )
    again = kept_in(tmp_path)
    assert again.restore(small_state()) == TrainingProgress()
    for step in (1, 2, 3):
        again.save(small_state(), TrainingProgress(step=step))
    assert steps_of(tmp_path) == [2, 3]
    assert kept_in(tmp_path).restore(small_state()).step == 3


def test_a_tensor_that_no_file_can_hold_costs_the_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    state = small_state()
    state.model.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    checkpoints = kept_in(tmp_path)
    checkpoints.save(state, TrainingProgress(step=4))
    assert len(checkpoints.troubles) == 1
    assert checkpoints.troubles[0].startswith("no checkpoint at step 4: ")


def test_another_environment_is_allowed_and_recorded(digits: Images, tmp_path: Path) -> None:
    run = RunConfig(**TINY)
    with pytest.raises(Interrupted):
        train(run, digits, checkpoints=kept_in(tmp_path, stop=after(4)))
    elsewhere = Checkpoints(tmp_path, IDENTITY, {"threads": 1}, minutes=60)
    assert train(run, digits, checkpoints=elsewhere).resumed == [{"step": 4, "before": {"threads": 2}}]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"threads": 2}, {"threads": 2}, {}),
        ({"threads": 2}, {"threads": 2, "ranks": 2}, {"ranks": None}),
        ({"threads": 2, "ranks": 2}, {"threads": 2}, {"ranks": 2}),
        ({"threads": 2, "ranks": 2}, {"threads": 1, "ranks": 4}, {"threads": 2, "ranks": 2}),
    ],
    ids=["the same", "ranks that were none before", "none that were ranks", "other ranks"],
)
def test_what_was_otherwise_before_is_told(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], told: dict[str, Any]
) -> None:
    Checkpoints(tmp_path, IDENTITY, before).save(small_state(), TrainingProgress(step=3))
    standing = Checkpoints(tmp_path, IDENTITY, now).restore(small_state())
    assert standing.resumed == [{"step": 3, "before": told}]


# Killed and out of room at each step of writing

WRITES = """
import os, sys
from pathlib import Path
from spectrum import _files
from tests.failpoint import die_at
from tests.training.test_checkpoint import saved_one

folder, step, number, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
saved_one(folder, 1)
owner, name = {"write": (_files, "_write_all"), "sync": (os, "fsync"), "rename": (Path, "replace")}[step]
die_at(owner, name, number, "half" if (step, moment) == ("write", "before") else moment)
saved_one(folder, 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("step", "number"), [("write", 1), ("sync", 1), ("rename", 1), ("sync", 2)])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_writing_there_is_the_old_one_or_the_new(
    tmp_path: Path, step: str, number: int, moment: str
) -> None:
    said = [sys.executable, "-c", WRITES, str(tmp_path), step, str(number), moment]
    assert subprocess.run(said, cwd=ROOT, timeout=60).returncode == 9
    renamed = (step, number, moment) in (("rename", 1, "after"), ("sync", 2, "before"), ("sync", 2, "after"))
    state = small_state(9)
    assert kept_in(tmp_path).restore(state).step == (2 if renamed else 1)
    saved_one(tmp_path, 3)
    assert len(list(tmp_path.glob("[0-9]*"))) == 2
    assert not list(tmp_path.glob(".*")), "what was half written is gone"


def test_a_full_disk_costs_the_new_checkpoint_and_not_the_old_one_nor_the_run(digits: Images, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    run = RunConfig(**TINY)
    with pytest.raises(Interrupted):
        train(run, digits, checkpoints=kept_in(tmp_path, stop=after(4)))
    before = sorted(tmp_path.iterdir())
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        result = train(run, digits, checkpoints=kept_in(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(tmp_path.iterdir()) == before, "no part of a file is left"
    assert told(result) == told(train(run, digits))
    assert result.troubles[0] == "no checkpoint at step 5: File too large"

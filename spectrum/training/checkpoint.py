"""The state of a run half-way: written whole, checked when it is read, and resumed bit for bit.

The two latest are kept. A file has the tensors of network, average, optimiser and generators, and as JSON where the run
stands. Nothing in it is executed when it is read: no pickle. A file whose bytes have another hash than its name says is
passed over for the one before it, and so is one of another run or of other images.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from spectrum._files import write_whole
from spectrum.training.checkpoint_files import CheckpointFile, checkpoint_files, half_written, name_of

KEPT = 2
PROGRESS = "standing"  # the tensor that holds the JSON, as files of all versions name it


@dataclass
class TrainingProgress:
    """Where a run stands: after `step` steps of all and `step_in_epoch` of this epoch."""

    epoch: int = 0  # epochs that are over, each with an entry in the history
    step_in_epoch: int = 0
    step: int = 0
    epoch_loss: float = 0.0  # sum over this epoch's steps
    train_seconds: float = 0.0
    lowerings: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)  # at which step, and what was otherwise before
    machine: str = ""  # key of the machine that took the last step
    choices: dict[str, str] = field(default_factory=dict)  # shape class → backend, as that machine measured it


class Checkpoints:
    """Checkpoints of one run, in a folder of its own.

    Args:
        folder: made when the first is written.
        identity: what a run must share with a checkpoint to go on from it; JSON.
        environment: what a run may go on without, but not bit for bit; JSON.
        minutes: between two, at least; 0 writes one after every step.
        stop: asked after every step; true saves a checkpoint and raises Interrupted.
        on_saved: called with the folder after each, to copy it elsewhere say; where that fails, it is a trouble.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        environment: dict[str, Any],
        *,
        minutes: float = 1.0,
        stop: Callable[[], bool] = lambda: False,
        on_saved: Callable[[Path], None] | None = None,
    ) -> None:
        self.on_saved = on_saved
        self.folder, self.identity, self.environment = folder, identity, environment
        self.seconds, self.stop = 60 * minutes, stop
        self.saved_at = time.monotonic()
        self.troubles: list[str] = []  # what was passed over, or could not be written

    def due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.seconds

    def save(self, state: State, progress: TrainingProgress) -> None:
        """Write one, and remove all but the two latest.

        Where that cannot be, for lack of space on the disk or in memory, or for a tensor that no file can hold, it is a
        trouble, and not the end of the run.
        """
        header = {"identity": self.identity, "environment": self.environment, **asdict(progress)}
        try:
            data = save(state.tensors() | {PROGRESS: _bytes(json.dumps(header).encode())})
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name_of(progress.step, data), data)
        except Exception as error:
            self._note(f"no checkpoint at step {progress.step}: {_reason(error)}")
        else:
            self._remove_older(progress.step)
            self._tell(progress.step)
        self.saved_at = time.monotonic()  # also where it failed: not again at every step

    def restore(self, state: State) -> TrainingProgress:
        """Go on from the latest checkpoint that is whole and of this run; where there is none, from the start."""
        untouched = None
        for file in self._files():
            try:
                tensors = load(file.read())
                header = json.loads(tensors.pop(PROGRESS).numpy().tobytes())
                if header.pop("identity") != self.identity:
                    raise ValueError("it is of other images or another run")
                before = header.pop("environment")
                progress = TrainingProgress(**header)
                untouched = untouched or state.tensors()
                state.load(tensors)
            except Exception as error:
                self._note(f"the checkpoint at step {file.step} was passed over: {_reason(error)}")
                if untouched is not None:
                    state.load(untouched)
                continue
            names = sorted(before.keys() | self.environment.keys())
            changed = {name: before.get(name) for name in names if self.environment.get(name) != before.get(name)}
            progress.resumed.append({"step": progress.step, "before": changed})
            return progress
        return TrainingProgress()

    def _remove_older(self, step: int) -> None:
        files = self._files()
        abandoned = [file.path for file in files if file.step > step]  # of a run that was passed over
        older = [file.path for file in files if file.step <= step][KEPT:]
        for path in [*half_written(self.folder), *abandoned, *older]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._note(f"{path.name} was not removed: {_reason(error)}")

    def _files(self) -> list[CheckpointFile]:
        """The latest first; none where the folder cannot be read, which is a trouble."""
        try:
            return list(checkpoint_files(self.folder))
        except OSError as error:
            self._note(f"the checkpoints cannot be read: {_reason(error)}")
            return []

    def _tell(self, step: int) -> None:
        if self.on_saved is None:
            return
        try:
            self.on_saved(self.folder)
        except Exception as error:
            self._note(f"the checkpoint at step {step} was not copied: {_reason(error)}")

    def _note(self, trouble: str) -> None:
        if trouble not in self.troubles:
            self.troubles.append(trouble)


class State:
    """All that a run changes as it goes: network, average, optimiser, generators."""

    def __init__(self, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.average, self.optimizer = model, average, optimizer
        self.modules = {"model": model} | ({} if average is None else {"average": average})
        self.devices = {parameter.device.type for parameter in model.parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """Contiguous copies on the CPU, by name."""
        named: dict[str, Any] = {}
        for part, module in self.modules.items():
            named |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{number}.{name}": value for name, value in values.items() if value is not None}
        copies = {name: torch.as_tensor(value).detach().cpu().contiguous().clone() for name, value in named.items()}
        return copies | _generators(self.devices)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors back where they came from, in the layout of what is there.

        Raises KeyError, RuntimeError or ValueError for tensors of another network; what is there may then be changed.
        """
        for part, module in self.modules.items():
            module.load_state_dict(_below(part, tensors))
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in _below("optimizer", tensors).items():
            number, _, key = name.partition(".")
            like = parameters[int(number)]
            if tensor.shape == like.shape:
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)  # in the parameter's layout
            state.setdefault(int(number), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        _set_generators(_below("generator", tensors))


def _below(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def seed_generators(seed: int) -> None:
    """Seed all generators that a network may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _generators(devices: set[str]) -> dict[str, Tensor]:
    """The states of all generators that a network on these kinds of devices may draw from."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    assert kind == "MT19937"
    python = json.dumps(random.getstate()).encode()
    states = {
        "torch": torch.get_rng_state(),
        "python": _bytes(python),
        "numpy": torch.from_numpy(np.asarray(keys, np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    if "cuda" in devices:
        states |= {f"cuda{n}": torch.cuda.get_rng_state(n) for n in range(torch.cuda.device_count())}
    if "mps" in devices:
        states["mps"] = torch.mps.get_rng_state()
    return {f"generator.{name}": state for name, state in states.items()}


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    version, internal, gauss = json.loads(states["python"].numpy().tobytes())
    random.setstate((version, tuple(internal), gauss))
    position, has_gauss, cached = states["numpy_rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    for name, state in states.items():
        if name.startswith("cuda") and int(name.removeprefix("cuda")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _reason(error: Exception) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (message.strip().splitlines() or [type(error).__name__])[0]


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)

"""Checkpoints of a run: written atomically, verified when read, and resumed bit for bit.

The two latest are kept. A file holds the tensors of network, average, optimiser and generators, and the progress of the
run as JSON. Reading it executes nothing: it contains no pickle. A file is skipped if its bytes do not match the hash in
its name, or if it belongs to another run or to other images. The file before it is then read.
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
PROGRESS = "standing"  # name of the tensor that holds the JSON, the same in files of all versions


@dataclass
class TrainingProgress:
    """Progress of a run: `step` steps since its start and `step_in_epoch` steps in the current epoch."""

    epoch: int = 0  # finished epochs, each with an entry in the history
    step_in_epoch: int = 0
    step: int = 0
    epoch_loss: float = 0.0  # sum over the steps of the current epoch
    train_seconds: float = 0.0
    lowerings: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    # steps at which the run resumed, with what differed in the environment
    resumed: list[dict[str, Any]] = field(default_factory=list)
    machine: str = ""  # key of the machine that took the last step
    choices: dict[str, str] = field(default_factory=dict)  # shape class → backend, as that machine measured it


class Checkpoints:
    """Checkpoints of one run, in its own folder.

    Args:
        folder: created with the first checkpoint.
        identity: what a checkpoint must share with the run to resume it; JSON.
        environment: conditions that may change on a resume, which then is not bit for bit; JSON.
        minutes: shortest time between two checkpoints; 0 writes one after every step.
        stop: asked after every step; true saves a checkpoint and raises Interrupted.
        on_saved: called with the folder after each checkpoint, for example to copy it; its errors become troubles.
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
        self.troubles: list[str] = []  # files skipped, and files that could not be written

    def due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.seconds

    def save(self, state: State, progress: TrainingProgress) -> None:
        """Write a checkpoint, and remove all but the two latest.

        A failure becomes a trouble and does not end the run: too little space on the disk or in memory, or a tensor
        that no file can hold.
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
        self.saved_at = time.monotonic()  # after a failure too, so that not every following step tries again

    def restore(self, state: State) -> TrainingProgress:
        """Resume from the latest intact checkpoint of this run; without one, from the start."""
        untouched = None
        for file in self._files():
            try:
                tensors = load(file.read())
                header = json.loads(tensors.pop(PROGRESS).numpy().tobytes())
                if header.pop("identity") != self.identity:
                    raise ValueError("it belongs to another run or to other images")
                before = header.pop("environment")
                progress = TrainingProgress(**header)
                untouched = untouched or state.tensors()
                state.load(tensors)
            except Exception as error:
                self._note(f"the checkpoint at step {file.step} was skipped: {_reason(error)}")
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
        abandoned = [file.path for file in files if file.step > step]  # later steps of a checkpoint that was skipped
        older = [file.path for file in files if file.step <= step][KEPT:]
        for path in [*half_written(self.folder), *abandoned, *older]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._note(f"{path.name} was not removed: {_reason(error)}")

    def _files(self) -> list[CheckpointFile]:
        """Checkpoint files, the latest first; none if the folder cannot be read, which becomes a trouble."""
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
    """All that a run changes as it trains: network, average, optimiser, generators."""

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
        """Load tensors into the run, in the memory layout of those that they replace.

        Raises KeyError, RuntimeError or ValueError for tensors of another network; some may then be replaced already.
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
    """Seed all random generators that a network may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _generators(devices: set[str]) -> dict[str, Tensor]:
    """States of all random generators that a network may use on these kinds of devices."""
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

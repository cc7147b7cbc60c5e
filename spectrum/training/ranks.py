"""One run on several devices: every rank has the whole network and trains on its part of each batch.

Gradients, batch-norm moments, losses and evaluations are computed over the whole batch. A run on several ranks
therefore equals the run on one, except for rounding. Ranks communicate by torch.distributed: gloo on CPUs, nccl on
CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not listed as exported
from torch.nn.parallel import DistributedDataParallel

from spectrum._torch import AnyBatchNorm
from spectrum.conv.norm import BatchNormAct2d

MEET = timedelta(seconds=300)  # longest wait for all ranks to join
PATIENCE = timedelta(days=30)  # longest wait for the first rank's next message: it may plan or download meanwhile
WAIT = timedelta(seconds=30)  # longest wait for the other ranks to fail as well


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks that train one network together."""

    rank: int = 0
    count: int = 1
    # whether this rank was; all ranks then save and stop after the same step
    told_to_stop: Callable[[], bool] = lambda: False

    def joined(self, model: nn.Module) -> nn.Module:
        """The model to call in training: it averages gradients as they are computed, and shares batch-norm moments."""
        if self.count == 1:
            return model
        share_moments(model)
        # The search for unused parameters fixes the order in which gradients are summed from the first step on, also
        # after a resume.
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    def part(self, numbers: Tensor) -> Tensor:
        """This rank's part of the images of a batch or data set."""
        return numbers[self.rank :: self.count]

    def sum(self, *values: float) -> list[float]:
        """Sum of each value over all ranks."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=_groups["talk"])
        return summed.tolist()

    def broadcast(self, data: bytes) -> bytes:
        """Send the first rank's bytes to every rank."""
        if self.count == 1:
            return data
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=_groups["talk"])
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 and data else None
        sent = torch.empty(int(size), dtype=torch.uint8) if sent is None else sent
        dist.broadcast(sent, 0, group=_groups["talk"])
        return sent.numpy().tobytes()

    def all_failed(self) -> bool:
        """Whether all other ranks arrive here, too, within half a minute."""
        if self.count == 1:
            return True
        try:
            dist.monitored_barrier(_groups["fail"], timeout=WAIT)
        except RuntimeError:
            return False
        return True


ALONE = Ranks()
# process groups besides the default one of the gradients: for messages on the CPU, and for failures
_groups: dict[str, Any] = {}


def started(device: str) -> tuple[Ranks, str]:
    """Join the ranks that torchrun started; return them and the device. Raises ValueError if there are none."""
    if "WORLD_SIZE" not in os.environ:
        raise ValueError("no ranks were started; start them by torchrun --nproc-per-node 2 -m spectrum run FILE …")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    return _begin(device), device


def open_meeting(count: int) -> tuple[Any, int]:
    """Open a store where `count` ranks meet: the store for the first rank's `met`, and its port for the others."""
    store = TCPStore("0.0.0.0", 0, count, is_master=True, wait_for_workers=False, timeout=MEET)
    return store, store.port


def met(device: str, rank: int, count: int, *, store: Any = None, host: str = "", port: int = 0) -> Ranks:
    """Join `count` ranks that meet at a store: this rank's own, or the one at host and port."""
    if store is None:
        store = TCPStore(host, port, count, is_master=False, wait_for_workers=False, timeout=MEET)
    return _begin(device, store=store, rank=rank, world_size=count)


def _begin(device: str, **how: Any) -> Ranks:
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", **how)
    _groups["talk"] = dist.new_group(backend="gloo", timeout=PATIENCE)
    _groups["fail"] = dist.new_group(backend="gloo", timeout=WAIT)
    return Ranks(dist.get_rank(), dist.get_world_size())


def ended() -> None:
    """Leave the ranks and free their process groups."""
    _groups.clear()
    dist.destroy_process_group()


def share_moments(model: nn.Module) -> None:
    """Make all batch normalisations of a network use the moments of all ranks' images in training.

    Layers of torch become `BatchNormAct2d`, which computes the same function, since `nn.SyncBatchNorm` needs CUDA.
    Raises ValueError for other layers, which would use the moments of one rank's images.
    """
    ours: dict[int, BatchNormAct2d] = {}  # by the id of the layer that they replace, which may occur several times
    for parent in list(model.modules()):
        for name, module in list(parent._modules.items()):
            if isinstance(module, AnyBatchNorm) and type(module) is not BatchNormAct2d:
                setattr(parent, name, ours.setdefault(id(module), _as_ours(module)))
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            if module.momentum is None:
                raise ValueError("momentum = None: several ranks cannot share such a batch norm; give it a momentum")
            module.total = total


def _as_ours(module: AnyBatchNorm) -> BatchNormAct2d:
    """A BatchNormAct2d with the parameters and buffers of this layer."""
    if type(module) is not nn.BatchNorm2d or not (module.affine and module.track_running_stats):
        raise ValueError(
            f"{type(module).__name__}: several ranks cannot share its moments; use BatchNormAct2d or nn.BatchNorm2d"
        )
    ours = BatchNormAct2d(module.num_features)
    ours._parameters, ours._buffers = module._parameters, module._buffers
    ours.eps, ours.momentum, ours.training = module.eps, module.momentum, module.training
    return ours


class _Total(torch.autograd.Function):
    """Sum over all ranks, in the forward and the backward pass."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        everyones = mine.clone()
        dist.all_reduce(everyones)
        return everyones

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        everyones = gradients[0].clone()
        dist.all_reduce(everyones)
        return everyones


total: Callable[[Tensor], Tensor] = _Total.apply

"""One run on several devices: every rank has the whole network and takes its part of each batch.

Gradients, batch normalisation's moments, losses and evaluations are those of the whole batch, so that a run on several
ranks is the run on one, but for rounding. Ranks talk by torch.distributed, over gloo on CPUs and nccl on CUDA.
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

MEET = timedelta(seconds=300)  # for all ranks to come
PATIENCE = timedelta(days=30)  # for what the first rank says next: it may plan, or download
WAIT = timedelta(seconds=30)  # for the other ranks to fail as well


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one network together."""

    rank: int = 0
    count: int = 1
    told_to_stop: Callable[[], bool] = lambda: False  # this one; all of them then save and stop after the same step

    def joined(self, model: nn.Module) -> nn.Module:
        """What to call instead of the model in training: it averages gradients as they come, and shares moments."""
        if self.count == 1:
            return model
        share_moments(model)
        # Told to look for unused parameters, it sums gradients in one order from the first step on, resumed or not.
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    def part(self, numbers: Tensor) -> Tensor:
        """This rank's of a batch's images, or of a data set's."""
        return numbers[self.rank :: self.count]

    def sum(self, *values: float) -> list[float]:
        """Of each value over all ranks."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=_groups["talk"])
        return summed.tolist()

    def broadcast(self, data: bytes) -> bytes:
        """The first rank's bytes, on every rank."""
        if self.count == 1:
            return data
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=_groups["talk"])
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 and data else None
        sent = torch.empty(int(size), dtype=torch.uint8) if sent is None else sent
        dist.broadcast(sent, 0, group=_groups["talk"])
        return sent.numpy().tobytes()

    def all_failed(self) -> bool:
        """Whether the other ranks come here, too, soon."""
        if self.count == 1:
            return True
        try:
            dist.monitored_barrier(_groups["fail"], timeout=WAIT)
        except RuntimeError:
            return False
        return True


ALONE = Ranks()
_groups: dict[str, Any] = {}  # beside the one of the gradients: for what is said on the CPU, and for failures


def started(device: str) -> tuple[Ranks, str]:
    """This process among those that torchrun has started, and its device. Raises ValueError where there are none."""
    if "WORLD_SIZE" not in os.environ:
        raise ValueError("no ranks: start it by torchrun, such as torchrun --nproc-per-node 2 -m spectrum run FILE …")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    return _begin(device), device


def open_meeting(count: int) -> tuple[Any, int]:
    """Where `count` ranks meet: a store on this machine, for the first one's `met`; and its port, for the others'."""
    store = TCPStore("0.0.0.0", 0, count, is_master=True, wait_for_workers=False, timeout=MEET)
    return store, store.port


def met(device: str, rank: int, count: int, *, store: Any = None, host: str = "", port: int = 0) -> Ranks:
    """This process as one of `count` ranks that meet at a store: its own, or the one at host and port."""
    if store is None:
        store = TCPStore(host, port, count, is_master=False, wait_for_workers=False, timeout=MEET)
    return _begin(device, store=store, rank=rank, world_size=count)


def _begin(device: str, **how: Any) -> Ranks:
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", **how)
    _groups["talk"] = dist.new_group(backend="gloo", timeout=PATIENCE)
    _groups["fail"] = dist.new_group(backend="gloo", timeout=WAIT)
    return Ranks(dist.get_rank(), dist.get_world_size())


def ended() -> None:
    """Nothing is said any more."""
    _groups.clear()
    dist.destroy_process_group()


def share_moments(model: nn.Module) -> None:
    """Let every batch normalisation of a network have the moments of all ranks' images in training.

    Those of torch's own kind become `BatchNormAct2d`, the same function. (`nn.SyncBatchNorm` is for CUDA only.) Raises
    ValueError for others, which would go by the moments of one rank's images.
    """
    ours: dict[int, BatchNormAct2d] = {}  # by the layer in whose place they come, which may stand in several
    for parent in list(model.modules()):
        for name, module in list(parent._modules.items()):
            if isinstance(module, AnyBatchNorm) and type(module) is not BatchNormAct2d:
                setattr(parent, name, ours.setdefault(id(module), _as_ours(module)))
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            if module.momentum is None:
                raise ValueError("batch normalisation without a momentum cannot be shared by several ranks")
            module.total = total


def _as_ours(module: AnyBatchNorm) -> BatchNormAct2d:
    """The same layer, with the same parameters and buffers, as one that can share its moments."""
    if type(module) is not nn.BatchNorm2d or not (module.affine and module.track_running_stats):
        raise ValueError(
            f"{type(module).__name__}: several ranks share the moments of BatchNormAct2d and plain nn.BatchNorm2d only"
        )
    ours = BatchNormAct2d(module.num_features)
    ours._parameters, ours._buffers = module._parameters, module._buffers
    ours.eps, ours.momentum, ours.training = module.eps, module.momentum, module.training
    return ours


class _Total(torch.autograd.Function):
    """The sum over all ranks. What each rank's loss has to say of it is summed as well."""

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

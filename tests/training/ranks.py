"""The program of each rank in tests/training/test_ranks.py: torchrun … -m tests.training.ranks gradients | train …"""

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from spectrum import build_model
from spectrum.data.images import images_of
from spectrum.design.run import RunConfig
from spectrum.training.checkpoint import Checkpoints
from spectrum.training.loop import train
from spectrum.training.ranks import ended, started


def gradients(out: str) -> None:
    """In float64: the gradients, moments and outputs of two ranks are those of the whole batch."""
    ranks, _ = started("cpu")
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        alone = build_model("probe", segments=3, norm=True, activation="relu", width=0.25, image_size=8).double()
        alone = alone.to(memory_format=layout)
        model = copy.deepcopy(alone)
        joined = ranks.joined(model)
        for _ in range(2):
            x_nchw, y_n = torch.randn(8, 3, 8, 8).double().to(memory_format=layout), torch.randint(10, (8,))
            mine = ranks.part(torch.arange(8))
            cross_entropy(joined(x_nchw[mine]), y_n[mine]).backward()
            cross_entropy(alone(x_nchw), y_n).backward()
            for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
                assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
            assert_close(model.state_dict(), alone.state_dict(), rtol=1e-12, atol=1e-12)
    Path(f"{out}.{ranks.rank}.json").write_text("{}")
    ended()


def run(out: str, said: str, folder: str = "", stop_at: str = "0") -> None:
    torch.set_num_threads(1)
    ranks, device = started("cpu")
    run = RunConfig.model_validate_json(said)
    checkpoints = None
    if folder and ranks.rank == 0:
        steps = iter(range(1, 10**9))
        checkpoints = Checkpoints(Path(folder), {}, {}, minutes=1e9, stop=lambda: next(steps) == int(stop_at))
    result = train(run, images_of(run), device=device, checkpoints=checkpoints, ranks=ranks)
    Path(f"{out}.{ranks.rank}.json").write_text(json.dumps(asdict(result)))
    ended()


if __name__ == "__main__":
    {"gradients": gradients, "train": run}[sys.argv[1]](*sys.argv[2:])

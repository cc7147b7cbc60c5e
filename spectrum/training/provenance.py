"""Provenance of a result: versions, threads, device, layout, backend, code, images.

On CPUs, weights are identical from run to run within one such environment. On CUDA they are not, since some sums have
no fixed order.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from spectrum._version import __version__
from spectrum.conv.backends.choice import recorded_choice
from spectrum.data.splits import Images


def provenance(images: Images, device: str) -> dict[str, Any]:
    """Provenance of a run in this process, for its row."""
    return {
        "spectrum": __version__,
        "revision": code_revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        **accelerator(device),
        "threads": torch.get_num_threads(),
        "layout": "channels_last",
        "lowering": recorded_choice(on_cpu=device == "cpu"),
        "data_fingerprint": images.fingerprint,
    }


def accelerator(device: str) -> dict[str, Any]:
    """Graphics card on CUDA, its libraries, and whether float32 convolutions round inputs to TF32; empty elsewhere."""
    if torch.device(device).type != "cuda":
        return {}
    return {
        "card": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def best_device() -> str:
    """Fastest kind of device that torch finds: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> str:
    """Resolve "auto" and check the device. Raises ValueError for a device that torch cannot use."""
    if device == "auto":
        return best_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device={device}: torch cannot use it on this machine ({reason}); use auto or cpu") from None
    return device


@cache
def code_revision() -> str | None:
    """Git commit of this package's source, with "+" if files were changed since; None outside of git."""
    folder = Path(__file__).parents[1]
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")  # else the repository is not this package's
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", str(folder))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()

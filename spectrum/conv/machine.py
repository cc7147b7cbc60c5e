"""The machine that computes: processor or GPU, versions and code, as a text under which measured choices are kept."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch

from spectrum._torch import assume_constant_result
from spectrum.conv.kernels.build import library

CODE = ("backends", "kernels")  # packages whose code decides how fast a backend is
SUFFIXES = (".py", ".h", ".cpp")


def machine_key(device: torch.device | str) -> str:
    """The machine as far as it decides which backend is fastest.

    Args:
        device: on which layers run, "cpu" or "cuda".

    The text has the processor, the built kernels and torch's threads, or the GPU with CUDA, cuDNN and its settings;
    torch's version; and a hash of the code of backends and kernels.
    """
    place = torch.device(device)
    where = _gpu(place) if place.type == "cuda" else _cpu()
    return f"{where}; torch {torch.__version__}; code {code_hash()}"


def _cpu() -> str:
    kernels = library()
    built = "no kernels"
    if kernels is not None:  # their name is a hash of sources, compiler and processor
        built = f"{kernels.spectrum_lanes()} lanes, kernels {Path(kernels._name).stem[:12]}"
    count = torch.get_num_threads()
    return f"{processor()}, {built}, {count} thread{'' if count == 1 else 's'}"


def _gpu(place: torch.device) -> str:
    settings = [name for name in ("allow_tf32", "benchmark", "deterministic") if getattr(torch.backends.cudnn, name)]
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return ", ".join([torch.cuda.get_device_name(place), versions, *settings])


@cache
def code_hash() -> str:
    """A hash of the sources of all backends and kernels."""
    digest = hashlib.sha256()
    folders = [Path(__file__).parent / name for name in CODE]
    for path in sorted(path for folder in folders for path in folder.iterdir() if path.suffix in SUFFIXES):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def processor() -> str:
    """The processor's name, with the numbers that tell models of one name apart where the system gives them."""
    known = _cpuinfo()
    name = known.get("model name") or platform.processor() or platform.machine()
    numbers = [known[part] for part in ("cpu family", "model", "stepping") if part in known]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


@assume_constant_result
def maker() -> str:
    """The processor's maker as the system calls it, such as "GenuineIntel"; empty where it does not say."""
    return _cpuinfo().get("vendor_id", "")


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux tells about the first processor; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}

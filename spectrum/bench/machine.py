"""The machine on which a benchmark ran."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spectrum._files import write_whole
from spectrum._version import __version__
from spectrum.conv.kernels.build import binding, library
from spectrum.conv.machine import processor
from spectrum.training.provenance import accelerator, code_revision


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, versions, code, date."""
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True) if compiler else None
    kernels = library()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "compiler": version.stdout.splitlines()[0] if version and version.stdout else None,
        "kernel_lanes": kernels.spectrum_lanes() if kernels is not None else None,
        "kernels_bound": binding(),
        "spectrum": __version__,
        "revision": code_revision(),
    }


def folder_of(device: str, out: Path) -> Path:
    """The folder for tables of a device: one within `out`, named after the processor, or on CUDA after the card."""
    name = processor() if device == "cpu" else torch.cuda.get_device_name(device)
    plain = re.sub(r"\((r|tm|c)\)", "", name.lower())
    return out / re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def save(table: pd.DataFrame, path: Path, *, device: str = "cpu", **settings: Any) -> None:
    """Write a table as CSV, and NAME.machine.json with the machine, the device's card if it has one, and settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.to_csv(index=False, float_format="%.6g"))
    record = {**machine(), **accelerator(device), **settings}
    write_whole(path.with_suffix(".machine.json"), json.dumps(record, indent=1) + "\n")

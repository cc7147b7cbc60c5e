"""Where files are kept that can be made again: decoded images, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SPECTRUM_CACHE`, or `~/.cache/spectrum`. It need not exist yet."""
    return Path(os.environ.get("SPECTRUM_CACHE") or Path.home() / ".cache" / "spectrum")

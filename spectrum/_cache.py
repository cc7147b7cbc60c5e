"""The cache folder: files that can be made again, such as decoded images and compiled kernels."""

from __future__ import annotations

import os
import stat
import warnings
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder: `$SPECTRUM_CACHE`, or `~/.cache/spectrum`. It need not exist yet."""
    return Path(os.environ.get("SPECTRUM_CACHE") or Path.home() / ".cache" / "spectrum")


def make_folder(folder: Path) -> None:
    """Make a folder that only this user may write to, and its missing parents. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True, mode=0o700)


def is_our_own(folder: Path) -> bool:
    """Whether it is a folder (not a link) that this user owns and nobody else may write to."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def usable_cache() -> bool:
    """Whether the cache folder belongs to this user or does not exist yet; if neither, warn once.

    Files that other users may have written are neither read nor loaded: their kernels would run in this process.
    """
    folder = cache_folder()
    if not folder.exists() or is_our_own(folder.resolve()):
        return True
    _warn(folder)
    return False


@cache
def _warn(folder: Path) -> None:
    warnings.warn(
        f"the cache folder {folder} is not used: it belongs to another user, or other users may write to it. "
        f"Set SPECTRUM_CACHE to a folder of your own, or make it private (chmod go-w {folder})",
        stacklevel=3,
    )

"""Where files are kept that can be made again: decoded images, compiled kernels."""

from __future__ import annotations

import os
import stat
import warnings
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """`$SPECTRUM_CACHE`, or `~/.cache/spectrum`. It need not exist yet."""
    return Path(os.environ.get("SPECTRUM_CACHE") or Path.home() / ".cache" / "spectrum")


def make_folder(folder: Path) -> None:
    """Make a folder to which nobody else may write, and those above it. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True, mode=0o700)


def is_our_own(folder: Path) -> bool:
    """Whether it is a folder of this user's, and no link, to which nobody else may write."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def usable_cache() -> bool:
    """Whether the cache folder is this user's own, or is not there yet; if not, a warning says so once.

    What others may have put there is neither read nor loaded: decoded images would be theirs, kernels would run.
    """
    folder = cache_folder()
    if not folder.exists() or is_our_own(folder.resolve()):
        return True
    _warn(folder)
    return False


@cache
def _warn(folder: Path) -> None:
    warnings.warn(
        f"the cache folder {folder} is not used: it belongs to another user, or others may write to it. "
        f"Set SPECTRUM_CACHE to a folder of your own, or take their right to write (chmod go-w {folder})",
        stacklevel=3,
    )

"""Files that are written whole, and errors that name their file.

write_whole   the old file or the new one is there at any moment, and a failure leaves the old one
naming        gives every OSError of a block the name of the file that it is about
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

LONGEST_NAME = 200  # bytes of a name that a temporary file takes over, so that its own is not too long


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a whole file: the old one or the new one is there at any moment, never a mix.

    Args:
        path: of the file, whose folder is there. A link is followed, and an old file's permissions are kept. What is no
            ordinary file, such as a pipe, is written as it stands.
        content: text is written as UTF-8, its line ends as they are.

    Raises OSError, with `path` as its filename. The old file is then as it was, and no part of the new one is left.
    """
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        target = Path(os.path.realpath(path))
        before = target.stat() if target.exists() else None
        if before is not None and not stat.S_ISREG(before.st_mode):
            target.write_bytes(data)
            return
        if before is not None:
            os.close(os.open(target, os.O_WRONLY))  # a file that may not be written may not be replaced either
        _replace(target, data, None if before is None else stat.S_IMODE(before.st_mode))


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    stem = os.fsdecode(os.fsencode(target.name)[:LONGEST_NAME])
    temporary = target.with_name(f".{stem}.{os.getpid()}{secrets.randbelow(10**6):06}")
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            _write_all(file, data)
            os.fsync(file.fileno())
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write_all(file: BufferedWriter, data: bytes) -> None:
    file.write(data)
    file.flush()


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let every OSError of the block have this path as its filename: one of a read, a write or a sync has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, reason_of(error), str(path)) from error


def reason_of(error: OSError) -> str:
    """Why, in the system's words, without the file."""
    return error.strerror or str(error) or type(error).__name__

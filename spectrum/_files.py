"""Atomic writes of files, and errors that name their file.

write_whole   replaces a file atomically; a failure leaves the old file
naming        adds the name of the file to every OSError of a block
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

LONGEST_NAME = 200  # bytes of the name that a temporary file keeps, so that its own is not too long


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file atomically: at any moment the old or the new one exists, never a mix.

    Args:
        path: where to write; its folder must exist. A link is followed, and an old file's permissions are kept. A
            special file, such as a pipe, is written directly.
        content: text or bytes. Text is written as UTF-8, without changing line ends.

    Raises OSError, with `path` as its filename. The old file is then unchanged, and no part of the new one is left.
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
    """Give every OSError of the block this path as its filename; those of reads, writes and syncs have none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, reason_of(error), str(path)) from error


def reason_of(error: OSError) -> str:
    """The reason in the system's words, without the file."""
    return error.strerror or str(error) or type(error).__name__

"""Measured choices of backends, kept in the cache folder: one file per machine key, shared by all processes.

choices/<hash of the key>.json    the key, and for each shape class the fastest backend and all times
choices/<hash of the key>.lock    held by the process that measures; the system frees it however that one ends
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from spectrum._cache import cache_folder, make_folder, usable_cache
from spectrum._files import reason_of, write_whole

FOLDER = "choices"
WAIT = 120.0  # seconds to wait for another process that measures
LOOK = 0.05
LOGGER = logging.getLogger("spectrum.tuning")


@dataclass(frozen=True)
class Timed:
    """The fastest backend of a shape class, and the seconds of a forward and backward pass by each that was timed."""

    backend: str
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Kept:
    """The choices of one machine: those that were read, and those that are added.

    Attributes:
        may_measure: False if another process measures for longer than `WAIT` seconds; its results are then missing.
    """

    machine: str
    choices: dict[str, Timed] = field(default_factory=dict)  # by text of the shape class
    may_measure: bool = True


@contextmanager
def kept_choices(machine: str) -> Iterator[Kept]:
    """The choices of a machine, which no other process measures meanwhile; what the block adds is written at its end.

    A file that cannot be read is announced and measured anew. Without a usable cache folder nothing is kept, which is
    announced too.
    """
    path = cache_folder() / FOLDER / f"{hashlib.sha256(machine.encode()).hexdigest()[:32]}.json"
    lock = _opened(path.with_suffix(".lock"))
    if lock is None:
        yield Kept(machine)
        return
    with lock:
        kept = Kept(machine, may_measure=_locked(lock))
        kept.choices |= _read(path, machine)
        before = dict(kept.choices)
        try:
            yield kept
        finally:
            if kept.may_measure and kept.choices != before:
                _write(path, kept)


def _opened(path: Path) -> TextIOWrapper | None:
    """The file of the lock; None, after a message, where there is no folder to keep choices in."""
    if not usable_cache():
        return None  # a warning was given
    try:
        make_folder(cache_folder())
        make_folder(path.parent)
        return path.open("a")
    except OSError as error:
        LOGGER.warning("spectrum: measured backends are not kept: %s: %s", path.parent, reason_of(error))
        return None


def _locked(lock: TextIOWrapper) -> bool:
    """Whether this process now holds the lock; False, after a message, if another one keeps it for too long."""
    until = time.monotonic() + WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                LOGGER.warning(
                    "spectrum: another process has measured backends for over %g seconds; what is not known is guessed",
                    WAIT,
                )
                return False
            time.sleep(LOOK)
        except OSError as error:  # a file system without locks
            LOGGER.warning("spectrum: measured backends are not shared: %s: %s", lock.name, reason_of(error))
            return True


def _read(path: Path, machine: str) -> dict[str, Timed]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        _say_unreadable(path, error)
        return {}
    try:
        return _parsed(json.loads(text), machine)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _say_unreadable(path, error)
        return {}


def _say_unreadable(path: Path, error: Exception) -> None:
    reason = str(error) or type(error).__name__
    LOGGER.warning("spectrum: %s cannot be read (%s); backends are measured anew", path, reason)


def _parsed(content: Any, machine: str) -> dict[str, Timed]:
    """The choices in a file. Raises an error of Python for anything else."""
    if content["machine"] != machine:
        raise ValueError("it is of another machine")
    found = {}
    for name, entry in content["choices"].items():
        seconds = {str(backend): float(value) for backend, value in entry["seconds"].items()}
        if not isinstance(entry["backend"], str):
            raise TypeError(f"{name}: its backend is no name")
        found[name] = Timed(entry["backend"], seconds)
    return found


def _write(path: Path, kept: Kept) -> None:
    choices = {name: {"backend": one.backend, "seconds": dict(one.seconds)} for name, one in kept.choices.items()}
    try:
        write_whole(path, json.dumps({"machine": kept.machine, "choices": choices}, indent=1) + "\n")
    except OSError as error:
        LOGGER.warning("spectrum: measured backends are not kept: %s: %s", path, reason_of(error))

"""The command `spectrum`: the only place that parses arguments or prints.

Exit status: 0 all well · 1 some points failed, or a folder has faults · 2 wrong input, nothing done · 130 and 143
stopped by a signal.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spectrum._version import __version__
from spectrum.cli import measures, results, studies
from spectrum.cli.arguments import (
    PRINT_COMPLETION,
    Audit,
    Bench,
    Doctor,
    Export,
    Plan,
    Report,
    Run,
    Status,
    completion_script,
    parse,
)
from spectrum.cli.printing import err, out
from spectrum.study.store import StoreError

COMMANDS: dict[type, Callable[[Any], int]] = {
    Plan: studies.plan,
    Run: studies.run,
    Status: results.status,
    Doctor: results.doctor,
    Report: results.report,
    Export: results.export,
    Audit: measures.audit,
    Bench: measures.bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        out.print(f"spectrum {__version__}")
        return 0
    with _stopped_by_signals():
        try:
            return _obey(words)
        except (ValueError, StoreError) as error:
            return _refuse(str(error))
        except KeyboardInterrupt:
            err.print("stopped; finished points are kept, run the same command again to go on")
            return 130
        except BrokenPipeError:
            sys.stderr.close()
            return 1
        except OSError as error:
            return _refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _obey(words: Sequence[str]) -> int:
    if words[:1] == [PRINT_COMPLETION] and len(words) == 2:
        print(completion_script(words[1]))  # rich would expand its tabs
        return 0
    command = parse(words)
    return COMMANDS[type(command)](command)


def _refuse(why: str) -> int:
    err.print(f"spectrum: {why}")
    return 2


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, workers included, with status 143."""

    def terminate(number: int, frame: object) -> None:
        sys.exit(143)

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

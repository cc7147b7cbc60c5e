"""The command `spectrum`: the only place that parses arguments or prints.

Exit status:

    0     all well
    1     some runs failed, the engine was lost, or `doctor` found faults
    2     wrong input; nothing was done
    3     a file could not be written, as on a full disk; what was finished before is kept
    70    an error of this program, with its traceback
    130   stopped by Ctrl-C, 143 by SIGTERM; 141 the reader of the output has closed it
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spectrum._version import __version__
from spectrum.cli import measures, results, segment, studies
from spectrum.cli.arguments import (
    PRINT_COMPLETION,
    Audit,
    Bench,
    Compare,
    Doctor,
    Export,
    Plan,
    Report,
    Run,
    Segment,
    Status,
    completion_script,
    parse,
)
from spectrum.cli.printing import err, out, print_next
from spectrum.study.store import FULL, StoreError, WriteError

WRONG, UNWRITTEN, TERMINATED = 2, 3, 143
COMMANDS: dict[type, Callable[[Any], int]] = {
    Plan: studies.plan,
    Run: studies.run,
    Status: results.status,
    Doctor: results.doctor,
    Report: results.report,
    Export: results.export,
    Compare: results.compare,
    Audit: measures.audit,
    Segment: segment.segment,
    Bench: measures.bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        out.print(f"spectrum {__version__}")
        return 0
    with _stopped_by_signals():
        try:
            return _obey(words)
        except (ValueError, StoreError) as error:
            return _refuse(str(error), UNWRITTEN if isinstance(error, WriteError) else WRONG)
        except KeyboardInterrupt:
            _say_stopped(words)
            return 130
        except SystemExit as stop:
            if stop.code == TERMINATED:
                _say_stopped(words)
            raise
        except BrokenPipeError:
            sys.stderr.close()
            return 141
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            return _refuse(message, UNWRITTEN if error.errno in FULL else WRONG)
        except Exception:
            traceback.print_exc()
            return 70


def _obey(words: Sequence[str]) -> int:
    if words[:1] == [PRINT_COMPLETION]:
        print(completion_script(" ".join(words[1:])))  # not rich, which would expand its tabs
        return 0
    command = parse(words)
    status = COMMANDS[type(command)](command)
    if isinstance(command, Plan) and not command.json:
        print_next(*studies.after_plan(command, words[1:]))
    return status


def _say_stopped(words: Sequence[str]) -> None:
    kept = "; finished runs are kept; run the same command again to resume" if words[:1] == ["run"] else ""
    err.print(f"stopped{kept}")


def _refuse(why: str, status: int) -> int:
    err.print(f"spectrum: {why}")
    return status


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End the command on SIGTERM as on Ctrl-C, workers included, with status 143."""

    def terminate(number: int, frame: object) -> None:
        sys.exit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Output of the command: two consoles, plain tables, durations, comparisons."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from spectrum._text import printable
from spectrum.design.margins import margin_words
from spectrum.design.plan import PlannedContrast
from spectrum.models.position import PLACES


class PlainConsole(Console):
    """A console on which no text that a user wrote commands the terminal."""

    def print(self, *objects: Any, **more: Any) -> None:
        """Print as rich does, with characters that are not printed written out."""
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **more)


def _console(stderr: bool) -> Console:
    """A console for plain text: input of users is never markup, and tables outside of a terminal keep their width."""
    console = PlainConsole(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    return console


out, err = _console(stderr=False), _console(stderr=True)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, heading: str | None = None) -> None:
    """Print rows of cells: the first column and prose aligned left, numbers aligned right."""
    table = Table(title=None if heading is None else printable(heading), title_justify="left", box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(printable(title), justify="left" if number == 0 or title == "reasons" else "right")
    for row in rows:
        table.add_row(*map(printable, row))
    out.print(table)


def print_contrast(contrast: PlannedContrast) -> None:
    """Print a planned comparison, how its sides differ and its margin, flagged if it changes more than one factor.

    An interaction has factors of each difference, and factors across which the differences are compared.
    """
    factors, across = contrast.factors, contrast.across_factors
    notes = "".join(f" {note[:1].upper()}{note[1:].rstrip('.')}." for note in contrast.notes)
    margin = "" if contrast.margin is None else f"; margin {margin_words(contrast.margin)}"
    if not contrast.confounded:
        where = f", compared across {', '.join(across)}" if across else ""
        changed = f"differs only in {', '.join(factors)}" if factors else "differs in nothing"
        out.print(f"{contrast.name}: {changed}{where}{margin}.{notes}")
        return
    out.print(f"{contrast.name}: CONFOUNDED, changes {len(factors) + len(across)} factors at once{margin}.{notes}")
    for factor in [*factors, *(f"across: {factor}" for factor in across)]:
        out.print(f"  - {factor}")


def print_next(*words: str) -> None:
    """Print the command that usually follows."""
    out.print(f"{'next':7} {shlex.join(('spectrum', *words))}")


def duration(seconds: float) -> str:
    """Seconds in words, such as "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def counted(count: int, noun: str) -> str:
    """A number with its noun, such as "1 run" or "1,024 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def run_name(row: Mapping[str, Any], varied: Iterable[str], tuned: Iterable[str] = ()) -> str:
    """Settings that distinguish a run from the others of its study, such as "segments=4 seed=0".

    Args:
        row: row of the run, or its options.
        varied: options that have several values in the study.
        tuned: options that the sweep tunes, for a run of a sweep.
    """
    split = [name for name in PLACES if row.get(name) is not None]
    names = [*split, *(name for name in varied if name not in (*PLACES, "seed")), "seed", *tuned]
    return " ".join(f"{name}={row[name]}" for name in dict.fromkeys(names) if name in row)

"""Numbers and configurations in words, and claims that the rows must support."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from spectrum.analysis.plots import literature
from spectrum.analysis.sentences import pp
from spectrum.design import budgets

BUDGETS = {str(match): kind.words for match, kind in budgets.BUDGETS.items()}
REVERSED = {"higher": "lower", "lower": "higher"}


class HasInterval(Protocol):
    """Anything with a mean and the ends of its interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return pp(value, sign=True)


def interval(found: HasInterval) -> str:
    """Ends of a 95% CI in percentage points, in brackets."""
    return f"[{pp(found.low)}, {pp(found.high)}]"


def with_interval(found: HasInterval) -> str:
    """A difference in percentage points, with its sign and its 95% CI."""
    return f"{signed(found.mean)} {interval(found)}"


def ahead(found: HasInterval) -> str:
    """The winner's lead with its 95% CI. Raises ValueError if the first side has the lower mean."""
    if not found.mean > 0:
        raise ValueError(f"a difference of {with_interval(found)}: name the winner first")
    return f"{pp(found.mean)} {interval(found)}"


def reversed_verdict(verdict: str) -> str:
    """Verdict in words for exchanged sides.

    >>> reversed_verdict("negligibly lower"), reversed_verdict("equivalent")
    ('negligibly higher', 'equivalent')
    """
    return " ".join(REVERSED.get(word, word) for word in verdict.split())


def p_value(p: float) -> str:
    """A p-value for a table; empty if a comparison has none."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def as_set(labels: Iterable[str]) -> str:
    """Labels of configurations in braces."""
    return f"{{{', '.join(labels)}}}"


def listed(words: Sequence[object]) -> str:
    """Words separated by commas, the last one by "and"."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def holds(condition: bool, text: str) -> str:
    """A claim in words that the rows must support. Raises ValueError if they contradict it."""
    if not condition:
        raise ValueError(f"the rows contradict this claim: {text}")
    return text


def published(work: str, segments: int) -> str:
    """Gain that a work reports for a number of segments over its own 1 segment, in percentage points of top-1 error."""
    found = literature().set_index(["work", "segments"])["gain"]
    return pp(found[work, segments] / 100)

"""Numbers and configurations in words, and claims that the rows must support."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from spectrum.analysis.plots import literature
from spectrum.analysis.sentences import pp
from spectrum.design import budgets
from spectrum.models.position import END

BUDGETS = {str(match): kind.words for match, kind in budgets.BUDGETS.items()}
CONTRASTS = {  # names in plans that do not say what is compared, and names that do
    "BSConv's swap, as published": "MobileNet's block vs BSConv's, as published",
    "BSConv's swap, at equal MACs": "MobileNet's block vs BSConv's, MAC-matched",
    "without the ReLU between the halves": "with vs without the ReLU between the 3×3 and the 1×1",
    "without the BN between the halves": "with vs without the batch norm between the 3×3 and the 1×1",
    "the order, and the 1×1 before the stride, at equal MACs": "spatial-first vs pointwise-first, which also moves the "
    "1×1 before the stride, MAC-matched",
    "the order alone, at equal MACs": "spatial-first vs pointwise-first, order alone, MAC-matched",
    "the MACs that BSConv's swap adds": "BSConv's block, MAC-matched vs as published",
    "ReLU's effect along the spectrum": "ReLU vs none, per doubling of the segments",
    "the order's effect along the spectrum": "pointwise-first vs spatial-first, per doubling of the segments",
    "what residual connections give, along the spectrum": "with vs without residual connections, per doubling of the "
    "segments",
}
WORDING = {  # wording of plans and of the library, and wording of the pages; replaced in this order
    "one segment a channel": END,
    "one a channel": END,
    ", twice as wide,": " (larger)",
    "at equal parameters": BUDGETS["params"],
    "at equal MACs": BUDGETS["macs"],
    "at equal step time": BUDGETS["step_time"],
    "1×1 first": "pointwise-first",
    "spatial first": "spatial-first",
    "against whole": "vs a whole 1×1",
    " against ": " vs ",
    " less under ": " minus under ",
    " less the ": " minus the ",
    "residual connections, ": "with vs without residual connections, ",
}
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


def in_plain_words(text: str) -> str:
    """A name in a plan, a label or a table of the library, in the wording of the pages."""
    if text in CONTRASTS:
        return CONTRASTS[text]
    for said, plain in WORDING.items():
        text = text.replace(said, plain)
    return text


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

"""Numbers and places in words, and claims that the rows must bear out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from spectrum.analysis.plots import literature
from spectrum.analysis.sentences import pp

PLACES = {"1, no 1×1": "the bare convolution", "per channel": "one a channel"}


class HasInterval(Protocol):
    """What has a mean and the ends of its interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def signed(value: float) -> str:
    """A difference in points, with its sign."""
    return pp(value, sign=True)


def interval(low: float, high: float) -> str:
    """The ends of an interval in points."""
    return f"{pp(low)} to {pp(high)}"


def with_interval(found: HasInterval) -> str:
    """A difference in points with its interval."""
    return f"{signed(found.mean)} ({interval(found.low, found.high)})"


def places(labels: Sequence[str]) -> str:
    """Places on the spectrum in words, listed."""
    return listed([PLACES.get(label, label) for label in labels])


def listed(words: Sequence[object]) -> str:
    """Words with commas, the last with "and"."""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def holds(condition: bool, text: str) -> str:
    """A claim in words, which the rows must bear out. Raises ValueError where they do not."""
    if not condition:
        raise ValueError(f"the rows do not say: {text}")
    return text


def published(work: str, segments: int) -> str:
    """What a work reports that so many segments give over its own 1 segment, in points of top-1 error."""
    found = literature().set_index(["work", "segments"])["gain"]
    return signed(found[work, segments] / 100)

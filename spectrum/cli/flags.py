"""Check the values of flags before they are parsed, and say what was given and an example that works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from spectrum._records import SpecError
from spectrum._registry import nearest

TRUTHS = ("yes", "no", "true", "false", "on", "off", "1", "0")


@dataclass(frozen=True)
class Kind:
    """What a flag takes."""

    types: frozenset[type]
    choices: tuple[str, ...]
    is_list: bool

    def fault(self, value: str) -> str | None:
        """What is wrong with one value; None for a valid one, and for text, whose meaning is checked later."""
        if value in self.choices or (value == "None" and NoneType in self.types):
            return None
        if {str, Path} & self.types:
            return None
        if self.choices and not {int, float} & self.types:
            near = nearest(value, self.choices)
            return f"is unknown; {f'did you mean {near}? Else ' if near else ''}try {', '.join(self.choices)}"
        number = int if int in self.types else float if float in self.types else None
        if number is None or _reads(number, value):
            return None
        return f"is not {self._expected(number)}"

    def _expected(self, number: type) -> str:
        one = "a whole number" if number is int else "a number"
        return " or ".join([one, *self.choices])

    def example(self) -> str:
        """A value that works."""
        if not {int, float} & self.types:
            return self.choices[0]
        return "8 16 32" if self.is_list else "2" if int in self.types else "0.1"


def _reads(number: type, value: str) -> bool:
    try:
        number(value)
    except ValueError:
        return False
    return True


def kind_of(hint: Any) -> Kind:
    """What a flag with this type takes.

    >>> kind_of(int | Literal["per_channel"] | None).fault("4,8")
    'is not a whole number or per_channel'
    """
    types: set[type] = set()
    choices: list[str] = []
    is_list = False
    left = [hint]
    while left:
        one = left.pop()
        origin = get_origin(one)
        if origin is Literal:
            choices += map(str, get_args(one))
        elif origin is Annotated:
            left.append(get_args(one)[0])
        elif origin is not None or get_args(one):
            is_list |= origin is tuple
            left += [part for part in get_args(one) if part is not ...]
        elif isinstance(one, type):
            types.add(one)
    return Kind(frozenset(types), tuple(choices), is_list)


def check_values(words: Sequence[str], kinds: Mapping[str, Kind]) -> None:
    """Raise SpecError for the first value that its flag cannot take.

    Args:
        words: of the command line, after the command.
        kinds: by flag, such as "--batch-size".
    """
    for flag, values in _given(words):
        kind = kinds.get(flag)
        if kind is None or not values:
            continue
        if bool in kind.types:
            if values[0].lower() in TRUTHS:
                raise SpecError(f"{flag} {values[0]}: takes no value; write {flag} alone, or leave it out")
            continue
        for value in values if kind.is_list else values[:1]:
            fault = kind.fault(value)
            if fault is not None:
                apart = ", with spaces between" if kind.is_list and "," in value else ""
                example = "" if fault.startswith("is unknown") else f"; as in {flag} {kind.example()}{apart}"
                raise SpecError(f"{flag} {value}: {value!r} {fault}{example}")


def _given(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words up to the next one; other words before the first flag are left out."""
    flag, values = "", []
    for word in [*words, "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag:
            yield flag, values
        name, inline, value = word.partition("=")
        flag, values = name.replace("_", "-"), [value] if inline else []

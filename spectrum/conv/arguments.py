"""Checks of the operation's arguments: types and ranges, returned as plain Python values.

numpy's integers and booleans are accepted as Python's, and lists as tuples. True and False are not numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

Pair = tuple[int, int]
Sides = tuple[int, ...]  # one whole number per spatial axis: 1, 2 or 3 of them

LARGEST = 2**31 - 1  # limit of any whole number: beyond it torch's own counts overflow
MOST_CHANNELS = 2**24  # limit of a layer; more would take gigabytes to describe

Order = Literal["pointwise_first", "spatial_first"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]  # as nn.Conv2d calls them
Activation = Literal["none", "relu", "elu", "gelu", "silu"]  # activations with a name
ORDERS = get_args(Order)
PADDING_MODES = get_args(PaddingMode)


class InputError(RuntimeError, ValueError):
    """An input that the operation cannot take; a RuntimeError, as in torch, and a ValueError, as elsewhere here."""


def whole(name: str, value: Any, least: int = 1, *, most: int = LARGEST, more: str = "") -> int:
    """A whole number from `least` to `most`.

    Raises ValueError with the argument's name and the value given; `more` names other valid values.

    >>> whole("depth", 3)
    3
    >>> whole("depth", "3")
    Traceback (most recent call last):
    ValueError: depth='3': expected a whole number of at least 1, without quotes
    """
    number = as_whole(value)
    if number is None or number < least:
        hint = ", without quotes" if _is_quoted(value) else ""
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}{more}{hint}")
    if number > most:
        raise ValueError(f"{name}={value!r}: too large; expected a whole number from {least} to {most}")
    return number


def sides(name: str, value: Any, axes: int, least: int = 1, *, more: str = "") -> Sides:
    """A whole number for all spatial axes, or one for each of `axes`, in the order of the input's axes.

    Raises ValueError with the argument's name and the value given; `more` names other valid values.

    >>> sides("stride", 2, 3), sides("stride", [1, 2], 2)
    ((2, 2, 2), (1, 2))
    """
    listed = as_tuple(value)
    numbers = [as_whole(one) for one in ((value,) * axes if listed is None else listed)]
    whole_numbers = tuple(one for one in numbers if one is not None and one >= least)
    if not len(numbers) == len(whole_numbers) == axes:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}{_or_each[axes]}{more}")
    if max(whole_numbers) > LARGEST:
        raise ValueError(f"{name}={value!r}: too large; expected at most {LARGEST}")
    return whole_numbers


_or_each = {1: "", 2: ", or two of them", 3: ", or three of them"}


def flag(name: str, value: Any) -> bool:
    """A boolean; other values, such as 0 and 1, are refused."""
    if isinstance(value, bool):
        return value
    if _is_numpy_bool(value):
        return bool(value)
    raise ValueError(f"{name}={value!r}: expected True or False")


def choice(name: str, value: Any, known: Sequence[str]) -> str:
    """One of a few known words."""
    if not isinstance(value, str) or value not in known:
        last = f" or {known[-1]!r}" if len(known) == 2 else f", {known[-1]!r}"
        raise ValueError(f"{name}={value!r}: unknown; try {', '.join(map(repr, known[:-1]))}{last}")
    return value


def padding_pixels(padding: Any, kernel_size: Sides, dilation: Sides) -> Sides:
    """Pixels added on each side, one number per spatial axis; "same" for as many outputs as inputs at stride 1."""
    axes = len(kernel_size)
    if not (isinstance(padding, str) and padding == "same"):
        numbers = [as_whole(value) for value in as_tuple(padding) or (padding,) * axes]
        if len(numbers) != axes or any(number is None or number < 0 for number in numbers):
            raise ValueError(f'padding={padding!r}: expected "same", "tf_same", a number of pixels{_or_each[axes]}')
        return sides("padding", padding, axes, 0)
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
    if any(pixels % 2 for pixels in reach):
        raise ValueError(
            f'padding="same": an even kernel_size={kernel_size} has no middle; use an odd one or give pixels'
        )
    return tuple(pixels // 2 for pixels in reach)


def as_whole(value: Any) -> int | None:
    """The value as a Python int, if it is an integer of Python or numpy; else None."""
    if isinstance(value, bool) or _is_numpy_bool(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_tuple(value: Any) -> tuple[Any, ...] | None:
    """The values of a list, tuple, range or one-dimensional numpy array; None for anything else."""
    if isinstance(value, str | bytes):
        return None
    if isinstance(value, Sequence):
        return tuple(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1:
        return tuple(value.tolist())
    return None


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_quoted(value: Any) -> bool:
    return isinstance(value, str) and value.strip().isdigit()


def _is_numpy_bool(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")

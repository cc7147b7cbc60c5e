"""Convert the labels of a table to class numbers from 0, or report the column and value that prevent it.

LabelColumn(…)  →  .classes(): the classes of the training images, in order  →  .numbers(classes): of any split
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spectrum.data.layout import LayoutError, raise_unless_same, same_text, shown, twins

WITHHELD = -1  # values of withheld labels, such as ImageNet's test labels on the hub


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their numbers."""

    keys: tuple[Any, ...]  # values of the column
    names: tuple[str, ...]
    declared: tuple[str, ...] | None = None  # names of the numbers, if the table has them


@dataclass(frozen=True)
class LabelColumn:
    """The label column of one split.

    Args:
        split: name of the split.
        column: name of the column.
        values: labels, one per image.
        declared: names of the numbers 0, 1, …, if the table has them (a ClassLabel of `datasets`).
    """

    split: str
    column: str
    values: Sequence[Any]
    declared: tuple[str, ...] | None = None

    @property
    def where(self) -> str:
        return f"column {self.column!r} of the {self.split} split"

    @cached_property
    def counts(self) -> Counter[Any]:
        """The number of images per value. Raises LayoutError for values that cannot be labels, such as lists."""
        for number, value in enumerate(self.values):
            if not (value is None or isinstance(value, bool | int | float | str)):
                raise LayoutError(
                    f"{self.where} holds {type(value).__name__} values (image {number}: {value!r:.60}); a label is one "
                    "whole number or one name"
                )
        return Counter(map(_plain, self.values))

    def withheld(self, classes: Classes) -> str | None:
        """Why all labels count as withheld, if they do: there are none, or all have the same placeholder value."""
        if not self.values:
            return None
        if all(_is_missing(value) for value in self.counts):
            (least, *others) = map(repr, self.counts)
            return f"all its labels are {least}{f' or {others[0]}' if others else ''}"
        if len(self.counts) == 1 and len(classes.keys) > 1:
            return f"all its labels are {self._label_and_name(next(iter(self.counts)))}"
        return None

    def classes(self) -> Classes:
        """The classes, in the order of numbers or names. Raises LayoutError for an invalid label."""
        if not self.values:
            raise LayoutError(f"the {self.split} split has no images")
        self._raise_if_unfit()
        keys = sorted(self.counts, key=lambda value: (isinstance(value, str), value))
        names = tuple(self._name(key) for key in keys)
        if len(keys) < 2:
            raise LayoutError(f"{self.where} has one class only, {names[0]!r}; at least two are needed")
        self._raise_if_named_twice(keys, names)
        pair = twins(map(str, keys) if self.declared is None else (self.declared[key] for key in keys))
        if pair:
            raise LayoutError(
                f"{self.where} holds {pair[0]!a} and {pair[1]!a}, which differ only in Unicode normalisation or in "
                "blanks; write one for both"
            )
        return Classes(tuple(map(_composed, keys)), names, self.declared)

    def _raise_if_named_twice(self, keys: Sequence[Any], names: Sequence[str]) -> None:
        if self.declared is None:
            return  # then keys are the names
        for key, name in zip(keys, names, strict=True):
            first = keys[names.index(name)]
            if first != key and self.declared[first] == self.declared[key]:
                raise LayoutError(
                    f"{self.where} names two of its classes {shown(name)!r}, {first} and {key}; "
                    "give each a name of its own"
                )

    def numbers(self, classes: Classes) -> Tensor:
        """Class numbers, int64 (N,). Raises LayoutError for an invalid label, or one without a class."""
        self._raise_if_unfit()
        plain = [_composed(_plain(value)) for value in self.values]
        known: dict[Any, int] = {key: number for number, key in enumerate(classes.keys)}
        if self.declared != classes.declared:
            plain = self._by_name(plain, classes)
            known = {name: number for number, name in enumerate(classes.names)}
        unknown = sorted(set(plain) - known.keys(), key=str)
        if unknown:
            raise LayoutError(
                f"{self.where} holds {self._label_and_name(unknown[0])}, which no training image has; "
                "add training images of it, or remove it"
            )
        return torch.tensor([known[value] for value in plain], dtype=torch.int64)

    def raise_unless_all(self, classes: Classes, numbers: Tensor) -> None:
        """Raise LayoutError if a class has no image in this split."""
        there = [classes.names[number] for number in numbers.unique().tolist()]
        if len(set(classes.names)) == len(classes.names):
            raise_unless_same(classes.names, there, "the train split", f"the {self.split} split")

    def _raise_if_unfit(self) -> None:
        for value, count in self.counts.items():
            if _is_missing(value):
                first = next(number for number, one in enumerate(self.values) if _is_missing(one))
                times = f"{count:,} time{'' if count == 1 else 's'}"
                raise LayoutError(
                    f"{self.where} holds {value!r} {times} (first: image {first}), "
                    "which stands for a missing label; remove these images, or label them"
                )
            if isinstance(value, float):
                raise LayoutError(
                    f"{self.where} holds {value!r}, which is not a whole number; labels are classes: write whole "
                    "numbers or names"
                )
            if self.declared is not None and not (isinstance(value, int) and 0 <= value < len(self.declared)):
                raise LayoutError(
                    f"{self.where} holds {value!r}, but the table names {len(self.declared)} classes only"
                )

    def _by_name(self, plain: Sequence[Any], classes: Classes) -> list[Any]:
        """The class names of labels whose numbers need not be those of the training labels."""
        if self.declared is None or classes.declared is None:
            having, lacking = ("train", self.split) if self.declared is None else (self.split, "train")
            if isinstance(classes.keys[0], str) or (plain and isinstance(plain[0], str)):
                return list(plain) if self.declared is None else [same_text(self.declared[value]) for value in plain]
            raise LayoutError(
                f"column {self.column!r} names its classes in the {having} split and not in the {lacking} split, so "
                "that its numbers may mean others; write both splits alike"
            )
        for names in (self.declared, classes.names):
            if len(set(names)) < len(names):
                raise LayoutError(f"{self.where} names its classes in another order, and two have the same name")
        return [same_text(self.declared[value]) for value in plain]

    def _name(self, key: Any) -> str:
        return same_text(self.declared[key]) if self.declared is not None else same_text(str(key))

    def _label_and_name(self, value: Any) -> str:
        """A label with its class's name."""
        if self.declared is not None and isinstance(value, int) and 0 <= value < len(self.declared):
            return f"{value} ({shown(self.declared[value])!r})"
        return repr(value)


def _plain(value: Any) -> Any:
    """A value for comparison: True by name, whole floating-point numbers as integers, all missing values as one."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return math.nan if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def _composed(value: Any) -> Any:
    return same_text(value) if isinstance(value, str) else value


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == WITHHELD or (isinstance(value, float) and math.isnan(value))

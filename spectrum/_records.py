"""Strict frozen records, with the same error messages for a file, for Python and for the command line.

An unknown key is an error. This module does not load torch, so a wrong file is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spectrum._registry import nearest

_NUMBERS = ("int_type", "int_parsing", "float_type", "float_parsing")  # kinds of errors where a number is due
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]  # beyond, steps leave float32
Seed = Annotated[int, Field(ge=0, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]


class SpecError(ValueError):
    """An invalid study: names the field, the value given and what would work. One line per error."""


class Record(BaseModel):
    """A strict frozen record. Its constructor raises SpecError for invalid values, one line per error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**plain(values))
        except ValidationError as error:
            raise SpecError(explain(error, type(self), of="field")) from None

    # pydantic then fills nested records by itself, and knows where in them an error is
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """The value with numpy's numbers and arrays as Python's own, also inside dicts, lists and tuples."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    return value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else value


def as_listed(value: object) -> object:
    return (value,) if isinstance(value, str) else as_tuple(value)


def explain(
    error: ValidationError, record: type[BaseModel], *, of: str = "key", keys: Sequence[str] | None = None
) -> str:
    """The errors that pydantic found, one line per field: the value given and what would work.

    Args:
        error: raised by pydantic.
        record: class of the record that could not be made.
        of: word for a field: "key" in a file, "field" in Python.
        keys: known keys at the top of a file; by default the record's fields.
    """
    lines: dict[str, str] = {}
    faults = error.errors()
    places = [fault["loc"] for fault in faults]
    for fault in faults:
        if any(len(place) > len(fault["loc"]) and place[: len(fault["loc"])] == fault["loc"] for place in places):
            continue  # the error inside explains it
        where = ".".join(str(part) for part in fault["loc"])
        lines.setdefault(where, explain_one(fault, record, of, keys))
    return "\n".join(f"{where}: {what}" if where else what for where, what in lines.items())


def explain_one(
    fault: Mapping[str, Any], record: type[BaseModel], of: str = "key", keys: Sequence[str] | None = None
) -> str:
    if fault["type"] == "extra_forbidden":
        owner = record
        for part in fault["loc"][:-1]:
            owner = _record_below(owner, part) or owner
        known = keys if keys is not None and len(fault["loc"]) == 1 else keys_of(owner)
        return unknown_key(str(fault["loc"][-1]), known, of)
    if fault["type"] == "missing":
        return f"is missing; give this {of} a value"
    if fault["type"] == "literal_error":
        known = fault["ctx"]["expected"]
        choices = [choice.strip(" '") for choice in known.replace(" or ", ",").split(",")]
        near = nearest(str(fault["input"]), choices)
        return f"{fault['input']!r} is unknown; " + (f'did you mean "{near}"?' if near else f"try {known}")
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return _wrong_type(fault)


def _wrong_type(fault: Mapping[str, Any]) -> str:
    """What to write instead of a value of another type, or out of bounds."""
    if fault["type"] in _NUMBERS and isinstance(fault["input"], str):
        return _text_for_number(fault["input"], whole=fault["type"].startswith("int"))
    if fault["type"] in ("bool_type", "bool_parsing"):
        return f"expected true or false, without quotes (got {fault['input']!r})"
    kinds = {"tuple_type": "a list, in brackets", "dict_type": "a table", "model_type": "a table"}
    if fault["type"] in kinds:
        return f"expected {kinds[fault['type']]} (got {fault['input']!r})"
    message = fault["msg"]
    return f"{message[0].lower()}{message[1:]} (got {fault['input']!r})"


def _text_for_number(text: str, *, whole: bool) -> str:
    """What to write instead of a text where a number is due."""
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number)
    except ValueError:
        return f"expected {'a whole number' if whole else 'a number'} (got {text!r})"
    if text.strip().endswith("%"):
        return f"{text!r} is no number; write a share of 1 without quotes, {value / 100:g}"
    return f"{text!r} is text; write {number} without quotes"


def keys_of(record: type[BaseModel]) -> list[str]:
    """The keys of a record's fields in a file."""
    return [field.serialization_alias or name for name, field in record.model_fields.items()]


def _record_below(record: type[BaseModel], key: object) -> type[BaseModel] | None:
    """The class of the record, or of the list of records, that a field holds; None for another field."""
    named = dict(zip(keys_of(record), record.model_fields.values(), strict=True)).get(str(key))
    kinds = [] if named is None else [named.annotation]
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, type) and not get_args(kind) and issubclass(kind, BaseModel):
            return kind
        kinds += get_args(kind)
    return None


def unknown_key(key: str, known: Sequence[str], of: str = "key") -> str:
    near = nearest(key, known)
    if not near:
        return f"unknown {of}; known are {', '.join(known)}"
    return f"unknown {of}; did you mean " + (f'"{near}"?' if of == "key" else f"{near!r}?")

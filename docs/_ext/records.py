"""The fields of records, as rows of a table: name, type, default, meaning.

Meanings are the attribute docstrings of a pydantic record and the comments behind the fields of a dataclass.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spectrum.design.study_file import Study
from spectrum.models.families import OWN

CONFIGURATION = Study.model_fields["base"].annotation  # the record of one training run

OPEN = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
FIELD = re.compile(r"^    (\w+): ([^=#]+?)(?: = (.+?))?(?:  # (.+))?$")
GROUP = re.compile(r"^    # (\w+)$")


class Row(NamedTuple):
    """One field."""

    name: str
    kind: str
    default: str
    meaning: str


def rows_of(record: type, names: Sequence[str] | None = None) -> list[Row]:
    """The fields of a record: all of them, or these."""
    if issubclass(record, BaseModel):
        rows = [
            Row(name, kind_of(field.annotation, field.metadata), left_open(record, name), field.description or "")
            for name, field in record.model_fields.items()
        ]
    else:
        found = (FIELD.match(line) for line in inspect.getsource(record).splitlines())
        fields = {field.name for field in dataclasses.fields(record)}
        rows = [
            Row(match[1], match[2], match[3] or "", match[4] or "") for match in found if match and match[1] in fields
        ]
    return [row for row in rows if names is None or row.name in names]


def kind_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type and its bounds in words."""
    metadata = [inner for one in metadata for inner in (one.metadata if isinstance(one, FieldInfo) else [one])]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(kind_of(argument, metadata) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return ", ".join(f'"{argument}"' for argument in arguments)
    if origin is tuple:
        return f"list of {kind_of(arguments[0])}" if arguments[0] is not Any else "list"
    if annotation is Any:
        return "value"
    if origin is dict:
        inner = kind_of(arguments[1])
        return f"table of {inner}" if inner.startswith("list") else "table"
    if issubclass(annotation, BaseModel):
        return "table"
    bounds = [
        f"{sign} {_plain(getattr(one, name))}" for one in metadata for name, sign in OPEN.items() if hasattr(one, name)
    ]
    return f"{annotation.__name__} {', '.join(bounds)}".strip()


def left_open(record: type[BaseModel], name: str) -> str:
    """What holds where a file leaves a field out: the default, or the architecture's own value."""
    return (
        "the architecture's own" if record is CONFIGURATION and name in OWN else default_of(record.model_fields[name])
    )


def default_of(field: Any) -> str:
    """A field's default as a study's file has it."""
    if field.default_factory is not None:
        return "empty"
    if field.default is PydanticUndefined:
        return "required"
    return _plain(field.default)


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if value else "empty"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]" if value else "empty"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"{value:g}" if isinstance(value, float) else str(value)


def groups_of(record: type) -> Iterator[tuple[str, list[str]]]:
    """Names of fields under each comment, such as `# data`, that stands alone in the class."""
    name, names = "", list[str]()
    records = [one for one in reversed(record.__mro__) if one not in (object, BaseModel)]
    for line in (line for one in records for line in inspect.getsource(one).splitlines()):
        group, field = GROUP.match(line), re.match(r"^    (\w+): ", line)
        if group:
            if names:
                yield name, names
            name, names = group[1], []
        elif field:
            names.append(field[1])
    yield name, names


def found(path: str) -> Any:
    """What a dotted path names."""
    package, *names = path.split(".")
    thing: Any = import_module(package)
    for name in names:
        package = f"{package}.{name}"
        thing = getattr(thing, name) if hasattr(thing, name) else import_module(package)
    return thing


def is_record(thing: object) -> bool:
    return isinstance(thing, type) and (issubclass(thing, BaseModel) or dataclasses.is_dataclass(thing))

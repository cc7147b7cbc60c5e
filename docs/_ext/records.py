"""Tables of a record's fields, made from the record, and the public functions of a module.

Every dataclass and pydantic record that autodoc shows gets a table: name, type, default, meaning. Meanings are the
attribute docstrings of a pydantic record and the comments behind the fields of a dataclass.

    .. fields:: spectrum.design.run.RunConfig     the table alone; in groups, where comments in the class make some
    .. functions:: spectrum.stats              autodoc of what is in the module's __all__, else of what it defines
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from docutils import nodes
from docutils.statemachine import StringList
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from spectrum.design.run import RunConfig
from spectrum.models.families import OWN

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
    """What holds where a file does not say a field: of a point's, in part, what its family has."""
    return "the family's own" if record is RunConfig and name in OWN else default_of(record.model_fields[name])


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


def fields_table(rows: Sequence[Row]) -> list[str]:
    return table(("field", "type", "default", "meaning"), rows, 3)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], code: int) -> list[str]:
    """A table in reStructuredText, the first columns of which, so many, are code."""
    coded = [[f"``{cell}``" if cell and place < code else cell for place, cell in enumerate(row)] for row in rows]
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", "   :class: fields", ""]
    for row in [titles, *coded]:
        lines += [f"   {'* -' if place == 0 else '  -'} {cell}".rstrip() for place, cell in enumerate(row)]
    return [*lines, ""]


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


class Fields(SphinxDirective):
    """The table of a record's fields; `:except:` names those that are left out."""

    required_arguments = 1
    option_spec = {"except": str.split}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        record = found(self.arguments[0])
        left_out = self.options.get("except", [])
        lines: list[str] = []
        for group, names in groups_of(record):
            lines += [f".. rubric:: {group.capitalize()}", ""] if group else []
            rows = [row for row in rows_of(record, names) if row.name not in left_out]
            lines += fields_table(rows)
        return parsed(self, lines)


class Functions(SphinxDirective):
    """autodoc of all functions and classes that are public in a module, under the name by which it was given."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        module = found(name)
        own = [name_ for name_, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        names = getattr(module, "__all__", [name_ for name_ in own if not name_.startswith("_")])
        public = [(name_, getattr(module, name_)) for name_ in names]
        lines = [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {name}.{name_}" for name_, thing in public if callable(thing)]
        for name_, thing in public:
            if inspect.isclass(thing):
                lines += ["", f".. autoclass:: {name}.{name_}", "   :members:"]
            elif callable(thing):
                lines += ["", f".. autofunction:: {name}.{name_}"]
        return parsed(self, lines)


def found(path: str) -> Any:
    """What a dotted path names."""
    package, *names = path.split(".")
    thing: Any = import_module(package)
    for name in names:
        package = f"{package}.{name}"
        thing = getattr(thing, name) if hasattr(thing, name) else import_module(package)
    return thing


def parsed(directive: SphinxDirective, lines: Sequence[str]) -> list[nodes.Node]:
    """Nodes of lines in reStructuredText, from a directive in an `eval-rst` block."""
    node = nodes.Element()
    source = directive.get_source_info()[0]
    directive.state.nested_parse(StringList(list(lines), source), 0, node)
    return node.children


def is_record(thing: object) -> bool:
    return isinstance(thing, type) and (issubclass(thing, BaseModel) or dataclasses.is_dataclass(thing))


def mark_code(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A block that is indented after an empty line is code: say so in reStructuredText's way.

    Of a property napoleon would take what stands before a colon as its type: its lines are put back in `add_table`.
    """
    marked: list[str] = []
    for line in lines:
        said = [earlier for earlier in marked if earlier]
        starts = line.startswith("    ") and marked and not marked[-1] and said and not said[-1].startswith(" ")
        marked += ["::", "", line] if starts else [line]
    lines[:] = marked
    if what == "property":
        app.env.temp_data["lines_of_property"] = marked


def add_table(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Fields of a record below its docstring; no docstrings of modules, which speak to readers of the code."""
    if what == "module":
        lines.clear()
    elif what == "property":
        lines[:] = app.env.temp_data.pop("lines_of_property")
    elif what == "class" and is_record(thing):
        lines += ["", *fields_table(rows_of(thing))]


def without_fields(app: Sphinx, what: str, name: str, thing: Any, *said: Any) -> tuple[str, None] | None:
    """A record's signature is its table."""
    return ("", None) if what == "class" and is_record(thing) else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("fields", Fields)
    app.add_directive("functions", Functions)
    app.connect("autodoc-process-docstring", mark_code, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", add_table, priority=900)  # after napoleon
    app.connect("autodoc-process-signature", without_fields)
    return {"parallel_read_safe": True}

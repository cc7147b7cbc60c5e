"""The reference, written as Markdown from signatures, docstrings and the command's own flags.

    python docs/_ext/reference.py      write docs/reference/*.md and the other pages below anew

The pages are committed, so that they also read on a code host. Prose is written by hand; what stands between a comment
that names its source and `<!-- end -->` is generated:

    <!-- api: spectrum.load_study, spectrum.Study, spectrum.Study.runs -->    one entry each; members follow a class
    <!-- names: spectrum -->              a table of all public names, with links to their entries
    <!-- fields: spectrum.Study -->       the table of a record's fields; `without NAME NAME` leaves some out
    <!-- commands -->                     a table of flags for each command
    <!-- costs -->                        what each network costs
    <!-- studies: map -->                 a table of studies (docs/results.md): question, answer, picture
    <!-- numbers: matched -->             numbers of a page, from `drawings.py`

As a Sphinx extension, this module lists the entries in the site's index of Python names, and marks the tables whose
rows become cards on a narrow screen.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import textwrap
import tomllib
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

from records import found, groups_of, is_record, rows_of
from repository import ROOT, studies_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGES = [
    *sorted((ROOT / "docs/reference").glob("*.md")),
    *(ROOT / f"docs/{name}.md" for name in ("results", "fairness", "explanation/spectrum")),
]
BLOCK = re.compile(r"(<!-- (api|names|fields|commands|costs|studies|numbers):?(.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PREFIX = re.compile(r"\b(?:pd|np|nn|pathlib|numpy|collections\.abc|typing|(?:torch|spectrum)(?:\.\w+)*)\.(?=[A-Z]\w)")
PART = re.compile(r"^#+ (.+)$|^<!-- (api|names|fields|commands|costs|studies|numbers):?(.*?) -->$", re.MULTILINE)
MARK = re.compile(r'<a id="(spectrum\.[\w.]+)"></a>')
NAMED = re.compile(r"`~?([\w.]+)`")
CARDS = ("parameter", "field", "flag", "study")  # how the head of such a table begins
WORDS = ("empty", "its defaults", "not set", "required", "the architecture's own")  # defaults that are no value
SHORT = 6  # words of an answer that need the sentence after them
FEWEST = 3  # entries of a block that still need no table before them


class Entry(NamedTuple):
    """Something that has an entry in the reference."""

    path: str  # by which it is documented
    page: str  # name of its file in docs/reference
    anchor: str  # that GitHub and MyST give to its heading

    @property
    def title(self) -> str:
        return title_of(self.path)

    @property
    def is_public(self) -> bool:
        return self.path.count(".") == 1 and not is_member(self.path)


def title_of(path: str) -> str:
    """What a reader types: `stats.trend`, `measure_cost`; of a member `Study.runs`."""
    words = path.split(".")
    return ".".join(words[-2:]) if words[1] in ("stats", "plots") or is_member(path) else words[-1]


def anchors() -> Callable[[str], str]:
    """Gives each heading of one page its anchor; a repeated one gets a number, as on GitHub."""
    seen: Counter[str] = Counter()

    def anchor(heading: str) -> str:
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen[slug] += 1
        return slug if seen[slug] == 1 else f"{slug}-{seen[slug] - 1}"

    return anchor


def is_member(path: str) -> bool:
    """Whether a path names something inside a class."""
    return inspect.isclass(found(path.rpartition(".")[0]))


def listed(argument: str) -> list[str]:
    """The paths of an api block."""
    return argument.replace(",", " ").split()


def entries() -> dict[str, Entry]:
    """Every documented thing by its path, from the comments of all pages."""
    known = {}
    for page in PAGES:
        anchor = anchors()
        for heading, kind, argument in PART.findall(BLOCK.sub(r"\1\4", page.read_text(encoding="utf-8"))):
            if heading:
                anchor(heading)
            elif kind == "api":
                known |= {path: Entry(path, page.name, anchor(title_of(path))) for path in listed(argument)}
    return known


class Writer:
    """Writes the generated parts of one page, with links to the entries of all."""

    def __init__(self, page: str, known: dict[str, Entry]) -> None:
        self.page = page
        self.known = known
        self.by_title = {
            entry.title: entry
            for entry in known.values()
            if "." in entry.title or entry.is_public or re.search("[A-Z_]", entry.title)
        }
        for entry in known.values():  # `stats.trend` is also called `trend` on its own page
            if entry.page == page and not is_member(entry.path):
                self.by_title.setdefault(entry.path.rpartition(".")[2], entry)

    def whole(self, text: str) -> str:
        """The page with its generated parts written anew."""
        writers = {
            "api": self.api,
            "names": self.names,
            "fields": fields,
            "commands": commands,
            "costs": costs,
            "studies": studies,
            "numbers": numbers,
        }

        def anew(block: re.Match[str]) -> str:
            made = "\n".join(writers[block[2]](block[3].strip())).strip("\n")
            return f"{block[1]}\n{made}\n\n{block[4]}"

        return BLOCK.sub(anew, text)

    def link(self, entry: Entry) -> str:
        return f"[`{entry.title}`]({'' if entry.page == self.page else entry.page}#{entry.anchor})"

    def linked(self, text: str, own: str = "") -> str:
        """Text in which names in backticks are links, where they have an entry."""

        own_words = {parameter.name for parameter in parameters(found(own))} if own else set()

        def shown(match: re.Match[str]) -> str:
            entry = self.by_title.get(match[1].removeprefix("spectrum."))
            return self.link(entry) if entry and entry.path != own and match[1] not in own_words else f"`{match[1]}`"

        return NAMED.sub(shown, text)

    def api(self, argument: str) -> Iterator[str]:
        paths = listed(argument)
        tops = [path for path in paths if not is_member(path)]
        if len(tops) > FEWEST:
            yield from self._contents(self.known[path] for path in tops)
        for path in paths:
            yield from self._entry(self.known[path])

    def names(self, argument: str) -> Iterator[str]:
        module = found(argument)
        public = [name for name in module.__all__ if f"{argument}.{name}" in self.known]
        yield from self._contents(self.known[f"{argument}.{name}"] for name in public)

    def _contents(self, shown: Any) -> Iterator[str]:
        rows = [(self.link(entry), self.linked(summary(found(entry.path)))) for entry in shown]
        yield from table(("name", "meaning"), rows)

    def _entry(self, entry: Entry) -> Iterator[str]:
        thing, member = found(entry.path), is_member(entry.path)
        yield from (f'<a id="{entry.path}"></a>', "", f"{'####' if member else '###'} `{entry.title}`", "")
        if not callable(thing) and not isinstance(thing, property):
            yield from self._constant(entry.path, thing)
            return
        text = inspect.getdoc(thing) or ""
        said = sections(text)
        yield from (self.linked(said.opening, entry.path), "")
        yield from self._signature(entry, thing)
        if said.arguments:
            rows = [
                (f"`{name}`", *declared(thing, name), self.linked(capital(meaning), entry.path))
                for name, meaning in said.arguments
            ]
            yield from table(("parameter", "type", "default", "meaning"), rows)
        if is_record(thing):
            yield from record(thing, [self.linked(row.meaning, entry.path) for row in rows_of(thing)])
        yield from paragraphs(said.rest, lambda words: self.linked(words, entry.path))

    def _signature(self, entry: Entry, thing: Any) -> Iterator[str]:
        home, _, name = entry.path.rpartition(".")
        if isinstance(thing, property):
            kind = shown_type(inspect.signature(thing.fget).return_annotation)
            yield from ("```python", f"{entry.title}: {kind}", "```", "")
            return
        first = () if is_member(entry.path) or home in ("spectrum.stats", "spectrum.plots") else (
            f"from {home} import {name}", ""
        )  # fmt: skip
        call = [] if is_record(thing) else signature(thing, entry.title)
        if first or call:
            yield from ("```python", *(first if call else first[:1]), *call, "```", "")
        if not is_member(entry.path) and (file := source_of(thing)):
            yield from (f"Source: [`{file}`](../../{file})", "")

    def _constant(self, path: str, value: Any) -> Iterator[str]:
        shown = ", ".join(f"`{one}`" for one in value) if isinstance(value, tuple) else f"`{value!r}`"
        yield from (f"{comment_of(path)} Value: {shown}.", "")


class Said(NamedTuple):
    """A docstring in its parts."""

    opening: str
    arguments: list[tuple[str, str]]
    rest: str


def sections(text: str) -> Said:
    """A docstring in Google's style: what opens it, its `Args:`, and all else."""
    before, mark, after = text.partition("\nArgs:\n")
    opening, _, between = before.partition("\n\n")
    arguments: list[tuple[str, str]] = []
    lines = after.splitlines() if mark else []
    while lines and (lines[0].startswith("    ") or not lines[0]):
        line = lines.pop(0)
        if match := re.match(r"    (\w+): (.*)", line):
            arguments.append((match[1], match[2]))
        elif line:
            arguments[-1] = (arguments[-1][0], f"{arguments[-1][1]} {line.strip()}")
        elif lines and not lines[0].startswith("    "):
            break
    rest = [between.strip("\n"), "\n".join(lines).strip("\n")]
    return Said(" ".join(opening.split()), arguments, "\n\n".join(part for part in rest if part))


def paragraphs(text: str, linked: Any) -> Iterator[str]:
    """The rest of a docstring: prose, lists, code that is indented, and examples at a prompt."""
    for block in re.split(r"\n\s*\n", text):
        if not block.strip():
            continue
        if block.lstrip().startswith(">>>"):
            yield from ("```pycon", textwrap.dedent(block).replace("    <BLANKLINE>", ""), "```", "")
        elif block.startswith("    "):
            yield from ("```text" if "segments     " in block else "```python", textwrap.dedent(block), "```", "")
        else:
            yield from (linked(block), "")


def summary(thing: Any) -> str:
    """The first sentence of what a docstring opens with."""
    if not callable(thing):
        return ""
    opening = sections(inspect.getdoc(thing) or "").opening
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", opening)[0].rstrip(":")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def shown_type(annotation: Any) -> str:
    """A type as a reader writes it, without the modules that it comes from."""
    if annotation is inspect.Parameter.empty:
        return ""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " | ".join(map(shown_type, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(plain, arguments))}]"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return PREFIX.sub("", text).replace("NoneType", "None")


def parameters(thing: Any) -> Sequence[inspect.Parameter]:
    try:
        return list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError):
        return []


def declared(thing: Any, name: str) -> tuple[str, str]:
    """Type and default of a parameter, as cells."""
    for parameter in parameters(thing):
        if parameter.name == name:
            kind = shown_type(parameter.annotation)
            empty = parameter.default is parameter.empty
            return f"`{kind}`" if kind else "", "required" if empty else f"`{plain(parameter.default)}`"
    return "", ""


def plain(value: Any) -> str:
    """A value as code has it, without the address at which it happens to lie."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value.__name__ if inspect.isroutine(value) or inspect.isclass(value) else repr(value)


def signature(thing: Any, title: str) -> list[str]:
    """The call, with what it returns; the types of its parameters are in the table."""
    words, starred = [], False
    for parameter in parameters(thing):
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={plain(parameter.default)}"
        words.append(f"{stars}{parameter.name}{default}")
    try:
        kind = "" if inspect.isclass(thing) else shown_type(inspect.signature(thing).return_annotation)
    except (TypeError, ValueError):
        return []
    back = f" -> {kind}" if kind else ""
    line = f"{title}({', '.join(words)}){back}"
    if len(line) <= 88:
        return [line]
    return [f"{title}(", *(f"    {word}," for word in words), f"){back}"]


def source_of(thing: Any) -> str:
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
    except TypeError:
        return ""
    path = Path(file or "")
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT / "spectrum") else ""


def comment_of(path: str) -> str:
    """What constants of `spectrum.stats` mean: they have no docstring of their own."""
    meanings = {
        "ALPHA": "Error rate of a family of tests, unless another is given.",
        "PER_CHANNEL": "Value of the column `segments` at the per-channel end.",
        "SPLIT": "Columns that say how the channels are split.",
        "SETTINGS": "All other columns that describe a configuration; the seed is not among them.",
    }
    return meanings[path.rpartition(".")[2]]


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown; columns that are empty throughout are left out."""
    kept = [place for place in range(len(titles)) if any(row[place] for row in rows)]
    for row in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(cell(row[place]) for place in kept)} |"
    yield ""


def record(thing: type, meanings: Sequence[str] | None = None, without: Sequence[str] = ()) -> Iterator[str]:
    """The fields of a record, in the groups that comments in the class make."""
    said = dict(
        zip((row.name for row in rows_of(thing)), meanings or [row.meaning for row in rows_of(thing)], strict=True)
    )
    for group, names in groups_of(thing):
        rows = [row for row in rows_of(thing, names) if row.name not in without]
        if group and rows:
            yield from (f"**{group.capitalize()}**", "")
        if rows:
            cells = [(f"`{r.name}`", f"`{r.kind}`", default_cell(r.default), said[r.name]) for r in rows]
            yield from table(("field", "type", "default", "meaning"), cells)


def default_cell(default: str) -> str:
    return default if not default or default in WORDS else f"`{default}`"


def fields(argument: str) -> Iterator[str]:
    path, _, without = argument.partition(" without ")
    yield from record(found(path), without=without.split())


def parser_of(command: type) -> argparse.ArgumentParser:
    """The flags of a command, as tyro reads them from its record."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(command)


class Flag(NamedTuple):
    """One flag or argument of a command."""

    name: str
    values: str
    meaning: str
    default: str
    part: str  # of the command's record: "" its own, "settings" the engine's, another a configuration's


def flags_of(command: type) -> list[Flag]:
    flags = []
    for action in parser_of(command)._actions:
        if "--help" in action.option_strings:
            continue
        positional = not action.option_strings
        words = " ".join(str(action.metavar or "").split())
        if positional and not words.startswith("{"):
            words = action.dest.upper()
        text = " ".join(str(action.help or "").split())
        meaning, _, default = text.rpartition(" (default: ")
        if not meaning:
            meaning, default = text.removesuffix(" (required)"), "required" if "(required)" in text else "none"
        values = words.replace("{None}|", "")
        switch = len(action.option_strings) == 2
        name = values if positional else ", ".join(f"`{one}`" for one in action.option_strings)
        flags.append(
            Flag(
                f"`{values}`" if positional else name,
                "" if positional or switch or not values else f"`{values}`",
                meaning,
                {"None": "not set", "False": "off", "True": "on"}.get(default.rstrip(")"), default.rstrip(")")),
                action.dest.rpartition(".")[0],
            )
        )
    return flags


def commands(argument: str) -> Iterator[str]:
    from spectrum.cli import COMMANDS

    titles = ("flag", "values", "meaning", "default")
    shared: dict[str, Flag] = {}
    for command in COMMANDS:
        flags = flags_of(command)
        own = [flag for flag in flags if flag.part in ("", "settings")]
        common = [flag for flag in flags if flag.part not in ("", "settings")]
        words = " ".join(flag.name.strip("`") for flag in own if "--" not in flag.name)
        yield from (f"## `spectrum {command.__name__.lower()}`", "", " ".join((command.__doc__ or "").split()), "")
        yield from ("```console", f"$ spectrum {command.__name__.lower()} {words} [FLAGS]", "```", "")
        yield from table(titles, [flag[:4] for flag in own])
        if common:
            whole = len(common) >= len(shared)
            shared |= {flag.name: flag for flag in common if whole or not shared}
            named = ", ".join(flag.name.split(", ")[0] for flag in common)
            which = (
                "all [flags of a configuration](#flags-of-a-configuration)"
                if whole
                else f"these flags of a configuration: {named}"
            )
            yield from (f"It also takes {which}.", "")
    yield from ("## Flags of a configuration", "")
    yield from (
        "Each flag overrides one key of `[base]` in the study file, whose defaults are in [`[base]`](study_file.md).",
        "",
    )
    yield from table(titles[:3], [flag[:3] for flag in shared.values()])


def costs(argument: str) -> Iterator[str]:
    golden = json.loads((ROOT / "tests/golden/models.json").read_text(encoding="utf-8"))
    rows = [
        (f"`{name}`", segments.replace("_", "-"), *(f"{cost[count]:,}" for count in ("params", "buffers", "macs")))
        for name, along in golden.items()
        for segments, cost in along.items()
    ]
    yield from table(("architecture", "segments", "parameters", "batch-norm statistics", "MACs"), rows)


def studies(argument: str) -> Iterator[str]:
    rows = []
    for name in studies_of(argument):
        page = (ROOT / "results" / name / "README.md").read_text(encoding="utf-8")
        rows.append((f"[{name}](../results/{name}/README.md)", question_of(name, page), answer_of(page)))
    yield from table(("study", "question", "answer"), rows)


def numbers(argument: str) -> Iterator[str]:
    import drawings

    yield from getattr(drawings, argument)()


def question_of(name: str, page: str) -> str:
    """The question of a study's file, else of its page."""
    file = ROOT / "experiments" / f"{name}.toml"
    if file.exists():
        return str(tomllib.loads(file.read_text(encoding="utf-8"))["question"])
    said = re.search(r"^\*\*Question\.\*\* (.+)$", page, re.MULTILINE)
    return said[1] if said else ""


def answer_of(page: str) -> str:
    """How the answer of a page begins: its first sentence, and the next where that is a word or two."""
    said = re.search(r"^\*\*Answer\.\*\*\s+(.+?)(?=\n\n|\Z)", page, re.MULTILINE | re.DOTALL)
    plain_words = [block for block in page.split("\n\n")[1:] if not re.match(r"\*\*Question|[#|!<>`-]", block)]
    text = said[1] if said else next(iter(plain_words), "")
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(text.split()))  # links are relative to that page
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])", text)
    return " ".join(sentences[: 1 if len(sentences[0].split()) > SHORT else 2])


def pages() -> Iterator[tuple[Path, str]]:
    """Every page of the reference as it should be."""
    known = entries()
    for page in PAGES:
        yield page, Writer(page.name, known).whole(page.read_text(encoding="utf-8"))


def note_names(app: Sphinx, doctree: Any) -> None:
    """List the entries of a page in the site's index of Python names, which its search shows first."""
    from docutils import nodes

    domain: Any = app.env.get_domain("py")
    for node in doctree.findall(nodes.raw):
        for path in MARK.findall(node.astext()):
            thing = found(path)
            member = is_member(path)
            kind = "class" if inspect.isclass(thing) else "data" if not callable(thing) else "function"
            kind = "property" if isinstance(thing, property) else "method" if member else kind
            domain.note_object(path, kind, path, location=node)


def mark_tables(app: Sphinx, doctree: Any) -> None:
    """Give tables of parameters, fields, flags and studies a class of their own, for the style sheet."""
    from docutils import nodes

    for node in doctree.findall(nodes.table):
        if next(node.findall(nodes.entry)).astext() in CARDS:
            node["classes"].append("cards")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", note_names)
    app.connect("doctree-read", mark_tables)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    from spectrum._files import write_whole

    for path, text in list(pages()):  # all or none
        write_whole(path, text)

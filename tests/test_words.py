"""Prose uses the standard terms of the field: README, documentation, pages, notebooks, help, code and study files.

Each entry of WORDS is a phrase that only this project used, with the plain words for it. Code in Markdown and names of
code are left out. Phrases are narrow, so that ordinary uses of a word stay possible: "half of the images" passes, and
"the spatial half" fails. In the code of the package, docstrings, messages and comments are read; in scripts and tests,
docstrings and comments, since their strings hold phrases of early plans; in study files, comments.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spectrum.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
COMMAND_NAMES = tuple(command.__name__.lower() for command in COMMANDS)
# Names of code that contain a phrase
NAMES = {"lowering", "lowerings"}
SCRIPTS = ("results", "docs/_ext", "notebooks", "tests")  # folders of code in which docstrings and comments are read


class Word(NamedTuple):
    """A phrase to avoid: a regular expression in which a blank stands for any white space, line ends too."""

    phrase: str
    instead: str
    example: str
    where: tuple[str, ...] = ("",)  # prefixes of the files in which it is forbidden; "": everywhere

    def found(self, text: str) -> Iterator[re.Match[str]]:
        return re.finditer(self.phrase.replace(" ", r"\s+"), text, re.IGNORECASE)


WORDS = (
    Word(
        r"\b(?:segments?|one|filters?|channels?|blocks?|operations?|bias|towers?"
        r"|convolutions?) an? (?:channel|segment|stage|block)\b",
        "“per channel”, “per segment”, “per stage”",
        "one segment a channel",
    ),
    Word(
        r"\bwidth a segment\b|\b\d+ a segment\b",
        "“per segment”",
        "4 a segment",
    ),
    Word(
        r"\b(?:seeds?|rows?|seconds|minutes|hours|overhead) an? (?:point|run|network"
        r"|configuration)\b",
        "“per run”, “per configuration”",
        "one row a point",
    ),
    Word(
        r"\b(?:in|between|of|by|swap) the (?:two )?halves\b|\b(?:its|both|two|dense"
        r"|the) halves (?:of|are|is|run|with)\b|\bbetween (?:its|both) halves\b",
        "“the 1×1 and the 3×3”",
        "an activation between the halves",
    ),
    Word(
        r"\b(?:spatial|pointwise|linear) (?:half|halves)\b|\bwhich half (?:of|runs|comes)\b"
        r"|\bsecond half with\b",
        "“the 3×3”, “the spatial convolution”",
        "the spatial half",
    ),
    Word(
        r"\bbare (?:operations?|spatial|convolutions?|regular|3×3|network|grouped)\b",
        "“plain 3×3”, “without a 1×1”",
        "a bare convolution",
    ),
    Word(
        r"\bnetwork famil(?:y|ies)\b|\bfamil(?:y|ies) of networks?\b|\bthe family's own\b"
        r"|\bfamil(?:y|ies) of (?:one's|your|their) own\b|\bfamily name\b"
        r"|\bevery (?:network )?family of\b|\b(?:a|the|each|another) family (?:uses|takes|that|has"
        r"|gives|is built|does not|in which|made of|of blocks)\b|\b(?:the|other|built-in|three|four"
        r"|all) families\b",
        "“architecture”",
        "the family's own",
    ),
    Word(
        r"\bplaces? (?:on|of|along) the (?:spectrum|curve|dial)\b|\b(?:no|a|any|every|some"
        r"|each) places? (?:in )?between\b|\bplaces? in between\b",
        "“number of segments”, “split”",
        "any place of the spectrum",
    ),
    Word(
        r"\b(?:hangs?|hung|hanging) (?:neither |only |also |alone )?(?:on|from)\b",
        "“depends on”",
        "it hangs on the seed",
    ),
    Word(
        r"\bfor want of\b",
        "“for lack of”",
        "for want of memory",
    ),
    Word(
        r"\ba doubling\b(?! of)",
        "“per doubling”",
        "0.1 pp a doubling",
    ),
    Word(
        r"\bfrom rooms\b|\brooms? (?:above|below) (?:its|their|it)\b|\bits own room\b"
        r"|\broom of the house\b",
        "“package”",
        "imports from rooms above its own",
    ),
    Word(
        r"(?<!-)\blowerings?\b",
        "“backend”",
        "another lowering",
    ),
    Word(
        r"\byardsticks?\b",
        "“roofline”, “reference”",
        "the yardstick",
    ),
    Word(
        r"\bundecided\b",
        "“inconclusive”",
        "an undecided comparison",
    ),
    Word(
        r"\d\s%(?!-)",
        "“95%”, without a space",
        "95 % of them",
    ),
    Word(
        r"\bper cent\b",
        "“percent” or “%”",
        "five per cent",
    ),
    Word(
        r"\b95\s?% t-intervals?\b",
        "“95% CI”",
        "its 95% t-interval",
    ),
    Word(
        r"\bmay be the best\b",
        "“possible optima”",
        "64 may be the best",
    ),
    Word(
        r"\bnothing is held\b|\bheld equal\b|\bare held at\b|\bis held fixed in\b",
        "“width-matched”, “matched”",
        "where nothing is held",
    ),
    Word(
        r"\bat (?:equal|the same) (?:params|parameters|MACs|step times?|widths?)\b",
        "“parameter-matched”, “MAC-matched”, “time-matched”, “width-matched”",
        "at equal parameters",
    ),
    Word(
        r"\b(?:if|where|when|unless) (?:it|that|they|this)? ?(?:is|are)? ?not said\b"
        r"|\bnot said otherwise\b|\bif not said\b",
        "“by default”",
        "if it is not said",
    ),
    Word(
        r"\bPareto fronts?\b|\bthe front of (?:accuracy|costs?)\b",
        "“Pareto frontier”",
        "on the Pareto front",
    ),
    Word(
        r"\bwritten down before\b",
        "“prespecified”",
        "it was written down before",
    ),
    Word(
        r"\b(?:and|or) the like\b",
        "“and similar …”",
        "pools and the like",
    ),
    Word(
        r"\b(?:segments?|channel|1×1|3×3|ReLU|first|second|A) less (?:one|1|per|the|a|its"
        r"|B)\b(?! than)",
        "“A minus B”",
        "A less B",
    ),
    Word(
        r"\b(?:segments?|per[- ]channel|a channel) against (?:\d+|one|per)\b",
        "“A vs B”, “A beats B by”",
        "1 segment against one per channel",
    ),
    Word(
        r"\b(?:was|were|is|are|be|been) searched\b|\brows of (?:the|a) search\b|\b(?:of|by|in"
        r"|after) (?:the|a|its|one|this) search\b|\bthe search (?:is|was|has|had|of|took|runs|did"
        r"|found)\b|\bsearche[sd] (?:the )?(?:learning rate|lr)\b",
        "“learning-rate sweep”, “tuned”",
        "the rows of the search",
    ),
    Word(
        r"\b(?:base|trivial|finished|planned|every|each|this|that|whose|other) points? (?:is|are|was"
        r"|were|has|have|of|that|trains?|can|fails?|in a study)\b|\bfields? of a point\b"
        r"|\ba point's\b|\bthe point's\b|\bpoints of (?:a|the) (?:study|plan)\b",
        "“run” or “configuration”",
        "each point of the study",
    ),
    Word(
        r"\b(?:something|somebody|nothing|who|that|whoever) looks? on\b",
        "“observes”, “is active”",
        "while something looks on",
    ),
    Word(
        r"\bone's own\b",
        "“your own”",
        "a backend of one's own",
    ),
    Word(
        r"\bthousand million\b",
        "“billion”",
        "8 thousand million MACs",
    ),
    Word(
        r"\bas (?:Keras|torch|TensorFlow|numpy|pandas|scikit-learn)(?: itself)? (?:has|have"
        r"|does) (?:it|them)\b",
        "“as in torch”",
        "as torch has it",
    ),
    Word(
        r"\bways? (?:that the library has|of a network)\b|\bexact ways? to compute\b"
        r"|\ba row .{0,40}\band a way\b|\b(?:each|every|other) way's\b",
        "“implementation”",
        "exact ways to compute a convolution",
    ),
    Word(
        r"\bwhere (?:it|they|this|the run|a run|runs) stands?\b",
        "“progress”, “a checkpoint”",
        "it saves where it stands",
    ),
    Word(
        r"\bpassed over\b",
        "“skipped”",
        "the file is passed over",
    ),
    Word(
        r"\bcut short\b",
        "“interrupted”",
        "a run that was cut short",
    ),
    Word(
        r"\b(?:goes|go|going) on from\b|\bwent on (?:from|in)\b",
        "“resumes from”",
        "it goes on from a checkpoint",
    ),
    Word(
        r"\b(?:made|done) on the spot\b",
        "“generated”",
        "images made on the spot",
    ),
    Word(
        r"\bha(?:s|ve) no use for\b",
        "“does not use”",
        "the schedule has no use for it",
    ),
    Word(
        r"\btrivial points?\b|\bpoints an? (?:second|minute|hour)\b",
        "“runs”, “runs per hour”",
        "818 points an hour",
    ),
    Word(
        r"\b(?:images|entry|entries|rows?|scores?|pixels|values?|milliseconds|steps?|ms) an? (?:second|epoch|image|side"
        r"|fault|step|process|row|finished|hour|batch)\b|\b(?:once|twice) an? (?:process|run|epoch|step|row)\b",
        "“per second”, “per epoch”",
        "milliseconds a step",
    ),
    Word(
        r"\bthat cannot be(?=[.,;:)]| and | or |$)",
        "“invalid”, “impossible”",
        "a value that cannot be, such as",
    ),
    Word(
        r"\b(?:what|that|which) is (?-i:none)(?! of)\b",
        "“is not …”, “invalid”",
        "for a name that is none",
    ),
    Word(
        r"\bstands? beside (?:it|them|the curve|the others)\b",
        "“is next to”, “is also shown”",
        "the plain 3×3 stands beside it",
    ),
    Word(
        r"\b(?:has|have|had) (?:had )?(?:all of )?(?:its|their) time\b",
        "“exceeded the time limit”",
        "a run that had its time",
    ),
    Word(
        r"\bwhoever\b",
        "“the caller”, “any user”",
        "by whoever calls it",
    ),
    Word(
        r"\bin whose place\b",
        "“that it replaces”",
        "the layer in whose place it comes",
    ),
    Word(
        r"\bbest (?:of the )?other ways?\b|\bother ways (?:take turns|run)\b",
        "“implementation”",
        "the best other way",
    ),
)


class Text(NamedTuple):
    """A piece of prose: where it stands, the number of its first line, and the words."""

    name: str
    line: int
    words: str


def without_code(markdown: str) -> str:
    """Markdown with code, link targets and comments blanked out; lines stay lines."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "·", match[0])

    for code in (
        r"^( *)(```|~~~).*?^\1\2 *$",  # fenced
        r"<!--.*?-->",
        r"\{[%#{].*?[%#}]\}",  # templates
        r"(`+)[^`].*?\1",  # inline
        r"\]\([^)\s]*\)",
        r"\$[A-Z_]{2,}",
    ):
        markdown = re.sub(code, blank, markdown, flags=re.MULTILINE | re.DOTALL)
    return markdown


def pages() -> Iterator[Text]:
    files = [
        ROOT / "README.md",
        *(file for file in ROOT.glob("docs/**/*.md") if not {"_build", "results"} & set(file.parts)),
        *ROOT.glob("results/**/*.md"),
        *ROOT.glob("results/**/*.jinja"),
    ]
    for file in sorted(files):
        yield Text(str(file.relative_to(ROOT)), 1, without_code(file.read_text()))


def notebooks() -> Iterator[Text]:
    for file in sorted(ROOT.glob("notebooks/*.ipynb")):
        for number, cell in enumerate(json.loads(file.read_text())["cells"], 1):
            if cell["cell_type"] == "markdown":
                name = f"{file.relative_to(ROOT)}, cell {number}"
                yield Text(name, 1, without_code("".join(cell["source"])))


def code(*folders: str) -> Iterator[Path]:
    found = (file for folder in folders for file in sorted(ROOT.glob(f"{folder}/**/*.py")))
    return (file for file in found if file != Path(__file__))  # which lists the phrases


def strings() -> Iterator[Text]:
    """Docstrings and other string literals of the package."""
    for file in code("spectrum"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in NAMES:
                yield Text(str(file.relative_to(ROOT)), node.lineno, without_code(node.value))


def docstrings() -> Iterator[Text]:
    """Docstrings of scripts and tests."""
    for file in code(*SCRIPTS):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                (first, *_) = node.body
                yield Text(str(file.relative_to(ROOT)), first.lineno, without_code(ast.get_docstring(node) or ""))


def comments() -> Iterator[Text]:
    """Comments of code and of study files; those on successive lines are one text."""
    for file in (*code("spectrum", *SCRIPTS), *sorted(ROOT.glob("experiments/*.toml"))):
        for line, words in blocks(comments_of(file)):
            yield Text(str(file.relative_to(ROOT)), line, without_code(words))


def comments_of(file: Path) -> dict[int, str]:
    """Comments by the number of their line."""
    text = file.read_text()
    if file.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return {token.start[0]: token.string[1:] for token in tokens if token.type == tokenize.COMMENT}
    found = (re.search(r"(?:^|\s)#(.*)", line) for line in text.splitlines())
    return {number: match[1] for number, match in enumerate(found, 1) if match}


def blocks(lines: dict[int, str]) -> Iterator[tuple[int, str]]:
    first = last = 0
    for number in [*lines, 0]:
        if first and number != last + 1:
            yield first, "\n".join(lines[one] for one in range(first, last + 1))
            first = 0
        first, last = first or number, number


def faults(texts: Iterator[Text]) -> list[str]:
    """Each place of a phrase, with what to write instead."""
    return sorted(
        f"{text.name}:{text.line + text.words[: match.start()].count(chr(10))}: "
        f"“{' '.join(match[0].split())}”: write {word.instead}"
        for text in texts
        for word in WORDS
        if text.name.startswith(word.where)
        for match in word.found(text.words)
    )


@pytest.mark.parametrize("texts", [pages, notebooks, strings, docstrings, comments])
def test_prose_uses_plain_words(texts):
    found = faults(texts())
    assert not found, "\n".join(["", *found])


def test_comments_on_successive_lines_are_one_text(tmp_path):
    code, study = tmp_path / "a.py", tmp_path / "a.toml"
    code.write_text('x = "# no comment"  # one\n# two\n\n# three\n')
    study.write_text('question = "#1"  # one\n# two\n\n[axes]  # three\n')
    for file, last in ((code, 4), (study, 4)):
        assert list(blocks(comments_of(file))) == [(1, " one\n two"), (last, " three")]


@pytest.mark.parametrize("command", ["", *COMMAND_NAMES])
def test_help_uses_plain_words(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out)
    found = faults(iter([Text(f"spectrum {command} --help", 1, shown)]))
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("word", WORDS, ids=[word.example for word in WORDS])
def test_a_phrase_is_found_in_a_sentence_and_not_in_code(word, monkeypatch):
    monkeypatch.setitem(globals(), "WORDS", (word._replace(where=("",)),))
    sentence = f"A first line.\nHere we say {word.example} again.\n"
    (fault,) = faults(iter([Text("a.md", 1, without_code(sentence))]))
    assert fault.startswith("a.md:2: “")
    assert word.instead in fault
    assert faults(iter([Text("a.md", 1, sentence.replace(" ", "\n"))])), "across lines"
    code = f"`{word.example}` and\n```\n{word.example}\n```\n<!-- {word.example} -->\n"
    assert not faults(iter([Text("a.md", 1, without_code(code))]))
    assert not list(word.found(word.instead)), "the plain words are plain"


@pytest.mark.parametrize(
    "sentence",
    [
        "Half of the images are mirrored, and the first half of the epochs has a warm-up.",
        "A max pool halves the resolution; each of them halves it again.",
        "Place the files below the folder, in place of the old ones, on a bare machine.",
        "All comparisons form one family, corrected together by Holm's method.",
        "There is no room for the cache. Search the documentation, or search for a name.",
        "By 2.10 percentage points, where the point estimate and the points of the figure agree.",
        "Doubling the segments costs 0.11 pp per doubling; a doubling of the width costs more.",
        "The 95% CI (a t-interval over seeds) covers 0. It scales with 8 × 3 %-free numbers.",
        "One way to compute it is slower; there are two ways to go. Ask for help, as the message says.",
        "Less than 1 segment per channel is impossible. We argue against one large kernel.",
        "In front of the stem stands nothing, and the channels lie side by side.",
        "It passes over the training images twice per run, and takes a second step a minute later.",
        "Training goes on until the last epoch; a split that is none of these cannot be read.",
    ],
)
def test_ordinary_sentences_pass(sentence):
    assert not faults(iter([Text("README.md", 1, without_code(sentence))]))

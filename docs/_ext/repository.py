"""What stands elsewhere in the repository, as pages of the site.

Before a build, results/*.md and results/*/README.md with their pictures and notebooks/*.ipynb are copied into
docs/results and docs/notebooks, which git ignores. Links are written for a code host, relative to the file that they
stand in; here those that lead to a page of the site are turned to it, and the others, such as a study's file, become
the file's name.
A link to what is not there is a warning, and so an error in a strict build.

What only the site needs, a code host does not show. In the pages of docs/,

    <!-- {toctree}        a directive in a comment is the directive, up to the end of the comment
    <!-- {studies} map -->  puts the pages of results/ that belong to a group into the navigation, those that are there
    [words](FILE) <!-- included -->  includes the file, instead of a link to it
    > [!NOTE]             a code host's note is the site's
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from spectrum._files import write_whole

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INCLUDED = {"ARCHITECTURE.md": "explanation/architecture.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
PAIR = re.compile(r"(!\[[^\]]*\])\((\S+)_light\.(svg|png)\)")
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
GROUPS = {  # of the pages in results/, in this order; what is in none of them is among the others
    "map": (
        *("curve", "curve_cifar10", "larger", "families", "sizes", "schedule", "activation", "order", "bsconv"),
        *("residual", "teacher", "teacher_pilot", "kernels"),
    ),
    "speed": ("bench",),
}
DIRECTIVE = re.compile(r"^<!-- (\{\w+\}.*?)(?:\n(.*?))?[ \n]?-->$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r"^\[[^\]]+\]\(([^)\s]+)\) <!-- included -->$", re.MULTILINE)
NOTE = re.compile(r"^> \[!NOTE\]\n((?:>.*\n?)+)", re.MULTILINE)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)

logger = logging.getLogger(__name__)


def page_of(path: str) -> str | None:
    """The file in docs/ that shows a path of the repository, both relative; None where the site has none."""
    if path in INCLUDED:
        return INCLUDED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("results/"):
        readme = path if path.endswith(".md") else f"{path}/README.md"
        return readme if (ROOT / readme).is_file() else None
    return path if path.startswith("notebooks/") and path.endswith(".ipynb") else None


def with_site_links(text: str, origin: str, shown: str) -> str:
    """Markdown whose links work in the site.

    Args:
        text: of the file.
        origin: the file, relative to the repository; its links are relative to it.
        shown: the page that shows it, relative to docs/.
    """

    def rewritten(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        file, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(origin), file))
        if not (ROOT / path).exists():
            logger.warning("%s: links to %s, which is not there", origin, path)
        page = path.removeprefix("docs/") if picture else page_of(path)
        if page is None:
            name = words.strip("`")
            return f"`{path}`" if name == path else f"{words} (`{path}`)"
        relative = os.path.relpath(page, os.path.dirname(shown) or ".")
        return f"{picture}[{words}]({relative}{'#' if anchor else ''}{anchor})"

    pieces, end = [], 0
    for fence in FENCE.finditer(text):
        pieces += [LINK.sub(rewritten, text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*pieces, LINK.sub(rewritten, text[end:])])


def write(path: Path, content: bytes) -> None:
    """Write a file unless it is so already: whole, since another build may read it."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def copy(app: Sphinx, config: Any) -> None:
    """Copy what is shown, and remove what is not there any more."""
    kept = set()
    for readme in sorted([*ROOT.glob("results/*.md"), *ROOT.glob("results/*/README.md")]):
        shown = readme.relative_to(ROOT)
        write(DOCS / shown, with_site_links(readme.read_text(), str(shown), str(shown)).encode())
        for picture in readme.parent.glob("*.png"):
            write(DOCS / picture.relative_to(ROOT), picture.read_bytes())
        kept.add(shown.parent.name)
    for folder in (DOCS / "results").glob("*/"):
        if folder.name not in kept:
            shutil.rmtree(folder)
    for notebook in sorted(ROOT.glob("notebooks/*.ipynb")):
        shown = str(notebook.relative_to(ROOT))
        said = json.loads(notebook.read_text())
        for cell in said["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = with_site_links("".join(cell["source"]), shown, shown)
        write(DOCS / shown, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
    for shown_notebook in (DOCS / "notebooks").glob("*.ipynb"):
        if not (ROOT / "notebooks" / shown_notebook.name).exists():
            shown_notebook.unlink()


def rewrite_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Links of the pages in docs/ to the rest of the repository."""
    page = Path(app.env.doc2path(docname)).relative_to(DOCS)
    if page.suffix == ".md" and page.parts[0] not in ("results", "notebooks"):
        text = with_directives(content[0])
        content[0] = with_dark_twins(with_site_links(text, f"docs/{page}", str(page)))


def with_directives(text: str) -> str:
    """Markdown whose comments and notes, which a code host hides or shows by itself, are directives of the site."""
    text = DIRECTIVE.sub(lambda found: f"```{found[1]}\n{found[2] or ''}\n```", text)
    text = INCLUDE.sub(r"```{include} \1\n```", text)
    return NOTE.sub(lambda found: "```{note}\n" + re.sub("^> ?", "", found[1], flags=re.MULTILINE) + "```\n", text)


def with_dark_twins(text: str) -> str:
    """Markdown with a picture x_dark.svg next to x_light.svg; the theme shows the one that fits."""
    return PAIR.sub(r"\1(\2_light.\3){.only-light}\1(\2_dark.\3){.only-dark}", text)


def rewrite_included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Links of files of the repository that a page includes."""
    origin = os.path.relpath((DOCS / path).resolve(), ROOT)
    if origin in INCLUDED:
        content[0] = with_site_links(content[0], origin, INCLUDED[origin])


def studies_of(group: str) -> list[str]:
    """Names of the folders in results/ that have a page and belong to a group, or to none with "others"."""
    there = sorted(readme.parent.name for readme in ROOT.glob("results/*/README.md"))
    if group == "others":
        return [name for name in there if not any(name in names for names in GROUPS.values())]
    return [name for name in GROUPS[group] if name in there]


class Studies(SphinxDirective):
    """A hidden table of contents of one group."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the page does not change when a study comes
        pages = [f"results/{name}/README" for name in studies_of(self.arguments[0])]
        if not pages:
            return []
        node = nodes.Element()
        lines = ["```{toctree}", ":maxdepth: 1", ":hidden:", "", *pages, "```"]
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), 0, node)
        return node.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("studies", Studies)
    app.connect("config-inited", copy)
    app.connect("source-read", rewrite_page)
    app.connect("include-read", rewrite_included)
    return {"parallel_read_safe": True}

"""The command's reference, which is its own help: `.. commands::` shows that of `spectrum` and of each subcommand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH = 100
USAGE = re.compile(r"^usage: spectrum.*?\{([a-z0-9,-]+)\}", re.DOTALL)


def help_of(*words: str) -> str:
    """What `spectrum WORDS --help` prints, plain."""
    plain = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    said = subprocess.run(
        [sys.executable, "-m", "spectrum", *words, "--help"],
        env={**os.environ, **plain},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return "\n".join(line.rstrip() for line in said.stdout.splitlines()).strip()


def subcommands_of(text: str) -> list[str]:
    """Names of the subcommands that a help text lists."""
    usage = USAGE.match(text)
    return usage[1].split(",") if usage and "─ subcommands ─" in text else []


class Commands(SphinxDirective):
    """A section a command."""

    def run(self) -> list[nodes.Node]:
        whole = help_of()
        names = subcommands_of(whole)
        if not names:
            raise self.error("spectrum --help lists no subcommands, as far as this extension can see")
        with ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(help_of, names))
        sections = [self._block(whole)]
        for name, text in zip(names, texts, strict=True):
            section = nodes.section(ids=[f"spectrum-{name}"], names=[f"spectrum {name}"])
            section += [nodes.title("", f"spectrum {name}"), self._block(text)]
            sections.append(section)
        return sections

    @staticmethod
    def _block(text: str) -> nodes.Node:
        return nodes.literal_block(text, text, language="text")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}

"""Templates of the pages in this folder; an unknown name in a template is an error."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

RESULTS = Path(__file__).parents[1]


def environment() -> Environment:
    """A new environment, to which filters can be added."""
    return Environment(
        loader=FileSystemLoader(RESULTS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip

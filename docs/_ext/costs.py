"""What the networks cost, from the golden table that the tests compare with the networks themselves.

.. costs::     a row a family and number of segments
"""

from __future__ import annotations

import json

from docutils import nodes
from docutils.statemachine import StringList
from repository import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

GOLDEN = ROOT / "tests/golden/models.json"


class Costs(SphinxDirective):
    """The golden table."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(GOLDEN))
        rows = [
            (
                f"``{family}``",
                segments.replace("_", " "),
                *(f"{cost[count]:,}" for count in ("params", "buffers", "macs")),
            )
            for family, along in json.loads(GOLDEN.read_text()).items()
            for segments, cost in along.items()
        ]
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
        for row in [("family", "segments", "parameters", "BN statistics", "MACs"), *rows]:
            lines += [f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(row)]
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), 0, node)
        return node.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("costs", Costs)
    return {"parallel_read_safe": True}

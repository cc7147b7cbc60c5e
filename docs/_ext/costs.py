"""What the networks cost, from the golden table that the tests compare with the networks themselves.

.. costs::     a row a family and number of segments
"""

from __future__ import annotations

import json

from docutils import nodes
from records import parsed, table
from repository import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

GOLDEN = ROOT / "tests/golden/models.json"


class Costs(SphinxDirective):
    """The golden table."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(GOLDEN))
        rows = [
            (family, segments.replace("_", " "), *(f"{cost[count]:,}" for count in ("params", "buffers", "macs")))
            for family, along in json.loads(GOLDEN.read_text()).items()
            for segments, cost in along.items()
        ]
        return parsed(self, table(("family", "segments", "parameters", "BN statistics", "MACs"), rows, 1))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("costs", Costs)
    return {"parallel_read_safe": True}

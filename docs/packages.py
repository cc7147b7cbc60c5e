"""Draw the packages of spectrum and the imports between them: `make drawing` writes docs/packages.svg.

Each arrow leads from a package to one whose modules it imports, the wider the more of its modules do; imports are read
from the source, and nothing is run.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PACKAGES = {  # in the order in which data flows through them, as tests/test_rooms.py has it
    "conv": "the operation and its exact implementations",
    "models": "networks made of it, by options",
    "cost": "parameters, MACs, time; the width solver",
    "design": "what is asked: run, study, plan; no torch",
    "data": "images, splits, augmentation",
    "training": "one run: loop, checkpoint, ranks",
    "engines": "where runs are trained",
    "study": "planning, sweep, store, driver",
    "analysis": "what rows show: inference, figures, pages",
    "bench": "speed",
    "cli": "the command",
}
WIDTH, TOP, STEP, BOX, LEFT = 720, 30, 62, 42, 415  # pixels
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1d1d1f } .name { font-weight: 600 } .of { font-size: 13px }
  .box { fill: #eef3f8; stroke: #5b7083 } .arrow { fill: none; stroke: #0072b2; opacity: .62 } .head { fill: #0072b2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ececec } .box { fill: #22303c; stroke: #8ba3b8 } .arrow { stroke: #6cb6ea } .head { fill: #6cb6ea }
  }
"""


def imports(root: Path = ROOT / "spectrum") -> Counter[tuple[str, str]]:
    """How many modules of one package import from another one, for each two where any does."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0]
        if own not in PACKAGES:
            continue  # a module beside the packages
        named = " ".join(_modules(ast.parse(path.read_text(encoding="utf-8"))))
        others = {other for other in re.findall(r"\bspectrum\.(\w+)", named) if other in PACKAGES}
        found.update((own, other) for other in others if other != own)
    return found


def _modules(tree: ast.AST) -> list[str]:
    """Every module that is imported, at the top or within a function."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def draw() -> str:
    """The drawing as SVG."""
    found, order = imports(), list(PACKAGES)
    height = TOP + STEP * (len(order) - 1) + BOX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The packages of spectrum and the imports between them">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    leaving = {one: sorted((to for of, to in found if of == one), key=order.index, reverse=True) for one in order}
    coming = {one: sorted((of for of, to in found if to == one), key=order.index) for one in order}
    for (importer, imported), count in sorted(found.items(), key=lambda item: _span(item[0], order), reverse=True):
        start = _port(importer, leaving[importer].index(imported), len(coming[importer]), True, order, leaving)
        end = _port(imported, coming[imported].index(importer), len(leaving[imported]), False, order, coming)
        reach = LEFT + 30 + 38 * _span((importer, imported), order)
        parts.append(
            f'<path class="arrow" marker-end="url(#head)" stroke-width="{min(1 + 0.35 * count, 5):.1f}" '
            f'd="M{LEFT} {start:.1f}C{reach} {start:.1f} {reach} {end:.1f} {LEFT + 2} {end:.1f}">'
            f"<title>{importer} → {imported}: {count} module{'' if count == 1 else 's'}</title></path>"
        )
    for number, (name, holds) in enumerate(PACKAGES.items()):
        top = TOP + STEP * number - BOX / 2
        parts.append(f'<rect class="box" x="10" y="{top}" width="{LEFT - 10}" height="{BOX}" rx="6"/>')
        parts.append(f'<text class="name" x="24" y="{top + 26}">{name}/</text>')
        parts.append(f'<text class="of" x="106" y="{top + 26}">{escape(holds)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _span(edge: tuple[str, str], order: list[str]) -> int:
    return order.index(edge[0]) - order.index(edge[1])


def _port(name: str, place: int, others: int, upper: bool, order: list[str], edges: dict[str, list[str]]) -> float:
    """The height at which an arrow meets a box: those that leave above, those that come in below."""
    total = len(edges[name]) + others
    slot = place if upper else others + place
    return TOP + STEP * order.index(name) - BOX / 2 + BOX * (slot + 1) / (total + 1)


if __name__ == "__main__":
    (ROOT / "docs" / "packages.svg").write_text(draw(), encoding="utf-8")

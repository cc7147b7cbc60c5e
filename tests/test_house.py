"""Functions and files stay short enough to be read at once, or say at their head why not.

A function's lines are those from `def` to its end, without its docstring. Its branches are each `if`, `elif`, `for`,
`while`, `except`, `case`, conditional expression, `if` of a comprehension, and each `and` or `or` between two terms.
Functions within it count for themselves. A function may be longer, with a comment before its first statement:

    # long: why it would be worse in parts
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for top in ("spectrum", "results", "experiments", "notebooks") for path in (ROOT / top).rglob("*.py")
)
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
LINES, BRANCHES, TERMS, LINES_OF_FILE = 60, 12, 4, 600
REASON = re.compile(r"\s*# long: \w.{10,}")
Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.IfExp)


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """All functions, those within others too, by their names with dots."""
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, Function | ast.ClassDef):
            name = f"{inside}.{node.name}" if inside else node.name
        if isinstance(node, Function):
            yield name, node
        yield from functions(node, name)


def docstring_lines(function: Function) -> int:
    first = function.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0


def lines(function: Function) -> int:
    return function.end_lineno - function.lineno + 1 - docstring_lines(function)


def own_nodes(function: Function) -> Iterator[ast.AST]:
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def branches(function: Function) -> int:
    nodes = list(own_nodes(function))
    joined = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    filters = sum(len(node.ifs) for node in nodes if isinstance(node, ast.comprehension))
    return sum(isinstance(node, BRANCHING) for node in nodes) + joined + filters


def terms(node: ast.AST) -> int:
    """How many things a condition joins by `and` and `or`, however deep."""
    if isinstance(node, ast.BoolOp):
        return sum(map(terms, node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return terms(node.operand)
    return 1


def says_why(text: list[str], function: Function) -> bool:
    """Whether a reason stands between a function's first line and its first statement."""
    documented = ast.get_docstring(function) is not None
    first = function.body[1] if documented and len(function.body) > 1 else function.body[0]
    return any(REASON.fullmatch(line) for line in text[function.lineno - 1 : first.lineno - 1])


def too_long(source: str) -> dict[str, tuple[int, int]]:
    """Lines and branches of each function that is too long, and does not say why."""
    text = source.splitlines()
    unsaid = ((name, one) for name, one in functions(ast.parse(source)) if not says_why(text, one))
    sizes = ((name, (lines(one), branches(one))) for name, one in unsaid)
    return {name: size for name, size in sizes if size[0] > LINES or size[1] > BRANCHES}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_functions_are_short_or_say_why(path: Path) -> None:
    assert too_long(path.read_text()) == {}, "lines and branches of functions; split them, or say why: # long: ..."


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_OF_FILE


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_conditions_have_few_terms(path: Path) -> None:
    """A longer one gets a name for each of its parts."""
    joined = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.BoolOp)]
    assert [node.lineno for node in joined if terms(node) > TERMS] == []


def of(source: str) -> Function:
    return next(function for _, function in functions(ast.parse(source)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): return 1", 0),
        ("def f():\n if a: pass\n elif b: pass\n else: pass", 2),
        ("def f():\n for a in b:\n  while c: pass", 2),
        ("def f():\n try: pass\n except A: pass\n except B: pass\n finally: pass", 2),
        ("def f(): return a and b and not c or d", 3),
        ("def f(): return [x if x else y for x in z if x if y]", 3),
        ("def f():\n match a:\n  case 1: pass\n  case _: pass", 2),
        ("def f():\n def g():\n  if a: pass\n return g", 0),
    ],
)
def test_branches_are_counted_one_by_one(source: str, expected: int) -> None:
    assert branches(of(source)) == expected


def test_lines_are_counted_without_the_docstring() -> None:
    assert lines(of('def f():\n    """One.\n\n    Two.\n    """\n    return 1')) == 2
    assert terms(ast.parse("a and (b or not (c and d)) and e", mode="eval").body) == 5


def test_a_long_function_is_found_wherever_it_is_and_a_reason_lets_it_be() -> None:
    body = "\n".join(f"            x = {n}" for n in range(61))
    source = f'class A:\n    def f():\n        def g():\n            """Say."""\n{body}\n'
    assert too_long(source) == {"A.f": (64, 0), "A.f.g": (62, 0)}
    why = "# long: steps that share their names"
    assert set(too_long(source.replace('"""Say."""', f'"""Say."""\n            {why}'))) == {"A.f"}
    assert set(too_long(source.replace('"""Say."""', '"""Say."""\n            # long:'))) == {"A.f", "A.f.g"}
    assert set(too_long(source.replace("x = 5\n", f"x = 5\n            {why}\n"))) == {"A.f", "A.f.g"}

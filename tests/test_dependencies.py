"""What is imported is declared, and what is declared is imported."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES_OF = {"PIL": "pillow", "IPython": "ipykernel"}  # where a package has another name
BY_NAME = {"fvcore"}  # cost/counters.py has other counters by their names
EXTRAS = {  # imported where they are used
    **{"h5py": "keras", "keras": "keras", "ray": "ray", "ipykernel": "notebooks"},
    **{"tensorboard": "tensorboard", "triton": "triton"},
}
WRITTEN_IN = {"spectrum.conv.kernels.triton_kernels": "triton", "spectrum.conv.kernels.triton_convolution": "triton"}


def declared(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", one)[0].replace("_", "-").lower() for one in requirements}


DECLARED = declared(PROJECT["dependencies"])


def imports(tree: ast.AST) -> set[str]:
    """Packages of others that statements below a node import."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    tops = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"spectrum"}
    return {PACKAGES_OF.get(top, top).replace("_", "-").lower() for top in tops}


FILES = sorted((ROOT / "spectrum").rglob("*.py"))
IMPORTED = {path: imports(ast.parse(path.read_text())) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_what_a_module_imports_is_declared(path: Path) -> None:
    assert IMPORTED[path] - DECLARED <= set(EXTRAS)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_extras_are_imported_where_they_are_used(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    at_import = set().union(*(imports(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)))
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert at_import & set(EXTRAS) <= {WRITTEN_IN.get(name)}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_modules_written_in_an_extra_are_imported_where_they_are_used(path: Path) -> None:
    """At the head of a file only by each other."""
    if ".".join(path.relative_to(ROOT).with_suffix("").parts) in WRITTEN_IN:
        return
    heads = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    named = {f"{node.module}.{alias.name}" for node in heads for alias in node.names}
    assert not {node.module for node in heads} & set(WRITTEN_IN)
    assert not named & set(WRITTEN_IN)


@pytest.mark.parametrize("name", EXTRAS)
def test_an_extra_declares_what_it_is_for(name: str) -> None:
    assert name in declared(PROJECT["optional-dependencies"][EXTRAS[name]])


def test_what_is_declared_is_imported() -> None:
    assert DECLARED - set().union(*IMPORTED.values()) - BY_NAME == set()


def test_files_that_are_no_python_go_into_the_wheel() -> None:
    there = {path for path in (ROOT / "spectrum").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["spectrum"]
    assert there == {path for pattern in patterns for path in (ROOT / "spectrum").glob(pattern)}
    assert all(any((ROOT / "spectrum").glob(pattern)) for pattern in patterns)


BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ImportError(f"{{name}} was imported")
sys.meta_path.insert(0, Missing())
"""
STUDY = """
[base]
dataset = "digits"
train_images = 100
batch_size = 50
epochs = 1
width = 0.25
[axes]
segments = [1, "per_channel"]
"""


@pytest.mark.medium
@pytest.mark.parametrize("package", sorted(BY_NAME))
def test_a_study_runs_without(package: str, tmp_path: Path) -> None:
    """From plan to report; workers meet the same block, since every Python imports `sitecustomize`."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(package=package))
    (tmp_path / "tiny.toml").write_text(STUDY)
    more = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=os.environ | more, capture_output=True, text=True, check=False
        )

    assert f"{package} was imported" in python("-c", f"import {package}").stderr
    assert python("-c", "from spectrum import *").returncode == 0
    for words in (["plan", "tiny.toml"], ["run", "tiny.toml"], ["status", "tiny.toml"], ["report", "tiny.toml"]):
        done = python("-c", "import sys; from spectrum.cli import main; sys.exit(main(sys.argv[1:]))", *words)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "results/tiny/results.jsonl").read_text().splitlines()) == 2

"""Dependencies run one way: a module imports only from its own package and from packages above it."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import spectrum

PACKAGE = Path(__file__).parents[1] / "spectrum"
ROOMS = ("conv", "models", "cost", "design", "data", "training", "engines", "study", "analysis", "bench", "cli")
# analysis reads tables of results and does not depend on training
FORBIDDEN = {"analysis": ("data", "training", "engines", "study", "bench")}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(parts):
    return next((ROOMS.index(part) for part in parts[:1] if part in ROOMS), None)


def imports_of_spectrum(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path.name}: relative import; say where from")
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "spectrum":  # through the package itself
                modules = [spectrum._HOME.get(alias.name, f"spectrum.{alias.name}") for alias in node.names]
        yield from (module.split(".")[1:] for module in modules if module.split(".")[0] == "spectrum")


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_module_imports_only_from_rooms_above_it(path):
    own = room(path.relative_to(PACKAGE).parts)
    if own is None:
        return  # the package itself may import every package
    for imported in imports_of_spectrum(path):
        theirs = room(imported)
        assert theirs is None or theirs <= own, f"{path} imports from {ROOMS[theirs]}, which is below"
        assert theirs is None or ROOMS[theirs] not in FORBIDDEN.get(ROOMS[own], ()), f"{path} imports {imported}"


def test_modules_beside_the_packages_serve_all_of_them_or_none():
    """Those with an underscore import from no package; `results` is for the package itself and the command."""
    for path in FILES:
        parts = path.relative_to(PACKAGE).parts
        imported = list(imports_of_spectrum(path))
        if len(parts) == 1 and path.name.startswith("_") and not path.name.startswith("__"):
            assert not [one for one in imported if room(one) is not None], path
        if len(parts) > 1 and parts[0] != "cli":
            assert not [one for one in imported if one[:1] == ["results"]], path


def test_only_the_command_prints():
    for path in FILES:
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path


def test_torchs_word_for_segments_stays_in_the_backends():
    for path in FILES:
        if path.is_relative_to(PACKAGE / "conv/backends") or path.name == "plain_xception.py":
            continue  # the second is what others would write
        words = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.keyword)]
        assert not [word for word in words if word.arg == "groups"], path


@pytest.mark.parametrize(
    "code",
    [
        "import spectrum",
        "import spectrum; spectrum.load_study('experiments/quickstart.toml')",
        "import spectrum; spectrum.list_models()",
        "import spectrum.cli",
    ],
)
def test_reading_a_study_loads_no_torch(code):
    code += "; import sys; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_public_names_are_there():
    for name in spectrum.__all__:
        assert getattr(spectrum, name) is not None
        assert name in dir(spectrum)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        spectrum.nothing  # noqa: B018


def test_the_drawing_of_the_packages_is_of_their_imports():
    packages = runpy.run_path(str(PACKAGE.parent / "docs" / "packages.py"))
    assert tuple(packages["PACKAGES"]) == ROOMS
    assert (PACKAGE.parent / "docs" / "packages.svg").read_text() == packages["draw"](), "make drawing"
    arrows = packages["imports"]()
    assert arrows, "there are imports"
    for (importer, imported), count in arrows.items():
        assert ROOMS.index(imported) < ROOMS.index(importer)
        below = [path for path in FILES if path.relative_to(PACKAGE).parts[0] == importer]
        assert count == sum(
            any(room(one) == ROOMS.index(imported) for one in imports_of_spectrum(path)) for path in below
        )

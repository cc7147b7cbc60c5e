"""Find the modules in which users register models, data sets and backends, and check that workers find them."""

from __future__ import annotations

import ast
import hashlib
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from spectrum._records import SpecError
from spectrum._registry import Registry, has_script
from spectrum.conv.backends.environment import backend_of_environment
from spectrum.design.own_data import DATASETS
from spectrum.models import registered_in
from spectrum.models.families import FAMILIES
from spectrum.models.named import LIBRARIES, library_version, parts_of, permit

MAIN = ("__main__", "__mp_main__")  # a script or notebook, and a script in a worker process


class Registered(NamedTuple):
    """A user's registered object that runs need. `kind`: "model", "dataset" or "backend"."""

    kind: str
    name: str
    home: str  # module that registers it
    is_at_import: bool = True  # whether importing that module is enough

    @property
    def is_in_script(self) -> bool:
        return self.home in MAIN


def is_module_name(name: object) -> bool:
    """Whether a name is valid for an import in Python, and not the name of a file."""
    return isinstance(name, str) and not name.endswith(".py") and all(map(str.isidentifier, name.split(".")))


def import_modules(names: Iterable[str], prefix: str = "--import ", folder: Path | None = None) -> None:
    """Import a user's modules, from a folder, the current folder, or Python's path.

    Args:
        names: names of the modules.
        prefix: where the names come from, for messages.
        folder: folder searched first, such as that of the study's file.

    Raises SpecError for a module that cannot be imported, or whose name another loaded module has.
    """
    for name in names:
        if not is_module_name(name):
            raise SpecError(f"{prefix}{name}: not a module's name; write it as in Python's import, such as my_models")
        places = [Path.cwd()] if folder is None else [Path.cwd(), folder.resolve()]
        for place in map(str, places):
            if place not in sys.path:
                sys.path.insert(0, place)  # workers start with the same path
        invalidate_caches()  # the file may be new
        try:
            module = import_module(name)
        except (Exception, SystemExit) as error:  # any error of a user's module
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.split(".")[0]
            where = "the current folder" if folder is None else "the folder of the study's file"
            what = f"no such module in {where}" if missing else f"{type(error).__name__}: {error}"
            raise SpecError(f"{prefix}{name}: {what}; fix it, or give another module") from error
        _check_is_theirs(name, getattr(module, "__file__", None), places[-1], prefix)
        permit(name)


def import_models(models: Iterable[object], folder: Path | None = None) -> None:
    """Import the modules of models such as "my_module:function", from a folder or as `import_modules` does.

    Raises SpecError for a module that cannot be imported or lacks the function, and for a library that is missing.
    """
    for model in dict.fromkeys(model for model in models if isinstance(model, str)):
        home, function = parts_of(model) or ("", "")
        if not home or model in FAMILIES.names() or home in MAIN:
            continue  # the name of an architecture, or refused with the run
        if home in LIBRARIES:
            if find_spec(home) is None:
                raise SpecError(f"model = {model!r}: {home} is not installed; pip install {home}")
            continue
        import_modules([home], "model = ", folder)
        try:
            attrgetter(function)(sys.modules[home])
        except AttributeError:
            raise SpecError(f"model = {model!r}: module {home} has no {function}; name a function in it") from None


def _check_is_theirs(name: str, loaded: str | None, folder: Path, prefix: str) -> None:
    """Raise SpecError if the folder has a module of this name, but another one is loaded."""
    stem = folder.joinpath(*name.split("."))
    there = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.exists()), None)
    if there is not None and (loaded is None or Path(loaded).resolve() != there.resolve()):
        raise SpecError(f"{prefix}{name}: another module of this name is loaded, from {loaded}; rename {there}")


def code_of(model: str) -> str | None:
    """Hash of the code of the module that registers a model: 16 hex digits, independent of comments and layout.

    Of a model of torchvision or timm, the library's version. None for a model of this package, and for a module without
    a file. Modules that it imports are not included.
    """
    home = registered_in(model)
    if (library := library_version(model)) is not None:
        return library
    module = sys.modules.get("__main__" if home in MAIN else str(home))
    file = getattr(module, "__file__", None)
    if home is None or file is None:
        return None
    try:
        syntax_tree = ast.dump(ast.parse(Path(file).read_bytes()))
    except (OSError, SyntaxError, ValueError):  # deleted or changed since it was imported
        return "unreadable"
    return hashlib.sha256(syntax_tree.encode()).hexdigest()[:16]


def registered(models: Iterable[str], datasets: Iterable[str] = ()) -> list[Registered]:
    """Objects registered by users, among these models and data sets and the backend in $SPECTRUM_BACKEND."""
    named = [*(("model", one) for one in models), *(("dataset", one) for one in datasets)]
    if (backend := backend_of_environment()) is not None:
        named.append(("backend", backend))
    found = []
    for kind, name in dict.fromkeys(named):
        registry = _registry_of(kind)
        home = registry.home(name)
        if home is not None:
            found.append(Registered(kind, name, home, registry.is_at_import(name)))
    return found


def _registry_of(kind: str) -> Registry[Any]:
    if kind == "model":
        return FAMILIES
    if kind == "dataset":
        return DATASETS
    from spectrum.conv.backends.choice import BACKENDS  # imported here, since it loads torch

    return BACKENDS


def modules_of(needed: Iterable[Registered], imports: Sequence[str]) -> tuple[str, ...]:
    """Modules that a worker imports first: the given ones, and those that register what the runs need."""
    return tuple(dict.fromkeys([*imports, *(one.home for one in needed if not one.is_in_script)]))


def check_workers_know(needed: Iterable[Registered], imports: Sequence[str], *, elsewhere: bool = False) -> None:
    """Raise SpecError for registered objects that worker processes cannot find.

    Objects registered in a script are looked up in a new process, and so are objects whose module registers them in a
    function that must be called.

    Args:
        needed: registered objects that the runs need.
        imports: modules that workers import first.
        elsewhere: whether workers start on other machines, which cannot read the script.
    """
    doubtful = [one for one in needed if one.is_in_script or not one.is_at_import]
    if not doubtful:
        return
    kind, name, home, _ = doubtful[0]
    remedy = f'call register_{kind} in a module, such as my_{kind}s.py, and give imports=["my_{kind}s"]'
    if doubtful[0].is_in_script and (elsewhere or not has_script()):
        where = "this script" if has_script() else "this session"
        raise SpecError(f"{kind} = {name!r}: worker processes cannot see what is registered in {where}; {remedy}")
    asked = multiprocessing.get_context("spawn").Process(target=_know, args=(doubtful, tuple(imports)))
    asked.start()
    asked.join()
    if asked.exitcode != 0:
        where = "this script" if doubtful[0].is_in_script else home
        raise SpecError(
            f"{kind} = {name!r}: worker processes import {where} and do not find it there; "
            f'call register_{kind} at its top level, and run_study below `if __name__ == "__main__":`'
        )


def _know(doubtful: Sequence[Registered], imports: Sequence[str]) -> None:
    """End a worker with status 1 if an object is not registered in it."""
    for module in imports:
        import_module(module)
    sys.exit(0 if all(one.name in _registry_of(one.kind) for one in doubtful) else 1)

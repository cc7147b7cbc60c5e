"""Networks by the name of a function: "my_module:function", "torchvision:resnet18", "timm:resnet18". Needs no torch.

A name may come from a file of results, so a function of a module is called only if a study, `import` or --import named
that module in this process. Libraries are asked by the name of a model, which runs nothing else.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_][\w.]*)")
LIBRARIES = ("torchvision", "timm")
_permitted: set[str] = set()


def parts_of(name: object) -> tuple[str, str] | None:
    """Module or library, and function or model; None for the name of an architecture."""
    found = NAME.fullmatch(name) if isinstance(name, str) else None
    return None if found is None else (found[1], found[2])


def permit(module: str) -> None:
    """Allow functions of a module to be called, since the user named it."""
    _permitted.add(module)


def is_permitted(module: str) -> bool:
    """Whether the user named this module in this process."""
    return module in _permitted


def library_version(name: str) -> str | None:
    """A library with its version, such as "timm 1.0.3", if the name is of one that is installed."""
    found = parts_of(name)
    if found is None or found[0] not in LIBRARIES:
        return None
    try:
        return f"{found[0]} {version(found[0])}"
    except PackageNotFoundError:
        return None

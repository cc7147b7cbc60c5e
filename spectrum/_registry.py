"""Registries of named objects, built in or added by users, such as models, data sets, engines and backends."""

from __future__ import annotations

import inspect
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class _Entry(Generic[Thing]):
    thing: Thing
    maker: object  # the user's own function or class
    home: str | None  # module that registered it; None if built in
    is_at_import: bool = field(default=True, compare=False)  # whether importing that module registers it


class Registry(Generic[Thing]):
    """A mapping from names to objects.

    The same object may be registered again, and so may its new version when a notebook cell or a module runs again.
    Any other object under a taken name is refused.

    >>> colours = Registry("colour", {"red": 1})
    >>> colours.add("blue", 2, maker=min)
    >>> colours.names(), colours["blue"]
    (['blue', 'red'], 2)
    >>> colours.add("red", 3, maker=max)
    Traceback (most recent call last):
    ValueError: colour 'red' is registered already; choose another name
    """

    def __init__(self, what: str, built_in: Mapping[str, Thing]) -> None:
        self.what = what
        self._entries = {name: _Entry(thing, None, None) for name, thing in built_in.items()}

    def add(self, name: str, thing: Thing, *, maker: Callable[..., Any], home: str | None = None) -> None:
        """Register an object under a name.

        Args:
            name: a new name, or the name of the object that is registered again.
            thing: the object.
            maker: the user's function or class; it tells whether the same definition has run again.
            home: the module that registers it, as given by `calling_module`.

        Raises ValueError for an invalid or a taken name.
        """
        known = self.check(name, maker=maker, home=home)
        if known is not None and known.thing != thing and not _is_made_anew(known, maker, home):
            raise self._taken(name)
        self._entries[name] = _Entry(thing, maker, home, _is_being_imported(home))

    def check(self, name: str, *, maker: Callable[..., Any], home: str | None = None) -> _Entry[Thing] | None:
        """The entry that this name already has, if any. Raises ValueError as `add` does, before the object is made."""
        if not isinstance(name, str) or not name.isprintable() or not name or name != name.strip():
            raise ValueError(
                f"name={name!r}: expected a name for the {self.what}, such as 'mine', in one line without spaces "
                "around it"
            )
        known = self._entries.get(name)
        if known is not None and (known.maker, known.home) != (maker, home) and not _is_made_anew(known, maker, home):
            raise self._taken(name)
        return known

    def _taken(self, name: str) -> ValueError:
        return ValueError(f"{self.what} {name!r} is registered already; choose another name")

    def __getitem__(self, name: str) -> Thing:
        if name not in self._entries:
            raise ValueError(f"{self.what} {name!r}: unknown; {self.hint(name)} (your own: register_{self.what})")
        return self._entries[name].thing

    def get(self, name: str) -> Thing | None:
        """The object with this name; None for an unknown name."""
        return self._entries[name].thing if name in self._entries else None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(self._entries)

    def own(self) -> list[str]:
        """Names that users registered, in alphabetical order."""
        return sorted(name for name, entry in self._entries.items() if entry.maker is not None)

    def maker(self, name: str) -> object:
        """The function or class that a name was registered with; None for a built-in name."""
        return self._entries[name].maker if name in self._entries else None

    def home(self, name: str) -> str | None:
        """The module that registered a name; None for a built-in or an unknown name."""
        return self._entries[name].home if name in self._entries else None

    def is_at_import(self, name: str) -> bool:
        """Whether importing its home registers this name, rather than a function there that must be called."""
        return self._entries[name].is_at_import if name in self._entries else False

    def hint(self, name: str) -> str:
        """A suggestion for an error message: the most similar known name, or all names."""
        return hint(name, self.names())


def hint(name: object, known: Iterable[str]) -> str:
    """A suggestion: the most similar name, or all names.

    >>> hint("rde", ["red", "blue"])
    "did you mean 'red'?"
    """
    names = list(known)
    near = nearest(str(name), names)
    return f"did you mean {near!r}?" if near else f"try {', '.join(map(repr, names))}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar name, whatever its case and its hyphens; None if no name is similar.

    >>> nearest("Per-Channel", ["segments", "per_channel"])
    'per_channel'
    """
    by_spelling = {_spelling(one): one for one in reversed(list(known))}
    return next((by_spelling[one] for one in get_close_matches(_spelling(name), by_spelling, n=1)), None)


def _spelling(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def check_maker(name: str, maker: object, gives: str, *, takes: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless `maker` can be called with these arguments. Nothing is called yet.

    >>> check_maker("factory", min, "a colour")
    >>> check_maker("loader", lambda path: path, "arrays")
    Traceback (most recent call last):
    ValueError: loader=<lambda>: must return arrays when called without arguments; it is called as (path)
    """
    called = f"with {', '.join(takes)}" if takes else "without arguments"
    expected = f"{name}={_name_of(maker)}: must return {gives} when called {called}"
    if not callable(maker):
        raise ValueError(f"{expected}; give a function or a class")
    if inspect.isabstract(maker):
        missing = ", ".join(sorted(getattr(maker, "__abstractmethods__", ())))
        raise ValueError(f"{expected}; this class has no {missing}")
    try:
        signature = inspect.signature(maker)
    except ValueError:  # built-in functions may have no signature
        return
    try:
        signature.bind(*takes)
    except TypeError:
        raise ValueError(f"{expected}; it is called as {signature}") from None


def _name_of(thing: object) -> str:
    """A short name for messages."""
    return getattr(thing, "__qualname__", None) or reprlib.repr(thing)


def imported(thing: str | Callable[..., Any]) -> Callable[..., Any]:
    """The object itself: a built-in one is imported by its "module:name", a user's own is returned unchanged."""
    if not isinstance(thing, str):
        return thing
    module, name = thing.split(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def calling_module() -> str | None:
    """The module that called the function that calls this one."""
    name = sys._getframe(2).f_globals.get("__name__")
    return name if isinstance(name, str) else None


def has_script() -> bool:
    """Whether this process runs a script or a module, which other processes can import; a notebook has none."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or Path(getattr(main, "__file__", None) or "").is_file()


def _is_made_anew(known: _Entry[Any], maker: object, home: str | None) -> bool:
    """Whether the same definition ran again, in a notebook cell or a reloaded module."""
    if known.maker is None or known.home != home:
        return False
    if home == "__main__" and not has_script():
        return True
    before, now = _place(known.maker), _place(maker)
    return known.maker is not maker and before == now and before is not None


def _is_being_imported(home: str | None) -> bool:
    spec = getattr(sys.modules.get(home or ""), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _place(maker: object) -> str | None:
    """Module-level definition of a function or a class, by module and name; None for any other object.

    A method of an object has the definition of its class's method, which does not identify the object.
    """
    of = getattr(maker, "__self__", None)
    name = getattr(maker, "__qualname__", None)
    if isinstance(of, type):  # a method of a class, which may have inherited it
        name = f"{of.__qualname__}.{getattr(maker, '__name__', None)}"
    is_of_object = of is not None and not isinstance(of, type)
    return None if name is None or "<" in name or is_of_object else name

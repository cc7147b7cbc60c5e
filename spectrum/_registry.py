"""Things that have a name: those that the package brings, and those that its users add. One rule for all of them."""

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
    home: str | None  # module that registered it; None for what the package brings
    is_at_import: bool = field(default=True, compare=False)  # whether importing that module registers it


class Registry(Generic[Thing]):
    """Names and what they stand for.

    The same may be registered again, and so may what a notebook's cell or a module makes anew when it runs again.
    Anything else under a name that is taken is refused.

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
        """Register one.

        Args:
            name: a new one, or that of what is registered again.
            thing: what the name stands for.
            maker: the function or class that the user gave, by which the same definition, run again, is recognised.
            home: the module that registers it, as `calling_module` tells.

        Raises ValueError for a name that is none or is taken.
        """
        known = self.check(name, maker=maker, home=home)
        if known is not None and known.thing != thing and not _is_made_anew(known, maker, home):
            raise self._taken(name)
        self._entries[name] = _Entry(thing, maker, home, _is_being_imported(home))

    def check(self, name: str, *, maker: Callable[..., Any], home: str | None = None) -> _Entry[Thing] | None:
        """What stands under this name already. Raises ValueError as `add` does, before the thing itself is made."""
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
        """What a name stands for; None for an unknown one."""
        return self._entries[name].thing if name in self._entries else None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """All of them, alphabetically."""
        return sorted(self._entries)

    def own(self) -> list[str]:
        """Those that users registered, alphabetically."""
        return sorted(name for name, entry in self._entries.items() if entry.maker is not None)

    def maker(self, name: str) -> object:
        """The function or class that a name was registered with; None for what the package brings."""
        return self._entries[name].maker if name in self._entries else None

    def home(self, name: str) -> str | None:
        """The module that registered a name; None for what the package brings, and for an unknown one."""
        return self._entries[name].home if name in self._entries else None

    def is_at_import(self, name: str) -> bool:
        """Whether importing its home registers this name, and not only a function there that somebody calls."""
        return self._entries[name].is_at_import if name in self._entries else False

    def hint(self, name: str) -> str:
        """For a refusal: the known name that is most like this one, or all."""
        return hint(name, self.names())


def hint(name: object, known: Iterable[str]) -> str:
    """The name that is most like this one, or all of them.

    >>> hint("rde", ["red", "blue"])
    "did you mean 'red'?"
    """
    names = list(known)
    near = nearest(str(name), names)
    return f"did you mean {near!r}?" if near else f"try {', '.join(map(repr, names))}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that is most like this one; None where none is."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)


def check_maker(name: str, maker: object, gives: str, *, takes: tuple[str, ...] = ()) -> None:
    """Raise ValueError for what cannot be called with these arguments, to give a thing; the thing is not made yet.

    >>> check_maker("factory", min, "a colour")
    >>> check_maker("loader", lambda path: path, "arrays")
    Traceback (most recent call last):
    ValueError: loader=<lambda>: expected what gives arrays when called without arguments; it is called as (path)
    """
    called = f"with {', '.join(takes)}" if takes else "without arguments"
    expected = f"{name}={_name_of(maker)}: expected what gives {gives} when called {called}"
    if not callable(maker):
        raise ValueError(f"{expected}, such as a function or a class")
    if inspect.isabstract(maker):
        missing = ", ".join(sorted(getattr(maker, "__abstractmethods__", ())))
        raise ValueError(f"{expected}; this class has no {missing}")
    try:
        signature = inspect.signature(maker)
    except ValueError:  # of what is built in
        return
    try:
        signature.bind(*takes)
    except TypeError:
        raise ValueError(f"{expected}; it is called as {signature}") from None


def _name_of(thing: object) -> str:
    """How a message calls it: short, whatever it holds."""
    return getattr(thing, "__qualname__", None) or reprlib.repr(thing)


def imported(thing: str | Callable[..., Any]) -> Callable[..., Any]:
    """What the package brings, imported by its "module:name"; a user's own as it is."""
    if not isinstance(thing, str):
        return thing
    module, name = thing.split(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def calling_module() -> str | None:
    """The module that called the function that asks."""
    name = sys._getframe(2).f_globals.get("__name__")
    return name if isinstance(name, str) else None


def has_script() -> bool:
    """Whether this process runs a script or a module, which others can import; a notebook and a prompt have none."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or Path(getattr(main, "__file__", None) or "").is_file()


def _is_made_anew(known: _Entry[Any], maker: object, home: str | None) -> bool:
    """Whether it is a notebook's cell that runs again, or a module that is read again."""
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
    """Where a module defines a function or a class; None for what has no place of its own in it.

    A method of an object has the place of its class's, which says nothing of the object.
    """
    of = getattr(maker, "__self__", None)
    name = getattr(maker, "__qualname__", None)
    if isinstance(of, type):  # a method of a class, which may have inherited it
        name = f"{of.__qualname__}.{getattr(maker, '__name__', None)}"
    is_of_object = of is not None and not isinstance(of, type)
    return None if name is None or "<" in name or is_of_object else name

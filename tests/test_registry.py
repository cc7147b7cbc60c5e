"""One rule for everything that users register by name: models, data sets, engines, backends."""

import importlib
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import spectrum
from spectrum import _registry
from spectrum._registry import Registry, check_maker, hint
from spectrum.conv.backends import choice
from spectrum.design import own_data
from spectrum.engines import interface
from spectrum.engines.interface import Engine
from spectrum.models.families import FAMILIES
from tests.registries import restored

MODULE = """
from spectrum import Backend, register_backend, register_dataset, register_model
from spectrum.engines.interface import register_engine

class Mine(Backend):
    def __init__(self, arch=None):
        pass

    def convolve(self, x_nchw, weights, geometry):
        return x_nchw

def register():
    register_backend("mine", Mine)
    register_dataset("mine", Mine)
    register_engine("mine", Mine)
    register_model("mine", Mine)
"""
REGISTRIES = [choice.BACKENDS, own_data.DATASETS, interface._ENGINES, FAMILIES]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    restored(monkeypatch, *REGISTRIES)


@pytest.fixture
def module(tmp_path: Path, monkeypatch):
    (tmp_path / "registers_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("registers_mine")
    del sys.modules["registers_mine"]


def test_a_module_that_is_read_again_registers_again(module):
    module.register()
    module.register()
    first = module.Mine
    importlib.reload(module).register()
    assert module.Mine is not first
    assert [registry.home("mine") for registry in REGISTRIES] == 4 * ["registers_mine"]
    assert isinstance(choice.BACKENDS["mine"].backend, module.Mine)
    assert own_data.loader_of("mine") is module.Mine


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.what)
def test_another_thing_under_a_name_that_is_taken_is_refused(registry):
    registry.add("mine", 1, maker=min, home="one")
    registry.add("mine", 1, maker=min, home="one")
    for thing, maker, home in [(2, max, "one"), (1, min, "two"), (2, min, "one")]:
        with pytest.raises(ValueError, match=f"{registry.what} 'mine' is registered already"):
            registry.add("mine", thing, maker=maker, home=home)
    built_in = next(name for name in registry.names() if name != "mine")
    with pytest.raises(ValueError, match="registered already"):
        registry.add(built_in, 1, maker=min, home="one")
    assert registry["mine"] == 1


def test_lambdas_and_local_functions_of_one_name_are_not_taken_for_one():
    registry = Registry("colour", {})

    def maker(number):
        return lambda: number

    registry.add("one", 1, maker=maker(1), home="here")
    with pytest.raises(ValueError, match="registered already"):
        registry.add("one", 2, maker=maker(2), home="here")


def test_a_notebooks_cell_that_runs_again_may_change_what_it_registers(monkeypatch):
    registry = Registry("colour", {})
    monkeypatch.setattr(_registry, "has_script", lambda: False)
    registry.add("one", 1, maker=lambda: 1, home="__main__")
    registry.add("one", 2, maker=lambda: 2, home="__main__")
    assert registry["one"] == 2
    monkeypatch.setattr(_registry, "has_script", lambda: True)
    with pytest.raises(ValueError, match="registered already"):
        registry.add("one", 3, maker=lambda: 3, home="__main__")


def test_methods_of_two_objects_are_two_makers():
    registry = Registry("colour", {})
    for maker, is_taken in [("a".upper, False), ("b".upper, True), (dict.fromkeys, True)]:
        with pytest.raises(ValueError, match="registered already") if is_taken else nullcontext():
            registry.add("one", 1, maker=maker, home="here")
    one = "a"
    registry.add("two", 1, maker=one.upper, home="here")
    registry.add("two", 1, maker=one.upper, home="here")


@pytest.mark.parametrize("name", ["", "  ", 3, None, " one", "one ", "o\nne", "o\tne"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="expected a name for the colour"):
        Registry("colour", {}).add(name, 1, maker=min)


def test_an_unknown_name_is_refused_with_the_nearest():
    colours = Registry("colour", {"red": 1, "blue": 2})
    with pytest.raises(ValueError, match="colour 'rde': unknown; did you mean 'red'"):
        colours["rde"]
    assert hint("violet", ["red", "blue"]) == "try 'red', 'blue'"
    assert (colours.get("rde"), colours.get("red"), "red" in colours) == (None, 1, True)
    assert colours.own() == []


@pytest.mark.parametrize(
    ("maker", "takes", "says"),
    [
        (3, (), "maker=3: must return a thing when called without arguments; give a function or a class"),
        (np.zeros((50, 50)), (), "^.{0,300}give a function"),
        (lambda path: path, (), r"when called without arguments; it is called as \(path\)"),
        (lambda: 0, ("NetworkOptions",), r"when called with NetworkOptions; it is called as \(\)"),
        (lambda arch, extra: 0, ("NetworkOptions",), r"it is called as \(arch, extra\)"),
        (Engine, (), "this class has no run"),
    ],
)
def test_what_cannot_be_called_as_it_will_be_is_refused_before_it_is_needed(maker, takes, says):
    with pytest.raises(ValueError, match=says):
        check_maker("maker", maker, "a thing", takes=takes)
    check_maker("maker", lambda *more, also=1: 0, "a thing", takes=takes)
    check_maker("maker", dict, "a thing")


def test_every_register_function_asks_so():
    registers = [
        spectrum.register_backend,
        spectrum.register_dataset,
        spectrum.register_engine,
        spectrum.register_model,
    ]
    for register in registers:
        with pytest.raises(ValueError, match="must return"):
            register("mine", lambda one, two: 0)


def test_it_is_known_whether_importing_a_module_registers(module, tmp_path):
    module.register()
    assert [registry.is_at_import("mine") for registry in REGISTRIES] == 4 * [False]
    (tmp_path / "registers_at_once.py").write_text(MODULE.replace('"mine"', '"at once"') + "\nregister()\n")
    importlib.import_module("registers_at_once")
    assert [registry.is_at_import("at once") for registry in REGISTRIES] == 4 * [True]
    del sys.modules["registers_at_once"]


def test_a_method_that_classes_inherit_is_another_maker_in_each():
    class One:
        @classmethod
        def make(cls):
            return cls()

    registry = Registry("colour", {})
    registry.add("one", 1, maker=type("A", (One,), {}).make, home="here")
    with pytest.raises(ValueError, match="registered already"):
        registry.add("one", 1, maker=type("B", (One,), {}).make, home="here")

"""Examples in docstrings run, and public names and their parameters are documented."""

import doctest
import inspect
import pkgutil
import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

import spectrum
from spectrum import RunConfig, plots, stats
from spectrum.design.study_file import Budget, Contrast, Study, Tune
from spectrum.models.families import FAMILIES
from tests.registries import restored

ROOT = Path(__file__).parents[1]
MODULES = [module.name for module in pkgutil.walk_packages(spectrum.__path__, "spectrum.")]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = [name for name in spectrum.__all__ if name != "__version__"]
SHOWN = (
    "SegmentedConv2d RunConfig Study build_model list_models load_history load_results load_study load_tuning "
    "measure_cost register_model"
)


@pytest.fixture
def no_families_left(monkeypatch):
    """What an example registers is gone after it."""
    restored(monkeypatch, FAMILIES)


def test_every_module_is_found():
    assert {"spectrum.conv.segmented", "spectrum.design.run", "spectrum.cost.count"} <= set(MODULES)


@pytest.mark.medium
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("no_families_left")
def test_the_examples_of_a_module_run(name, monkeypatch, capsys):
    if name.rpartition(".")[2].startswith("triton_"):
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.chdir(ROOT)  # where studies and their results are named from
    failed, _ = doctest.testmod(import_module(name), optionflags=FLAGS)
    assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("name", SHOWN.split())
def test_what_most_will_use_is_shown_by_example(name):
    assert ">>>" in (getattr(spectrum, name).__doc__ or "")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name):
    thing = getattr(spectrum, name)
    assert (thing.__doc__ or "").partition("\n")[0].endswith((".", ":", "?"))


def undocumented(thing):
    """Parameters that a docstring leaves out. A single parameter is told by the first line, which needs no list."""
    parameters = [name for name in inspect.signature(thing).parameters if name != "self"]
    arguments = (inspect.getdoc(thing) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^    \**(\w+): \S", arguments, re.MULTILINE))
    return [name for name in parameters if name not in listed] if len(parameters) > 1 or listed else []


def _is_error(thing):
    return isinstance(thing, type) and issubclass(thing, Exception)


CALLED = [
    pytest.param(getattr(module, name), id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module, names in ((spectrum, PUBLIC), (stats, stats.__all__), (plots, plots.__all__))
    for name in names
    if callable(getattr(module, name)) and not _is_error(getattr(module, name))
]


@pytest.mark.parametrize("thing", CALLED)
def test_every_parameter_is_documented(thing):
    assert (thing.__doc__ or "").partition("\n")[0].endswith((".", ":", "?"))
    if not hasattr(thing, "model_fields") and not is_dataclass(thing):  # records document their fields
        assert not undocumented(thing)


def test_a_parameter_that_is_left_out_is_seen():
    def partly(a, b):
        """Say something.

        Args:
            a: the first.

        More.
        """

    def barely(a, b):
        """Say something."""

    assert undocumented(partly) == ["b"]
    assert undocumented(barely) == ["a", "b"]


@pytest.mark.parametrize("record", [RunConfig, Budget, Contrast, Tune, Study], ids=lambda record: record.__name__)
def test_every_field_of_a_record_is_documented(record):
    assert [name for name, field in record.model_fields.items() if not field.description] == []

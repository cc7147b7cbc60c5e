"""Input from files and users is data: never code, never a path, never markup."""

import ast
import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum._records import SpecError
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study, parse_study
from spectrum.engines.interface import Work
from spectrum.engines.local import LocalEngine
from spectrum.engines.saving import Saving
from spectrum.study.backends import StudyBackends
from spectrum.study.callbacks import Callbacks
from spectrum.study.doctor import look_at, repair
from spectrum.study.driver import _Run
from spectrum.study.store import Store

ROOT = Path(__file__).parents[1]
FOLDERS = [path for folder in ("spectrum", "results", "docs/_ext") for path in (ROOT / folder).rglob("*.py")]
SOURCES = sorted([*FOLDERS, ROOT / "docs/conf.py", ROOT / "notebooks/execute.py"])
MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "jsonpickle", "joblib", "marshal", "shelve", "yaml"),
    "runpy",
}
RUN = {
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "pandas.eval"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "importlib.util.spec_from_file_location", "pandas.HDFStore"),
    *("h5py.File", "ctypes.CDLL", "ctypes.PyDLL", "ctypes.cdll", "ctypes.pydll"),  # but where PLACES has them
}
METHODS = {"read_pickle", "read_hdf", "exec_module", "load_module"}  # of whatever object
LOADS = re.compile(r"_?load\w*|\w+_load|read_\w+|Unpickler|\w*Loader")
HARMLESS = {  # loads that make numbers, text and pixels of a file, and nothing else
    *("safetensors.torch.load", "safetensors.torch.load_file", "json.load", "json.loads", "orjson.loads"),
    *("tomllib.load", "tomllib.loads", "pandas.read_csv", "pandas.read_parquet", "numpy.loadtxt"),
    *("datasets.load_dataset", "jinja2.PackageLoader", "jinja2.FileSystemLoader", "torch.utils.data.DataLoader"),
    "triton.language.load",
}
PLACES = {  # calls to inspect one by one: our own compiled kernels, libc, and HDF5, which holds no code
    ("spectrum/conv/kernels/build.py", "ctypes.CDLL"),
    ("spectrum/conv/kernels/build.py", "torch.ops.load_library"),
    ("spectrum/conv/kernels/torch_operation.py", "ctypes.CDLL"),
    ("spectrum/training/step.py", "ctypes.CDLL"),
    ("spectrum/models/weights.py", "h5py.File"),
}
TRUST = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False, "shell": False}
CAUGHT = """
import pickle
import _pickle as p
import cPickle
import dill
import shelve
import marshal
import runpy
import yaml
from joblib import load
from ray import cloudpickle
from torch.serialization import pickle
from torch import *
import importlib; importlib.import_module("pickle").loads(f)
from importlib import import_module; import_module("_pickle")
import torch; torch.load(f)
import torch; torch.load(f, weights_only=False)
import torch; torch.load(f, weights_only=safe)
import torch; torch.load(f, weights_only=1)
import torch; torch.load(f, None, **options)
import torch as t; t.load(f)
import torch.nn; torch.load(f)
import torch.serialization as s; s.load(f)
import torch; t = torch; t.load(f)
import torch; read = torch.load; read(f, weights_only=True)
import torch; list(map(torch.load, files))
import torch; getattr(torch, "load")(f)
import torch; torch.serialization.load(f)
import torch; torch.jit.load(f)
import torch; torch.hub.load(f, "model")
import torch; torch.classes.load_library(f)
import torch; torch.ops.load_library(f)
from torch import load; load(f)
from torch import load as read; read(f)
from torch.jit import load; load(f)
from torch import hub; hub.load_state_dict_from_url(f)
from torch.utils.cpp_extension import load_inline; load_inline(f)
def f(): from torch import load; return load(x)
load(f, weights_only=False)
import numpy as np; np.load(f, allow_pickle=True)
import numpy as np; np.load(f, allow_pickle=trusted)
import numpy as np; np.load(f, None, True)
import numpy as np; np.load(f, *options)
import numpy as np; np.load(f, **options)
from numpy import load; load(f, None, allowed)
read_array(f, allow_pickle=True)
import pandas as pd; pd.read_pickle(f)
import pandas as pd; pd.read_hdf(f)
from pandas import read_hdf as read; read(f)
import pandas as pd; pd.HDFStore(f)
import keras; keras.models.load_model(f)
import h5py; h5py.File(f)
import ctypes; ctypes.CDLL(f)
from ctypes import cdll; cdll.LoadLibrary(f)
load_dataset(x, trust_remote_code=True)
import subprocess; subprocess.run(x, shell=True)
from subprocess import run as r; r(x, shell=wanted)
import subprocess; subprocess.getoutput(x)
import os; os.system(x)
import os as o; o.popen(x)
from os import system; system(x)
eval(x)
exec(x)
compile(x, "", "exec")
__import__(x)
list(map(eval, x))
run = exec; run(x)
import builtins; builtins.exec(x)
from builtins import eval as e; e(x)
import builtins; getattr(builtins, "exec")(x)
import importlib.util; importlib.util.spec_from_file_location("x", x)
spec.loader.exec_module(module)
""".strip().splitlines()
FINE = """
import torch; torch.load(f, weights_only=True)
import torch as t; t.load(f, weights_only=True)
from torch import load; load(f, weights_only=True)
import numpy as np; np.load(f)
import numpy as np; np.load(f, "r", False)
import numpy as np; np.load(f, allow_pickle=False)
from safetensors.torch import load, load_file; load(f); load_file(f)
import json, orjson, tomllib; json.load(f); orjson.loads(f); tomllib.loads(f)
from spectrum import load_results; load_results(f)
from . import load_weights; load_weights(f)
import pandas as pd; pd.read_csv(f)
import torch, re; torch.compile(model); re.compile("x"); model.eval()
class RunConfig: compile: bool = False
RunConfig(compile=True)
module.load_state_dict(state); state.load(tensors); path.read_text()
import subprocess; subprocess.run(["git", "status"], shell=False)
from importlib import import_module; import_module(name)
""".strip().splitlines()
EVIL = [
    "../x",
    "a/../../b",
    "/etc/passwd",
    "a\nb",
    "a\0b",
    "x" * 300,
    "\u202egnp.exe",
    "C:\\x",
    "~",
    ".",
    "..",
    "<img>",
    "'",
]


class Names:
    """What the names of a program stand for, in full: `t.load` after `import torch as t` is torch.load."""

    def __init__(self, tree: ast.Module) -> None:
        self.full = {name: f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "getattr")}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.full[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                module = "spectrum" if node.level else node.module
                self.full |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign) and (known := self.of(node.value)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.full |= {target.id: known for target in targets if isinstance(target, ast.Name)}

    def of(self, node: ast.AST | None) -> str | None:
        """The full name of an expression; None where it is not of something that was imported or built in."""
        name = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            name = self.full.get(node.id)
        elif isinstance(node, ast.Attribute) and (owner := self.of(node.value)):
            name = f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call) and self.of(node.func) in ("builtins.getattr", "importlib.import_module"):
            words = [arg.value if isinstance(arg, ast.Constant) else self.of(arg) for arg in node.args[:2]]
            name = ".".join(map(str, words)) if words and all(words) else None
        return name and name.replace("torch.serialization.load", "torch.load")


def faults(source: str, place: str = "") -> list[str]:
    """Ways in which a program may run what it reads."""
    tree = ast.parse(source)
    names, nodes = Names(tree), list(ast.walk(tree))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    judged = {called for called in calls if names.of(called) in ("torch.load", "numpy.load")}  # by their arguments
    found = []
    for node in nodes:
        name = names.of(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            owner = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            imported = [f"{owner}{alias.name}" for alias in node.names]
            found += [f"imports {one}" for one in imported if MODULES & {*one.split(".")} or one.endswith("*")]
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            found.append(f"has {node.attr}")
        elif name is not None and (place, name) not in PLACES and not (is_harmless(name) or node in judged):
            found.append(f"has {name}")
        if isinstance(node, ast.Call):
            found += faults_of_call(node, names.of(node.func))
    return found


def is_harmless(name: str) -> bool:
    if name.startswith("spectrum.") or name in HARMLESS:
        return True
    return name not in RUN and not MODULES & {*name.split(".")} and not LOADS.fullmatch(name.split(".")[-1])


def faults_of_call(call: ast.Call, name: str | None) -> list[str]:
    said = {word.arg: word.value for word in call.keywords}
    if name == "torch.load":
        said.setdefault("weights_only", call)
    if name == "numpy.load":
        spread = [argument for argument in call.args if isinstance(argument, ast.Starred)]
        third = [*call.args[2:3], *spread, *(word.value for word in call.keywords if word.arg is None)]
        said |= {"allow_pickle": third[-1]} if third else {}
    values = {word: getattr(said[word], "value", None) for word in TRUST.keys() & said.keys()}
    return [f"{word} is not {TRUST[word]}" for word, value in values.items() if value is not TRUST[word]]


@pytest.mark.medium
@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_file_is_ever_executed(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize("source", CAUGHT)
def test_what_may_run_a_file_would_be_noticed(source: str) -> None:
    assert faults(source) != []


@pytest.mark.parametrize("source", FINE)
def test_what_runs_no_file_passes(source: str) -> None:
    assert faults(source) == []


@pytest.mark.parametrize(("place", "name"), sorted(PLACES))
def test_what_one_place_may_have_is_there_and_noticed_elsewhere(place: str, name: str) -> None:
    assert f"has {name}" in faults((ROOT / place).read_text(encoding="utf-8"))


@pytest.mark.parametrize("evil", EVIL)
def test_an_evil_name_is_a_label_and_no_path(evil: str) -> None:
    check_names(evil)


@given(st.text(min_size=1, max_size=400))
@settings(max_examples=200)
def test_any_name_is_a_label_and_no_path(text: str) -> None:
    check_names(text)


def check_names(text: str) -> None:
    run = RunConfig(dataset=text)
    study = parse_study({"axes": {"seed": [0]}}, "tiny").with_base(dataset=text)
    saving = Saving(Path("results") / study.name)
    for path in (saving.folder, saving.checkpoints_of(run.id), saving.log_of(run.id)):
        assert path.parts[:1] == ("results",)
        assert all(re.fullmatch(r"[A-Za-z0-9_.\-]{1,120}", part) and part not in (".", "..") for part in path.parts)
    with suppress(SpecError):
        called = parse_study({"axes": {"seed": [0]}}, text)
        for name in (called.name, called.with_base(dataset=text).name):
            assert Path("results", name).parts == ("results", name)
            assert name not in (".", "..")
            assert not re.search(r"[\0-\x1f]", name)
            assert len(name.encode()) <= 255


@pytest.mark.parametrize(
    "name", ["../x", "a/../../b", "/etc/x", "x/", "a\0b", "a\nb", "x" * 300, "é" * 140, "\ud800", ".", "..", ""]
)
def test_a_study_whose_name_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="name: "):
        Study(name=name)
    with pytest.raises(SpecError, match="name: "):
        parse_study({"axes": {"seed": [0]}}, name)


@pytest.mark.parametrize("evil", ["../../../precious", "..", ".", "", "{folder}/precious", "*", "a\0b"])
def test_the_id_of_a_row_is_never_a_path(evil: str, tmp_path: Path) -> None:
    """A folder from elsewhere, whose rows and plan name what lies beside it."""
    folder = tmp_path / "results" / "theirs"
    kept = [tmp_path / "precious" / "file", folder / "checkpoints" / "0123" / "file"]
    for file in kept:
        file.parent.mkdir(parents=True)
        file.touch()
    row = {"id": evil.format(folder=tmp_path), "status": "done"}
    (folder / "results.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "plan.json").write_text(json.dumps({"hash": row["id"], "points": [{"id": row["id"]}]}))
    study = Study(name="theirs")
    with Store(folder) as store:
        backends, work = StudyBackends("off", [], [], {}), Work(workers=1, device="cpu", folder=folder)
        told = Callbacks([], print)
        run = _Run(store, study, [], [], backends, LocalEngine(), work, None, told, stop_on_failure=False)
        run.freeze([])
        run.train([])
    repair(folder, look_at(folder))
    assert all(file.exists() for file in kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "results"]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["theirs"]

"""What comes from files and from people is data: never code, never a path, never markup."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum.study.engines import Saving
from spectrum.study.point import Point
from spectrum.study.spec import parse_study

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "spectrum").rglob("*.py"), *(ROOT / "results").glob("*.py")])
MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml")
CALLS = ("eval", "exec", "compile", "__import__")
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


def faults(source: str) -> list[str]:
    """Ways in which a program may run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"imports {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in CALLS:
                found.append(f"calls {called}")
            if called == "torch.load" and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if keywords.get("weights_only") == "False":
                found.append("weights_only=False")
            if keywords.get("allow_pickle") == "True" or keywords.get("trust_remote_code") == "True":
                found.append("trusts what it loads")
            if called.endswith("read_pickle") or keywords.get("shell") == "True":
                found.append(f"calls {called}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_file_is_ever_executed(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pd.read_pickle(f)",
        "load_dataset(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
    ],
)
def test_such_a_file_would_be_noticed(source: str) -> None:
    assert len(faults(source)) >= 1
    assert faults("torch.load(f, weights_only=True); np.load(f); model.eval()") == []


@pytest.mark.parametrize("evil", EVIL)
def test_an_evil_name_is_a_label_and_no_path(evil: str) -> None:
    check_names(evil)


@given(st.text(min_size=1, max_size=400))
@settings(max_examples=200)
def test_any_name_is_a_label_and_no_path(text: str) -> None:
    check_names(text)


def check_names(text: str) -> None:
    point = Point(dataset=text)
    study = parse_study({"axes": {"seed": [0]}}, "tiny").with_base(dataset=text)
    saving = Saving(Path("results") / study.name)
    for path in (saving.folder, saving.checkpoints_of(point.id), saving.log_of(point.id)):
        assert path.parts[:1] == ("results",)
        assert all(re.fullmatch(r"[A-Za-z0-9_.\-]{1,120}", part) and part not in (".", "..") for part in path.parts)

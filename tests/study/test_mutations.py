"""The lines that keep a study safe are tested: if any of them is changed, some test fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTATIONS = {
    "rows are not synced": (
        "study/store.py",
        "                os.fsync(descriptor)\n",
        "",
        "study/test_store.py -k is_synced",
    ),
    "whole files are not synced": (
        "_files.py",
        "            os.fsync(file.fileno())\n        temporary",
        "        temporary",
        "training/test_checkpoint.py -k killed_while_writing",
    ),
    "their folder is not synced": (
        "_files.py",
        "            os.fsync(folder)\n",
        "            pass\n",
        "training/test_checkpoint.py -k killed_while_writing",
    ),
    "files are written in place": (
        "_files.py",
        '    temporary = target.with_name(f".{stem}.{os.getpid()}{secrets.randbelow(10**6):06}")\n',
        "    temporary = target\n",
        "training/test_checkpoint.py -k killed_while_writing",
    ),
    "the plan is away while another is frozen": (
        "study/store.py",
        "write_whole(self.folder / _kept_as(old), path.read_bytes())",
        "path.replace(self.folder / _kept_as(old))",
        "study/test_store.py -k killed_while_freezing",
    ),
    "what was half written stays": (
        "study/store.py",
        "                self._remove_half_written()\n",
        "                pass\n",
        "study/test_store.py -k killed_while_freezing",
    ),
    "there is no lock": (
        "study/store.py",
        "fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "study/test_store.py -k second_process",
    ),
    "the hash is not checked": (
        "training/checkpoint_files.py",
        "if hashlib.sha256(data).hexdigest() != self.sha256:",
        "if False:",
        "training/test_checkpoint.py -k no_cut_and_no_flip",
    ),
    "half a row stays": (
        "study/store.py",
        "            os.ftruncate(descriptor, before)\n",
        "            pass\n",
        "study/test_store.py -k full_disk",
    ),
    "generators are not restored": (
        "training/checkpoint.py",
        '        _set_generators(_below("generator", tensors))\n',
        "",
        "training/test_checkpoint.py -k every_generator",
    ),
    "buffers are not averaged back": (
        "training/checkpoint.py",
        'if average is None else {"average": average}',
        "if True else {}",
        "training/test_checkpoint.py -k averaged",
    ),
    "limits go by the time of day": (
        "engines/local.py",
        "now = time.monotonic()",
        "now = time.time()",
        "engines/test_limits.py -k does_not_jump",
    ),
    "epochs begin anew": (
        "training/loop.py",
        "first=at.step_in_epoch",
        "first=0",
        "training/test_checkpoint.py -k pieces",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("spectrum", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    file, _, chosen = tests.partition(" -k ")
    said = [sys.executable, "-m", "pytest", "-x", f"tests/{file}", "-k", chosen]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(said, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("tests", dict.fromkeys(tests for *_, tests in MUTATIONS.values()))
def test_without_a_change_all_pass(copy: Path, tests: str) -> None:
    unchanged = run(copy, tests)
    assert unchanged.returncode == 0, unchanged.stdout + unchanged.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("file", "old", "new", "tests"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_change_for_the_worse_is_noticed(copy: Path, file: str, old: str, new: str, tests: str) -> None:
    path = copy / "spectrum" / file
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1, "the line to change is there"
    path.write_text(source.replace(old, new), encoding="utf-8")
    try:
        changed = run(copy, tests)
    finally:
        path.write_text(source, encoding="utf-8")
    assert changed.returncode == 1, changed.stdout + changed.stderr
    assert "failed" in changed.stdout

"""One run in a process: no fault of its log or its checkpoints loses its result."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from spectrum import register_model
from spectrum.design.run import RunConfig
from spectrum.engines.interface import Work
from spectrum.engines.saving import Saving
from spectrum.engines.worker import train_one
from tests.faulty_models import Linear
from tests.runs import ROOT

POINT = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 2}


def trained(name, during, saving=None, *, says=True):
    """A run that does something once while it trains, with a word printed before and after."""
    left = [during]

    def act():
        if left:
            if says:
                sys.stdout.write("a word before\n")
                os.write(1, b"a word of C\n")
            left.pop()()
            if says:
                sys.stdout.write("a word after\n")

    register_model(name, lambda arch: Linear(arch, act))
    where = {} if saving is None else {"folder": saving.folder, "checkpoint_minutes": saving.minutes}
    return train_one(RunConfig(**POINT, model=name), Work(device="cpu", **where), threads=1)


def log_in(folder):
    (log,) = (folder / "logs").iterdir()
    return log


@pytest.fixture(scope="module")
def undisturbed():
    return trained("undisturbed", lambda: None)["weights_sha256"]


@contextmanager
def changeable(*paths):
    """Whatever chattr was told is taken back."""
    try:
        yield
    finally:
        subprocess.run(["chattr", "-f", "-i", "-a", *map(str, paths)], capture_output=True)


def fix(path, flag="+i"):
    if shutil.which("chattr") is None or subprocess.run(["chattr", flag, path], capture_output=True).returncode:
        pytest.skip("no immutable files here")


@pytest.mark.parametrize("where", ["logs", "checkpoints"])
@pytest.mark.parametrize("fault", ["removed", "a file instead", "a link to nowhere", "may not be changed", "all gone"])
def test_what_happens_to_folders_during_a_run_loses_no_result(tmp_path, where, fault, undisturbed):
    saving = Saving(tmp_path / "study", 0)
    folder = saving.folder / where

    def act():
        folder.mkdir(parents=True, exist_ok=True)
        if fault == "may not be changed":
            for path in [*folder.rglob("*"), folder]:
                fix(path)
            return
        shutil.rmtree(saving.folder if fault == "all gone" else folder)
        if fault == "a file instead":
            folder.write_text("in the way")
        elif fault == "a link to nowhere":
            folder.symlink_to("/nowhere/at/all")

    with changeable("-R", tmp_path):
        result = trained(f"{where} {fault}", act, saving, says=where == "logs")
    assert result["weights_sha256"] == undisturbed
    if where == "checkpoints" and fault not in ("removed", "all gone"):
        assert result["provenance"]["troubles"]


@pytest.mark.parametrize("flag", ["+i", "+a"], ids=["immutable", "append only"])
def test_an_empty_log_that_cannot_be_removed_loses_no_result(tmp_path, undisturbed, flag):
    saving = Saving(tmp_path, 0)
    with changeable("-R", tmp_path):
        result = trained(f"a log that stays {flag}", lambda: fix(log_in(tmp_path), flag), saving, says=False)
    assert result["weights_sha256"] == undisturbed
    assert log_in(tmp_path).read_bytes() == b""


def test_a_log_folder_that_cannot_be_made_is_no_reason_not_to_train(tmp_path, undisturbed):
    (tmp_path / "logs").write_text("in the way")
    assert trained("no logs", lambda: None, Saving(tmp_path))["weights_sha256"] == undisturbed


@pytest.mark.medium
def test_a_disk_that_is_full_for_the_log_stops_no_print(tmp_path, undisturbed):
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.engines.test_worker import Saving, trained
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def act():
    print("a word")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    print("x" * 100_000)
    sys.stderr.write("y" * 100_000)
result = trained("full", act, Saving(Path(sys.argv[1]), 1e9), says=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(result["weights_sha256"])
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [undisturbed]
    assert log_in(tmp_path).read_text() == "a word\n"


@pytest.mark.medium
def test_a_log_has_what_python_and_c_print_and_nothing_of_before_or_after(tmp_path):
    code = f"""
import logging, os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.engines.test_worker import Saving, trained
def act():
    logging.getLogger("model").addHandler(logging.StreamHandler())  # holds on to standard error as it is now
    logging.getLogger("model").warning("a word of a logger")
print("of the driver", end="")
trained("of_a_logger", act, Saving(Path(sys.argv[1], "first")))
os.write(1, b", still of the driver")
logging.getLogger("model").warning("later")
again = Saving(Path(sys.argv[1], "second"))
trained("of_it_again", lambda: logging.getLogger("model").warning("a word of an older logger"), again)
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "of the driver, still of the driver"
    assert done.stderr == "later\n"
    assert log_in(tmp_path / "first").read_text() == "a word before\na word of C\na word of a logger\na word after\n"
    assert log_in(tmp_path / "second").read_text() == (
        "a word before\na word of C\na word of an older logger\na word after\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_standard_streams_that_are_closed_are_no_reason_not_to_train(tmp_path, closed):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.engines.test_worker import Saving, trained
result = trained("closed", lambda: None, Saving(Path(sys.argv[1])), says=False)
Path(sys.argv[1], "done").write_text(result["weights_sha256"])
"""
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(words, cwd=ROOT, check=True)
    assert (tmp_path / "done").exists()


def test_how_a_run_fails_is_in_its_log(tmp_path):
    saving = Saving(tmp_path)

    def fail():
        raise ValueError("a reason \ud800")  # which is no UTF-8

    with pytest.raises(ValueError, match="a reason"):
        trained("fails in its log", fail, saving)
    assert "ValueError: a reason \\ud800" in log_in(tmp_path).read_text()

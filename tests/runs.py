"""Small studies, their runs in separate processes, and the files that these leave: for the tests of this folder."""

import subprocess
import sys
import time
from pathlib import Path

from spectrum.design.study_file import parse_study
from spectrum.study.store import read_rows
from tests import faulty_models

TINY = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 2, "width": 0.25}
ROOT = Path(__file__).parents[1]
IMPORTS = (faulty_models.__name__,)


def tiny(name="tiny", **said):
    base = TINY | said.pop("base", {})
    return parse_study({"base": base, "axes": {"segments": [1, "per_channel"]}} | said, name)


def slow_study(folder, model="slow", epochs=100):
    """Writes slow.toml: four runs, each a step of a twentieth of a second; its path."""
    path = folder / "slow.toml"
    path.write_text(f'[base]\nmodel = "{model}"\ndataset = "digits"\nepochs = {epochs}\n[axes]\nseed = [0, 1, 2, 3]\n')
    return path


def command(folder, *words):
    """The command `spectrum`, started in a folder, in a process group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [sys.executable, "-m", "spectrum", *map(str, words)]
    return subprocess.Popen(words, cwd=folder, text=True, start_new_session=True, **pipes)


def start_slow_run(folder, *more, model="slow", epochs=100):
    """A run of slow runs in a process of its own, started; returns when both workers train."""
    path = slow_study(folder, model, epochs)
    run = command(folder, "run", path.name, "--workers", 2, "--import", IMPORTS[0], *more)
    wait_until(lambda: run.poll() is not None or len(list(folder.glob("worker-*"))) == 2, seconds=120)
    assert run.poll() is None, run.communicate()
    return run, [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_gone(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid):
    """All processes that one has started, by any of its threads."""
    return [
        int(child) for listed in Path(f"/proc/{pid}/task").glob("*/children") for child in listed.read_text().split()
    ]


def hashes_of(folder):
    return {row["seed"]: row["weights_sha256"] for row in read_rows(folder)}

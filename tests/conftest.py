import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests run side by side
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands that tests interrupt inherit it
settings.register_profile("spectrum", deadline=None, print_blob=True)  # no timed tests: machines are busy
settings.load_profile("spectrum")


@pytest.fixture(scope="session")
def keras():
    """Keras on torch; tests with it are skipped where it is not installed."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


@pytest.fixture
def study_folder(tmp_path, monkeypatch):
    """A current folder of its own, in which worker processes find the tests' models."""
    root = str(Path(__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRUM_TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return tmp_path

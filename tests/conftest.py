import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests run side by side
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which `import torch` does not do
os.environ.setdefault("SPECTRUM_TUNE", "off")  # what is measured depends on the machine, and tests do not
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
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # it would limit the threads of workers
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return tmp_path


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty $SPECTRUM_DATA; the working directory and all caches lie beside it, and the hub is offline."""
    import datasets
    from huggingface_hub import constants

    from spectrum._cache import cache_folder
    from spectrum.data.load import load_images

    kernels = cache_folder() / "kernels"
    root = tmp_path / "data"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECTRUM_DATA", str(root))
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    kernels.mkdir(parents=True, exist_ok=True)
    (decoded / "kernels").symlink_to(kernels)  # lest every process of every test compile them
    monkeypatch.setenv("SPECTRUM_CACHE", str(decoded))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    load_images.cache_clear()
    yield root
    load_images.cache_clear()

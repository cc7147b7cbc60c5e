"""Folders of one's own for data, caches and working directory, so that no test sees another's files or the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty $SPECTRUM_DATA; the working directory and all caches lie beside it, and the hub is offline."""
    import datasets
    from huggingface_hub import constants

    from spectrum._cache import cache_folder
    from spectrum.study.load import load_images

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

"""The paper's training set-up from a folder of photographs to rows, decoded as it goes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectrum import cli
from spectrum.data.images import images_of
from spectrum.data.load import load_images
from spectrum.data.pixels import Encoded
from spectrum.design.run import RunConfig
from spectrum.engines.cores import available_cores
from spectrum.training.loop import train

STUDY = Path(__file__).parents[2] / "experiments" / "imagenet_xception.toml"


def write_photographs(folder: Path) -> None:
    """As ImageNet is unpacked: train/ and val/, a folder a class, JPEG files of many sizes, a few of them grey."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for number in range(count):
            height, width = generator.integers(60, 160, 2)
            tone = [[200, 80, 80], [60, 60, 180]][number % 2]
            pixels = np.clip(generator.normal(tone, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            file = folder / split / ["n01440764", "n01443537"][number % 2] / f"{number:08}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("RGB" if number % 10 else "L").save(file, quality=90)


@pytest.mark.slow
def test_the_papers_set_up_runs_from_a_folder_to_rows(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(Path("photos"))
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", "0")
    smaller = ["--image-size", "71", "--width", "0.1", "--epochs", "2", "--batch-size", "8"]
    said = ["run", str(STUDY), "--dataset", "./photos", *smaller, "--workers", "2", "--out", "out"]
    assert cli.main([*said, "--validation-fraction", "0.1"]) == 0

    rows = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done"] * 6
    assert {row["test_images"] for row in rows} == {10}
    macs = {row["segments"]: row["macs"] for row in rows}
    assert all(abs(cost / macs["per_channel"] - 1) < 0.1 for cost in macs.values())

    (asked,) = [row for row in rows if row["segments"] == "per_channel" and row["seed"] == 1]
    run = RunConfig(**{name: asked[name] for name in RunConfig.model_fields if name in asked})
    assert (run.optimizer, run.lr, run.decay, run.dropout, run.ema) == ("sgd", 0.045, 0.94, 0.5, 0.9999)
    images = images_of(run)
    assert isinstance(images.train_x, Encoded)
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", "4")
    load_images.cache_clear()
    in_memory = images_of(run)
    assert isinstance(in_memory.train_x, torch.Tensor)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, available_cores() // 2))  # as each of the two workers had
    try:
        assert train(run, in_memory).weights_sha256 == asked["weights_sha256"]
    finally:
        torch.set_num_threads(threads)

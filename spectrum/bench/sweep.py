"""Benchmark a whole study: `spectrum run` against a script that trains its runs one after another in the default loop.

Both train the same runs on the same images with the same batch size and schedule, and test them at the end. The script
uses two threads, the study two processes of one thread each. The script's time starts when its images are in memory;
the study's time includes everything, also the start of its processes. On CUDA the study trains one run at a time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spectrum.bench.default_loop import DefaultLoop
from spectrum.bench.train import CURVE, along_the_curve
from spectrum.data.load import load_images
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study
from spectrum.study.driver import run_study
from spectrum.study.store import latest_rows

SCRIPT, OURS = "default loop", "spectrum run"


def measure(
    curve: Sequence[dict[str, Any]] = CURVE,
    *,
    dataset: str = "cifar10",
    train_images: int = 10_000,
    epochs: int = 2,
    seeds: int = 2,
    cores: int = 2,
    device: str = "cpu",
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per configuration and implementation: seconds per run, and mean test accuracy over the seeds.

    For `spectrum run`, the seconds of a run are its training seconds divided by the number of runs trained at once;
    `wall_seconds_a_point` is the total time divided by the number of runs. `device`: "cpu" or "cuda".
    """
    at_once = cores if device == "cpu" else 1
    base = RunConfig(dataset=dataset, train_images=train_images, epochs=epochs, flip=True, shift=4, lr=0.1)
    study = Study(name="bench", base=base, axes={"seed": tuple(range(seeds))}, cases=tuple(curve))
    runs = study.runs()
    load_images(dataset)  # decoded once, for both
    rows: list[dict[str, Any]] = []

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run_study(study, Path(folder) / "bench", workers=at_once, device=device)
        wall = time.perf_counter() - started
        trained = latest_rows(Path(folder) / "bench")
        for row in (trained[run.id] for run in runs):
            seconds, accuracy = row["train_seconds"] / at_once, row["test_accuracy"]
            rows.append(_row(row, OURS, seconds, accuracy, wall / len(runs)))
        on_row(f"{OURS}: {len(runs)} runs in {wall:.0f} s")

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        answers = pool.submit(_script, [run.model_dump() for run in runs], dataset, cores, device).result()
    wall = sum(answer["seconds"] for answer in answers)
    for run, answer in zip(runs, answers, strict=True):
        rows.append(_row(run.model_dump(), SCRIPT, answer["seconds"], answer["test_accuracy"], wall / len(runs)))
    on_row(f"{SCRIPT}: {len(runs)} runs in {wall:.0f} s")
    table = pd.DataFrame(rows)
    by = ["segments", "segment_width", "way", "wall_seconds_a_point"]
    return table.groupby(by, dropna=False, sort=False)[["seconds", "test_accuracy"]].mean().reset_index()


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Runs per hour, and the speedup over the script, for all runs and for each configuration."""
    wall = table.groupby("way").wall_seconds_a_point.first()
    seconds = along_the_curve(table, "seconds")
    accuracy = table.groupby("way").test_accuracy.mean()
    return {
        "runs per hour, spectrum run": float(3600 / wall[OURS]),
        "runs per hour, default loop": float(3600 / wall[SCRIPT]),
        "speedup over the default loop, whole curve": float(wall[SCRIPT] / wall[OURS]),
        **{f"{at}: speedup over the default loop": float(row[SCRIPT] / row[OURS]) for at, row in seconds.iterrows()},
        "mean test accuracy, spectrum run": float(accuracy[OURS]),
        "mean test accuracy, default loop": float(accuracy[SCRIPT]),
    }


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: one row per configuration, with seconds per run and mean test accuracy of both."""
    seconds, accuracy = along_the_curve(table, "seconds"), 100 * along_the_curve(table, "test_accuracy")
    lines = [f"| segments | {SCRIPT}, s | {OURS}, s | speedup | {SCRIPT}, % | {OURS}, % |", "|" + "---|" * 6]
    for (where, row), (_, right) in zip(seconds.iterrows(), accuracy.iterrows(), strict=True):
        lines.append(
            f"| {where} | {row[SCRIPT]:.1f} | {row[OURS]:.1f} | {row[SCRIPT] / row[OURS]:.2f} "
            f"| {right[SCRIPT]:.1f} | {right[OURS]:.1f} |"
        )
    return "\n".join(lines)


def _row(run: dict[str, Any], way: str, seconds: float, accuracy: float, wall: float) -> dict[str, Any]:
    return {
        "segments": run["segments"],
        "segment_width": run["segment_width"],
        "way": way,
        "seconds": seconds,
        "test_accuracy": accuracy,
        "wall_seconds_a_point": wall,
    }


def _script(runs: list[dict[str, Any]], dataset: str, threads: int, device: str) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    images = load_images(dataset)
    return [DefaultLoop(RunConfig(**run), images, device).train() for run in runs]

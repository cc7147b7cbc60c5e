"""Benchmark Xception at 299 pixels, inference and a training step, against Keras on torch and plain `torch.nn`.

    ours                  build_model("xception"), as `spectrum run` trains it
    torch.nn              PlainXception in torch's default layout
    torch.nn, NHWC        the same in channels_last
    Keras on torch        keras.applications.Xception(weights=None), by predict_on_batch and train_on_batch

All take turns in one process, which keeps freed memory for all (`keep_freed_memory`). Inference runs in evaluation mode
without gradients, from pixels scaled to ±1 to logits (to probabilities in Keras, whose network ends with a softmax). A
training step is forward, cross-entropy, backward and SGD with momentum, always on the same images and labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from spectrum.bench.plain_xception import PlainXception
from spectrum.bench.rounds import alternate, clock_of, spread
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.training.optimisation import make_optimizer
from spectrum.training.step import keep_freed_memory, training_step

OURS, KERAS = "ours", "Keras on torch"
PLAIN = {"torch.nn": torch.contiguous_format, "torch.nn, NHWC": torch.channels_last}
WAYS = (OURS, *PLAIN, KERAS)
IN_WORDS = {
    OURS: "this package",
    "torch.nn": "torch.nn, default layout",
    "torch.nn, NHWC": "torch.nn, channels_last",
}
TASKS = ("inference", "training step")
CLASSES = 1000

Call = Callable[[], Any]


def measure(
    ways: Sequence[str] = WAYS,
    *,
    threads: int = 2,
    device: str = "cpu",
    image_size: int = 299,
    batch_size: int = 8,
    rounds: int = 9,
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per task and implementation: median and quartiles in milliseconds per batch.

    Args:
        ways: implementations, from WAYS; Keras is left out with a message if it is not installed.
        threads: threads that torch may use.
        device: "cpu" or "cuda"; Keras uses a card wherever torch sees one.
        image_size: side of the images in pixels.
        batch_size: images per batch.
        rounds: number of rounds; in each, every implementation does every task once.
        on_row: called with one line of text for each row.
    """
    if KERAS in ways and find_spec("keras") is None:
        on_row("Keras is not installed, so it is left out; to include it: pip install keras")
        ways = [way for way in ways if way != KERAS]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        keep_freed_memory()
        torch.manual_seed(0)
        x_nchw, y_n = torch.rand(batch_size, 3, image_size, image_size) * 2 - 1, torch.randint(CLASSES, (batch_size,))
        x_nchw, y_n = x_nchw.to(device), y_n.to(device)
        calls = {way: _calls(way, x_nchw, y_n) for way in ways}
        clock = clock_of(device)
        rows = []
        for task in TASKS:
            times = alternate({way: calls[way][task] for way in ways}, least=rounds, most=rounds, clock=clock)
            for way in ways:
                row = {"task": task, "way": way, **spread(times[way])}
                rows.append(row | {"images_per_second": batch_size / pd.Series(times[way]).median()})
                on_row(f"{task:13} · {way:14} {row['ms']:8.0f} ms")
    finally:
        torch.set_num_threads(before)
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Speedup over each other implementation, for each task."""
    found: dict[str, Any] = {}
    for task, part in table.groupby("task", sort=False):
        ms = part.set_index("way").ms
        found |= {f"{task}: speedup vs {way}": float(ms[way] / ms[OURS]) for way in ms.index if way != OURS}
    return found


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    lines = [
        "| task | implementation | median ms | quartiles | images per second | speedup of this package |",
        "|" + "---|" * 6,
    ]
    for _, part in table.groupby("task", sort=False):
        ours = part.set_index("way").ms[OURS]
        for row in part.itertuples():
            way = str(row.way)
            quartiles = f"{row.ms_q1:.0f} to {row.ms_q3:.0f}"
            times = "" if row.way == OURS else f"{row.ms / ours:.2f}"
            lines.append(
                f"| {row.task} | {IN_WORDS.get(way, way)} | {row.ms:.0f} | {quartiles} "
                f"| {row.images_per_second:.2f} | {times} |"
            )
    return "\n".join(lines)


def _calls(way: str, x_nchw: Tensor, y_n: Tensor) -> dict[str, Call]:
    if way == KERAS:
        return _calls_of_keras(x_nchw, y_n)
    layout = torch.channels_last if way == OURS else PLAIN[way]
    network = build_model("xception", image_size=x_nchw.shape[2], num_classes=CLASSES) if way == OURS else None
    model = (network or PlainXception(CLASSES)).to(x_nchw.device, memory_format=layout)  # type: ignore[call-overload]
    return calls_of_torch(model, x_nchw.contiguous(memory_format=layout), y_n)


def calls_of_torch(model: nn.Module, x_nchw: Tensor, y_n: Tensor) -> dict[str, Call]:
    """The timed calls of a torch network: inference and a training step, both as in `spectrum run`."""
    run = RunConfig(model="xception", recipe="imagenet_xception", image_size=x_nchw.shape[2])
    optimizer = make_optimizer(run, model)

    def step() -> float:
        model.train()
        return training_step(run, model, optimizer, x_nchw, y_n).item()

    @torch.inference_mode()
    def infer() -> Tensor:
        model.eval()
        logits_nk: Tensor = model(x_nchw)
        return logits_nk

    return {"inference": infer, "training step": step}


def _calls_of_keras(x_nchw: Tensor, y_n: Tensor) -> dict[str, Call]:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    if keras.backend.backend() != "torch":
        raise ValueError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=torch")
    model = keras.applications.Xception(weights=None, input_shape=(*x_nchw.shape[2:], 3), classes=CLASSES)
    optimizer = keras.optimizers.SGD(learning_rate=0.045, momentum=0.9)
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    x_nhwc, y = x_nchw.permute(0, 2, 3, 1).contiguous().cpu().numpy(), y_n.cpu().numpy()
    return {
        "inference": lambda: model.predict_on_batch(x_nhwc),
        "training step": lambda: model.train_on_batch(x_nhwc, y),
    }

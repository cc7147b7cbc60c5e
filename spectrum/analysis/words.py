"""What sentences, tables and figures call a configuration: its split, its settings and its data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from spectrum.analysis.table import SPLIT, budget_name
from spectrum.conv.segments import PER_CHANNEL
from spectrum.design.plan import Plan, PlannedChoice
from spectrum.models.position import END, Position

DATA_NAMES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST", "gaussian": "Gaussian images"}
ACTIVATIONS = {"relu": "ReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU", "none": "no activation"}
SWITCHES = {"residual": "residual connections", "norm": "BN"}
NAMES = {"lr": "learning rate", "match": "budget"}  # of settings, where their columns' names are not plain words


def data_name(dataset: str) -> str:
    """Name a data set as papers do, such as "CIFAR-10"; a folder by its last part."""
    if dataset.startswith((".", "/", "~")):
        return PurePath(dataset).name or dataset
    return DATA_NAMES.get(dataset, dataset)


def setting_name(name: str) -> str:
    """Name a setting, such as "learning rate"."""
    return NAMES.get(name, name.replace("_", " "))


def setting_words(name: str, value: Any) -> str:
    """Say a setting and its value, such as "ReLU", "no shuffle" or "learning rate 0.1"."""
    if isinstance(value, bool | np.bool_):
        switch = SWITCHES.get(name, setting_name(name))
        return switch if value else f"no {switch}"
    if isinstance(value, tuple | list):
        sizes = ":".join(map(str, value))
        return f"segments sized {sizes}" if name == "segment_shares" else f"{setting_name(name)} {sizes}"
    if name in SAID and is_set(value):
        return SAID[name](_whole(value))
    return f"{setting_name(name)} {_text(value)}"


def is_set(value: Any) -> bool:
    """Whether a setting has a value: neither None nor pandas' NaN."""
    return value is not None and value is not pd.NA and bool(value == value)


def setting_label(names: Sequence[str], values: Sequence[Any]) -> str:
    """Name a curve by those settings that are set; by all of them where none is."""
    pairs = list(zip(names, values, strict=True))
    have = [(name, value) for name, value in pairs if is_set(value)]
    return ", ".join(setting_words(name, value) for name, value in have or pairs)


def split_words(row: Mapping[str, Any] | pd.Series) -> str:
    """Say how a row, or a run of a plan, splits its convolutions: "4 segments", "per-channel" or "plain 3×3"."""
    return Position.of(row).words


def configuration_words(row: Mapping[str, Any] | pd.Series, names: Iterable[str]) -> str:
    """Name a configuration by its split and by those of its settings that are set.

    Args:
        row: of a table, or the options of a run of a plan.
        names: settings that tell the configurations apart.

    >>> configuration_words({"segments": 4, "model": "vgg", "depth": None}, ["model", "depth"])
    '4 segments, vgg'
    """
    return ", ".join([split_words(row), *(setting_words(name, row[name]) for name in names if is_set(row[name]))])


def edge_sides(plan: Plan, choice: PlannedChoice) -> list[str]:
    """At which edges of its grid the sweep chose, such as "largest learning rate"."""
    grid = plan.tuning.grid if plan.tuning is not None else {}
    sides = []
    for name in choice.edges:
        value = choice.values.get(name)
        side = "smallest" if name in grid and value == min(grid[name]) else "largest"
        sides.append(f"{side} {setting_name(name)}")
    return sides


def side_words(side: Mapping[str, Any]) -> str:
    """Say what one side of a comparison sets, such as "per-channel, ReLU"."""
    split = [split_words(side)] if set(side) & set(SPLIT) else []
    return ", ".join([*split, *(setting_words(name, value) for name, value in side.items() if name not in SPLIT)])


def _whole(value: Any) -> Any:
    """A number without the ".0" of pandas' columns."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    return str(_whole(value)).replace("_", " ") if is_set(value) else "not set"


SAID: dict[str, Callable[[Any], str]] = {  # settings whose values say by themselves what they are
    "activation": lambda value: ACTIVATIONS.get(value, _text(value)),
    "dataset": data_name,
    "downsampling": lambda value: f"downsampling by {value}",
    "epochs": lambda value: f"{value} epochs",
    "match": lambda value: budget_name(str(value)),
    "model": str,
    "order": lambda value: _text(value).replace(" ", "-"),
    "pointwise_segments": lambda value: "whole 1×1" if value == 1 else f"1×1 in {value} segments",
    "segment_shares": lambda value: f"{value} segments",
    "teacher_segments": lambda value: f"{END if value == PER_CHANNEL else f'{value}-segment'} teachers",
    "width": lambda value: f"width ×{value}",
}

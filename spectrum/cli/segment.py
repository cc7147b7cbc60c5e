"""The command `segment`: what segments would do to a network of your own."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING

from spectrum._records import SpecError
from spectrum.cli.arguments import Segment
from spectrum.cli.printing import counted, out, print_table

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from spectrum.conv.segments import Segments

TITLES = ["segments", "layers replaced", "params", "MACs", "kernel energy kept"]


def segment(command: Segment) -> int:
    """Print a row for the network as it is, and one for each number of segments."""
    from spectrum.models.convert import segment_model

    for name in ("image_size", "channels"):
        if getattr(command, name) < 1:
            raise SpecError(f"--{name.replace('_', '-')} {getattr(command, name)}: expected at least 1")
    asked = [_segments(text) for text in command.segments]
    model = _network(command.network)
    rows, tables = [_row("as it is", model, None, command)], {}
    for segments in asked:
        new, layers = segment_model(
            model,
            segments,
            select=command.select or None,
            order=command.order,
            pointwise=command.pointwise,
            mid_channels=command.mid_channels,
            init="from_trained",
        )
        label = str(segments).replace("_", "-")
        rows.append(_row(label, new, layers, command))
        tables[label] = layers
    print_table([*TITLES, "latency, ms"] if command.time else TITLES, rows)
    if command.layers:
        for label, layers in tables.items():
            out.print(f"\n{counted(int(label), 'segment') if label.isdigit() else label}")
            out.print(layers.drop(columns="output_error").to_string(index=False, na_rep="", float_format="%.3f"))
    out.print(
        "\nkernel energy kept: of the squared weights of the replaced convolutions, the part that the best 1×1 and "
        "segmented convolution reproduce. It says nothing of accuracy after fine-tuning."
        if command.pointwise
        else "\nkernel energy kept: of the squared weights of the replaced convolutions, the part within the segments."
    )
    return 0


def _segments(text: str) -> Segments:
    if text in ("per_channel", "per-channel"):
        return "per_channel"
    if not text.isdigit() or int(text) < 1:
        raise SpecError(f"--segments {text}: expected a number of at least 1, or per_channel")
    return int(text)


def _network(name: str) -> nn.Module:
    """The network that MODULE:FUNCTION returns. Raises SpecError for anything else."""
    from torch import nn

    from spectrum.design.own_modules import import_modules

    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise SpecError(f"{name}: expected MODULE:FUNCTION, such as torchvision.models:resnet18")
    import_modules([module], prefix="")
    make = getattr(import_module(module), function, None)
    if not callable(make):
        raise SpecError(f"{name}: module {module} has no function {function}")
    try:
        model = make()
    except Exception as error:  # whatever a function of someone else raises
        raise SpecError(f"{name}: {type(error).__name__}: {error}; give a function without arguments") from error
    if not isinstance(model, nn.Module):
        raise SpecError(f"{name}: returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def _row(label: str, model: nn.Module, layers: pd.DataFrame | None, command: Segment) -> list[str]:
    from spectrum.cost.count import first_line, measure_cost

    shape = (command.channels, command.image_size, command.image_size)
    try:
        cost = measure_cost(model, shape, latency=command.time)
    except Exception as error:  # whatever a network of someone else raises
        raise SpecError(
            f"the network does not take one image of {'×'.join(map(str, shape))}: {first_line(error)}; "
            "give --channels and --image-size that it takes"
        ) from error
    replaced = "" if layers is None else f"{(layers['replaced'] == 'yes').sum()} of {len(layers)}"
    row = [label, replaced, f"{cost.params:,}", f"{cost.macs:,}", "" if layers is None else _energy(layers)]
    return row if cost.latency is None else [*row, f"{cost.latency.milliseconds:.2f}"]


def _energy(layers: pd.DataFrame) -> str:
    """The part of the squared weights that all replaced kernels together keep."""
    replaced = layers[layers["replaced"] == "yes"]
    energies = replaced["kernel_energy"]
    total = float(energies.sum())
    return "" if not total or math.isnan(total) else f"{100 * (replaced['energy_kept'] * energies).sum() / total:.1f}%"

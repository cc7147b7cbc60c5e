"""The commands that measure: `audit` a network's cost, `bench` the speed on this machine."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectrum._records import SpecError
from spectrum.cli.arguments import Audit, Bench
from spectrum.cli.printing import err, out, print_table
from spectrum.design.changes import merged
from spectrum.design.run import RunConfig
from spectrum.study.store import WriteError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from spectrum.cost.count import Cost
    from spectrum.cost.speed import Speed
    from spectrum.models import NetworkOptions


def audit(command: Audit) -> int:
    """Print the cost of a network, and the counts of other counters."""
    from spectrum.cost.audit import as_prose, as_rows
    from spectrum.cost.audit import audit as audited
    from spectrum.cost.speed import measure_speed
    from spectrum.models.blocks import clamped_layers, unreachable_options

    if command.batch_size is not None and command.batch_size < 1:
        raise SpecError(f"batch_size={command.batch_size}: expected at least 1")
    model = _built(command)
    for option in unreachable_options(model):
        raise SpecError(
            f"--{option.replace('_', '-')}: no layer of {command.model!r} has enough channels; give a smaller number"
        )
    for option, count in clamped_layers(model).items():
        out.print(f"{option}: clamped in {count} layers, which have too few channels for it")
    shape = (command.channels, command.image_size, command.image_size)
    cost = _counted(command.model, model, shape)
    if command.batch_size is not None:
        cost = replace(cost, speed=measure_speed(model, (command.batch_size, *shape)))
    if command.layers:
        _print_layers(cost)
    out.print(
        f"{command.model} on one image of {'×'.join(map(str, shape))}: {cost.params:,} parameters · {cost.macs:,} MACs "
        f"({cost.flops:,} FLOPs) forward · {cost.backward_macs:,} MACs backward · {cost.activations:,} activations"
    )
    if cost.caveat is not None:
        out.print(cost.caveat)
    if cost.speed is not None:
        _print_speed(cost.speed)
    out.print()
    findings = audited(model, shape, cost=cost)
    print_table(*as_rows(findings))
    out.print(f"\n{as_prose(findings)}")
    return 0


def _built(command: Audit) -> nn.Module:
    """Build the network. Raises ValueError for invalid options, and for a network of your own that cannot be built."""
    from spectrum.cost.count import first_line
    from spectrum.models import build_model

    architecture = _architecture(command)
    try:
        return build_model(command.model, architecture)
    except ValueError:
        raise
    except Exception as error:  # any error of your own network
        raise SpecError(f"model {command.model!r} cannot be built: {first_line(error)}; fix it") from error


def _counted(name: str, model: nn.Module, shape: tuple[int, int, int]) -> Cost:
    from spectrum.cost.count import first_line, measure_cost

    try:
        return measure_cost(model, shape)
    except Exception as error:  # any error of your own network
        raise SpecError(
            f"model {name!r} does not take one image of {'×'.join(map(str, shape))}: {first_line(error)}; "
            "set --channels and --image-size to what it takes, or count it in Python: "
            "measure_cost(model, example_inputs=…)"
        ) from error


def _architecture(command: Audit) -> NetworkOptions:
    for name in ("image_size", "channels", "classes"):
        if getattr(command, name) < 1:
            raise SpecError(f"--{name.replace('_', '-')} {getattr(command, name)}: expected at least 1")
    run = merged(RunConfig(), command.run | {"model": command.model})
    return run.network_options(command.channels, command.classes, command.image_size)


def _print_layers(cost: Cost) -> None:
    rows = []
    for layer in cost.layers:
        counts = (layer.params, layer.macs, layer.backward_macs, layer.activations)
        rows.append([layer.name, layer.kind, *(f"{count:,}" for count in counts)])
    print_table(["layer", "kind", "params", "MACs", "backward MACs", "activations"], rows)
    out.print()


def _print_speed(speed: Speed) -> None:
    out.print(
        f"measured, {speed.threads} thread: latency of one image {1e3 * speed.latency:.2f} ms "
        f"(IQR {1e3 * speed.latency_iqr:.2f}) · training step of {speed.batch_size} images "
        f"{1e3 * speed.step:.1f} ms (IQR {1e3 * speed.step_iqr:.1f}) · its peak memory "
        f"{speed.peak_memory / 1e6:.1f} MB of tensors"
    )


def bench(command: Bench) -> int:
    """Measure, save the table with a description of the machine, and print the table and its summary."""
    from spectrum.bench.machine import folder_of, save
    from spectrum.bench.titles import titled

    _check_bench(command)
    table = _measured(command)
    name = "_".join(
        [command.what, *(["all"] if command.all else []), *([command.dtype] if command.dtype != "float32" else [])]
    )
    path = folder_of(command.device, command.out) / f"{name}.csv"
    try:
        save(table, path, device=command.device, threads=command.threads)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from error
    measured_by = import_module(f"spectrum.bench.{command.what}")
    shown = measured_by.printed(table) if command.what == "op" else titled(table)
    out.print(shown.to_string(index=False, float_format="%.3g", na_rep=""))
    out.print()
    for name, value in measured_by.findings(table).items():
        values = value if isinstance(value, list) else [value]
        out.print(f"{name}: {' … '.join(f'{v:.4g}' for v in values)}")
    out.print(f"\ntable {path}")
    return 0


def _check_bench(command: Bench) -> None:
    if command.threads < 1:
        raise SpecError(f"--threads {command.threads}: expected at least 1")
    if command.shape is not None and (command.what != "op" or min(command.shape) < 1):
        given = " ".join(map(str, command.shape))
        raise SpecError(
            f"bench {command.what} --shape {given}: only op takes --shape, four whole numbers of at least 1: N C H W"
        )
    if command.all and command.what != "op":
        raise SpecError(f"bench {command.what} --all: only op takes --all; leave it out")
    _check_device(command)
    if command.study is None and command.what == "steps":
        raise SpecError("bench steps: needs --study FOLDER, a study's results, such as results/quickstart")
    if command.study is not None and command.what != "steps":
        raise SpecError(f"bench {command.what} --study {command.study}: only steps takes --study; leave it out")
    if command.out.exists() and not command.out.is_dir():
        raise SpecError(f"--out {command.out}: is a file; give a folder")


def _check_device(command: Bench) -> None:
    from spectrum.training.provenance import check_device

    if command.dtype != "float32" and command.what != "op":
        raise SpecError(f"bench {command.what} --dtype {command.dtype}: only op takes --dtype; leave it out")
    if command.device == "cpu":
        return
    if command.what not in ("op", "train", "sweep", "models"):
        raise SpecError(
            f"bench {command.what} --device {command.device}: only op, train, sweep and models take --device; "
            "leave it out"
        )
    try:
        check_device(command.device)
    except ValueError as error:
        raise SpecError(
            f"bench {command.what} --device {command.device}: torch sees no card here; leave --device out to measure "
            "on the CPU"
        ) from error


def _measured(command: Bench) -> pd.DataFrame:
    import torch

    from spectrum.bench import cells, engine, models, op, steps, sweep, train

    if command.what == "op":
        shapes = None if command.shape is None else (command.shape,)
        on: dict[str, Any] = {"device": command.device, "dtype": getattr(torch, command.dtype)}
        if command.all:
            some = list(cells.every(shapes))
            return op.measure(some, threads=command.threads, seconds=0.2, compiles=False, on_row=err.print, **on)
        some = cells.standard(command.device, shapes)
        return op.measure(some, threads=command.threads, on_row=err.print, **on)
    if command.what == "engine":
        return engine.measure(on_row=err.print)
    if command.what == "models":
        return models.measure(threads=command.threads, device=command.device, on_row=err.print)
    if command.what == "steps":
        assert command.study is not None
        return steps.measure(command.study, threads=command.threads, on_row=err.print)
    if command.what == "train":
        return train.measure(threads=command.threads, device=command.device, on_row=err.print)
    curve = train.CURVE if command.device == "cpu" else train.CURVE_ON_CUDA
    return sweep.measure(curve, cores=command.threads, device=command.device, on_row=err.print)

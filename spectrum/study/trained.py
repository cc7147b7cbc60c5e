"""`load_model`: the trained network of a run, from the folder of its study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from spectrum._files import reason_of
from spectrum._records import SpecError
from spectrum.conv.machine import machine_key
from spectrum.conv.tuning import use_choices
from spectrum.data.splits import normalised
from spectrum.design.keys import images_key
from spectrum.design.own_modules import code_of, import_modules
from spectrum.design.run import RunConfig
from spectrum.models import build_model
from spectrum.study.store import FINISHED, FOLDER, Row, StoreError, find_plan, latest_rows, results_folder
from spectrum.training.provenance import check_device
from spectrum.training.weight_files import KEPT, sha256_of, weights_of

REMEDY = "train it with keep_weights=True (spectrum run FILE --keep-weights) into another folder"


class TrainedModel(nn.Module):
    """A trained network of a study, with the normalisation of its images: pixels from 0 to 255 to logits.

    `network` is the network itself, which takes normalised images; `normalise` makes them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, run: RunConfig, row: Row, classes: tuple[str, ...]) -> None:
        super().__init__()
        kept = row["provenance"][KEPT]
        self.network = network
        self.run = run
        """Options of the run."""
        self.row = row
        """The run's row, as in results.jsonl."""
        self.classes = classes
        """Names of the classes, in the order of the logits; their numbers where they have no names."""
        self.input_shape: tuple[int, ...] = tuple(kept["shape"])
        """Shape of one image, (C, H, W)."""
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(kept[name], dtype=torch.float32), persistent=False)

    def normalise(self, x_nchw: Tensor) -> Tensor:
        """Normalise pixels from 0 to 255 as in training."""
        return normalised(x_nchw, self.mean, self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Compute logits (N, classes) of pixels from 0 to 255, uint8 or floating-point (N, C, H, W)."""
        logits_nk: Tensor = self.network(self.normalise(x_nchw))
        return logits_nk


def load_model(
    run: str | Mapping[str, Any] | Any,
    folder: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    imports: Sequence[str] = (),
) -> TrainedModel:
    """Load the trained network of a run whose study kept it, ready for inference.

    Args:
        run: a row of `load_results`, or the id of a run.
        folder: folder of the study. A row of `load_results` knows it, unless pandas dropped the table's `attrs`.
        device: device of the network, or "auto" for the fastest.
        imports: modules that register a model of your own. A name in a results file is never imported by itself.

    The weights are those that were scored: with `ema`, their average. The network is in evaluation mode, in
    channels_last, and on the machine that trained it has the backends that were measured there, so it gives the same
    scores. Its weights are checked against the row's `weights_sha256`. Nothing in a file is executed.

    Raises StoreError if the folder, the row or the weights are missing, if weights were not kept or have changed, or if
    the code of your own model has; SpecError for arguments that name no run, module or device.

    >>> from spectrum import load_results
    >>> row = load_results("results/mine").nlargest(1, "test_accuracy").iloc[0]  # doctest: +SKIP
    >>> model = load_model(row)  # doctest: +SKIP
    >>> model(pixels_nchw).argmax(1)  # doctest: +SKIP
    """
    id, place = _asked(run, folder)
    row = _row(id, place)
    import_modules(imports, "imports=")
    config = _config(row, place)
    network = _network(config, row, place)
    _check_code(config, row, place)
    try:
        network.load_state_dict(load(_weights(row, place)))
    except RuntimeError as error:
        raise StoreError(f"run {id}: its weights do not fit the network that its options build: {error}") from None
    try:
        where = check_device(str(device))
    except ValueError as error:
        raise SpecError(str(error)) from None
    network = network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    provenance = row["provenance"]
    if provenance.get("machine") == machine_key(where):
        use_choices(network, provenance.get("choices", {}))
    return TrainedModel(network, config, row, _classes(row, place)).to(where).eval()


def _asked(given: Any, folder: str | Path | None) -> tuple[str, Path]:
    """The id of the run, and the folder of its study."""
    id = given if isinstance(given, str) else given.get("id") if hasattr(given, "get") else None
    if not isinstance(id, str) or not id.isalnum():
        raise SpecError(f"load_model: expected a row of load_results, or the id of a run (got {type(given).__name__})")
    if folder is None:
        folder = getattr(given, "attrs", {}).get(FOLDER)
    if folder is None:
        raise SpecError(
            f'load_model: run {id} comes without its folder; give it, as in load_model(row, "results/mine")'
        )
    return id, results_folder(folder)


def _row(id: str, folder: Path) -> Row:
    """The row of a run that kept its weights. Raises StoreError for any other."""
    row = latest_rows(folder).get(id)
    if row is None:
        raise StoreError(f"{folder}: has no row of run {id}; take an id of load_results({str(folder)!r})")
    if row["status"] not in FINISHED:
        raise StoreError(f"{folder}: run {id} failed, so it has no trained network; run the study again")
    if KEPT not in (row.get("provenance") or {}):
        if row["status"] == "diverged":
            raise StoreError(f"{folder}: run {id} diverged, and weights of such a run are not kept")
        raise StoreError(f"{folder}: run {id} kept no weights; {REMEDY}. A learning-rate sweep keeps none.")
    return row


def _config(row: Row, folder: Path) -> RunConfig:
    """The options of a run. Raises StoreError if this version reads them as another run."""
    try:
        run = RunConfig(**{name: row[name] for name in RunConfig.model_fields if name in row})
    except SpecError as error:
        raise StoreError(f"{folder}: run {row['id']}: {error}{_imports(folder)}") from None
    if run.id != row["id"]:
        raise StoreError(f"{folder}: the options of run {row['id']} have id {run.id} here; its row has changed")
    return run


def _check_code(run: RunConfig, row: Row, folder: Path) -> None:
    """Raise StoreError if the code of your own model has changed since the run."""
    then, now = row["provenance"].get("model_code"), code_of(run.model)
    if then != now:
        raise StoreError(
            f"{folder}: run {row['id']} was trained with another version of the module of {run.model!r} (code {then} "
            f"then, {now} now); restore the earlier version"
        )


def _weights(row: Row, folder: Path) -> bytes:
    """The file of a run's weights. Raises StoreError if it is missing or holds other weights than the row records."""
    path = weights_of(folder, row["id"])
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{path}: is missing; restore it, or {REMEDY}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({reason_of(error)})") from None
    try:
        found = sha256_of(data)
    except ValueError as error:
        raise StoreError(f"{path}: {error}; restore it, or {REMEDY}") from None
    if found != row["weights_sha256"]:
        raise StoreError(f"{path}: holds other weights than those that its row records; restore it, or {REMEDY}")
    return data


def _network(run: RunConfig, row: Row, folder: Path) -> nn.Module:
    """The network before its weights are loaded. The caller's random numbers are not used up by its first ones."""
    kept = row["provenance"][KEPT]
    channels, side, _ = kept["shape"]
    try:
        with torch.random.fork_rng(devices=[]):
            return build_model(run.model, run.network_options(channels, kept["classes"], side))
    except ValueError as error:
        raise StoreError(f"{folder}: run {row['id']}: {error}{_imports(folder)}") from None


def _imports(folder: Path) -> str:
    """The modules that a study's plan imports, after a semicolon; empty if there are none."""
    plan = find_plan(folder)
    return f"; its study imports {', '.join(plan.imports)}" if plan is not None and plan.imports else ""


def _classes(row: Row, folder: Path) -> tuple[str, ...]:
    """Names of the classes of a run's images, as its plan records them; else their numbers."""
    plan = find_plan(folder)
    entries = () if plan is None else plan.images
    named = next((entry["classes"] for entry in entries if images_key(entry) == images_key(row)), None)
    return tuple(map(str, named or range(row["provenance"][KEPT]["classes"])))

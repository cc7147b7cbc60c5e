"""Write the rows of all studies of the map as one table, and the card that describes it: `make readmes`.

    results/*/results.jsonl  →  rows.parquet, rows.md

The table joins the results of `load_results` and `load_tuning` for each study, with the provenance in separate columns.
The card's numbers are counted; tests compare both with the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pages.templates import environment
from pages.width import channels_of_stages

from spectrum import load_history, load_results, load_tuning
from spectrum._files import write_whole
from spectrum.analysis.export import write_parquet
from spectrum.design.run import RunConfig
from spectrum.study.store import ROWS, StoreError, find_plan

RESULTS = Path(__file__).parent
TABLE, CARD = RESULTS / "rows.parquet", RESULTS / "rows.md"
PROVENANCE = {  # fields with a column, and their meaning
    "spectrum": "version of this package",
    "revision": "its commit",
    "torch": "version",
    "python": "version",
    "processor": "instruction set that torch uses",
    "threads": "threads of a training process",
    "lowering": "implementation of spatial convolutions: auto, or native for torch's own",
    "data_fingerprint": "hash of all images and labels; rows that can be compared share it",
}
MEASURED = {
    "kind": "scored: a final run; search: a run of the learning-rate sweep, which never saw the test images",
    "chosen": "for rows of a sweep: whether its learning rate was chosen; empty in final runs",
    "study": "folder in results/",
    "id": "hash of the run's options; the same in all studies",
    "study_hash": "hash of the study's plan",
    "status": "done; diverged (scored at chance); failed (no accuracy)",
    "match": "budget that the widths match: none, params, macs (forward), step_time",
    "budget_mismatch": "relative distance from the budget; empty where none is matched",
    "shared": "rows of the study that this training run serves, one per budget that it meets; usually 1",
    "segments": "segments of every spatial convolution, as text: a number or per_channel; empty where stages differ",
    "segments_number": "to sort by: segments of the network's last spatial convolution, as a number; for per_channel, "
    "its channels",
    "stage_segments": "segments of each stage, separated by spaces, as in 1 8 per_channel; empty where all are equal",
    "segment_shares": "even, or proportions separated by spaces, as in 4 2 1",
    "widths": "channels of each stage of the trained network, whether a budget solved them or not",
    "widths_said": "widths that a budget solved or the study gave; empty: those of the architecture times width. id "
    "hashes these",
    "order": "pointwise_first (1×1, then spatial) or spatial_first",
    "model": "architecture of the network",
    "train_images": "size of the fixed, balanced subset of the training split; empty: all of it (20,000 for gaussian)",
    "params": "trainable parameters of the network",
    "macs": "multiply-adds per image, forward; convolutions and products only",
    "flops": "2 × macs",
    "activations": "outputs of convolutions and products per image",
    "realised_segments": "segments of each spatial convolution, in order",
    "step_seconds": "median time of one training step, measured when a time-matched study was planned; empty otherwise",
    "train_step_seconds": "mean time of one training step over the run, on a machine that may have been busy; ranks "
    "nothing",
    "epochs_trained": "epochs that began; fewer than epochs where training diverged; empty where it failed",
    "best_val_accuracy": "highest validation accuracy of any epoch, 0 to 1; test accuracy is of the last epoch",
    "best_epoch": "epoch of the highest validation accuracy, from 1",
    "test_accuracy": "0 to 1, on the data set's test images after the last epoch; empty in rows of a sweep",
    "test_loss": "cross entropy, nats",
    "test_images": "number of test images",
    "val_accuracy": "0 to 1, on images held out of the training set",
    "val_loss": "cross entropy, nats",
    "train_loss": "mean of the last epoch, nats",
    "train_seconds": "time of training alone, on a machine that may have been busy; ranks nothing",
    "images_per_second": "training images per second; ranks nothing",
    "peak_memory_mb": "peak memory of the process, 10⁶ bytes",
    "weights_sha256": "hash of the trained weights; equal runs in one environment have equal hashes",
    "attempts": "how often the run was started",
    "searched": "fields that a sweep tuned, such as lr; empty in rows of the sweep itself",
}

BESIDE = {"segments": ("segments_number",), "widths": ("widths_said",)}  # columns that follow another column


def collected() -> pd.DataFrame:
    """All rows of all studies that have a page: final runs, then those of the sweep."""
    folders = sorted(file.parent for file in RESULTS.glob(f"*/{ROWS}") if (file.parent / "README.md").exists())
    parts = [part for folder in folders for part in _of_study(folder)]
    table = pd.concat(parts, ignore_index=True)
    table = _completed(table)
    table = table[[name for name in described() if name in table]].dropna(axis=1, how="all")
    return table.convert_dtypes()  # keeps integers and booleans with missing values as such


def described() -> dict[str, str]:
    """Every column and its meaning."""
    first = ("kind", "chosen", "study", "match", "shared")
    fields = {name: " ".join((field.description or "").split()) for name, field in RunConfig.model_fields.items()}
    rest = {name: said for name, said in MEASURED.items() if name not in (*first, *fields)}
    own = {name: MEASURED[name] for name in fields if name in MEASURED}
    described = {name: MEASURED[name] for name in first}
    for name, said in (fields | own).items():
        described[name] = said
        described |= {more: rest.pop(more) for more in BESIDE.get(name, ())}
    return described | rest | PROVENANCE


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Fill in widths, segments as numbers, and the number of rows of each run."""
    named = zip(table["model"], table["width"], table["widths"], strict=True)
    widths = pd.Series([channels_of_stages(*one) for one in named], index=table.index, dtype=object)
    most = [realised[-1] if len(realised) else None for realised in table["realised_segments"]]
    shared = table.groupby(["study", "id"])["id"].transform("size")
    seconds = table["batch_size"] / table["images_per_second"]
    return table.assign(
        widths_said=table["widths"],
        widths=widths,
        shared=shared,
        segments_number=pd.Series(most, index=table.index, dtype=object),
        train_step_seconds=seconds,
    )


def _epochs(folder: Path) -> pd.DataFrame:
    """Epochs trained and the best of them, by the id of a run."""
    history = load_history(folder)
    best = history.loc[history.groupby("id")["val_accuracy"].idxmax()].set_index("id")
    columns = {"best_val_accuracy": best["val_accuracy"], "best_epoch": best["epoch"]}
    return pd.DataFrame({"epochs_trained": history.groupby("id")["epoch"].max(), **columns})


def _step_seconds(folder: Path) -> dict[tuple[str, str], float]:
    """Measured step times from the study's plan, by the id and the budget of a run.

    Runs that differ only in seed and learning rate share a network, and therefore its time.
    """
    plan = find_plan(folder)
    runs = () if plan is None else (*plan.runs, *plan.swept)
    return {(run.id, run.key[1]): run.step_seconds for run in runs if run.step_seconds}


def _of_study(folder: Path) -> list[pd.DataFrame]:
    parts = []
    epochs, seconds = _epochs(folder), _step_seconds(folder)
    for kind, load in (("scored", load_results), ("search", load_tuning)):
        try:
            rows = pd.DataFrame(load(folder))
        except StoreError:  # the study has no row of this kind yet
            continue
        rows["study"] = folder.relative_to(RESULTS).as_posix()
        said = rows.pop("provenance")
        for name in PROVENANCE:
            rows[name] = [_plain(row.get(name)) if isinstance(row, dict) else None for row in said]
        rows = rows.join(epochs, on="id")
        rows["step_seconds"] = [seconds.get(key) for key in zip(rows["id"], rows["match"], strict=True)]
        parts.append(rows.assign(kind=kind))
    return parts


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def card(table: pd.DataFrame) -> str:
    """Render the card from its template."""
    runs = table.drop_duplicates(["study", "id"])
    studies = runs.groupby("study", sort=False)
    return (
        environment()
        .get_template("rows.md.jinja")
        .render(
            table=table,
            runs=runs,
            studies=studies,
            columns={name: what for name, what in described().items() if name in table},
        )
    )


def main() -> None:
    table = collected()
    write_parquet(table, TABLE)
    write_whole(CARD, card(pd.read_parquet(TABLE)))


if __name__ == "__main__":
    main()

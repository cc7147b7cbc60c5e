"""Write the rows of all studies of the map as one table, and the card that says what is in it: `make readmes`.

    results/*/results.jsonl  →  rows.parquet, rows.md

The table is what `load_results` and `load_tuning` give, study after study, with the provenance in columns of its own.
The card's figures are counted, and the tests hold both against the rows.
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
PROVENANCE = {  # what of it has a column, and its unit or meaning
    "spectrum": "version of this package",
    "revision": "its commit",
    "torch": "version",
    "python": "version",
    "processor": "instruction set that torch uses",
    "threads": "a training process had",
    "lowering": "how spatial convolutions were chosen: auto, or native for torch's own",
    "data_fingerprint": "hash of all images and labels; rows that compare share it",
}
MEASURED = {
    "kind": "scored, or search: a row of the search for learning rates, which never saw the test images",
    "chosen": "of a search's row: whether its learning rate was taken; empty in scored rows",
    "study": "folder in results/",
    "id": "hash of the point; the same in all studies",
    "study_hash": "hash of the study's plan",
    "status": "done; diverged (scored at chance); failed (no accuracy)",
    "match": "budget that the widths were solved for: none, params, macs (forward), step_time",
    "budget_mismatch": "distance from the budget, as a part of it; empty where none was held",
    "shared": "how many rows of the study this one training serves, one for each budget that it meets; most often 1",
    "segments": "of every spatial convolution, as text: a number or per_channel; empty where stages have their own",
    "segments_number": "to sort by: segments of the network's last spatial convolution, as a number; for per_channel, "
    "its channels",
    "stage_segments": "of each stage, with spaces between, as in 1 8 per_channel; empty where all have the same",
    "segment_shares": "even, or proportions with spaces between, as in 4 2 1",
    "widths": "channels of each stage of the network that was trained, whether a budget solved them or not",
    "widths_said": "which of them the point names: widths that a budget solved or the study gave; empty: the family's "
    "own times width. id hashes these",
    "order": "which half of the operation ran first: pointwise_first or spatial_first",
    "model": "family of the network",
    "train_images": "size of the fixed, balanced part of the training split; empty: all of it (20,000 for gaussian)",
    "params": "trainable numbers of the network",
    "macs": "multiply-adds of one image forward; convolutions and products only",
    "flops": "2 × macs",
    "activations": "numbers that convolutions and products give for one image",
    "realised_segments": "segments of each spatial convolution, in order",
    "step_seconds": "of one training step, median, as measured when the study was planned with a budget of step time; "
    "empty without one",
    "train_step_seconds": "of one training step, mean over the run, on a machine that may have had other work; ranks "
    "nothing",
    "epochs_trained": "epochs that were begun; fewer than epochs where training diverged; empty where it failed",
    "best_val_accuracy": "highest of any epoch, 0 to 1; test accuracy is of the last epoch whatever this says",
    "best_epoch": "which epoch had it, from 1",
    "test_accuracy": "0 to 1, on the data set's test images after the last epoch; empty in rows of a search",
    "test_loss": "cross entropy, nats",
    "test_images": "how many",
    "val_accuracy": "0 to 1, on images carved off the training set",
    "val_loss": "cross entropy, nats",
    "train_loss": "mean of the last epoch, nats",
    "train_seconds": "of training alone, on a machine that may have had other work; ranks nothing",
    "images_per_second": "trained, likewise",
    "peak_memory_mb": "of the process, 10⁶ bytes",
    "weights_sha256": "of the trained weights; equal runs in one environment have equal ones",
    "attempts": "how often the point was begun",
    "searched": "fields that a search had found before, such as lr; empty in rows of the search itself",
}

BESIDE = {"segments": ("segments_number",), "widths": ("widths_said",)}  # columns that stand after another


def collected() -> pd.DataFrame:
    """All rows of all studies that have a page: those that count, then those of the search."""
    folders = sorted(file.parent for file in RESULTS.glob(f"*/{ROWS}") if (file.parent / "README.md").exists())
    parts = [part for folder in folders for part in _of_study(folder)]
    table = pd.concat(parts, ignore_index=True)
    table = _completed(table)
    table = table[[name for name in described() if name in table]].dropna(axis=1, how="all")
    return table.convert_dtypes()  # whole numbers and truths that may be empty stay what they are


def described() -> dict[str, str]:
    """Every column and what it is."""
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
    """The table with widths in every row, segments as numbers, and how many rows each run has."""
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
    """What a study's epochs show of each run, by id."""
    history = load_history(folder)
    best = history.loc[history.groupby("id")["val_accuracy"].idxmax()].set_index("id")
    columns = {"best_val_accuracy": best["val_accuracy"], "best_epoch": best["epoch"]}
    return pd.DataFrame({"epochs_trained": history.groupby("id")["epoch"].max(), **columns})


def _step_seconds(folder: Path) -> dict[tuple[str, str], float]:
    """Measured times of a step, by the id and the budget of a point, from the study's plan.

    The time is the network's, so that points which differ in seed and learning rate alone have the same.
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
        except StoreError:  # no row of this kind yet
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
    """The card, from its template."""
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

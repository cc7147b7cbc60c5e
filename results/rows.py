"""Write the rows of all studies of the map as one table, and the card that says what is in it: `make readmes`.

    results/*/results.jsonl  →  rows.parquet, rows.md

The table is what `load_results` and `load_tuning` give, study after study, with the provenance in columns of its own.
The card's figures are counted, and the tests hold both against the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from templates import environment

from spectrum import load_results, load_tuning
from spectrum._files import write_whole
from spectrum.analysis.export import write_parquet
from spectrum.study.point import Point
from spectrum.study.store import ROWS, StoreError

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
    "segments": "of every spatial convolution, as text: a number or per_channel; empty where stages have their own",
    "stage_segments": "of each stage, with spaces between, as in 1 8 per_channel; empty where all have the same",
    "segment_shares": "even, or proportions with spaces between, as in 4 2 1",
    "widths": "channels of each stage, where a budget solved them; empty: the family's own, for probe 32, 64, 128",
    "order": "which half of the operation ran first: pointwise_first or spatial_first",
    "model": "family of the network",
    "train_images": "size of the fixed, balanced part of the training split; empty: all of it (20,000 for gaussian)",
    "params": "trainable numbers of the network",
    "macs": "multiply-adds of one image forward; convolutions and products only",
    "flops": "2 × macs",
    "activations": "numbers that convolutions and products give for one image",
    "realised_segments": "segments of each spatial convolution, in order",
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


def collected() -> pd.DataFrame:
    """All rows of all studies that have a page: those that count, then those of the search."""
    folders = sorted(file.parent for file in RESULTS.glob(f"*/{ROWS}") if (file.parent / "README.md").exists())
    parts = [part for folder in folders for part in _of_study(folder)]
    table = pd.concat(parts, ignore_index=True)
    table = table[[name for name in described() if name in table]].dropna(axis=1, how="all")
    return table.convert_dtypes()  # whole numbers and truths that may be empty stay what they are


def described() -> dict[str, str]:
    """Every column and what it is."""
    first = ("kind", "chosen", "study", "match")
    fields = {name: " ".join((field.description or "").split()) for name, field in Point.model_fields.items()}
    rest = {name: said for name, said in MEASURED.items() if name not in (*first, *fields)}
    own = {name: MEASURED[name] for name in fields if name in MEASURED}
    return {name: MEASURED[name] for name in first} | fields | own | rest | PROVENANCE


def _of_study(folder: Path) -> list[pd.DataFrame]:
    parts = []
    for kind, load in (("scored", load_results), ("search", load_tuning)):
        try:
            rows = pd.DataFrame(load(folder))
        except StoreError:  # no row of this kind yet
            continue
        rows["study"] = folder.relative_to(RESULTS).as_posix()
        said = rows.pop("provenance")
        for name in PROVENANCE:
            rows[name] = [_plain(row.get(name)) if isinstance(row, dict) else None for row in said]
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

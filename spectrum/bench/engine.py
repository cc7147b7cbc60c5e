"""Benchmark the overhead of a study: of an engine per run, and of reading a folder with very many rows.

    point            seconds between the ends of two trivial runs in one warm worker, training included
    point on Ray     the same on a Ray cluster of this machine that trains one run at a time
    busy             percentage of time that workers of a simulated cluster spend in successful tasks
    status           `spectrum status` on a folder of `rows` finished rows, in its own process
    load             `load_results` of the folder, in its own process
    resume           finding the runs left to train, in its own process: lock the folder, check and read its rows

The rows are copies of one trivial run with other ids and seeds, without history. `busy` is measured with 64 workers of
a Ray cluster, all on this machine: their tasks sleep for two to six seconds, and one in fifty ends its process instead.
Without Ray, both measurements on Ray are left out. Tables print a `point` as a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from spectrum.bench.rounds import spread
from spectrum.design.run import RunConfig
from spectrum.design.study_file import Study
from spectrum.engines.cores import available_cores
from spectrum.engines.interface import Engine, Work
from spectrum.engines.local import LocalEngine
from spectrum.study.driver import run_study
from spectrum.study.store import read_plan

TRIVIAL: dict[str, Any] = {"train_images": 20, "batch_size": 20, "epochs": 1, "width": 0.1}
IN_WORDS = {
    "point": "a run of one step, local worker",
    "point on Ray": "a run of one step, Ray",
    "status": "`spectrum status`",
    "load": "`load_results`",
    "resume": "find the runs that are left to train",
}
WARM = 5  # runs that include the start of the worker
CHECKS = {
    "status": "from spectrum.cli import main; main(['status', folder])",
    "load": "from spectrum import load_results; load_results(folder)",
    "resume": """from pathlib import Path
from spectrum.study.store import FINISHED, Store, latest_rows
with Store(Path(folder)):
    left = [row for row in latest_rows(Path(folder)).values() if row["status"] not in FINISHED]""",
}
MEASURED = """import resource, sys, time
folder, started = sys.argv[1], time.perf_counter()
{check}
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, file=sys.stderr)
"""


def measure(
    *,
    rows: int = 100_000,
    runs: int = 40,
    rounds: int = 5,
    simulated: tuple[int, int] = (64, 1000),
    on_row: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure; one row per measurement: median and quartiles in milliseconds, and peak memory in GB.

    Args:
        rows: number of rows in the folder.
        runs: number of trivial runs that a warm worker trains one after the other.
        rounds: number of rounds; each does every check of the folder once.
        simulated: number of workers in the simulated cluster, and number of their tasks.
        on_row: called with one line of text for each measurement.
    """
    table = []
    with TemporaryDirectory() as root:
        seconds = overheads(LocalEngine(), Work(workers=1, device="cpu", folder=Path(root, "trivial")), runs)
        table.append({"what": "point", **spread(seconds), "memory_gb": None})
        on_row(f"run     {table[-1]['ms']:8.1f} ms")
        if find_spec("ray") is None:
            on_row('Ray is not installed, so it is left out. To include it, in a checkout: pip install ".[ray]"')
        else:
            from spectrum.engines.ray import Cluster, RayEngine

            whole = Cluster(cpus=available_cores())  # so that one run is trained at a time
            seconds = overheads(RayEngine(whole), Work(device="cpu", folder=Path(root, "ray")), runs)
            table.append({"what": "point on Ray", **spread(seconds), "memory_gb": None})
            on_row(f"on Ray  {table[-1]['ms']:8.1f} ms")
            table.append({"what": "busy", "percent": 100 * busy(*simulated)})
            on_row(f"busy    {table[-1]['percent']:8.1f}% of {simulated[0]} workers")
        folder = Path(root, "many")
        write_many(folder, rows)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in CHECKS}
        for _ in range(rounds):
            for name, check in CHECKS.items():
                found[name].append(_in_a_process(check, folder))
        for name, pairs in found.items():
            memory = max(memory for _, memory in pairs)
            table.append({"what": name, **spread([taken for taken, _ in pairs]), "memory_gb": memory})
            on_row(f"{name:7} {table[-1]['ms']:8.0f} ms, {memory:.2f} GB, of {rows:,} rows")
    return pd.DataFrame(table)


def findings(table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the table: overheads and reading times, and the highest peak memory."""
    by_name = table.set_index("what")
    found: dict[str, Any] = {"milliseconds per trivial run": float(by_name.ms["point"])}
    if "busy" in by_name.index:
        found["milliseconds per trivial run on Ray"] = float(by_name.ms["point on Ray"])
        found["percent of the time that workers are busy"] = float(by_name.percent["busy"])
    found |= {f"seconds to {name}": float(by_name.ms[name]) / 1e3 for name in CHECKS}
    return found | {"highest peak memory, GB": float(table.memory_gb.max())}


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    lines = ["| measurement | median ms | quartiles | peak memory, GB |", "|---|---|---|---|"]
    for row in table[table.what != "busy"].itertuples():
        memory = f"{row.memory_gb:.2f}" if row.what in CHECKS else ""
        lines.append(f"| {IN_WORDS[str(row.what)]} | {row.ms:.0f} | {row.ms_q1:.0f} to {row.ms_q3:.0f} | {memory} |")
    return "\n".join(lines)


def overheads(engine: Engine, work: Work, runs: int) -> list[float]:
    """Seconds between the ends of successive trivial runs, as seen by the driver."""
    trivial = [RunConfig(**TRIVIAL, seed=seed) for seed in range(WARM + runs)]
    ends = [time.perf_counter() for _ in engine.run(trivial, work)]
    return list(np.diff(ends[WARM - 1 :]))


def busy(workers: int, runs: int) -> float:
    """Fraction of time that workers spend in successful tasks, from the first to the last time when all are busy."""
    from spectrum.engines.ray import Cluster, RayEngine

    engine = RayEngine(Cluster(cpus=available_cores() / workers))
    engine.task = pretend
    outcomes = engine.run((RunConfig(**TRIVIAL, seed=seed) for seed in range(runs)), Work(device="cpu"))
    spans = [(end.result["started"], end.result["ended"]) for end in outcomes if end.result is not None]
    full, last = sorted(start for start, _ in spans)[workers - 1], max(start for start, _ in spans)
    spent = sum(max(0.0, min(end, last) - max(start, full)) for start, end in spans)
    return float(spent / (workers * (last - full)))


def pretend(server: Any, orders: Any, run: RunConfig, *, resumes: bool) -> dict[str, Any]:
    """Replace training: sleep, or end the process."""
    started, chance = time.time(), random.Random()
    time.sleep(chance.uniform(2, 6))
    if chance.random() < 0.02:
        os._exit(1)
    return {"result": {"started": started, "ended": time.time()}, "reason": None, "log": b""}


def write_many(folder: Path, count: int) -> None:
    """Write a study's folder with this many finished rows, each as large as a real one."""
    base = RunConfig(**TRIVIAL)
    summary = run_study(Study(name="many", base=base, axes={"seed": (0,)}), folder, workers=1)
    plan, row = read_plan(summary.folder), json.loads((summary.folder / "results.jsonl").read_text())
    with (folder / "results.jsonl").open("w") as file:
        file.writelines(json.dumps(row | {"id": f"{n:016x}", "seed": n}) + "\n" for n in range(count))
    runs = tuple(plan.runs[0].model_copy(update={"id": f"{n:016x}"}) for n in range(count))
    (folder / "plan.json").write_text(plan.model_copy(update={"runs": runs}).to_json())


def _in_a_process(check: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", MEASURED.format(check=check), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, gigabytes = done.stderr.split()[-2:]
    return float(seconds), float(gigabytes)

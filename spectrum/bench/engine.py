"""What a study costs beside its training: an engine's overhead a point, and a folder of very many rows.

    point            seconds from one end of a trivial point to the next, in one warm worker; its training is in it
    point on Ray     the same on a Ray cluster of this machine that runs one point at a time
    status           `spectrum status` on a folder of `rows` finished rows, in a process of its own
    load             `load_results` of it, likewise
    resume           what is left to train of it, likewise: rows read, torn ones looked for, the writer's lock taken

Rows are those of one trivial point, with other ids and seeds, and no history. `busy` is of 64 workers of a Ray cluster,
all on this machine: their tasks sleep for two to six seconds, and one in fifty ends its process instead. Where Ray is
not installed, its lines are left out.
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
WARM = 5  # points that pay for the start of the worker
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
    """One row a thing that is measured: median and quartiles in milliseconds, and the most memory it took, in GB.

    Args:
        rows: of the folder.
        points: trivial ones, trained one after the other by a warm worker.
        rounds: in which each check of the folder is done once.
        simulated: workers of the cluster whose tasks sleep, and points for them.
    """
    table = []
    with TemporaryDirectory() as root:
        seconds = overheads(LocalEngine(), Work(workers=1, device="cpu", folder=Path(root, "trivial")), runs)
        table.append({"what": "point", **spread(seconds), "memory_gb": None})
        on_row(f"point   {table[-1]['ms']:8.1f} ms")
        if find_spec("ray") is None:
            on_row('Ray is not installed, and left out: pip install "convolution-spectrum[ray]"')
        else:
            from spectrum.engines.ray import Cluster, RayEngine

            whole = Cluster(cpus=available_cores())  # so that one point runs at a time
            seconds = overheads(RayEngine(whole), Work(device="cpu", folder=Path(root, "ray")), runs)
            table.append({"what": "point on Ray", **spread(seconds), "memory_gb": None})
            on_row(f"on Ray  {table[-1]['ms']:8.1f} ms")
            table.append({"what": "busy", "percent": 100 * busy(*simulated)})
            on_row(f"busy    {table[-1]['percent']:8.1f} % of {simulated[0]} workers")
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
    """Seconds, and the most memory of all."""
    by_name = table.set_index("what")
    found: dict[str, Any] = {"milliseconds a trivial point": float(by_name.ms["point"])}
    if "busy" in by_name.index:
        found["milliseconds a trivial point on Ray"] = float(by_name.ms["point on Ray"])
        found["per cent of the time that workers are busy"] = float(by_name.percent["busy"])
    found |= {f"seconds to {name}": float(by_name.ms[name]) / 1e3 for name in CHECKS}
    return found | {"most gigabytes of memory": float(table.memory_gb.max())}


def as_markdown(table: pd.DataFrame) -> str:
    """The table on one page."""
    lines = ["| what | ms | quartiles | most memory, GB |", "|---|---|---|---|"]
    for row in table[table.what != "busy"].itertuples():
        memory = f"{row.memory_gb:.2f}" if row.what in CHECKS else ""
        lines.append(f"| {row.what} | {row.ms:.0f} | {row.ms_q1:.0f} to {row.ms_q3:.0f} | {memory} |")
    return "\n".join(lines)


def overheads(engine: Engine, work: Work, runs: int) -> list[float]:
    """Seconds from the end of one trivial point to the end of the next, as the driver sees them."""
    trivial = [RunConfig(**TRIVIAL, seed=seed) for seed in range(WARM + runs)]
    ends = [time.perf_counter() for _ in engine.run(trivial, work)]
    return list(np.diff(ends[WARM - 1 :]))


def busy(workers: int, runs: int) -> float:
    """The part of the time from the first full house to the last that workers spend in points that end well."""
    from spectrum.engines.ray import Cluster, RayEngine

    engine = RayEngine(Cluster(cpus=available_cores() / workers))
    engine.task = pretend
    outcomes = engine.run((RunConfig(**TRIVIAL, seed=seed) for seed in range(runs)), Work(device="cpu"))
    spans = [(end.result["started"], end.result["ended"]) for end in outcomes if end.result is not None]
    full, last = sorted(start for start, _ in spans)[workers - 1], max(start for start, _ in spans)
    spent = sum(max(0.0, min(end, last) - max(start, full)) for start, end in spans)
    return float(spent / (workers * (last - full)))


def pretend(server: Any, orders: Any, run: RunConfig, *, resumes: bool) -> dict[str, Any]:
    """In place of training: sleep, or die."""
    started, chance = time.time(), random.Random()
    time.sleep(chance.uniform(2, 6))
    if chance.random() < 0.02:
        os._exit(1)
    return {"result": {"started": started, "ended": time.time()}, "reason": None, "log": b""}


def write_many(folder: Path, count: int) -> None:
    """A folder of a study with so many finished rows, each as large as a real one."""
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

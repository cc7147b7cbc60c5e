"""The same study on a Ray cluster: the same rows, nodes that are lost, one rule that counts attempts."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spectrum import load_model, load_results, run_study
from spectrum.design.study_file import parse_study
from spectrum.engines.cores import available_cores
from spectrum.engines.interface import EngineError
from spectrum.engines.ray import Cluster, RayEngine
from spectrum.study.store import read_rows
from spectrum.training.evaluation import hash_weights
from spectrum.training.weight_files import WEIGHTS
from tests.runs import IMPORTS, ROOT, TINY, is_alive, tiny

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
    pytest.mark.cluster,
    pytest.mark.timeout(300),
]


@pytest.fixture
def three_nodes():
    """A cluster of three nodes of one CPU each, and the one that holds no driver to be killed."""
    os.environ["RAY_AUTH_MODE"] = "token"
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [nodes.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes, others
    ray.shutdown()
    nodes.shutdown()


def test_a_cluster_that_is_started_here_listens_to_this_machine_only_and_wants_a_token(study_folder):
    code = (
        "import os; from spectrum.engines.interface import Work; from spectrum.engines.ray import RayEngine\n"
        "engine = RayEngine().driver(Work(device='cpu'))\n"
        "with engine._connected():\n"
        "    print(engine.ray.nodes()[0]['NodeManagerAddress'], os.environ['RAY_AUTH_MODE'])\n"
        "    from ray._raylet import AuthenticationTokenLoader as tokens\n"
        "    print(tokens.instance().has_token())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["127.0.0.1", "token", "True"]


def test_both_engines_give_the_same_rows(study_folder):
    study = tiny(axes={"segments": [1, 3, "per_channel"]})
    # one thread each, as on Ray
    run_study(study, study_folder / "local", workers=available_cores(), keep_weights=True)
    run_study(study, study_folder / "ray", engine=RayEngine(Cluster()), keep_weights=True)
    local, ray = (
        load_results(study_folder / name).sort_values("id").reset_index(drop=True) for name in ("local", "ray")
    )
    measured = {"train_seconds", "images_per_second", "peak_memory_mb", "provenance"}
    for name in set(local.columns) - measured:
        assert list(local[name].map(repr)) == list(ray[name].map(repr)), name
    kept = [
        {path.name: path.read_bytes() for path in (study_folder / name / WEIGHTS).iterdir()}
        for name in ("local", "ray")
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 3


@pytest.mark.cluster
def test_a_node_that_is_lost_costs_no_run(study_folder, three_nodes):
    nodes, others = three_nodes
    study = tiny(base={"model": "slow", "epochs": 120}, axes={"seed": list(range(6))})
    out = study_folder / "lost"

    def lose_one():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list((out / "checkpoints").glob("*"))) < 3:  # each node has saved
            time.sleep(0.05)
        nodes.remove_node(others[0], allow_graceful=False)

    losing = threading.Thread(target=lose_one)
    losing.start()
    summary = run_study(study, out, engine=RayEngine(Cluster()), imports=IMPORTS, checkpoint_minutes=0.002)
    losing.join()
    assert (summary.trained, summary.failed) == (6, 0)
    rows = read_rows(out)
    assert len(rows) == len({row["id"] for row in rows}) == 6
    retried = [row for row in rows if row["attempts"] > 1]
    assert retried
    assert any(row["provenance"].get("resumed") for row in retried)
    undisturbed = tiny(base={"model": "linear", "epochs": 120}, axes={"seed": list(range(6))})
    run_study(undisturbed, study_folder / "undisturbed", workers=2, imports=IMPORTS)
    assert {row["seed"]: row["weights_sha256"] for row in rows} == {
        row["seed"]: row["weights_sha256"] for row in read_rows(study_folder / "undisturbed")
    }


def test_the_first_failed_run_stops_the_study_if_asked_for(study_folder):
    slow = {"model": "slow", "epochs": 100}  # trained in the order of seeds
    cases = [{"model": "fails_once_beside_another"}, {**slow, "seed": 1}, {**slow, "seed": 2}]
    study = parse_study({"base": TINY, "cases": cases}, "stops")
    engine = RayEngine(Cluster())
    summary = run_study(study, "out", engine=engine, imports=IMPORTS, workers=2, stop_on_failure=True)
    assert (summary.failed, summary.trained, summary.left) == (1, 0, 2)
    begun = next(run.id for run in study.runs() if run.seed == 1)
    assert [path.name for path in (study_folder / "out/checkpoints").iterdir()] == [begun]
    again = run_study(study, "out", engine=engine, imports=IMPORTS, workers=2, stop_on_failure=True)
    assert (again.failed, again.trained, again.left) == (0, 3, 0)
    assert [row["seed"] for row in read_rows(summary.folder) if (row.get("provenance") or {}).get("resumed")] == [1]


def test_several_tasks_train_a_run_together_as_torchrun_has_it(study_folder):
    study = tiny(base={"shift": 1}, axes={"segments": [1, "per_channel"], "batch_size": [50, 25]})
    summary = run_study(study, study_folder / "out", engine=RayEngine(Cluster(ranks=2)), keep_weights=True)
    assert (summary.trained, summary.failed) == (2, 2)
    rows = read_rows(study_folder / "out")
    assert {row["status"]: row["batch_size"] for row in rows} == {"done": 50, "failed": 25}
    assert all("cannot be shared equally by 2 ranks" in row["reason"] for row in rows if row["batch_size"] == 25)
    run_study(study, study_folder / "alone", workers=2)
    alone = {row["id"]: row for row in read_rows(study_folder / "alone")}
    for row in rows:
        if row["status"] == "done":
            assert row["provenance"]["ranks"] == 2
            assert hash_weights(load_model(row["id"], study_folder / "out").network) == row["weights_sha256"]
            assert row["val_loss"] == pytest.approx(alone[row["id"]]["val_loss"], rel=2e-2)


@pytest.mark.cluster
def test_a_rank_that_dies_takes_the_others_along_and_the_run_goes_on(study_folder):
    study = tiny(base={"model": "dies_once"}, axes={"segments": [1]})
    summary = run_study(study, study_folder / "out", engine=RayEngine(Cluster(ranks=2)), imports=IMPORTS)
    (row,) = read_rows(study_folder / "out")
    assert (summary.trained, row["attempts"]) == (1, 2)


def test_what_fails_on_a_node_fails_with_the_reason_and_the_rest_is_trained(study_folder):
    cases = [{"model": name} for name in ("dies", "fails", "out_of_memory", "linear")]
    study = tiny(cases=cases, axes={})
    summary = run_study(study, study_folder / "out", engine=RayEngine(Cluster()), imports=IMPORTS)
    rows = {row["model"]: row for row in read_rows(study_folder / "out")}
    assert (summary.trained, summary.failed) == (1, 3)
    assert rows["dies"]["reason"] == "the worker process died 3 times, last with WorkerCrashedError"
    assert rows["dies"]["attempts"] == 3
    assert rows["out_of_memory"]["reason"].startswith("MemoryError: oom")
    assert rows["fails"]["reason"].endswith(f"; see logs/{rows['fails']['id']}.log")
    assert "Traceback" in (study_folder / "out/logs" / f"{rows['fails']['id']}.log").read_text()


@pytest.mark.cluster
@pytest.mark.parametrize("model", ["stuck", "stuck_in_native_code"])
def test_a_run_that_takes_too_long_is_ended(model, study_folder):
    study = tiny(base={"model": model}, axes={})
    run_study(study, study_folder / "out", engine=RayEngine(Cluster()), imports=IMPORTS, run_minutes=0.05)
    (row,) = read_rows(study_folder / "out")
    assert row["reason"].startswith("took more than 0.05 minutes")
    assert row["attempts"] == 1


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [None, 2])
def test_a_cluster_without_what_a_run_takes_is_refused(workers, study_folder):
    with pytest.raises(EngineError, match="no node of the cluster has 1 CPUs and 1 GPUs"):
        run_study(tiny(), study_folder / "out", workers=workers, engine=RayEngine(Cluster(gpus=1)), device="cpu")


@pytest.mark.cluster
def test_a_checkpoint_server_that_dies_costs_no_run(study_folder):
    def kill_it():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list((study_folder / "out").glob("checkpoints/*/*.safetensors")):
            time.sleep(0.05)
        (server,) = (
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_named(pid, b"ray::CheckpointServer")
        )
        os.kill(server, signal.SIGKILL)

    killing = threading.Thread(target=kill_it)
    killing.start()
    study = tiny(base={"model": "slow", "epochs": 20}, axes={"seed": [0, 1, 2]})
    summary = run_study(
        study, study_folder / "out", engine=RayEngine(Cluster()), imports=IMPORTS, checkpoint_minutes=0.002
    )
    killing.join()
    assert (summary.trained, summary.failed) == (3, 0)


def test_what_killed_tasks_leave_is_removed_and_what_living_ones_have_is_not(tmp_path, monkeypatch):
    from spectrum.engines import ray_task as ray_engine

    monkeypatch.setattr(ray_engine, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import sys, os, tempfile; tempfile.tempdir = sys.argv[1]; from spectrum.engines import ray_task as r\n"
    code += "with r._folder_of_its_own() as root: (root / 'x').touch(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob("spectrum-run-*/x"))) == 1
    ray_engine._sweep.cache_clear()
    with ray_engine._folder_of_its_own() as living:
        assert list(tmp_path.iterdir()) == [living]
        with ray_engine._folder_of_its_own():
            assert living.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_takes_all_along_and_a_rerun_finishes(how, study_folder):
    (study_folder / "s.toml").write_text(
        '[base]\ndataset = "digits"\nmodel = "slow"\nepochs = 20\n[axes]\nseed = [0, 1, 2]\n'
    )
    said = [sys.executable, "-m", "spectrum", "run", "s.toml", "--engine", "ray", "--import", *IMPORTS]
    said += ["--checkpoint-minutes", "0.002"]
    driver = subprocess.Popen(said, cwd=study_folder, env=os.environ | {"PYTHONPATH": str(ROOT)})
    checkpoints = study_folder / "results/s/checkpoints"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not list(checkpoints.glob("*/*.safetensors")):
        time.sleep(0.05)
    tasks = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_task(pid)]
    assert tasks
    driver.send_signal(how)
    status = driver.wait(30)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[how]
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(map(is_alive, tasks)):
        time.sleep(0.1)
    assert not any(map(is_alive, tasks))
    assert (
        subprocess.run(said, cwd=study_folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    )
    rows = read_rows(study_folder / "results/s")
    assert sorted(row["seed"] for row in rows) == [0, 1, 2]
    assert any(row["provenance"].get("resumed") for row in rows)


def is_task(pid):
    return is_named(pid, b"ray::run")


def is_named(pid, name):
    try:
        return name in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

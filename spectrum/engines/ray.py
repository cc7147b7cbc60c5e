"""Engine of a Ray cluster, with one task per run, on this machine or on every node of the cluster.

    driver   this process. It hands out runs, counts attempts, and is the only one that writes rows.
    task     one run on some node, in a temporary folder there. It returns its result or the reason of its failure,
             and its log.
    CheckpointServer
             an actor on the driver's node that stores the study's checkpoints. Tasks fetch theirs and send new ones:
             nodes need no shared disk, and a run whose node was lost resumes on another.

Ray's own retries are off, because only one process may count attempts. The driver hands out only as many tasks as the
cluster runs in a while: a hundred thousand runs need no more memory than a hundred.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.design.run import RunConfig
from spectrum.engines.attempts import GRACE, Attempts, died, took_too_long, with_log
from spectrum.engines.interface import Engine, EngineError, Outcome, Work
from spectrum.engines.ray_server import CheckpointServer
from spectrum.engines.ray_task import Orders, train_on_node
from spectrum.engines.worker import OUT_OF_MEMORY
from spectrum.training.checkpoint_files import latest_step

if TYPE_CHECKING:
    pass

AHEAD = 2  # tasks handed out per task that can run, so that a node need not wait for the driver
LOOK = 10.0  # seconds after which the capacity of the cluster is read again
PATIENCE = 600.0  # seconds to wait until a node of the cluster can run a run
# environment variables that nodes take from the driver
PASSED_ON = ("SPECTRUM_DATA", "SPECTRUM_IMAGES_GB", "SPECTRUM_BACKEND")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the resources that each run takes from it."""

    address: str | None = (
        None  # HOST:PORT, or "auto" for the cluster that this machine belongs to; None: start one on this machine
    )
    cpus: float = 1.0
    gpus: float = 0.0
    ranks: int = 1  # processes that train one run together; each takes the resources above


class RayEngine(Engine):
    """Engine of a Ray cluster. Every node must have the modules that are imported.

    Args:
        cluster: the cluster, and the resources of each run.

    Raises EngineError if Ray is not installed or the cluster cannot be reached.
    """

    elsewhere = True

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.cluster = Cluster() if cluster is None else cluster
        self.ray = _ray(self.cluster)
        self.task: Callable[..., dict[str, Any]] = train_on_node

    def device(self, asked: str) -> str:
        """Device of the cluster's nodes, which cannot be checked here; by default the GPU that each run takes."""
        if asked == "auto":
            return "cuda" if self.cluster.gpus else "cpu"
        return asked

    def run(self, runs: Iterable[RunConfig], work: Work) -> Generator[Outcome, None, None]:
        """Train all runs. Up to `workers` are handed out at once, by default twice as many as the cluster can run.

        Closing the iterator, or Ctrl-C, lets the tasks save a checkpoint and ends them within ten seconds; a second
        Ctrl-C ends them at once. Raises EngineError if no node can run a run.
        """
        yield from self.driver(work).run(runs)

    def driver(self, work: Work) -> _Driver:
        """The driver of one study, which is this process."""
        return _Driver(self.cluster, self.ray, self.task, work)


class _Driver:
    """Hand out the runs of one study, from this process."""

    def __init__(self, cluster: Cluster, ray: Any, task: Callable[..., dict[str, Any]], work: Work) -> None:
        self.cluster, self.ray, self.task = cluster, ray, task
        self.work, self.saving = work, work.saving
        self.orders = Orders(
            work=work,
            threads=max(1, int(cluster.cpus)),
            paths=tuple(sys.path),
            environment={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            ranks=cluster.ranks,
        )

    def run(self, runs: Iterable[RunConfig]) -> Generator[Outcome, None, None]:
        with self._connected():
            yield from self._run(iter(runs))

    def _run(self, runs: Iterator[RunConfig]) -> Generator[Outcome, None, None]:
        # long: one loop hands out, waits and takes back, and its parts share all state
        ray = self.ray
        server = self._checkpoint_server()
        again: deque[tuple[RunConfig, Attempts]] = deque()
        running: dict[Any, tuple[RunConfig, Attempts]] = {}
        groups: dict[Any, _Together] = {}  # tasks of those in `running` that several ranks train
        places = _Places(ray, self.cluster)
        try:
            while True:
                places_now = places.count()
                # without capacity one task, which asks for a node
                most = self.work.workers or max(1, AHEAD * places_now)
                while len(running) < most and (one := self._next(runs, again)) is not None:
                    run, attempts = one
                    first, together = self._hand_out(server, run, attempts.begun)
                    running[first] = one
                    if together is not None:
                        groups[first] = together
                if not running:
                    break
                with _terminable():
                    ready = ray.wait(list(running), timeout=LOOK)[0]
                for ended in ready:
                    run, attempts = running.pop(ended)
                    outcome = self._outcome(server, run, attempts, ended)
                    if ended in groups:
                        groups.pop(ended).end()
                    if outcome is None:
                        again.append((run, attempts))
                    else:
                        yield outcome
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            if running and self.saving is not None:
                server.stop.remote()
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            raise
        finally:
            for left in running:
                ray.cancel(left, force=True)
            for together in groups.values():
                together.end()
            ray.kill(server)

    def _next(
        self, runs: Iterator[RunConfig], again: deque[tuple[RunConfig, Attempts]]
    ) -> tuple[RunConfig, Attempts] | None:
        """Next run: one whose worker died, else a new one; None if there is neither."""
        if again:
            return again.popleft()
        new = next(runs, None)
        return None if new is None else (new, Attempts.at(new, self.saving))

    def _hand_out(self, server: Any, run: RunConfig, attempt: int) -> tuple[Any, _Together | None]:
        """Start the task of a run; with several ranks, return the first one's task and all of them."""
        options: dict[str, Any] = {"num_cpus": self.cluster.cpus, "num_gpus": self.cluster.gpus, "max_retries": 0}
        if self.cluster.ranks == 1:
            task = self.ray.remote(self.task).options(**options, name="run")
            return task.remote(server, self.orders, run, resumes=self._has_checkpoints(run)), None
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        each = {"CPU": self.cluster.cpus} | ({"GPU": self.cluster.gpus} if self.cluster.gpus else {})
        group = placement_group([each] * self.cluster.ranks)  # all ranks or none; on one node if possible
        tasks = []
        meeting, resumes = f"{run.id} {attempt}", self._has_checkpoints(run)
        for rank in range(self.cluster.ranks):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            task = self.ray.remote(self.task).options(**options, name="run", scheduling_strategy=place)
            tasks.append(task.remote(server, self.orders, run, rank, meeting, resumes=resumes))
        return tasks[0], _Together(self.ray, tasks, group)

    def _has_checkpoints(self, run: RunConfig) -> bool:
        return self.saving is not None and latest_step(self.saving.checkpoints_of(run.id)) > 0

    def _outcome(self, server: Any, run: RunConfig, attempts: Attempts, ended: Any) -> Outcome | None:
        """How a run ended; None if its worker died and it is to be tried again."""
        from ray import exceptions

        attempt = attempts.begun
        try:
            answer = self.ray.get(ended)
        except exceptions.RayError as error:  # from the worker, from its node, or before the run began
            if self._hung(server, run):
                return Outcome(run, None, took_too_long(self.work.run_minutes, self.saving, run), attempt)
            if attempts.again(run, self.saving):
                return None
            if isinstance(error, exceptions.OutOfMemoryError):
                return Outcome(run, None, f"MemoryError: {OUT_OF_MEMORY}", attempt)
            cause = getattr(error, "cause", None)
            how = type(error).__name__ if cause is None else f"{type(cause).__name__}: {cause}"
            return Outcome(run, None, died(attempt, how.splitlines()[0]), attempt)
        if answer["log"] and self.saving is not None:
            _append(self.saving.log_of(run.id), answer["log"])
        if answer["result"] is not None:
            return Outcome(run, answer["result"], None, attempt)
        reason = answer["reason"]
        if reason is None:
            reason = took_too_long(self.work.run_minutes, self.saving, run)
        return Outcome(run, None, with_log(reason, self.saving, run), attempt)

    def _hung(self, server: Any, run: RunConfig) -> bool:
        """Whether a dead task had used up its time: a process that does not end its work in time is killed."""
        if self.work.run_minutes is None:
            return False
        age: float | None = self.ray.get(server.age.remote(run.id))
        return age is not None and age >= 60 * self.work.run_minutes

    def _checkpoint_server(self) -> Any:
        """Start the checkpoint server, on this node only."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        folder = None if self.saving is None else self.saving.folder.absolute()
        server = self.ray.remote(CheckpointServer).options(
            num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
        )
        return server.remote(folder)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        if self.ray.is_initialized():  # connected by the caller, who also disconnects
            yield
            return
        more: dict[str, Any] = {"address": self.cluster.address or "local", "log_to_driver": False}
        if self.cluster.address is None:
            more["include_dashboard"] = False
        try:
            with _own_signals():
                self.ray.init(**more, logging_level="error")
        except Exception as error:  # Ray raises many types
            where = self.cluster.address or "this machine"
            raise EngineError(f"Ray on {where}: {error}") from error
        try:
            yield
        finally:
            self.ray.shutdown()


@dataclass(frozen=True)
class _Together:
    """Tasks of one run's ranks, and the resources reserved for them."""

    ray: Any
    tasks: list[Any]
    group: Any

    def end(self) -> None:
        """Cancel all tasks and free the resources."""
        from ray.util.placement_group import remove_placement_group

        for task in self.tasks:
            self.ray.cancel(task, force=True)
        remove_placement_group(self.group)


class _Places:
    """Number of runs that the cluster can run at once."""

    def __init__(self, ray: Any, cluster: Cluster) -> None:
        self.ray, self.cluster = ray, cluster
        self.looked_at, self.since, self.known = -LOOK, time.monotonic(), 0

    def count(self) -> int:
        """Capacity as of a few seconds ago. Raises EngineError if it has been 0 for too long."""
        now = time.monotonic()
        if now - self.looked_at >= LOOK or not self.known:
            self.looked_at, self.known = now, self._look()
        if self.known:
            self.since = now
        elif self.cluster.address is None or now - self.since > PATIENCE:
            raise EngineError(
                f"no node of the cluster has {self.cluster.cpus:g} CPUs and {self.cluster.gpus:g} GPUs for a run; "
                "give fewer, or start a node that has them"
            )
        return self.known

    def _look(self) -> int:
        wanted = {"CPU": self.cluster.cpus, "GPU": self.cluster.gpus}
        places = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                places += int(min(have.get(name, 0) / most + 1e-9 for name, most in wanted.items() if most))
        return places // self.cluster.ranks


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of Ctrl-C and SIGTERM, which Ray would replace."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _terminable() -> Iterator[None]:
    """Handle SIGTERM during a wait of Ray as at any other time.

    Ray replaces a SystemExit from a handler by one with another status, but passes KeyboardInterrupt on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = []

    def tell(number: int, frame: Any) -> None:
        told.append((number, frame))
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    except KeyboardInterrupt:
        if told and callable(handler):
            handler(*told[0])
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _append(path: Path, data: bytes) -> None:
    with suppress(OSError):  # a disk too full for a log does not stop training
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)


def _ray(cluster: Cluster) -> Any:
    """Import Ray, with token authentication and without usage reports. Raises EngineError if it is missing."""
    if "ray" not in sys.modules:  # Ray reads these variables on import; if it was imported before, they have no effect
        if cluster.address is None:  # listen on this machine only, which is Ray's default on the systems named here
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EngineError('Ray is not installed. In a checkout of the repository: pip install ".[ray]"') from None
    return ray

"""Points trained on a Ray cluster, one task a point: on this machine, or on as many as the cluster has.

    driver   this process. It hands out points, counts attempts and, as ever, is the only one that writes rows.
    task     one point on some node, in a temporary folder there; gives back its result, or the reason, and its log.
    CheckpointServer
             an actor on the driver's node, which has the study's checkpoints: tasks fetch theirs and send new ones, so
             that nodes share no disk, and a point goes on where it stood on a node that was lost.

Ray's own retries are off: whoever counts attempts must be one alone. No more tasks are handed out than the cluster runs
in a while, so that a hundred thousand points need no more memory than a hundred.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from spectrum._files import write_whole
from spectrum.design.point import Point
from spectrum.engines.local import (
    GRACE,
    NO_LIMITS,
    Attempts,
    Cluster,
    EngineError,
    Limits,
    Outcome,
    died,
    took_too_long,
    with_log,
)
from spectrum.engines.worker import OUT_OF_MEMORY, Saving, limit_memory, train_one
from spectrum.training.checkpoint_files import NAME, Interrupted, checkpoint_files, latest_step

if TYPE_CHECKING:
    from spectrum.training.ranks import Ranks

FOLDER = "spectrum-point-"  # of a task, in its node's folder of temporary files
AHEAD = 2  # tasks handed out for each that can run, so that a node need not wait for the driver
LOOK = 10.0  # seconds, after which it is asked anew how much the cluster can run
PATIENCE = 600.0  # seconds for a cluster to get a node that can run a point at all
ASK = 1.0  # seconds between two questions of a task whether it is to stop
LOG_BYTES = 200_000  # of a point's log that are sent, the last ones
PASSED_ON = ("SPECTRUM_DATA", "SPECTRUM_IMAGES_GB", "SPECTRUM_LOWERING")  # environment that nodes take from the driver


class RayEngine:
    """Workers of a Ray cluster.

    Args:
        cluster: which one, and what of it a point takes.
        workers: points that may be handed out at once; by default twice what the cluster can run.
        device: "cpu", "cuda" or "mps".
        imports: modules to import in every worker first, for models of one's own; every node must have them.
        saving: where and how often runs save where they stand, and where they log; by default not at all.
        limits: what one point may take.

    Raises EngineError where Ray is not installed or the cluster cannot be reached.
    """

    def __init__(
        self,
        cluster: Cluster,
        workers: int | None = None,
        *,
        device: str = "cpu",
        imports: Sequence[str] = (),
        saving: Saving | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.cluster, self.workers, self.saving, self.limits = cluster, workers, saving, limits
        self.ray = _ray(cluster)
        self.task: Callable[..., dict[str, Any]] = _train_on_node
        self.orders = _Orders(
            device=device,
            threads=max(1, int(cluster.cpus)),
            imports=tuple(imports),
            checkpoint_minutes=None if saving is None else saving.minutes,
            limits=limits,
            paths=tuple(sys.path),
            environment={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            ranks=cluster.ranks,
        )

    def run(self, points: Iterable[Point]) -> Generator[Outcome, None, None]:
        """Train all points.

        Closing the iterator, or Ctrl-C, lets the tasks save where they stand and ends them, after ten seconds at the
        latest; another Ctrl-C ends them at once. Raises EngineError where no node can run a point.
        """
        with self._connected():
            yield from self._run(iter(points))

    def _run(self, points: Iterator[Point]) -> Generator[Outcome, None, None]:
        ray = self.ray
        server = self._checkpoint_server()
        again: deque[tuple[Point, Attempts]] = deque()
        running: dict[Any, tuple[Point, Attempts]] = {}
        groups: dict[Any, _Together] = {}  # of those in `running` that several ranks train
        places = _Places(ray, self.cluster)
        try:
            while True:
                most = places.count()
                most = max(1, self.workers or AHEAD * most)  # one also where there is no place yet, to ask for a node
                while len(running) < most:
                    if not again:
                        if (new := next(points, None)) is None:
                            break
                        again.append((new, Attempts.at(new, self.saving)))
                    point, attempts = again.popleft()
                    first, together = self._hand_out(server, point, attempts.begun)
                    running[first] = (point, attempts)
                    if together is not None:
                        groups[first] = together
                if not running:
                    break
                with _terminable():
                    ready = ray.wait(list(running), timeout=LOOK)[0]
                for ended in ready:
                    point, attempts = running.pop(ended)
                    outcome = self._outcome(server, point, attempts, ended)
                    if ended in groups:
                        groups.pop(ended).end()
                    if outcome is None:
                        again.append((point, attempts))
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

    def _hand_out(self, server: Any, point: Point, attempt: int) -> tuple[Any, _Together | None]:
        """A point's task; with several ranks the first one's, and all of them."""
        options: dict[str, Any] = {"num_cpus": self.cluster.cpus, "num_gpus": self.cluster.gpus, "max_retries": 0}
        if self.cluster.ranks == 1:
            task = self.ray.remote(self.task).options(**options, name="point")
            return task.remote(server, self.orders, point, resumes=self._has_checkpoints(point)), None
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        each = {"CPU": self.cluster.cpus} | ({"GPU": self.cluster.gpus} if self.cluster.gpus else {})
        room = placement_group([each] * self.cluster.ranks)  # all of it or nothing, on one node if that can be
        tasks = []
        meeting, resumes = f"{point.id} {attempt}", self._has_checkpoints(point)
        for rank in range(self.cluster.ranks):
            place = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=rank)
            task = self.ray.remote(self.task).options(**options, name="point", scheduling_strategy=place)
            tasks.append(task.remote(server, self.orders, point, rank, meeting, resumes=resumes))
        return tasks[0], _Together(self.ray, tasks, room)

    def _has_checkpoints(self, point: Point) -> bool:
        return self.saving is not None and latest_step(self.saving.checkpoints_of(point.id)) > 0

    def _outcome(self, server: Any, point: Point, attempts: Attempts, ended: Any) -> Outcome | None:
        """How a point ended; None where its worker died, and it is to be tried again."""
        from ray import exceptions

        attempt = attempts.begun
        try:
            said = self.ray.get(ended)
        except exceptions.RayError as error:  # of the worker, of its node, or before the point was begun
            if self._hung(server, point):
                return Outcome(point, None, took_too_long(self.limits.minutes, self.saving, point), attempt)
            if attempts.again(point, self.saving):
                return None
            if isinstance(error, exceptions.OutOfMemoryError):
                return Outcome(point, None, f"MemoryError: {OUT_OF_MEMORY}", attempt)
            cause = getattr(error, "cause", None)
            how = type(error).__name__ if cause is None else f"{type(cause).__name__}: {cause}"
            return Outcome(point, None, died(attempt, how.splitlines()[0]), attempt)
        if said["log"] and self.saving is not None:
            _append(self.saving.log_of(point.id), said["log"])
        if said["result"] is not None:
            return Outcome(point, said["result"], None, attempt)
        reason = said["reason"]
        if reason is None:
            reason = took_too_long(self.limits.minutes, self.saving, point)
        return Outcome(point, None, with_log(reason, self.saving, point), attempt)

    def _hung(self, server: Any, point: Point) -> bool:
        """Whether a task that died had had all of its time: its process was ended, as it did not end its work."""
        if self.limits.minutes is None:
            return False
        age: float | None = self.ray.get(server.age.remote(point.id))
        return age is not None and age >= 60 * self.limits.minutes

    def _checkpoint_server(self) -> Any:
        """The checkpoint server, on this node and on no other."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        folder = None if self.saving is None else self.saving.folder.absolute()
        server = self.ray.remote(CheckpointServer).options(
            num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
        )
        return server.remote(folder)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        if self.ray.is_initialized():  # by whoever calls, who also ends it
            yield
            return
        more: dict[str, Any] = {"address": self.cluster.address or "local", "log_to_driver": False}
        if self.cluster.address is None:
            more["include_dashboard"] = False
        try:
            with _own_signals():
                self.ray.init(**more, logging_level="error")
        except Exception as error:  # of many kinds
            where = self.cluster.address or "this machine"
            raise EngineError(f"Ray on {where}: {error}") from error
        try:
            yield
        finally:
            self.ray.shutdown()


@dataclass(frozen=True)
class _Together:
    """The tasks of one point's ranks, and the room that was kept for them."""

    ray: Any
    tasks: list[Any]
    room: Any

    def end(self) -> None:
        """None of them goes on, and the room is free again."""
        from ray.util.placement_group import remove_placement_group

        for task in self.tasks:
            self.ray.cancel(task, force=True)
        remove_placement_group(self.room)


@dataclass(frozen=True)
class _Orders:
    """What a task needs to know beside its point."""

    device: str
    threads: int
    imports: tuple[str, ...]
    checkpoint_minutes: float | None
    limits: Limits
    paths: tuple[str, ...]
    environment: dict[str, str]
    ranks: int


class _Places:
    """How many points the cluster can run at once."""

    def __init__(self, ray: Any, cluster: Cluster) -> None:
        self.ray, self.cluster = ray, cluster
        self.looked_at, self.since, self.known = -LOOK, time.monotonic(), 0

    def count(self) -> int:
        """As of a few seconds ago. Raises EngineError where there has been no place for too long."""
        now = time.monotonic()
        if now - self.looked_at >= LOOK or not self.known:
            self.looked_at, self.known = now, self._look()
        if self.known:
            self.since = now
        elif self.cluster.address is None or now - self.since > PATIENCE:
            raise EngineError(
                f"no node of the cluster has {self.cluster.cpus:g} CPUs and {self.cluster.gpus:g} GPUs for a point; "
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


class CheckpointServer:
    """The study's checkpoints, for tasks on any node; and whether they are to stop."""

    def __init__(self, folder: Path | None) -> None:
        self.saving = None if folder is None else Saving(folder)
        self.stops = False
        self.meetings: dict[str, tuple[str, int]] = {}
        self.began: dict[str, float] = {}

    def begin(self, id: str) -> None:
        """A task begins this point."""
        self.began[id] = time.monotonic()

    def age(self, id: str) -> float | None:
        """Seconds since it did, last; None where that is not known."""
        return time.monotonic() - self.began[id] if id in self.began else None

    def meet(self, at: str, place: tuple[str, int]) -> None:
        """Where the ranks of one attempt at a point meet, from the first of them."""
        self.meetings[at] = place

    def meeting(self, at: str) -> tuple[str, int] | None:
        """The same, for the others; None as long as the first has not said."""
        return self.meetings.get(at)

    def fetch(self, id: str) -> dict[str, bytes]:
        """A point's checkpoints, by file name. Whether they are whole, the task finds out."""
        if self.saving is None or not id.isalnum():
            return {}
        found = {}
        with suppress(OSError):  # what cannot be read is passed over
            for file in checkpoint_files(self.saving.checkpoints_of(id)):
                with suppress(OSError):
                    found[file.path.name] = file.path.read_bytes()
        return found

    def keep(self, id: str, name: str, data: bytes, kept: Sequence[str]) -> None:
        """Write one, and remove those of this point that are not among `kept`. Raises OSError and ValueError."""
        if self.saving is None:
            return
        if not (id.isalnum() and NAME.fullmatch(name)):
            raise ValueError(f"{id}/{name}: not the name of a checkpoint")
        folder = self.saving.checkpoints_of(id)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, data)
        for file in checkpoint_files(folder):
            if file.path.name not in kept:
                with suppress(OSError):  # it is kept too long, and harms nobody
                    file.path.unlink(missing_ok=True)

    def stop(self) -> None:
        """From here on all tasks are to save and end."""
        self.stops = True

    def stopped(self) -> bool:
        """Whether that was said."""
        return self.stops


class _TookTooLong(BaseException):
    """Not an Exception, which a checkpoint that fails would take for its own."""


def _train_on_node(
    server: Any, orders: _Orders, point: Point, rank: int = 0, meeting: str = "", *, resumes: bool
) -> dict[str, Any]:
    """In a worker: `result`, or `reason` (None where it took too long); and `log`."""
    sys.path.extend(place for place in orders.paths if place not in sys.path)
    os.environ.update(orders.environment)
    limit_memory(orders.limits.memory_gb)
    result, reason = None, None
    with _folder_of_its_own() as root:
        saves = orders.checkpoint_minutes is not None and rank == 0
        saving = Saving(root, orders.checkpoint_minutes if orders.checkpoint_minutes is not None else 1.0)
        if saves and resumes:
            _fetch(server, point.id, saving.checkpoints_of(point.id))
        try:
            if orders.limits.minutes is not None and rank == 0:
                server.begin.remote(point.id)
            with _time_limit(orders.limits.minutes), _ranks(server, orders, rank, meeting) as ranks:
                result = train_one(
                    point,
                    orders.device,
                    orders.threads,
                    orders.imports,
                    saving if saves else None,
                    stop=_Stop(server),
                    on_saved=partial(_send, server, point.id),
                    ranks=ranks,
                )
        except _TookTooLong:
            pass
        except Interrupted:
            reason = "stopped"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        return {"result": result, "reason": reason, "log": _end_of(saving.log_of(point.id))}


def _end_of(log: Path) -> bytes:
    """What a log has, its end if it is long; nothing where there is none or it cannot be read."""
    try:
        return log.read_bytes()[-LOG_BYTES:]
    except OSError:
        return b""


@cache
def _sweep(place: str) -> None:
    """Once a process."""
    for lock in Path(place).glob(f"{FOLDER}*/lock"):
        with suppress(OSError), lock.open() as file:  # another user's, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def _folder_of_its_own() -> Iterator[Path]:
    """A temporary folder, removed afterwards; those of tasks that were killed are removed, too.

    Each task holds a kernel lock in its folder, which its death frees.
    """
    _sweep(gettempdir())
    with TemporaryDirectory(prefix=FOLDER) as root, Path(root, "lock.new").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Path(root, "lock.new").rename(Path(root, "lock"))  # never there without being held
        yield Path(root)


@contextmanager
def _ranks(server: Any, orders: _Orders, rank: int, meeting: str) -> Iterator[Ranks | None]:
    """This task as one of its point's ranks; None where it is the only one.

    What fails on all of them alike is raised. A rank that fails alone ends its process, and with it the others'.
    """
    if orders.ranks == 1:
        yield None
        return
    import ray

    from spectrum.training import ranks as parallel

    if rank == 0:
        store, port = parallel.open_meeting(orders.ranks)
        here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        ray.get(server.meet.remote(meeting, (here, port)))
        ranks = parallel.met(orders.device, 0, orders.ranks, store=store)
    else:
        waited_until = time.monotonic() + parallel.MEET.total_seconds()
        while (place := ray.get(server.meeting.remote(meeting))) is None:
            if time.monotonic() > waited_until:
                os._exit(1)
            time.sleep(0.05)
        ranks = parallel.met(orders.device, rank, orders.ranks, host=place[0], port=place[1])
    try:
        yield ranks
    except Exception as error:
        if not isinstance(error, Interrupted) and not ranks.all_failed():
            os._exit(1)
        raise
    finally:
        parallel.ended()


def _fetch(server: Any, id: str, folder: Path) -> None:
    import ray

    for name, data in ray.get(server.fetch.remote(id)).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _send(server: Any, id: str, folder: Path) -> None:
    """The latest checkpoint to the checkpoint server."""
    import ray

    files = list(checkpoint_files(folder))
    kept = [file.path.name for file in files]
    ray.get(server.keep.remote(id, files[0].path.name, files[0].path.read_bytes(), kept))


class _Stop:
    """Whether the driver has said so, asked now and then, and without waiting for the answer."""

    def __init__(self, server: Any) -> None:
        self.server, self.asked = server, time.monotonic()
        self.answer: Any = None
        self.stops = False

    def __call__(self) -> bool:
        import ray

        now = time.monotonic()
        if self.stops or now - self.asked < ASK:
            return self.stops
        with suppress(ray.exceptions.RayError):  # the checkpoint server is away; the next question finds it again
            if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
                answer, self.answer = self.answer, None
                self.stops = bool(ray.get(answer))
            if self.answer is None:
                self.answer = self.server.stopped.remote()
        self.asked = now
        return self.stops


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM stay this process's own to handle, which Ray would take over."""
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
    """SIGTERM while Ray waits does what it does elsewhere.

    Of an exit that a handler asks for, Ray makes one of its own, with another status; of Ctrl-C it does not.
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


@contextmanager
def _time_limit(minutes: float | None) -> Iterator[None]:
    """Raises _TookTooLong inside, in the main thread, where tasks run.

    What never comes back to Python cannot be told. So a thread that needs no Python ends the process a while later.
    """
    if minutes is None:
        yield
        return

    def end(*_: Any) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 5.0)  # again, where something swallows the first
    faulthandler.dump_traceback_later(60 * minutes + GRACE, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _append(path: Path, data: bytes) -> None:
    with suppress(OSError):  # no room for a log is no reason not to train
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)


def _ray(cluster: Cluster) -> Any:
    """The library, with its token asked for and nothing reported to its makers. Raises EngineError."""
    if "ray" not in sys.modules:  # which reads these as it is imported; for what others imported, they come too late
        if cluster.address is None:  # to be heard on this machine only, as Ray does by itself on those it names here
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EngineError('Ray is not installed: pip install "convolution-spectrum[ray]"') from None
    return ray

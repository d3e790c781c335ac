"""Runs shard tasks on the workers of a dask.distributed scheduler, or of a cluster it starts."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import importlib.util
import logging
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

import dask
import distributed
from dask import annotate  # type: ignore[attr-defined]
from distributed.client import ClosedClientError
from distributed.comm.addressing import get_address_host, get_address_host_port
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker
from distributed.threadpoolexecutor import ThreadPoolExecutor
from distributed.utils import sync

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.machine import set_thread_variables
from recon.pipeline.base.wording import one_line
from recon.pipeline.execution import jobs
from recon.pipeline.execution.executor import Closing, default_workers, without_interrupts
from recon.pipeline.execution.jobs import Job, attempt, fault_in

T = TypeVar("T")
R = TypeVar("R")

CONNECT_SECONDS = 10.0
START_SECONDS = 60.0
CLOSE_SECONDS = 10.0
CENSUS_SECONDS = 2.0
WARN_SECONDS = 30.0
SILENT = logging.CRITICAL + 1
SLURM_FILE = "~/.config/dask/jobqueue.yaml"
NAME = "recon"
DISTRIBUTION = "recon-pointcloud"
log = logging.getLogger(__name__)


def connect(address: str) -> Dask:
    """The executor of a scheduler that runs already. UserError when it cannot be used."""
    _silence()
    try:
        _knock(address)
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no dask scheduler answers at {address} within {CONNECT_SECONDS:g} s: "
            "check the address (tcp://host:port) and that `dask scheduler` runs there"
        ) from error
    return _adopt(client)


def _knock(address: str) -> None:
    """OSError when nobody listens there: a dask client that has failed to connect cannot be closed cleanly."""
    where = get_address_host_port(address)
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:  # the scheduler may be starting
        try:
            socket.create_connection(where, CONNECT_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def start_cluster(kind: Literal["local", "slurm", "ssh"] | None, workers: int | None, hosts: Sequence[str]) -> Dask:
    """The executor of a cluster of its own; see `open_executor`. UserError when it does not start."""
    _silence()
    # A death comes to us at once: it is we who count them, a task.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            if kind == "slurm":
                cluster = _slurm(workers)
            elif kind == "ssh":
                cluster = _ssh(workers, hosts)
            else:
                cluster = _local(workers or default_workers())
        except UserError:
            raise
        except Exception as error:  # three libraries' worth of reasons
            raise UserError(f"the {kind} cluster does not start: {one_line(error)}") from error
    return _adopt(distributed.Client(cluster, timeout=START_SECONDS, set_as_default=False), cluster)


def _adopt(client: Any, cluster: Any = None) -> Dask:
    try:
        return Dask(client, cluster)
    except BaseException:
        _close(client, cluster)
        raise


def _local(workers: int) -> Any:
    with without_interrupts():  # which the cluster's thread passes on to every worker it ever starts
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # near it, dask gives a worker no tasks; one that waits never frees torch's memory
            dashboard_address="127.0.0.1:0",  # given none, it takes port 8787 and warns when that is taken
            scheduler_kwargs={"dashboard": False},
            silence_logs=SILENT,
        )


def _slurm(workers: int | None) -> Any:
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise UserError(f"--cluster slurm needs dask-jobqueue: pip install '{DISTRIBUTION}[slurm]'")
    from dask_jobqueue.slurm import SLURMCluster  # its settings are known to dask from here on

    settings = dask.config.get("jobqueue.slurm")
    missing = [f"jobqueue.slurm.{name}" for name in ("cores", "memory") if not settings.get(name)]
    if missing:
        raise UserError(f"--cluster slurm lacks {' and '.join(missing)}, what one job asks for: set it in {SLURM_FILE}")
    if workers is None:
        raise UserError("--cluster slurm: say with --workers how many workers to ask for")
    cluster = SLURMCluster(
        processes=settings.get("processes") or settings["cores"],  # one thread a worker
        scheduler_options={"dashboard_address": ":0", **(settings.get("scheduler-options") or {})},
    )
    cluster.scale(n=workers)
    return cluster


def _ssh(workers: int | None, hosts: Sequence[str]) -> Any:
    if importlib.util.find_spec("asyncssh") is None:
        raise UserError("--cluster ssh needs asyncssh: pip install asyncssh")
    if len(hosts) < 2:
        raise UserError(
            "--cluster ssh needs --hosts: the scheduler's host and one worker's at least (or the same twice)"
        )
    return distributed.SSHCluster(
        list(hosts),
        worker_options={"nthreads": 1, "n_workers": workers or 1, "memory_limit": 0},
        scheduler_options={"port": 0, "dashboard_address": ":0"},
    )


class OneThread(WorkerPlugin):
    """Makes a dask worker one of ours: its tasks run in one thread, where models and GL contexts live."""

    idempotent = True  # a second run on the same scheduler must not take the thread from under the first

    def setup(self, worker: Any) -> None:
        """Give the worker the one thread that tasks run in."""
        set_thread_variables()
        worker.executors[NAME] = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        worker.memory_manager.memory_pause_fraction = False  # see _local

    def teardown(self, worker: Any) -> None:
        """End that thread."""
        thread = worker.executors.pop(NAME, None)
        if thread is not None:
            thread.shutdown(wait=False)


def run_shard(payload: bytes, topic: str) -> bytes:
    """What dask runs: says that the task begins and where, does it, says what came of it.

    The scheduler knows both before the worker goes on, whatever happens to that next.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()
    sync(worker.loop, worker.scheduler.log_event, topic=topic, msg=[key, get_address_host(worker.address), None])
    reply = attempt(payload)
    sync(worker.loop, worker.scheduler.log_event, topic=topic, msg=[key, "", reply])
    return reply


def _checked(version: str, function: Callable[[T], R], task: T) -> R:
    """A worker that joined later may be another installation."""
    here = metadata.version(DISTRIBUTION)
    if here != version:
        raise UserError(f"a dask worker has recon {here}, this is {version}: install the same everywhere")
    return function(task)


class Dask(Closing):
    """Tasks run on dask's workers, one at a time on each.

    When a worker is lost, dask blames every task it had been given, and runs those again whose results it still held.
    Each task therefore announces its beginning and its result: only one that was between them counts a death.

    A node that is at fault itself, having no OpenGL or no mount, gets no more tasks in this run while others are left.

    After an early end, tasks that have begun on the workers of a scheduler that runs on go on to their end there: dask
    cannot stop a thread.
    """

    isolated = True

    def __init__(self, client: Any, cluster: Any = None) -> None:
        """Takes over the client, and the cluster where that is its own: both end with it.

        Raises:
            UserError: the scheduler or a worker has no recon, or another version of it.
        """
        self._client, self._cluster = client, cluster
        self._address = client.scheduler.address
        self._topic = f"{NAME}-{uuid.uuid4().hex}"
        self._begun: Counter[str] = Counter()
        self._replies: dict[str, bytes] = {}
        self._nodes: dict[str, str] = {}
        self._futures: dict[str, Any] = {}  # those of which no reply was heard yet
        self._left_out: set[str] = set()
        self._over: SimpleQueue[str] = SimpleQueue()
        self._workers: dict[str, Any] = {}
        self._counted = float("-inf")
        self._warned = False
        self._version = metadata.version(DISTRIBUTION)
        with self._connection():
            self._check_versions()
            client.register_plugin(OneThread(), name=NAME)
            client.subscribe_topic(self._topic, self._hear)

    @property
    def workers(self) -> int:
        """How many workers the scheduler has now (at least one: a cluster may have to be asked before it grows)."""
        return max(1, len(self._census()))

    def close(self) -> None:
        """See `Executor.close`; a cluster that was started for the run ends with it."""
        _close(self._client, self._cluster)

    def run(self, function: Callable[[T], R], tasks: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        """See `Executor.run`."""
        checked: Callable[[T], R] = partial(_checked, self._version, function)
        source = (Job.of(checked, task) for task in tasks)
        waiting: deque[Job] = deque()
        flying: dict[str, tuple[Job, Any]] = {}
        lost: set[str] = set()  # workers that ended, one after the other, with nothing begun
        self._replies.clear()
        self._left_out.clear()
        try:
            while True:
                waiting.extend(islice(source, max(0, 2 * self._hands(gpu) - len(flying) - len(waiting))))
                while waiting:
                    future = self._submit(waiting[0], gpu)
                    flying[future.key] = waiting.popleft(), future
                    self._futures[future.key] = future
                    future.add_done_callback(self._done)
                if not flying:
                    return
                key = self._next(gpu)
                if key not in flying:  # of a run that was left
                    continue
                job, future = flying.pop(key)
                self._futures.pop(key, None)
                reply, node = self._reply(job, future, lost), self._nodes.pop(key, "")
                fault = fault_in(reply) if reply else ""
                again = reply is None or (fault and self._leave_out(node, fault, gpu))
                result = None if again or reply is None else job.settle(reply)
                if result is None:
                    waiting.append(job)
                else:
                    yield result[0]
        finally:
            flying.clear()  # dask drops what nobody waits for
            self._futures.clear()

    def _submit(self, job: Job, gpu: bool) -> Any:
        needs = {"GPU": 1} if gpu and self._gpus() else None
        where = sorted(self._able(gpu)) if self._left_out else None
        with self._connection(), annotate(executor=NAME):
            return self._client.submit(run_shard, job.payload, self._topic, pure=False, resources=needs, workers=where)

    def _leave_out(self, node: str, fault: str, gpu: bool) -> bool:
        """Give a node at fault no more tasks; False where it is the last one, or unknown."""
        if not node or not self._able(gpu) - {node}:
            return False
        if node not in self._left_out:
            self._left_out.add(node)
            log.warning("%s gets no more tasks: %s", node, fault)
        return True

    def _hear(self, event: tuple[float, list[Any]]) -> None:
        """In the client's thread: a task has begun, or has come to its end."""
        key, node, reply = event[1]
        if reply is None:
            self._begun[key] += 1
            self._nodes[key] = node
        else:
            self._replies[key] = reply
            if future := self._futures.pop(key, None):
                future.release()  # at once, or dask would run it again were the worker lost that holds the result

    def _done(self, future: Any) -> None:
        """In a thread of the client's: the task runs nowhere any more, or its reply has come."""
        self._over.put(future.key)
        if future.key in self._replies:  # heard before the future was at hand
            future.release()

    def _next(self, gpu: bool) -> str:
        since = time.monotonic()
        while True:
            with suppress(Empty):
                return self._over.get(timeout=CENSUS_SECONDS)
            if not self._warned and time.monotonic() - since > WARN_SECONDS and not self._able(gpu):
                self._warned = True
                which = "only workers that are at fault" if self._left_out else "no workers yet"
                log.warning("the scheduler at %s has %s: waiting for others", self._address, which)

    def _reply(self, job: Job, future: Any, lost: set[str]) -> bytes | None:
        """What the worker said; None when it was lost and the task has to be given out again."""
        begun, reply = self._begun.pop(future.key, 0), self._replies.pop(future.key, None)
        if begun:
            lost.clear()
        try:
            with self._connection():
                return reply or future.result()
        except KilledWorker as error:
            last = error.last_worker.address
        job.died(f"the last was {last}", begun)
        lost.add(last)
        if not begun and len(lost) >= jobs.MAX_DEATHS:
            raise UserError(f"{len(lost)} dask workers ended before they began a task")
        return None

    def _census(self) -> dict[str, Any]:
        """The scheduler's workers by address, a moment old at most."""
        now = time.monotonic()
        if now - self._counted > CENSUS_SECONDS:
            with self._connection():
                self._workers = dict(self._client.scheduler_info(n_workers=-1)["workers"])
            self._counted = now
        return self._workers

    def _able(self, gpu: bool) -> set[str]:
        """The nodes, by what dask calls their hosts, that tasks of this kind can be given to."""
        census = self._census()
        having = {where for where, worker in census.items() if worker["resources"].get("GPU")} if gpu else set()
        return {get_address_host(where) for where in having or census} - self._left_out

    def _gpus(self) -> int:
        return sum(bool(worker["resources"].get("GPU")) for worker in self._census().values())

    def _hands(self, gpu: bool) -> int:
        """How many tasks of this kind run at a time."""
        return (gpu and self._gpus()) or self.workers

    def _check_versions(self) -> None:
        """By a function of Python's own, which a worker without this package can unpickle too."""
        found = self._client.run(metadata.version, DISTRIBUTION, on_error="return")
        with suppress(metadata.PackageNotFoundError):
            found["the scheduler"] = self._client.run_on_scheduler(metadata.version, DISTRIBUTION)
        found.setdefault("the scheduler", None)
        for where, version in found.items():
            if version != self._version:
                has = f"recon {version}" if isinstance(version, str) else "no recon"
                raise UserError(f"{where} has {has}, this is {self._version}: install the same everywhere")

    @contextmanager
    def _connection(self) -> Generator[None, None, None]:
        """Turns what dask raises into a line."""
        try:
            yield
        except (KilledWorker, UserError):
            raise
        except (OSError, CancelledError, ClosedClientError) as error:
            raise UserError(
                f"lost the dask scheduler at {self._address}: finished shards are kept, run the same command again"
            ) from error
        except Exception as error:
            raise UserError(f"dask at {self._address} does not run recon's tasks: {one_line(error)}") from error


def _close(client: Any, cluster: Any) -> None:
    """Ends both, also when the scheduler is gone."""
    with suppress(OSError, TimeoutError):
        client.close(timeout=CLOSE_SECONDS)
    if cluster is not None:
        with suppress(OSError, TimeoutError):
            cluster.close(timeout=CLOSE_SECONDS)


def _silence() -> None:
    """A lost worker or Ctrl-C is for us to tell of, in a line; dask would write dozens."""
    for name in ("distributed", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(SILENT)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("distributed.", "tornado.")):
            logging.getLogger(name).setLevel(logging.NOTSET)

"""Runs shard tasks on the workers of a dask.distributed scheduler, or of a cluster it starts."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import importlib.util
import logging
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
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker
from distributed.threadpoolexecutor import ThreadPoolExecutor
from distributed.utils import sync

from pipeline.errors import UserError
from pipeline.execution import executor
from pipeline.execution.executor import Closing, Job, attempt, default_workers, set_thread_variables

T = TypeVar("T")
R = TypeVar("R")

CONNECT_SECONDS = 10.0
START_SECONDS = 60.0
CLOSE_SECONDS = 10.0
CENSUS_SECONDS = 2.0
WARN_SECONDS = 30.0
SLURM_FILE = "~/.config/dask/jobqueue.yaml"
NAME = "recon"
log = logging.getLogger(__name__)


def connect(address: str) -> Dask:
    """The executor of a scheduler that runs already. UserError when it cannot be used."""
    _silence()
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise UserError(
            f"no dask scheduler answers at {address} within {CONNECT_SECONDS:g} s: "
            "check the address (tcp://host:port) and that `dask scheduler` runs there"
        ) from error
    return _adopt(client)


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
            raise UserError(f"the {kind} cluster does not start: {executor.one_line(error)}") from error
    return _adopt(distributed.Client(cluster, timeout=START_SECONDS, set_as_default=False), cluster)


def _adopt(client: Any, cluster: Any = None) -> Dask:
    try:
        return Dask(client, cluster)
    except BaseException:
        _close(client, cluster)
        raise


def _local(workers: int) -> Any:
    # No memory limit: dask stops giving tasks to a worker near it, and one that waits never frees torch's memory.
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",  # given none, it takes port 8787 and warns when that is taken
        scheduler_kwargs={"dashboard": False},
        silence_logs=logging.CRITICAL,
    )


def _slurm(workers: int | None) -> Any:
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise UserError("--cluster slurm needs dask-jobqueue: pip install 'recon[slurm]'")
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
        set_thread_variables()
        worker.executors[NAME] = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        worker.memory_manager.memory_pause_fraction = False  # see _local

    def teardown(self, worker: Any) -> None:
        thread = worker.executors.pop(NAME, None)
        if thread is not None:
            thread.shutdown(wait=False)


def run_shard(payload: bytes, topic: str) -> bytes:
    """What dask runs: says that the task begins, waits until the scheduler knows it, and does it."""
    worker = distributed.get_worker()
    sync(worker.loop, worker.scheduler.log_event, topic=topic, msg=worker.get_current_task())
    return attempt(payload)


def _checked(version: str, function: Callable[[T], R], task: T) -> R:
    """A worker that joined later may be another installation."""
    here = metadata.version("recon")
    if here != version:
        raise UserError(f"a dask worker has recon {here}, this is {version}: install the same everywhere")
    return function(task)


class Dask(Closing):
    """Tasks run on dask's workers, one at a time on each.

    When a worker is lost, dask blames every task it had been given. Each task therefore announces its beginning, and
    only one that had begun counts a death. After an early end, tasks that have begun on the workers of a scheduler that
    runs on go on to their end there: dask cannot stop a thread.
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
        self._workers: dict[str, Any] = {}
        self._counted = float("-inf")
        self._warned = False
        self._version = metadata.version("recon")
        with self._connection():
            self._check_versions()
            client.register_plugin(OneThread(), name=NAME)
            client.subscribe_topic(self._topic, lambda event: self._begun.update([event[1]]))

    @property
    def workers(self) -> int:
        """How many workers the scheduler has now (at least one: a cluster may have to be asked before it grows)."""
        return max(1, len(self._census()))

    def close(self) -> None:
        _close(self._client, self._cluster)

    def run(self, function: Callable[[T], R], tasks: Iterable[T], *, gpu: bool = False) -> Iterator[R]:
        checked: Callable[[T], R] = partial(_checked, self._version, function)
        source = (Job.of(checked, task) for task in tasks)
        waiting: deque[Job] = deque()
        flying: dict[str, tuple[Job, Any]] = {}
        finished: SimpleQueue[Any] = SimpleQueue()
        lost: set[str] = set()  # workers that ended, one after the other, with nothing begun
        try:
            while True:
                waiting.extend(islice(source, max(0, 2 * self._hands(gpu) - len(flying) - len(waiting))))
                while waiting:
                    future = self._submit(waiting[0], gpu)
                    flying[future.key] = waiting.popleft(), future
                    future.add_done_callback(finished.put)
                if not flying:
                    return
                future = self._next(finished)
                job, _ = flying.pop(future.key)
                reply = self._reply(job, future, lost)
                result = None if reply is None else job.settle(reply)
                if result is None:
                    waiting.append(job)
                else:
                    yield result[0]
        finally:
            flying.clear()  # dask drops what nobody waits for

    def _submit(self, job: Job, gpu: bool) -> Any:
        needs = {"GPU": 1} if gpu and self._gpus() else None
        with self._connection(), annotate(executor=NAME):
            return self._client.submit(run_shard, job.payload, self._topic, pure=False, resources=needs)

    def _next(self, finished: SimpleQueue[Any]) -> Any:
        """The next future that is done, one way or another."""
        since = time.monotonic()
        while True:
            with suppress(Empty):
                return finished.get(timeout=CENSUS_SECONDS)
            if not self._warned and time.monotonic() - since > WARN_SECONDS and not self._census():
                self._warned = True
                log.warning("the scheduler at %s has no workers yet: waiting for them", self._address)

    def _reply(self, job: Job, future: Any, lost: set[str]) -> bytes | None:
        """What the worker said; None when it was lost and the task has to be given out again."""
        begun = 0
        try:
            with self._connection():
                reply: bytes = future.result()
        except KilledWorker as error:
            begun = self._begun[future.key]
            job.died(f"the last was {error.last_worker.address}", begun)
            lost.add(error.last_worker.address)
            if not begun and len(lost) >= executor.MAX_DEATHS:
                raise UserError(f"{len(lost)} dask workers ended before they began a task") from None
            return None
        else:
            begun = 1
            return reply
        finally:
            del self._begun[future.key]
            if begun:
                lost.clear()

    def _census(self) -> dict[str, Any]:
        """The scheduler's workers by address, a moment old at most."""
        now = time.monotonic()
        if now - self._counted > CENSUS_SECONDS:
            with self._connection():
                self._workers = dict(self._client.scheduler_info(n_workers=-1)["workers"])
            self._counted = now
        return self._workers

    def _gpus(self) -> int:
        return sum(bool(worker["resources"].get("GPU")) for worker in self._census().values())

    def _hands(self, gpu: bool) -> int:
        """How many tasks of this kind run at a time."""
        return (gpu and self._gpus()) or self.workers

    def _check_versions(self) -> None:
        """By a function of Python's own, which a worker without this package can unpickle too."""
        found = self._client.run(metadata.version, NAME, on_error="return")
        with suppress(metadata.PackageNotFoundError):
            found["the scheduler"] = self._client.run_on_scheduler(metadata.version, NAME)
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
            raise UserError(
                f"dask at {self._address} does not run recon's tasks: {executor.one_line(error)}"
            ) from error


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
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("distributed.", "tornado.")):
            logging.getLogger(name).setLevel(logging.NOTSET)

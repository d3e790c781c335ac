"""Runs shard tasks on the workers of a dask.distributed scheduler, or of a cluster that `starting` starts."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

import distributed
from dask import annotate  # type: ignore[attr-defined]
from distributed.client import ClosedClientError
from distributed.comm.addressing import get_address_host
from distributed.scheduler import KilledWorker
from distributed.utils import sync

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import one_line, some
from recon.pipeline.execution import jobs, starting
from recon.pipeline.execution.admission import NAME, Admission
from recon.pipeline.execution.executor import Closing
from recon.pipeline.execution.jobs import Job, at_hand, attempt, fault_in
from recon.pipeline.execution.starting import DISTRIBUTION

T = TypeVar("T")
R = TypeVar("R")

CONNECT_SECONDS = 10.0
JOIN_SECONDS = 10.0  # of a cluster that starts: its workers join one after the other
START_SECONDS = 60.0
CLOSE_SECONDS = 10.0
CENSUS_SECONDS = 2.0
ALONE_SECONDS = 0.2  # between two looks for workers where there are none
ANSWER_SECONDS = 1.0  # who takes longer to say what it computes with is asked on
WARN_SECONDS = 30.0
log = logging.getLogger(__name__)


def connect(address: str, gpu_workers: int = 0) -> Dask:
    """The executor of a scheduler that runs already; see `open_executor`. UserError when it cannot be used."""
    starting.silence()
    try:
        starting.knock(address, CONNECT_SECONDS)
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no dask scheduler answers at {address} within {CONNECT_SECONDS:g} s: "
            "check the address (tcp://host:port) and that `dask scheduler` runs there"
        ) from error
    return _adopt(client, gpu_workers=gpu_workers)


def start_cluster(kind: Literal["local", "slurm", "ssh"] | None, workers: int | None, hosts: Sequence[str]) -> Dask:
    """The executor of a cluster of its own; see `open_executor`. UserError when it does not start."""
    starting.silence()
    cluster = starting.start(kind, workers, hosts)
    return _adopt(distributed.Client(cluster, timeout=START_SECONDS, set_as_default=False), cluster)


def _adopt(client: Any, cluster: Any = None, gpu_workers: int = 0) -> Dask:
    try:
        return Dask(client, cluster, gpu_workers)
    except BaseException:
        _close(client, cluster)
        raise


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


@dataclass(eq=False)
class _Flight:
    """A job that dask has."""

    job: Job
    future: Any
    where: frozenset[str]
    """The workers that it may be given to."""


class Dask(Closing):
    """Tasks run on dask's workers, one at a time on each.

    Only workers that run what this process runs get any (`admission`); who is refused is told, and left alone.

    When a worker is lost, dask blames every task it had been given, and runs those again whose results it still held.
    Each task therefore announces its beginning and its result: only one that was between them counts a death.

    A node that is at fault itself, having no OpenGL or no mount, gets no more tasks in this run while others are left.

    After an early end, tasks that have begun on the workers of a scheduler that runs on go on to their end there: dask
    cannot stop a thread.
    """

    isolated = True

    def __init__(self, client: Any, cluster: Any = None, gpu_workers: int = 0) -> None:
        """Takes over the client, and the cluster where that is its own: both end with it.

        gpu_workers: that are said to have a GPU; with none, what gains by one goes to any worker until one joins.

        Raises:
            UserError: the scheduler has no recon or another version of it; there are workers, all are refused, and no
                other joins within `JOIN_SECONDS`.
        """
        self._client, self._cluster, self._gpu_workers = client, cluster, gpu_workers
        self._address = client.scheduler.address
        self._topic = f"{NAME}-{uuid.uuid4().hex}"
        self._begun: Counter[str] = Counter()
        self._replies: dict[str, bytes] = {}
        self._nodes: dict[str, str] = {}
        self._futures: dict[str, Any] = {}  # those of which no reply was heard yet
        self._over: SimpleQueue[str] = SimpleQueue()
        self.left_out: list[str] = []
        self._at_fault: set[str] = set()  # nodes
        self._admission = Admission(client)
        self._workers: dict[str, Any] = {}
        self._refused: dict[str, str] = {}
        self._unheard = 0  # how many have not answered yet
        self._admitted = False  # ever
        self._joining = 0.0  # until when others are waited for where one admitted is not enough
        self._counted = float("-inf")
        self._alone = float("inf")  # since when there is none for what is to be done
        self._warned = ""  # of what, since then
        with self._connection():
            self._check_scheduler()
            client.subscribe_topic(self._topic, self._hear)
        deadline = time.monotonic() + JOIN_SECONDS
        while not self._census(CONNECT_SECONDS) and self._refused:  # by the first that have joined
            if time.monotonic() > deadline:
                if self._unheard:
                    break
                raise self._all_refused()
            time.sleep(ALONE_SECONDS)

    @property
    def workers(self) -> int:
        """How many workers are admitted now; see `_hands`."""
        return self._hands(False)

    def close(self) -> None:
        """See `Executor.close`; a cluster that was started for the run ends with it."""
        self._admission.close()
        _close(self._client, self._cluster)

    @property
    def gpu_workers(self) -> int:
        """How many of them have a GPU; all, where none has and none is waited for."""
        return self._hands(True)

    def run(
        self, function: Callable[[T], R], tasks: Iterable[T | None], *, on_gpu: Iterable[T | None] = ()
    ) -> Iterator[R]:
        """See `Executor.run`; tasks for a GPU begin when the others are done."""
        yield from self._run(function, tasks, False)
        yield from self._run(function, on_gpu, True)

    def _run(self, function: Callable[[T], R], tasks: Iterable[T | None], gpu: bool) -> Iterator[R]:
        source = (None if task is None else Job.of(function, task) for task in tasks)
        waiting: deque[Job] = deque()
        flying: dict[str, _Flight] = {}
        lost: set[str] = set()  # workers that ended, one after the other, with nothing begun
        self._replies.clear()
        self._at_fault.clear()
        try:
            while True:
                waiting.extend(at_hand(source, 2 * self._hands(gpu) - len(flying) - len(waiting)))
                self._give_out(waiting, flying, gpu)
                if not flying and not waiting:
                    return
                key = self._next(gpu)
                if key is None:
                    waiting.extend(self._stranded(flying))
                if key is None or key not in flying:  # of a run that was left, or taken back
                    continue
                job, future = flying[key].job, flying.pop(key).future
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

    def _give_out(self, waiting: deque[Job], flying: dict[str, _Flight], gpu: bool) -> None:
        """Hand the waiting jobs to dask, for the workers there are and no others; none where there are none."""
        where = frozenset(self._able(gpu))
        needs = {"GPU": 1} if gpu and self._gpus() else None
        while waiting and where:
            job = waiting[0]
            with self._connection(), annotate(executor=NAME):
                future = self._client.submit(
                    run_shard, job.payload, self._topic, pure=False, resources=needs, workers=sorted(where)
                )
            waiting.popleft()
            flying[future.key] = _Flight(job, future, where)
            self._futures[future.key] = future
            future.add_done_callback(self._done)

    def _stranded(self, flying: dict[str, _Flight]) -> list[Job]:
        """Take back what was given to workers of which none is left: dask would wait for them to return."""
        there = self._census().keys()
        keys = [key for key, flight in flying.items() if not flight.where & there and key not in self._replies]
        back = []
        for key in keys:
            flight = flying.pop(key)
            self._futures.pop(key, None)
            self._nodes.pop(key, None)
            flight.future.release()
            flight.job.died("its worker is gone", self._begun.pop(key, 0))
            back.append(flight.job)
        return back

    def _leave_out(self, node: str, fault: str, gpu: bool) -> bool:
        """Give a node at fault no more tasks; False where it is the last one, or unknown."""
        if not node or not self._has_others(node, gpu):
            return False
        if node not in self._at_fault:
            self._at_fault.add(node)
            self._tell(f"{node} gets no more tasks: {fault}")
        return True

    def _has_others(self, node: str, gpu: bool) -> bool:
        """Whether there are other nodes that the node's tasks can be given to; waits for those that still join."""
        while not {get_address_host(where) for where in self._able(gpu)} - {node}:
            if time.monotonic() > self._joining:
                return False
            time.sleep(ALONE_SECONDS)
        return True

    def _tell(self, line: str) -> None:
        """Of a machine that is left out: now, and for the end of the run."""
        log.warning("%s", line)
        if line not in self.left_out:
            self.left_out.append(line)

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

    def _next(self, gpu: bool) -> str | None:
        """The key of a task that is over; None when it is time to look at the workers again."""
        if able := self._able(gpu):
            self._alone, self._warned = float("inf"), ""
        else:
            self._wait(gpu)
        with suppress(Empty):
            return self._over.get(timeout=CENSUS_SECONDS if able else ALONE_SECONDS)
        return None

    def _wait(self, gpu: bool) -> None:
        """Where nothing can be given out for a while, say what is waited for; UserError where all are refused."""
        self._alone = min(self._alone, time.monotonic())
        if time.monotonic() - self._alone < WARN_SECONDS:
            return
        if self._refused and not self._admitted:
            raise self._all_refused()
        which = "only workers that are at fault" if self._at_fault else "no workers yet"
        if gpu and self._gpu_workers and self._census() and not self._gpus():
            which = f"no worker started with --resources GPU=1 (--gpu-workers {self._gpu_workers})"
        if which != self._warned:
            self._warned = which
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

    def _census(self, patience: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The workers that are admitted, by address, a moment old at most; waits so long for new ones to answer."""
        now = time.monotonic()
        if now - self._counted > (CENSUS_SECONDS if self._workers else ALONE_SECONDS):
            with self._connection():
                there = dict(self._client.scheduler_info(n_workers=-1)["workers"])
                found = self._admission.look(there, patience)
            for where, why in found.items():
                if why and where not in self._refused:
                    self._refused[where] = f"{where.partition('://')[2]} {why}"
                    self._tell(self._refused[where])
            self._workers = {where: there[where] for where, why in found.items() if not why}
            self._unheard = len(there) - len(found)
            self._counted = time.monotonic()
            # A local cluster is one node, and waits for its workers itself.
            if self._workers and not self._admitted and not isinstance(self._cluster, distributed.LocalCluster):
                self._joining = self._counted + JOIN_SECONDS
            self._admitted |= bool(self._workers)
        return self._workers

    def _all_refused(self) -> UserError:
        lines = some(sorted(set(self._refused.values())))
        return UserError(f"no worker of the scheduler at {self._address} can be given tasks: {lines}")

    def _able(self, gpu: bool) -> set[str]:
        """The workers that tasks of this kind can be given to."""
        return {where for where in self._meant(gpu) if get_address_host(where) not in self._at_fault}

    def _meant(self, gpu: bool) -> set[str]:
        """Those at fault too."""
        having = self._gpus() if gpu else set()
        return having if gpu and (having or self._gpu_workers) else set(self._census())

    def _gpus(self) -> set[str]:
        return {where for where, worker in self._census().items() if worker["resources"].get("GPU")}

    def _hands(self, gpu: bool) -> int:
        """How many tasks of this kind run at a time (at least one: a cluster may have to be asked before it grows)."""
        return max(1, len(self._meant(gpu)))

    def _check_scheduler(self) -> None:
        """It unpickles tasks. Asked by a function of Python's own, which it has without this package."""
        here, version = metadata.version(DISTRIBUTION), None
        with suppress(metadata.PackageNotFoundError):
            version = self._client.run_on_scheduler(metadata.version, DISTRIBUTION)
        if version != here:
            has = f"recon {version}" if version else "no recon"
            raise UserError(f"the scheduler has {has}, this is {here}: install the same everywhere")

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

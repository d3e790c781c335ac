"""The processes of a run as each other's peers: joining, agreeing before the first step and on the last, and ending
together, in one line, when one of them fails, dies or falls silent.

torchrun ends the processes it started when one of them dies. What it does not see (a process that stands still, a
machine that is gone, its own end) is seen here: every process beats in torchrun's store every few seconds, rank 0
looks at all of them and they look at rank 0.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import shown
from recon.trainer.training.distributed import rank, world_size

T = TypeVar("T")

BEAT_SECONDS = 2.5
SILENT_BEATS = 8
"""A process that has not beaten while another did so often counts as dead: 20 s. torchrun then takes up to 30 s."""
COLLECTIVE = timedelta(minutes=10)
"""What one that beats may keep the others waiting: compiling, a probe on rank 0."""
LAST_WORDS_SECONDS = 3.0
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this is one of several processes that torchrun started."""
    return all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun started; nothing where there is one.

    An exception ends all of them. UserError leaves this in one of them, with the rank's name before it, and the others
    leave by SystemExit without a word; where one died, another leaves by a UserError that says so.

    What shares gradients (DistributedDataParallel) must not outlive this: the last to hold gloo's group waits, holding
    Python's lock, for a thread that may need that lock to let go of a tensor. So garbage is collected before.
    """
    if not launched():
        yield
        return
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    store, _, _ = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("recon/group", store),
        rank=number,
        world_size=size,
        timeout=COLLECTIVE,
    )
    # A connection of its own: one that waits for a key keeps all others of the connection waiting.
    peers = _Peers(next(rendezvous("env://"))[0])
    try:
        peers.start()
        yield
        _gathered(None)  # rank 0 may still be writing
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, to those a dead process left
        words = peers.last_words(error)
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if words is error:
            raise
        raise words from None
    finally:
        peers.stop()
    gc.collect()
    dist.destroy_process_group()


def check_alike(facts: dict[str, Any]) -> None:
    """UserError on every rank if one rank's facts (JSON values) are not those of rank 0."""
    if world_size() == 1:
        return
    (first, _), *others = _gathered((facts, _name()))
    for theirs, name in others:
        for key, value in first.items():
            if theirs.get(key) != value:
                raise UserError(f"{name} has another {key} than rank 0: {theirs.get(key)} instead of {value}")


def from_rank_0(compute: Callable[[], T]) -> T:
    """What rank 0 alone computes, on every rank. Call it on all ranks; they wait for it."""
    if world_size() == 1:
        return compute()
    found: T = _gathered(compute() if rank() == 0 else None)[0]
    return found


def own_device(name: str) -> torch.device:
    """This rank's device where `name` ("cpu" or "cuda") is what all compute on; UserError if there are too few."""
    if name != "cuda" or world_size() == 1:
        return torch.device(name)
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise UserError(f"--device cuda: {count} CUDA devices here; start one process for each, or use --device cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


class Stop:
    """The signal a run is to stop for, after the same step on every rank."""

    def __init__(self, received: list[int]) -> None:
        """`received` collects the signals this process gets."""
        self._received = received
        self._vote: tuple[dist.Work | None, torch.Tensor] | None = None

    def agreed(self) -> int:
        """Its number; 0 to go on. Call it on all ranks after every step.

        Of several ranks it is what they had received one call before: by then the votes are in, and no one waits.
        """
        mine = self._received[0] if self._received else 0
        if world_size() == 1:
            return mine
        before, value = self._vote, torch.tensor(mine)
        self._vote = (dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True), value)
        if before is None:
            return 0
        work, result = before
        if work is not None:
            work.wait()
        return int(result.item())


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; Ctrl-C after either interrupts at once.

    A second SIGTERM does not: a cluster's scheduler and a launcher may both pass one on, and the save is under way.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        # torchrun passes Ctrl-C on to processes that have it already, and kills those that take too long.
        if received and number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Peers(threading.Thread):
    """The thread in which a process beats, and listens to the others' beats."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="peers", daemon=True)
        self._store = PrefixStore("recon/peers", store)
        self._over = threading.Event()
        mine = {"name": _name(), "machine": os.environ.get("GROUP_RANK", ""), "pid": os.getpid()}
        self._members: list[dict[str, Any]] = _gathered(mine)
        self._watched = [0] if rank() else list(range(1, world_size()))

    def run(self) -> None:
        counts = dict.fromkeys(self._watched, 0)
        # In beats, not in seconds: a job that is suspended as a whole goes on as a whole.
        silent = dict.fromkeys(self._watched, 0)
        while not self._over.is_set():
            try:
                self._store.add(f"beat/{rank()}", 1)
                for number in self._watched:
                    count = self._store.add(f"beat/{number}", 0)
                    silent[number] = silent[number] + 1 if count == counts[number] else 0
                    counts[number] = count
                if self._failed() is not None and not self._over.wait(2 * LAST_WORDS_SECONDS):
                    os._exit(1)  # the main thread waits for what will not come
            except RuntimeError:  # torchrun, which holds the store, is gone, or has just ended a finished run
                if not self._over.wait(LAST_WORDS_SECONDS):
                    _end("torchrun's store does not answer any more")
            dead = [self._members[number]["name"] for number in self._watched if silent[number] >= SILENT_BEATS]
            if dead and not self._over.is_set():
                self._say_and_end(f"{dead[0]} has not been heard of for {SILENT_BEATS * BEAT_SECONDS:.3g} s")
            self._over.wait(BEAT_SECONDS)

    def stop(self) -> None:
        self._over.set()

    def last_words(self, error: BaseException) -> BaseException:
        """What to leave with instead of `error`."""
        silently = SystemExit(1)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return error
        if isinstance(error, UserError):
            text = f"{_name()}: {error}"
            return UserError(text) if self._is_first(text) else silently
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            text = self._who_is_gone() or f"a process of the run does not answer: {str(error).splitlines()[0]}"
            return UserError(text) if self._is_first(text) else silently
        return error if self._is_first(f"{_name()}: {type(error).__name__}: {error}") else silently

    def _who_is_gone(self) -> str:
        """The first of this machine's processes that has ended; "" if none has, or one has said why it did."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        while time.monotonic() < until and self._failed() is None:
            for member in self._members:
                if member["machine"] == os.environ.get("GROUP_RANK", "") and _has_ended(member["pid"]):
                    # One that ends in good order says so first.
                    return "" if self._failed() else f"{member['name']} was killed; torchrun says by which signal"
            time.sleep(0.05)
        return ""

    def _say_and_end(self, text: str) -> None:
        if self._is_first(text):
            _end(text)
        os._exit(1)

    def _is_first(self, text: str) -> bool:
        """Whether no process has said anything before; of several at a time, one is the first."""
        mine = f"{rank()} {text}"
        try:
            return self._store.compare_set("failed", "", mine) == mine.encode()
        except RuntimeError:
            return rank() == 0

    def _failed(self) -> str | None:
        return self._store.get("failed").decode() if self._store.check(["failed"]) else None


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _name() -> str:
    return f"rank {rank()} of {world_size()} ({socket.gethostname()}, pid {os.getpid()})"


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        # A zombie until torchrun looks.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _end(text: str) -> None:
    sys.stderr.write(f"error: {shown(text)}\n")
    sys.stderr.flush()
    os._exit(1)

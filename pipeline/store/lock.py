"""One writer a store: a lock file that says whose it is, shows signs of life, and is taken over when its owner died.

`lock.json` is written beside its place and linked into it, which fails when one is there, so nobody sees half a lock.
Its owner touches it every ten seconds. It is stale when its process is gone (on the same machine, at once) or when
nobody touched it for two minutes (another machine); ages are taken from the file system's own clock, which machines
share whatever theirs say. A lock from the future (that clock was set back, or the store copied) would not get old for
long: who is refused for it touches it once, so that its age counts from then.

Two that find the same stale lock: whoever links a claim named after the very bytes judged stale may remove it, after
looking again, so a late comer cannot remove the lock of the one who was faster. A claim is a lock itself and gets
stale like one. What is left is an owner on another machine who wakes from two minutes of sleep in the microseconds
between that second look and the removal; `Lock.check` tells an owner that its lock was taken over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from recon.pipeline.base.documents import BadDocument, parse_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.store.forms import OWNER

FILE = "lock.json"
TOUCH_SECONDS = 10.0
STALE_SECONDS = 120.0
AHEAD_SECONDS = 5.0  # a file system may round its times, or have several servers
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Owner:
    """Who holds a store; the content of lock.json."""

    host: str
    pid: int
    started: float
    """When the process began, in seconds since 1970."""
    boot: float
    """When its machine did: the difference stays the same when the clock is set."""
    space: str
    """The namespace its pid counts in: containers can share a host's name."""
    what: str
    since: str


class Lock:
    """A held lock. `check` is to be called between shards."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.pid = os.getpid()
        self.depth = 0
        self._handle = handle  # keeps the inode from being given to another file
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="store lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """UserError when the lock is no longer this process's: it slept so long that another took the store over."""
        if not self._is_mine():
            owner = _read(self.path)[1]
            taken = f"taken over by {owner.host}, process {owner.pid}" if owner else "gone"
            raise UserError(f"{self.path}: this run's lock is {taken}; stopped, start it again when the store is free")

    def release(self) -> None:
        """Let go of the store; a lock that another run has taken over meanwhile is left to it."""
        self._ended.set()
        self._thread.join()
        if self._is_mine():
            with suppress(OSError):
                self.path.unlink()
        os.close(self._handle)

    def _is_mine(self) -> bool:
        try:
            mine, there = os.fstat(self._handle), self.path.stat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH_SECONDS):
            with suppress(OSError):  # by the handle, so never somebody else's file
                os.utime(self._handle)


_held: dict[Path, Lock] = {}
_mutex = threading.Lock()


@contextmanager
def hold(store: Path, what: str) -> Iterator[Lock]:
    """Hold a store while `what` ("render", "gc") writes to it; nested calls of one process share one lock.

    UserError when another process writes to it, and when the folder is missing or cannot be written to.
    """
    path = store.resolve() / FILE
    with _mutex:
        lock = _held.get(path)
        if lock is None or not is_held(store):  # a forked child has its parent's table, but not its lock
            lock = _held[path] = Lock(path, _acquire(path, what))
        lock.depth += 1
    try:
        yield lock
    finally:
        with _mutex:
            lock.depth -= 1
            if not lock.depth:
                del _held[path]
                lock.release()


def writer(store: Path) -> Owner | None:
    """Who writes to the store now, this process included; an owner that can be seen to be gone does not count."""
    path = store.resolve() / FILE
    owner = _read(path)[1]
    return owner if owner and (is_held(store) or not _is_stale(path, owner, time.time())) else None


def is_held(store: Path) -> bool:
    """Whether this process holds the store."""
    held = _held.get(store.resolve() / FILE)
    return held is not None and held.pid == os.getpid()


def _acquire(path: Path, what: str) -> int:
    """An open handle of a lock made at `path`."""
    own = path.with_name(f".lock.{uuid.uuid4().hex}.tmp")
    try:
        own.write_text(json.dumps(asdict(_myself(what)), indent=1) + "\n", encoding="utf-8")
        while True:
            handle = _place(own, path)
            if handle is not None:
                return handle
            content, owner = _read(path)
            if content is None:
                continue
            now = _clock(own)
            if not _is_stale(path, owner, now):
                refusal = _refusal(path, owner, now)
                _bring_back(path, now)
                raise UserError(refusal)
            _remove_stale(path, own, content)
    except OSError as error:
        raise UserError(f"{path}: cannot lock the store to write to it: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            own.unlink()


def _place(own: Path, path: Path) -> int | None:
    """A handle of `own` under the name `path`; None when there is a file of that name."""
    try:
        os.link(own, path)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:  # a file system without links; who reads half of this file takes its age for the owner's
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return None
        os.write(handle, own.read_bytes())
        os.fsync(handle)
        return handle
    return os.open(path, os.O_RDWR)


def _remove_stale(path: Path, own: Path, content: bytes) -> None:
    """Remove the lock judged stale by its `content`, or leave that to whoever is doing it already."""
    claim = path.with_name(f".lock.{hashlib.sha256(content).hexdigest()[:16]}.claim")
    handle = _place(own, claim)
    if handle is None:
        now = _clock(own)
        if _is_stale(claim, _read(claim)[1], now):
            with suppress(FileNotFoundError):
                claim.unlink()
        _bring_back(claim, now)
        time.sleep(0.01)
        return
    try:
        there, owner = _read(path)
        if there == content and _is_stale(path, owner, _clock(own)):
            path.unlink()
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            claim.unlink()


def _read(path: Path) -> tuple[bytes | None, Owner | None]:
    """A lock's bytes (None: no such file) and what they say (None: not a lock's)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, None
    try:
        return content, Owner(**parse_document(content, OWNER, path, ""))
    except BadDocument:
        return content, None


def _is_stale(path: Path, owner: Owner | None, now: float) -> bool:
    """Whether the lock's process is gone, as far as can be known; asked by a process that holds none."""
    me = _myself("")
    if owner is None or (owner.host, owner.space) != (me.host, me.space):
        return _age(path, now) > STALE_SECONDS
    if owner.pid == me.pid:
        return True
    try:
        process = psutil.Process(owner.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        started = process.create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:  # there, but somebody else's
        return False
    same = abs(started - owner.started) < 1
    return not (same or abs((started - me.boot) - (owner.started - owner.boot)) < 0.1)


def _clock(own: Path) -> float:
    """The time by the clock of the store's file system, which machines share."""
    os.utime(own)
    return own.stat().st_mtime


def _age(path: Path, now: float) -> float:
    """Seconds since a lock was touched."""
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bring_back(path: Path, now: float) -> None:
    """Touch a lock from the future: its owner does so every ten seconds, so this makes none look alive for longer."""
    if _age(path, now) < -AHEAD_SECONDS:
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)


def _refusal(path: Path, owner: Owner | None, now: float) -> str:
    age = _age(path, now)
    sign = f"{max(age, 0.0):.0f} s ago"
    if age < -AHEAD_SECONDS:
        sign = f"{-age:.0f} s in the future by the disk's clock and counted from now on"
    age = max(age, 0.0)
    if owner is None:
        return (
            f"{path}: unreadable; another program may be writing to the store: "
            f"wait {STALE_SECONDS - age:.0f} s and run the command again, or delete the file if none is"
        )
    return (
        f"{path.parent}: `{owner.what}` is writing to it since {owner.since} (host {owner.host}, process {owner.pid}, "
        f"last sign of life {sign}); wait for it or stop it, then run the command again"
    )


def _myself(what: str) -> Owner:
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(
        socket.gethostname(), os.getpid(), psutil.Process().create_time(), psutil.boot_time(), space, what, since
    )

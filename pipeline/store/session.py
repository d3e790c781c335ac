"""A writing run's hold on a store: nobody else writes, and what a killed run left between is settled."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.store import twins
from recon.pipeline.store.feature_store import FeatureStore, WritableStore
from recon.pipeline.store.lock import Lock, hold
from recon.pipeline.store.reader import is_store, no_store

NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
# What waiting does not mend.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG} | NOT_ALLOWED


def require_store(path: Path) -> None:
    """UserError where neither a store nor the second copies of one lie: `writing` would make one of a mistyped path."""
    if not is_store(path) and not is_store(path / twins.FOLDER):
        raise no_store(path)


@contextmanager
def writing(path: Path, what: str, idle: bool = False) -> Iterator[WritableStore]:
    """The store at `path`, made if there is none, with its lock held by this process.

    Small files that a kill left between two states go back to the last whole one; notes of workers that are gone are
    dropped. UserError for a store that another run holds, for what is no store, and for a disk that refuses.

    idle: a store that may not be written to is opened too, for a run that may find nothing to do: its `guard`, which
        is asked before anything is written, raises the UserError.
    """
    if not (path / "twins" / "zarr.json").is_file():  # then it is new, or not ours to put a lock into
        FeatureStore.create(path)
    with ExitStack() as stack:
        lock = _hold(stack, path, what, idle)
        if isinstance(lock, OSError):
            yield _to_read(path, lock)
            return
        twins.settle(path)
        shutil.rmtree(path / "running", ignore_errors=True)
        store = FeatureStore.create(path)
        store.guard = lock.check
        try:
            yield store
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            raise cannot_write(path, error) from error


def _hold(stack: ExitStack, path: Path, what: str, idle: bool) -> Lock | OSError:
    """The store's lock; or why none can be put there, where the run is `idle`."""
    try:
        return stack.enter_context(hold(path, what))
    except UserError as error:
        cause = error.__cause__
        if idle and isinstance(cause, OSError) and cause.errno in NOT_ALLOWED:
            return cause
        raise


def _to_read(path: Path, refusal: OSError) -> WritableStore:
    def refuse() -> None:
        raise cannot_write(path, refusal)

    store = WritableStore.open(path)
    store.guard = refuse
    return store


def cannot_write(store: Path, error: OSError) -> MachineError:
    """What a full disk or a missing permission is told as."""
    what = error.strerror or str(error)
    return MachineError(f"{store}: cannot write ({what}); finished shards are kept: mend that and run the same again")

"""One training a run's folder: a lock of the system's, which a process that ends in any way lets go of."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import stamp

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def held_run(run: Path, before: str) -> Iterator[None]:
    """Hold a run's folder, made if there is none, while this process trains in it.

    before: `stamp` of its config.json when the command looked. UserError where another process trains there, or has
    since. File systems without locks let anyone in.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--run {run}: cannot be written: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                words = "another process trains in it: wait for that one, or name another folder"
                raise UserError(f"--run {run}: {words}") from error
        if stamp(run / "config.json") != before:
            raise UserError(f"--run {run}: another process has begun a run in it: name another folder")
        yield
    finally:
        os.close(handle)

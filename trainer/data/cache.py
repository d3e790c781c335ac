"""The trainer's copies of a store's rows: a plain array a column in `<store>/cache/<digest>/`, mapped by all alike."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.documents import BadDocument, read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import crc32, sync_directory
from recon.pipeline.store.forms import SUMS
from recon.trainer.data.reading import iterate_rows

if TYPE_CHECKING:
    import zarr

CACHE_VERSION = 2
FILE, SUMS_FILE, LOCK = "rows.npy", "sums.json", ".lock"
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
log = logging.getLogger(__name__)


def cached_array(
    root: Path, held: dict[str, Any], array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lanes: int = 0
) -> NDArray[Any]:
    """Map rows of a store's column, [N, ...] or behind its axis of lanes, copied unless a sound copy is there.

    `held` says what the copy is of: its digest names the folder. Of several processes that find none, one makes it and
    the others wait for it. Where `root` may not be written to, each process maps one of its own, which is deleted at
    once and lasts as long as the map. UserError where the store cannot be read, a disk is full, or a link stands in
    the way: nothing is read or written behind one.
    """
    folder = root / digest_of([CACHE_VERSION, held])
    for path in (root, root / LOCK, folder, folder / FILE, folder / SUMS_FILE):
        if path.is_symlink():
            raise UserError(f"{path}: a link, and copies of rows stay in the store: delete the link")
    if not _is_sound(folder):
        try:
            root.mkdir(exist_ok=True)
            with _only_builder(root):
                if not _is_sound(folder):
                    _write_cache(folder, array, rows, what, lanes)
        except OSError as error:
            if error.errno in _NOT_ALLOWED:
                _tell_once(root, error.strerror)
                return _passing_copy(array, rows, what, lanes)
            raise UserError(f"{folder}: cannot write a copy of the store's rows: {error.strerror or error}") from error
    return _mapped(folder / FILE)


def _mapped(path: Path) -> NDArray[Any]:
    """A copy-on-write map: torch wants memory it could write to, and the file stays as it is."""
    mapped: NDArray[Any] = np.load(path, mmap_mode="c")
    return mapped


def _passing_copy(array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lanes: int) -> NDArray[Any]:
    """Rows mapped from a temporary file that has no name any more."""
    try:
        with tempfile.TemporaryDirectory(prefix="recon-rows-") as folder:
            _copy_rows(Path(folder) / FILE, array, rows, what, lanes)
            return _mapped(Path(folder) / FILE)
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()}: cannot write a copy of the store's rows: {error.strerror or error}; name a "
            'larger folder in TMPDIR, or read the store as it is with data.loader = "stream"'
        ) from error


@lru_cache
def _tell_once(root: Path, why: str | None) -> None:
    log.warning(
        "%s: cannot be written to (%s); copies of its rows lie in %s for as long as this run",
        root, why, tempfile.gettempdir(),
    )  # fmt: skip


@contextmanager
def _only_builder(root: Path) -> Iterator[None]:
    """Hold the lock of the folder of copies; the system lets go of it when its owner ends, however it ends."""
    with (root / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # A file system without locks: several may build, and the first to rename its copy wins.
            if error.errno not in _NO_LOCKS:
                raise
        else:
            for remains in root.glob(".writing-*"):  # of builders that were killed
                shutil.rmtree(remains, ignore_errors=True)
        yield


def _write_cache(folder: Path, array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lanes: int) -> None:
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex}")
    temporary.mkdir()  # as the umask says, like the rest of the store: who may read that may map this
    try:
        _copy_rows(temporary / FILE, array, rows, what, lanes)
        sums = {path.name: crc32(path) for path in sorted(temporary.iterdir())}
        (temporary / SUMS_FILE).write_text(json.dumps(sums), "utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync_directory(path)  # on a file it does the same
        # What stands in the way failed its check; a run that wrote the same copy meanwhile is as good as this one.
        if folder.exists() and not _is_sound(folder):
            shutil.rmtree(folder)
        if not folder.exists():
            temporary.rename(folder)
            sync_directory(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_rows(path: Path, array: zarr.Array[Any], rows: NDArray[np.int64], what: str, lanes: int) -> None:
    shape = (*array.shape[:lanes], len(rows), *array.shape[lanes + 1 :])
    copy = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype.newbyteorder("<"), shape=shape)
    for lane in range(array.shape[0]) if lanes else (None,):
        target = copy if lane is None else copy[lane]
        for part, values in iterate_rows(array, rows, what, lane):
            target[part] = values
    copy.flush()


def _is_sound(folder: Path) -> bool:
    try:
        sums = read_document(folder / SUMS_FILE, SUMS, "")
        return set(sums) == {FILE} and all(crc32(folder / n) == s for n, s in sums.items())
    except (OSError, BadDocument):
        return False

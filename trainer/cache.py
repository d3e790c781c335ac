"""The trainer's copy of a store's rows: plain arrays in `<store>/cache/<digest>/`, mapped by every process alike."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import crc32, sync_directory
from recon.trainer.reading import iterate_rows

if TYPE_CHECKING:
    from recon.pipeline.store.records import Points, Targets

CACHE_VERSION = 1
LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def cached_arrays(
    root: Path, record: dict[str, Any], points: Points, targets: Targets, rows: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Map xyz [N, P, 3] and image [K, N, V, D] of the rows, copied out of the store unless a sound copy is there.

    Of several processes that find none, one makes it and the others wait for it. UserError where the store cannot be
    read, or `root` not be written to.
    """
    folder = root / digest_of([CACHE_VERSION, record["rows"], record["points"], record["image"]])
    if not _is_sound(folder):
        try:
            root.mkdir(exist_ok=True)
            with _only_builder(root):
                if not _is_sound(folder):
                    _write_cache(folder, points, targets, rows)
        except OSError as error:
            raise UserError(f"{folder}: cannot write a copy of the store's rows: {error.strerror or error}") from error
    # Copy-on-write maps: torch wants memory it could write to, and the files stay as they are.
    return {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("xyz", "image")}


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


def _write_cache(folder: Path, points: Points, targets: Targets, rows: NDArray[np.int64]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        num_draws, _, num_views, dim = targets.feat.shape
        xyz = _new_array(temporary / "xyz.npy", (len(rows), *points.xyz.shape[1:]), "<f4")
        for part, values in iterate_rows(points.xyz, rows, "points"):
            xyz[part] = values
        image = _new_array(temporary / "image.npy", (num_draws, len(rows), num_views, dim), "<f2")
        for draw in range(num_draws):
            for part, values in iterate_rows(targets.feat, rows, f"image features of {targets.teacher!r}", draw):
                image[draw, part] = values
        for array in (xyz, image):
            array.flush()
        sums = {path.name: crc32(path) for path in sorted(temporary.iterdir())}
        (temporary / "sums.json").write_text(json.dumps(sums), "utf-8")
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


def _new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _is_sound(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "sums.json").read_text("utf-8"))
        return set(sums) == {"xyz.npy", "image.npy"} and all(crc32(folder / n) == s for n, s in sums.items())
    except (OSError, ValueError):
        return False

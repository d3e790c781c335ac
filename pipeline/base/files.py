"""Files that are whole or not there: written beside, synced, renamed; and marks by which a change of one shows."""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from pathlib import Path

from recon.pipeline.base.errors import MachineError

_BLOCK = 1 << 24
_ODD_BYTE = re.compile("%([89A-F][0-9A-F])")
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
"""What a disk says that takes nothing more."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write, fsync, rename: a reader sees the old file or the whole new one. An OSError names the file."""
    make_directory(path.parent)  # whose new folders are synced, too
    replace_file(path, content.encode() if isinstance(content, str) else content, sync=True)
    sync_directory(path.parent)


def replace_file(path: Path, content: bytes, sync: bool = False) -> None:
    """Write and rename: a reader sees the old file or the whole new one. Without `sync` the caller is to sync it.

    An OSError names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, path) from error
        raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or, where the disk refuses, not at all. An OSError names the file."""
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(content := f"{line}\n".encode()) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(before)
            raise _named(error, path) from error


def refused(error: OSError) -> MachineError | None:
    """What a full or read-only disk is told as; None for what may be something else."""
    if error.errno not in REFUSALS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return MachineError(
        f"{where}cannot be written ({error.strerror}); what was there is whole: make room, or name another place, and "
        "give the same command again"
    )


def _named(error: OSError, path: Path) -> OSError:
    """The error with the file's own name, where it has none, or that of the half beside it."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def make_directory(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that a power cut does not take them away again."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was made or renamed in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def crc32(path: Path) -> int:
    """Of a file's contents."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def spelt(name: str) -> str:
    """A file's name as text that can be stored: of names that are no UTF-8 each odd byte as in an address, "%E9"."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)


def spelt_path(root: Path, name: str) -> Path:
    """The file under a folder that `spelt` gave this name, if there is none of just this name."""
    path = root / name
    if "%" in name and not path.exists():
        odd = root / _ODD_BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), name)
        return odd if odd.exists() else path
    return path


def stamp(path: Path | str) -> str:
    """A file's size and time of change, or "missing"."""
    try:
        status = os.stat(path)  # noqa: PTH116  # asked of a million names, for which making paths takes longest
    except (OSError, ValueError):  # a name that no file can have is that of none
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else "missing"

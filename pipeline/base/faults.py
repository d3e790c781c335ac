"""Whose fault an error is: the machine's, or that of the shape that was in hand; and whether errors are all one."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping

from recon.pipeline.base.errors import MachineError
from recon.pipeline.base.wording import one_line, said

GOES_ON = "no shape is set aside for it and finished shards are kept: mend that and run the same again"

# What a disk, a mount or a device refuses, whatever file it is asked for.
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOTCONN}
LASTING |= {errno.ENODEV, errno.ENXIO, errno.EHOSTDOWN, errno.EHOSTUNREACH}
# What waiting may mend: whoever runs a task tries it again.
PASSING = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT, errno.ECONNRESET}

_DEVICE = re.compile(r"CUDA|cuDNN|CUDNN_|CUBLAS_|NVIDIA driver|HIP error|MPS backend")
_NO_MEMORY = re.compile(r"out of memory|_ALLOC_FAILED", re.IGNORECASE)
_NUMBER = re.compile(r"0x[0-9a-f]+|[-+]?\d[\d.,]*(?:e[-+]?\d+)?|\bnan\b|[-+]?\binf\b", re.IGNORECASE)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    known: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in known:
        known.add(id(found))
        yield found
        found = found.__cause__


def machine_fault(error: BaseException) -> MachineError | None:
    """The error as the machine's fault, in one line; None where a shape may be to blame.

    The machine's are packages that do not import, disks and mounts that refuse, devices that fail or lack memory, and
    whatever was raised from one of these. Not so a lack of the host's own memory: a file may ask for any amount.
    """
    for cause in causes(error):
        if isinstance(cause, MachineError):
            return cause if cause is error else MachineError(str(cause))
        if words := _words(cause):
            return MachineError(f"{words}; {GOES_ON}")
    return None


def hiccup(error: BaseException) -> OSError | None:
    """What is no shape's fault and may not come again, among an error and its causes."""
    found = (cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno in PASSING)
    return next(found, None)


def lacks_device_memory(error: BaseException) -> bool:
    """Whether a device had no memory left, which fewer rows at a time may mend."""
    return any(_is_device(cause) and _NO_MEMORY.search(_named(cause)) is not None for cause in causes(error))


def bare(reason: str, own: Iterable[str]) -> str:
    """A reason without what is the row's own: its names (`own`) and all numbers."""
    for word in sorted(set(own) - {""}, key=len, reverse=True):
        reason = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", reason)
    return _NUMBER.sub("#", reason)


def shared_reason(reasons: Mapping[str, str]) -> str:
    """The first of several rows' reasons, by name, where all are one but for names and numbers; else ""."""
    alike = {bare(reason, (name, name.rpartition("/")[2])) for name, reason in reasons.items()}
    return next(iter(reasons.values())) if len(reasons) > 1 and len(alike) == 1 else ""


def _words(error: BaseException) -> str:
    """What is wrong with the machine; "" where nothing says so."""
    if isinstance(error, ImportError):
        return f"a package is missing here or broken ({one_line(error)}): `recon-pipeline doctor` says what to install"
    if isinstance(error, OSError) and error.errno in LASTING:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the disk or mount refuses ({error.strerror})"
    if isinstance(error, Exception) and _is_device(error):
        if lacks_device_memory(error):
            return f"the device has no memory left, even for one row at a time ({said(error)})"
        return f"the device fails ({said(error)})"
    return ""


def _is_device(error: BaseException) -> bool:
    """Whether torch says that a device failed. By name: importing torch takes seconds."""
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] == "torch"}
    if names & {"AcceleratorError", "OutOfMemoryError"}:
        return True
    return isinstance(error, (RuntimeError, AssertionError)) and _DEVICE.search(str(error)) is not None


def _named(error: BaseException) -> str:
    return "out of memory" if type(error).__name__ == "OutOfMemoryError" else str(error)

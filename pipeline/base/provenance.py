"""What this process is and takes: recorded beside results, never part of a key."""

from __future__ import annotations

import platform
import resource
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

from recon.pipeline.base.code import code_digest, versions
from recon.pipeline.base.machine import processor

_notes: dict[str, str] = {}


def provenance() -> dict[str, Any]:
    """Where and with what this process works: host, processor, code, versions, what was noted of the work in hand."""
    here = {"host": socket.gethostname(), "processor": _processor(), "code": code_digest()}
    return {**here, "versions": versions(), **_notes}


def note(name: str, value: str) -> None:
    """Tell what the work in hand uses that no package's version says: "opengl" the driver, "device" the teacher's."""
    _notes[name] = value


def forget_notes() -> None:
    """Other work begins."""
    _notes.clear()


def peak_bytes() -> int:
    """The largest resident set this process has had."""
    try:  # Linux: what getrusage says counts the parent's pages from before exec too
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


@lru_cache(maxsize=1)
def _processor() -> str:
    return processor()

"""Notes what this process starts, opens and connects to from now on, in programs that a test runs."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
OWN = {str(ROOT), str((ROOT / "recon" / "pipeline").resolve().parent), sys.prefix, sys.base_prefix}
OWN |= {sysconfig.get_path("stdlib"), *(str(Path(place).resolve()) for place in sys.path if place)}


@dataclass
class Seen:
    """`started`: what was started; `opened`: files outside of the installation; `connected`: addresses."""

    started: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            self.started.append(f"{event} {arguments[:2]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - links are not followed
            if not any(path.startswith(f"{place}{os.sep}") for place in OWN):
                self.opened.append(path)
        elif event in ("socket.connect", "socket.getaddrinfo"):
            self.connected.append(str(arguments[1:] if event == "socket.connect" else arguments))


def watch() -> Seen:
    """For the rest of the process: a hook cannot be taken away."""
    seen = Seen()
    sys.addaudithook(seen.hook)
    return seen

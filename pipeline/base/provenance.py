"""What this process is and takes: recorded beside results, never part of a key."""

from __future__ import annotations

import platform
import resource
from functools import lru_cache
from importlib import metadata
from pathlib import Path


def peak_bytes() -> int:
    """The largest resident set this process has had."""
    try:  # Linux: what getrusage says counts the parent's pages from before exec too
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Recorded beside every result, never part of a key."""
    names = ("recon", "torch", "numpy", "zarr", "trimesh", "pyrender", "open_clip_torch", "timm", "transformers")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found

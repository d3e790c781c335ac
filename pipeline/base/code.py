"""Which code and which libraries compute here, so that machines can tell whether they would compute alike."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from importlib.resources import files
from importlib.resources.abc import Traversable

PACKAGES = (
    "recon-pointcloud", "torch", "torchvision", "numpy", "scipy", "pillow", "zarr", "trimesh", "pycollada", "DracoPy",
    "mapbox_earcut", "fpsample", "pyrender", "open_clip_torch", "timm", "transformers",
)  # fmt: skip
AT_HOME = frozenset({"commands", "flow"})
"""Parts of `recon.pipeline` that no worker runs."""
DECIDING = (
    "recon-pointcloud", "numpy", "scipy", "torch", "torchvision", "pillow", "trimesh", "pycollada", "DracoPy",
    "mapbox_earcut", "fpsample", "open_clip_torch", "timm", "transformers",
)  # fmt: skip
"""Those of PACKAGES whose other versions may make other values of the same files. Zarr, HDF5 and Python keep values."""


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on; "-" for one that is not there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def identity() -> tuple[str, dict[str, str]]:
    """What this process computes with: the digest of its code, and the libraries that decide values, by version.

    Plain values, which another version of this package can read.
    """
    return code_digest(), {name: version for name, version in versions().items() if name in DECIDING}


@lru_cache(maxsize=1)
def code_digest() -> str:
    """16 hex digits over the source of what workers run, as it was when this process first asked.

    The same for a checkout, a wheel and a zip file, whatever the line endings; `kernels` and `trainer` fill no store.
    """
    return source_digest(files("recon.pipeline"))


def source_digest(pipeline: Traversable) -> str:
    """The digest of a copy of `recon.pipeline`, which may lie in an archive."""
    digest = hashlib.sha256()
    for name, content in sorted(_modules(pipeline, "")):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _modules(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(path, source) of the modules in a folder and below."""
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.name.endswith(".py"):
            yield name, entry.read_bytes().replace(b"\r\n", b"\n")
        elif name not in AT_HOME and entry.is_dir():
            yield from _modules(entry, f"{name}/")

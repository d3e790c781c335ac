"""Digests of weights as they were taken before, in the user's cache folder: every worker would hash gigabytes again.

An entry is of files by path, size, times and inode, so a changed one is hashed anew. A cache that cannot be read or
written only makes that slower. `verify` does not trust it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import StringConstraints, TypeAdapter

from recon.pipeline.base.code import identity
from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.documents import BadDocument, read_document
from recon.pipeline.base.files import write_atomically
from recon.pipeline.teachers.weights import weights_digest

MOST = 1000
"""Entries that are kept, the newest."""
YOUNG = 2.0
"""Seconds: a file written since may be written again without its time telling."""
_FORM = TypeAdapter(dict[str, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]])

_anew = False


class KnownWeights:
    """The files a model is to be read from, as they were before that."""

    def __init__(self, files: Sequence[Path] = (), about: Any = None) -> None:
        """files: all of them, none where nobody knows; about: what else decides what is read, as JSON values."""
        self._files, self._about = files, about
        self._stamps = _stamps(files)

    def digest(self, part: str, state: Mapping[str, torch.Tensor]) -> str:
        """`weights_digest` of a part of what was read from them."""
        return self.kept(part, lambda: weights_digest(state))

    def kept(self, part: str, take: Callable[[], str]) -> str:
        """`take()`, or what that gave when these files were last asked about."""
        if _anew or not self._stamps:
            return take()
        key = digest_of([part, self._about, self._stamps, identity()])
        known = _read()
        if key not in known:
            known[key] = take()
            if _stamps(self._files) == self._stamps:
                _write(known)
        return known[key]


@contextmanager
def hashed_anew() -> Iterator[None]:
    """Within, no digest is taken from the cache."""
    global _anew
    before, _anew = _anew, True
    try:
        yield
    finally:
        _anew = before


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """Of each file what shows a change; none at all where one is missing or too young."""
    found: list[list[Any]] = []
    for file in files:
        try:
            status = file.stat()
        except (OSError, ValueError):
            return []
        if time.time() - status.st_mtime < YOUNG:
            return []
        times = [status.st_mtime_ns, status.st_ctime_ns]
        found.append([str(file.absolute()), status.st_size, *times, status.st_ino])
    return found


def cache_file() -> Path:
    """Where the digests are kept. RuntimeError for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache") / "recon" / "weights.json"


def _read() -> dict[str, str]:
    try:
        return read_document(cache_file(), _FORM, "")
    except (BadDocument, RuntimeError):
        return {}


def _write(known: dict[str, str]) -> None:
    with suppress(OSError, RuntimeError):
        file = cache_file()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another process may have added some meanwhile.
        together = list((_read() | known).items())[-MOST:]
        write_atomically(file, canonical_json(dict(together)))

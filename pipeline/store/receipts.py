"""What the store's bookkeeping is made of: canonical JSON, digests, row seeds, atomic files, receipts."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value: keys and row digests."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def row_seed(key: str, uid: str, *draw: int) -> int:
    """The 63-bit seed of one row's draw: the same on any worker, whatever ran before."""
    digest = hashlib.sha256(":".join([key, uid, *map(str, draw)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def write_atomically(path: Path, text: str) -> None:
    """Write, fsync, rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


MEND = "`recon-pipeline retry` has its shard computed again"


class DamagedReceipt(UserError):
    """A receipt that cannot be trusted."""


@dataclass(frozen=True)
class Failure:
    """Why a row was set aside."""

    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Receipt:
    """Proof of one shard: inputs and digests hold one entry a row, `ok` says which rows hold data."""

    rows: tuple[int, int]
    inputs: tuple[str, ...]
    digests: tuple[str, ...]
    ok: tuple[bool, ...]
    failed: dict[str, Failure]
    nonfinite: int
    seconds: float
    host: str
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Receipt | None:
        """The receipt at `path`, or None. DamagedReceipt for a file that is no receipt, or not as it was written."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DamagedReceipt(f"{path}: unreadable receipt ({error}); {MEND}") from error
        try:
            if data.pop("sum") != digest_of(data):
                raise DamagedReceipt(f"{path}: a receipt that does not match its own sum; {MEND}")
            data["failed"] = {uid: Failure(**value) for uid, value in data["failed"].items()}
            for name in ("rows", "inputs", "digests", "ok"):
                data[name] = tuple(data[name])
            return cls(**data)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedReceipt(f"{path}: not a receipt ({error}); {MEND}") from error

    def write(self, path: Path) -> None:
        """The file holds a digest of the rest under "sum", so that a flipped bit in it shows."""
        data = asdict(self)
        write_atomically(path, canonical_json(data | {"sum": digest_of(data)}) + "\n")

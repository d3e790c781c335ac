"""Receipts: proof of what a shard holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically

MEND = "`recon-pipeline retry` has its shard computed again"


class DamagedStore(UserError):
    """What the store holds cannot be read as it was written: no fault of the shape that it was read for."""


class DamagedReceipt(DamagedStore):
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
    failed: dict[int, Failure]
    """By row of the store: two data sets may call their shapes alike."""
    nonfinite: int
    bytes: int
    """Of the shard's files."""
    seconds: float
    host: str
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Receipt | None:
        """The receipt at `path`, or None. DamagedReceipt for a file that is no receipt, or not as it was written."""
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DamagedReceipt(f"{path}: unreadable receipt ({error}); {MEND}") from error
        try:
            if text != _sealed(text[_SEAL:-1]) or not data.pop("sum"):
                raise DamagedReceipt(f"{path}: a receipt that does not match its own sum; {MEND}")
            for name in ("rows", "inputs", "digests", "ok"):
                data[name] = tuple(data[name])
            _number_failures(data)
            return cls(**data)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedReceipt(f"{path}: not a receipt ({error}); {MEND}") from error

    def write(self, path: Path) -> None:
        """The file's first field, "sum", digests the text after it, so that a flipped bit shows."""
        fields = {**vars(self), "failed": {str(row): vars(failure) for row, failure in self.failed.items()}}
        write_atomically(path, _sealed(canonical_json(fields)[1:]))


_SEAL = len('{"sum":"0123456789abcdef",')


def _number_failures(data: dict[str, Any]) -> None:
    """Make a receipt's failures what `Receipt` says they are.

    They were kept by uid once. Whose uid that was cannot be told here, so the rows count as not begun.
    """
    if not data["failed"]:
        return
    rows, inputs = range(*data["rows"]), data["inputs"]
    aside = {str(row): row for row, i, ok in zip(rows, inputs, data["ok"], strict=False) if i and not ok}
    if set(data["failed"]) == set(aside):
        data["failed"] = {aside[row]: Failure(**value) for row, value in data["failed"].items()}
        return
    data["inputs"] = tuple(i if ok else "" for i, ok in zip(inputs, data["ok"], strict=False))
    data["failed"] = {}


def _sealed(rest: str) -> str:
    """A receipt's text: a digest of `rest`, all but its opening brace, goes in front."""
    return f'{{"sum":"{hashlib.sha256(rest.encode()).hexdigest()[:16]}",{rest}\n'

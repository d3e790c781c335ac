"""Receipts: proof of what a shard holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.documents import BadDocument, MissingDocument, parse_document, read_bounded
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.store.forms import RECEIPT, ReceiptForm

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


class Diagnosis(Failure):
    """What is wrong with the shape's own file, told by what read it. Many shapes may well have the same."""


@dataclass(frozen=True)
class Entry:
    """What a receipt says of one row, or of one that no run has asked for yet."""

    inputs: str = ""
    digest: str = ""
    ok: bool = False
    made: dict[str, Any] | None = None
    """Where and with what it was computed, or failed (`base.provenance`); of a copy: what it is copied from was."""


@dataclass(frozen=True)
class Receipt:
    """Proof of one shard: inputs, digests and `made` hold one entry a row, `ok` says which rows hold data."""

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
    made: tuple[int, ...]
    """Index into `provenance`; -1 for a row that nothing was tried of."""
    provenance: tuple[dict[str, Any], ...]

    @classmethod
    def of(
        cls, start: int, entries: Mapping[int, Entry], failed: dict[int, Failure],
        *, nonfinite: int, bytes: int, seconds: float,
    ) -> Receipt:  # fmt: skip
        """The receipt of a shard that begins at row `start`, of what is known of its rows (one at least)."""
        lines = [entries.get(row, Entry()) for row in range(start, max(entries) + 1)]
        provenance: list[dict[str, Any]] = []
        for line in lines:
            if line.made is not None and line.made not in provenance:
                provenance.append(line.made)
        return cls(
            rows=(start, start + len(lines)),
            inputs=tuple(line.inputs for line in lines),
            digests=tuple(line.digest for line in lines),
            ok=tuple(line.ok for line in lines),
            failed=failed,
            nonfinite=nonfinite,
            bytes=bytes,
            seconds=round(seconds, 3),
            made=tuple(-1 if line.made is None else provenance.index(line.made) for line in lines),
            provenance=tuple(provenance),
        )

    def with_entries(self, entries: Mapping[int, Entry], failed: dict[int, Failure]) -> Receipt:
        """The same shard's receipt with other things to say of its rows (one at least)."""
        return Receipt.of(
            self.rows[0], entries, failed, nonfinite=self.nonfinite, bytes=self.bytes, seconds=self.seconds
        )

    def entries(self) -> dict[int, Entry]:
        """By row of the store."""
        return {row: self.entry(row) for row in range(*self.rows)}

    def entry(self, row: int) -> Entry:
        """What it says of one of its rows."""
        at = row - self.rows[0]
        made = None if self.made[at] < 0 else self.provenance[self.made[at]]
        return Entry(self.inputs[at], self.digests[at], self.ok[at], made)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Where its rows were made, each host once, sorted."""
        return tuple(sorted({str(made.get("host", "")) for made in self.provenance}))

    @property
    def codes(self) -> set[str]:
        """Digests of the code that made its finished rows (`base.code`); "" of a row whose maker did not tell."""
        makers = {made for made, ok in zip(self.made, self.ok, strict=True) if ok}
        return {str(self.provenance[made].get("code", "")) for made in makers}

    @classmethod
    def read(cls, path: Path) -> Receipt | None:
        """The receipt at `path`, or None. DamagedReceipt for a file that is no receipt, or not as it was written."""
        try:
            content = read_bounded(path, MEND)
            data = parse_document(content, RECEIPT, f"{path}: unreadable receipt", MEND)
        except MissingDocument:
            return None
        except BadDocument as error:
            raise DamagedReceipt(str(error)) from None
        if content != _sealed(content[_SEAL:-1]):
            raise DamagedReceipt(f"{path}: a receipt that does not match its own sum; {MEND}")
        made, provenance = _provenance(data)
        if wrong := _contradiction(data, made, len(provenance)):
            raise DamagedReceipt(f"{path}: not a receipt: {wrong}; {MEND}")
        inputs, failed = _failures(data)
        return cls(
            rows=data["rows"],
            inputs=tuple(inputs),
            digests=tuple(data["digests"]),
            ok=tuple(data["ok"]),
            failed=failed,
            nonfinite=data["nonfinite"],
            bytes=data["bytes"],
            seconds=data["seconds"],
            made=tuple(made),
            provenance=tuple(provenance),
        )

    def write(self, path: Path) -> None:
        """The file's first field, "sum", digests the text after it, so that a flipped bit shows."""
        fields = {**vars(self), "failed": {str(row): vars(failure) for row, failure in self.failed.items()}}
        write_atomically(path, _sealed(canonical_json(fields)[1:].encode()))


_SEAL = len('{"sum":"0123456789abcdef",')


def _failures(data: ReceiptForm) -> tuple[list[str], dict[int, Failure]]:
    """A receipt's inputs, and its failures by row.

    They were kept by uid once. Whose uid that was cannot be told here, so the rows count as not begun.
    """
    inputs, failed = data["inputs"], data["failed"]
    if not failed:
        return inputs, {}
    aside = {str(row): row for row, i, ok in zip(range(*data["rows"]), inputs, data["ok"], strict=True) if i and not ok}
    if set(failed) == set(aside):
        return inputs, {aside[row]: Failure(**value) for row, value in failed.items()}
    return [i if ok else "" for i, ok in zip(inputs, data["ok"], strict=True)], {}


def _provenance(data: ReceiptForm) -> tuple[list[int], list[dict[str, Any]]]:
    """`made` and `provenance`; earlier receipts have one host and its versions, of whoever wrote last to the shard."""
    if "host" in data:
        one = {"host": data["host"], "versions": data.get("versions", {})}
        return [0 if inputs else -1 for inputs in data["inputs"]], [one]
    return data.get("made", []), data.get("provenance", [])


def _contradiction(data: ReceiptForm, made: list[int], num_provenance: int) -> str:
    """What of a receipt's fields cannot be true of one another; empty where they can."""
    count = data["rows"][1] - data["rows"][0]
    if count < 1:
        return "rows: holds none"
    for name, values in _a_row(data, made).items():
        if len(values) != count:
            return f"{name}: has {len(values)} entries of {count} rows"
    return "made: names a provenance that is not there" if max(made) >= num_provenance else ""


def _a_row(data: ReceiptForm, made: list[int]) -> dict[str, Sequence[object]]:
    """The fields that hold an entry a row."""
    return {"inputs": data["inputs"], "digests": data["digests"], "ok": data["ok"], "made": made}


def _sealed(rest: bytes) -> bytes:
    """A receipt's text: a digest of `rest`, all but its opening brace, goes in front."""
    return b'{"sum":"%s",%s\n' % (hashlib.sha256(rest).hexdigest()[:16].encode(), rest)

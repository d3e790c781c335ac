"""A store's keys: their groups, recipes and receipts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.documents import BadDocument, read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import one_line
from recon.pipeline.store.columns import VERIFY, open_column, read_column
from recon.pipeline.store.forms import GROUP, AttributesForm
from recon.pipeline.store.receipts import DamagedStore, Receipt
from recon.pipeline.store.records import Column

KINDS = ("meshes", "points", "views", "captions", "targets", "lifted", "text")
RECEIPT_NAME = re.compile(r"(\d+)-(\d{6,})\.json")


class StoredKeys:
    """What a store holds by kind and key, whatever its refs say of it."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        self.guard: Callable[[], None] = lambda: None
        """Asked before what is written; UserError when the store is not this process's to write: `session.writing`."""

    def list_keys(self) -> list[tuple[str, str]]:
        """Every (kind, key) the store holds."""
        found = []
        for kind in KINDS:
            found += sorted((kind, p.name) for p in (self.path / kind).glob("*") if (p / "zarr.json").is_file())
        return found

    def recipe(self, kind: str, key: str) -> dict[str, Any]:
        """What the key is a digest of. DamagedStore where it is missing."""
        held = self.attributes(kind, key)
        if "recipe" not in held:
            raise DamagedStore(f"{self.path}/{kind}/{key}/zarr.json: recipe: is missing; {VERIFY}")
        return held["recipe"]

    def attributes(self, kind: str, key: str) -> AttributesForm:
        """What is noted of a key: its recipe, columns, and what else its stage says of it."""
        self._require_key(kind, key)
        return self._attributes(f"{kind}/{key}")

    def columns(self, kind: str, key: str) -> tuple[Column, ...]:
        """The columns of a key, in the order its rows' digests are taken in."""
        listed = self.attributes(kind, key).get("columns")
        if listed is None:
            raise DamagedStore(f"{self.path}/{kind}/{key}/zarr.json: columns: is missing; {VERIFY}")
        return tuple(Column(name, tuple(shape), dtype) for name, shape, dtype in listed)

    def prompts(self, key: str) -> list[str]:
        """The distinct prompts of a `text` key, in row order."""
        group = self.kind_group("text", key)
        return cast(list[str], read_column(group, "prompt", self._attributes(f"text/{key}").get("rows", 0)))

    def kind_group(self, kind: str, key: str) -> zarr.Group:
        """The group of one key. UserError offers the keys there are."""
        self._require_key(kind, key)
        return self._group(f"{kind}/{key}")

    def column(self, kind: str, key: str, name: str) -> zarr.Array[Any]:
        """A column of a key. UserError as for `kind_group`; DamagedStore where it is missing or unreadable."""
        return open_column(self.kind_group(kind, key), name)

    def _require_key(self, kind: str, key: str) -> None:
        if not (self.path / kind / key / "zarr.json").is_file():
            there = [k for found, k in self.list_keys() if found == kind]
            raise UserError(f"{self.path}: no {kind} under key {key!r}; it holds {', '.join(there) or 'none'}")

    @property
    def has_registry(self) -> bool:
        """Whether any shape was ever registered."""
        return (self.path / "registry" / "zarr.json").is_file()

    def _group(self, name: str) -> zarr.Group:
        self._attributes(name)  # held to its form before Zarr sees it
        try:
            return cast(zarr.Group, self.group[name])
        except Exception as error:  # Zarr raises what it likes of damaged metadata
            raise DamagedStore(f"{self.path}/{name}: unreadable ({one_line(error)}); {VERIFY}") from error

    def _attributes(self, name: str) -> AttributesForm:
        try:
            return read_document(self.path / name / "zarr.json", GROUP, VERIFY).get("attributes", {})
        except BadDocument as error:
            raise DamagedStore(str(error)) from None

    def receipt_path(self, key: str, lane: int, shard: int) -> Path:
        """Where the receipt of a shard lies, whether there is one or not."""
        return self.path / "receipts" / key / f"{lane}-{shard:06d}.json"

    def receipt_places(self, key: str) -> list[tuple[int, int]]:
        """(lane, shard) of a key's receipts, ascending, by the names of their files alone."""
        try:
            names = os.listdir(self.path / "receipts" / key)  # noqa: PTH208 - of folders with 100 000 of them
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((int(match[1]), int(match[2])) for match in map(RECEIPT_NAME.fullmatch, names) if match)

    def receipts(self, key: str, lane: int | None = None) -> Iterator[tuple[int, int, Receipt]]:
        """(lane, shard, receipt) of a key, or of one lane of it, ascending; one withdrawn meanwhile is passed over.

        DamagedReceipt for the first that cannot be trusted.
        """
        for of, shard in self.receipt_places(key):
            if lane in (None, of) and (receipt := Receipt.read(self.receipt_path(key, of, shard))) is not None:
                yield of, shard, receipt

    def ok(self, key: str, rows: int, lane: int = 0) -> NDArray[np.bool_]:
        """[rows] which rows of a key hold finished data, by its receipts."""
        ok = np.zeros(rows, dtype=np.bool_)
        for _, _, receipt in self.receipts(key, lane):
            start, stop = receipt.rows
            ok[start:stop] = receipt.ok[: max(min(stop, rows) - start, 0)]
        return ok

    def _kind_of(self, key: str) -> str:
        for kind, found in self.list_keys():
            if found == key:
                return kind
        raise UserError(f"{self.path}: no key {key!r}; `recon-pipeline status` lists them")

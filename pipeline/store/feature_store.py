"""The feature store: a Zarr v3 group that keeps what each stage made, under a key that says how it was made.

    store.zarr/
      registry/                 one row a shape: uid, dataset, category, split, source, fingerprint
      <kind>/<key>/             columns of one stage under one recipe; kinds: meshes points views captions targets
                                lifted text
      receipts/<key>/*.json     one a shard: what went in, what came out, what failed. Only a receipt means done
      refs/<name>.json          the keys a manifest's last run uses
      twins/                    second copies of the small files that cannot be computed again
      lock.json                 who is writing
      log.jsonl                 one line a run of a stage: seconds, rows, peak memory, versions

Rows are shapes in registry order (for `text`: distinct prompts), `targets` have a leading axis of augmentation draws.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import numpy as np
import zarr

from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.documents import MissingDocument
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.store import twins
from recon.pipeline.store.columns import COMPRESSORS, append_text, has_column, open_column
from recon.pipeline.store.listed import relist
from recon.pipeline.store.prompts import CLASS_PROMPTS
from recon.pipeline.store.reader import FORMAT, REGISTRY_COLUMNS, StoreReader, open_group
from recon.pipeline.store.receipts import Entry
from recon.pipeline.store.records import Column

SEVERAL = ("captions", "targets", "lifted", "text")  # kinds of which a ref names more than one key
CHUNK_BYTES = 1 << 18  # what a random row costs to read, against what a shard's index costs to keep


class FeatureStore(StoreReader):
    """A store to read; `create` and `open(write=True)` give one to write through.

    What a teacher says of every shape that is finished, and of the first eight rows, where `ok` says which are:

        store = FeatureStore.open("stores/demo.zarr")
        features = dict(store.features("demo"))  # uid -> [6, 256] float16
        targets = store.targets("demo")
        targets.feat[0, :8].shape, targets.ok[0, :8]  # (8, 6, 256)
    """

    @overload
    @classmethod
    def open(cls, path: Path | str, write: Literal[False] = False) -> Self: ...

    @overload
    @classmethod
    def open(cls, path: Path | str, write: Literal[True]) -> WritableStore: ...

    @classmethod
    def open(cls, path: Path | str, write: bool = False) -> Self | WritableStore:
        """UserError when there is no store at `path`, or one of another format or newer version."""
        return WritableStore(Path(path), open_group(Path(path), "r+")) if write else super().open(path)

    @staticmethod
    def create(path: Path | str) -> WritableStore:
        """Open the store at `path` for writing, made empty if nothing lies there."""
        path = Path(path)
        if (path / "zarr.json").is_file():
            return FeatureStore.open(path, write=True)
        # What Zarr was writing when the store's very beginning was cut off is nobody's.
        if path.exists() and (not path.is_dir() or any(p.suffix != ".partial" for p in path.iterdir())):
            raise UserError(f"{path}: exists and is no feature store; name an empty or new folder")
        try:
            group = zarr.create_group(str(path), attributes=FORMAT, zarr_format=3)
            twins.save(path, ["zarr.json"])
        except zarr.errors.ContainsGroupError:  # another process was faster
            return FeatureStore.open(path, write=True)
        except OSError as error:
            raise UserError(f"{path}: cannot make a store there ({error.strerror or error})") from error
        return WritableStore(path, group)


class WritableStore(FeatureStore):
    """A store for the stages to write through."""

    def append_registry(self, columns: dict[str, list[str]]) -> None:
        """Add rows; they count once the group's `rows` attribute names them, which is written last."""
        self.guard()
        group = self.group.require_group("registry")
        rows = int(cast(int, group.attrs.get("rows", 0)))
        append_text(group, {name: columns[name] for name in REGISTRY_COLUMNS}, rows)
        self._save_twins("registry")
        self.__dict__.pop("registry", None)

    def update_registry(self, column: str, changed: dict[int, str]) -> None:
        """Replace a column's value in some rows: a source that looks different now, another split."""
        self.guard()
        array = open_column(self._group("registry"), column)
        values: Any = array[:]
        for row, value in changed.items():
            values[row] = value
        array[:] = values
        self._save_twins("registry")
        self.__dict__.pop("registry", None)

    def append_prompts(self, key: str, prompts: Iterable[str]) -> int:
        """Add the prompts a `text` key does not hold yet; the number of all rows."""
        group = self.kind_group("text", key)
        known = self.prompts(key)
        held = set(known)
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in held]
        if fresh:
            self.guard()
            append_text(group, {"prompt": fresh}, len(known))
            self._save_twins(f"text/{key}/prompt")
            twins.save(self.path, [f"text/{key}/zarr.json"])
        return len(known) + len(fresh)

    def require_key(
        self,
        kind: str,
        key: str,
        recipe: dict[str, Any],
        columns: Sequence[Column],
        attributes: dict[str, Any] | None = None,
    ) -> zarr.Group:
        """The key's group, made with its recipe, its columns and what else to note of it if it is new.

        What a key does not note yet is added: one of an earlier version says less of itself. UserError when it is
        there with other columns, which a recipe that says too little could let happen.
        """
        listed = [[column.name, list(column.shape), column.dtype] for column in columns]
        there = (self.path / kind / key / "zarr.json").is_file()
        if not there:
            self.guard()
        # Before the key's, or Zarr would write it along with that, and a kill in between leave it without a twin.
        self.group.require_group(kind)
        twins.save(self.path, [f"{kind}/zarr.json"])
        if there:
            held = [[column.name, list(column.shape), column.dtype] for column in self.columns(kind, key)]
            if held != listed:
                pairs = [pair for pair in zip_longest(held, listed) if pair[0] != pair[1]]
                has, comes = (" of ".join(map(str, column[:2])) if column else "none" for column in pairs[0])
                raise UserError(
                    f"{self.path / kind / key}: the store holds column {has}, what comes is {comes}: the recipe of "
                    "what comes must say what is different, or take another store"
                )
            group = self.kind_group(kind, key)
            fresh = {name: value for name, value in (attributes or {}).items() if name not in group.attrs}
            if fresh:
                self.guard()
                group.attrs.update(fresh)
                twins.save(self.path, [f"{kind}/{key}/zarr.json"])
        else:
            notes = {"recipe": recipe, "columns": listed, **(attributes or {})}
            self.group.create_group(f"{kind}/{key}", attributes=notes)
            twins.save(self.path, [f"{kind}/{key}/zarr.json"])
        return self.kind_group(kind, key)

    def require_column(
        self, group: zarr.Group, column: Column, rows: int, lanes: int, shard_rows: int
    ) -> zarr.Array[Any]:
        """The column's array, made or grown to `rows` (and `lanes`; 0: no such axis). Data already there stays."""
        shape = ((lanes,) if lanes else ()) + (rows, *column.shape)
        if has_column(group, column.name):
            array = open_column(group, column.name)
            wanted = tuple(max(a, b) for a, b in zip(array.shape, shape, strict=True))
            if wanted != array.shape:
                array.resize(wanted)
                twins.save(self.path, [f"{array.path}/zarr.json"])
            return array
        lead = (1,) if lanes else ()
        shard = (*lead, shard_rows, *column.shape)
        if column.dtype == "str":  # Zarr shards hold fixed-size types only, so a chunk is the shard
            array = group.create_array(column.name, shape=shape, chunks=shard, dtype=str, compressors=COMPRESSORS)
            twins.save(self.path, [f"{array.path}/zarr.json"])
            return array
        chunk_rows = shard_rows
        row_bytes = int(np.prod(column.shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize
        while chunk_rows > 1 and chunk_rows * row_bytes > CHUNK_BYTES:
            chunk_rows //= 2
        array = group.create_array(
            column.name,
            shape=shape,
            chunks=(*lead, chunk_rows, *column.shape),
            shards=shard,
            dtype=column.dtype,
            compressors=COMPRESSORS,
        )
        twins.save(self.path, [f"{array.path}/zarr.json"])
        return array

    def withdraw_failures(self, key: str, rows: Collection[int] | None = None, reason: str = "") -> int:
        """Let rows that are set aside under a key count as not done; their number.

        rows: only these, such as one manifest's (None: all); reason: only those whose reason holds it, in any case.
        """
        count, wanted = 0, reason.casefold()
        for lane, shard, receipt in self.receipts(key):
            mine = {row: failure for row, failure in receipt.failed.items() if rows is None or row in rows}
            back = {row for row, failure in mine.items() if wanted in failure.reason.casefold()}
            if back:
                kept = {row: failure for row, failure in receipt.failed.items() if row not in back}
                entries = receipt.entries() | dict.fromkeys(back, Entry())
                receipt.with_entries(entries, kept).write(self.receipt_path(key, lane, shard))
                count += len(back)
        return count

    def write_ref(self, name: str, kind: str, key: str, part: str | None = None) -> None:
        """Point `refs/<name>.json` at a key, keeping what it already names.

        `part` is the teacher's name, or that of the table of captions, for kinds of which there are several keys.
        """
        with self._editing(name) as data:
            if kind not in SEVERAL:
                data["keys"][kind] = key
            else:
                assert part is not None, f"a ref has {kind} by name"
                data.setdefault(kind, {})[part] = key

    def list_rows(self, name: str, rows: Iterable[int], whole: bool) -> int:
        """Note in the ref which rows its manifest lists; how many are retired by that. See `listed.relist`."""
        known = np.flatnonzero(np.array(self.registry.dataset) == name)
        with self._editing(name) as data:
            return relist(data, known, rows, whole)

    def forget_retired(self, name: str, when: str) -> None:
        """Take rows that are dropped out of a ref's list of what it retired."""
        with self._editing(name) as data:
            data["retired"].pop(when)

    def settle_ref(self, name: str, captions: Sequence[str], templates: Sequence[str]) -> None:
        """Forget captions of other tables than these, bring theirs into this order, note the class prompts' form."""
        with self._editing(name) as data:
            data["captions"] = {table: data["captions"][table] for table in captions if table in data["captions"]}
            data["templates"] = list(templates)

    def note_cut(self, name: str, teacher: str, cut: int, prompts: int, of: str) -> None:
        """Note in the ref how many of its prompts are longer than a teacher reads; see `Ref.cut` and `Ref.cut_of`."""
        with self._editing(name) as data:
            data.setdefault("cut", {})[teacher] = [cut, prompts]
            data.setdefault("cut_of", {})[teacher] = of

    @contextmanager
    def _editing(self, name: str) -> Iterator[dict[str, Any]]:
        """A ref's document, written if it is another afterwards."""
        path = self.path / "refs" / f"{name}.json"
        try:
            data = cast(dict[str, Any], self._ref_document(name))
        except MissingDocument:
            data = {"dataset": name, "keys": {}, "targets": {}, "text": {}, "captions": {}}
            data["templates"] = list(CLASS_PROMPTS)
        before = json.dumps(data)
        yield data
        if json.dumps(data) != before:
            self.guard()
            write_atomically(path, json.dumps(data, indent=1) + "\n")
            twins.save(self.path, [f"refs/{name}.json"])

    def _save_twins(self, folder: str) -> None:
        """Second copies of all files in a folder of the store; last that of its own zarr.json, which commits them."""
        commits = self.path / folder / "zarr.json"
        files = [path for path in (self.path / folder).rglob("*") if path.is_file() and path != commits]
        twins.save(self.path, [path.relative_to(self.path) for path in files])
        twins.save(self.path, [commits.relative_to(self.path)])

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to the store's log, with a digest of itself."""
        path = self.path / "log.jsonl"
        with path.open("ab") as file:
            torn = file.tell() > 0 and path.read_bytes()[-1:] != b"\n"  # by a run that was killed at this point
            line = canonical_json(entry | {"sum": digest_of(entry)}) + "\n"
            file.write(("\n" * torn + line).encode())

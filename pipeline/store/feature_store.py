"""The feature store: a Zarr v3 group that keeps what each stage made, under a key that says how it was made.

    store.zarr/
      registry/                 one row a shape: uid, dataset, category, split, source, fingerprint
      <kind>/<key>/             columns of one stage under one recipe; kinds: meshes points views captions targets text
      receipts/<key>/*.json     one a shard: what went in, what came out, what failed. Only a receipt means done
      refs/<name>.json          the keys a manifest's last run uses
      twins/                    second copies of the small files that cannot be computed again
      lock.json                 who is writing
      log.jsonl                 one line a run of a stage: seconds, rows, peak memory, versions

Rows are shapes in registry order (for `text`: distinct prompts), `targets` have a leading axis of augmentation draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.caption import CLASS_PROMPTS, class_prompts
from pipeline.errors import UserError
from pipeline.store import twins
from pipeline.store.receipts import DamagedStore, Failure, Receipt, canonical_json, digest_of, write_atomically
from pipeline.store.records import Caption, Column, Points, Ref, Registry, Targets, Text, Views

FORMAT = {"format": "recon-store", "version": 3}
KINDS = ("meshes", "points", "views", "captions", "targets", "text")
SEVERAL = ("captions", "targets", "text")  # kinds of which a ref names more than one key
CHUNK_BYTES = 1 << 18  # what a random row costs to read, against what a shard's index costs to keep
COMPRESSORS = [ZstdCodec(level=1), Crc32cCodec()]  # without the sum, a flipped bit is passed on as data
VERIFY = "`recon-pipeline verify` says what is damaged"
REGISTRY_COLUMNS = ("uid", "dataset", "category", "split", "source", "fingerprint")


class FeatureStore:
    """Opens a store for reading; `pipeline.stages` writes through the methods at the end.

    >>> store = FeatureStore.open("stores/demo.zarr")          # doctest: +SKIP
    >>> targets = store.targets("demo")                        # doctest: +SKIP
    >>> targets.feat[0, :8].shape                              # doctest: +SKIP
    (8, 6, 256)
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        self.guard: Callable[[], None] = lambda: None
        """Raises UserError once the store is no longer this process's to write to; see `session.writing`."""

    @classmethod
    def open(cls, path: Path | str, write: bool = False) -> FeatureStore:
        """UserError when there is no store at `path`, or one of another format or newer version."""
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise UserError(
                f"no feature store at {path}; make one with `recon-pipeline all --manifest M --store {path}`"
            )
        try:
            group = zarr.open_group(str(path), mode="r+" if write else "r", zarr_format=3)
        except Exception as error:  # zarr raises many kinds for a foreign or damaged zarr.json
            raise UserError(f"{path}: not a Zarr v3 group ({error}); name another store") from error
        attributes = dict(group.attrs)
        if attributes.get("format") != FORMAT["format"]:
            raise UserError(f"{path}: a Zarr group, but no feature store; name another path")
        if attributes.get("version") != FORMAT["version"]:
            raise UserError(
                f"{path}: store version {attributes.get('version')}, this program reads {FORMAT['version']}: use the "
                "release that made it, or compute the store anew"
            )
        return cls(path, group)

    @classmethod
    def create(cls, path: Path | str) -> FeatureStore:
        """Open the store at `path` for writing, made empty if nothing lies there."""
        path = Path(path)
        if (path / "zarr.json").is_file():
            return cls.open(path, write=True)
        # What Zarr was writing when the store's very beginning was cut off is nobody's.
        if path.exists() and (not path.is_dir() or any(p.suffix != ".partial" for p in path.iterdir())):
            raise UserError(f"{path}: exists and is no feature store; name an empty or new folder")
        try:
            group = zarr.create_group(str(path), attributes=FORMAT, zarr_format=3)
            twins.save(path, ["zarr.json"])
        except zarr.errors.ContainsGroupError:  # another process was faster
            return cls.open(path, write=True)
        except OSError as error:
            raise UserError(f"{path}: cannot make a store there ({error.strerror or error})") from error
        return cls(path, group)

    # ---- reading

    @cached_property
    def registry(self) -> Registry:
        """UserError before the first ingest."""
        if not self.has_registry:
            raise UserError(
                f"{self.path}: no shape registered yet; run `recon-pipeline ingest --manifest M --store {self.path}`"
            )
        group = self._group("registry")
        # Columns may be longer, or not there: an ingest that was cut off before it committed.
        rows = int(cast(int, group.attrs.get("rows", 0)))
        columns = {name: read_column(group, name, rows) for name in REGISTRY_COLUMNS}
        categories = sorted(set(columns["category"]))
        index = {name: i for i, name in enumerate(categories)}
        category = np.array([index[name] for name in columns.pop("category")], dtype=np.int64)
        return Registry(category=category, categories=categories, **columns)

    def ref(self, name: str | Ref | None = None) -> Ref:
        """The keys under `refs/<name>.json`; without a name the store's only ref. UserError when there is none."""
        if isinstance(name, Ref):
            return name
        names = sorted(p.stem for p in (self.path / "refs").glob("*.json"))
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            asked = (
                "has no finished stage; run `recon-pipeline all`"
                if not names
                else f"holds {', '.join(names)}: choose one"
            )
            raise UserError(f"{self.path}: {asked}" + (f" (no ref {name!r})" if name else ""))
        path = self.path / "refs" / f"{name}.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            targets, text, captions = (dict(data[kind]) for kind in ("targets", "text", "captions"))
            templates = tuple(data.get("templates", CLASS_PROMPTS))
            return Ref(name, data["dataset"], data["keys"], targets, text, captions, templates)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: unreadable ({error}); {VERIFY}") from error

    def rows(self, ref: Ref | str | None = None) -> NDArray[np.int64]:
        """Registry rows of the ref's shapes, ascending."""
        return np.flatnonzero(np.array(self.registry.dataset) == self.ref(ref).dataset)

    def points(self, ref: Ref | str | None = None) -> Points:
        """Without a ref, of the store's only one. UserError names the stage to run when the ref has none."""
        ref = self.ref(ref)
        key, group = self._of_ref("points", ref, "sample")
        names = ("xyz", "normal", "color", "part", "order", "frame")
        arrays = {name: cast("zarr.Array[Any]", group[name]) for name in names}
        return Points(key, **arrays, ok=self._finished(ref, key))

    def views(self, ref: Ref | str | None = None) -> Views:
        """Without a ref, of the store's only one. UserError names the stage to run when the ref has none."""
        ref = self.ref(ref)
        key, group = self._of_ref("views", ref, "render")
        rgb, alpha, depth, frame = (cast("zarr.Array[Any]", group[name]) for name in ("rgb", "alpha", "depth", "frame"))
        normal = cast("zarr.Array[Any]", group["normal"]) if "normal" in group else None
        attributes = cast("dict[str, Any]", group.attrs.asdict())
        poses, intrinsics, angles = (np.array(attributes[n]) for n in ("camera_to_world", "intrinsics", "angles"))
        planes = attributes["near"], attributes["far"]
        recipe, ok = self.recipe("views", key), self._finished(ref, key)
        return Views(key, recipe, rgb, alpha, depth, normal, frame, poses, intrinsics, angles, *planes, ok)

    def targets(self, teacher: str | None = None, ref: Ref | str | None = None) -> Targets:
        """Features of `teacher` (a name of the manifest); without a name the first one listed."""
        ref = self.ref(ref)
        name, key = self._teacher(ref.targets, teacher)
        feat = cast("zarr.Array[Any]", self.kind_group("targets", key)["feat"])
        ok = np.stack([self._finished(ref, key, lane) for lane in range(feat.shape[0])])
        return Targets(key, name, self.recipe("targets", key), feat, ok)

    def text(self, teacher: str | None = None, ref: Ref | str | None = None) -> Text:
        """Embedded prompts of `teacher`; class prompts and captions are given as rows of `feat`."""
        ref = self.ref(ref)
        name, key = self._teacher(ref.text, teacher)
        group = self.kind_group("text", key)
        prompts = self.prompts(key)
        done = self.ok(key, len(prompts))
        if not done.all():
            raise UserError(
                f"{self.path}: {int((~done).sum())} prompts not embedded by {name!r}; run `recon-pipeline features`"
            )
        feat = np.asarray(cast("zarr.Array[Any]", group["feat"])[: len(prompts)])
        row = {prompt: i for i, prompt in enumerate(prompts)}
        row[""] = -1
        used = set(self.registry.category[self.rows(ref)].tolist())
        wanted = [class_prompts(category, ref.templates) for category in self.registry.categories]
        for number in used:
            if not set(wanted[number]) <= set(row):
                category = self.registry.categories[number]
                raise UserError(f"{self.path}: {name!r} has not embedded {category!r}; run `recon-pipeline features`")
        classes = np.array([[row[p] if n in used else -1 for p in lines] for n, lines in enumerate(wanted)], np.int64)
        captions = self.captions(ref)
        index = np.array([[row.get(c, -1) for c in line] for line in captions], dtype=np.int64)
        return Text(key, name, self.recipe("text", key), feat, prompts, classes, index)

    def captions(self, ref: Ref | str | None = None) -> list[list[str]]:
        """Shape-specific captions a row, each once, padded with "" to one length; tables in the manifest's order."""
        return self.captions_of(self.ref(ref).captions)

    def captions_of(self, keys: Mapping[str, str]) -> list[list[str]]:
        """The same for keys of captions by table, whether a ref names them yet or not."""
        from pipeline.store.captions import joined_captions

        return joined_captions(self, keys)

    def caption_records(self, ref: Ref | str | None = None) -> list[list[Caption]]:
        """All that is stored of every shape's captions, rejected ones too, table by table."""
        from pipeline.store.captions import caption_records

        return caption_records(self, self.ref(ref).captions)

    def facts(self, ref: Ref | str | None = None) -> list[dict[str, Any]]:
        """What the source knows of each shape ({} for a plain file)."""
        ref = self.ref(ref)
        _, group = self._of_ref("meshes", ref, "ingest")
        return [json.loads(text) if text else {} for text in read_column(group, "facts", len(self.registry))]

    def ok(self, key: str, rows: int, lane: int = 0) -> NDArray[np.bool_]:
        """[rows] which rows of a key hold finished data, by its receipts."""
        ok = np.zeros(rows, dtype=np.bool_)
        for path in (self.path / "receipts" / key).glob(f"{lane}-*.json"):
            receipt = Receipt.read(path)
            assert receipt is not None
            start, stop = receipt.rows
            ok[start:stop] = receipt.ok[: max(min(stop, rows) - start, 0)]
        return ok

    def _finished(self, ref: Ref, key: str, lane: int = 0) -> NDArray[np.bool_]:
        ok = self.ok(key, len(self.registry), lane)
        mine = np.zeros_like(ok)
        mine[self.rows(ref)] = True
        return ok & mine

    def failures(self, key: str) -> dict[int, Failure]:
        """Rows set aside under a key, of any data set; `names` says what they are called."""
        failed: dict[int, Failure] = {}
        for path in sorted((self.path / "receipts" / key).glob("*.json")):
            receipt = Receipt.read(path)
            failed |= receipt.failed if receipt else {}
        return failed

    def names(self, key: str) -> list[str]:
        """What the rows of a key are called: the shapes' uids, or the prompts."""
        return self.prompts(key) if self._kind_of(key) == "text" else self.registry.uid

    def digest(self, key: str) -> str:
        """A digest of the key's logical contents: independent of chunks, shards, workers and order."""
        names = self.names(key)
        lines = []
        for path in (self.path / "receipts" / key).glob("*.json"):
            receipt = Receipt.read(path)
            assert receipt is not None
            lane, start = path.stem.split("-")[0], receipt.rows[0]
            lines += [f"{names[start + i]}:{lane}:{d}" for i, d in enumerate(receipt.digests) if receipt.ok[i]]
        return hashlib.sha256("\n".join([key, *sorted(lines)]).encode()).hexdigest()

    def list_keys(self) -> list[tuple[str, str]]:
        """Every (kind, key) the store holds."""
        found = []
        for kind in KINDS:
            found += sorted((kind, p.name) for p in (self.path / kind).glob("*") if (p / "zarr.json").is_file())
        return found

    def recipe(self, kind: str, key: str) -> dict[str, Any]:
        """What the key is a digest of."""
        return cast(dict[str, Any], dict(self.kind_group(kind, key).attrs)["recipe"])

    def prompts(self, key: str) -> list[str]:
        """The distinct prompts of a `text` key, in row order."""
        group = self.kind_group("text", key)
        return cast(list[str], read_column(group, "prompt", int(cast(int, group.attrs.get("rows", 0)))))

    def kind_group(self, kind: str, key: str) -> zarr.Group:
        """The group of one key. UserError offers the keys there are."""
        if not (self.path / kind / key / "zarr.json").is_file():
            there = [k for found, k in self.list_keys() if found == kind]
            raise UserError(f"{self.path}: no {kind} under key {key!r}; it holds {', '.join(there) or 'none'}")
        return self._group(f"{kind}/{key}")

    @property
    def has_registry(self) -> bool:
        """Whether any shape was ever registered."""
        return (self.path / "registry" / "zarr.json").is_file()

    def _group(self, name: str) -> zarr.Group:
        try:
            return cast(zarr.Group, self.group[name])
        except Exception as error:  # zarr and json raise what they like of damaged metadata
            raise DamagedStore(f"{self.path}/{name}: unreadable ({error}); {VERIFY}") from error

    def receipt_path(self, key: str, lane: int, shard: int) -> Path:
        return self.path / "receipts" / key / f"{lane}-{shard:06d}.json"

    def _of_ref(self, kind: str, ref: Ref, command: str) -> tuple[str, zarr.Group]:
        if kind not in ref.keys:
            raise UserError(f"{self.path}: ref {ref.name!r} has no {kind}; run `recon-pipeline {command}`")
        return ref.keys[kind], self.kind_group(kind, ref.keys[kind])

    def _teacher(self, named: dict[str, str], teacher: str | None) -> tuple[str, str]:
        if not named:
            raise UserError(f"{self.path}: no teacher's features yet; run `recon-pipeline features`")
        name = next(iter(named)) if teacher is None else teacher
        if name not in named:
            raise UserError(f"{self.path}: no teacher {name!r}; it holds {', '.join(named)}")
        return name, named[name]

    def _kind_of(self, key: str) -> str:
        for kind, found in self.list_keys():
            if found == key:
                return kind
        raise UserError(f"{self.path}: no key {key!r}; `recon-pipeline status` lists them")

    # ---- writing

    def append_registry(self, columns: dict[str, list[str]]) -> None:
        """Add rows; they count once the group's `rows` attribute names them, which is written last."""
        group = self.group.require_group("registry")
        rows = int(cast(int, group.attrs.get("rows", 0)))
        append_text(group, {name: columns[name] for name in REGISTRY_COLUMNS}, rows)
        self._save_twins("registry")
        self.__dict__.pop("registry", None)

    def update_registry(self, column: str, changed: dict[int, str]) -> None:
        """Replace a column's value in some rows: a source that looks different now, another split."""
        array = cast("zarr.Array[Any]", cast(zarr.Group, self.group["registry"])[column])
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

        UserError when it is there with other columns, which a recipe that says too little could let happen.
        """
        listed = [[column.name, list(column.shape), column.dtype] for column in columns]
        if (self.path / kind / key / "zarr.json").is_file():
            held = cast(list[Any], self.kind_group(kind, key).attrs["columns"])
            if held != listed:
                pairs = [pair for pair in zip_longest(held, listed) if pair[0] != pair[1]]
                has, comes = (" of ".join(map(str, column[:2])) if column else "none" for column in pairs[0])
                raise UserError(
                    f"{self.path / kind / key}: the store holds column {has}, what comes is {comes}: the recipe of "
                    "what comes must say what is different, or take another store"
                )
        else:
            notes = {"recipe": recipe, "columns": listed, **(attributes or {})}
            self.group.create_group(f"{kind}/{key}", attributes=notes)
            twins.save(self.path, (name for name in (f"{kind}/zarr.json",) if (self.path / name).is_file()))
            twins.save(self.path, [f"{kind}/{key}/zarr.json"])
        return self.kind_group(kind, key)

    def columns(self, kind: str, key: str) -> tuple[Column, ...]:
        """The columns of a key, in the order its rows' digests are taken in."""
        listed = cast(list[Any], self.kind_group(kind, key).attrs["columns"])
        return tuple(Column(name, tuple(shape), dtype) for name, shape, dtype in listed)

    def require_column(
        self, group: zarr.Group, column: Column, rows: int, lanes: int, shard_rows: int
    ) -> zarr.Array[Any]:
        """The column's array, made or grown to `rows` (and `lanes`; 0: no such axis). Data already there stays."""
        shape = ((lanes,) if lanes else ()) + (rows, *column.shape)
        if column.name in group:
            array = cast("zarr.Array[Any]", group[column.name])
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

    def withdraw_failures(self, key: str) -> int:
        """Let the rows that are set aside under a key count as not done; their number."""
        count = 0
        for path in sorted((self.path / "receipts" / key).glob("*.json")):
            receipt = Receipt.read(path)
            if receipt and receipt.failed:
                # A failed row has inputs and no data; one that waits for a stage before it has neither.
                inputs = tuple(i if ok else "" for i, ok in zip(receipt.inputs, receipt.ok, strict=True))
                replace(receipt, inputs=inputs, failed={}).write(path)
                count += len(receipt.failed)
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
                data[kind][part] = key

    def settle_ref(self, name: str, captions: Sequence[str], templates: Sequence[str]) -> None:
        """Forget captions of other tables than these, bring theirs into this order, note the class prompts' templates.

        Templates other than the release's alone are written down.
        """
        with self._editing(name) as data:
            data["captions"] = {table: data["captions"][table] for table in captions if table in data["captions"]}
            data.pop("templates", None)
            if tuple(templates) != CLASS_PROMPTS:
                data["templates"] = list(templates)

    @contextmanager
    def _editing(self, name: str) -> Iterator[dict[str, Any]]:
        """A ref's document, written if it is another afterwards."""
        path = self.path / "refs" / f"{name}.json"
        data: dict[str, Any] = {"dataset": name, "keys": {}, "targets": {}, "text": {}, "captions": {}}
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
        before = json.dumps(data)
        yield data
        if json.dumps(data) != before:
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


def read_column(group: zarr.Group, name: str, rows: int) -> list[Any]:
    """The first `rows` entries of a text column as Python lists; blank where it has fewer."""
    if name not in group:
        return [""] * rows
    try:
        array = cast("zarr.Array[Any]", group[name])
        values = cast(list[Any], np.asarray(array[:rows]).tolist())
    except Exception as error:  # so do codecs of damaged data
        raise DamagedStore(f"{group.store_path}/{name}: unreadable ({error}); {VERIFY}") from error
    blank: list[Any] = np.full((rows - len(values), *array.shape[1:]), "").tolist()
    return values + blank


def append_text(group: zarr.Group, columns: dict[str, Sequence[str]], rows: int) -> None:
    """Append text columns after `rows` and commit by raising the group's `rows` attribute last."""
    count = len(next(iter(columns.values())))
    for name, values in columns.items():
        if name in group:
            array = cast("zarr.Array[Any]", group[name])
            array.resize((rows + count,))
        else:
            array = group.create_array(name, shape=(rows + count,), chunks=(4096,), dtype=str, compressors=COMPRESSORS)
        array[rows : rows + count] = np.array(values, dtype=np.dtypes.StringDType())
    group.attrs["rows"] = rows + count

"""Reading a feature store: what its refs name, its keys, their receipts. The layout stands in `feature_store`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from operator import getitem
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.documents import read_document
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.limits import check_interpreter
from recon.pipeline.base.wording import near_paths, nearest, one_line
from recon.pipeline.store.captions import Tables, caption_records, joined_captions
from recon.pipeline.store.columns import VERIFY, has_column, open_column, parsed, read_column, read_rows
from recon.pipeline.store.forms import FACTS, FOREIGN_GROUP, NAMES, REF, RefForm, part_of
from recon.pipeline.store.keys import StoredKeys
from recon.pipeline.store.listed import of_ranges
from recon.pipeline.store.prompts import EARLIER_PROMPTS, class_prompts
from recon.pipeline.store.receipts import DamagedStore, Failure
from recon.pipeline.store.records import Caption, Lifted, Points, Ref, Registry, Targets, Text, Texts, Views, of_recipe

FORMAT = {"format": "recon-store", "version": 3}
NAME_ALONE = ("{category}",)
FEATURE_ROWS = 512  # that `features` reads at once
REGISTRY_COLUMNS = ("uid", "dataset", "category", "split", "source", "fingerprint")


class StoreReader(StoredKeys):
    """A store as its readers see it."""

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """For reading. UserError when there is no store at `path`, or one of another format or newer version."""
        return cls(Path(path), open_group(Path(path), "r"))

    def __len__(self) -> int:
        """Rows of the registry; 0 before the first ingest."""
        return len(self.registry) if self.has_registry else 0

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    def __repr__(self) -> str:
        try:
            told = "; ".join(self._told_of(name) for name in self.refs) or "no finished stage"
            return f"<{type(self).__name__} {self.path}: {len(self)} shapes; {told}>"
        except UserError as error:  # a notebook shows what it can
            return f"<{type(self).__name__} {self.path}: {error}>"

    def _told_of(self, name: str) -> str:
        """A ref: how many shapes it lists, and each teacher with how many of them it has finished."""
        mine = [self.targets(teacher, name) for teacher in self.ref(name).targets]
        words = [teacher for teacher in self.ref(name).text if teacher not in self.ref(name).targets]
        features = [f"{target.teacher} {int(target.ok.all(0).sum())}" for target in mine]
        return f"ref {name!r} of {len(self.rows(name))}, features of {', '.join([*features, *words]) or 'no teacher'}"

    @property
    def refs(self) -> list[str]:
        """Names of what experiments use, one a manifest; `ref` reads one."""
        return sorted(path.stem for path in (self.path / "refs").glob("[!.]*.json"))

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers whose features any ref names, of pictures or words."""
        return sorted({name for ref in map(self.ref, self.refs) for name in (*ref.targets, *ref.text)})

    @cached_property
    def registry(self) -> Registry:
        """UserError before the first ingest."""
        if not self.has_registry:
            raise UserError(
                f"{self.path}: no shape registered yet; run `recon-pipeline ingest --manifest M --store {self.path}`"
            )
        group = self._group("registry")
        # Columns may be longer, or not there: an ingest that was cut off before it committed.
        rows = self._attributes("registry").get("rows", 0)
        columns = {name: read_column(group, name, rows) for name in REGISTRY_COLUMNS}
        categories = sorted(set(columns["category"]))
        index = {name: i for i, name in enumerate(categories)}
        category = np.array([index[name] for name in columns.pop("category")], dtype=np.int64)
        texts = {name: Texts(values) for name, values in columns.items()}
        return Registry(category=category, categories=categories, **texts)

    def ref(self, name: str | Ref | None = None) -> Ref:
        """The keys under `refs/<name>.json`; without a name the store's only ref. UserError when there is none."""
        if isinstance(name, Ref):
            return name
        names = self.refs
        if name is None and len(names) == 1:
            name = names[0]
        if name not in names:
            asked = (
                "has no finished stage; run `recon-pipeline all`"
                if not names
                else f"holds {', '.join(names)}: choose one"
            )
            raise UserError(f"{self.path}: {asked}" + (f" (no ref {name!r})" if name else ""))
        data = self._ref_document(name)
        several = data["targets"], data["text"], data["captions"]
        templates = tuple(data.get("templates", EARLIER_PROMPTS))
        listed = tuple(data["listed"]) if "listed" in data else None
        noted = dict(data.get("cut", {})), data.get("lifted", {}), data.get("cut_of", {})
        return Ref(name, data["dataset"], data["keys"], *several, templates, listed, *noted)

    def _ref_document(self, name: str) -> RefForm:
        return read_document(self.path / "refs" / f"{name}.json", REF, VERIFY)

    def rows(self, ref: Ref | str | None = None) -> NDArray[np.int64]:
        """Registry rows of the shapes that the ref's manifest listed when it last ran, ascending."""
        ref = self.ref(ref)
        mine = np.flatnonzero(np.array(self.registry.dataset) == ref.dataset)
        return mine if ref.listed is None else np.intersect1d(mine, of_ranges(ref.listed))

    def rows_of(self, *uids: str, ref: Ref | str | None = None) -> NDArray[np.int64]:
        """[len(uids)] the rows of the ref's shapes of these uids. UserError for one it has not, with the nearest."""
        ref = self.ref(ref)
        known = self.registry.numbers(ref.dataset)
        for uid in uids:
            if uid not in known:
                raise UserError(f"{self.path}: ref {ref.name!r} has no shape {uid!r}{nearest(uid, known)}")
        return np.array([known[uid] for uid in uids], np.int64)

    def features(
        self, teacher: str | None = None, ref: Ref | str | None = None, draw: int = 0
    ) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """(uid, [V, D] feature) of every shape whose features are finished, in row order; draw 0 is the clean picture.

        Rows that were set aside or are not there yet, and single features that are absent (`Targets.present`), are
        left out, where `targets().feat` has something to fill them.
        """
        targets = self.targets(teacher, ref)
        if not 0 <= draw < len(targets.ok):
            raise UserError(f"{self.path}: draw {draw}: {targets.teacher!r} has draws 0 to {len(targets.ok) - 1}")
        rows = np.flatnonzero(targets.ok[draw])
        for at in range(0, len(rows), FEATURE_ROWS):
            part = rows[at : at + FEATURE_ROWS]
            feats: Iterable[NDArray[np.float16]] = read_rows(targets.feat, part, draw)
            if targets.present is not None:
                feats = map(getitem, feats, read_rows(targets.present, part, draw))
            yield from zip(self.registry.uid[part], feats, strict=True)

    def retired(self, ref: Ref | str | None = None) -> dict[str, NDArray[np.int64]]:
        """Rows that the ref's manifest listed once, by the time (ISO 8601) when it listed them no more."""
        held = self._ref_document(self.ref(ref).name).get("retired", {})
        return {when: of_ranges(ranges) for when, ranges in held.items()}

    def listed_rows(self, dataset: str) -> NDArray[np.int64]:
        """The same for a data set that may have no ref yet: then all its rows."""
        if (self.path / "refs" / f"{dataset}.json").is_file():
            return self.rows(dataset)
        return np.flatnonzero(np.array(self.registry.dataset) == dataset)

    def points(self, ref: Ref | str | None = None) -> Points:
        """Without a ref, of the store's only one. UserError names the stage to run when the ref has none."""
        ref = self.ref(ref)
        return self._points(self._of_ref("points", ref, "sample")[0], ref)

    def _points(self, key: str, ref: Ref) -> Points:
        group = self.kind_group("points", key)
        names = ("xyz", "normal", "color", "part", "order", "frame")
        arrays = {name: open_column(group, name) for name in names}
        return Points(key, **arrays, ok=self._finished(ref, key))

    def views(self, ref: Ref | str | None = None) -> Views:
        """Without a ref, of the store's only one. UserError names the stage to run when the ref has none."""
        ref = self.ref(ref)
        key, group = self._of_ref("views", ref, "render")
        rgb, alpha, depth, frame = (open_column(group, name) for name in ("rgb", "alpha", "depth", "frame"))
        normal = open_column(group, "normal") if has_column(group, "normal") else None
        held = self.attributes("views", key)
        try:
            poses, intrinsics, angles = (
                np.array(x) for x in (held["camera_to_world"], held["intrinsics"], held["angles"])
            )
            planes = held["near"], held["far"]
        except KeyError as error:
            raise DamagedStore(f"{self.path}/views/{key}/zarr.json: {error.args[0]}: is missing; {VERIFY}") from None
        recipe, ok = self.recipe("views", key), self._finished(ref, key)
        return Views(key, recipe, rgb, alpha, depth, normal, frame, poses, intrinsics, angles, *planes, ok)

    def targets(self, teacher: str | None = None, ref: Ref | str | None = None) -> Targets:
        """Features of `teacher` (a name of the manifest); without a name the first one listed that is of pictures."""
        ref = self.ref(ref)
        named = ref.targets
        if teacher is None:
            pictures = {name: key for name, key in named.items() if of_recipe(self.recipe("targets", key)) == "image"}
            named = pictures or named
        name, key = self._teacher(named, teacher)
        group = self.kind_group("targets", key)
        feat = open_column(group, "feat")
        masked = any(column.name == "present" for column in self.columns("targets", key))
        present = open_column(group, "present") if masked else None
        ok = np.stack([self._finished(ref, key, lane) for lane in range(feat.shape[0])])
        return Targets(key, name, self.recipe("targets", key), feat, ok, present)

    def lifted(self, teacher: str | None = None, ref: Ref | str | None = None) -> Lifted:
        """Features a point of `teacher` (a name of the manifest); without a name the first one that is lifted."""
        ref = self.ref(ref)
        if not ref.lifted:
            raise UserError(f"{self.path}: no features of points yet; run `recon-pipeline lift`")
        name, key = self._teacher(ref.lifted, teacher)
        group, recipe = self.kind_group("lifted", key), self.recipe("lifted", key)
        feat, count = open_column(group, "feat"), open_column(group, "count")
        if ("points", recipe.get("points")) not in self.list_keys():  # the recipe of somebody's store may say anything
            raise DamagedStore(f"{self.path}/lifted/{key}: the points that its recipe names are not there; {VERIFY}")
        points = self._points(recipe["points"], ref)
        return Lifted(key, name, recipe, feat, count, points, self._finished(ref, key))

    def text(self, teacher: str | None = None, ref: Ref | str | None = None) -> Text:
        """Embedded prompts of `teacher`; class prompts and captions are given as rows of `feat`.

        Features of the categories' names that came with a data set are one prompt a class, the name, and no captions.
        """
        ref = self.ref(ref)
        name, key = self._teacher(ref.text, teacher)
        group = self.kind_group("text", key)
        prompts = self.prompts(key)
        done = self.ok(key, len(prompts))
        if not done.all():
            raise UserError(
                f"{self.path}: {int((~done).sum())} prompts not embedded by {name!r}; run `recon-pipeline features`"
            )
        feat = read_rows(open_column(group, "feat"), range(len(prompts)))
        row = {prompt: i for i, prompt in enumerate(prompts)}
        row[""] = -1
        used = set(self.registry.category[self.rows(ref)].tolist())
        templates = self.templates(ref, key)
        came = templates == NAME_ALONE
        wanted = [class_prompts(category, templates) for category in self.registry.categories]
        for number in used:
            if not set(wanted[number]) <= set(row):
                category = self.registry.categories[number]
                raise UserError(f"{self.path}: {name!r} has not embedded {category!r}; run `recon-pipeline features`")
        classes = np.array([[row[p] if n in used else -1 for p in lines] for n, lines in enumerate(wanted)], np.int64)
        captions = [[""] for _ in self.registry.uid] if came else self.captions(ref)
        absent = {caption for number in self.rows(ref) for caption in captions[number]} - row.keys()
        if absent:
            raise UserError(
                f"{self.path}: {len(absent)} captions not embedded by {name!r}; run `recon-pipeline features`"
            )
        index = np.array([[row.get(c, -1) for c in line] for line in captions], dtype=np.int64)
        return Text(key, name, self.recipe("text", key), feat, prompts, classes, index)

    def templates(self, ref: Ref, key: str) -> tuple[str, ...]:
        """Of class prompts under a key of text: the ref's; the name alone, of features that came with a data set."""
        came = part_of(self.recipe("text", key), "teacher").get("kind") == "stored"
        return NAME_ALONE if came else ref.templates

    def captions(self, ref: Ref | str | None = None) -> list[list[str]]:
        """Shape-specific captions a row, each once, padded with "" to one length; tables in the manifest's order."""
        return self.captions_of(self.ref(ref).captions)

    def captions_of(self, keys: Mapping[str, str]) -> list[list[str]]:
        """The same for keys of captions by table, whether a ref names them yet or not."""
        return joined_captions(self._caption_tables(keys), len(self.registry))

    def caption_records(self, ref: Ref | str | None = None) -> list[list[Caption]]:
        """All that is stored of every shape's captions, rejected ones too, table by table."""
        return caption_records(self._caption_tables(self.ref(ref).captions), len(self.registry))

    def _caption_tables(self, keys: Mapping[str, str]) -> Tables:
        return {table: (self.kind_group("captions", key), self._done(key)) for table, key in keys.items()}

    def _done(self, key: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.ok(key, len(self.registry)))

    def facts(self, ref: Ref | str | None = None) -> list[dict[str, Any]]:
        """What the source knows of each shape ({} for a plain file)."""
        ref = self.ref(ref)
        key, group = self._of_ref("meshes", ref, "ingest")
        facts: list[dict[str, Any]] = [{} for _ in self.registry.uid]
        done = self._done(key)
        for row, text in zip(done, read_rows(open_column(group, "facts"), done), strict=True):
            known = parsed(text, FACTS, f"{group.store_path}/facts: row {row}") if text else {}
            facts[row] = dict(known)
        return facts

    def part_names(self, ref: Ref | str | None = None) -> list[tuple[str, ...]]:
        """What the numbers in `Points.part` of each shape are called, of data sets of meshes; () of an unread one."""
        ref = self.ref(ref)
        key, group = self._of_ref("meshes", ref, "ingest")
        names: list[tuple[str, ...]] = [() for _ in self.registry.uid]
        done = self._done(key)
        for row, text in zip(done, read_rows(open_column(group, "parts"), done), strict=True):
            its = parsed(text or "[]", NAMES, f"{group.store_path}/parts: row {row}")
            names[row] = tuple(its)
        return names

    def _finished(self, ref: Ref, key: str, lane: int = 0) -> NDArray[np.bool_]:
        ok = self.ok(key, len(self.registry), lane)
        mine = np.zeros_like(ok)
        mine[self.rows(ref)] = True
        return ok & mine

    def failures(self, key: str) -> dict[int, Failure]:
        """Rows set aside under a key, of any data set; `names` says what they are called."""
        failed: dict[int, Failure] = {}
        for _, _, receipt in self.receipts(key):
            failed |= receipt.failed
        return failed

    def names(self, key: str) -> list[str]:
        """What the rows of a key are called: the shapes' uids, or the prompts."""
        return self.prompts(key) if self._kind_of(key) == "text" else self.registry.uid

    def digest(self, key: str) -> str:
        """A digest of the key's logical contents: independent of chunks, shards, workers and order."""
        names = self.names(key)
        lines = []
        for lane, _, receipt in self.receipts(key):
            start, stop = receipt.rows
            if stop > len(names):
                raise DamagedStore(
                    f"{self.path}/receipts/{key}: one speaks of {stop} rows, there are {len(names)}; {VERIFY}"
                )
            lines += [f"{names[start + i]}:{lane}:{d}" for i, d in enumerate(receipt.digests) if receipt.ok[i]]
        return hashlib.sha256("\n".join([key, *sorted(lines)]).encode()).hexdigest()

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


def is_store(path: Path) -> bool:
    """Whether something that may be a store lies there."""
    return (path / "zarr.json").is_file()


def no_store(path: Path) -> UserError:
    """What is said of a path where no store lies."""
    near = near_paths(path, is_store)
    return UserError(
        f"no feature store at {path}{near}; make one with `recon-pipeline all --manifest M --store {path}`"
    )


def open_group(path: Path, mode: Literal["r", "r+"]) -> zarr.Group:
    """The Zarr group of the store at `path`; UserError as for `StoreReader.open`."""
    check_interpreter()
    if not is_store(path):
        raise no_store(path)
    try:
        attributes = read_document(path / "zarr.json", FOREIGN_GROUP, VERIFY).get("attributes", {})
        group = zarr.open_group(str(path), mode=mode, zarr_format=3)
    except Exception as error:  # zarr raises many kinds for a foreign or damaged zarr.json
        raise UserError(f"{path}: not a Zarr v3 group ({one_line(error)}); name another store") from error
    if attributes.get("format") != FORMAT["format"]:
        raise UserError(f"{path}: a Zarr group, but no feature store; name another path")
    if attributes.get("version") != FORMAT["version"]:
        raise UserError(
            f"{path}: store version {attributes.get('version')}, this program reads {FORMAT['version']}: use the "
            "release that made it, or compute the store anew"
        )
    return group

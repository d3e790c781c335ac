"""Captions of the single shape, a stage a source of them: each has a key of its own, so none is redone for another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of, row_seed
from recon.pipeline.base.words import spoken
from recon.pipeline.caption.attributes import Floats, best_word, directions, mean_direction
from recon.pipeline.caption.facts import describe
from recon.pipeline.caption.tables import CaptionerTable
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.models import PROBE, WORDS, check_probe, check_recipe, loaded, teacher_of
from recon.pipeline.stages.origin import Origin
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store.columns import read_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.prompts import fill
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import read_rows
from recon.pipeline.teachers import TeacherSpec, TextTeacher

NUM_FACTS = 4  # `facts.describe` writes no more
VERSION = 2  # raise it when this code makes other captions from the same recipe


@dataclass(frozen=True)
class FactCaptions:
    """From what a mesh's source knows of it; nothing for a plain file."""

    origin: Origin
    kind = "captions"
    gpu = False
    attributes: ClassVar[dict[str, Any]] = {"source": "facts"}
    lanes = 0
    shard_rows = 1024
    columns = (Column("caption", (NUM_FACTS,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "captions", "version": VERSION, "source": "facts", "meshes": meshes}

    def by_content(self, lane: int) -> bool:
        return False  # cheaper than looking for a twin

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        group = store.kind_group("meshes", self.recipe["meshes"])
        facts = read_column(group, "facts", rows[-1].index + 1)

        def one(row: Row) -> tuple[list[str]]:
            lines = describe(json.loads(facts[row.index]) if facts[row.index] else {})
            return (filled(lines, NUM_FACTS),)

        return each_row(rows, ["caption"], one)


@dataclass(frozen=True)
class TextCaptions:
    """Texts that are there already: from a file, a listing, a taxonomy. They travel with the row; see `text_rows`."""

    name: str
    source: str
    keep: int
    kind = "captions"
    gpu = False
    lanes = 0
    shard_rows = 1024

    @property
    def attributes(self) -> dict[str, Any]:
        return {"source": self.source}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("caption", (self.keep,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """Two tables of one kind hold other texts of the same shapes, so the name is part of it."""
        fixed = {"stage": "captions", "version": VERSION, "source": self.source}
        return {**fixed, "name": self.name, "keep": self.keep}

    def by_content(self, lane: int) -> bool:
        return False  # cheaper than looking for a twin

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        return each_row(rows, ["caption"], lambda row: (filled(json.loads(row.source), self.keep),))


def text_rows(rows: Sequence[Row], texts: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows of `TextCaptions`: what counts is the texts, by uid."""
    said = [list(texts.get(row.name, ())) for row in rows]
    return [
        replace(row, inputs=digest_of(lines), ready=True, source=json.dumps(lines))
        for row, lines in zip(rows, said, strict=True)
    ]


@dataclass(frozen=True)
class AttributeCaptions:
    """A word a group, where the cached features of the views say one clearly."""

    images: ImageTargets
    text: TextTargets
    words: tuple[tuple[str, ...], ...]
    margin: float
    template: str
    kind = "captions"
    gpu = False
    lanes = 0
    shard_rows = 1024

    @property
    def attributes(self) -> dict[str, Any]:
        model = self.text.recipe["teacher"]["weights"]
        return {"source": "attributes", "model": model, WORDS: loaded(self.text.teacher).text_probe}

    @property
    def columns(self) -> tuple[Column, ...]:
        """A group's best word, told or not; its cosine, and how far the second best lies behind."""
        groups = (len(self.words),)
        return (
            Column("caption", groups, "str"),
            Column("score", groups, "float32"),
            Column("margin", groups, "float32"),
            Column("kept", groups, "bool"),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        return {
            "stage": "captions",
            "version": VERSION,
            "source": "attributes",
            "targets": digest_of(self.images.recipe),
            "text": digest_of(self.text.recipe),
            "words": [list(words) for words in self.words],
            "margin": self.margin,
            "template": self.template,
        }

    def by_content(self, lane: int) -> bool:
        return False  # cheaper than looking for a twin

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        feat = _features(store, self.recipe["targets"], rows)
        self.text.checked(f"captions/{key}", store.kind_group(self.kind, key).attrs.get(WORDS))

        def one(at: int, row: Row) -> tuple[Any, ...]:
            image, name = mean_direction(feat[at]), spoken(row.source)
            found = []
            for words in self.words:
                texts = tuple(fill(self.template, word=word, name=name) for word in words)
                best, score, margin = best_word(image, _directions_of(self.text.teacher, texts))
                found.append((texts[best], np.float32(score), np.float32(margin), margin >= self.margin))
            return tuple(zip(*found, strict=True))

        place = {row.index: at for at, row in enumerate(rows)}
        return each_row(rows, [c.name for c in self.columns], lambda row: one(place[row.index], row))


def attribute_rows(rows: Sequence[Row], category: Mapping[str, str]) -> list[Row]:
    """Rows of `AttributeCaptions`, which name the shape's class: it counts like the views."""
    named = [replace(row, source=category[row.name]) for row in rows]
    return [replace(row, inputs=digest_of([row.inputs, row.source])) if row.ready else row for row in named]


@dataclass(frozen=True)
class ModelCaptions:
    """What a captioner writes of views; where a teacher ranks them, the best first."""

    table: CaptionerTable
    views: RenderedViews
    captioner_recipe: str
    """Canonical JSON: it needs the weights, so it is read once, in the parent."""
    images: ImageTargets | None = None
    text: TextTargets | None = None
    """The teacher that ranks."""
    kind = "captions"
    gpu = True
    lanes = 0
    shard_rows = 32

    @property
    def chosen(self) -> tuple[int, ...]:
        """Views that are looked at."""
        return self.table.views or tuple(range(self.views.num_views))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the model; the recipe says what it is."""
        model = json.loads(self.captioner_recipe)["weights"]
        path = Path(self.table.model)
        name = path.name if path.is_absolute() else self.table.model  # the rest of it is this machine's
        probes = {PROBE: captioner_of(self.table).probe}
        if self.text:
            probes[WORDS] = loaded(self.text.teacher).text_probe
        return {"source": "captioner", "name": name, "model": model, "seed": self.table.seed, **probes}

    @property
    def columns(self) -> tuple[Column, ...]:
        num = (len(self.chosen) * self.table.num,)
        score = (Column("score", num, "float32"),) if self.text else ()
        return Column("caption", num, "str"), Column("view", num, "int16"), *score, Column("kept", num, "bool")

    @property
    def recipe(self) -> dict[str, Any]:
        recipe = {
            "stage": "captions",
            "version": VERSION,
            "source": "captioner",
            "views": digest_of(self.views.recipe),
            "captioner": json.loads(self.captioner_recipe),
            "chosen": list(self.chosen),
            "num": self.table.num,
            "keep": self.table.keep,
            "seed": self.table.seed,
        }
        if self.images and self.text:
            recipe |= {"targets": digest_of(self.images.recipe), "text": digest_of(self.text.recipe)}
        return recipe

    def by_content(self, lane: int) -> bool:
        return self.table.num == 1  # further captions are drawn from seeds of the uid

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        recipe = self.recipe
        rgb = cast(Any, store.kind_group("views", recipe["views"])["rgb"])
        pictures = read_rows(store, rgb, [row.index for row in rows])[:, list(self.chosen)]
        flat = pictures.reshape(-1, *pictures.shape[2:])
        captioner = self._checked(store, key)
        drafts = [captioner.write(flat, None)]
        for draw in range(1, self.table.num):
            drafts.append(
                captioner.write(flat, [row_seed(key, row.name, view, draw) for row in rows for view in self.chosen])
            )
        by_row = np.array(drafts, dtype=object).T.reshape(len(rows), -1)
        views = np.repeat(np.array(self.chosen, np.int16), self.table.num)
        scores = self._scores(_features(store, recipe["targets"], rows), by_row, views) if self.text else None
        names = [column.name for column in self.columns]
        place = {row.index: at for at, row in enumerate(rows)}

        def one(row: Row) -> tuple[Any, ...]:
            at = place[row.index]
            return self._ranked(by_row[at].tolist(), views, None if scores is None else scores[at])

        return each_row(rows, names, one)

    def _checked(self, store: FeatureStore, key: str) -> Any:
        """The captioner, after it and what ranks were compared with the key's."""
        captioner, held = captioner_of(self.table), store.kind_group(self.kind, key).attrs
        whose = f"captions {self.table.name!r}"
        check_recipe(whose, captioner.recipe(), json.loads(self.captioner_recipe))
        check_probe(whose, f"captions/{key}", held.get(PROBE), lambda: captioner.probe, "fp32")
        if self.text:
            self.text.checked(f"captions/{key}", held.get(WORDS))
        return captioner

    def _scores(self, feat: NDArray[Any], captions: NDArray[Any], views: NDArray[np.int16]) -> Floats:
        """[R, C] cosines of captions with what the teacher saw in their view; `feat` [R, V, D] has every view."""
        assert self.text is not None
        distinct = sorted(set(captions.ravel().tolist()))
        teacher = cast(TextTeacher, teacher_of(self.text.teacher))
        words = dict(zip(distinct, directions(teacher.embed_texts(distinct)), strict=True))
        seen = directions(feat[:, views])
        return np.array(
            [
                [float(np.dot(words[text], image)) for text, image in zip(lines, images, strict=True)]
                for lines, images in zip(captions, seen, strict=True)
            ]
        )

    def _ranked(self, captions: list[str], views: NDArray[np.int16], scores: Floats | None) -> tuple[Any, ...]:
        """One row's columns: best first, the first `keep` different ones kept."""
        order = list(range(len(captions)))
        if scores is not None:
            order.sort(key=lambda i: -scores[i])
        kept: dict[str, bool] = {}
        told = []
        for i in order:
            first = bool(captions[i]) and captions[i] not in kept and len(kept) < self.table.keep
            if first:
                kept[captions[i]] = True
            told.append(first)
        ranks = () if scores is None else (scores[order].astype(np.float32),)
        return [captions[i] for i in order], views[order], *ranks, np.array(told)


@lru_cache(maxsize=1)
def captioner_of(table: CaptionerTable, device: str = "auto") -> Any:
    """The process's one copy of a captioner."""
    import torch

    from recon.pipeline.caption.captioner import Captioner  # the library takes seconds to import

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # workers share the cores, and other thread counts round differently
    return Captioner(table, device)


@lru_cache(maxsize=4096)
def _directions_of(spec: TeacherSpec, texts: tuple[str, ...]) -> Floats:
    """[len(texts), D] of length 1, by the process's one copy of the teacher."""
    return directions(cast(TextTeacher, teacher_of(spec)).embed_texts(list(texts)))


def _features(store: FeatureStore, key: str, rows: Sequence[Row]) -> NDArray[Any]:
    """[R, V, D] what a teacher saw in the clean views."""
    feat = cast(Any, store.kind_group("targets", key)["feat"])
    return read_rows(store, feat, [row.index for row in rows], 0)


def filled(lines: Sequence[str], count: int) -> list[str]:
    """The first `count` lines, filled up with blanks."""
    return [*lines[:count], *[""] * (count - len(lines))]

"""Frozen image teachers' features of every view, in float16."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of, row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.stage import Block, Row
from recon.pipeline.stages import reuse
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import Failure
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import read_rows
from recon.pipeline.teachers import Teacher, TeacherSpec, device_of, load_teacher

VERSION = 1  # raise it when this code makes other numbers from the same recipe


@lru_cache(maxsize=4)
def teacher_of(spec: TeacherSpec) -> Teacher:
    """The process's one copy of a teacher, on the device it asks for."""
    import torch

    torch.set_num_threads(1)  # workers share the cores, and other thread counts round differently
    return load_teacher(spec, device_of(spec))


@dataclass(frozen=True)
class ImageTargets:
    """A frozen image teacher's features of every view: draw 0 clean, the others augmented from seeds of their own."""

    teacher: TeacherSpec
    views: RenderedViews
    draws: int
    seed: int
    shape: tuple[int, ...]
    """Of a view's feature: (D,), or (T, D) of T tokens."""
    teacher_recipe: str
    """Canonical JSON of the teacher's recipe: it needs the weights, so it is read once, in the parent."""
    kind = "targets"
    gpu = True

    @property
    def lanes(self) -> int:
        return self.draws

    @property
    def shard_rows(self) -> int:
        """A row of tokens is some hundred times a pooled one, and a worker holds a shard in float32."""
        return 128 if len(self.shape) == 1 else 32

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher; its recipe says what it is."""
        return {"teacher": self.teacher.label()}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("feat", (self.views.num_views, *self.shape), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        teacher = json.loads(self.teacher_recipe)
        views = digest_of(self.views.recipe)
        return {"stage": "targets", "version": VERSION, "views": views, "teacher": teacher, "seed": self.seed}

    def by_content(self, lane: int) -> bool:
        return lane == 0  # augmentations are drawn from seeds of the uid

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Features that another key holds of the same camera and draw are taken from there."""
        recipe = self.recipe
        views = store.recipe("views", recipe["views"])
        donors = reuse.donors(store, "targets", recipe, self.shard_rows, lane)
        rgb = cast(Any, store.kind_group("views", recipe["views"])["rgb"])
        pictures = read_rows(rgb, [row.index for row in rows])
        feat = np.zeros((len(rows), pictures.shape[1], *self.shape), np.float32)
        cells = []
        for at, row in enumerate(rows):
            held = donors.views_of(row, lane)
            for view, (key, there) in held.items():
                feat[at, view] = donors.read(key, "feat", row.index, lane)[there]
            cells += [(at, view) for view in range(pictures.shape[1]) if view not in held]
        if cells:
            where = tuple(np.array(cells).T)
            # Of the camera, not of its place in the preset: the same draw whatever other views are taken.
            base = digest_of(reuse.without_cameras(store, "targets", recipe))
            names = [digest_of([base, camera]) for camera in views["render"]["cameras"]]
            seeds = [row_seed(names[view], rows[at].name, lane) for at, view in cells] if lane else None
            found = teacher_of(self.teacher).embed_images(pictures[where], seeds)
            check_features(self.teacher, found, (len(cells), *self.shape))
            feat[where] = found
        return finite_block(feat)


def check_features(spec: TeacherSpec, found: np.ndarray, wanted: tuple[int, ...]) -> None:
    """UserError for features of another shape than the teacher's own: numpy would repeat some of them to fit."""
    if found.shape != wanted:
        raise UserError(
            f"teacher {spec.name!r}: {spec.model} gave features {list(found.shape)} where its `shape` says "
            f"{list(wanted)}: mend the class"
        )


def finite_block(feat: np.ndarray) -> Block:
    """float16 features a row; a row that float16 cannot hold (or that is NaN) is set aside."""
    with np.errstate(over="ignore"):
        half = feat.astype(np.float16)
    finite = np.isfinite(half).reshape(len(half), -1).all(1)
    failed = {int(i): Failure("the teacher's feature is not finite in float16") for i in np.flatnonzero(~finite)}
    return Block({"feat": list(half)}, failed)


def clean_features(store: FeatureStore, key: str, rows: Sequence[Row]) -> NDArray[Any]:
    """[R, V, D] what a teacher saw in the clean views of finished rows."""
    feat = cast(Any, store.kind_group("targets", key)["feat"])
    return read_rows(feat, [row.index for row in rows], 0)

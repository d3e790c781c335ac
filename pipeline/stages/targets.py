"""Frozen image teachers' features of every view, in float16."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from recon.pipeline.teachers import TeacherSpec, probe
from recon.pipeline.teachers.loaded import DRAWN, PROBE, LoadedTeacher, check_probe, check_recipe, loaded

VERSION = 1  # raise it when this code makes other numbers from the same recipe


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

    @property
    def gpu(self) -> bool:
        """Unless the manifest keeps the teacher to the CPU."""
        return self.teacher.device != "cpu"

    @property
    def lanes(self) -> int:
        """K: a lane an augmentation draw."""
        return self.draws

    @property
    def shard_rows(self) -> int:
        """A row of tokens is some hundred times a pooled one, and a worker holds a shard in float32."""
        return 128 if len(self.shape) == 1 else 32

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher, its recipe says what it is; and what it makes of fixed pictures."""
        model, size = loaded(self.teacher), self.views.config.resolution
        drawn = {DRAWN: model.image_probe(size, True)} if self.draws > 1 else {}
        return {"teacher": self.teacher.label(), PROBE: model.image_probe(size, False), **drawn}

    @property
    def columns(self) -> tuple[Column, ...]:
        """feat [V, D] or [V, T, D] float16 a row and draw."""
        return (Column("feat", (self.views.num_views, *self.shape), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """Draw 0 is clean, whatever the seed: with no other it is written as 0."""
        teacher = json.loads(self.teacher_recipe)
        views = digest_of(self.views.recipe)
        seed = self.seed if self.draws > 1 else 0
        return {"stage": "targets", "version": VERSION, "views": views, "teacher": teacher, "seed": seed}

    def by_content(self, lane: int) -> bool:
        """True for clean pictures: augmentations are drawn from seeds of the uid."""
        return lane == 0

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Features that another key holds of the same camera and draw are taken from there."""
        recipe = self.recipe
        views = store.recipe("views", recipe["views"])
        donors = reuse.donors(store, "targets", recipe, lane)
        rgb = store.column("views", recipe["views"], "rgb")
        num_views = self.views.num_views
        feat = np.zeros((len(rows), num_views, *self.shape), np.float32)
        cells = []
        for at, row in enumerate(rows):
            held = donors.views_of(row, lane)
            for view, (donor, there) in held.items():
                feat[at, view] = donors.read(donor, "feat", row.index, lane)[there]
            cells += [(at, view) for view in range(num_views) if view not in held]
        if cells:
            where = np.array(cells)
            # Of the camera, not of its place in the preset: the same draw whatever other views are taken.
            base = digest_of(reuse.without_cameras(store, "targets", recipe))
            names = [digest_of([base, camera]) for camera in views["render"]["cameras"]]
            seeds = [row_seed(names[view], rows[at].name, lane) for at, view in cells] if lane else None

            def read(start: int, stop: int) -> NDArray[np.uint8]:
                asked, place = np.unique(where[start:stop, 0], return_inverse=True)
                pictures = read_rows(rgb, [rows[at].index for at in asked])
                chosen: NDArray[np.uint8] = pictures[place, where[start:stop, 1]]
                return chosen

            found = self._checked(store, key, lane).embed_read(len(cells), read, seeds)
            check_features(self.teacher, found, (len(cells), *self.shape))
            feat[tuple(where.T)] = found
        return finite_block(self.teacher, feat)

    def _checked(self, store: FeatureStore, key: str, lane: int) -> LoadedTeacher:
        """The teacher, after what it is and does was compared with what the key's was and did."""
        model, size, drawn = loaded(self.teacher), self.views.config.resolution, lane > 0
        check_recipe(model.name, model.teacher.recipe(), json.loads(self.teacher_recipe))
        held = store.kind_group(self.kind, key).attrs.get(DRAWN if drawn else PROBE)
        check_probe(model.name, f"{self.kind}/{key}", held, lambda: model.image_probe(size, drawn), model.precision)
        return model


def check_features(spec: TeacherSpec, found: np.ndarray, wanted: tuple[int, ...]) -> None:
    """UserError for features of another shape than the teacher's own: numpy would repeat some of them to fit."""
    if found.shape != wanted:
        raise UserError(
            f"teacher {spec.name!r}: {spec.model} gave features {list(found.shape)} where its `shape` says "
            f"{list(wanted)}: mend the class"
        )


def finite_block(spec: TeacherSpec, feat: np.ndarray) -> Block:
    """float16 features a row; a row that float16 cannot hold (or that is NaN) is set aside.

    MachineError where that is every one of several rows: shapes that differ are not all at fault.
    """
    with np.errstate(over="ignore"):
        half = feat.astype(np.float16)
    finite = np.isfinite(half).reshape(len(half), -1).all(1)
    if len(half) > 1 and not finite.any():
        raise probe.not_finite(f"teacher {spec.name!r}", feat)
    failed = {int(i): Failure("the teacher's feature is not finite in float16") for i in np.flatnonzero(~finite)}
    return Block({"feat": list(half)}, failed)


def clean_features(store: FeatureStore, key: str, rows: Sequence[Row]) -> NDArray[Any]:
    """[R, V, D] what a teacher saw in the clean views of finished rows."""
    feat = store.column("targets", key, "feat")
    return read_rows(feat, [row.index for row in rows], 0)

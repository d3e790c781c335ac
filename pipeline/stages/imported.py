"""What a data set's own files hold beside points: features of pictures, and texts. Taken over, not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.sources.openshape import OpenShapeSource, StoredFeatures
from recon.pipeline.sources.source import Shape
from recon.pipeline.stages.captions import filled
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 1  # raise it when this code makes other values from the same recipe


@dataclass(frozen=True)
class ImportedTargets:
    """Image features from the data set's files, raw, in float16: one draw, as they are features of clean pictures."""

    origin: Origin
    stored: StoredFeatures
    kind = "targets"
    gpu = False
    lanes = 1
    shard_rows = 128

    @property
    def attributes(self) -> dict[str, Any]:
        return {"teacher": self.stored.model_dump()}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("feat", (self.stored.views, self.stored.dim), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """It names no views: nobody knows what the pictures were."""
        teacher = {"kind": "stored", **self.stored.model_dump(exclude={"name"})}
        return {"stage": "imported", "version": VERSION, "files": self.origin.recipe(), "teacher": teacher}

    def by_content(self, lane: int) -> bool:
        return False  # a row's input is its file's size and time of change, which says nothing of the content

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        return each_row(rows, ["feat"], lambda row: (self._feat(row.source),))

    def _feat(self, reference: str) -> NDArray[np.float16]:
        """[views, dim] of one shape; MeshError for other widths, too few views and what float16 cannot hold."""
        stored = self.stored
        with self.origin.there():
            feat = _source(self.origin).features(self.origin.root, reference, stored.field)
        if feat.shape[1] != stored.dim:
            words = f"{reference}: {stored.field} is {feat.shape[1]} wide, the store's is {stored.dim}"
            raise MeshError("wrong-width", words)
        if len(feat) < stored.views:
            raise MeshError("few-views", f"{reference}: {stored.field} has {len(feat)} views of {stored.views}")
        with np.errstate(over="ignore"):
            half = feat[: stored.views].astype(np.float16)
        if not np.isfinite(half).all():
            raise MeshError("non-finite", f"{reference}: {stored.field} is not finite in float16")
        return half


def check_width(origin: Origin, stored: StoredFeatures, shapes: Sequence[Shape]) -> None:
    """UserError when the first file that is there has features of another width: before every row is set aside for it.

    A first file that cannot be read is left to the stage, which sets it aside.
    """
    there = next((shape.source for shape in shapes if shape.fingerprint != "missing"), None)
    if there is None:
        return
    try:
        feat = _source(origin).features(origin.root, there, stored.field)
    except MeshError:
        return
    if feat.shape[1] != stored.dim:
        raise UserError(
            f"field 'features.stored': {stored.name!r} has dim = {stored.dim}, {stored.field} in {there} is "
            f"{feat.shape[1]} wide; set dim = {feat.shape[1]}"
        )


@dataclass(frozen=True)
class ImportedCaptions:
    """Texts from the data set's files, the first `keep` of a shape, read row by row: there may be millions of files."""

    origin: Origin
    keep: int
    kind = "captions"
    gpu = False
    lanes = 0
    shard_rows = 1024

    @property
    def attributes(self) -> dict[str, Any]:
        return {"source": "stored"}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("caption", (self.keep,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        files = self.origin.recipe()
        return {"stage": "captions", "version": VERSION, "source": "stored", "files": files, "keep": self.keep}

    def by_content(self, lane: int) -> bool:
        return False  # as of ImportedTargets

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        source = _source(self.origin)

        def one(row: Row) -> tuple[list[str]]:
            with self.origin.there():
                return (filled(source.texts(self.origin.root, row.source), self.keep),)

        return each_row(rows, ["caption"], one)


def _source(origin: Origin) -> OpenShapeSource:
    assert isinstance(origin.source, OpenShapeSource), "the manifest refuses these tables for other layouts"
    return origin.source

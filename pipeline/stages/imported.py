"""Features of pictures that a data set's own files hold: taken over, not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.sources.openshape import StoredFeatures
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
        """What the manifest says of the features; nobody can verify it."""
        return {"teacher": self.stored.model_dump()}

    @property
    def columns(self) -> tuple[Column, ...]:
        """feat [V, D] float16 a row."""
        return (Column("feat", (self.stored.views, self.stored.dim), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """It names no views: nobody knows what the pictures were."""
        teacher = {"kind": "stored", **self.stored.model_dump(exclude={"name"})}
        return {"stage": "imported", "version": VERSION, "files": self.origin.recipe(), "teacher": teacher}

    def by_content(self, lane: int) -> bool:
        """False: a row's input is its file's size and time of change, which do not say what it holds."""
        return False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """A file whose features cannot be read, or have another shape, sets its row aside."""
        return each_row(rows, ["feat"], lambda row: (self._feat(row.source),))

    def check_width(self, references: Sequence[str]) -> None:
        """UserError when the first file has features of another width: before every row is set aside for it.

        A first file that cannot be read is left to the stage, which sets it aside.
        """
        if not references:
            return
        stored = self.stored
        try:
            feat = self.origin.features(references[0], stored.field)
        except MeshError:
            return
        if feat.shape[1] != stored.dim:
            found = f"{stored.field} in {references[0]} is {feat.shape[1]} wide"
            raise UserError(
                f"field 'features.stored': {stored.name!r} has dim = {stored.dim}, {found}; set dim = {feat.shape[1]}"
            )

    def _feat(self, reference: str) -> NDArray[np.float16]:
        """[views, dim] of one shape; MeshError for other widths, too few views and what float16 cannot hold."""
        stored = self.stored
        feat = self.origin.features(reference, stored.field)
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

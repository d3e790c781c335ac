"""Features of the categories' names that an evaluation set came with: taken over, not computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.stage import Block, Row, SingleLane, each_row
from recon.pipeline.sources.openshape_eval import ClassFeatures, OpenShapeEvalSource
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 1  # raise it when this code makes other values from the same recipe


@dataclass(frozen=True)
class ClassTexts(SingleLane):
    """A key of text whose rows are the categories' names, as `FeatureStore.text` gives them.

    What the features are is in the key, so that two sets never share one by their claims alone.
    """

    origin: Origin
    stored: ClassFeatures
    names: tuple[str, ...]
    content: str
    """Digest of the names and their features"""
    kind = "text"
    shard_rows = 1024

    @classmethod
    def of(cls, origin: Origin, stored: ClassFeatures) -> ClassTexts:
        """UserError for what `OpenShapeEvalSource.class_features` refuses."""
        found = _features(origin, stored)
        return cls(origin, stored, tuple(found), _digest(found))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest says of the features; nobody can verify it."""
        return {"teacher": self.stored.model_dump()}

    @property
    def columns(self) -> tuple[Column, ...]:
        """feat [D] float16 a name."""
        return (Column("feat", (self.stored.dim,), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the files say of the model, and what they hold."""
        teacher = {"kind": "stored", "of": "text", **self.stored.model_dump(include={"field", "dim", "model"})}
        return {"stage": "classes", "version": VERSION, "teacher": teacher, "content": self.content}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """UserError where the file has changed since the plan was made."""
        found = _features(self.origin, self.stored)
        if _digest(found) != self.content:
            raise UserError(f"{self.origin.root / self.stored.file}: has changed meanwhile; give the command again")
        return each_row(rows, ["feat"], lambda row: (found[row.name],))


def _features(origin: Origin, stored: ClassFeatures) -> dict[str, NDArray[np.float16]]:
    source = origin.source
    assert isinstance(source, OpenShapeEvalSource), "the manifest has been looked at"
    with origin.there():
        return source.class_features(origin.root, stored)


def _digest(features: Mapping[str, NDArray[np.float16]]) -> str:
    digest = hashlib.sha256()
    for name, values in features.items():
        digest.update(f"{name}\0".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]

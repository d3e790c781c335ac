"""Features that a data set's own files hold, of pictures or of words: taken over, not computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.sources.stored import StoredImages, StoredTexts
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 1  # raise it when this code makes other values from the same recipe
LOOKED_AT = 16  # files whose features' width is compared with the manifest's before any is taken

Found = tuple[str, NDArray[Any] | None]
"""What a feature is called, and the feature [D]; None where the file has none."""


@dataclass(frozen=True)
class ImportedTargets:
    """Features from the data set's files, raw, in float16: one draw, as nothing of them was augmented."""

    origin: Origin
    stored: StoredImages | StoredTexts
    kind = "targets"
    gpu = False
    lanes = 1
    shard_rows = 128

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest says of the features; nobody can verify it."""
        return {"teacher": {"name": self.stored.name, **self.stored.recipe()}}

    @property
    def columns(self) -> tuple[Column, ...]:
        """feat [V, D] float16 a row; where some may be absent, and then zero, present [V] says which are there."""
        feat = Column("feat", (self.stored.num, self.stored.dim), "float16")
        return (feat, Column("present", (self.stored.num,), "bool")) if self.stored.masked else (feat,)

    @property
    def recipe(self) -> dict[str, Any]:
        """It names no views: nobody knows what the pictures were."""
        texts = {} if isinstance(self.stored, StoredImages) else self.origin.texts_recipe()
        files = self.origin.recipe()
        return {"stage": "imported", "version": VERSION, "files": files, "teacher": self.stored.recipe()} | texts

    def by_content(self, lane: int) -> bool:
        """False: a row's input is its file's size and time of change, which do not say what it holds."""
        return False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """A file whose features cannot be read, or have another shape, sets its row aside."""
        names = [column.name for column in self.columns]
        return each_row(rows, names, lambda row: self._values(row.source)[: len(names)])

    def check_width(self, references: Iterable[str]) -> None:
        """UserError when the first file that has features has some of another width: before all rows are set aside.

        The same where LOOKED_AT files have texts and not one of them has a feature. A file that cannot be read is left
        to the stage, which sets it aside.
        """
        stored, without = self.stored, 0
        for reference in islice(references, LOOKED_AT):
            try:
                found = [(name, feat) for name, feat in self._found(reference) if feat is not None]
            except MachineError:
                raise
            except UserError:
                continue
            for name, feat in found:
                if len(feat) != stored.dim:
                    raise UserError(
                        f"field 'features.stored': {stored.name!r} has dim = {stored.dim}, {name} in {reference} is "
                        f"{len(feat)} wide; set dim = {len(feat)}"
                    )
            if found:
                return
            without += 1
        if isinstance(stored, StoredTexts) and without == LOOKED_AT:
            raise UserError(
                f"field 'features.stored': {stored.name!r}: none of the first {without} files has a feature of a text, "
                f"{stored.variant}; choose another variant, or remove the table"
            )

    def _values(self, reference: str) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """feat [num, dim] and present [num] of one shape.

        MeshError for other widths, for what float16 cannot hold, and where no picture's is there. A shape may well
        have no text.
        """
        stored = self.stored
        feat, present = np.zeros((stored.num, stored.dim), np.float16), np.zeros(stored.num, np.bool_)
        for at, (name, found) in enumerate(self._found(reference)):
            if found is None:
                continue
            if len(found) != stored.dim:
                words = f"{reference}: {name} is {len(found)} wide, the store's is {stored.dim}"
                raise MeshError("wrong-width", words)
            with np.errstate(over="ignore"):
                feat[at] = found
            if not np.isfinite(feat[at]).all():
                raise MeshError("non-finite", f"{reference}: {name} is not finite in float16")
            present[at] = True
        if isinstance(stored, StoredImages) and not present.any():
            raise MeshError("no-features", f"{reference}: holds no features of pictures")
        return feat, present

    def _found(self, reference: str) -> list[Found]:
        """At most `num` features of one shape, in their order."""
        stored = self.stored
        if isinstance(stored, StoredImages):
            return self._of_pictures(stored, reference)
        words = self.origin.words(reference, stored.variant)[: stored.keep]
        return [(f"the feature of {text[:40]!r}", feat) for text, feat in words]

    def _of_pictures(self, stored: StoredImages, reference: str) -> list[Found]:
        """MeshError where some are absent and the manifest does not mask them."""
        found: list[Found] = []
        for field, count in stored.counts.items():
            feat = self.origin.features(reference, field)
            if feat is None and not stored.partial:
                raise MeshError("wrong-shape", f"{reference}: no array of numbers {field!r}")
            feats: list[NDArray[Any] | None] = [] if feat is None else list(feat[:count])
            if len(feats) < count and not stored.partial:
                words = f"{reference}: {field} has {len(feats)} views of {count}; partial = true masks what is absent"
                raise MeshError("few-views", words)
            if stored.partial:  # zeros stand for a picture that there is none of
                feats = [one if one is not None and one.any() else None for one in feats]
            found += [(field, one) for one in (*feats, *[None] * (count - len(feats)))]
        return found

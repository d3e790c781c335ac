"""Captions that lie in the shapes' own files, read row by row: there may be millions of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from recon.pipeline.base.errors import UserError
from recon.pipeline.caption.table import CaptionsTable, CaptionStage, Keep, Name, Subject
from recon.pipeline.caption.texts import filled
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.sources.source import Source
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 1  # raise it when this code makes other values from the same recipe


class StoredTable(CaptionsTable):
    """Texts that lie in the shapes' own files, read with them: OpenShape's."""

    kind: Literal["stored"]
    name: Name = "stored"
    keep: Keep = 8
    """At most so many a shape, the first ones."""

    in_files: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        """See `CaptionsTable.check`."""
        if not source.has_texts:
            raise UserError(
                f"captions {self.name!r}: files of layout {source.layout!r} hold no texts; remove the table"
            )

    def stage(self, subject: Subject) -> StoredCaptions:
        """See `CaptionsTable.stage`."""
        return StoredCaptions(subject.origin, self.keep)


@dataclass(frozen=True)
class StoredCaptions(CaptionStage):
    """Texts from the data set's files, the first `keep` of a shape."""

    origin: Origin
    keep: int

    @property
    def attributes(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"source": "stored"}

    @property
    def columns(self) -> tuple[Column, ...]:
        """See `Stage`."""
        return (Column("caption", (self.keep,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """See `Stage`."""
        files = self.origin.recipe()
        fixed = {"stage": "captions", "version": VERSION, "source": "stored", "files": files, "keep": self.keep}
        return fixed | self.origin.texts_recipe()

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """See `Stage`."""
        return each_row(rows, ["caption"], lambda row: (filled(self.origin.texts(row.source), self.keep),))

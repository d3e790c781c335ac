"""Captions that are texts already: those of a file, a listing or a taxonomy travel with the row."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recon.pipeline.base.digests import digest_of
from recon.pipeline.caption.table import CaptionsTable, CaptionStage, Keep, Subject, Texts
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 2  # of all kinds of captions; raise it when they come out otherwise from the same recipe


class TextTable(CaptionsTable):
    """A table that knows all its texts before anything runs."""

    keep: Keep = 8
    """At most so many a shape, the first ones."""

    @abstractmethod
    def said(self, subject: Subject) -> tuple[Texts, list[str]]:
        """The texts by uid, and what is to be said of where they come from."""

    def read(self, subject: Subject) -> list[str]:
        """See `CaptionsTable.read`."""
        texts, notes = self.said(subject)
        subject.texts[self.name] = texts
        more = sum(len(lines) > self.keep for lines in texts.values())
        if more:
            notes += [f"captions {self.name!r}: {more} shapes have more than keep = {self.keep}: the first count"]
        return notes

    def stage(self, subject: Subject) -> TextCaptions:
        """See `CaptionsTable.stage`."""
        return TextCaptions(self.name, self.kind, self.keep)

    def rows(self, subject: Subject, rows: Sequence[Row]) -> list[Row]:
        """What counts is the texts."""
        if self.name not in subject.texts:
            self.read(subject)
        texts = subject.texts[self.name]
        said = [list(texts.get(row.name, ())) for row in rows]
        return [
            replace(row, inputs=digest_of(lines), ready=True, source=json.dumps(lines))
            for row, lines in zip(rows, said, strict=True)
        ]


@dataclass(frozen=True)
class TextCaptions(CaptionStage):
    """Texts that are there already."""

    name: str
    source: str
    keep: int

    @property
    def attributes(self) -> dict[str, Any]:
        """See `Stage`."""
        return {"source": self.source}

    @property
    def columns(self) -> tuple[Column, ...]:
        """See `Stage`."""
        return (Column("caption", (self.keep,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """Two tables of one kind hold other texts of the same shapes, so the name is part of it."""
        fixed = {"stage": "captions", "version": VERSION, "source": self.source}
        return {**fixed, "name": self.name, "keep": self.keep}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """See `Stage`."""
        return each_row(rows, ["caption"], lambda row: (filled(json.loads(row.source), self.keep),))


def filled(lines: Sequence[str], count: int) -> list[str]:
    """The first `count` lines, filled up with blanks."""
    return [*lines[:count], *[""] * (count - len(lines))]

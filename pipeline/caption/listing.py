"""Captions that came with the data set's own list."""

from __future__ import annotations

from typing import Literal

from recon.pipeline.base.words import single_spaced
from recon.pipeline.caption.table import Name, Subject, Texts
from recon.pipeline.caption.texts import TextTable


class ListingTable(TextTable):
    """Texts that came with the data set's own list."""

    kind: Literal["listing"]
    name: Name = "listing"

    def said(self, subject: Subject) -> tuple[Texts, list[str]]:
        """See `TextTable.said`."""
        lines = {shape.uid: dict.fromkeys(map(single_spaced, shape.captions)) for shape in subject.shapes()}
        return {uid: tuple(filter(None, texts)) for uid, texts in lines.items()}, []

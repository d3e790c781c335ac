"""Captions that somebody else wrote, from a file under the data set's root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from recon.pipeline.caption.files import Found, read_captions
from recon.pipeline.caption.table import Name, Subject, Texts
from recon.pipeline.caption.texts import TextTable
from recon.pipeline.sources.source import Shape, other_names


class FileTable(TextTable):
    """Captions from a file: CSV lines `uid,caption` (Cap3D's form), or JSON lines with those two fields."""

    kind: Literal["file"]
    name: Name = "file"
    path: str = Field(min_length=1)
    """Relative to the data set's root."""

    def said(self, subject: Subject) -> tuple[Texts, list[str]]:
        """See `TextTable.said`."""
        path = subject.origin.root / self.path
        read = self._read(path, subject.shapes())
        return read.captions, read.notes(path)

    def count(self, root: Path, shapes: Sequence[Shape]) -> int:
        """See `CaptionsTable.count`."""
        return len(self._read(root / self.path, shapes).captions)

    def _read(self, path: Path, shapes: Sequence[Shape]) -> Found:
        return read_captions(path, {shape.uid for shape in shapes}, other_names(shapes))

"""Captions that somebody else wrote, from a file under the data set's root."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Literal

from pydantic import Field

from recon.pipeline.caption.files import read_captions
from recon.pipeline.caption.table import Name, Subject, Texts
from recon.pipeline.caption.texts import TextTable


class FileTable(TextTable):
    """Captions from a file: CSV lines `uid,caption` (Cap3D's form), or JSON lines with those two fields."""

    kind: Literal["file"]
    name: Name = "file"
    path: str = Field(min_length=1)
    """Relative to the data set's root."""

    def said(self, subject: Subject) -> tuple[Texts, list[str]]:
        """See `TextTable.said`."""
        path = subject.origin.root / self.path
        read = read_captions(path, {shape.uid for shape in subject.shapes()})
        return read.captions, read.notes(path)

    def count(self, root: Path, uids: Container[str]) -> int:
        """See `CaptionsTable.count`."""
        return len(read_captions(root / self.path, uids).captions)

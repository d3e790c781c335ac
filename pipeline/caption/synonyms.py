"""Captions from the other names that a taxonomy has for a class."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.words import spoken
from recon.pipeline.caption.table import Name, Subject, Texts
from recon.pipeline.caption.templates import check_template
from recon.pipeline.caption.texts import TextTable
from recon.pipeline.store.prompts import fill


class SynonymsTable(TextTable):
    """Other names of a shape's class, from the data set's taxonomy."""

    kind: Literal["synonyms"]
    name: Name = "synonyms"
    template: str = "{article} {name}"

    @field_validator("template")
    @classmethod
    def _has_slots(cls, value: str) -> str:
        return check_template(value)

    def said(self, subject: Subject) -> tuple[Texts, list[str]]:
        """See `TextTable.said`. UserError for a data set without a taxonomy."""
        source = subject.origin.source
        names = source.synonyms(subject.origin.root)
        if not names:
            raise UserError(f"captions {self.name!r}: layout {source.layout!r} has no taxonomy here; remove it")
        texts = {
            category: tuple(
                fill(self.template, name=name)
                for name in dict.fromkeys(map(spoken, several))
                if name != spoken(category)
            )
            for category, several in names.items()
        }
        return {shape.uid: texts.get(shape.category, ()) for shape in subject.shapes()}, []

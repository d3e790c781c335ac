"""The `[[captions]]` tables of a manifest: where captions of the single shape come from, a kind each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from recon.pipeline.base.settings import Strict
from recon.pipeline.caption.templates import check_template

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Keep = Annotated[int, Field(ge=1, le=64)]

# Words that show in a picture and in CLIP's training texts; a group's words exclude each other.
WORDS: dict[str, tuple[str, ...]] = {
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"),
    "material": ("wooden", "metal", "plastic", "glass", "stone", "ceramic", "fabric", "leather"),
}


class FactsTable(Strict):
    """What a procedural shape knows of itself; nothing for plain files."""

    kind: Literal["facts"]
    name: Name = "facts"


class ListingTable(Strict):
    """Texts that came with the data set's own list."""

    kind: Literal["listing"]
    name: Name = "listing"
    keep: Keep = 8
    """At most so many a shape, the first ones."""


class SynonymsTable(Strict):
    """Other names of a shape's class, from the data set's taxonomy."""

    kind: Literal["synonyms"]
    name: Name = "synonyms"
    template: str = "{article} {name}"
    keep: Keep = 8

    @field_validator("template")
    @classmethod
    def _has_slots(cls, value: str) -> str:
        return check_template(value)


class FileTable(Strict):
    """Captions from a file: CSV lines `uid,caption` (Cap3D's form), or JSON lines with those two fields."""

    kind: Literal["file"]
    name: Name = "file"
    path: str = Field(min_length=1)
    """Relative to the data set's root."""
    keep: Keep = 8


class StoredTable(Strict):
    """Texts that lie in the shapes' own files, read with them: OpenShape's."""

    kind: Literal["stored"]
    name: Name = "stored"
    keep: Keep = 8
    """At most so many a shape, the first ones."""


class AttributesTable(Strict):
    """Words that a CLIP finds in the views it has seen: the best of a group where it is best by a margin."""

    kind: Literal["attributes"]
    name: Name = "attributes"
    teacher: str
    """A teacher of the manifest that has words, with tap "pooled"."""
    margin: float = Field(default=0.01, ge=0, le=2)
    """Of cosines: how far the best word of a group must lie before the second."""
    words: dict[str, tuple[str, ...]] = Field(default=WORDS, min_length=1)
    """Group -> words that exclude each other."""
    template: str = "{article} {word} {name}"
    """What is compared with the views, and the caption: {name} is the shape's class."""

    @field_validator("template")
    @classmethod
    def _has_slots(cls, value: str) -> str:
        return check_template(value, ("word", "name") if "{name}" in value or "{}" in value else ("word",))

    @field_validator("words")
    @classmethod
    def _comparable(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for group, words in value.items():
            if len(set(words)) < max(len(words), 2) or not all(word.strip() for word in words):
                raise ValueError(f"group {group!r} needs two different words or more, each once")
        return value


class CaptionerTable(Strict):
    """Captions that a model of the transformers library writes of views; needs the extra `captioner`."""

    kind: Literal["captioner"]
    name: Name = "captioner"
    model: str = Field(min_length=1)
    """A name on the hub, or a folder (beside the manifest) with the model, its processor and safetensors weights."""
    views: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Which views of the preset; none named: all."""
    num: int = Field(default=1, ge=1, le=32)
    """Captions a view: the first by beam search, the others drawn."""
    seed: int = 0
    prompt: str = ""
    """What every caption begins with."""
    max_new_tokens: int = Field(default=30, ge=1, le=1024)
    rerank: str | None = None
    """A teacher as in "attributes": captions that fit their view best come first."""
    keep: Keep = 4
    """So many a shape, the best ones; the rest is stored as rejected."""

    def resolved(self, folder: Path) -> CaptionerTable:
        """The table with a model that lies under `folder`, the manifest's, named by its path."""
        lies_there = (folder / self.model).is_dir()
        return self.model_copy(update={"model": str(folder / self.model)}) if lies_there else self

    @field_validator("views")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a view is named twice")
        return value


TextTable = ListingTable | SynonymsTable | FileTable
AnyCaptions = FactsTable | StoredTable | TextTable | AttributesTable | CaptionerTable


def teacher_named(table: AnyCaptions) -> str | None:
    """The teacher whose features of the views a table needs."""
    if isinstance(table, AttributesTable):
        return table.teacher
    return table.rerank if isinstance(table, CaptionerTable) else None

"""Captions that a CLIP chooses: the words of each group that fit what it has seen in the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field, field_validator

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.words import spoken
from recon.pipeline.caption.directions import Floats, best_word, directions, mean_direction
from recon.pipeline.caption.table import CaptionsTable, CaptionStage, Name, Subject
from recon.pipeline.caption.templates import check_template
from recon.pipeline.caption.texts import VERSION
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.stages.targets import ImageTargets, clean_features
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.prompts import fill
from recon.pipeline.store.records import Column
from recon.pipeline.teachers import TeacherSpec, TextTeacher
from recon.pipeline.teachers.loaded import WORDS as WORDS_PROBE
from recon.pipeline.teachers.loaded import loaded, teacher_of

# Words that show in a picture and in CLIP's training texts; a group's words exclude each other.
WORDS: dict[str, tuple[str, ...]] = {
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"),
    "material": ("wooden", "metal", "plastic", "glass", "stone", "ceramic", "fabric", "leather"),
}


class AttributesTable(CaptionsTable):
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

    teacher_field: ClassVar[str] = "teacher"

    @property
    def after(self) -> str:
        """See `CaptionsTable.after`."""
        return f"targets {self.teacher}"

    def stage(self, subject: Subject) -> AttributeCaptions:
        """See `CaptionsTable.stage`."""
        images, text = subject.one_space(self.name, self.teacher)
        return AttributeCaptions(images, text, tuple(self.words.values()), self.margin, self.template)

    def rows(self, subject: Subject, rows: Sequence[Row]) -> list[Row]:
        """They name the shape's class: it counts like the views."""
        category = {shape.uid: shape.category for shape in subject.shapes()}
        named = [replace(row, source=category[row.name]) for row in rows]
        return [replace(row, inputs=digest_of([row.inputs, row.source])) if row.ready else row for row in named]


@dataclass(frozen=True)
class AttributeCaptions(CaptionStage):
    """A word a group, where the cached features of the views say one clearly."""

    images: ImageTargets
    text: TextTargets
    words: tuple[tuple[str, ...], ...]
    margin: float
    template: str

    @property
    def gpu(self) -> bool:
        """It embeds its words."""
        return self.text.gpu

    @property
    def attributes(self) -> dict[str, Any]:
        """The weights whose features decided."""
        model = self.text.recipe["teacher"]["weights"]
        return {"source": "attributes", "model": model, WORDS_PROBE: loaded(self.text.teacher).text_probe}

    @property
    def columns(self) -> tuple[Column, ...]:
        """A group's best word, told or not; its cosine, and how far the second best lies behind."""
        groups = (len(self.words),)
        return (
            Column("caption", groups, "str"),
            Column("score", groups, "float32"),
            Column("margin", groups, "float32"),
            Column("kept", groups, "bool"),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """The features compared, the words, and what decides between them."""
        return {
            "stage": "captions",
            "version": VERSION,
            "source": "attributes",
            "targets": digest_of(self.images.recipe),
            "text": digest_of(self.text.recipe),
            "words": [list(words) for words in self.words],
            "margin": self.margin,
            "template": self.template,
        }

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Compares cached features with the words; looks at no picture."""
        feat = clean_features(store, self.recipe["targets"], rows)
        self.text.checked(f"captions/{key}", store.kind_group(self.kind, key).attrs.get(WORDS_PROBE))

        def one(at: int, row: Row) -> tuple[Any, ...]:
            image, name = mean_direction(feat[at]), spoken(row.source)
            found = []
            for words in self.words:
                texts = tuple(fill(self.template, word=word, name=name) for word in words)
                best, score, margin = best_word(image, _directions_of(self.text.teacher, texts))
                found.append((texts[best], np.float32(score), np.float32(margin), margin >= self.margin))
            return tuple(zip(*found, strict=True))

        place = {row.index: at for at, row in enumerate(rows)}
        return each_row(rows, [c.name for c in self.columns], lambda row: one(place[row.index], row))


@lru_cache(maxsize=4096)
def _directions_of(spec: TeacherSpec, texts: tuple[str, ...]) -> Floats:
    """[len(texts), D] of length 1, by the process's one copy of the teacher."""
    return directions(cast(TextTeacher, teacher_of(spec)).embed_texts(list(texts)))

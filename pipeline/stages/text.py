"""Frozen text teachers' features of every distinct prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from recon.pipeline.execution.stage import Block, Row
from recon.pipeline.stages.targets import check_features, finite_block, teacher_of
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column
from recon.pipeline.teachers import TeacherSpec, TextTeacher

VERSION = 1  # raise it when this code makes other numbers from the same recipe


@dataclass(frozen=True)
class TextTargets:
    """A frozen text teacher's features; rows are distinct prompts."""

    teacher: TeacherSpec
    dim: int
    teacher_recipe: str
    kind = "text"
    gpu = True
    lanes = 0
    shard_rows = 1024

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher; its recipe says what it is."""
        return {"teacher": self.teacher.label()}

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("feat", (self.dim,), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "text", "version": VERSION, "teacher": json.loads(self.teacher_recipe)}

    def by_content(self, lane: int) -> bool:
        return False  # prompts are distinct as it is

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        teacher = cast(TextTeacher, teacher_of(self.teacher))
        found = teacher.embed_texts([row.name for row in rows])
        check_features(self.teacher, found, (len(rows), self.dim))
        return finite_block(found)

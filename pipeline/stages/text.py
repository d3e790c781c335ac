"""Frozen text teachers' features of every distinct prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recon.pipeline.execution.stage import Block, Row, SingleLane
from recon.pipeline.stages.targets import check_features, finite_block
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column
from recon.pipeline.teachers import TeacherSpec
from recon.pipeline.teachers.loaded import PROBE, LoadedTeacher, check_probe, check_recipe, loaded

VERSION = 1  # raise it when this code makes other numbers from the same recipe


@dataclass(frozen=True)
class TextTargets(SingleLane):
    """A frozen text teacher's features; rows are distinct prompts."""

    teacher: TeacherSpec
    dim: int
    teacher_recipe: str
    kind = "text"
    shard_rows = 1024

    @property
    def gpu(self) -> bool:
        """Unless the manifest keeps the teacher to the CPU."""
        return self.teacher.device != "cpu"

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher, its recipe says what it is; and what it makes of fixed sentences."""
        return {"teacher": self.teacher.label(), PROBE: loaded(self.teacher).text_probe}

    @property
    def columns(self) -> tuple[Column, ...]:
        """feat [D] float16 a prompt."""
        return (Column("feat", (self.dim,), "float16"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """The teacher's text tower alone: which prompts there are does not count."""
        return {"stage": "text", "version": VERSION, "teacher": json.loads(self.teacher_recipe)}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Embeds the rows' names. UserError for features of another shape than the teacher's."""
        held = store.kind_group(self.kind, key).attrs.get(PROBE)
        found = self.checked(f"{self.kind}/{key}", held).embed_texts([row.name for row in rows])
        check_features(self.teacher, found, (len(rows), self.dim))
        return finite_block(self.teacher, found)

    def checked(self, key: str, held: Any) -> LoadedTeacher:
        """The teacher, after it was compared with the recipe and with the probe that `key` (or captions) holds."""
        model = loaded(self.teacher)
        check_recipe(model.name, model.reader.text_recipe(), json.loads(self.teacher_recipe))
        check_probe(model.name, key, held, lambda: model.text_probe, model.precision)
        return model

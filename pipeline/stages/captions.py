"""Captions of the single shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline import caption
from pipeline.execution.stage import Block, Row, each_row
from pipeline.stages.meshes import Meshes
from pipeline.stages.origin import Origin
from pipeline.store.feature_store import FeatureStore, read_column
from pipeline.store.receipts import digest_of
from pipeline.store.records import Column

NUM_CAPTIONS = 4  # slots a shape; `caption.describe` writes no more
VERSION = 1  # raise it when this code makes other numbers from the same recipe


@dataclass(frozen=True)
class Captions:
    """Captions of the single shape, from what its source knows of it; class prompts need no column."""

    origin: Origin
    kind = "captions"
    gpu = False
    attributes: ClassVar[dict[str, Any]] = {}
    lanes = 0
    shard_rows = 1024
    columns = (Column("caption", (NUM_CAPTIONS,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": "captions", "version": VERSION, "meshes": digest_of(Meshes(self.origin).recipe)}

    def by_content(self, lane: int) -> bool:
        return False  # cheaper than looking for a twin

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        group = store.kind_group("meshes", self.recipe["meshes"])
        facts = read_column(group, "facts", rows[-1].index + 1)

        def one(row: Row) -> tuple[list[str]]:
            lines = caption.describe(json.loads(facts[row.index]) if facts[row.index] else {})[:NUM_CAPTIONS]
            return (lines + [""] * (NUM_CAPTIONS - len(lines)),)

        return each_row(rows, ["caption"], one)

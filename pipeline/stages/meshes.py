"""Reads every mesh once: its digest, its facts, its part names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from recon.pipeline.execution.stage import Block, Row, SingleLane, each_row
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 2  # raise it when this code makes other numbers from the same recipe
READER = 2  # raise it when the same file gives another mesh (0 had no number): colours, poses, edges of textures


@dataclass(frozen=True)
class Meshes(SingleLane):
    """Reads every mesh once: its digest, its facts, its part names. A mesh that cannot be read is set aside here."""

    origin: Origin
    kind = "meshes"
    attributes: ClassVar[dict[str, Any]] = {}
    shard_rows = 64
    columns = (
        Column("digest", (), "str"),
        Column("facts", (), "str"),
        Column("parts", (), "str"),
        Column("faces", (), "int64"),
    )

    @property
    def recipe(self) -> dict[str, Any]:
        """How the source reads a mesh; READER counts where that is from files."""
        reader = {"reader": READER} if self.origin.source.reads_files else {}
        return {"stage": "meshes", "version": VERSION, "origin": self.origin.recipe(), **reader}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Reads and checks every mesh once: its digest, facts, parts and number of faces."""
        from recon.pipeline.shapes.meshfile import check_mesh, mesh_digest

        def one(row: Row) -> tuple[str, str, str, int]:
            mesh = self.origin.mesh(row)
            check_mesh(mesh)
            faces, digest = sum(len(p.faces) for p in mesh.primitives), mesh_digest(mesh)
            self.origin.keep(row, mesh, digest)
            return digest, json.dumps(mesh.facts, sort_keys=True), json.dumps(mesh.parts), faces

        return each_row(rows, [c.name for c in self.columns], one)

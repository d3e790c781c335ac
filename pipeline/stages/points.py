"""Points of every shape: sampled from its mesh, or the ready-made ones of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recon.pipeline.base.digests import digest_of, row_seed
from recon.pipeline.execution.stage import Block, Row, SingleLane, each_row
from recon.pipeline.shapes.sample import SampleRecipe, farthest_point_order, point_frame, sample_points, take_points
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 2  # raise it when this code, or that of shapes.sample, makes other numbers from the same recipe
READER = 1  # raise it when the same file gives another cloud (0 had no number): far ones are moved to the origin


@dataclass(frozen=True)
class PointClouds(SingleLane):
    """Points with normals, colours and part ids, seeded a shape, and a farthest-point order of them.

    Of a source with ready-made clouds those points, shuffled; see `sample.take_points`. Normals that the source lacks
    are zero, colours mid grey.
    """

    origin: Origin
    sample: SampleRecipe
    kind = "points"
    attributes: ClassVar[dict[str, Any]] = {}
    shard_rows = 32

    @property
    def columns(self) -> tuple[Column, ...]:
        """P points, normals, linear colours x 255, parts, a farthest-point order; frame: centre and radius."""
        n = self.sample.num_points
        return (
            Column("xyz", (n, 3), "float32"),
            Column("normal", (n, 3), "float16"),
            Column("color", (n, 3), "uint8"),
            Column("part", (n,), "uint8"),
            Column("order", (n,), "uint16" if n <= 1 << 16 else "uint32"),
            Column("frame", (4,), "float64"),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """The clouds or meshes that points come from, and how many are drawn."""
        if self.origin.source.has_clouds:
            made_from: dict[str, Any] = {"clouds": self.origin.recipe() | {"reader": READER}}
        else:
            made_from = {"meshes": digest_of(Meshes(self.origin).recipe)}
        return {"stage": "points", "version": VERSION, **made_from, **self.sample.model_dump()}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Ready-made points are shuffled and taken, those of a mesh sampled by area."""
        count = self.sample.num_points
        order_type = self.columns[4].dtype

        def one(row: Row) -> tuple[Any, ...]:
            seed = row_seed(key, row.name)
            if self.origin.source.has_clouds:
                points = take_points(self.origin.cloud(row), count, seed)
            else:
                points = sample_points(self.origin.checked_mesh(row, keep=True), count, seed)
            order = farthest_point_order(points.xyz).astype(order_type)
            normal = points.normal.astype(np.float16)
            return points.xyz, normal, points.color, points.part, order, point_frame(points.xyz)

        return each_row(rows, [c.name for c in self.columns], one)

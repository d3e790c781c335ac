"""RGB and depth from every camera of the preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline import reuse
from pipeline.execution.stage import Block, Row, each_row
from pipeline.cameras import camera_poses, intrinsic_matrix
from pipeline.render import RenderConfig, Renderer, check_visible
from pipeline.render import recipe as render_recipe
from pipeline.stages.meshes import Meshes
from pipeline.stages.origin import Origin
from pipeline.store.feature_store import FeatureStore
from pipeline.store.receipts import digest_of
from pipeline.store.records import Column

VERSION = 1  # raise it when this code makes other numbers from the same recipe


@dataclass(frozen=True)
class RenderedViews:
    """RGB and depth from every camera of the preset."""

    origin: Origin
    config: RenderConfig
    kind = "views"
    gpu = False
    lanes = 0
    shard_rows = 32

    @property
    def num_views(self) -> int:
        return self.config.num_views

    @property
    def columns(self) -> tuple[Column, ...]:
        size = (self.num_views, self.config.resolution, self.config.resolution)
        return Column("rgb", (*size, 3), "uint8"), Column("depth", size, "float16"), Column("frame", (4,), "float64")

    @property
    def attributes(self) -> dict[str, Any]:
        """The cameras, for readers that do not know the presets."""
        poses, intrinsics = camera_poses(self.config), intrinsic_matrix(self.config)
        names = {"preset": self.config.preset}
        return {**names, "camera_to_world": poses.tolist(), "intrinsics": intrinsics.tolist()}

    @property
    def recipe(self) -> dict[str, Any]:
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "views", "version": VERSION, "meshes": meshes, "render": render_recipe(self.config)}

    def by_content(self, lane: int) -> bool:
        return True

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Views that another preset's key holds of the same camera are taken from there."""
        names = [c.name for c in self.columns]
        donors = reuse.donors(store, "views", self.recipe, self.shard_rows)

        def one(row: Row) -> tuple[Any, ...]:
            held = donors.views_of(row, 0)
            missing = [view for view in range(self.num_views) if view not in held]
            rgb, depth = (np.zeros(c.shape, c.dtype) for c in self.columns[:2])
            for view, (key, there) in held.items():
                rgb[view], depth[view] = (donors.read(key, name, row.index)[there] for name in names[:2])
            if missing:
                drawn = _renderer(self.config).render_some(self.origin.mesh(row), missing)
                rgb[missing], depth[missing] = drawn.rgb, drawn.depth
                frame = np.array([*drawn.normalisation.box_center, drawn.normalisation.box_radius], np.float64)
            else:
                frame = donors.read(next(iter(held.values()))[0], names[2], row.index)
            check_visible(depth)
            return rgb, depth, frame

        return each_row(rows, names, one)


@lru_cache(maxsize=1)
def _renderer(config: RenderConfig) -> Renderer:
    """The worker's one renderer: a second GL context in a process breaks the first."""
    return Renderer(config)

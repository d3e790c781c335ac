"""Pictures, alpha, depth and, if asked for, normals from every camera of the preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from recon.pipeline.base.digests import digest_of
from recon.pipeline.execution.stage import Block, Row, SingleLane, each_row
from recon.pipeline.rendering.cameras import camera_angles, camera_poses, intrinsic_matrix
from recon.pipeline.rendering.render import RenderConfig, Renderer, check_visible
from recon.pipeline.rendering.render import recipe as render_recipe
from recon.pipeline.stages import reuse
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column

VERSION = 2  # raise it when this code makes other numbers from the same recipe


@dataclass(frozen=True)
class RenderedViews(SingleLane):
    """Pictures, alpha, depth and, if asked for, normals from every camera of the preset."""

    origin: Origin
    config: RenderConfig
    kind = "views"
    shard_rows = 32

    @property
    def num_views(self) -> int:
        """V of the preset."""
        return self.config.num_views

    @property
    def columns(self) -> tuple[Column, ...]:
        """The pictures asked for, [V, H, W, ...] each; frame: the box's centre and radius in the shape's own units."""
        return *self._pictures, Column("frame", (4,), "float64")

    @property
    def _pictures(self) -> tuple[Column, ...]:
        """Columns with one picture a view, named like the fields of `render.Views`."""
        size = (self.num_views, self.config.resolution, self.config.resolution)
        columns = (Column("rgb", (*size, 3), "uint8"), Column("alpha", size, "uint8"), Column("depth", size, "float16"))
        return (*columns, Column("normal", (*size, 3), "int8")) if self.config.normals else columns

    @property
    def attributes(self) -> dict[str, Any]:
        """The cameras, for readers that do not know the presets."""
        config = self.config
        return {
            "preset": config.preset,
            "camera_to_world": camera_poses(config).tolist(),
            "intrinsics": intrinsic_matrix(config).tolist(),
            "angles": camera_angles(config).tolist(),
            "near": config.near,
            "far": config.far,
        }

    @property
    def recipe(self) -> dict[str, Any]:
        """The meshes, and everything a picture depends on."""
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "views", "version": VERSION, "meshes": meshes, "render": render_recipe(self.config)}

    def by_content(self, lane: int) -> bool:
        """True: equal meshes look alike whatever they are called."""
        return True

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Views that another preset's key holds of the same camera are taken from there."""
        donors = reuse.donors(store, "views", self.recipe)

        def one(row: Row) -> tuple[Any, ...]:
            held = donors.views_of(row, 0)
            missing = [view for view in range(self.num_views) if view not in held]
            pictures = {column.name: np.zeros(column.shape, column.dtype) for column in self._pictures}
            for name, picture in pictures.items():
                for view, (key, there) in held.items():
                    picture[view] = donors.read(key, name, row.index)[there]
            if missing:
                drawn = _renderer(self.config).render_some(self.origin.checked_mesh(row), missing)
                for name, picture in pictures.items():
                    picture[missing] = getattr(drawn, name)
                frame = np.array([*drawn.normalisation.box_center, drawn.normalisation.box_radius], np.float64)
            else:
                frame = donors.read(next(iter(held.values()))[0], "frame", row.index)
            check_visible(pictures["depth"])
            return *pictures.values(), frame

        return each_row(rows, [c.name for c in self.columns], one)


@lru_cache(maxsize=1)
def _renderer(config: RenderConfig) -> Renderer:
    """The worker's one renderer: a second GL context in a process breaks the first."""
    return Renderer(config)

"""A picture teacher's patch tokens, lifted to a shape's points through the stored depth and cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.stage import Block, Row, SingleLane, each_row
from recon.pipeline.rendering.cameras import MARGIN
from recon.pipeline.rendering.visibility import sight
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.stages.points import PointClouds
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.store.columns import read_rows
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.records import Column
from recon.pipeline.teachers.patches import PatchGrid, patch_grid

VERSION = 1  # raise it when this code, or that of rendering.visibility, makes other numbers from the same recipe


@dataclass(frozen=True)
class LiftedTokens(SingleLane):
    """What a teacher saw at each of a shape's points: the mean over the views that show it, of the clean pictures.

    The points are the first `num_points` of the stored farthest point order.
    """

    points: PointClouds
    images: ImageTargets
    num_points: int
    kind = "lifted"
    shard_rows = 32

    def __post_init__(self) -> None:
        """UserError for a teacher that gives one feature a picture, or tokens that are no grid of patches."""
        name = self.images.teacher.name
        if len(self.images.shape) != 2:
            raise UserError(
                f"field 'features.lift': teacher {name!r} gives one feature a picture: what is lifted is one a patch; "
                'set tap = "patch" or "dense" for it'
            )
        side = self.images.views.config.resolution
        try:
            self.grid(side, side)
        except ValueError as error:
            raise UserError(f"field 'features.lift': teacher {name!r}: {error}: it cannot be lifted") from None

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the teacher."""
        return {"teacher": self.images.teacher.label()}

    @property
    def columns(self) -> tuple[Column, ...]:
        """feat [P, D] float16, zero for a point that no view shows; count [P]: of views that show it."""
        return (
            Column("feat", (self.num_points, self.images.shape[1]), "float16"),
            Column("count", (self.num_points,), "uint8"),
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """The points, the views, what the teacher said of these; and how many points."""
        targets = self.images.recipe
        return {
            "stage": "lifted",
            "version": VERSION,
            "points": digest_of(self.points.recipe),
            "views": targets["views"],
            "targets": digest_of(targets),
            "num_points": self.num_points,
        }

    def grid(self, height: int, width: int) -> PatchGrid:
        """Of the teacher's tokens in pictures of a size. ValueError where they are none."""
        return patch_grid(part_of(self.images.recipe, "teacher"), self.images.shape[0], (height, width))

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Sets a shape aside whose points lie elsewhere than what the pictures show."""
        recipe = self.recipe
        views = store.attributes("views", recipe["views"])
        cameras = np.array(views["camera_to_world"]), np.array(views["intrinsics"])
        columns = {
            name: store.column(kind, recipe[kind], name)
            for kind, names in (("points", ("xyz", "order")), ("views", ("depth", "frame")), ("targets", ("feat",)))
            for name in names
        }

        def one(row: Row) -> tuple[Any, ...]:
            held = {n: read_rows(array, [row.index], 0 if n == "feat" else None)[0] for n, array in columns.items()}
            points = (held["xyz"][held["order"][: self.num_points]] - held["frame"][:3]) / held["frame"][3]
            if (far := float(np.linalg.norm(points, axis=1).max())) > 1 + MARGIN:
                raise MeshError(
                    "other-frame",
                    f"its points reach {far:.2f} radii from the centre of what its pictures show: they are of another "
                    "frame than the mesh that was rendered",
                )
            return lifted(held["feat"], points, held["depth"], cameras, self.grid(*held["depth"].shape[1:]))

        return each_row(rows, ["feat", "count"], one)


def lifted(
    tokens: NDArray[np.float16],
    points: NDArray[np.float64],
    depth: NDArray[np.float16],
    cameras: tuple[NDArray[np.float64], NDArray[np.float64]],
    grid: PatchGrid,
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """([P, D] the mean over the views that see a point of what the tokens say there, [P] how many those are).

    tokens [V, T, D]; points [P, 3] in the cameras' frame; depth [V, H, W]; cameras: camera_to_world [V, 4, 4] and
    intrinsics [3, 3].
    """
    found = sight(points, depth, *cameras)
    token, weight, inside = grid.read(found.pixel)
    seen = (found.visible & inside).T  # [P, V]
    count = seen.sum(1)
    token += np.arange(len(tokens), dtype=token.dtype)[:, None, None] * tokens.shape[1]
    # A point's row names four tokens of each view that sees it: some hundredth of all of them.
    starts = np.concatenate([[0], np.cumsum(4 * count)])
    shares = weight.swapaxes(0, 1)[seen] / count.repeat(count)[:, None].astype(np.float32)
    mean = csr_array((shares.ravel(), token.swapaxes(0, 1)[seen].ravel(), starts), (len(points), tokens[..., 0].size))
    return (mean @ tokens.reshape(-1, tokens.shape[2]).astype(np.float32)).astype(np.float16), count.astype(np.uint8)

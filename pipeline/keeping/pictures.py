"""What a cell of a contact sheet shows of a shape: a view's colours, alpha, depth or normals, or the points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.errors import UserError
from recon.pipeline.rendering.cameras import Cameras, camera_poses
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Ref, Views
from recon.pipeline.store.shards import read_rows

SHOWN = ("rgb", "alpha", "depth", "normal", "points")
DOTS = 144  # px a side of a picture of points
DARK, LIGHT = 20.0, 215.0  # grey of what is nearest and farthest

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """`ok` [N] says for which rows of the registry there are some; `draw(row, view)` gives [H, W, 3]."""

    ok: NDArray[np.bool_]
    num_views: int
    title: str
    draw: Callable[[int, int], Pixels]


def pictures(store: FeatureStore, ref: Ref, show: str) -> Pictures:
    """What `show`, one of `SHOWN`, names. A data set of clouds alone has no views: its points are shown instead.

    UserError when it names nothing that the ref has.
    """
    if show not in SHOWN:
        raise UserError(f"no pictures of {show!r}: show one of {', '.join(SHOWN)}")
    if show == "points" or ("views" not in ref.keys and "meshes" not in ref.keys):
        points = store.points(ref)
        title = f"{int(points.ok.sum())} shapes with {points.xyz.shape[1]} points, key {points.key}"
        return Pictures(points.ok, 1, title, partial(_points, points.xyz))
    views = store.views(ref)
    column = getattr(views, show)
    if column is None:
        raise UserError(f"{store.path}: ref {ref.name!r} has no normals; set `normals = true` under [render] for them")
    count, size = column.shape[1:3]
    what = "" if show == "rgb" else f" ({show})"
    title = f"{int(views.ok.sum())} shapes with {count} views of {size} px{what}, key {views.key}"
    return Pictures(views.ok, count, title, partial(_view, views, column, show))


def _view(views: Views, column: zarr.Array[Any], show: str, row: int, view: int) -> Pixels:
    pixels: NDArray[Any] = read_rows(column, [row])[0, view]
    if show == "depth":
        distance = views.angles[view, 2]
        return np.where(pixels > 0, _grey((pixels.astype(np.float64) - distance + 1) / 2), 255)[..., None].repeat(3, -1)
    if show == "alpha":
        return (255 - pixels)[..., None].repeat(3, -1)
    if show == "normal":
        return np.where(pixels.any(-1, keepdims=True), pixels.astype(np.int16) + 128, 255).astype(np.uint8)
    return pixels


def _points(xyz: zarr.Array[Any], row: int, view: int) -> Pixels:
    """Dots seen from before, above and a little to the right, the nearer the darker."""
    points = read_rows(xyz, [row])[0].astype(np.float64)
    pose = camera_poses(Cameras("recon1"))[0]
    middle = (points.min(0) + points.max(0)) / 2
    radius = max(float(np.linalg.norm(points - middle, axis=1).max()), 1e-12)
    seen = (points - middle) / radius @ pose[:3, :3]
    seen = seen[np.argsort(seen[:, 2])]  # the nearest is drawn last
    at = ((1 + seen[:, :2] * [1, -1]) / 2 * (DOTS - 1)).round().astype(int)
    image = np.full((DOTS, DOTS, 3), 255, np.uint8)
    image[at[:, 1], at[:, 0]] = _grey((1 - seen[:, 2]) / 2)[:, None]
    return image


def _grey(depth: NDArray[np.float64]) -> Pixels:
    """From 0, nearest, to 1."""
    return np.rint(DARK + (LIGHT - DARK) * depth.clip(0, 1)).astype(np.uint8)

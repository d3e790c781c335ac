"""What a cell of a contact sheet shows of a shape: a view's colours, alpha, depth or normals, the points, or the
features that were lifted to them, in colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.base.digests import row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.rendering.cameras import Cameras, camera_poses
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Lifted, Ref, Views
from recon.pipeline.store.shards import read_rows

SHOWN = ("rgb", "alpha", "depth", "normal", "points", "lifted")
DOTS = 144  # px a side of a picture of points
SPOT = 5  # px a side of a point that has a colour: there are fewer of them
FITTED = 64  # shapes whose features say what the colours mean
ENDS = 2, 98  # percentiles of a component that are shown as none and all of its colour
UNSEEN = 200  # grey of a point that no view shows
DARK, LIGHT = 20.0, 215.0  # grey of what is nearest and farthest

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """`ok` [N] says for which rows of the registry there are some; `draw(row, view)` gives [H, W, 3]."""

    ok: NDArray[np.bool_]
    num_views: int
    title: str
    draw: Callable[[int, int], Pixels]


def pictures(store: FeatureStore, ref: Ref, show: str, teacher: str | None = None) -> Pictures:
    """What `show`, one of `SHOWN`, names. A data set of clouds alone has no views: its points are shown instead.

    teacher: whose lifted features; without a name the first one that is lifted.

    UserError when it names nothing that the ref has.
    """
    if show not in SHOWN:
        raise UserError(f"no pictures of {show!r}: show one of {', '.join(SHOWN)}")
    if teacher is not None and show != "lifted":
        raise UserError(f'a teacher is for what was lifted of it, not for {show!r}: show "lifted"')
    if show == "lifted":
        return _of_lifted(store, store.lifted(teacher, ref))
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
    order, at, depth = _placed(read_rows(xyz, [row])[0], DOTS - 1)
    image = np.full((DOTS, DOTS, 3), 255, np.uint8)
    image[at[:, 1], at[:, 0]] = _grey(depth[order])[:, None]
    return image


def _placed(xyz: NDArray[Any], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """([P] the order of points [P, 3] from the farthest on, [P, 2] x and y up to `side` in that order, [P] depth from 0
    to 1, the nearest first).
    """
    points = xyz.astype(np.float64)
    pose = camera_poses(Cameras("recon1"))[0]
    middle = (points.min(0) + points.max(0)) / 2
    radius = max(float(np.linalg.norm(points - middle, axis=1).max()), 1e-12)
    seen = (points - middle) / radius @ pose[:3, :3]
    order = np.argsort(seen[:, 2])
    return order, ((1 + seen[order, :2] * [1, -1]) / 2 * side).round().astype(int), (1 - seen[:, 2]) / 2


def _of_lifted(store: FeatureStore, found: Lifted) -> Pictures:
    """Points in the colours of three components, which mean the same in all of the pictures."""
    lowest = sorted(np.flatnonzero(found.ok).tolist(), key=lambda row: row_seed("preview", store.registry.uid[row]))
    fitted = sorted(lowest[:FITTED])
    units = [unit_features(read_rows(found.feat, [row])[0]) for row in fitted]
    shown = [unit[read_rows(found.count, [row])[0] > 0] for unit, row in zip(units, fitted, strict=True)]
    colours = Colours.of(np.concatenate(shown)) if sum(map(len, shown)) else None
    points = f"{found.feat.shape[1]} points"
    title = f"{int(found.ok.sum())} shapes with {points} as {found.teacher} sees them, key {found.key}"
    return Pictures(found.ok, 1, title, partial(_spots, found, colours))


def _spots(found: Lifted, colours: Colours | None, row: int, view: int) -> Pixels:
    """Squares where the points are, the nearest in front."""
    xyz = read_rows(found.points.xyz, [row])[0][found.indices(row)]
    colour = np.full((len(xyz), 3), UNSEEN, np.uint8)
    seen = read_rows(found.count, [row])[0] > 0
    if colours is not None and seen.any():
        colour[seen] = colours.paint(unit_features(read_rows(found.feat, [row])[0][seen]))
    order, at, _ = _placed(xyz, DOTS - SPOT)
    image = np.full((DOTS, DOTS, 3), 255, np.uint8)
    for number, (left, top) in zip(order.tolist(), at.tolist(), strict=True):
        image[top : top + SPOT, left : left + SPOT] = colour[number]
    return image


@dataclass(frozen=True)
class Colours:
    """What red, green and blue mean: the three directions in which features [P, D] differ most."""

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    """[D, 3], the first explains most; the largest number of each is above 0, which is what fixes its sign."""
    ends: NDArray[np.float64]
    """[2, 3] where each colour is none and all."""

    @classmethod
    def of(cls, feat: NDArray[Any]) -> Colours:
        """Of features [P, D], P and D at least 1."""
        values = feat.astype(np.float64)
        mean = values.mean(0)
        _, vectors = np.linalg.eigh((values - mean).T @ (values - mean))
        components = np.pad(vectors[:, ::-1][:, :3], ((0, 0), (0, max(0, 3 - values.shape[1]))))
        largest = np.take_along_axis(components, np.abs(components).argmax(0)[None], 0)
        components = components * np.where(largest < 0, -1, 1)
        return cls(mean, components, np.percentile((values - mean) @ components, ENDS, axis=0))

    def paint(self, feat: NDArray[Any]) -> Pixels:
        """[P, 3] the colours of features [P, D]."""
        low, high = self.ends
        share = ((feat - self.mean) @ self.components - low) / np.maximum(high - low, 1e-12)
        painted: Pixels = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
        return painted


def unit_features(feat: NDArray[Any]) -> NDArray[np.float32]:
    """[P, D] of length 1, zeros as they are: what cosines compare."""
    values = feat.astype(np.float32)
    found: NDArray[np.float32] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return found


def _grey(depth: NDArray[np.float64]) -> Pixels:
    """From 0, nearest, to 1."""
    return np.rint(DARK + (LIGHT - DARK) * depth.clip(0, 1)).astype(np.uint8)

"""Polygons as triangles: fans where they are convex, which readers make of all, and ears cut off where they are not."""

from __future__ import annotations

import mapbox_earcut
import numpy as np

from recon.pipeline.shapes.mesh import Floats, Ints

MAX_CORNERS = 5000  # of a polygon that is looked into; ears of a larger one may take minutes
BENT = 1e-6  # of a polygon's area: a corner that turns back by less lies on a straight edge


def concave(vertices: Floats, corners: Ints, sizes: Ints) -> dict[int, Ints]:
    """By number the polygons that a fan would not fill, as triangles [corners - 2, 3] of vertex numbers.

    vertices [V, 3]; corners: the vertices around each polygon, one polygon after the other; sizes [K]: how many each
    has. A polygon that is not flat is looked at along its mean normal. Those that name no vertex, cross themselves or
    have more than MAX_CORNERS corners are left to fans.
    """
    found: dict[int, Ints] = {}
    firsts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[(sizes > 3) & (sizes <= MAX_CORNERS)]).tolist():
        alike = np.flatnonzero(sizes == size)
        rings = corners[firsts[alike][:, None] + np.arange(size)]
        there = ((rings >= 0) & (rings < len(vertices))).all(1)
        found |= _of_size(vertices, rings[there], alike[there].tolist())
    return found


def _of_size(vertices: Floats, rings: Ints, whose: list[int]) -> dict[int, Ints]:
    """The same of polygons [K, corners] of one size, and of these numbers."""
    corners = vertices[rings]
    ahead = np.roll(corners, -1, 1)
    normals = np.cross(corners - corners[:, :1], ahead - corners[:, :1]).sum(1)  # twice the area long
    turns = np.cross(corners - np.roll(corners, 1, 1), ahead - corners)
    areas = np.einsum("kc,kc->k", normals, normals)
    turned = np.einsum("knc,kc->kn", turns, normals)
    back = turned < -BENT * areas[:, None]
    bent = np.flatnonzero(back.any(1) & np.isfinite(areas)).tolist()
    if rings.shape[1] == 4:  # where two corners turn back it crosses itself
        return {whose[at]: rings[at][_HALVES[turned[at].argmin()]] for at in bent if back[at].sum() == 1}
    ears = {at: _ears(corners[at], normals[at]) for at in bent}
    return {whose[at]: rings[at][triangles] for at, triangles in ears.items() if triangles is not None}


_HALVES = [np.array([[i, i + 1, i + 2], [i, i + 2, i + 3]]) % 4 for i in range(4)]
"""A quadrilateral cut in two at one of its corners."""


def _ears(corners: Floats, normal: Floats) -> Ints | None:
    """Triangles of a ring of corners [n, 3], wound as it is; None where they do not fill it."""
    across = np.eye(3)[np.abs(normal).argmin()]
    right = np.cross(across, normal)
    flat = np.stack([corners @ right, corners @ np.cross(normal, right)], 1)
    flat = (flat - flat.min(0)) / np.ptp(flat, axis=0).max()
    triangles = (
        mapbox_earcut.triangulate_float64(flat, np.array([len(flat)], np.uint32)).reshape(-1, 3).astype(np.int64)
    )
    a, b, c = (flat[triangles[:, i]] for i in range(3))
    doubled = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    ahead = np.roll(flat, -1, 0)
    whole = float((flat[:, 0] * ahead[:, 1] - flat[:, 1] * ahead[:, 0]).sum())
    if not np.isclose(np.abs(doubled).sum(), abs(whole), rtol=1e-6):
        return None
    return np.where(((doubled < 0) == (whole > 0))[:, None], triangles[:, ::-1], triangles)

"""Polygons as triangles: fans where they are convex, which readers make of all, and ears cut off where they are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import mapbox_earcut
import numpy as np

from recon.pipeline.shapes.mesh import Floats, Ints

MAX_CORNERS = 5000  # of a polygon that is looked into; ears of a larger one may take minutes
BENT = 1e-6  # of a polygon's area: a corner that turns back by less lies on a straight edge


def concave(vertices: Floats, polygons: Sequence[Sequence[int]]) -> dict[int, Ints]:
    """By number the polygons that a fan would not fill, as triangles [corners - 2, 3] of vertex numbers.

    vertices [V, 3]; polygons: the vertices around each, in order. A polygon that is not flat is looked at along its
    mean normal. Those that name no vertex, cross themselves or have more than MAX_CORNERS corners are left to fans.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for number, polygon in enumerate(polygons):
        if 3 < len(polygon) <= MAX_CORNERS:
            alike[len(polygon)].append(number)
    found = {}
    for numbers in alike.values():
        rings = np.array([polygons[number] for number in numbers], np.int64)
        there = ((rings >= 0) & (rings < len(vertices))).all(1)
        rings, whose = rings[there], np.array(numbers)[there].tolist()
        corners = vertices[rings]
        ahead = np.roll(corners, -1, 1)
        normals = np.cross(corners - corners[:, :1], ahead - corners[:, :1]).sum(1)  # twice the area long
        turns = np.cross(corners - np.roll(corners, 1, 1), ahead - corners)
        areas = np.einsum("kc,kc->k", normals, normals)
        bent = (np.einsum("knc,kc->kn", turns, normals) < -BENT * areas[:, None]).any(1)
        for at in np.flatnonzero(bent & np.isfinite(areas)):
            triangles = _ears(corners[at], normals[at])
            if triangles is not None:
                found[whose[at]] = rings[at][triangles]
    return found


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

"""Normals of a mesh's corners, smooth across gentle edges and flat across creases."""

from __future__ import annotations

import numpy as np

from recon.pipeline.shapes.mesh import Floats, Ints

WELD = 1e-5  # positions closer than this share of the extent are one vertex for shading
MAX_FAN = 128  # corners at one position; in larger fans faces keep their own normals, as pairs grow squared
PAIRS_A_BLOCK = 2_000_000  # bounds the memory of meshes with millions of faces


def corner_normals(vertices: Floats, faces: Ints, crease_degrees: float = 35.0) -> Floats:
    """Unit normals of every face corner: vertices [V, 3], faces [F, 3] -> [F, 3, 3].

    A corner averages, weighted by area, the normals of the faces that touch its position and lie within the
    crease angle of its own face. Equal positions count as one vertex, so seams stay smooth; faces of opposite
    winding never mix. Faces without area get an arbitrary unit normal.
    """
    corners = vertices[faces]
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    unit = np.divide(weighted, length, out=np.zeros_like(weighted), where=length > 0)

    order, start, count = _groups_by_position(vertices, faces)
    group_start, group_count = np.repeat(start, count), np.repeat(count, count)  # of each sorted corner
    shared = np.flatnonzero((group_count > 1) & (group_count <= MAX_FAN))
    num_pairs = np.cumsum(group_count[shared])
    face_of = order // 3

    normals, unit_axes = np.repeat(unit, 3, axis=0), np.ascontiguousarray(unit.T)
    cosine = np.cos(np.radians(crease_degrees))
    for block in np.split(shared, np.flatnonzero(np.diff(num_pairs // PAIRS_A_BLOCK)) + 1):
        if len(block) == 0:
            continue
        sizes = group_count[block]
        firsts = np.cumsum(sizes) - sizes
        partner = np.arange(sizes.sum()) + np.repeat(group_start[block] - firsts, sizes)
        mine, other = face_of[block], face_of[partner]
        # axis by axis: rows of three are gathered eight times as slowly
        alike = sum(np.repeat(axis[mine], sizes) * axis[other] for axis in unit_axes)
        near = np.asarray(alike) >= cosine
        normals[order[block]] = np.add.reduceat(weighted.take(other, axis=0) * near[:, None], firsts, axis=0)
    norm = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(norm > 0, normals / np.where(norm > 0, norm, 1.0), [0.0, 1.0, 0.0])
    return normals.reshape(-1, 3, 3)


def _groups_by_position(vertices: Floats, faces: Ints) -> tuple[Ints, Ints, Ints]:
    """Corners sorted by welded position: order [3 F] into the flat corners, each group's start and size."""
    low = vertices.min(0)
    step = max(float((vertices.max(0) - low).max()) * WELD, np.finfo(np.float64).tiny)
    cell = np.rint((vertices - low) / step).astype(np.int64)
    key = (cell[:, 0] << 40) + (cell[:, 1] << 20) + cell[:, 2]  # a cell index is at most 1e5 < 2^20
    corner_key = key[faces.ravel()]
    order = np.argsort(corner_key, kind="stable")
    ordered = corner_key[order]
    start = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return order, start, np.diff(np.append(start, len(order)))

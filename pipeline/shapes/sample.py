"""Seeded points with normals, colours and part labels, of a surface or out of a ready-made cloud."""

from __future__ import annotations

from dataclasses import dataclass

import fpsample
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recon.pipeline.base.settings import Strict
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import Floats, Ints, Mesh, Primitive, Wrap
from recon.pipeline.shapes.meshfile import MeshError, concatenate
from recon.pipeline.shapes.normals import corner_normals

UNKNOWN_COLOR = 128  # linear mid grey, as of meshes that say nothing of colour
MAX_REDRAWS = 8  # of points that fall on transparent texels, before they are kept where they fell


class SampleRecipe(Strict):
    """Surface points, or the choice among ready-made ones."""

    num_points: int = Field(default=8192, ge=1, le=1 << 20)
    seed: int = 0


@dataclass(frozen=True)
class Triangles:
    """All triangles of a mesh in primitive order: corners [F, 3, 3], unit corner normals [F, 3, 3], area [F],
    and the index of each face's primitive [F].
    """

    corners: Floats
    normals: Floats
    area: Floats
    primitive: Ints


@dataclass(frozen=True)
class Normalisation:
    """Maps raw coordinates to the cameras' frame: (x - box_center) / box_radius.

    box_center [3] is the middle of the bounding box of all faces, box_radius the largest distance of a corner
    from it.
    """

    box_center: Floats
    box_radius: float


@dataclass(frozen=True)
class PointSample:
    """P points: xyz [P, 3] float32 in the mesh's own units; unit normal [P, 3] float32; color [P, 3] uint8,
    linear * 255; part [P] uint8, the index into `Mesh.parts`.
    """

    xyz: NDArray[np.float32]
    normal: NDArray[np.float32]
    color: NDArray[np.uint8]
    part: NDArray[np.uint8]


def triangles(mesh: Mesh) -> Triangles:
    """The mesh's triangles, shaded across primitives: files often split one smooth surface by material."""
    vertices, faces = concatenate(mesh)
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    index = np.repeat(np.arange(len(mesh.primitives)), [len(p.faces) for p in mesh.primitives])
    return Triangles(corners, corner_normals(vertices, faces), np.linalg.norm(cross, axis=1) / 2, index)


def normalisation(mesh: Mesh) -> Normalisation:
    """The box centre and radius of a mesh's faces; vertices that no face uses do not count."""
    vertices, faces = concatenate(mesh)
    used = vertices[np.unique(faces)]
    center = (used.min(0) + used.max(0)) / 2
    return Normalisation(center, float(np.linalg.norm(used - center, axis=1).max()))


def sample_points(mesh: Mesh, num_points: int, seed: int) -> PointSample:
    """Points spread evenly over the surface; the same mesh and seed give the same points.

    Normals are the crease-aware ones the pictures are lit with. Texels that the pictures leave out as
    transparent get no points. The mesh must have passed `meshfile.check_mesh`: some face has area, and at
    most 256 parts.
    """
    surface = triangles(mesh)
    cumulative = np.cumsum(surface.area)
    assert cumulative[-1] > 0, "a mesh without area: check_mesh refuses it"
    rng = np.random.default_rng(seed)
    face, weight = _draw(rng, cumulative, num_points)
    for _ in range(MAX_REDRAWS):
        hidden = _transparent(mesh, surface.primitive, face, weight)
        if not len(hidden):
            break
        face[hidden], weight[hidden] = _draw(rng, cumulative, len(hidden))

    primitive = surface.primitive[face]
    xyz = np.einsum("pk,pkc->pc", weight, surface.corners[face])
    normal = np.einsum("pk,pkc->pc", weight, surface.normals[face])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.where(length > 1e-9, normal / np.maximum(length, 1e-9), surface.normals[face, 0])
    parts = list(mesh.parts)
    assert len(parts) <= 256, "part labels are bytes"
    part_of = np.array([parts.index(p.part) for p in mesh.primitives], np.uint8)
    color = np.rint(255 * np.clip(_colors(mesh, primitive, face, weight), 0, 1)).astype(np.uint8)
    return PointSample(xyz.astype(np.float32), normal.astype(np.float32), color, part_of[primitive])


def take_points(cloud: Cloud, num_points: int, seed: int) -> PointSample:
    """`num_points` of a ready-made cloud, in a seeded random order.

    A subset where it has more; where it has fewer, all of them and random repeats. Shuffled, because readers take runs
    of neighbouring rows for a random subset, and files are often sorted. Raises MeshError for a cloud without points,
    with values that are not finite, or all in one place.
    """
    xyz = cloud.xyz.astype(np.float32)
    if len(xyz) == 0:
        raise MeshError("no-points", "the cloud is empty")
    if not np.isfinite(xyz).all() or (cloud.normal is not None and not np.isfinite(cloud.normal).all()):
        raise MeshError("non-finite", "the cloud has values that are not finite")
    if not np.ptp(xyz, axis=0).any():
        raise MeshError("degenerate", "all points of the cloud lie in one place")
    rng = np.random.default_rng(seed)
    repeats = rng.integers(0, len(xyz), max(num_points - len(xyz), 0))
    chosen = rng.permutation(np.concatenate([rng.permutation(len(xyz))[:num_points], repeats]))
    normal = np.zeros_like(xyz) if cloud.normal is None else cloud.normal.astype(np.float32)
    color = np.full_like(xyz, UNKNOWN_COLOR, np.uint8) if cloud.color is None else cloud.color
    part = np.zeros(len(xyz), np.uint8) if cloud.part is None else cloud.part
    return PointSample(xyz[chosen], normal[chosen], color[chosen], part[chosen])


def farthest_point_order(xyz: NDArray[np.float32]) -> NDArray[np.int64]:
    """A permutation [P] of points [P, 3] of which every prefix is a farthest point sample.

    Each point is the farthest from all before it (Eldar et al. 1997), the first is arbitrary but fixed; points that
    equal an earlier one come last.
    """
    if len(xyz) == 1:
        return np.zeros(1, np.int64)
    order: NDArray[np.int64] = np.asarray(
        fpsample.bucket_fps_kdline_sampling(xyz, len(xyz), h=_tree_height(len(xyz)), start_idx=0), np.int64
    )
    # Once only copies of chosen points are left, the library names chosen ones again.
    first = np.sort(np.unique(order, return_index=True)[1])
    left = np.setdiff1d(np.arange(len(xyz)), order)
    return np.concatenate([order[first], left])


def _tree_height(num_points: int) -> int:
    """Of the k-d tree that prunes: the fastest measured for thousands of points, less where there are few."""
    return max(1, min(5, num_points.bit_length() - 2))


def point_frame(xyz: NDArray[np.float32]) -> Floats:
    """[4]: the centroid of points [P, 3] and the largest distance from it, by which trainers normalise."""
    center = xyz.mean(0, dtype=np.float64)
    return np.append(center, np.linalg.norm(xyz - center, axis=1).max())


def _draw(rng: np.random.Generator, cumulative: Floats, num_points: int) -> tuple[Ints, Floats]:
    """Faces [P] in proportion to their area and barycentric weights [P, 3] uniform within them."""
    u = rng.random((num_points, 3))
    # side="right" never lands on a face without area; the minimum guards the last face against rounding
    face = np.searchsorted(cumulative, u[:, 0] * cumulative[-1], side="right")
    face = np.minimum(face, np.searchsorted(cumulative, cumulative[-1]))
    root = np.sqrt(u[:, 1])
    return face, np.stack([1 - root, root * (1 - u[:, 2]), root * u[:, 2]], axis=1)


def _primitive_points(mesh: Mesh, primitive: Ints, face: Ints) -> list[tuple[Primitive, Ints, Ints]]:
    """Of each primitive that has points: it, the indices of its points, their faces' vertices [p, 3]."""
    first_face = np.cumsum([0, *(len(p.faces) for p in mesh.primitives)])
    order = np.argsort(primitive, kind="stable")
    splits = np.split(order, np.searchsorted(primitive[order], np.arange(1, len(mesh.primitives))))
    return [
        (item, points, item.faces[face[points] - first_face[i]])
        for i, (item, points) in enumerate(zip(mesh.primitives, splits, strict=True))
        if len(points)
    ]


def _transparent(mesh: Mesh, face_primitive: Ints, face: Ints, weight: Floats) -> Ints:
    """Indices of the points on texels with alpha below one half, which the pictures leave out too."""
    if not any(p.texture is not None and p.texture.shape[2] == 4 for p in mesh.primitives):
        return np.empty(0, np.int64)
    hidden = [
        points[_texels(item, corners, weight[points])[:, 3] < 128]
        for item, points, corners in _primitive_points(mesh, face_primitive[face], face)
        if item.texture is not None and item.uv is not None and item.texture.shape[2] == 4
    ]
    return np.concatenate(hidden) if hidden else np.empty(0, np.int64)


def _colors(mesh: Mesh, primitive: Ints, face: Ints, weight: Floats) -> Floats:
    """Linear base colour [P, 3]: material times vertex colour times texture."""
    base = np.array([p.material.base_color for p in mesh.primitives])
    color: Floats = base[primitive]
    if all(p.colors is None and p.texture is None for p in mesh.primitives):
        return color
    for item, points, corners in _primitive_points(mesh, primitive, face):
        if item.colors is not None:
            color[points] *= np.einsum("pk,pkc->pc", weight[points], item.colors[corners])
        if item.texture is not None and item.uv is not None:
            color[points] *= _LINEAR[_texels(item, corners, weight[points])[:, :3]]
    return color


def _texels(item: Primitive, corners: Ints, weight: Floats) -> NDArray[np.uint8]:
    """Nearest texels [p, 3 or 4] at the points' texture coordinates; v = 0: the bottom row."""
    assert item.uv is not None and item.texture is not None
    height, width = item.texture.shape[:2]
    uv = np.einsum("pk,pkc->pc", weight, item.uv[corners])
    column = _wrapped(np.floor(uv[:, 0] * width).astype(np.int64), width, item.wrap[0])
    row = _wrapped(np.floor((1 - uv[:, 1]) * height).astype(np.int64), height, item.wrap[1])
    texels: NDArray[np.uint8] = item.texture[row, column]
    return texels


def _wrapped(texel: Ints, size: int, wrap: Wrap) -> Ints:
    """Numbers of texels beyond 0 to size - 1 brought back there."""
    if wrap == "clamp":
        return np.clip(texel, 0, size - 1)
    if wrap == "mirror":
        texel = texel % (2 * size)
        return np.minimum(texel, 2 * size - 1 - texel)
    return texel % size


_SRGB = np.arange(256) / 255
_LINEAR: Floats = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4)

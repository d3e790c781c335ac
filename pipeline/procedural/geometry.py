"""Solid building blocks for the embedded shapes: boxes, lathes, extrusions, tubes, lofts.

Every function returns a closed or open triangle surface with outward, counter-clockwise faces, in metres, +Y up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mapbox_earcut
import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.shapes.mesh import Floats, Ints

AXES = {"x": 0, "y": 1, "z": 2}


@dataclass(frozen=True)
class Geometry:
    """vertices [V, 3] float64, faces [F, 3] int64. Immutable: every transform returns a new one."""

    vertices: Floats
    faces: Ints

    def __add__(self, other: Geometry) -> Geometry:
        faces = np.concatenate([self.faces, other.faces + len(self.vertices)])
        return Geometry(np.concatenate([self.vertices, other.vertices]), faces)

    def move(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Geometry:
        """Shift by x, y and z."""
        return Geometry(self.vertices + np.array([x, y, z]), self.faces)

    def scale(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> Geometry:
        """Scale about the origin; a negative product flips the faces so that they still look outward."""
        faces = self.faces if x * y * z > 0 else self.faces[:, ::-1]
        return Geometry(self.vertices * [x, y, z], faces)

    def mirror(self, axis: str = "x") -> Geometry:
        """The mirror image in the plane through the origin across `axis`, its faces looking outward."""
        return self.scale(**{axis: -1.0})

    def with_mirror(self, axis: str = "x") -> Geometry:
        """This and its mirror image: the two armrests, the two wings."""
        return self + self.mirror(axis)

    def rotate(self, axis: str, degrees: float) -> Geometry:
        """Right-handed rotation about a coordinate axis through the origin."""
        i = AXES[axis]
        j, k = (i + 1) % 3, (i + 2) % 3
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        vertices = self.vertices.copy()
        vertices[:, j] = c * self.vertices[:, j] - s * self.vertices[:, k]
        vertices[:, k] = s * self.vertices[:, j] + c * self.vertices[:, k]
        return Geometry(vertices, self.faces)

    def warp(self, function: Callable[[Floats], Floats]) -> Geometry:
        """Vertices through `function` ([V, 3] -> [V, 3]): bends, tapers, bulges."""
        return Geometry(np.asarray(function(self.vertices.copy()), dtype=np.float64), self.faces)


def _grid_faces(rows: int, columns: int, wrap: bool) -> Ints:
    """Two triangles a cell of a rows x columns vertex grid; `wrap` joins the last column to the first."""
    cells = columns if wrap else columns - 1
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(cells), indexing="ij")
    a = r * columns + c
    b = r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.stack([np.stack([a, b, e], -1), np.stack([a, e, d], -1)], -2).reshape(-1, 3)


def _outward(geometry: Geometry) -> Geometry:
    """Flip all faces if the signed volume is negative."""
    a, b, c = (geometry.vertices[geometry.faces[:, i]] for i in range(3))
    volume = np.einsum("ij,ij->", a - geometry.vertices.mean(0), np.cross(b - a, c - a))
    return geometry if volume >= 0 else Geometry(geometry.vertices, geometry.faces[:, ::-1])


def loft(rings: ArrayLike, caps: bool = True) -> Geometry:
    """Skin through R closed rings of M points each, `rings` [R, M, 3]; `caps` closes both ends with a fan.

    Rings correspond point by point: fuselages, hulls, car bodies, cushions.
    """
    rings = np.asarray(rings, dtype=np.float64)
    count, size = rings.shape[:2]
    vertices, faces = rings.reshape(-1, 3), _grid_faces(count, size, wrap=True)
    if caps:
        ring = np.arange(size)
        first, last = count * size, count * size + 1
        start = np.stack([np.full(size, first), np.roll(ring, -1), ring], -1)
        end = np.stack([np.full(size, last), ring + first - size, np.roll(ring, -1) + first - size], -1)
        vertices = np.concatenate([vertices, rings[0].mean(0, keepdims=True), rings[-1].mean(0, keepdims=True)])
        faces = np.concatenate([faces, start, end])
    return _outward(Geometry(vertices, faces))


def box(width: float, height: float, depth: float, bevel: float = 0.0) -> Geometry:
    """Axis-aligned box centred at the origin, sizes along x, y, z; `bevel` cuts its edges (metres)."""
    half = np.array([width, height, depth]) / 2
    bevel = float(min(bevel, 0.49 * 2 * half.min()))
    if bevel <= 0:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64) * half[[0, 2]]
        return loft([[(x, y, z) for x, z in corners] for y in (-half[1], half[1])])
    rings = []
    for y, inset in ((-half[1], bevel), (-half[1] + bevel, 0.0), (half[1] - bevel, 0.0), (half[1], bevel)):
        a, b = half[0] - inset, half[2] - inset
        cut = bevel
        outline = [(a - cut, -b), (a, -b + cut), (a, b - cut), (a - cut, b)]
        outline += [(-a + cut, b), (-a, b - cut), (-a, -b + cut), (-a + cut, -b)]
        rings.append([(x, y, z) for x, z in outline])
    return loft(rings)


def lathe(profile: ArrayLike, segments: int = 28, closed: bool = False) -> Geometry:
    """Revolve (radius, y) pairs [P, 2] about the y axis.

    An open profile runs from the bottom up along the outside (and back down inside for a vessel); a radius of 0
    closes an end.
    `closed` joins the last pair to the first: rings and tyres.
    """
    profile = np.maximum(np.asarray(profile, dtype=np.float64), [0.0, -np.inf])
    if closed:
        profile = np.concatenate([profile, profile[:1]])
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    rings = [np.stack([r * np.cos(angle), np.full(segments, y), -r * np.sin(angle)], -1) for r, y in profile]
    return _drop_degenerate(_outward(Geometry(np.concatenate(rings), _grid_faces(len(rings), segments, True))))


def _drop_degenerate(geometry: Geometry) -> Geometry:
    """Without the zero-area faces a pole or a repeated point leaves behind."""
    a, b, c = (geometry.vertices[geometry.faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return Geometry(geometry.vertices, geometry.faces[area > 1e-14])


def cylinder(radius: float, height: float, top_radius: float | None = None, segments: int = 28) -> Geometry:
    """Solid cylinder (or frustum, with `top_radius`) about y, centred at the origin."""
    top = radius if top_radius is None else top_radius
    return lathe([(0, -height / 2), (radius, -height / 2), (top, height / 2), (0, height / 2)], segments)


def ring(inner: float, outer: float, height: float, segments: int = 28) -> Geometry:
    """A hollow cylinder about y, centred at the origin."""
    h = height / 2
    return lathe([(inner, -h), (outer, -h), (outer, h), (inner, h)], segments, closed=True)


def ellipsoid(x: float, y: float, z: float, segments: int = 24) -> Geometry:
    """Radii along the three axes."""
    t = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    return lathe(np.stack([np.cos(t), np.sin(t)], -1), segments).scale(x, y, z)


def torus(radius: float, tube_radius: float, segments: int = 28, sides: int = 12) -> Geometry:
    """Ring about y: wheels, handles, rims."""
    t = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    return lathe(np.stack([radius + tube_radius * np.cos(t), tube_radius * np.sin(t)], -1), segments, closed=True)


def extrude(outline: ArrayLike, depth: float, holes: Sequence[ArrayLike] = (), bevel: float = 0.0) -> Geometry:
    """A plane outline [M, 2] in (x, y), thickened along z and centred on z = 0; `holes` cut through.

    `bevel` shrinks the two faces towards the outline's centroid by that share of its size (only without holes).
    """
    loops = [np.asarray(outline, dtype=np.float64), *(np.asarray(h, dtype=np.float64) for h in holes)]
    flat = np.concatenate(loops)
    ends = np.cumsum([len(loop) for loop in loops]).astype(np.uint32)
    cap = mapbox_earcut.triangulate_float64(flat, ends).reshape(-1, 3).astype(np.int64)
    a, b, c = (flat[cap[:, i]] for i in range(3))
    u, v = b - a, c - a
    clockwise = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] < 0
    cap[clockwise] = cap[clockwise][:, ::-1]
    if bevel > 0 and not holes:
        middle = flat.mean(0)
        inset = middle + (flat - middle) * (1 - bevel)
        layers = [(inset, -depth / 2), (flat, -depth / 4), (flat, depth / 4), (inset, depth / 2)]
    else:
        layers = [(flat, -depth / 2), (flat, depth / 2)]
    vertices = np.concatenate([np.column_stack([points, np.full(len(points), z)]) for points, z in layers])
    faces = [cap[:, ::-1], cap + len(flat) * (len(layers) - 1)]
    for layer in range(len(layers) - 1):
        start = layer * len(flat)
        for index, loop in enumerate(loops):
            i = np.arange(len(loop))
            below, beside = start + i, start + np.roll(i, -1)
            x, y = loop[:, 0], loop[:, 1]
            counter_clockwise = float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) > 0
            wall = np.stack(
                [
                    np.stack([below, beside, beside + len(flat)], -1),
                    np.stack([below, beside + len(flat), below + len(flat)], -1),
                ],
                1,
            ).reshape(-1, 3)
            # A hole's wall looks into the hole, an outline's wall away from the solid.
            faces.append(wall if counter_clockwise == (index == 0) else wall[:, ::-1])
            start += len(loop)
    return Geometry(vertices, np.concatenate(faces))


def _carry(normal: Floats, before: Floats, after: Floats) -> Floats:
    """The normal turned by the least rotation from one unit direction to the next, so that a tube does not twist."""
    cosine = float(before @ after)
    if cosine > -0.999:  # of a full reversal every axis is as good as another
        axis = np.cross(before, after)
        normal = normal + np.cross(axis, normal) + np.cross(axis, np.cross(axis, normal)) / (1 + cosine)
    normal = normal - after * (normal @ after)
    carried: Floats = normal / np.linalg.norm(normal)
    return carried


def tube(path: ArrayLike, radius: float | ArrayLike, sides: int = 12, caps: bool = True) -> Geometry:
    """Sweep a circle along a polyline [P, 3]; `radius` is one number or one a point. Legs, handles, rails, spouts."""
    path = np.asarray(path, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(path))
    step = np.diff(path, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    tangent = np.concatenate([step[:1], step[:-1] + step[1:], step[-1:]])
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))])
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = []
    for i, (point, direction, r) in enumerate(zip(path, tangent, radii, strict=True)):
        normal = _carry(normal, tangent[max(i - 1, 0)], direction)
        side = np.cross(direction, normal)
        stretch = 1.0
        if 0 < i < len(path) - 1:  # a mitred corner is wider than the tube by 1 / cos(half the bend)
            stretch = min(1.0 / max(float(direction @ step[i]), 0.3), 2.0)
        bend = step[min(i, len(step) - 1)] - step[max(i - 1, 0)]
        across = bend / np.linalg.norm(bend) if np.linalg.norm(bend) > 1e-9 else np.zeros(3)
        offset = r * (np.cos(angle)[:, None] * normal + np.sin(angle)[:, None] * side)
        rings.append(point + offset + (stretch - 1) * (offset @ across)[:, None] * across)
    return loft(rings, caps)


def rod(start: ArrayLike, end: ArrayLike, radius: float, end_radius: float | None = None, sides: int = 12) -> Geometry:
    """A straight round bar between two points, tapering to `end_radius`."""
    return tube(np.array([start, end], dtype=np.float64), [radius, radius if end_radius is None else end_radius], sides)


def arc(radius: float, start: float, stop: float, count: int = 12) -> Floats:
    """[count, 2] points of a circle about the origin, angles in degrees: pieces of outlines and paths."""
    t = np.radians(np.linspace(start, stop, count))
    return np.stack([radius * np.cos(t), radius * np.sin(t)], -1)


def rounded_rectangle(width: float, height: float, radius: float, count: int = 5) -> Floats:
    """Counter-clockwise outline [4 * count, 2] centred at the origin."""
    radius = min(radius, 0.499 * width, 0.499 * height)
    corners = []
    for quadrant, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        middle = np.array([sx * (width / 2 - radius), sy * (height / 2 - radius)])
        corners.append(middle + arc(radius, 90 * quadrant, 90 * quadrant + 90, count))
    return np.concatenate(corners)


def smooth(points: ArrayLike, count: int = 32, closed: bool = False) -> Floats:
    """A Catmull-Rom curve [count, D] through control points [P, D]: profiles, bodies, necks."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    spans = len(p) - 3
    t = np.linspace(0, spans, count, endpoint=not closed)
    i = np.minimum(t.astype(np.int64), spans - 1)
    f = (t - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    curve: Floats = 0.5 * (2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3)
    return curve

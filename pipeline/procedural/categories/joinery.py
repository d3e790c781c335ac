"""Pieces the furniture builders share: blocks between limits, legs, cushions, curved sheets, handles.

All return outward-faced geometry in metres, +Y up, +Z front.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural.designer import Designer
from recon.pipeline.procedural.geometry import (
    Geometry,
    box,
    cylinder,
    ellipsoid,
    extrude,
    lathe,
    loft,
    rod,
    rounded_rectangle,
    smooth,
    tube,
)
from recon.pipeline.shapes.mesh import Floats

Span = tuple[float, float]
_CUBE = box(1.0, 1.0, 1.0)


def block(x: Span, y: Span, z: Span, bevel: float = 0.0) -> Geometry:
    """Axis-aligned box between limits."""
    limits = np.array([x, y, z], dtype=np.float64)
    size, middle = limits[:, 1] - limits[:, 0], limits.mean(1)
    assert (size > 0).all(), f"inverted limits {x}, {y}, {z}"
    if bevel <= 0:  # books and keys come by the hundred
        return Geometry(_CUBE.vertices * size + middle, _CUBE.faces)
    return box(float(size[0]), float(size[1]), float(size[2]), bevel).move(*middle)


def merge(pieces: Iterable[Geometry]) -> Geometry:
    """All pieces as one geometry; at least one is needed."""
    listed = list(pieces)
    starts = np.cumsum([0, *(len(piece.vertices) for piece in listed[:-1])])
    faces = [piece.faces + start for piece, start in zip(listed, starts, strict=True)]
    return Geometry(np.concatenate([piece.vertices for piece in listed]), np.concatenate(faces))


def settle(d: Designer) -> None:
    """Shift all parts so that the shape stands on y = 0 with its bounds centred on x = z = 0."""
    corners = np.array([(p.vertices.min(0), p.vertices.max(0)) for p in d.primitives])
    low, high = corners[:, 0].min(0), corners[:, 1].max(0)
    shift = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    d.primitives = [replace(p, vertices=p.vertices - shift) for p in d.primitives]


def at_corners(piece: Geometry, x: float, z: float) -> Geometry:
    """The piece at (x, z) and mirrored to the three other corners: four legs."""
    return piece.move(x=x, z=z).with_mirror("x").with_mirror("z")


def plate(outline: ArrayLike, bottom: float, top: float, bevel: float = 0.0) -> Geometry:
    """A horizontal slab between two heights; its outline [M, 2] is in (x, -z): the second axis runs backwards."""
    return extrude(outline, top - bottom, bevel=bevel).rotate("x", -90).move(y=(bottom + top) / 2)


def leg(kind: str, height: float, thickness: float, splay_x: float = 0.0, splay_z: float = 0.0) -> Geometry:
    """One leg under the origin from y = 0 to `height`; its foot stands `splay` metres off its top.

    `kind` is one of square, tapered, round, turned, cabriole, hairpin.
    """
    r = thickness / 2
    if kind == "square":
        solid = box(thickness, height, thickness, 0.12 * thickness).move(y=height / 2)
    elif kind == "tapered":
        square = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) * r
        solid = loft(
            [[(x * s, y, z * s) for x, z in square] for y, s in ((0.0, 0.5), (0.8 * height, 1.0), (height, 1.0))]
        )
    elif kind == "round":
        solid = cylinder(0.7 * r, height, top_radius=1.1 * r, segments=10).move(y=height / 2)
    elif kind == "turned":
        radius = np.array([0.5, 0.85, 0.55, 0.8, 1.15, 0.6, 1.1, 0.7, 1.1, 1.1]) * r
        level = np.array([0.0, 0.05, 0.12, 0.4, 0.62, 0.68, 0.72, 0.77, 0.82, 1.0]) * height
        solid = lathe([(0.0, 0.0), *zip(radius, level, strict=True), (0.0, height)], segments=10)
    elif kind == "cabriole":
        bow = smooth([(0.55, 0.0), (0.25, 0.12), (-0.1, 0.35), (0.75, 0.8), (0.0, 1.0)], 9)
        radius = np.interp(bow[:, 1], [0.0, 0.08, 0.3, 0.8, 1.0], [1.1, 0.6, 0.6, 1.2, 1.2]) * r
        path = np.column_stack([bow[:, 0] * thickness, bow[:, 1] * height, bow[:, 0] * thickness])
        solid = tube(path, radius, sides=8)
    else:
        assert kind == "hairpin", kind
        wire, half = max(0.14 * thickness, 0.005), min(0.16 * height, 0.09)
        wires = [(-half, height, 0.0), (-0.25 * half, wire, 0.0), (0.25 * half, wire, 0.0), (half, height, 0.0)]
        solid = tube(wires, wire, sides=6).rotate("y", -45)
    solid = solid.warp(lambda v: v + np.outer(1 - v[:, 1] / height, [splay_x, 0.0, splay_z]))
    # A swept leg ends square to its path: level its foot, and keep its top out of what it carries.
    return solid.warp(lambda v: np.clip(v, [-np.inf, 0.0, -np.inf], [np.inf, height, np.inf]))


def pipe(points: ArrayLike, radius: float, bend: float, sides: int = 8) -> Geometry:
    """A round bar along the polyline `points` [P, 3] whose inner corners are rounded over `bend` metres either side."""
    corners = np.asarray(points, dtype=np.float64)
    path = [corners[:1]]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        reach = [min(bend, 0.45 * float(np.linalg.norm(end - corner))) for end in (before, after)]
        start, stop = (
            corner + (end - corner) * r / np.linalg.norm(end - corner)
            for end, r in zip((before, after), reach, strict=True)
        )
        t = np.linspace(0, 1, 4)[:, None]
        path.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * stop)
    return tube(np.concatenate([*path, corners[-1:]]), radius, sides)


def hoop(radius_x: float, radius_y: float, tube_radius: float, count: int = 20, sides: int = 8) -> Geometry:
    """An elliptic ring of even thickness about z, centred at the origin."""
    t = np.linspace(0, 2 * np.pi + 0.02, count + 1)  # ends overlap a little: caps that touch exactly would share edges
    return tube(np.column_stack([radius_x * np.sin(t), radius_y * np.cos(t), np.zeros(count + 1)]), tube_radius, sides)


def cushion(width: float, height: float, depth: float, edge: float, crown: float = 0.0) -> Geometry:
    """A soft block centred at the origin: edges rounded over `edge` metres, both faces swelling by `crown`."""
    crown = min(crown, 0.3 * height)
    edge = min(edge, 0.9 * (height / 2 - crown), 0.3 * min(width, depth))
    t = np.linspace(0, np.pi / 2, 3)
    inset = np.concatenate([edge * (1 - np.cos(t)), [0.28 * min(width, depth) + edge * 0.3]])
    level = np.concatenate([height / 2 - crown - edge * (1 - np.sin(t)), [height / 2]])
    rings = []
    for side in (-1, 1):
        for cut, y in list(zip(inset, level, strict=True))[::side]:
            outline = rounded_rectangle(width - 2 * cut, depth - 2 * cut, max(1.4 * edge - 0.2 * cut, 0.01), 3)
            rings.append(np.column_stack([outline[:, 0], np.full(len(outline), side * y), outline[:, 1]]))
    return loft(rings)


def sheet(surface: ArrayLike, thickness: float) -> Geometry:
    """A closed solid of even thickness about a grid of points, `surface` [R, C, 3]: bent panels, shells."""
    middle = np.asarray(surface, dtype=np.float64)
    normal = np.cross(np.gradient(middle, axis=0), np.gradient(middle, axis=1))
    normal /= np.maximum(np.linalg.norm(normal, axis=2, keepdims=True), 1e-9)
    front, back = middle + normal * thickness / 2, middle - normal * thickness / 2
    rings = np.concatenate([front, back[:, ::-1]], axis=1)
    # The first and last ring collapse onto a line just beyond the edge: such an end follows a hollow cross-section,
    # where a fan about its centroid would span it like a web.
    nose = []
    for edge, inner in ((middle[0], middle[1]), (middle[-1], middle[-2])):
        out = (edge - inner) / np.linalg.norm(edge - inner, axis=1, keepdims=True)
        row = edge + 0.3 * thickness * out
        nose.append(np.concatenate([row, row[::-1]])[None])
    solid = loft(np.concatenate([nose[0], rings, nose[1]]), caps=False)
    a, b, c = (solid.vertices[solid.faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return Geometry(solid.vertices, solid.faces[area > 1e-14])


def bent_panel(width: Span, y: Span, curve: float, thickness: float, columns: int = 7) -> Geometry:
    """An upright panel about z = 0, `width` wide at its bottom and top; its side edges come forward by `curve`."""
    across: Floats = np.linspace(-1, 1, columns)
    rows = [
        np.column_stack([across * w / 2, np.full(columns, level), curve * across**2])
        for w, level in zip(width, y, strict=True)
    ]
    return sheet(rows, thickness)


def handle(kind: str, size: float) -> Geometry:
    """A pull that stands out of the plane z = 0; `kind` is knob, bar (along x), ring or cup."""
    if kind == "knob":
        return ellipsoid(0.16 * size, 0.16 * size, 0.14 * size, 8).move(z=0.16 * size) + rod(
            (0, 0, -0.004), (0, 0, 0.12 * size), 0.06 * size, sides=6
        )
    if kind == "bar":
        posts = box(0.09 * size, 0.09 * size, 0.26 * size).move(x=0.38 * size, z=0.1 * size).with_mirror()
        return posts + box(size, 0.11 * size, 0.1 * size).move(z=0.23 * size)
    if kind == "ring":
        loop = hoop(0.26 * size, 0.26 * size, 0.05 * size, 12, 5).move(y=-0.26 * size, z=0.1 * size)
        return loop + box(0.2 * size, 0.2 * size, 0.22 * size)
    assert kind == "cup", kind
    return cushion(0.8 * size, 0.3 * size, 0.4 * size, 0.08 * size).move(z=0.08 * size)

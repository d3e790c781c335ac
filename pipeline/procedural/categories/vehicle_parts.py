"""Pieces that several vehicles share: side profiles, window panes, wheels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural.designer import Designer
from recon.pipeline.procedural.geometry import Geometry, box, cylinder, extrude, lathe, loft
from recon.pipeline.shapes.mesh import Floats, Material

Point = tuple[float, float, float]


def side_profile(outline: ArrayLike, width: float, bevel: float = 0.0) -> Geometry:
    """A side view, [M, 2] in (z, y), thickened along x and centred on x = 0."""
    return extrude(outline, width, bevel=bevel).rotate("y", -90)


def panes(
    bottom: tuple[float, float], top: tuple[float, float], heights: tuple[float, float], num: int, gap: float
) -> list[Floats]:
    """`num` quads [4, 2] in (z, y) filling the trapezoid between two z ranges, `gap` metres apart."""
    quads = []
    for i in range(num):
        low, high = i / num, (i + 1) / num
        b0, b1 = (bottom[0] + (bottom[1] - bottom[0]) * f for f in (low, high))
        t0, t1 = (top[0] + (top[1] - top[0]) * f for f in (low, high))
        g = min(gap, 0.4 * abs(b1 - b0), 0.4 * abs(t1 - t0)) / 2
        quads.append(np.array([(b0 + g, heights[0]), (b1 - g, heights[0]), (t1 - g, heights[1]), (t0 + g, heights[1])]))
    return quads


def slabs(quads: Sequence[ArrayLike], width: float) -> Geometry:
    """Convex quads in (z, y), each thickened along x and centred on x = 0: window panes through a body."""
    flat = np.asarray(quads, dtype=np.float64)
    turn = np.roll(flat, -1, 1)
    area = np.sum(flat[..., 0] * turn[..., 1] - flat[..., 1] * turn[..., 0], 1)
    flat[area < 0] = flat[area < 0, ::-1]
    x = np.broadcast_to(np.array([-width, width])[None, :, None] / 2, (len(flat), 2, 4))
    z, y = (np.broadcast_to(flat[:, None, :, i], x.shape) for i in (0, 1))
    return _repeat(np.stack([x, y, z], -1).reshape(len(flat), 8, 3), 4, False)


def rods(pairs: ArrayLike, radius: float, end_radius: float | None = None, sides: int = 6) -> Geometry:
    """Straight round bars between the points of `pairs` [K, 2, 3], all of one radius at each end."""
    ends = np.asarray(pairs, dtype=np.float64)
    axis = ends[:, 1] - ends[:, 0]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    u = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis), 1)])
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(axis, u)
    t = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None]
    around = np.cos(t) * u[:, None] + np.sin(t) * v[:, None]
    radii = np.array([radius, radius if end_radius is None else end_radius])
    rings = ends[:, :, None] + radii[:, None, None] * around[:, None]
    return _repeat(rings.reshape(len(ends), 2 * sides, 3), sides, True)


def _repeat(prisms: Floats, sides: int, outward: bool) -> Geometry:
    """Closed prisms from `prisms` [K, 2 * sides, 3], two rings each, which turn about their axis if `outward`."""
    i = np.arange(sides)
    j = (i + 1) % sides
    walls = np.concatenate([np.stack([i, j, j + sides], -1), np.stack([i, j + sides, i + sides], -1)])
    fan = np.stack([np.zeros(sides - 2, dtype=np.int64), i[1:-1], i[2:]], -1)
    faces = np.concatenate([walls, fan[:, ::-1], fan + sides])
    if not outward:
        faces = faces[:, ::-1]
    starts = np.arange(len(prisms))[:, None, None] * 2 * sides
    return Geometry(prisms.reshape(-1, 3), (faces + starts).reshape(-1, 3))


def joined(pieces: Sequence[Geometry]) -> Geometry:
    """All pieces as one geometry."""
    starts = np.cumsum([0, *(len(p.vertices) for p in pieces)])
    faces = [p.faces + start for p, start in zip(pieces, starts, strict=False)]
    return Geometry(np.concatenate([p.vertices for p in pieces]), np.concatenate(faces))


def placed(geometry: Geometry, positions: Sequence[Point]) -> Geometry:
    """Copies of a piece at every position."""
    return joined([geometry.move(*position) for position in positions])


def tyre(radius: float, width: float, inner: float, segments: int = 20) -> Geometry:
    """A tyre turning about x, its shoulders rounded."""
    h = width / 2
    profile = [(inner, -h), (0.9 * radius, -h), (radius, -0.6 * h), (radius, 0.6 * h), (0.9 * radius, h), (inner, h)]
    return lathe(profile, segments, closed=True).rotate("z", 90)


def spokes(radius: float, hub: float, num: int, thickness: float, depth: float) -> Geometry:
    """`num` flat spokes from the hub to `radius`, in the plane a wheel turning about x lies in."""
    length = radius - 0.5 * hub
    bar = box(depth, length, thickness).move(y=0.5 * hub + length / 2)
    return joined([bar.rotate("x", 360 * i / num) for i in range(num)])


def add_wheels(
    d: Designer,
    positions: Sequence[Point],
    radius: float,
    width: float,
    rubber: Material,
    metal: Material,
    num_spokes: int = 0,
    hub_ratio: float = 0.62,
) -> None:
    """Tyred wheels turning about x: a dished disc, or spokes before a dark well."""
    rim = hub_ratio * radius
    d.add("wheel", placed(tyre(radius, width, 0.97 * rim), positions), rubber)
    if num_spokes == 0:
        h = width / 2
        dish = [
            (0, -0.6 * h),
            (0.55 * rim, -0.6 * h),
            (rim, -0.98 * h),
            (rim, 0.98 * h),
            (0.55 * rim, 0.6 * h),
            (0.22 * rim, 1.04 * h),
            (0, 1.04 * h),
        ]
        # The hub looks away from the vehicle's middle.
        left = lathe(dish, 16).rotate("z", 90)
        d.add("wheel", joined([(left if p[0] < 0 else left.mirror("x")).move(*p) for p in positions]), metal)
        return
    well = cylinder(rim, 0.6 * width, segments=16).rotate("z", 90)
    d.add("wheel", placed(well, positions), rubber)
    star = spokes(0.98 * rim, 0.2 * rim, num_spokes, 0.9 * rim / num_spokes, 0.9 * width)
    d.add("wheel", placed(star + cylinder(0.24 * rim, width, segments=10).rotate("z", 90), positions), metal)


def settle(d: Designer) -> None:
    """Shift everything added so far so that it rests on y = 0 and is centred at z = 0."""
    low, high = (np.concatenate([f(p.vertices, 0)[None] for p in d.primitives]) for f in (np.min, np.max))
    shift = np.array([0.0, -low[:, 1].min(), -(low[:, 2].min() + high[:, 2].max()) / 2])
    d.primitives = [replace(p, vertices=p.vertices + shift) for p in d.primitives]


def ellipse_loft(stations: ArrayLike, sides: int = 18, square: float = 2.0) -> Geometry:
    """Skin of upright superellipses, exponent `square`; `stations` [R, 4]: z, middle y, half width, half height."""
    rows = np.asarray(stations, dtype=np.float64)
    t = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    c, s = (np.sign(v) * np.abs(v) ** (2 / square) for v in (np.cos(t), np.sin(t)))
    x, y = rows[:, 2:3] * c, rows[:, 1:2] + rows[:, 3:4] * s
    return loft(np.stack([x, y, np.broadcast_to(rows[:, :1], x.shape)], -1))


def wing(sections: ArrayLike) -> Geometry:
    """An aerofoil, its nose to +Z, through `sections` [R, 5]: x, y, z of the leading edge, chord, thickness."""
    share = np.array([0, 0.08, 0.3, 0.65, 1, 0.65, 0.3, 0.08])
    thick = np.array([0, 0.6, 1, 0.6, 0.08, -0.35, -0.55, -0.4]) / 1.55
    rows = np.asarray(sections, dtype=np.float64)
    return loft([np.stack([np.full(8, x), y + high * thick, z - chord * share], -1) for x, y, z, chord, high in rows])


def fin(sections: ArrayLike) -> Geometry:
    """An upright fin in the plane x = 0 through `sections` [R, 4]: y, z of the leading edge, chord, thickness."""
    share = np.array([0, 0.3, 1, 1, 0.3])
    thick = np.array([0, 0.5, 0.06, -0.06, -0.5])
    rows = np.asarray(sections, dtype=np.float64)
    return loft([np.stack([high * thick, np.full(5, y), z - chord * share], -1) for y, z, chord, high in rows])

"""Potted plants: foliage is built a whole crown at a time, as thin closed leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.vessels import SEGMENTS
from recon.pipeline.procedural.designer import PAINT, WOOD, Designer, Finish
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Floats

FOLIAGE: dict[str, Finish] = {
    "green leaves": ("3f7f35", 0.0, 0.7),
    "dark green leaves": ("234f2b", 0.0, 0.6),
    "olive leaves": ("7d8442", 0.0, 0.8),
    "bluish leaves": ("5e8f86", 0.0, 0.7),
    "red leaves": ("8a3440", 0.0, 0.7),
    "yellow leaves": ("c2a83a", 0.0, 0.8),
}


def _leaves(
    root: Floats,
    azimuth: Floats,
    elevation: Floats,
    length: ArrayLike,
    width: float,
    droop: ArrayLike,
    stations: int = 4,
) -> Geometry:
    """L closed leaves at once: from `root` [L, 3] along angles [L] in radians, `length` [L] metres long.

    `width` and `droop` (how far the tip sinks) are shares of the length; each leaf has 8 * stations faces.
    """
    count = len(azimuth)
    size = np.broadcast_to(np.asarray(length, dtype=np.float64), count)[:, None, None]
    sink = np.broadcast_to(np.asarray(droop, dtype=np.float64), count)[:, None, None]
    t = np.linspace(0, 1, stations)[:, None]
    heading = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)], -1
    )[:, None]
    side = np.stack([-np.sin(azimuth), np.zeros(count), np.cos(azimuth)], -1)[:, None]
    spine = root[:, None] + size * (heading * t - sink * t**2 * [0, 1, 0])
    normal = np.cross(side, heading - 2 * sink * t * [0, 1, 0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    half = 0.5 * width * size * np.maximum(np.sin(np.pi * t**0.8), 0.12)
    keel = np.maximum(0.14 * half, 0.006 * size)
    rings = np.stack(
        [
            spine - side * half + normal * half * 0.3,
            spine - normal * keel,
            spine + side * half + normal * half * 0.3,
            spine + normal * keel,
        ],
        axis=2,
    )
    faces = g.loft(rings[0]).faces
    ends = np.stack([rings[:, 0].mean(1), rings[:, -1].mean(1)], 1)
    vertices = np.concatenate([rings.reshape(count, -1, 3), ends], axis=1)
    offset = np.arange(count)[:, None, None] * vertices.shape[1]
    return Geometry(vertices.reshape(-1, 3), (faces + offset).reshape(-1, 3))


def _spread(d: Designer, count: int) -> Floats:
    """[count] azimuths by the golden angle, as real crowns grow, a little disturbed."""
    return np.asarray(2.39996 * np.arange(count) + d.rng.normal(0, 0.2, count), dtype=np.float64)


def _ball(d: Designer, x: float, y: float, z: float) -> Geometry:
    """A lump of trimmed foliage with the given radii."""
    a, b, c = d.rng.uniform(0, 2 * np.pi, 3)

    def rough(v: Floats) -> Floats:
        wave = np.sin(7 * v[:, 0] + a) + np.sin(8 * v[:, 1] + b) + np.sin(7 * v[:, 2] + c)
        v *= (1 + 0.05 * wave)[:, None]
        return v

    return g.ellipsoid(1, 1, 1, 16).warp(rough).scale(x, y, z)


def _bush(d: Designer, radius: float, size: float) -> None:
    """Broad leaves on short stalks."""
    count = d.integer("num_leaves", 16, 46)
    rise = d.uniform("rise", 0.1, 0.9)
    azimuth, height = _spread(d, count), d.rng.random(count)
    root = np.stack([0.25 * radius * np.cos(azimuth), rise * size * 0.6 * height, 0.25 * radius * np.sin(azimuth)], -1)
    elevation = np.radians(d.rng.uniform(5, 35, count) + 50 * height)
    leaves = _leaves(
        root,
        azimuth,
        elevation,
        size * d.rng.uniform(0.45, 0.75, count),
        d.uniform("leaf_width", 0.28, 0.6),
        d.uniform("droop", 0.05, 0.5),
        5,
    )
    stem = g.rod((0, -0.05 * size, 0), (0, rise * size * 0.6, 0), 0.1 * radius, 0.05 * radius, 8)
    d.add("leaf", leaves, d.material(FOLIAGE))
    d.add("stem", stem, d.material(FOLIAGE, WOOD))


def _blades(d: Designer, radius: float, size: float) -> None:
    """Long blades from the soil, upright or arching."""
    count = d.integer("num_leaves", 9, 40)
    azimuth = _spread(d, count)
    spread = 0.7 * radius * np.sqrt(d.rng.random(count))
    root = np.stack([spread * np.cos(azimuth), np.zeros(count), spread * np.sin(azimuth)], -1)
    low = d.uniform("lean", 35, 80)
    leaves = _leaves(
        root,
        azimuth,
        np.radians(d.rng.uniform(low, 88, count)),
        size * d.rng.uniform(0.6, 1.15, count),
        d.uniform("leaf_width", 0.04, 0.16),
        d.uniform("droop", 0.0, 0.55),
        6,
    )
    d.add("leaf", leaves, d.material(FOLIAGE))


def _trailing(d: Designer, radius: float, size: float) -> None:
    """Fronds that hang over the pot's edge."""
    count = d.integer("num_leaves", 18, 44)
    azimuth = _spread(d, count)
    root = np.stack([0.4 * radius * np.cos(azimuth), np.zeros(count), 0.4 * radius * np.sin(azimuth)], -1)
    leaves = _leaves(
        root,
        azimuth,
        np.radians(d.rng.uniform(30, 75, count)),
        (radius + 0.4 * size) * d.rng.uniform(0.7, 1.2, count),
        d.uniform("leaf_width", 0.12, 0.3),
        d.uniform("droop", 0.7, 1.25) * d.rng.uniform(0.7, 1.1, count),
        7,
    )
    d.add("leaf", leaves, d.material(FOLIAGE))


def _rosette(d: Designer, radius: float, size: float) -> None:
    """A low succulent: rings of thick pointed leaves."""
    count = d.integer("num_leaves", 22, 48)
    azimuth, inward = _spread(d, count), np.linspace(0, 1, count)
    root = np.zeros((count, 3)) + np.stack([0 * inward, 0.12 * size * inward, 0 * inward], -1)
    elevation = np.radians(12 + d.uniform("closing", 40, 72) * inward)
    reach = (1.05 * radius + 0.2 * size) * (1 - 0.6 * inward)
    leaves = _leaves(
        root, azimuth, elevation, reach, d.uniform("leaf_width", 0.3, 0.5), -d.uniform("curl", 0.05, 0.35), 4
    )
    d.add("leaf", leaves, d.material(FOLIAGE))


def _cactus(d: Designer, radius: float, size: float) -> None:
    """A ribbed column or ball, with arms or offshoots."""
    wide = radius * d.uniform("girth", 0.35, 0.8)
    tall = max(size * d.uniform("column", 0.5, 1.2), 1.2 * wide)
    ribs = 12 if d.choice("ribs", ["many", "few"]) == "many" else 6
    num_arms = d.integer("num_arms", 0, 3)

    def column(r: float, h: float) -> Geometry:
        t = np.linspace(0, np.pi / 2, 7)
        profile = [
            (0, 0),
            (0.8 * r, 0),
            *np.stack([r * np.cos(t), (h - 0.8 * r) * 0.6 + (0.4 * (h - 0.8 * r) + 0.8 * r) * np.sin(t)], -1),
        ]

        def ribbed(v: Floats) -> Floats:
            v[:, [0, 2]] *= (1 + 0.13 * np.cos(ribs * np.arctan2(v[:, 2], v[:, 0])))[:, None]
            return v

        return g.lathe(profile, SEGMENTS).warp(ribbed)

    green = d.material(FOLIAGE)
    d.add("stem", column(wide, tall), green)
    for arm in range(num_arms):
        turn, r = 360 * arm / num_arms + float(d.rng.uniform(-30, 30)), 0.42 * wide
        y, out, up = tall * d.rng.uniform(0.3, 0.55), wide + 1.3 * r, tall * d.rng.uniform(0.25, 0.45)
        elbow = g.smooth(
            [(0.5 * wide, y, 0), (out, y + 0.1 * r, 0), (out + 0.5 * r, y + 1.2 * r, 0), (out + 0.5 * r, y + up, 0)], 10
        )
        path = np.concatenate([elbow, elbow[-1:] + np.array([(0, 0.5 * r, 0), (0, 0.75 * r, 0)])])
        radii = np.concatenate([np.full(len(elbow), r), [0.75 * r, 0.3 * r]])
        d.add("arm", g.tube(path, radii, 12).rotate("y", turn), green)
    if d.choice("bloom", {"none": "", "bloom": "in bloom"}, (0.6, 0.4)) == "bloom":
        azimuth = np.linspace(0, 2 * np.pi, 9)[:-1]
        petals = _leaves(np.zeros((8, 3)), azimuth, np.full(8, 0.7), 0.45 * wide, 0.5, 0.2)
        d.add("flower", petals.move(y=0.97 * tall), d.material(PAINT))


def _flowers(d: Designer, radius: float, size: float) -> None:
    """Blossoms on separate stems above a crown of leaves."""
    count = d.integer("num_flowers", 1, 7)
    kind = d.choice(
        "blossom", {"daisy": "with open blossoms", "tulip": "with closed blossoms", "ball": "with round blossoms"}
    )
    head = size * d.uniform("blossom_size", 0.13, 0.26) * (1.5 if count == 1 else 1.0)
    lean = d.uniform("lean", 8, 32)
    azimuth = _spread(d, count)
    around = np.linspace(0, 2 * np.pi, 8)[:-1]
    daisy = _leaves(np.zeros((7, 3)), around, np.full(7, 0.25), head, 0.55, 0.15)
    cup = [(0, -0.1), (0.35, 0), (0.5, 0.35), (0.45, 0.7), (0.5, 1.0), (0.38, 1.0), (0.3, 0.5), (0, 0.3)]
    tulip = g.lathe(np.array(cup) * head, 8)
    stems, petals, hearts = [], [], []
    for i in range(count):
        angle = np.radians(90 - lean * np.sqrt(i / count))
        direction = np.array([np.cos(angle) * np.cos(azimuth[i]), np.sin(angle), np.cos(angle) * np.sin(azimuth[i])])
        top = size * d.rng.uniform(0.7, 1.05) * direction
        bent = g.smooth([0.2 * radius * direction * [1, 0, 1], 0.5 * top * [0.8, 1, 0.8], top], 5)
        stems.append(g.tube(bent, 0.05 * radius, 6))
        x, y, z = top
        if kind == "daisy":
            flower = daisy.rotate("x", float(d.rng.uniform(15, 55)))
            hearts.append(g.ellipsoid(0.3 * head, 0.2 * head, 0.3 * head, 8).move(x, y + 0.05 * head, z))
        elif kind == "tulip":
            flower = tulip
        else:
            flower = _ball(d, 0.6 * head, 0.55 * head, 0.6 * head)
        petals.append(flower.move(x, y, z))
    d.add("flower", sum(petals[1:], petals[0]), d.material(PAINT))
    green = d.material(FOLIAGE)
    d.add("stem", sum(stems[1:], stems[0]), green)
    if hearts:
        d.add("flower centre", sum(hearts[1:], hearts[0]), d.material(PAINT))
    low = _spread(d, 12)
    leaves = _leaves(
        np.zeros((12, 3)),
        low,
        np.radians(d.rng.uniform(25, 65, 12)),
        0.9 * radius + 0.15 * size,
        0.3,
        d.uniform("droop", 0.1, 0.6),
        5,
    )
    d.add("leaf", leaves, green)


def _tree(d: Designer, radius: float, size: float) -> None:
    """A small tree: trimmed balls or a cone on a trunk, or a palm."""
    crown = d.choice(
        "crown",
        {
            "ball": "trimmed to a ball",
            "tiers": "trimmed in tiers",
            "cone": "trimmed to a cone",
            "palm": "like a palm",
            "cloud": "with several crowns",
        },
    )
    trunk = size * d.uniform("trunk", 0.45, 0.9)
    bend = size * d.uniform("bend", -0.15, 0.15)
    wide = max(size * d.uniform("crown_width", 0.28, 0.5), 0.8 * radius)
    path = g.smooth([(0, -0.05 * size, 0), (bend, 0.5 * trunk, 0.3 * bend), (0, trunk, 0)], 8)
    green, bark = d.material(FOLIAGE), d.material(WOOD)
    if crown == "ball":
        d.add("leaf", _ball(d, wide, wide, wide).move(y=trunk + 0.7 * wide), green)
    elif crown == "tiers":
        for i, r in enumerate((1.0, 0.72, 0.48)):
            d.add("leaf", _ball(d, r * wide, 0.5 * r * wide, r * wide).move(y=trunk + 0.75 * i * wide), green)
        path[-1] += (0, 1.5 * wide, 0)
    elif crown == "cone":
        d.add(
            "leaf",
            g.lathe(
                [(0, 0), (0.9 * wide, 0.05 * wide), (wide, 0.3 * wide), (0.06 * wide, 2.6 * wide), (0, 2.6 * wide)], 20
            ).move(y=0.6 * trunk),
            green,
        )
    elif crown == "palm":
        count = d.integer("num_leaves", 9, 22)
        rise = np.radians(d.rng.uniform(15, 75, count))
        d.add(
            "leaf",
            _leaves(
                np.zeros((count, 3)), _spread(d, count), rise, 1.6 * wide * d.rng.uniform(0.8, 1.1, count), 0.22, 0.7, 7
            ).move(y=trunk),
            green,
        )
    else:
        for i in range(d.integer("num_crowns", 2, 4)):
            a, r = 2.4 * i + float(d.rng.uniform(0, 1)), 0.6 * wide * float(d.rng.uniform(0.7, 1.1))
            x, y, z = (
                0.85 * wide * np.cos(a),
                trunk + 0.4 * wide * float(d.rng.uniform(-0.6, 1.2)),
                0.85 * wide * np.sin(a),
            )
            d.add("leaf", _ball(d, r, 0.6 * r, r).move(x, y, z), green)
            d.add("branch", g.rod((0, 0.6 * trunk, 0), (x, y, z), 0.05 * radius + 0.01 * size, 0.02 * size, 6), bark)
    d.add("trunk", g.tube(path, np.linspace(0.16, 0.1, len(path)) * radius, 8), bark)


# What grows in a pot: each adds itself from y = 0 upwards, given the soil's radius and the plant's rough height.
PLANTS: dict[str, Callable[[Designer, float, float], None]] = {
    "bush": _bush,
    "blades": _blades,
    "trailing": _trailing,
    "rosette": _rosette,
    "cactus": _cactus,
    "flowers": _flowers,
    "tree": _tree,
}

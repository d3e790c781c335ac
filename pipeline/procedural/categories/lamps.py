"""Lamps for a table, a floor, a desk or a ceiling."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.joinery import merge, settle
from recon.pipeline.procedural.designer import CERAMIC, FABRIC, METAL, PAINT, PLASTIC, STONE, WOOD, Designer, Finish
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Floats, Material

LIGHT: dict[str, Finish] = {"warm light": ("ffe2a6", 0.0, 0.6), "white light": ("f4f4ee", 0.0, 0.6)}


def _around(piece: Geometry, count: int, start: float = 0.0) -> Geometry:
    """`count` copies turned evenly about the y axis."""
    return merge([piece.rotate("y", start + 360 * i / count) for i in range(count)])


def _shell(outside: Floats, thickness: float, segments: int) -> Geometry:
    """A thin open surface of revolution given by its outside (radius, y) pairs, bottom up."""
    inside = np.maximum(outside - [thickness, 0], [0, -np.inf])
    return g.lathe(np.concatenate([outside, inside[::-1]]), segments, closed=True)


def _shade(kind: str, radius: float, height: float, top: float, curve: float) -> Geometry:
    """A lamp shade open below, its lower edge at y = 0; `top` is the upper radius as a share of `radius`."""
    t = np.linspace(0, 1, 7)
    thin = 0.03 * radius
    if kind == "globe":
        return g.ellipsoid(0.85 * radius, 0.5 * height + 0.35 * radius, 0.85 * radius, 18).move(y=0.5 * height)
    if kind == "dome":
        quarter = 0.5 * np.pi * t
        outside = np.stack([radius * np.cos(quarter) ** (0.5 + curve), height * np.sin(quarter)], -1)
        outside[-1, 0] = 0.0
        inside = np.stack([np.maximum(outside[:, 0] - thin, 0), 0.95 * outside[:, 1]], -1)
        return g.lathe(np.concatenate([outside, inside[::-1]]), 24, closed=True)
    if kind == "bell":
        outside = np.stack([radius * (top + (1 - top) * (1 - t) ** (1.5 + 2 * curve)), height * t], -1)
        return _shell(outside, thin, 24)
    if kind == "pagoda":
        sag = np.stack([radius * (top + (1 - top) * (1 - t) ** (1.0 + curve)), height * t], -1)
        return _shell(sag, 1.5 * thin, 4).rotate("y", 45)
    if kind == "stacked":
        rows = [
            (radius * (1 - (1 - top) * i / 4) * s, height * (i + y) / 4)
            for i in range(4)
            for s, y in ((1, 0.05), (0.8, 0.95))
        ]
        return _shell(np.array(rows), thin, 20)
    straight = np.stack([radius * (1 + (top - 1) * t[[0, 6]]), height * t[[0, 6]]], -1)
    shade = _shell(straight, thin, 28)
    if kind != "pleated":
        return shade

    def pleat(v: Floats) -> Floats:
        v[:, [0, 2]] *= (1 + 0.06 * np.cos(14 * np.arctan2(v[:, 2], v[:, 0])))[:, None]
        return v

    return shade.warp(pleat)


def _draw_shade(d: Designer, radius: float) -> tuple[Geometry, float]:
    """A shade of the drawn kind, and its height."""
    kinds = {
        "cone": "with a conical shade",
        "drum": "with a drum shade",
        "dome": "with a domed shade",
        "bell": "with a bell-shaped shade",
        "globe": "with a globe shade",
        "pagoda": "with a four-sided shade",
        "pleated": "with a pleated shade",
        "stacked": "with a tiered shade",
    }
    kind = d.choice("shade", kinds, (0.17, 0.14, 0.16, 0.12, 0.13, 0.1, 0.1, 0.08))
    height = radius * d.uniform("shade_height", 0.7, 1.6)
    top = d.uniform("shade_top", 0.3, 0.75)
    return _shade(kind, radius, height, 0.96 if kind == "drum" else top, d.uniform("shade_curve", 0.0, 0.6)), height


def _base(d: Designer, radius: float, height: float) -> tuple[Geometry, float]:
    """What stands on the ground, and the height at which the stem leaves it."""
    kind = d.choice(
        "base",
        {"disc": "", "dome": "", "square": "on a square base", "tripod": "on three legs", "block": "on a block"},
        (0.3, 0.2, 0.18, 0.18, 0.14),
    )
    if kind == "disc":
        return g.lathe(
            [(0, 0), (radius, 0), (radius, 0.09 * radius), (0.9 * radius, 0.16 * radius), (0, 0.16 * radius)], 24
        ), 0.1 * radius
    if kind == "dome":
        return g.lathe(
            [
                (0, 0),
                (radius, 0),
                (0.95 * radius, 0.12 * radius),
                (0.6 * radius, 0.3 * radius),
                (0.2 * radius, 0.45 * radius),
                (0, 0.45 * radius),
            ],
            24,
        ), 0.4 * radius
    if kind == "square":
        steps = g.box(1.7 * radius, 0.14 * radius, 1.7 * radius, 0.02 * radius).move(y=0.07 * radius)
        return steps + g.box(1.2 * radius, 0.14 * radius, 1.2 * radius, 0.02 * radius).move(
            y=0.2 * radius
        ), 0.2 * radius
    if kind == "block":
        size = radius * d.uniform("block_size", 0.9, 1.3)
        return g.box(size, 0.8 * size, size, 0.06 * size).move(y=0.4 * size), 0.78 * size
    hub = height * d.uniform("tripod_height", 0.3, 0.95)
    leg = g.rod((1.25 * radius, 0, 0), (0.12 * radius, hub, 0), 0.06 * radius, 0.1 * radius, 8)
    return _around(leg, 3, 90) + g.cylinder(0.24 * radius, 0.2 * radius, segments=12).move(y=hub), 0.95 * hub


def _stem(d: Designer, low: float, high: float, thick: float, stout: bool) -> Geometry:
    """The stem from height `low` to `high`; a `stout` one may be a vase or turned wood."""
    kind = d.choice(
        "stem",
        {
            "rod": "on a thin stem",
            "turned": "on a turned stem",
            "vase": "on a vase-shaped body",
            "balls": "on a stem of balls",
            "column": "on a column",
            "twin": "on two rods",
        },
        (0.2, 0.2, 0.25, 0.12, 0.13, 0.1) if stout else (0.45, 0.2, 0.02, 0.08, 0.1, 0.15),
    )
    length, bulge = high - low, thick * d.uniform("stem_bulge", 1.6, 3.4)
    if kind == "rod":
        return g.rod((0, low, 0), (0, high, 0), 0.4 * thick, sides=10)
    if kind == "twin":
        return g.rod((0.9 * thick, low, 0), (0.9 * thick, high, 0), 0.3 * thick, sides=8).with_mirror() + g.box(
            2.4 * thick, thick, thick
        ).move(y=high)
    if kind == "column":
        return g.cylinder(1.1 * thick, length, 0.9 * thick, 16).move(y=(low + high) / 2)
    if kind == "balls":
        count = d.integer("num_balls", 2, 5)
        r = min(0.5 * length / count, bulge)
        balls = [
            g.ellipsoid(r, 0.5 * length / count, r, 12).move(y=low + (i + 0.5) * length / count) for i in range(count)
        ]
        return merge(balls) + g.rod((0, low, 0), (0, high, 0), 0.3 * thick, sides=8)
    if kind == "vase":
        radii = np.array([0.5, 0.85, 1.0, 0.8, 0.35, 0.18, 0.25]) * min(bulge * 1.5, 0.55 * length)
    else:
        radii = d.rng.uniform(0.4, 1.0, 7) * bulge * 0.8
    side = np.maximum(g.smooth(np.stack([radii, np.linspace(low, high, 7)], -1), 18), [0.2 * thick, low])
    return g.lathe(np.concatenate([[(0, low)], side, [(0, high)]]), 24 if kind == "vase" else 16)


def _standing_lamp(d: Designer, floor: bool) -> None:
    """A shade on a stem on a base: for a table or, taller, for the floor."""
    height = d.uniform("height", 1.2, 1.8) if floor else d.uniform("height", 0.3, 0.75)
    radius = height * (d.uniform("shade_size", 0.1, 0.2) if floor else d.uniform("shade_size", 0.22, 0.42))
    shade, tall = _draw_shade(d, radius)
    base_radius = radius * d.uniform("base_size", 0.55, 1.0)
    neck = height - 0.75 * tall
    finish, accent = d.material(FABRIC, CERAMIC, PAINT), d.material(METAL, WOOD, CERAMIC, STONE)
    if floor and d.choice("shape", {"straight": "", "arc": "with an arching arm"}, (0.7, 0.3)) == "arc":
        reach = height * d.uniform("reach", 0.35, 0.7)
        d.add("shade", shade.move(y=neck - tall, z=0.5 * reach), finish)
        path = g.smooth(
            [
                (0, 0, -0.5 * reach),
                (0, 0.6 * height, -0.48 * reach),
                (0, height, -0.05 * reach),
                (0, neck - 0.1 * tall, 0.5 * reach),
            ],
            22,
        )
        d.add("tube", g.tube(path, 0.008 * height, 8), accent)
        slab = g.cylinder(1.1 * base_radius, 0.04 * height).move(y=0.02 * height, z=-0.5 * reach)
        d.add("base", slab, d.material(METAL, STONE))
        d.add(
            "bulb",
            g.ellipsoid(0.25 * radius, 0.3 * tall, 0.25 * radius, 12).move(y=neck - 0.7 * tall, z=0.5 * reach),
            d.material(LIGHT),
        )
        return
    d.add("shade", shade.move(y=height - tall), finish)
    base, low = _base(d, base_radius, neck)
    d.add("base", base, d.material(METAL, WOOD, STONE, CERAMIC) if d.rng.random() < 0.5 else accent)
    thick = 0.018 * height if floor else 0.035 * height
    d.add("stem", _stem(d, low - 0.01 * height, max(neck, low + 0.05 * height), thick, not floor), accent)
    bulb = g.ellipsoid(0.2 * radius, 0.25 * tall, 0.2 * radius, 12) + g.rod(
        (0, -0.5 * tall, 0), (0, 0, 0), 0.06 * radius, sides=8
    )
    d.add("bulb", bulb.move(y=height - 0.55 * tall), d.material(LIGHT))
    if floor and d.choice("tray", {"none": "", "tray": "with a small table around its stem"}, (0.8, 0.2)) == "tray":
        d.add(
            "tray",
            g.cylinder(0.8 * radius, 0.015 * height).move(y=height * d.uniform("tray_height", 0.3, 0.5)),
            d.material(WOOD, METAL),
        )


def _desk_lamp(d: Designer) -> None:
    """A jointed or bent arm over a desk; the head looks forward and down."""
    lower = d.uniform("lower_arm", 0.22, 0.42)
    upper, back, fall = (
        lower * d.uniform("upper_arm", 0.6, 1.1),
        np.radians(d.uniform("back", 5, 40)),
        np.radians(d.uniform("fall", -15, 45)),
    )
    elbow = np.array([0, 0.03 + lower * np.cos(back), -lower * np.sin(back)])
    head = elbow + upper * np.array([0, np.sin(0.5 - fall), np.cos(0.5 - fall)])
    size = lower * d.uniform("shade_size", 0.22, 0.42)
    kinds = {
        "bell": "with a bell-shaped head",
        "dome": "with a domed head",
        "cone": "with a conical head",
        "bar": "with a long flat head",
    }
    kind, tilt = d.choice("head", kinds), d.uniform("tilt", 5, 50)
    length = size * d.uniform("shade_height", 0.9, 1.5)
    if kind == "bar":
        shade = g.box(2.2 * size, 0.2 * size, 0.7 * size, 0.05 * size).move(y=0.8 * length)
        light = g.box(1.9 * size, 0.1 * size, 0.5 * size).move(y=0.8 * length - 0.08 * size)
    else:
        shade = _shade(kind, size, length, 0.3, 0.4)
        light = g.ellipsoid(0.35 * size, 0.35 * size, 0.35 * size, 12).move(y=0.3 * length)
    finish, metal = d.material(PAINT, METAL, PLASTIC), d.material(METAL, PAINT)
    x, y, z = head - [0, 0.8 * length * np.cos(np.radians(tilt)), -0.8 * length * np.sin(np.radians(tilt))]
    d.add("shade", shade.rotate("x", -tilt).move(x, y, z), finish)
    d.add("bulb", light.rotate("x", -tilt).move(x, y, z), d.material(LIGHT))
    thick, foot = 0.022 * lower + 0.003, lower * d.uniform("base_size", 0.2, 0.36)
    arm = d.choice(
        "arm",
        {"jointed": "with a jointed arm", "parallel": "with a sprung double arm", "gooseneck": "with a gooseneck"},
        (0.4, 0.3, 0.3),
    )
    if arm == "gooseneck":
        knots = [np.array([0, 0.01, 0]), elbow * [0, 0.6, 0.5], elbow * [0, 1.15, 0.8] + head * [0, 0, 0.15], head]
        path = g.smooth(np.stack(knots), 20)
        d.add("arm", g.tube(path, 1.2 * thick, 8), metal)
    else:
        gap = 2.2 * thick if arm == "parallel" else 0.0
        bars = [
            g.rod((s * gap, *a[1:]), (s * gap, *b[1:]), thick, sides=8)
            for a, b in ((np.array([0, 0.02, 0]), elbow), (elbow + np.array([0, 0.3 * thick, 0]), head))
            for s in ((-1, 1) if gap else (0,))
        ]
        d.add("arm", merge(bars), metal)
        joint = g.cylinder(2.4 * thick, 2 * gap + 4 * thick, segments=12).rotate("z", 90)
        d.add("joint", merge([joint.move(y=a[1], z=a[2]) for a in (np.array([0, 0.03, 0]), elbow, head)]), finish)
    d.add("base", _desk_foot(d, foot), finish if d.rng.random() < 0.5 else metal)


def _desk_foot(d: Designer, foot: float) -> Geometry:
    """A desk lamp's foot: a disc, a slab, or a dome."""
    kind = d.choice("base", {"disc": "", "slab": "", "dome": ""})
    if kind == "slab":
        return g.box(1.8 * foot, 0.025, 1.4 * foot, 0.006).move(y=0.0125)
    rise = 0.35 * foot if kind == "dome" else 0.025
    top = 0.012 + rise
    return g.lathe(
        [(0, 0), (foot, 0), (foot, 0.012), (0.75 * foot, 0.012 + 0.6 * rise), (0.2 * foot, top), (0, top)], 24
    )


def _hanging_lamp(d: Designer) -> None:
    """A pendant, several pendants, or a chandelier, with its cord and canopy; its lowest point is at y = 0."""
    layout = d.choice(
        "layout",
        {
            "pendant": "with one pendant",
            "row": "with pendants in a row",
            "cluster": "with a cluster of pendants",
            "chandelier": "with curved chandelier arms",
            "ring": "with a ring of lights",
        },
        (0.35, 0.14, 0.14, 0.25, 0.12),
    )
    radius = d.uniform("shade_size", 0.14, 0.32)
    cord = d.uniform("cord", 0.25, 1.0)
    wide = radius * d.uniform("canopy_size", 0.3, 0.6)
    finish, metal, glow = d.material(FABRIC, CERAMIC, PAINT, METAL), d.material(METAL, PAINT, WOOD), d.material(LIGHT)
    if layout == "chandelier" or layout == "ring":
        _chandelier(d, layout == "ring", radius, cord, finish, metal, glow)
        d.add(
            "canopy",
            g.cylinder(wide, 0.12 * radius, 0.7 * wide, 16).move(y=d.primitives[-1].vertices[:, 1].max()),
            metal,
        )
        return
    count = 1 if layout == "pendant" else d.integer("num_pendants", 2, 4)
    size = radius if count == 1 else 0.55 * radius
    shade, tall = _draw_shade(d, size)
    bar = 2.4 * size * (count - 1)
    ceiling = tall + cord
    for i in range(count):
        angle = 360 * i / count
        x, z = (2.4 * size * (i - (count - 1) / 2), 0.0) if layout == "row" else (0.0, 0.0)
        if layout == "cluster":
            x, z = 1.3 * size * np.cos(np.radians(angle)), 1.3 * size * np.sin(np.radians(angle))
        y = 0.0 if i == 0 or layout == "row" else float(d.rng.uniform(0, 0.7 * cord))
        d.add("shade", shade.move(x, y, z), finish)
        d.add("bulb", g.ellipsoid(0.3 * size, 0.35 * size, 0.3 * size, 12).move(x, y + 0.3 * tall, z), glow)
        top = (0.35 * x, ceiling, 0.35 * z) if layout == "cluster" else (x, ceiling, z)
        d.add("cord", g.rod((x, y + 0.5 * tall, z), top, 0.012 * radius + 0.003, sides=6), metal)
        d.add("socket", g.cylinder(0.16 * size, 0.3 * size, 0.1 * size, 12).move(x, y + 1.02 * tall, z), metal)
    canopy = g.box(bar + size, 0.03, 0.5 * size, 0.005) if layout == "row" else g.cylinder(wide, 0.04, 0.8 * wide, 20)
    d.add("canopy", canopy.move(y=ceiling), metal)


def _chandelier(
    d: Designer, ring: bool, radius: float, cord: float, finish: Material, metal: Material, glow: Material
) -> None:
    """Arms, or a hoop, with a candle or small shade on each, about a turned column."""
    arms = d.integer("num_arms", 4, 8)
    reach, sag = 2.0 * radius, radius * d.uniform("sag", 0.3, 0.9)
    holder = d.choice("holder", {"candle": "with candles", "shade": "with small shades", "globe": "with glass globes"})
    size = radius * d.uniform("holder_size", 0.22, 0.4)
    y = sag + 0.1 * radius
    lights = {
        "candle": g.cylinder(0.22 * size, 1.3 * size, segments=10).move(y=0.65 * size)
        + g.cylinder(0.6 * size, 0.15 * size, segments=12),
        "shade": _shade("cone", size, 1.1 * size, 0.55, 0.0).move(y=0.2 * size),
        "globe": g.ellipsoid(0.8 * size, 0.8 * size, 0.8 * size, 10).move(y=0.7 * size),
    }
    d.add("shade", _around(lights[holder].move(x=reach, y=y), arms), finish)
    bulb = g.ellipsoid(0.2 * size, 0.5 * size, 0.2 * size, 8).move(
        x=reach, y=y + (1.7 if holder == "candle" else 0.8) * size
    )
    d.add("bulb", _around(bulb, arms), glow)
    hub = y + d.uniform("column", 0.4, 1.3) * radius
    if ring:
        d.add("ring", g.torus(reach, 0.06 * radius, 28, 6).move(y=y), metal)
        spokes = g.rod((reach, y, 0), (0, hub, 0), 0.012 * radius + 0.002, sides=6)
        d.add("arm", _around(spokes, arms), metal)
    else:
        path = g.smooth(
            [
                (0.05 * radius, y + 0.3 * sag, 0),
                (0.5 * reach, y - sag, 0),
                (0.95 * reach, y - 0.4 * sag, 0),
                (reach, y, 0),
            ],
            9,
        )
        d.add("arm", _around(g.tube(path, 0.035 * radius, 6), arms), metal)
        r = d.rng.uniform(0.08, 0.3, 7) * radius
        column = g.smooth(np.stack([r, np.linspace(0.1 * radius, hub, 7)], -1), 16)
        d.add("column", g.lathe(np.concatenate([[(0, 0.02 * radius)], column, [(0, hub + 0.01)]]), 14), metal)
    d.add("cord", g.rod((0, hub - 0.02, 0), (0, hub + cord, 0), 0.02 * radius + 0.002, sides=6), metal)


def lamp(d: Designer) -> None:
    """A table, floor, desk or hanging lamp."""
    kind = d.choice(
        "kind",
        {"table": "for a table", "floor": "for the floor", "desk": "for a desk", "hanging": "hanging from a cord"},
        (0.32, 0.25, 0.18, 0.25),
    )
    if kind == "desk":
        _desk_lamp(d)
    elif kind == "hanging":
        _hanging_lamp(d)
    else:
        _standing_lamp(d, kind == "floor")
    settle(d)


BUILDERS = {"lamp": lamp}

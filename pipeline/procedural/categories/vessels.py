"""Bottles and mugs, and the hollow bodies that pots share with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.designer import CERAMIC, GLASS, METAL, PAINT, PLASTIC, RUBBER, STONE, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Floats

SEGMENTS = 24  # a multiple of eight, so that a squared section has a vertex on each corner


def vessel(outside: ArrayLike, wall: float, floor: float, segments: int = SEGMENTS) -> Geometry:
    """A hollow body from its outside (radius, y) pairs [P, 2], foot to rim; open above a floor at height `floor`."""
    outer = np.asarray(outside, dtype=np.float64)
    above = outer[outer[:, 1] > floor + 1e-6]
    at_floor = np.interp(floor, outer[:, 1], outer[:, 0])
    inner = np.concatenate([[[at_floor, floor]], above]) - [wall, 0.0]
    return g.lathe(np.concatenate([[[0.0, outer[0, 1]]], outer, inner[::-1], [[0.0, floor]]]), segments)


def squared(body: Geometry, low: float, high: float) -> Geometry:
    """Widen a round section to a rounded square: fully below height `low`, not at all above `high`."""

    def widen(v: Floats) -> Floats:
        angle = np.arctan2(v[:, 2], v[:, 0])
        corner = (np.abs(np.cos(angle)) ** 7 + np.abs(np.sin(angle)) ** 7) ** (-1 / 7)
        share = np.clip((high - v[:, 1]) / max(high - low, 1e-6), 0, 1)
        v[:, [0, 2]] *= (1 + share * (corner - 1))[:, None]
        return v

    return body.warp(widen)


def _bottle_closure(d: Designer, kind: str, radius: float, height: float) -> None:
    """What sits on a mouth of `radius` at `height`."""
    r = radius
    tall = r * d.uniform("closure_height", 0.9, 2.4)
    finish = d.material(PLASTIC, METAL, WOOD)
    if kind == "cork":
        d.add("closure", g.cylinder(0.85 * r, tall, 1.02 * r, SEGMENTS).move(y=height + 0.1 * tall), d.material(WOOD))
    elif kind == "screw cap":
        lines = np.linspace(0.0, 1.0, 4)
        profile = [(1.22 * r, height - 0.55 * tall + t * tall) for t in lines]
        grooved = [p for x, y in profile for p in ((x, y), (1.14 * x, y + 0.08 * tall), (1.14 * x, y + 0.2 * tall))]
        cap = [(1.12 * r, height - 0.55 * tall), *grooved, (1.1 * r, height + 0.72 * tall), (0, height + 0.72 * tall)]
        d.add("closure", g.lathe([(0, height - 0.5 * tall), *cap], SEGMENTS), finish)
    elif kind == "stopper":
        ball = g.ellipsoid(1.3 * r, 0.7 * tall, 1.3 * r, 16).move(y=height + 0.7 * tall)
        d.add("closure", ball + g.cylinder(0.8 * r, tall, 0.95 * r, 16).move(y=height), finish)
    elif kind == "pump":
        collar = g.cylinder(1.3 * r, 1.2 * r, 1.15 * r, SEGMENTS).move(y=height + 0.2 * r)
        stem = g.cylinder(0.3 * r, 2.4 * tall, segments=12).move(y=height + 1.2 * tall)
        top = height + 2.3 * tall
        path = [(0, top, -0.6 * r), (0, top + 0.1 * r, r), (0, top, 2.6 * r), (0, top - 0.7 * r, 3.1 * r)]
        d.add("closure", collar + stem, finish)
        head = g.tube(path, [0.65 * r, 0.6 * r, 0.35 * r, 0.28 * r], 10)
        d.add("pump", head + g.cylinder(0.8 * r, 0.5 * r, segments=16).move(y=top), finish)
    elif kind == "trigger":
        collar = g.cylinder(1.3 * r, 1.4 * r, segments=SEGMENTS).move(y=height + 0.2 * r)
        side = [
            (-1.1, 0.5),
            (0.9, 0.5),
            (1.1, 2.0),
            (3.0, 2.3),
            (3.0, 3.4),
            (0.2, 3.7),
            (-2.2, 3.3),
            (-2.4, 2.7),
            (-1.0, 2.0),
        ]
        head = g.extrude(np.array(side) * r, 1.3 * r).rotate("y", -90).move(y=height)
        lever = g.tube(
            [(0, height + 2.2 * r, 1.9 * r), (0, height + 0.9 * r, 2.0 * r), (0, height - 0.6 * r, 1.5 * r)], 0.3 * r, 8
        )
        d.add("closure", collar + head, finish)
        d.add("trigger", lever, d.material(PLASTIC))
    elif kind == "nozzle":
        profile = [
            (0, -0.6),
            (1.25, -0.6),
            (1.25, 0.5),
            (1.0, 1.0),
            (0.5, 1.5),
            (0.42, 2.2),
            (0.6, 2.3),
            (0.6, 3.0),
            (0.3, 3.2),
            (0, 3.2),
        ]
        d.add("closure", g.lathe(np.array(profile) * r, SEGMENTS).move(y=height), finish)


def _bottle_outline(d: Designer, height: float, radius: float) -> tuple[Floats, float, float]:
    """Outside (radius, y) pairs, with the height at which the body ends and the neck's radius."""
    neck = radius * d.uniform("neck_width", 0.24, 0.7)
    neck_length = height * d.uniform("neck_length", 0.05, 0.3)
    shoulder_length = height * d.uniform("shoulder_length", 0.06, 0.3)
    curve = d.uniform("body_curve", 0.06, 0.22)
    body = d.choice(
        "body",
        {
            "straight": "",
            "waisted": "with a narrow waist",
            "bulging": "with a bulging body",
            "tapered": "tapering to its foot",
        },
        (0.45, 0.2, 0.18, 0.17),
    )
    shoulder = d.choice(
        "shoulder", {"round": "with round shoulders", "sloping": "with sloping shoulders", "straight": ""}
    )
    top, neck_start = height - neck_length - shoulder_length, height - neck_length
    t = np.linspace(0, 1, 9 if body != "straight" else 3)
    shapes = {
        "straight": 0 * t,
        "waisted": -(np.sin(np.pi * t) ** 2),
        "bulging": np.sin(np.pi * t) - 0.5,
        "tapered": 1.5 * (t - 1),
    }
    foot = 0.05 * height
    side = np.stack([radius * (1 + curve * shapes[body]), foot + t * (top - foot)], -1)
    u = np.linspace(0, 1, 7)[1:]
    falls = {"round": np.sqrt(1 - u**2), "sloping": 0.5 + 0.5 * np.cos(np.pi * u), "straight": 1 - u}
    slope = np.stack([neck + (side[-1, 0] - neck) * falls[shoulder], top + u * shoulder_length], -1)
    low = side[0, 0]
    base = [(0.86 * low, 0.0), (0.96 * low, 0.3 * foot)]
    lip = 0.12 * neck
    mouth = [(neck, height - 3 * lip), (neck + lip, height - 2.6 * lip), (neck + lip, height)]
    kept = slope[slope[:, 1] < height - 3.5 * lip]
    return np.concatenate([base, side, kept, [(neck, min(neck_start, height - 3.2 * lip))], mouth]), top, neck


def bottle(d: Designer) -> None:
    """A bottle, flask, carafe or dispenser, up to a third of a metre tall."""
    height = d.uniform("height", 0.13, 0.36)
    radius = height * d.uniform("slenderness", 0.11, 0.24)
    outline, top, neck = _bottle_outline(d, height, radius)
    section = d.choice(
        "section", {"round": "", "square": "with a square body", "oval": "with a flat oval body"}, (0.55, 0.23, 0.22)
    )
    flat = d.uniform("flatness", 0.45, 0.7) if section == "oval" else 1.0
    mouth = [(0.85 * neck, height), (0.8 * neck, height - 1.5 * neck), (0, height - 1.5 * neck)]
    material = d.material(GLASS, PLASTIC, CERAMIC, METAL)

    def shaped(piece: Geometry) -> Geometry:
        """The bottle's section, fading to round at the mouth so that closures fit."""
        if section == "square":
            return squared(piece, top, height - neck)
        if section == "oval":
            fade = np.array([0.0, top, height - neck, height])

            def flatten(v: Floats) -> Floats:
                v[:, 2] *= np.interp(v[:, 1], fade, [flat, flat, 1.0, 1.0])
                return v

            return piece.warp(flatten)
        return piece

    d.add("body", shaped(g.lathe(np.concatenate([[(0, 0)], outline, mouth]), SEGMENTS)), material)
    kinds = {
        "cork": "closed with a cork",
        "screw cap": "with a screw cap",
        "stopper": "with a glass stopper",
        "pump": "with a pump",
        "trigger": "with a spray trigger",
        "nozzle": "with a drinking nozzle",
        "open": "without a cap",
    }
    closure = d.choice("closure", kinds, (0.16, 0.26, 0.11, 0.12, 0.1, 0.12, 0.13))
    _bottle_closure(d, closure, 1.12 * neck, height)
    if d.choice("label", {"none": "", "label": "with a label"}, (0.4, 0.6)) == "label":
        middle, half = top * d.uniform("label_position", 0.4, 0.6), 0.5 * top * d.uniform("label_size", 0.25, 0.62)
        y = np.linspace(middle - half, middle + half, 6)
        r = np.interp(y, outline[:, 1], outline[:, 0])
        band = np.concatenate([np.stack([r + 0.03 * radius, y], -1), np.stack([0.94 * r, y], -1)[::-1]])
        d.add("label", shaped(g.lathe(band, SEGMENTS, closed=True)), d.material(PAINT))
    if d.choice("handle", {"none": "", "loop": "with a handle at its neck"}, (0.82, 0.18)) == "loop":
        y = np.array([height - 2.2 * neck, 0.55 * top])
        x = np.interp(y, outline[:, 1], outline[:, 0]) - 0.1 * neck
        reach = 1.05 * radius + 0.5 * neck
        path = [
            (x[0], y[0], 0),
            (reach, y[0], 0),
            (1.2 * reach, 0.6 * y[0] + 0.4 * y[1], 0),
            (1.12 * reach, 0.2 * y[0] + 0.8 * y[1], 0),
            (x[1], y[1], 0),
        ]
        d.add("handle", g.tube(g.smooth(path, 16), 0.13 * radius, 8), material)


def _mug_side(d: Designer, height: float, radius: float) -> Floats:
    """Outside (radius, y) pairs of the mug's body."""
    curve = d.uniform("curve", 0.08, 0.24)
    inset, rise = d.uniform("foot_inset", 0.7, 0.97), d.uniform("foot_rounding", 0.01, 0.05)
    names = {
        "straight": "",
        "tapered": "narrowing downwards",
        "barrel": "with a rounded belly",
        "flared": "with a flared rim",
        "footed": "on a foot",
        "conical": "wider at its base",
        "banded": "with ridges around it",
    }
    body = d.choice("body", names, (0.18, 0.16, 0.18, 0.14, 0.12, 0.11, 0.11))
    t = np.linspace(0, 1, 14 if body == "banded" else 10)
    shapes = {
        "straight": 0 * t,
        "tapered": 1.6 * (t - 1),
        "barrel": np.sin(np.pi * t) - 0.6,
        "flared": 1.5 * t**3 - 0.5,
        "footed": 1.6 * np.sqrt(t) - 1.2,
        "conical": 1.2 * (0.5 - t),
        "banded": 0.5 * (np.arange(len(t)) % 3 == 1),
    }
    side = np.stack([radius * (1 + curve * shapes[body]), 0.06 * height + 0.94 * height * t], -1)
    low = side[0, 0]
    if body == "footed":
        lift = height * d.uniform("foot_height", 0.08, 0.22)
        side[:, 1] = (
            lift + 0.04 * height + (side[:, 1] - side[0, 1]) / (height - side[0, 1]) * (height - lift - 0.04 * height)
        )
        foot = [
            (0.8 * low, 0.0),
            (0.8 * low, 0.25 * lift),
            (0.5 * low, 0.5 * lift),
            (0.5 * low, 0.9 * lift),
            (0.8 * low, lift),
        ]
        return np.concatenate([foot, side])
    return np.concatenate([[(inset * low, 0.0), (0.5 * (1 + inset) * low, rise * height)], side])


def _mug_handle(d: Designer, side: Floats, height: float, wall: float) -> Geometry | None:
    """A handle on the +x side, or two."""
    kinds = {
        "round": "with a round handle",
        "square": "with a square handle",
        "ear": "with an ear-shaped handle",
        "open": "with a hooked handle",
        "two": "with two handles",
        "none": "without a handle",
    }
    kind = d.choice("handle", kinds, (0.25, 0.18, 0.18, 0.13, 0.13, 0.13))
    if kind == "none":
        return None
    middle = height * d.uniform("handle_position", 0.47, 0.58)
    half = height * d.uniform("handle_height", 0.22, 0.36)
    reach = height * d.uniform("handle_reach", 0.22, 0.48)
    y = np.array([middle + half, middle - half])
    x = np.interp(y, side[:, 1], side[:, 0]) - 0.6 * wall
    out = side[:, 0].max() + reach
    points = {
        "round": [(x[0], y[0]), (out - 0.3 * reach, y[0]), (out, middle), (out - 0.3 * reach, y[1]), (x[1], y[1])],
        "square": [(x[0], y[0]), (out, y[0]), (out, y[1]), (x[1], y[1])],
        "ear": [
            (x[0], y[0]),
            (out - 0.3 * reach, y[0] + 0.14 * height),
            (out, y[0] - 0.1 * height),
            (x[1] + 0.5 * reach, y[1] + 0.1 * half),
            (x[1], y[1]),
        ],
        "open": [
            (x[0], y[0]),
            (out - 0.25 * reach, y[0]),
            (out, middle),
            (out - 0.15 * reach, y[1]),
            (out - 0.4 * reach, y[1]),
        ],
    }
    line = np.array(points["round" if kind == "two" else kind])
    line = line if kind == "square" else g.smooth(line, 14)
    thick = height * d.uniform("handle_thickness", 0.045, 0.085)
    loop = g.tube(np.column_stack([line, np.zeros(len(line))]), thick, 8).scale(z=d.uniform("handle_width", 0.9, 1.7))
    return loop.with_mirror("x") if kind == "two" else loop


def mug(d: Designer) -> None:
    """A mug, cup, stein or tumbler; its handle points to +x."""
    height = d.uniform("height", 0.07, 0.15)
    radius = height * d.uniform("width", 0.33, 0.62)
    wall = radius * d.uniform("wall", 0.07, 0.14)
    side = _mug_side(d, height, radius)
    section = d.choice(
        "section", {"round": "", "faceted": "with faceted sides", "square": "with a square body"}, (0.7, 0.17, 0.13)
    )
    floor = 0.09 * height if "foot_height" not in d.values else 0.12 * height + d.values["foot_height"] * height

    def shaped(piece: Geometry) -> Geometry:
        return squared(piece, height, 2 * height) if section == "square" else piece

    segments = 9 if section == "faceted" else SEGMENTS
    material = d.material(CERAMIC, METAL, WOOD, PLASTIC, GLASS)
    d.add("body", shaped(vessel(side, wall, floor, segments)), material)
    handle = _mug_handle(d, side, height, wall)
    if handle is not None:
        d.add("handle", handle, material if d.rng.random() < 0.75 else d.material(CERAMIC, WOOD, METAL))
    content = d.choice("content", {"empty": "", "drink": "filled with a drink", "lid": "with a lid"}, (0.5, 0.28, 0.22))
    rim = float(side[-1, 0])
    if content == "drink":
        level = height * d.uniform("level", 0.72, 0.92)
        inside = float(np.interp(level, side[:, 1], side[:, 0])) - 0.5 * wall
        d.add(
            "liquid",
            shaped(g.cylinder(inside, 0.02 * height, segments=segments).move(y=level)),
            d.material(WOOD, PAINT),
        )
    elif content == "lid":
        dome = height * d.uniform("lid_height", 0.06, 0.22)
        profile = [
            (0, -0.04 * height),
            (0.8 * rim, -0.04 * height),
            (1.06 * rim, 0),
            (1.06 * rim, 0.04 * height),
            (0.8 * rim, 0.03 * height + 0.6 * dome),
            (0.2 * rim, 0.03 * height + dome),
            (0.12 * rim, 0.06 * height + dome),
            (0.2 * rim, 0.12 * height + dome),
            (0, 0.14 * height + dome),
        ]
        d.add("lid", shaped(g.lathe(profile, segments)).move(y=height), d.material(CERAMIC, PLASTIC, METAL, RUBBER))
    bands = {"none": "", "stripe": "with a coloured stripe", "base": "with a coloured base"}
    band = d.choice("band", bands, (0.55, 0.25, 0.2))
    if band != "none":
        lowest = 0.07 + d.values.get("foot_height", 0.0)
        start = height * (d.uniform("stripe_position", 0.35, 0.7) if band == "stripe" else lowest)
        y = np.linspace(start, start + height * d.uniform("stripe_height", 0.08, 0.22), 4)
        r = np.interp(y, side[:, 1], side[:, 0])
        ring = np.concatenate([np.stack([r + 0.03 * radius, y], -1), np.stack([r - 0.4 * wall, y], -1)[::-1]])
        d.add("stripe", shaped(g.lathe(ring, segments, closed=True)), d.material(CERAMIC, STONE, METAL))


BUILDERS = {"bottle": bottle, "mug": mug}

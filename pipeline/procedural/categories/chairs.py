"""Chairs: dining, office, lounge, rocking and bar chairs."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.joinery import (
    at_corners,
    bent_panel,
    block,
    cushion,
    hoop,
    leg,
    merge,
    pipe,
    plate,
    settle,
    sheet,
)
from recon.pipeline.procedural.designer import FABRIC, LEATHER, METAL, PAINT, PLASTIC, RUBBER, WOOD, Designer
from recon.pipeline.procedural.geometry import (
    Geometry,
    arc,
    box,
    cylinder,
    ellipsoid,
    lathe,
    rod,
    rounded_rectangle,
    smooth,
    tube,
)
from recon.pipeline.shapes.mesh import Floats, Material

Piece = tuple[str, Geometry, Material]

BASES = {
    "legs": "",
    "sled": "on a sled base",
    "cantilever": "with a cantilever frame",
    "pedestal": "on a pedestal",
    "star": "on a swivel base with castors",
    "rockers": "on rockers",
}
BACKS = {
    "slats": "with a slatted back",
    "ladder": "with a ladder back",
    "panel": "",
    "cushion": "with a padded back",
    "wings": "with a wing back",
    "spindles": "with a hoop of spindles for a back",
    "cross": "with a cross back",
    "medallion": "with an oval back",
    "shell": "with a one-piece shell",
}
ARMS = {"none": "without armrests", "open": "with armrests", "closed": "with closed sides"}


def _seat_base(d: Designer, base: str, width: float, depth: float, top: float, frame: Material) -> None:
    """What carries a seat whose underside lies at height `top`."""
    thick = d.uniform("leg_thickness", 0.026, 0.058)
    splay = d.uniform("splay", -0.005, 0.09)
    x, z = width / 2 - 0.6 * thick, depth / 2 - 0.6 * thick
    if base in ("legs", "rockers"):
        kind = d.choice("legs", ["square", "tapered", "round", "turned", "cabriole"])
        d.add("leg", at_corners(leg(kind, top, thick, splay, splay), x, z), frame)
        stretchers = "none" if base == "rockers" else d.choice("stretchers", ["none", "box", "h"])
        level = 0.35 * top
        u, w = x + splay * 0.65, z + splay * 0.65
        if stretchers != "none":
            sides = rod((u, level, -w), (u, level, w), 0.26 * thick, sides=8).with_mirror()
            if stretchers == "box":
                d.add(
                    "stretcher",
                    sides + rod((-u, level, w), (u, level, w), 0.26 * thick, sides=8).with_mirror("z"),
                    frame,
                )
            else:
                d.add("stretcher", sides + rod((-u, level, 0), (u, level, 0), 0.26 * thick, sides=8), frame)
        if base == "rockers":
            reach = (z + splay) * 1.7
            t = np.linspace(-1, 1, 9)
            runner = np.column_stack([np.full(9, x + splay), 0.5 * thick + 0.16 * reach * t**2, reach * t])
            d.add("rocker", tube(runner, 0.5 * thick, sides=8).with_mirror(), frame)
        else:
            d.add("apron", block((-x, x), (top - 0.05, top + 0.002), (-z, z)), frame)
    elif base == "sled":
        r = 0.35 * thick
        run = [(x, top, 0.75 * z), (x + splay, r, z + splay), (x + splay, r, -z - splay), (x, top, -0.75 * z)]
        cross = rod((-x, top - r, 0.75 * z), (x, top - r, 0.75 * z), r, sides=8).with_mirror("z")
        d.add("leg", pipe(run, r, 0.05).with_mirror() + cross, frame)
    elif base == "cantilever":
        r = 0.42 * thick
        half = [(0, r, -z), (x, r, -z), (x, r, z + splay), (x, top - r, z), (x, top - r, -0.9 * z)]
        path = np.array(half[::-1] + [(-a, b, c) for a, b, c in half[1:]])
        d.add("leg", pipe(path, r, 0.07), frame)
    elif base == "pedestal":
        foot = 0.36 * (width + depth) / 2 + splay
        profile = smooth([(foot, 0.012), (0.45 * foot, 0.05), (thick, 0.4 * top), (2.4 * thick, top)], 10)
        d.add("base", lathe([(0, 0), (foot, 0), *profile, (0, top)], 20), frame)
    else:
        _star_base(d, 0.3 + splay, thick, top, frame)


def _star_base(d: Designer, reach: float, thick: float, top: float, frame: Material) -> None:
    """An office chair's gas column on five arms with castors."""
    rubber = d.material(RUBBER)
    arm = rod((0, 0.14, 0), (reach, 0.085, 0), 0.6 * thick, 0.4 * thick, sides=6)
    castor = cylinder(0.03, 0.036, segments=10).rotate("x", 90).move(x=reach, y=0.03)
    turns = [18.0 + 72 * i for i in range(5)]
    column = lathe(
        [
            (0, 0.1),
            (0.045, 0.1),
            (0.045, 0.17),
            (0.028, 0.18),
            (0.028, top - 0.04),
            (0.1, top - 0.02),
            (0.1, top),
            (0, top),
        ],
        14,
    )
    d.add("base", column + merge(arm.rotate("y", turn) for turn in turns), frame)
    fork = block((reach - 0.02, reach + 0.02), (0.03, 0.1), (-0.024, 0.024))
    d.add("wheel", merge((castor + fork).rotate("y", turn) for turn in turns), rubber)


def _chair_back(
    d: Designer, style: str, low: float, high: float, height: float, frame: Material, soft: Material
) -> list[Piece]:
    """A back that stands on the plane y = 0, facing +Z at about z = 0, `low` metres wide below and `high` above."""
    curve = d.uniform("back_curve", 0.0, 0.06)
    post = d.uniform("post_thickness", 0.022, 0.045)
    a, b = low / 2 - post / 2, high / 2 - post / 2
    posts = rod((a, -0.05, curve), (b, height, curve), 0.55 * post, 0.45 * post, sides=8).with_mirror()

    def across(level: float, size: float, thickness: float = 0.018) -> Geometry:
        below, above = np.interp([level, level + size], [0, height], [2 * a, 2 * b])
        return bent_panel((below, above), (level, level + size), curve, thickness)

    if style in ("slats", "ladder", "cross"):
        pieces = [("back", posts + across(0.82 * height, 0.17 * height, 0.024), frame)]
        if style == "ladder":
            count = d.integer("rungs", 2, 4)
            pitch = 0.78 * height / count
            rungs = merge(across(0.08 * height + pitch * i, 0.5 * pitch) for i in range(count))
            return [*pieces, ("slat", rungs, frame)]
        pieces.append(("back", across(0.1 * height, 0.08 * height), frame))
        if style == "cross":
            beam = rod((-a, 0.15 * height, curve), (b, 0.85 * height, curve), 0.3 * post, sides=6)
            return [*pieces, ("slat", beam.with_mirror(), frame)]
        count = d.integer("slats", 3, 7)
        flat = d.uniform("slat_width", 0.2, 0.7) * low / (count + 1)
        bars = [_slat(flat, 0.76 * height, t * a, t * b, curve * t * t).move(y=0.11 * height) for t in _between(count)]
        return [*pieces, ("slat", merge(bars), frame)]
    if style == "panel":
        gap = d.uniform("back_gap", 0.0, 0.45) * height
        panel = across(gap, height - gap, 0.022).scale(x=1.06)
        return [("back", panel, soft), ("back", posts.move(z=-0.02), frame)]
    if style in ("cushion", "wings"):
        return _padded_back(d, style, low, high, height, soft, posts, frame)
    if style == "spindles":
        count = d.integer("spindles", 5, 9)
        half = 0.35 * a + 0.65 * b
        bow = arc(1.0, 0, 180, 15)
        path = np.column_stack([bow[:, 0] * half, np.abs(bow[:, 1]) ** 0.75 * height, curve * bow[:, 0] ** 2])
        bars = [
            rod(
                (0.85 * t * half, -0.03, 0),
                (t * half, (1 - (t * 0.92) ** 2) ** 0.375 * height, curve * t * t),
                0.008,
                sides=6,
            )
            for t in _between(count)
        ]
        return [("back", tube(path, 0.5 * post, sides=8), frame), ("slat", merge(bars), frame)]
    assert style == "medallion", style
    rx, ry = max(b, 0.13), 0.38 * height
    stays = rod((0.5 * a, -0.05, 0), (0.62 * rx, height - 1.75 * ry, 0), 0.45 * post, sides=8).with_mirror()
    rim = hoop(rx, ry, 0.5 * post, 24).move(y=height - ry)
    oval = ellipsoid(rx, ry, 0.05, 18).move(y=height - ry, z=0.012)
    return [("back", oval, soft), ("back", rim + stays, frame)]


def _between(count: int) -> Floats:
    """`count` even positions inside (-1, 1)."""
    return np.linspace(-1, 1, count + 2)[1:-1]


def _slat(width: float, height: float, low: float, high: float, z: float) -> Geometry:
    """A flat bar from (low, 0, z) up to (high, height, z)."""
    bar = box(width, height, 0.012).move(y=height / 2, z=z)
    return bar.warp(lambda v: v + np.outer(low + (high - low) * v[:, 1] / height, [1.0, 0.0, 0.0]))


def _padded_back(
    d: Designer, style: str, low: float, high: float, height: float, soft: Material, posts: Geometry, frame: Material
) -> list[Piece]:
    """An upholstered back, on visible posts or with the wings of an armchair."""
    thickness = d.uniform("padding", 0.05, 0.13)
    widen = (high / low - 1) / height
    pad = cushion(low, thickness, height + 0.04, 0.4 * thickness, 0.2 * thickness).rotate("x", 90)
    pad = pad.move(y=height / 2 - 0.02).warp(lambda v: v * np.column_stack([1 + widen * v[:, 1], np.ones((len(v), 2))]))
    pieces = [("back", pad, soft)]
    if style == "wings":
        size = min(1.0, height / 0.6)
        outline = smooth([(0.0, 0.1), (0.15, 0.36), (0.19, 0.66), (0.12, 0.97), (0.0, 0.98)], 12) * [size, height]
        wing = plate(outline, -0.03, 0.03).rotate("x", 90).rotate("y", -90).move(x=min(low, high) / 2)
        return [*pieces, ("wing", wing.with_mirror(), soft)]
    if d.choice("posts", ["hidden", "shown"]) == "shown":
        pieces.append(("back", posts.move(z=-0.5 * thickness), frame))
    return pieces


def _shell(d: Designer, width: float, depth: float, height: float, back: float, recline: float, body: Material) -> None:
    """Seat and back moulded in one bent sheet."""
    cup = d.uniform("cup", 0.02, 0.1)
    lean = np.tan(np.radians(recline))
    spine = smooth(
        [
            (depth / 2, -0.03),
            (0.42 * depth, 0.0),
            (0.0, -0.012),
            (-0.34 * depth, 0.005),
            (-0.5 * depth, 0.1),
            (-0.5 * depth - lean * 0.6 * back, 0.6 * back),
            (-0.5 * depth - lean * back, back),
        ],
        13,
    )
    t = np.linspace(0, 1, 13)
    half = width / 2 * np.interp(t, [0, 0.12, 0.6, 0.88, 1], [0.84, 0.98, 1.0, 0.9, 0.7])
    rising = np.interp(t, [0, 0.1, 0.5, 1], [0.1, 0.5, 1.0, 0.7]) * cup
    turn = np.interp(t, [0.4, 0.75], [0.0, 1.0])  # the seat cups upwards, the back forwards
    across = np.linspace(-1, 1, 9)
    rows = [
        np.column_stack([across * h, y + r * (1 - k) * across**2, z + r * k * across**2])
        for (z, y), h, r, k in zip(spine, half, rising, turn, strict=True)
    ]
    d.add("seat", sheet(rows, 0.014).move(y=height), body)


def _arms(d: Designer, kind: str, width: float, depth: float, seat: float, frame: Material, soft: Material) -> None:
    rise = d.uniform("arm_height", 0.17, 0.27)
    x, front = width / 2 + 0.01, 0.42 * depth
    if kind == "open":
        size = d.uniform("arm_width", 0.03, 0.07)
        pad = box(size, 0.026, 0.98 * depth, 0.008).move(x=x, y=seat + rise, z=-0.04)
        d.add("arm", pad.with_mirror(), soft)
        post = rod((x - 0.015, seat - 0.04, front), (x, seat + rise, 0.8 * front), 0.013, sides=8)
        d.add("arm", post.with_mirror(), frame)
    elif kind == "closed":
        size = d.uniform("arm_width", 0.05, 0.12)
        panel = cushion(size, depth + 0.02, rise + 0.14, 0.45 * size).rotate("x", 90)
        d.add("arm", panel.move(x=x, y=seat + rise / 2 - 0.07).with_mirror(), soft)


def chair(d: Designer) -> None:
    """A seat for one with a back: 6 bases, 9 backs, with or without arms; sometimes bar height."""
    bar = d.choice("height", {"chair": "", "bar": "at bar height"}, weights=[0.88, 0.12]) == "bar"
    base = d.choice("base", BASES, weights=[0.44, 0.11, 0.11, 0.12, 0.13, 0.09])
    back = d.choice("back", BACKS)
    arms = d.choice("arms", ARMS, weights=[0.5, 0.32, 0.18])
    width, depth = d.uniform("seat_width", 0.38, 0.62), d.uniform("seat_depth", 0.38, 0.58)
    height = d.uniform("seat_height", 0.36, 0.52) + (0.24 if bar else 0.0)
    rise = d.uniform("back_height", 0.32, 0.82) * (0.7 if bar else 1.0)
    recline = d.uniform("recline", 3, 20)
    taper = d.uniform("back_taper", 0.75, 1.12)
    padded = back in ("cushion", "wings", "medallion") or arms == "closed"
    padded = padded or d.choice("seat", {"hard": "", "padded": ""}) == "padded"
    frame = d.material(WOOD, METAL, PAINT)
    soft = d.material(FABRIC, LEATHER) if padded else d.material(WOOD, PAINT, PLASTIC)
    if back == "shell":
        _shell(d, width, depth, height, rise, recline, soft)
        top = height - 0.012
    else:
        thickness = d.uniform("seat_thickness", 0.05, 0.13) if padded else d.uniform("seat_thickness", 0.018, 0.045)
        top = height - thickness
        if padded:
            solid = cushion(width, thickness, depth, 0.4 * thickness, 0.15 * thickness).move(y=height - thickness / 2)
        elif d.choice("seat_outline", ["square", "round"]) == "square":
            solid = plate(rounded_rectangle(width, depth, 0.05), top, height)
        else:
            solid = plate(rounded_rectangle(width, depth, 0.46 * depth, 7), top, height)
        d.add("seat", solid, soft)
        for part, piece, finish in _chair_back(d, back, 0.96 * width, 0.96 * width * taper, rise, frame, soft):
            d.add(part, piece.rotate("x", -recline).move(y=height, z=-depth / 2 + 0.03), finish)
    _seat_base(d, base, 0.9 * width, 0.9 * depth, top + 0.004, frame)
    _arms(d, arms, width, depth, height, frame, soft)
    settle(d)


BUILDERS = {"chair": chair}

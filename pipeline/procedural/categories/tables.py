"""Tables and desks."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.joinery import at_corners, block, handle, leg, merge, pipe, plate, settle
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, STONE, WOOD, Designer
from recon.pipeline.procedural.geometry import arc, box, lathe, rod, rounded_rectangle, smooth
from recon.pipeline.shapes.mesh import Floats, Material

# Kind of table -> (height, length) ranges in metres.
TABLES = {
    "dining": ((0.7, 0.78), (0.9, 2.2)),
    "coffee": ((0.3, 0.5), (0.6, 1.4)),
    "side": ((0.45, 0.7), (0.35, 0.65)),
    "console": ((0.7, 0.9), (0.8, 1.5)),
    "desk": ((0.7, 0.8), (1.0, 1.8)),
    "bar": ((0.95, 1.1), (0.55, 1.0)),
}
TABLE_PHRASES = {
    "dining": "for dining",
    "coffee": "of coffee-table height",
    "side": "for a bedside",
    "console": "for a hallway",
    "desk": "for writing",
    "bar": "at bar height",
}


TOPS = {"rectangle": "", "oval": "with a round top", "octagon": "with an eight-sided top", "boat": "with a bowed top"}
SUPPORTS = {"legs": "", "trestle": "on trestles", "panels": "on solid ends", "frame": "on a metal frame"}


def _top_outline(d: Designer, shape: str, length: float, depth: float) -> Floats:
    if shape == "rectangle":
        return rounded_rectangle(length, depth, d.uniform("corner_radius", 0.004, 0.12), 6)
    if shape == "oval":
        return arc(0.5, 0, 360, 33)[:-1] * [length, depth]
    if shape == "octagon":
        cut = d.uniform("corner_cut", 0.18, 0.3) * min(length, depth)
        a, b, soft = length / 2, depth / 2, 0.007
        right = [(a - cut - soft, -b), (a - cut + soft, -b + soft), (a - soft, -b + cut - soft), (a, -b + cut + soft)]
        half = np.array(right + [(x, -y) for x, y in right[::-1]])
        return np.concatenate([half, -half])
    assert shape == "boat", shape
    t = np.linspace(-1, 1, 11)
    edge = np.column_stack([t * length / 2, depth / 2 * (1 - d.uniform("boat", 0.15, 0.35) * t**2)])
    return np.concatenate([edge * [1, -1], edge[::-1]])


def _table_support(d: Designer, kind: str, x: float, z: float, top: float, round_top: bool, frame: Material) -> None:
    """Supports inside +-x, +-z under a top whose underside is at `top`."""
    thick = d.uniform("leg_thickness", 0.035, 0.095)
    splay = d.uniform("splay", 0.0, 0.08)
    if kind == "legs":
        shape = d.choice("leg_shape", ["square", "tapered", "round", "turned", "cabriole", "hairpin"])
        shrink = 0.7 if round_top else 1.0
        u, w = x * shrink - thick / 2, z * shrink - thick / 2
        d.add("leg", at_corners(leg(shape, top, thick, splay, splay), u, w), frame)
        if shape != "hairpin":
            fall = d.uniform("apron_height", 0.04, 0.13)
            d.add(
                "apron",
                block((-u, u), (top - fall, top + 0.001), (w - 0.01, w + 0.01), 0.003).with_mirror("z")
                + block((u - 0.01, u + 0.01), (top - fall, top + 0.0015), (-w, w), 0.003).with_mirror(),
                frame,
            )
    elif kind == "pedestal":
        foot = d.uniform("foot", 0.55, 0.85) * min(z, x)
        profile = smooth(
            [(0.5 * thick, 0.05 * top), (1.1 * thick, 0.3 * top), (0.55 * thick, 0.62 * top), (1.3 * thick, top)], 12
        )
        if d.choice("foot_shape", ["disc", "claws"]) == "disc":
            base = lathe([(0, 0), (foot, 0), (foot, 0.02), (0.4 * foot, 0.035 * top + 0.02), *profile, (0, top)], 24)
        else:
            claw = pipe([(0, 0.3 * top, 0), (0.45 * foot, 0.26 * top, 0), (foot, 0.022, 0)], 0.022, 0.12)
            claws = d.integer("claws", 3, 5)
            base = lathe([(0, 0.05 * top), *profile, (0, top)], 18)
            base = base + merge(claw.rotate("y", 45 + 360 * i / claws) for i in range(claws))
        d.add("base", base, frame)
        d.add("base", block((-0.7 * x, 0.7 * x), (top - 0.03, top + 0.001), (-0.06, 0.06)), frame)
    elif kind == "trestle":
        u = 0.72 * x
        cross = d.choice("trestle", ["crossed", "upright"]) == "crossed"
        if cross:
            angle = np.degrees(np.arctan2(1.5 * z, top))
            beam = box(0.8 * thick, np.hypot(top, 1.5 * z) + 0.03, 0.9 * thick, 0.006)
            end = beam.rotate("x", angle) + beam.scale(x=0.9).rotate("x", -angle)
            end = end.move(y=top / 2).warp(lambda v: np.clip(v, [-9.0, 0.0, -9.0], [9.0, top, 9.0]))
        else:
            end = block((-0.5 * thick, 0.5 * thick), (0.04, top), (-0.3 * z, 0.3 * z), 0.008)
            end = (
                end
                + box(1.2 * thick, 0.06, 1.7 * z, 0.01).move(y=0.03)
                + box(1.1 * thick, 0.05, 1.6 * z).move(y=top - 0.025)
            )
        d.add("leg", end.move(x=u).with_mirror(), frame)
        d.add("stretcher", box(2 * u, 0.07, 0.03).move(y=(0.5 if cross else 0.3) * top), frame)
    elif kind == "panels":
        u, w = (0.72 * x, 0.62 * z) if round_top else (x, z)
        d.add("leg", block((u - thick, u), (0, top), (-w, w), 0.005).with_mirror(), frame)
        d.add("apron", block((-u + 0.01, u - 0.01), (0.45 * top, top + 0.001), (-w + 0.01, -w + 0.03), 0.004), frame)
    else:
        assert kind == "frame", kind
        shrink = 0.7 if round_top else 1.0
        u, w, r = x * shrink - 0.02, z * shrink - 0.02, 0.28 * thick
        loop = pipe([(u, top, -w), (u, r, -w), (u, r, w), (u, top, w)], r, 0.02, 6)
        d.add("leg", loop.with_mirror() + rod((-u, top - r, 0), (u, top - r, 0), r, sides=6), frame)
        d.add("stretcher", rod((-u, r, -w), (u, r, -w), r, sides=6), frame)


def _table_storage(d: Designer, x: float, z: float, top: float, body: Material) -> None:
    """A desk's drawers under its top: one pedestal, two, or a shallow row."""
    metal = d.material(METAL)
    style = d.choice(
        "drawers",
        {"one": "with a drawer pedestal", "both": "with drawers on both sides", "row": "with a row of drawers"},
    )
    rows = 1 if style == "row" else d.integer("drawer_rows", 2, 4)
    tall = d.uniform("drawer_height", 0.1, 0.15) if style == "row" else 0.86 * top
    wide = 2 * x - 0.12 if style == "row" else d.uniform("drawer_width", 0.28, 0.42)
    columns = 3 if style == "row" else 1
    spots = {"one": [x - wide / 2 - 0.03], "both": [x - wide / 2 - 0.03, wide / 2 + 0.03 - x], "row": [0.0]}[style]
    each, pitch = wide / columns, tall / rows
    pull = handle(d.choice("handle", ["knob", "bar", "cup"]), min(0.13, 0.5 * pitch))
    for spot in spots:
        d.add("drawer", block((spot - wide / 2, spot + wide / 2), (top - tall, top + 0.001), (-0.9 * z, 0.9 * z)), body)
        faces, pulls = [], []
        for i in range(columns):
            for j in range(rows):
                middle = (spot + (i + 0.5 - columns / 2) * each, top - (j + 0.5) * pitch)
                faces.append(box(each - 0.015, pitch - 0.015, 0.02).move(*middle, 0.9 * z + 0.004))
                pulls.append(pull.move(*middle, 0.9 * z + 0.014))
        d.add("drawer", merge(faces), body)
        d.add("handle", merge(pulls), metal)


def table(d: Designer) -> None:
    """Dining, coffee, side, console and bar tables and desks: 4 outlines of top on 5 supports."""
    use = d.choice("use", TABLE_PHRASES, weights=[0.28, 0.2, 0.14, 0.12, 0.16, 0.1])
    (low, high), (short, long) = TABLES[use]
    shape = "rectangle" if use == "desk" else d.choice("top", TOPS, weights=[0.4, 0.36, 0.12, 0.12])
    supports, odds = SUPPORTS, [0.46, 0.14, 0.2, 0.2]
    if use != "desk":  # its drawers leave no room for a column
        supports, odds = SUPPORTS | {"pedestal": "on a pedestal"}, [0.4, 0.13, 0.11, 0.16, 0.2]
    kind = d.choice("support", supports, weights=odds)
    height, length = d.uniform("height", low, high), d.uniform("length", short, long)
    ratio = {"console": (0.26, 0.38), "desk": (0.42, 0.6), "side": (0.7, 1.0), "bar": (0.6, 1.0)}.get(use, (0.48, 1.0))
    depth = length * d.uniform("depth_ratio", *ratio)
    if kind == "pedestal" and use != "console":
        depth = max(depth, 0.75 * length)  # one column cannot carry a long top
    thick, overhang = d.uniform("top_thickness", 0.016, 0.06), d.uniform("overhang", 0.01, 0.09)
    glass = (
        use not in ("desk", "console")
        and d.choice("surface", {"solid": "", "glass": "with a glass top"}, weights=[0.85, 0.15]) == "glass"
    )
    frame = d.material(METAL) if kind == "frame" else d.material(WOOD, PAINT, METAL)
    if glass:
        slab = d.material(GLASS)
    else:
        slab = frame if d.choice("finish", ["one", "two"]) == "one" else d.material(WOOD, PAINT, STONE)
    under = height - thick
    d.add("top", plate(_top_outline(d, shape, length, depth), under, height, d.uniform("edge", 0.004, 0.03)), slab)
    x, z = length / 2 - overhang, depth / 2 - overhang
    rounded = shape in ("oval", "octagon")
    _table_support(d, kind, x, z, under + 0.002, rounded, frame)
    if use == "desk":
        _table_storage(d, x, z, under, frame)
    elif (
        kind in ("legs", "frame", "panels")
        and d.choice("shelf", {"none": "", "shelf": "with a lower shelf"}) == "shelf"
    ):
        level, shrink = d.uniform("shelf_height", 0.2, 0.5) * under, 0.7 if rounded else 1.0
        d.add(
            "shelf",
            block((-x * shrink, x * shrink), (level, level + 0.02), (-0.97 * z * shrink, 0.97 * z * shrink)),
            frame,
        )
    settle(d)


BUILDERS = {"table": table}

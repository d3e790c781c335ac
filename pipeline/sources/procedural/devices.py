"""Laptops and displays (monitors and televisions)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pipeline.mesh import Floats, Material
from pipeline.sources.procedural import geometry as g
from pipeline.sources.procedural.designer import GLASS, METAL, PAINT, PLASTIC, RUBBER, WOOD, Designer, Finish
from pipeline.sources.procedural.geometry import Geometry

LIT: dict[str, Finish] = {
    "blue picture": ("4f8fd0", 0.0, 0.3), "white picture": ("e8ecf0", 0.0, 0.3), "green picture": ("6fae7a", 0.0, 0.3),
    "orange picture": ("d99a5b", 0.0, 0.3),
}
CASE = {**PLASTIC, **METAL}
Piece = tuple[str, Geometry, Material]


def _copies(piece: Geometry, offsets: ArrayLike) -> Geometry:
    """`piece` once at each of the offsets [K, 3]."""
    moves = np.asarray(offsets, dtype=np.float64)
    vertices = (piece.vertices + moves[:, None]).reshape(-1, 3)
    faces = piece.faces + (np.arange(len(moves)) * len(piece.vertices))[:, None, None]
    return Geometry(vertices, faces.reshape(-1, 3))


def _plate(width: float, height: float, depth: float, radius: float) -> Geometry:
    """A flat slab lying in xz with rounded corners, centred at the origin, `height` thick."""
    return g.extrude(g.rounded_rectangle(width, depth, radius, 4), height).rotate("x", -90)


def _frame(width: float, height: float, depth: float, bezel: float, chin: float, radius: float) -> Geometry:
    """An upright rim around a screen, centred at the origin; `chin` is its lower edge."""
    hole = g.rounded_rectangle(width - 2 * bezel, height - bezel - chin, 0.3 * radius, 2) + [0, 0.5 * (chin - bezel)]
    return g.extrude(g.rounded_rectangle(width, height, radius, 4), depth, [hole])


def _keyboard(d: Designer, width: float, depth: float, top: float) -> list[Piece]:
    """Keys, and what moves the pointer, on a deck at height `top`; the hinge is at -z."""
    rows, columns = d.integer("num_key_rows", 4, 6), d.integer("num_key_columns", 10, 14)
    pointing = d.choice("pointing", {"touchpad": "", "buttons": "with buttons below its touchpad", "stick": "with a pointing stick"},
                        (0.55, 0.25, 0.2))
    area_w, area_d = width * d.uniform("keyboard_width", 0.76, 0.94), depth * d.uniform("keyboard_depth", 0.4, 0.55)
    start = -0.5 * depth + depth * d.uniform("keyboard_offset", 0.07, 0.16)
    pad = d.choice("keypad", {"none": "", "keypad": "with a numeric keypad", "speakers": "with speakers beside the keys"}, (0.5, 0.28, 0.22))
    main_w = area_w * (1.0 if pad == "none" else 0.78 if pad == "keypad" else 0.84)
    shift = -0.5 * (area_w - main_w) if pad == "keypad" else 0.0
    pitch_x, pitch_z, rise = main_w / columns, area_d / rows, 0.011 * depth
    x = (np.arange(columns) - (columns - 1) / 2) * pitch_x + shift
    z = start + (np.arange(rows) + 0.5) * pitch_z
    last = np.array([c for c in range(columns) if not columns // 4 <= c < columns - columns // 3])
    grid = [(a, top + 0.5 * rise, b) for b in z[:-1] for a in x] + [(x[c], top + 0.5 * rise, z[-1]) for c in last]
    key = g.box(0.78 * pitch_x, 2 * rise, 0.76 * pitch_z)
    space = g.box((columns - columns // 3 - columns // 4 - 0.2) * pitch_x, 2 * rise, 0.76 * pitch_z)
    keys = _copies(key, grid) + space.move(0.5 * (x[columns // 4] + x[columns - columns // 3 - 1]), top + 0.5 * rise, z[-1])
    finish = d.material(PLASTIC)
    if pad == "keypad":
        extra = 0.5 * area_w - 0.17 * area_w * (np.array([0, 1, 2]) + 0.5) / 3
        keys = keys + _copies(g.box(0.045 * area_w, 2 * rise, 0.76 * pitch_z), [(a, top + 0.5 * rise, b) for b in z for a in extra])
    pieces: list[Piece] = [("key", keys, finish)]
    if pad == "speakers":
        strip = g.box(0.05 * area_w, rise, area_d).move(0.47 * area_w, top, start + 0.5 * area_d)
        pieces.append(("speaker", strip.with_mirror(), d.material(RUBBER, METAL)))
    free = 0.5 * depth - (start + area_d)
    size, high = width * d.uniform("touchpad_width", 0.22, 0.45), free * d.uniform("touchpad_depth", 0.5, 0.8)
    middle = 0.5 * depth - 0.5 * free
    metal = d.material(PLASTIC, METAL)
    if pointing == "buttons":
        pieces.append(("touchpad", g.box(size, rise, 0.68 * high).move(shift, top, middle - 0.16 * high), metal))
        button = g.box(0.47 * size, 1.6 * rise, 0.24 * high)
        pieces.append(("button", _copies(button, [(shift + s * 0.25 * size, top, middle + 0.36 * high) for s in (-1, 1)]), d.material(PLASTIC, METAL)))
    else:
        pieces.append(("touchpad", g.box(size, rise, high).move(shift, top, middle), metal))
    if pointing == "stick":
        nub = g.cylinder(0.22 * pitch_x, 4 * rise, segments=10).move(0.5 * (x[columns // 2] + x[columns // 2 - 1]), top + rise, z[rows // 2])
        pieces.append(("pointing stick", nub, d.material(RUBBER, PAINT)))
    return pieces


def _lid(d: Designer, width: float, height: float, thick: float, corner: float, finish: Material) -> list[Piece]:
    """The screen half, standing on the origin with the screen towards +z and its back plane at z = -thick."""
    bezel, chin = width * d.uniform("bezel", 0.012, 0.06), height * d.uniform("chin", 0.03, 0.12)
    middle = 0.5 * height
    back = g.extrude(g.rounded_rectangle(width, height, corner, 4), 0.6 * thick).move(y=middle, z=-0.7 * thick)
    rim = _frame(width, height, 0.55 * thick, bezel, chin, corner).move(y=middle, z=-0.265 * thick)
    lit = d.choice("screen", {"off": "", "on": "switched on"}, (0.5, 0.5)) == "on"
    glass = g.box(width - 1.6 * bezel, height - 0.8 * (bezel + chin), 0.2 * thick).move(y=middle + 0.5 * (chin - bezel), z=-0.36 * thick)
    pieces: list[Piece] = [("lid", back, finish), ("bezel", rim, d.material(PLASTIC) if d.rng.random() < 0.6 else finish),
                           ("screen", glass, d.material(LIT) if lit else d.material({"dark glass": GLASS["dark glass"]}))]
    mark = d.choice("emblem", ["none", "disc", "bar"], (0.4, 0.35, 0.25))
    if mark == "disc":
        pieces.append(("emblem", g.cylinder(0.06 * width, 0.4 * thick, segments=18).rotate("x", 90).move(y=middle, z=-thick), d.material(CASE)))
    elif mark == "bar":
        pieces.append(("emblem", g.box(0.3 * width, 0.05 * height, 0.4 * thick).move(y=0.75 * height, z=-thick), d.material(CASE)))
    return pieces


def laptop(d: Designer) -> None:
    """A laptop computer: opened by any angle, or folded over to a tent."""
    width = d.uniform("width", 0.25, 0.42)
    depth = width * d.uniform("aspect", 0.6, 0.78)
    style = d.choice("body", {"slab": "", "wedge": "with a wedge-shaped body", "rugged": "with thick bumpers", "thick": "with a thick body"},
                     (0.35, 0.25, 0.18, 0.22))
    thick = d.uniform("thickness", 0.012, 0.022) * (1.9 if style in ("rugged", "thick") else 1.0)
    corner = width * d.uniform("corner", 0.01, 0.06)
    lid_thick = thick * d.uniform("lid_thickness", 0.35, 0.6)
    finish = d.material(PLASTIC, METAL, PAINT)
    base = _plate(width, thick, depth, corner).move(y=-0.5 * thick)
    if style == "wedge":
        front = d.uniform("front_thickness", 0.25, 0.6)

        def thin_out(v: Floats) -> Floats:
            v[:, 1] *= 1 - (1 - front) * (v[:, 2] / depth + 0.5)
            return v

        base = base.warp(thin_out)
    pieces: list[Piece] = [("base", base, finish), *_keyboard(d, width, depth, 0.0)]
    trim = d.material(RUBBER, CASE)
    if style == "rugged":
        block = g.box(0.1 * width, 1.25 * thick, 0.1 * width, 0.2 * thick)
        corners = [(a * 0.48 * width, -0.5 * thick, b * (0.5 * depth - 0.02 * width)) for a in (-1, 1) for b in (-1, 1)]
        pieces.append(("bumper", _copies(block, corners), trim))
        if d.choice("carrier", {"none": "", "handle": "with a carrying handle"}) == "handle":
            z, y = 0.5 * depth, -0.5 * thick
            path = [(-0.2 * width, y, z - 0.01), (-0.18 * width, y, z + 0.035), (0.18 * width, y, z + 0.035), (0.2 * width, y, z - 0.01)]
            pieces.append(("handle", g.tube(path, 0.3 * thick, 8), trim))
    ports = [(s * 0.5 * width, -0.45 * thick, depth * (-0.3 + 0.14 * i)) for s in (-1, 1) for i in range(d.integer("num_ports", 1, 4))]
    pieces.append(("port", _copies(g.box(0.004, 0.3 * thick, 0.06 * depth), ports), d.material(RUBBER)))
    hinge = 0.42 * thick
    barrel = d.choice("hinge", {"two": "", "one": "with a single wide hinge"}, (0.6, 0.4))
    span = [(-0.36, 0.14), (0.36, 0.14)] if barrel == "two" else [(0.0, 0.7)]
    back = -0.5 * depth
    rods = [g.cylinder(hinge, w * width, segments=12).rotate("z", 90).move(x=x * width, y=0.0, z=back) for x, w in span]
    pieces.append(("hinge", rods[0] + rods[1] if len(rods) > 1 else rods[0], trim))
    pose = d.choice("pose", {"open": "", "wide": "opened wide", "narrow": "half closed", "tent": "folded into a tent"}, (0.55, 0.17, 0.16, 0.12))
    low, high = {"open": (92, 125), "wide": (128, 178), "narrow": (25, 80), "tent": (290, 320)}[pose]
    angle = d.uniform("opening", low, high)
    for part, piece, material in _lid(d, width, depth * 0.98, lid_thick, corner, finish):
        upright = piece.move(y=0.8 * hinge).rotate("x", 90 - angle)
        pieces.append((part, upright.move(y=0.3 * hinge, z=back), material))
    _stand_laptop(d, pieces, angle if pose == "tent" else 0.0)


def _stand_laptop(d: Designer, pieces: list[Piece], tent: float) -> None:
    """Add the pieces with the lowest point on y = 0 and the depth centred; a `tent` angle stands it on both free edges."""
    if tent:
        turn = 90 + 0.5 * (360 - tent)
        pieces = [(part, piece.rotate("x", turn).rotate("y", 180), material) for part, piece, material in pieces]
    points = np.concatenate([piece.vertices for _, piece, _ in pieces])
    y, z = -points[:, 1].min(), -0.5 * (points[:, 2].min() + points[:, 2].max())
    for part, piece, material in pieces:
        d.add(part, piece.move(y=y, z=z), material)


def _panel(width: float, height: float, depth: float, front: float) -> Geometry:
    """An upright slab in many slices along x, so that it can be bent; its front face lies at z = `front`."""
    x = np.linspace(-0.5 * width, 0.5 * width, 13)
    corners = np.array([(-0.5, 0.0), (-0.5, -1.0), (0.5, -1.0), (0.5, 0.0)]) * [height, depth]
    return g.loft([[(a, y, z + front) for y, z in corners] for a in x])


def _flat_screen(d: Designer, width: float, height: float, finish: Material, curved: bool) -> list[Piece]:
    """A flat or bent panel about the origin, screen towards +z."""
    depth = width * d.uniform("panel_depth", 0.02, 0.07)
    bezel, chin = 0.5 * height * d.uniform("bezel", 0.02, 0.12), height * d.uniform("chin", 0.02, 0.14)
    lit = d.choice("screen", {"off": "", "on": "switched on"}, (0.5, 0.5)) == "on"
    glass = d.material(LIT) if lit else d.material({"dark glass": GLASS["dark glass"]})
    w, h, y = width - 2 * bezel, height - bezel - chin, 0.5 * (chin - bezel)
    proud = 0.012 * width
    strips = [_panel(width, bezel, depth, proud).move(y=0.5 * height - 0.5 * bezel), _panel(width, chin, depth, proud).move(y=0.5 * (chin - height))]
    sides = g.box(bezel, height, depth).move(x=0.5 * (width - bezel), z=proud - 0.5 * depth).with_mirror()
    pieces: list[Piece] = [("frame", strips[0] + strips[1] + sides, finish), ("screen", _panel(w + bezel, h + 0.5 * min(bezel, chin), 0.6 * depth, 0).move(y=y), glass)]
    rear = d.choice("rear", ["flat", "bulged"], (0.5, 0.5))
    bulge = depth * d.uniform("rear_bulge", 0.8, 2.2) if rear == "bulged" else 0.4 * depth
    shell = g.loft([[(sx * s * width / 2, sy * s * height / 2, z) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
                    for s, z in ((0.94, -0.5 * depth), (0.9, -depth), (0.45, -0.6 * depth - bulge))])
    pieces.append(("back", shell, finish if d.rng.random() < 0.5 else d.material(PLASTIC)))
    if d.choice("buttons", {"none": "", "row": "with buttons below its screen"}, (0.6, 0.4)) == "row":
        offsets = [(0.3 * width + i * 0.035 * width, 0.5 * (chin - height), proud) for i in range(4)]
        pieces.append(("button", _copies(g.box(0.018 * width, 0.4 * chin, 0.012 * width), offsets), d.material(PLASTIC, METAL)))
    if curved:
        bend = width * d.uniform("bend", 0.06, 0.15)
        pieces = [(part, piece.warp(lambda v: v + np.stack([0 * v[:, 0], 0 * v[:, 0], bend * (2 * v[:, 0] / width) ** 2], -1)), material)
                  for part, piece, material in pieces]
    return pieces


def _tube_set(d: Designer, width: float, height: float, finish: Material) -> list[Piece]:
    """An old set with a picture tube: a deep body about the origin, screen towards +z."""
    length = width * d.uniform("tube_length", 0.6, 1.0)
    bezel, chin = height * d.uniform("bezel", 0.04, 0.1), height * d.uniform("chin", 0.06, 0.24)
    panel = d.choice("controls", {"below": "with controls below its screen", "beside": "with knobs beside its screen"})
    low, right = (chin, bezel) if panel == "below" else (bezel, 1.4 * chin)
    t = np.array([1.0, 1.0, 0.94, 0.62, 0.56])
    z = np.array([0.0, -0.16, -0.3, -0.75, -1.0]) * length
    corners = g.rounded_rectangle(width, height, 0.05 * width, 3)
    shell = g.loft([[(s * x, s * y, b) for x, y in corners] for s, b in zip(t, z, strict=True)])
    w, h = width - bezel - right, height - bezel - low
    x, y = 0.5 * (bezel - right), 0.5 * (low - bezel)
    hole = g.rounded_rectangle(w, h, 0.08 * w, 4) + [x, y]
    rim = g.extrude(corners, 0.07 * width, [hole]).move(z=0.025 * width)
    lit = d.choice("screen", {"off": "", "on": "switched on"}, (0.5, 0.5)) == "on"
    outline = g.rounded_rectangle(1.02 * w, 1.02 * h, 0.08 * w, 4)
    rings = [[(s * a, s * b, c * width) for a, b in outline] for s, c in ((1.0, -0.02), (1.0, 0.02), (0.7, 0.038), (0.35, 0.046))]
    glass = g.loft(rings).move(x, y)
    pieces: list[Piece] = [("frame", rim, finish), ("back", shell, finish if d.rng.random() < 0.5 else d.material(PLASTIC, WOOD)),
                           ("screen", glass, d.material(LIT) if lit else d.material({"dark glass": GLASS["dark glass"]}))]
    knob = g.cylinder(0.3 * min(low, right) if panel == "below" else 0.26 * right, 0.04 * width, segments=12).rotate("x", 90)
    spots = [(0.5 * width - 0.5 * right, v * height, 0.07 * width) for v in (0.3, 0.12)] if panel == "beside" else \
            [(v * width, 0.5 * (low - height), 0.07 * width) for v in (-0.3, 0.3)]
    pieces.append(("button", _copies(knob, spots), d.material(PLASTIC, METAL)))
    if d.choice("antenna", {"none": "", "ears": "with two antennas"}, (0.6, 0.4)) == "ears":
        spread, reach = np.radians(d.uniform("antenna_angle", 20, 55)), height * d.uniform("antenna_length", 0.4, 0.9)
        base = (0, 0.5 * height - 0.01, -0.2 * length)
        tips = [(s * reach * np.sin(spread), 0.5 * height + reach * np.cos(spread), -0.2 * length) for s in (-1, 1)]
        ears = g.rod(base, tips[0], 0.01 * height, 0.006 * height, 6) + g.rod(base, tips[1], 0.01 * height, 0.006 * height, 6)
        pieces.append(("antenna", ears + g.ellipsoid(0.07 * width, 0.06 * width, 0.07 * width, 10).move(*base), d.material(METAL, PLASTIC)))
    return pieces


def _stand(d: Designer, width: float, height: float, lift: float, deep: bool) -> tuple[str, list[Piece]]:
    """What carries the panel, whose middle is at y = lift + height / 2; the kind drawn and its pieces."""
    kinds = {"disc": "on a round foot", "slab": "on a flat foot", "two feet": "on two feet", "vee": "on a V-shaped foot", "arm": "on a bent arm",
             "tripod": "on tall legs", "wall": "mounted on a wall"}
    kind = d.choice("stand", kinds, (0.16, 0.2, 0.17, 0.13, 0.1, 0.11, 0.13))
    metal = d.material(METAL, PLASTIC, WOOD)
    reach = width * d.uniform("foot_size", 0.16, 0.3)
    t, middle = 0.025 * height + 0.006, lift + 0.5 * height
    back = -0.12 * width if deep else -0.045 * width
    if kind == "wall":
        plate = g.box(0.4 * width, 0.4 * height, 0.02 * width).move(y=middle, z=(-1.05 if deep else -0.16) * width)
        bars = g.box(0.05 * width, 0.1 * height, 0.14 * width).move(x=0.12 * width, y=middle, z=(-0.99 if deep else -0.1) * width).with_mirror()
        return kind, [("mount", plate + bars, metal)]
    if kind in ("two feet", "tripod"):
        x, splay = width * d.uniform("foot_position", 0.22, 0.42), reach * (0.9 if kind == "tripod" else 0.7)
        bottom = lift + 0.06 * height
        legs = [g.rod((x, bottom, back), (x * (1.15 if kind == "tripod" else 1.0), 0, back + s * splay), t, sides=8) for s in (-1, 1)]
        if kind == "two feet":
            foot = g.box(2 * t, 0.02 * height + 0.004, 2.1 * splay, 0.2 * t).move(x=x, y=0.01 * height + 0.002, z=back)
            return kind, [("foot", (foot + g.box(1.6 * t, bottom, 2.6 * t).move(x=x, y=0.5 * bottom, z=back)).with_mirror(), metal)]
        return kind, [("leg", (legs[0] + legs[1]).with_mirror(), metal)]
    neck_w = width * d.uniform("neck_width", 0.04, 0.22)
    top = lift + 0.4 * height
    if kind == "arm":
        path = [(0, 0.01, back - 0.1 * width), (0, 0.55 * top, back - 0.16 * width), (0, top, back - 0.1 * width), (0, top, back)]
        neck = g.tube(path, 0.6 * t + 0.08 * neck_w, 8)
        return kind, [("neck", neck, metal), ("foot", _plate(1.2 * reach, t, reach, 0.2 * reach).move(y=0.5 * t, z=back - 0.08 * width), metal)]
    neck = g.box(neck_w, top, 1.4 * t, 0.2 * t).move(y=0.5 * top, z=back - 0.02 * width)
    if kind == "vee":
        legs = [g.rod((0, 0.6 * t, back - 0.04 * width), (s * 1.6 * reach, 0.6 * t, back + 1.1 * reach), 0.6 * t, sides=8) for s in (-1, 1)]
        return kind, [("neck", neck, metal), ("foot", legs[0] + legs[1], metal)]
    foot = g.cylinder(reach, t, 0.92 * reach, 24).move(y=0.5 * t, z=back) if kind == "disc" else _plate(2.4 * reach, t, 1.3 * reach, 0.2 * reach).move(y=0.5 * t, z=back)
    return kind, [("neck", neck, metal), ("foot", foot, metal)]


def display(d: Designer) -> None:
    """A computer monitor or television on its stand, or without one."""
    kind = d.choice("kind", {"flat": "with a flat panel", "curved": "with a curved panel", "tube": "with a deep picture tube", "upright": "turned upright"},
                    (0.45, 0.18, 0.25, 0.12))
    aspect = d.uniform("aspect", *{"flat": (1.25, 1.9), "curved": (1.7, 2.6), "tube": (1.05, 1.45), "upright": (0.55, 0.8)}[kind])
    width = d.uniform("width", 0.4, 1.3) if aspect > 1 else d.uniform("width", 0.28, 0.5)
    height = width / aspect
    finish = d.material(PLASTIC, METAL, WOOD)
    lift = height * d.uniform("lift", 0.1, 0.4)
    pieces = _tube_set(d, width, height, finish) if kind == "tube" else _flat_screen(d, width, height, finish, kind == "curved")
    stand, carried = _stand(d, width, height, lift, kind == "tube")
    lift = height * (0.3 + d.uniform("extra_lift", 0.0, 0.5)) if stand == "wall" else lift
    tilt = d.uniform("tilt", -4, 12) * (kind != "tube")
    for part, piece, material in pieces:
        d.add(part, piece.rotate("x", -tilt).move(y=lift + 0.5 * height), material)
    for part, piece, material in carried:
        d.add(part, piece, material)
    if d.choice("speakers", {"none": "", "bar": "with a sound bar", "sides": "with speakers at its sides"}, (0.68, 0.16, 0.16)) != "none":
        mesh = d.material(RUBBER, PLASTIC)
        if d.choices["speakers"] == "bar":
            d.add("speaker", g.box(0.7 * width, 0.1 * height, 0.06 * width, 0.012 * width).move(y=lift - 0.06 * height, z=0.02 * width), mesh)
        else:
            tower = g.box(0.11 * width, 0.9 * height, 0.07 * width, 0.01 * width).move(x=0.56 * width, y=lift + 0.5 * height)
            d.add("speaker", tower.with_mirror(), mesh)
    points = np.concatenate([p.vertices for p in d.primitives])
    shift = np.array([0, points[:, 1].min(), 0.5 * (points[:, 2].min() + points[:, 2].max())])
    for p in d.primitives:
        p.vertices[:] -= shift


BUILDERS = {"laptop": laptop, "display": display}

"""Laptops, and the helpers that screens share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, PLASTIC, RUBBER, Designer, Finish
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Floats, Material

LIT: dict[str, Finish] = {
    "blue picture": ("4f8fd0", 0.0, 0.3),
    "white picture": ("e8ecf0", 0.0, 0.3),
    "green picture": ("6fae7a", 0.0, 0.3),
    "orange picture": ("d99a5b", 0.0, 0.3),
}
CASE = {**PLASTIC, **METAL}
Piece = tuple[str, Geometry, Material]


def copies(piece: Geometry, offsets: ArrayLike) -> Geometry:
    """`piece` once at each of the offsets [K, 3]."""
    moves = np.asarray(offsets, dtype=np.float64)
    vertices = (piece.vertices + moves[:, None]).reshape(-1, 3)
    faces = piece.faces + (np.arange(len(moves)) * len(piece.vertices))[:, None, None]
    return Geometry(vertices, faces.reshape(-1, 3))


def plate(width: float, height: float, depth: float, radius: float) -> Geometry:
    """A flat slab lying in xz with rounded corners, centred at the origin, `height` thick."""
    return g.extrude(g.rounded_rectangle(width, depth, radius, 4), height).rotate("x", -90)


def _frame(width: float, height: float, depth: float, bezel: float, chin: float, radius: float) -> Geometry:
    """An upright rim around a screen, centred at the origin; `chin` is its lower edge."""
    hole = g.rounded_rectangle(width - 2 * bezel, height - bezel - chin, 0.3 * radius, 2) + np.array(
        [0, 0.5 * (chin - bezel)]
    )
    return g.extrude(g.rounded_rectangle(width, height, radius, 4), depth, [hole])


def _keyboard(d: Designer, width: float, depth: float, top: float) -> list[Piece]:
    """Keys, and what moves the pointer, on a deck at height `top`; the hinge is at -z."""
    rows, columns = d.integer("num_key_rows", 4, 6), d.integer("num_key_columns", 10, 14)
    pointing = d.choice(
        "pointing",
        {"touchpad": "", "buttons": "with buttons below its touchpad", "stick": "with a pointing stick"},
        (0.55, 0.25, 0.2),
    )
    area_w, area_d = width * d.uniform("keyboard_width", 0.76, 0.94), depth * d.uniform("keyboard_depth", 0.4, 0.55)
    start = -0.5 * depth + depth * d.uniform("keyboard_offset", 0.07, 0.16)
    pad = d.choice(
        "keypad",
        {"none": "", "keypad": "with a numeric keypad", "speakers": "with speakers beside the keys"},
        (0.5, 0.28, 0.22),
    )
    main_w = area_w * (1.0 if pad == "none" else 0.78 if pad == "keypad" else 0.84)
    shift = -0.5 * (area_w - main_w) if pad == "keypad" else 0.0
    pitch_x, pitch_z, rise = main_w / columns, area_d / rows, 0.011 * depth
    x = (np.arange(columns) - (columns - 1) / 2) * pitch_x + shift
    z = start + (np.arange(rows) + 0.5) * pitch_z
    last = np.array([c for c in range(columns) if not columns // 4 <= c < columns - columns // 3])
    grid = [(a, top + 0.5 * rise, b) for b in z[:-1] for a in x] + [(x[c], top + 0.5 * rise, z[-1]) for c in last]
    key = g.box(0.78 * pitch_x, 2 * rise, 0.76 * pitch_z)
    space = g.box((columns - columns // 3 - columns // 4 - 0.2) * pitch_x, 2 * rise, 0.76 * pitch_z)
    keys = copies(key, grid) + space.move(
        0.5 * (x[columns // 4] + x[columns - columns // 3 - 1]), top + 0.5 * rise, z[-1]
    )
    finish = d.material(PLASTIC)
    if pad == "keypad":
        extra = 0.5 * area_w - 0.17 * area_w * (np.array([0, 1, 2]) + 0.5) / 3
        keys = keys + copies(
            g.box(0.045 * area_w, 2 * rise, 0.76 * pitch_z), [(a, top + 0.5 * rise, b) for b in z for a in extra]
        )
    pieces: list[Piece] = [("key", keys, finish)]
    if pad == "speakers":
        strip = g.box(0.05 * area_w, rise, area_d).move(0.47 * area_w, top, start + 0.5 * area_d)
        pieces.append(("speaker", strip.with_mirror(), d.material(RUBBER, METAL)))
    free = 0.5 * depth - (start + area_d)
    size, high = width * d.uniform("touchpad_width", 0.22, 0.45), free * d.uniform("touchpad_depth", 0.5, 0.8)
    middle = 0.5 * depth - 0.5 * free
    metal = d.material(PLASTIC, METAL) if d.rng.random() < 0.5 else finish
    if pointing == "buttons":
        pieces.append(("touchpad", g.box(size, rise, 0.68 * high).move(shift, top, middle - 0.16 * high), metal))
        button = g.box(0.47 * size, 1.6 * rise, 0.24 * high)
        pieces.append(
            (
                "button",
                copies(button, [(shift + s * 0.25 * size, top, middle + 0.36 * high) for s in (-1, 1)]),
                d.material(PLASTIC, METAL),
            )
        )
    else:
        pieces.append(("touchpad", g.box(size, rise, high).move(shift, top, middle), metal))
    if pointing == "stick":
        nub = g.cylinder(0.22 * pitch_x, 4 * rise, segments=10).move(
            0.5 * (x[columns // 2] + x[columns // 2 - 1]), top + rise, z[rows // 2]
        )
        pieces.append(("pointing stick", nub, d.material(RUBBER, PAINT)))
    return pieces


def _lid(d: Designer, width: float, height: float, thick: float, corner: float, finish: Material) -> list[Piece]:
    """The screen half, standing on the origin with the screen towards +z and its back plane at z = -thick."""
    bezel, chin = width * d.uniform("bezel", 0.012, 0.06), height * d.uniform("chin", 0.03, 0.12)
    middle = 0.5 * height
    back = g.extrude(g.rounded_rectangle(width, height, corner, 4), 0.6 * thick).move(y=middle, z=-0.7 * thick)
    rim = _frame(width, height, 0.55 * thick, bezel, chin, corner).move(y=middle, z=-0.265 * thick)
    lit = d.choice("screen", {"off": "", "on": "switched on"}, (0.5, 0.5)) == "on"
    glass = g.box(width - 1.6 * bezel, height - 0.8 * (bezel + chin), 0.2 * thick).move(
        y=middle + 0.5 * (chin - bezel), z=-0.36 * thick
    )
    pieces: list[Piece] = [
        ("lid", back, finish),
        ("bezel", rim, d.material(PLASTIC) if d.rng.random() < 0.6 else finish),
        ("screen", glass, d.material(LIT) if lit else d.material({"dark glass": GLASS["dark glass"]})),
    ]
    mark = d.choice("emblem", ["none", "disc", "bar"], (0.4, 0.35, 0.25))
    if mark == "disc":
        pieces.append(
            (
                "emblem",
                g.cylinder(0.06 * width, 0.4 * thick, segments=18).rotate("x", 90).move(y=middle, z=-thick),
                d.material(CASE),
            )
        )
    elif mark == "bar":
        pieces.append(
            ("emblem", g.box(0.3 * width, 0.05 * height, 0.4 * thick).move(y=0.75 * height, z=-thick), d.material(CASE))
        )
    return pieces


def _edges(d: Designer, width: float, depth: float, thick: float, hinge: float, trim: Material) -> list[Piece]:
    """Ports along both sides and the hinge's barrels, of radius `hinge`."""
    num_ports = d.integer("num_ports", 1, 4)
    ports = [(s * 0.5 * width, -0.45 * thick, depth * (-0.3 + 0.14 * i)) for s in (-1, 1) for i in range(num_ports)]
    pieces: list[Piece] = [("port", copies(g.box(0.004, 0.3 * thick, 0.06 * depth), ports), d.material(RUBBER))]
    barrel = d.choice("hinge", {"two": "", "one": "with a single wide hinge"}, (0.6, 0.4))
    span = [(-0.36, 0.14), (0.36, 0.14)] if barrel == "two" else [(0.0, 0.7)]
    rods = [
        g.cylinder(hinge, w * width, segments=12).rotate("z", 90).move(x=x * width, y=0.0, z=-0.5 * depth)
        for x, w in span
    ]
    pieces.append(("hinge", rods[0] + rods[1] if len(rods) > 1 else rods[0], trim))
    return pieces


def laptop(d: Designer) -> None:
    """A laptop computer: opened by any angle, or folded over to a tent."""
    width = d.uniform("width", 0.25, 0.42)
    depth = width * d.uniform("aspect", 0.6, 0.78)
    style = d.choice(
        "body",
        {"slab": "", "wedge": "with a wedge-shaped body", "rugged": "with thick bumpers", "thick": "with a thick body"},
        (0.35, 0.25, 0.18, 0.22),
    )
    thick = d.uniform("thickness", 0.012, 0.022) * (1.9 if style in ("rugged", "thick") else 1.0)
    corner = width * d.uniform("corner", 0.01, 0.06)
    lid_thick = thick * d.uniform("lid_thickness", 0.35, 0.6)
    finish = d.material(PLASTIC, METAL, PAINT)
    base = plate(width, thick, depth, corner).move(y=-0.5 * thick)
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
        pieces.append(("bumper", copies(block, corners), trim))
        if d.choice("carrier", {"none": "", "handle": "with a carrying handle"}) == "handle":
            z, y = 0.5 * depth, -0.5 * thick
            path = [
                (-0.2 * width, y, z - 0.01),
                (-0.18 * width, y, z + 0.035),
                (0.18 * width, y, z + 0.035),
                (0.2 * width, y, z - 0.01),
            ]
            pieces.append(("handle", g.tube(path, 0.3 * thick, 8), trim))
    hinge = 0.42 * thick
    pieces += _edges(d, width, depth, thick, hinge, trim)
    back = -0.5 * depth
    pose = d.choice(
        "pose",
        {"open": "", "wide": "opened wide", "narrow": "half closed", "tent": "folded into a tent"},
        (0.55, 0.17, 0.16, 0.12),
    )
    low, high = {"open": (92, 125), "wide": (128, 178), "narrow": (40, 80), "tent": (290, 320)}[pose]
    angle = d.uniform("opening", low, high)
    for part, piece, material in _lid(d, width, depth * 0.98, lid_thick, corner, finish):
        upright = piece.move(y=0.8 * hinge).rotate("x", 90 - angle)
        pieces.append((part, upright.move(y=0.3 * hinge, z=back), material))
    _stand_laptop(d, pieces, angle if pose == "tent" else 0.0)


def _stand_laptop(d: Designer, pieces: list[Piece], tent: float) -> None:
    """Add the pieces with the lowest point on y = 0 and the depth centred; a `tent` angle stands it on its edges."""
    if tent:
        turn = 90 + 0.5 * (360 - tent)
        pieces = [(part, piece.rotate("x", turn).rotate("y", 180), material) for part, piece, material in pieces]
    points = np.concatenate([piece.vertices for _, piece, _ in pieces])
    y, z = -points[:, 1].min(), -0.5 * (points[:, 2].min() + points[:, 2].max())
    for part, piece, material in pieces:
        d.add(part, piece.move(y=y, z=z), material)


BUILDERS = {"laptop": laptop}

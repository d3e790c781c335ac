"""Monitors and televisions."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.devices import LIT, Piece, copies, plate
from recon.pipeline.procedural.categories.joinery import settle
from recon.pipeline.procedural.designer import GLASS, METAL, PLASTIC, RUBBER, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Material


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
    strips = [
        _panel(width, bezel, depth, proud).move(y=0.5 * height - 0.5 * bezel),
        _panel(width, chin, depth, proud).move(y=0.5 * (chin - height)),
    ]
    side = g.box(bezel, 0.995 * height, 0.9 * depth).move(
        x=0.5 * (width - bezel) - 0.1 * proud, z=0.75 * proud - 0.5 * depth
    )
    pieces: list[Piece] = [
        ("frame", strips[0] + strips[1] + side.with_mirror(), finish),
        ("screen", _panel(w + bezel, h + 0.5 * min(bezel, chin), 0.45 * depth, 0).move(y=y), glass),
    ]
    rear = d.choice("rear", ["flat", "bulged"], (0.5, 0.5))
    bulge = depth * d.uniform("rear_bulge", 0.8, 2.2) if rear == "bulged" else 0.4 * depth
    x = np.linspace(-1, 1, 11)
    shell = g.loft(
        [
            [
                (0.47 * width * a, 0.5 * height * b, c)
                for b, c in (
                    (-0.94, -0.5 * depth),
                    (-0.7, -depth - bulge * (1 - a**4)),
                    (0.55, -depth - bulge * (1 - a**4)),
                    (0.94, -0.5 * depth),
                )
            ]
            for a in x
        ]
    )
    pieces.append(("back", shell, finish if d.rng.random() < 0.5 else d.material(PLASTIC)))
    if d.choice("buttons", {"none": "", "row": "with buttons below its screen"}, (0.6, 0.4)) == "row":
        offsets = [(0.3 * width + i * 0.035 * width, 0.5 * (chin - height), proud) for i in range(4)]
        pieces.append(
            ("button", copies(g.box(0.018 * width, 0.4 * chin, 0.012 * width), offsets), d.material(PLASTIC, METAL))
        )
    if curved:
        bend = width * d.uniform("bend", 0.06, 0.15)
        pieces = [
            (
                part,
                piece.warp(lambda v: v + np.stack([0 * v[:, 0], 0 * v[:, 0], bend * (2 * v[:, 0] / width) ** 2], -1)),
                material,
            )
            for part, piece, material in pieces
        ]
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
    hole = g.rounded_rectangle(w, h, 0.08 * w, 4) + np.array([x, y])
    rim = g.extrude(corners, 0.07 * width, [hole]).move(z=0.025 * width)
    lit = d.choice("screen", {"off": "", "on": "switched on"}, (0.5, 0.5)) == "on"
    outline = g.rounded_rectangle(1.02 * w, 1.02 * h, 0.08 * w, 4)
    rings = [
        [(s * a, s * b, c * width) for a, b in outline]
        for s, c in ((1.0, -0.02), (1.0, 0.02), (0.7, 0.038), (0.35, 0.046))
    ]
    glass = g.loft(rings).move(x, y)
    pieces: list[Piece] = [
        ("frame", rim, finish),
        ("back", shell, finish if d.rng.random() < 0.5 else d.material(PLASTIC, WOOD)),
        ("screen", glass, d.material(LIT) if lit else d.material({"dark glass": GLASS["dark glass"]})),
    ]
    knob = g.cylinder(0.3 * min(low, right) if panel == "below" else 0.26 * right, 0.04 * width, segments=12).rotate(
        "x", 90
    )
    spots = (
        [(0.5 * width - 0.5 * right, v * height, 0.07 * width) for v in (0.3, 0.12)]
        if panel == "beside"
        else [(v * width, 0.5 * (low - height), 0.07 * width) for v in (-0.3, 0.3)]
    )
    pieces.append(("button", copies(knob, spots), d.material(PLASTIC, METAL)))
    if d.choice("antenna", {"none": "", "ears": "with two antennas"}, (0.6, 0.4)) == "ears":
        spread, reach = np.radians(d.uniform("antenna_angle", 20, 55)), height * d.uniform("antenna_length", 0.4, 0.9)
        base = (0, 0.5 * height - 0.01, -0.2 * length)
        tips = [(s * reach * np.sin(spread), 0.5 * height + reach * np.cos(spread), -0.2 * length) for s in (-1, 1)]
        ears = g.rod(base, tips[0], 0.01 * height, 0.006 * height, 6) + g.rod(
            base, tips[1], 0.01 * height, 0.006 * height, 6
        )
        pieces.append(
            (
                "antenna",
                ears + g.ellipsoid(0.07 * width, 0.06 * width, 0.07 * width, 10).move(*base),
                d.material(METAL, PLASTIC),
            )
        )
    return pieces


def _feet(
    d: Designer, width: float, height: float, lift: float, reach: float, back: float, tall: bool, metal: Material
) -> Piece:
    """Two feet under the panel's ends, or four splayed legs."""
    t = 0.025 * height + 0.006
    x, splay = width * d.uniform("foot_position", 0.22, 0.42), reach * (0.9 if tall else 0.7)
    bottom = lift + 0.06 * height
    if tall:
        legs = [g.rod((x, bottom, back + 0.3 * s * t), (1.15 * x, 0, back + s * splay), t, sides=8) for s in (-1, 1)]
        return "leg", (legs[0] + legs[1]).with_mirror(), metal
    foot = g.box(2 * t, 0.02 * height + 0.004, 2.1 * splay, 0.2 * t).move(x=x, y=0.01 * height + 0.002, z=back)
    post = g.box(1.6 * t, bottom, 2.6 * t).move(x=x, y=0.5 * bottom, z=back)
    return "foot", (foot + post).with_mirror(), metal


def _stand(d: Designer, width: float, height: float, lift: float, rear: float) -> list[Piece]:
    """What carries the panel, whose middle is at y = lift + height / 2 and whose rearmost point is at `rear`."""
    kinds = {
        "disc": "on a round foot",
        "slab": "on a flat foot",
        "two feet": "on two feet",
        "vee": "on a V-shaped foot",
        "arm": "on a bent arm",
        "tripod": "on tall legs",
        "wall": "mounted on a wall",
    }
    kind = d.choice("stand", kinds, (0.16, 0.2, 0.17, 0.13, 0.1, 0.11, 0.13))
    metal = d.material(METAL, PLASTIC, WOOD)
    reach = width * d.uniform("foot_size", 0.16, 0.3)
    t, middle = 0.025 * height + 0.006, lift + 0.5 * height
    back = -0.12 * width if rear < -0.4 * width else -0.045 * width
    if kind == "wall":
        board = g.box(0.4 * width, 0.4 * height, 0.02 * width).move(z=rear - 0.05 * width)
        bars = (
            g.box(0.05 * width, 0.1 * height, 0.065 * width).move(x=0.12 * width, z=rear - 0.02 * width).with_mirror()
        )
        return [("mount", (board + bars).move(y=middle), metal)]
    if kind in ("two feet", "tripod"):
        return [_feet(d, width, height, lift, reach, back, kind == "tripod", metal)]
    neck_w = width * d.uniform("neck_width", 0.04, 0.22)
    top = lift + 0.4 * height
    if kind == "arm":
        path = [
            (0, 0.01, back - 0.1 * width),
            (0, 0.55 * top, back - 0.16 * width),
            (0, top, back - 0.1 * width),
            (0, top, back),
        ]
        neck = g.tube(path, 0.6 * t + 0.08 * neck_w, 8)
        return [
            ("neck", neck, metal),
            ("foot", plate(1.2 * reach, t, reach, 0.2 * reach).move(y=0.5 * t, z=back - 0.08 * width), metal),
        ]
    neck = g.box(neck_w, top, 1.4 * t, 0.2 * t).move(y=0.5 * top, z=back - 0.02 * width)
    if kind == "vee":
        legs = [
            g.rod(
                (0.02 * s * reach, 0.6 * t, back - 0.04 * width),
                (s * 1.6 * reach, 0.6 * t, back + 1.1 * reach),
                0.6 * t,
                sides=8,
            )
            for s in (-1, 1)
        ]
        return [("neck", neck, metal), ("foot", legs[0] + legs[1], metal)]
    foot = (
        g.cylinder(reach, t, 0.92 * reach, 24).move(y=0.5 * t, z=back)
        if kind == "disc"
        else plate(2.4 * reach, t, 1.3 * reach, 0.2 * reach).move(y=0.5 * t, z=back)
    )
    return [("neck", neck, metal), ("foot", foot, metal)]


def display(d: Designer) -> None:
    """A computer monitor or television on its stand, or without one."""
    kind = d.choice(
        "kind",
        {
            "flat": "with a flat panel",
            "curved": "with a curved panel",
            "tube": "with a deep picture tube",
            "upright": "turned upright",
        },
        (0.45, 0.18, 0.25, 0.12),
    )
    aspect = d.uniform(
        "aspect", *{"flat": (1.25, 1.9), "curved": (1.7, 2.6), "tube": (1.05, 1.45), "upright": (0.55, 0.8)}[kind]
    )
    width = d.uniform("width", 0.4, 1.3) if aspect > 1 else d.uniform("width", 0.28, 0.5)
    height = width / aspect
    finish = d.material(PLASTIC, METAL, WOOD)
    lift = height * d.uniform("lift", 0.1, 0.4)
    pieces = (
        _tube_set(d, width, height, finish)
        if kind == "tube"
        else _flat_screen(d, width, height, finish, kind == "curved")
    )
    rear = min(float(piece.vertices[:, 2].min()) for _, piece, _ in pieces)
    carried = _stand(d, width, height, lift, rear)
    tilt = d.uniform("tilt", -4, 12) * (kind != "tube")
    for part, piece, material in pieces:
        d.add(part, piece.rotate("x", -tilt).move(y=lift + 0.5 * height), material)
    for part, piece, material in carried:
        d.add(part, piece, material)
    if (
        d.choice(
            "speakers",
            {"none": "", "bar": "with a sound bar", "sides": "with speakers at its sides"},
            (0.68, 0.16, 0.16),
        )
        != "none"
    ):
        mesh = d.material(RUBBER, PLASTIC)
        if d.choices["speakers"] == "bar":
            d.add(
                "speaker",
                g.box(0.7 * width, 0.1 * height, 0.06 * width, 0.012 * width).move(
                    y=max(lift - 0.06 * height, 0.05 * height), z=0.02 * width
                ),
                mesh,
            )
        else:
            tall = lift + 0.9 * height
            tower = g.box(0.11 * width, tall, 0.07 * width, 0.01 * width).move(x=0.56 * width, y=0.5 * tall)
            d.add("speaker", tower.with_mirror(), mesh)
    settle(d)


BUILDERS = {"display": display}

"""Upright and grand pianos."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.joinery import at_corners, block, cushion, leg, merge, pipe, plate, settle
from recon.pipeline.procedural.designer import FABRIC, LEATHER, METAL, PAINT, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry, box, cylinder, extrude, rod, smooth
from recon.pipeline.shapes.mesh import Floats, Material

OCTAVE = 0.165  # metres of keyboard an octave takes
IVORY = Material("ivory", (0.84, 0.81, 0.72), 0.0, 0.4)
EBONY = Material("ebony", (0.012, 0.011, 0.012), 0.0, 0.4)


def _keyboard(d: Designer, octaves: int, top: float, front: float) -> None:
    """Keys whose surface lies at height `top` and whose front edge lies at z = `front`; player at +Z."""
    white, deep = OCTAVE / 7, 0.15
    half = octaves * OCTAVE / 2
    key = box(white - 0.002, 0.024, deep).move(y=top - 0.012, z=front - deep / 2)
    d.add("keyboard", merge(key.move(x=(i + 0.5) * white - half) for i in range(7 * octaves)), IVORY)
    sharp = box(0.013, 0.024, 0.095).move(y=top + 0.003, z=front - deep + 0.0475)
    places = [(7 * o + i) * white - half for o in range(octaves) for i in (1, 2, 4, 5, 6)]
    d.add("keyboard", merge(sharp.move(x=x) for x in places), EBONY)


def _pedals(d: Designer, front: float, height: float, metal: Material) -> None:
    """Two or three pedals reaching towards the player from z = `front`."""
    count = d.integer("pedals", 2, 3)
    pedal = pipe(
        [(0, height, front - 0.03), (0, height, front + 0.02), (0, height - 0.012, front + 0.09)], 0.009, 0.02, 6
    )
    pedal = pedal.scale(x=1.6)
    d.add("pedal", merge(pedal.move(x=0.055 * (i - (count - 1) / 2)) for i in range(count)), metal)


def _music_desk(d: Designer, width: float, lean: float) -> Geometry:
    """A rest for sheet music standing on the origin, leaning back by `lean` degrees."""
    tall = d.uniform("desk_height", 0.14, 0.26)
    top = [(t * width / 2, tall * (0.75 + 0.25 * np.cos(1.4 * t))) for t in np.linspace(1, -1, 9)]
    board = extrude([(-width / 2, 0), (width / 2, 0), *top], 0.014)
    return (board + box(width, 0.012, 0.03).move(y=0.006, z=0.012)).rotate("x", -lean)


def _stool(d: Designer, front: float, body: Material) -> None:
    """The pianist's seat in front of the keys."""
    kind = d.choice(
        "stool", {"none": "", "bench": "with a bench", "stool": "with a round stool"}, weights=[0.45, 0.35, 0.2]
    )
    if kind == "none":
        return
    soft, height = d.material(LEATHER, FABRIC), d.uniform("stool_height", 0.44, 0.54)
    z = front + d.uniform("stool_gap", 0.12, 0.3) + 0.17
    if kind == "bench":
        width = d.uniform("stool_width", 0.45, 0.9)
        d.add("stool", cushion(width, 0.07, 0.34, 0.03, 0.01).move(y=height - 0.035, z=z), soft)
        apron = block((0.02 - width / 2, width / 2 - 0.02), (height - 0.13, height - 0.05), (-0.15, 0.15))
        legs = at_corners(leg("tapered", height - 0.06, 0.045), width / 2 - 0.05, 0.125)
        d.add("stool", (apron + legs).move(z=z), body)
    else:
        d.add("stool", cylinder(0.18, 0.07, 0.165, 20).move(y=height - 0.035, z=z), soft)
        foot = rod((0, 0.12, 0), (0.2, 0.015, 0), 0.022, 0.015, sides=6)
        stand = rod((0, 0.08, 0), (0, height - 0.06, 0), 0.03, sides=10) + merge(
            foot.rotate("y", a) for a in (45, 135, 225, 315)
        )
        d.add("stool", stand.move(z=z), body)


def _upright(d: Designer, octaves: int, body: Material) -> float:
    """A tall case behind the keys; returns the z of its front."""
    height, deep = d.uniform("case_height", 0.95, 1.4), d.uniform("case_depth", 0.26, 0.4)
    keys, shelf = d.uniform("key_height", 0.68, 0.75), d.uniform("key_shelf", 0.24, 0.32)
    cheek = d.uniform("cheek_width", 0.03, 0.07)
    metal = d.material(METAL)
    inner, half = octaves * OCTAVE / 2 + 0.015, octaves * OCTAVE / 2 + 0.015 + cheek
    back, face = -deep, 0.0
    front = face + shelf
    d.add("case", block((-half + 0.004, half - 0.004), (0.08, height - 0.02), (back, face - 0.012)), body)
    d.add("case", block((-half, half), (0, 0.1), (back + 0.004, face), 0.008), body)
    sides = block((inner, half), (0, height - 0.03), (back - 0.004, face + 0.01), 0.006)
    arm = [
        (face - 0.1, keys - 0.13),
        (front, keys - 0.1),
        (front, keys + 0.015),
        (front - 0.06, keys + 0.05),
        (face + 0.03, keys + 0.17 * d.uniform("cheek_rise", 0.4, 1.0)),
        (face - 0.1, keys + 0.2),
    ]
    cheeks = extrude([(-z, y) for z, y in arm], cheek).rotate("y", 90).move(x=(inner + half) / 2)
    d.add("case", (sides + cheeks).with_mirror(), body)
    d.add("case", block((-inner - 0.01, inner + 0.01), (keys - 0.09, keys - 0.026), (face - 0.05, front - 0.003)), body)
    d.add(
        "case", block((-inner - 0.005, inner + 0.005), (keys - 0.03, keys + 0.004), (front - 0.03, front - 0.006)), body
    )
    overhang = d.uniform("lid_overhang", 0.008, 0.04)
    lid = box(2 * half + 2 * overhang, 0.024, deep + 2 * overhang, 0.006).move(z=back + deep / 2)
    if d.choice("lid", {"closed": "", "open": "with its lid open"}, weights=[0.75, 0.25]) == "open":
        lid = lid.move(z=-back + overhang).rotate("x", -d.uniform("lid_angle", 60, 100)).move(y=-0.015, z=back + 0.01)
    d.add("lid", lid.move(y=height - 0.012), body)
    panels = d.choice("panels", {"plain": "", "framed": "with framed panels", "cloth": ""})
    if panels != "plain":
        finish = body if panels == "framed" else d.material(FABRIC)
        count = d.integer("panel_count", 1, 3)
        pitch = 2 * inner / count
        for low, high in ((0.16, keys - 0.16), (keys + 0.21, height - 0.09)):
            if high - low > 0.08:
                panel = block((0.05 - pitch / 2, pitch / 2 - 0.05), (low, high), (-0.02, 0.008), 0.006)
                d.add("panel", merge(panel.move(x=(i + 0.5 - count / 2) * pitch) for i in range(count)), finish)
    fall = box(2 * inner - 0.004, 0.15, 0.016).move(y=0.075)
    tilt = d.uniform("fall_angle", 4, 25)
    d.add("lid", fall.rotate("x", -tilt).move(y=keys + 0.012, z=front - 0.165), body)
    if d.choice("music_desk", ["up", "away"]) == "up":
        d.add(
            "music desk", _music_desk(d, inner * d.uniform("desk_width", 0.7, 1.5), 8).move(y=keys + 0.17, z=0.06), body
        )
    support = d.choice("legs", {"square": "", "turned": "on turned legs", "cabriole": "", "none": ""})
    if support != "none":
        post = leg(support, keys - 0.1, 0.075).move(x=half - 0.05, z=front - 0.06)
        toe = block((half - 0.085, half - 0.012), (0, 0.05), (face - 0.05, front - 0.01), 0.008)
        d.add("leg", (post + toe).with_mirror(), body)
    _keyboard(d, octaves, keys, front - 0.03)
    _pedals(d, face, 0.055, metal)
    return front


def _wing(half: float, front: float, tail: float, narrow: float, waist: float) -> Floats:
    """A grand's plan [M, 2] in (x, -z): straight bass side at -x, bent side at +x, tail `tail` metres behind z = 0."""
    bent = smooth(
        [
            (half, 0.1 * tail),
            (half, 0.25 * tail),
            (half * (0.95 - waist), 0.48 * tail),
            (half * (narrow - 0.1), 0.75 * tail),
            (half * (narrow - 0.55), 0.95 * tail),
        ],
        14,
    )
    end = [(half * (narrow - 0.85), tail), (-0.82 * half, tail), (-0.95 * half, 0.985 * tail), (-half, 0.95 * tail)]
    return np.concatenate([[(-half, -front), (half, -front)], bent, end])


def _grand(d: Designer, octaves: int, body: Material) -> float:
    """A wing-shaped case on three legs; returns the z of its front."""
    keys, rim = d.uniform("key_height", 0.69, 0.76), d.uniform("rim_height", 0.26, 0.36)
    length, cheek = d.uniform("case_length", 1.05, 2.1), d.uniform("cheek_width", 0.04, 0.08)
    narrow, waist = d.uniform("tail_width", 0.45, 0.85), d.uniform("waist", 0.0, 0.3)
    metal, plate_metal = d.material(METAL), d.material(METAL, {"pine": WOOD["pine"]})
    half = octaves * OCTAVE / 2 + 0.012 + cheek
    front, low = 0.36, keys - 0.1
    high = low + rim
    outline = _wing(half, 0.0, length, narrow, waist)
    middle = outline.mean(0)
    hole = middle + (outline - middle) * [0.94, 0.95]
    d.add("case", extrude(outline, rim, [hole]).rotate("x", -90).move(y=low + rim / 2), body)
    d.add("case", plate(middle + (outline - middle) * 0.97, low + 0.01, high - 0.09), plate_metal)
    d.add("case", block((-half, half), (low - 0.002, keys - 0.026), (-0.05, front)), body)
    d.add(
        "case",
        block((half - cheek, half), (low + 0.01, keys + 0.06), (-0.02, front - 0.002), 0.012).with_mirror(),
        body,
    )
    d.add(
        "case",
        block((-half + cheek / 2, half - cheek / 2), (keys - 0.03, keys + 0.004), (front - 0.03, front - 0.004)),
        body,
    )
    d.add(
        "lid",
        box(2 * (half - cheek), 0.15, 0.016).move(y=0.075).rotate("x", -12).move(y=keys + 0.004, z=front - 0.185),
        body,
    )
    _grand_lid(d, half, length, narrow, waist, high, body)
    d.add("music desk", _music_desk(d, half * d.uniform("desk_width", 0.7, 1.2), 18).move(y=high, z=-0.1), body)
    support = d.choice("legs", {"square": "", "tapered": "", "turned": "on turned legs", "cabriole": ""})
    thick = d.uniform("leg_thickness", 0.08, 0.14)
    post = leg(support, low + 0.01, thick)
    back = leg(support, low + 0.01, thick).rotate("y", 180).move(x=-0.25 * half, z=-0.82 * length)
    d.add("leg", post.move(x=half - 0.6 * thick, z=0.1).with_mirror() + back, body)
    lyre = rod((0.07, low + 0.01, 0.05), (0.035, 0.1, 0.05), 0.013, sides=6).with_mirror()
    d.add("lyre", lyre + block((-0.11, 0.11), (0.06, 0.12), (0.0, 0.1), 0.01), body)
    _keyboard(d, octaves, keys, front - 0.03)
    _pedals(d, 0.1, 0.085, metal)
    return front


def _grand_lid(
    d: Designer, half: float, length: float, narrow: float, waist: float, high: float, body: Material
) -> None:
    """The lid, flat on the rim or propped up along the bass side with its front flap folded back."""
    state = d.choice("lid", {"open": "with its lid open", "closed": "with its lid closed"}, weights=[0.65, 0.35])
    outline = _wing(half + 0.01, 0.015, length + 0.015, narrow, waist)
    if state == "closed":
        d.add("lid", plate(outline, high + 0.002, high + 0.024), body)
        return
    angle, fold = d.uniform("lid_angle", 28, 48), 0.3
    main = outline[outline[:, 1] > fold]
    cut = np.concatenate([[(-half - 0.01, fold), (np.interp(fold, outline[1:12, 1], outline[1:12, 0]), fold)], main])
    hinge = (-half - 0.005, high + 0.004)

    def swing(lid: Geometry) -> Geometry:
        return lid.move(x=-hinge[0]).rotate("z", angle).move(x=hinge[0], y=hinge[1])

    flap = block((-half, half * 0.93), (0.026, 0.046), (-2 * fold, -fold - 0.004))
    d.add("lid", swing(plate(cut, 0.0, 0.022)), body)
    d.add("lid", swing(flap), body)
    reach = 1.5 * half
    tip = swing(Geometry(np.array([[hinge[0] + reach, 0.0, -fold - 0.1]]), np.zeros((0, 3), np.int64))).vertices[0]
    d.add("prop", rod((0.9 * half, high - 0.05, -fold - 0.08), tip, 0.012, sides=6), body)


def piano(d: Designer) -> None:
    """An upright or a grand, its keys towards +Z."""
    body_kind = d.choice("body", {"upright": "in an upright case", "grand": "with a grand's wing-shaped case"})
    octaves = d.integer("octaves", 5, 7)
    body = d.material(WOOD, PAINT)
    front = (_upright if body_kind == "upright" else _grand)(d, octaves, body)
    _stool(d, front, body)
    settle(d)


BUILDERS = {"piano": piano}

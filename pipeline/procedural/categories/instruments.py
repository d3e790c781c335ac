"""Guitars, standing on y = 0 with the strings to +Z and the neck up."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.guitar_bodies import ACOUSTIC, SOLID
from recon.pipeline.procedural.categories.vehicle_parts import joined, placed, rods, settle
from recon.pipeline.procedural.designer import METAL, PAINT, PLASTIC, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry, box, cylinder, extrude, loft, ring, rounded_rectangle, smooth
from recon.pipeline.shapes.mesh import Floats, Material


class _GuitarShape:
    """Drawn measures in metres. The body's foot is near y = 0, its front face at z = `face`."""

    def __init__(self, d: Designer, solid: bool, bass: bool, small: bool) -> None:
        size = 0.62 if small else 1.0
        self.body = size * d.uniform("body_length", 0.38 if solid else 0.44, 0.47 if solid else 0.54)
        self.half = 0.5 * size * d.uniform("body_width", 0.29, 0.36 if solid else 0.43)
        self.depth = d.uniform("body_depth", 0.035, 0.055) if solid else size * d.uniform("body_depth", 0.075, 0.125)
        self.waist = d.uniform("waist", 0.85, 1.1)
        neck = d.uniform("neck_length", 0.34, 0.46) * (1.3 if bass else 0.9 if solid else 1.0) * size
        self.neck_width = d.uniform("neck_width", 0.042, 0.06) * (0.85 if small else 1.0)
        self.head = size * d.uniform("head_length", 0.14, 0.21) * (1.15 if bass else 1.0)
        self.lean = d.uniform("head_angle", 2, 15)
        self.face = self.depth / 2
        self.joint = (0.86 if solid else 1.0) * self.body
        self.nut = self.joint + neck
        self.bridge = self.body * d.uniform("bridge_position", 0.2, 0.3)
        self.action = self.face + 0.018


def _mirrored(half: list[tuple[float, float]], waist: float) -> Floats:
    """A closed, smoothed outline from its right half; `waist` scales the width at the waist."""
    right = np.array([(x * (waist if 0.4 < y < 0.7 else 1.0), y) for x, y in half])
    left = right[::-1] * [-1, 1]
    return smooth(np.concatenate([right, left]), 44, closed=True)


def _acoustic_body(d: Designer, s: _GuitarShape, style: str, finish: Material, wood: Material, dark: Material) -> None:
    """A hollow box: sides, a top plate with a hole or f-holes, binding, bridge."""
    outline = _mirrored(ACOUSTIC[style][1], s.waist) * [s.half, s.body]
    if style == "cutaway":
        x, y = outline.T
        bite = np.clip((y / s.body - 0.66) / 0.22, 0, 1) * (x > 0.06)
        outline = np.stack([x * (1 - 0.62 * bite * np.clip((y / s.body - 0.72) / 0.25, 0, 1)), y], -1)
    middle = np.array([0.0, 0.45 * s.body])
    plate = middle + (outline - middle) * 0.985
    # The top plate comes first, because its finish is the one a caption speaks of.
    d.add("body", extrude(plate, 0.006).move(z=s.face + 0.002), finish)
    d.add("body", extrude(outline, s.depth), wood)
    d.add("binding", extrude(middle + (outline - middle) * 1.012, 0.008).move(z=s.face - 0.006), dark)
    hole_y, hole = 0.68 * s.body, s.half * d.uniform("hole_size", 0.2, 0.3)
    top = s.face + 0.005
    if style == "archtop":
        path = smooth([(0.03, 0.07), (0.0, 0.05), (0.012, 0), (-0.012, -0.02), (-0.03, -0.05), (-0.05, -0.035)], 8)
        along = np.gradient(path, axis=0)
        across = 0.007 * np.stack([-along[:, 1], along[:, 0]], -1) / np.linalg.norm(along, axis=1, keepdims=True)
        slot = np.concatenate([path + across, (path - across)[::-1]])
        cut = extrude(slot * [1, 1.1], 0.006).move(-0.52 * s.half, 0.42 * s.body, top)
        d.add("sound hole", cut.with_mirror(), dark)
    elif style == "resonator":
        cone = cylinder(0.58 * s.half, 0.02, 0.5 * s.half, 28).rotate("x", 90).move(0, 0.34 * s.body, top + 0.004)
        d.add("sound hole", cone, d.material(METAL))
        d.add(
            "sound hole",
            cylinder(0.13 * s.half, 0.006, segments=16)
            .rotate("x", 90)
            .move(0.42 * s.half, 0.76 * s.body, top)
            .with_mirror(),
            dark,
        )
    else:
        d.add("sound hole", cylinder(hole, 0.004, segments=24).rotate("x", 90).move(0, hole_y, top), dark)
        d.add(
            "rosette",
            ring(1.02 * hole, 1.2 * hole, 0.004, 24).rotate("x", 90).move(0, hole_y, top),
            d.material(WOOD, PAINT),
        )
    if d.choice("pickguard", {"none": "", "guard": "with a pickguard"}) == "guard":
        guard = smooth([(0.0, 0.0), (0.3, -0.25), (0.62, -0.2), (0.6, 0.1), (0.34, 0.26)], 16, closed=True) * [
            s.half,
            0.55 * s.body,
        ]
        d.add("pickguard", extrude(guard, 0.004).move(0.57 * hole + 0.01, hole_y - 0.03, top - 0.0005), dark)
    d.add("bridge", box(0.67 * s.half, 0.03, 0.012, 0.0025).move(0, s.bridge, top + 0.005), dark)
    d.add(
        "bridge",
        box(0.4 * s.half, 0.006, 0.02).move(0, s.bridge + 0.004, top + 0.006),
        d.material({"white": PAINT["white"]}),
    )


def _solid_body(
    d: Designer, s: _GuitarShape, style: str, bass: bool, finish: Material, dark: Material, metal: Material
) -> None:
    """A slab with pickups, knobs, bridge and perhaps a pickguard."""
    flat = np.array(SOLID[style][1])
    straight = style in ("flying-v", "angular")
    outline = (flat if straight else smooth(flat, 48, closed=True)) * [s.half, s.body]
    d.add("body", extrude(outline, s.depth, bevel=0.0 if straight else 0.03), finish)
    top = s.face
    plastic = d.material(PLASTIC)
    if d.choice("pickguard", {"none": "", "guard": "with a pickguard"}) == "guard" and not straight:
        middle = np.array([0.0, 0.42 * s.body])
        guard = smooth(
            [
                (0.1, 0.22),
                (0.55, 0.3),
                (0.5, 0.52),
                (0.48, 0.72),
                (0.14, 0.76),
                (-0.2, 0.76),
                (-0.46, 0.86),
                (-0.5, 0.66),
                (-0.34, 0.45),
                (-0.2, 0.3),
            ],
            24,
            closed=True,
        )
        d.add(
            "pickguard",
            extrude(middle + (guard * [s.half, s.body] - middle) * 0.98, 0.004).move(z=top + 0.001),
            plastic,
        )
    num = d.integer("num_pickups", 1, 3)
    kind = d.choice("pickups", ["slim", "wide"])
    wide, tall = 0.085, 0.02 if kind == "slim" else 0.038
    spots = np.linspace(s.bridge + 0.045, 0.68 * s.body, num) if num > 1 else [0.42 * s.body]
    d.add("pickup", joined([box(wide, tall, 0.014, 0.003).move(0, float(y), top + 0.006) for y in spots]), dark)
    d.add("bridge", box(0.09, 0.03 + (0.02 if bass else 0.0), 0.014, 0.003).move(0, s.bridge, top + 0.007), metal)
    num_knobs = d.integer("num_knobs", 1, 4)
    knob = cylinder(0.012, 0.018, 0.01, 10).rotate("x", 90)
    x = 0.5 * s.half if style != "flying-v" else 0.62 * s.half
    places = [(x + 0.05 * s.half * i, s.body * (0.36 - 0.075 * i), top + 0.009) for i in range(num_knobs)]
    d.add("knob", placed(knob, places), metal)
    if d.choice("vibrato", {"none": "", "bar": "with a vibrato arm"}, [0.7, 0.3]) == "bar":
        d.add(
            "bridge", rods([[(0.03, s.bridge - 0.01, top + 0.012), (0.07, s.bridge + 0.13, top + 0.03)]], 0.003), metal
        )


def _neck(d: Designer, s: _GuitarShape, solid: bool, wood: Material, board: Material, metal: Material) -> None:
    """A half-round neck, its heel, the fretboard and the frets."""
    low, high = s.joint - (0.06 if solid else 0.02), s.nut
    angle = np.linspace(0, np.pi, 7)
    rings = []
    for f in (0.0, 0.12, 0.2, 1.0):
        y, wide = low + (high - low) * f, 0.5 * s.neck_width * (1.12 - 0.2 * f)
        deep = (0.7 * s.depth if solid else 0.85 * s.depth) if f < 0.1 else 0.034 if f < 0.15 else 0.024
        rings.append([(wide * np.cos(a), y, s.face + 0.004 - deep * np.sin(a)) for a in angle])
    d.add("neck", loft(rings), wood)
    foot = s.joint - s.body * (0.2 if solid else 0.16)
    half = 0.5 * s.neck_width
    plank = [(-1.18 * half, foot), (1.18 * half, foot), (0.92 * half, s.nut), (-0.92 * half, s.nut)]
    d.add("fretboard", extrude(plank, 0.008).move(z=s.face + 0.008), board)
    span = s.nut - s.bridge
    num = d.integer("num_frets", 12, 20)
    frets = [s.nut - span * (1 - 2 ** (-i / 12)) for i in range(1, num + 1)]
    bar = box(2 * half, 0.0025, 0.003).move(z=s.face + 0.013)
    bars = [bar.scale(x=0.92 + 0.26 * (s.nut - y) / (s.nut - foot)).move(y=y) for y in frets if y > foot + 0.01]
    d.add("fret", joined(bars), metal)
    d.add("nut", box(1.86 * half, 0.006, 0.014).move(0, s.nut, s.face + 0.009), d.material({"white": PAINT["white"]}))


def _strings(num: int, s: _GuitarShape, offsets: Floats) -> Geometry:
    """Straight strings from the bridge over the nut."""
    wide = 0.775 * s.neck_width
    low = np.linspace(-wide / 2, wide / 2, num)
    return rods(
        [((low[i], s.bridge, s.action), (offsets[i], s.nut, s.face + 0.017)) for i in range(num)], 0.0012, sides=3
    )


def _head(d: Designer, s: _GuitarShape, num: int, finish: Material, metal: Material) -> None:
    """Headstock with tuners on both sides or in one row; leaning back from the nut."""
    half, long = 0.5 * s.neck_width, s.head
    row = d.choice(
        "headstock",
        {"both": "", "one": "with its tuners in one row", "slotted": "with a slotted headstock"},
        [0.5, 0.3, 0.2],
    )
    holes: list[Floats] = []
    if row == "one":
        outline = smooth(
            [
                (0.9 * half, 0),
                (1.3 * half, 0.1 * long),
                (0.9 * half, 0.5 * long),
                (1.5 * half, 0.95 * long),
                (0.3 * half, 1.05 * long),
                (-1.5 * half, 0.86 * long),
                (-1.7 * half, 0.3 * long),
                (-1.0 * half, 0),
            ],
            20,
            closed=True,
        )
    else:
        flare = d.uniform("head_flare", 1.25, 1.75)
        crest = d.uniform("head_crest", 0.88, 1.08)
        outline = np.array(
            [
                (0.9 * half, 0),
                (flare * half, 0.16 * long),
                (0.92 * flare * half, 0.96 * long),
                (0.4 * half, crest * long),
                (0, 0.98 * long),
                (-0.4 * half, crest * long),
                (-0.92 * flare * half, 0.96 * long),
                (-flare * half, 0.16 * long),
                (-0.9 * half, 0),
            ]
        )
        if row == "slotted":
            slot = rounded_rectangle(0.4 * half, 0.62 * long, 0.15 * half, 3)
            holes = [slot + np.array([side * 0.6 * half, 0.54 * long]) for side in (-1, 1)]
    d.add("head", extrude(outline, 0.016, holes).rotate("x", -s.lean).move(0, s.nut, s.face - 0.004), finish)
    if row == "one":
        sides, rows = [-1] * num, list(np.linspace(0.2, 0.88, num))
    else:
        per = (num + 1) // 2
        shares = list(np.linspace(0.26, 0.84, per))
        sides, rows = [-1] * per + [1] * (num - per), shares + shares[: num - per]
    edge = 1.55 * half if row == "one" else 1.35 * half
    peg = cylinder(0.004, 0.02, segments=6).rotate("x", 90)
    right = (
        rods([[(0.8 * edge, 0, -0.004), (edge + 0.02, 0, -0.004)]], 0.003, sides=5)
        + box(0.006, 0.018, 0.012).move(edge + 0.022, 0, -0.004)
        + peg.move(0.55 * edge, 0, 0.012)
    )
    left = right.mirror()
    pegs = [(right if side > 0 else left).move(y=y * long) for side, y in zip(sides, rows, strict=True)]
    d.add("tuner", joined(pegs).rotate("x", -s.lean).move(0, s.nut, s.face - 0.004), metal)


def guitar(d: Designer) -> None:
    """Acoustic and solid guitars and basses; four to twelve strings."""
    finish, wood, board = d.material(WOOD, PAINT), d.material(WOOD), d.material(WOOD)
    dark, metal = d.material({"black plastic": PLASTIC["black plastic"]}), d.material(METAL)
    phrases = {name: row[0] for name, row in (ACOUSTIC | SOLID).items()}
    style = d.choice("body", phrases, [0.13, 0.11, 0.1, 0.08, 0.05, 0.06, 0.14, 0.11, 0.08, 0.06, 0.08])
    solid = style in SOLID
    bass = solid and d.choice("kind", {"guitar": "", "bass": "as a long-necked bass"}, [0.7, 0.3]) == "bass"
    small = style == "ukulele"
    s = _GuitarShape(d, solid, bass, small)
    if solid:
        _solid_body(d, s, style, bass, finish, dark, metal)
    else:
        _acoustic_body(d, s, style, finish, wood, dark)
    num = (
        4
        if bass or small
        else int(
            d.choice(
                "num_strings", {"6": "", "7": "with seven strings", "12": "with twelve strings"}, [0.8, 0.08, 0.12]
            )
        )
    )
    _neck(d, s, solid, wood, board, metal)
    _head(d, s, num, wood if d.choice("head_finish", ["wood", "body"]) == "wood" else finish, metal)
    d.add("string", _strings(num, s, np.linspace(-0.36, 0.36, num) * s.neck_width), metal)
    settle(d)


BUILDERS = {"guitar": guitar}

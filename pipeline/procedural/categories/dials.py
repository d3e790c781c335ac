"""The parts clocks share: faces with marks and hands, rims, pendulums, digits."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.joinery import merge
from recon.pipeline.procedural.designer import METAL, PAINT, Designer, Finish
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Material

DIAL: dict[str, Finish] = {
    "white dial": ("efece2", 0.0, 0.5),
    "cream dial": ("e3d6b4", 0.0, 0.5),
    "black dial": ("26272a", 0.0, 0.5),
    "grey dial": ("9fa3a8", 0.2, 0.5),
}
INK: dict[str, Finish] = {
    "black paint": ("1c1c1e", 0.0, 0.5),
    "white paint": ("f0eee8", 0.0, 0.5),
    "gold": METAL["gold"],
    "red": PAINT["red"],
}


def _contrasting(d: Designer, dial: Material) -> Material:
    """An ink that shows on the dial."""
    dark = sum(dial.base_color) < 0.9
    return d.material({k: INK[k] for k in (("white paint", "gold") if dark else ("black paint", "red"))})


def disc(radius: float, depth: float, segments: int = 28) -> Geometry:
    """A round plate facing z, its back at z = 0."""
    return g.cylinder(radius, depth, segments=segments).rotate("x", 90).move(z=0.5 * depth)


def _hand(angle: float, length: float, width: float, kind: str) -> Geometry:
    """A hand from the centre of the dial, `angle` in degrees clockwise from twelve; flat on z = 0."""
    outlines = {
        "bar": [(-0.5, -0.18), (0.5, -0.18), (0.5, 1.0), (-0.5, 1.0)],
        "taper": [(-0.8, -0.2), (0.8, -0.2), (0.2, 1.0), (-0.2, 1.0)],
        "spade": [(-0.35, -0.15), (0.35, -0.15), (0.3, 0.6), (1.2, 0.68), (0.0, 1.0), (-1.2, 0.68), (-0.3, 0.6)],
    }
    return g.extrude(np.array(outlines[kind]) * [width, length], 0.4 * width).rotate("z", -angle)


def add_dial(d: Designer, radius: float, y: float, z: float, square: bool = False) -> None:
    """A face with its marks and hands, centred at height `y`, its back at `z`."""
    face, thin = d.material(DIAL, DIAL, PAINT), 0.05 * radius
    ink = _contrasting(d, face)
    plate = disc(radius, thin)
    if square:
        plate = g.extrude(g.rounded_rectangle(1.9 * radius, 1.9 * radius, 0.1 * radius, 6), thin).move(z=0.5 * thin)
    d.add("face", plate.move(y=y, z=z), face)
    marks = d.choice(
        "marks",
        {
            "twelve": "",
            "four": "with four hour marks",
            "dots": "with dots for the hours",
            "minutes": "",
            "none": "with a plain dial",
        },
        (0.35, 0.2, 0.18, 0.17, 0.1),
    )
    tick = radius * d.uniform("mark_length", 0.12, 0.24)
    if marks != "none":
        d.add("mark", _marks(marks, radius, tick, thin, square).move(y=y, z=z + 0.7 * thin), ink)
    time = d.uniform("time", 0, 12)
    kind = d.choice("hands", ["bar", "taper", "spade"])
    wide = radius * d.uniform("hand_width", 0.045, 0.1)
    hour_hand = _hand(30 * time, radius * d.uniform("hour_hand", 0.42, 0.58), 1.2 * wide, kind)
    minute_hand = _hand(360 * (time % 1), radius * d.uniform("minute_hand", 0.68, 0.86), wide, kind)
    hands = hour_hand.move(z=1.8 * thin) + minute_hand.move(z=2.8 * thin) + disc(1.4 * wide, 3.6 * thin, 20)
    d.add("hand", hands.move(y=y, z=z), ink)
    if d.choice("second_hand", ["none", "thin"], (0.55, 0.45)) == "thin":
        d.add(
            "hand",
            _hand(float(d.rng.uniform(0, 360)), 0.85 * radius, 0.35 * wide, "bar").move(y=y, z=z + 3.7 * thin),
            d.material(INK),
        )


def _marks(kind: str, radius: float, tick: float, thin: float, square: bool) -> Geometry:
    """The hour (and minute) marks around the origin, the longest `tick` long."""
    wide = tick * (0.16 if kind == "minutes" else 0.3)
    shapes = {}
    for size in (tick, 0.7 * tick, 0.35 * tick):
        bar = g.box(wide, size, thin).move(y=-0.5 * size, z=0.5 * thin)
        shapes[size] = disc(0.35 * size, thin, 8) if kind == "dots" else bar
    pieces = []
    for minute in range(0, 60, 15 if kind == "four" else 5 if kind != "minutes" else 1):
        if minute % 5 and minute % 2:  # every other minute is enough for the eye
            continue
        size = tick * (1.0 if minute % 15 == 0 else 0.7 if minute % 5 == 0 else 0.35)
        a = np.radians(6 * minute)
        out = 0.87 / max(abs(np.cos(a)), abs(np.sin(a))) if square else 0.9  # on a square dial they follow its edge
        pieces.append(shapes[size].move(y=out * radius).rotate("z", -6 * minute))
    return merge(pieces)


def bezel(radius: float, thick: float, y: float, z: float) -> Geometry:
    """A round rim about the face."""
    return g.torus(radius, thick, 28, 8).rotate("x", 90).move(y=y, z=z)


def pendulum(d: Designer, top: float, length: float, z: float, bob: float) -> None:
    """A rod and bob hanging from (0, top, z), swung a little."""
    swing = d.uniform("swing", -10, 10)
    rod = g.rod((0, 0, 0), (0, -length, 0), 0.09 * bob, sides=6)
    d.add(
        "pendulum",
        (rod + g.cylinder(bob, 0.25 * bob, segments=20).rotate("x", 90).move(y=-length))
        .rotate("z", swing)
        .move(y=top, z=z),
        d.material(METAL),
    )


# Top, upper left and right, middle, lower left and right, bottom; by digit.
SEGMENT_BITS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)


def digits(hour: int, minute: int, height: float) -> Geometry:
    """Seven-segment digits h h : m m, centred at the origin."""
    w, t = 0.5 * height, 0.11 * height
    bars = {
        0: (0, 0.5 * height, 1),
        1: (-0.5 * w, 0.25 * height, 0),
        2: (0.5 * w, 0.25 * height, 0),
        3: (0, 0, 1),
        4: (-0.5 * w, -0.25 * height, 0),
        5: (0.5 * w, -0.25 * height, 0),
        6: (0, -0.5 * height, 1),
    }
    pieces = [g.box(t, t, t).move(y=0.2 * height), g.box(t, t, t).move(y=-0.2 * height)]
    for x, digit in zip((-1.45, -0.62, 0.62, 1.45), (hour // 10, hour % 10, minute // 10, minute % 10), strict=True):
        for bit, (dx, dy, flat) in bars.items():
            if SEGMENT_BITS[digit][bit] == "1":
                piece = g.box(0.8 * w, t, t) if flat else g.box(t, 0.38 * height, t)
                pieces.append(piece.move(x * 1.05 * 0.8 * height + dx, dy))
    return merge(pieces)

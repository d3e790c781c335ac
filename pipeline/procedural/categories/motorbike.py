"""Motorbikes, from mopeds to tourers. The front wheel points to +Z; the bike stands upright."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import joined, rods, side_profile, spokes
from recon.pipeline.procedural.designer import GLASS, LEATHER, METAL, PAINT, PLASTIC, RUBBER, Designer
from recon.pipeline.procedural.geometry import (
    Geometry,
    arc,
    box,
    cylinder,
    ellipsoid,
    extrude,
    loft,
    smooth,
    torus,
    tube,
)
from recon.pipeline.shapes.mesh import Floats, Material

# Per style: the caption's phrase, wheel base, rake of the fork in degrees, seat height, handlebar rise, tyre width.
STYLES = {
    "cruiser": ("as a low cruiser", 1.62, 33, 0.68, 0.22, 0.15),
    "sport": ("with a sports fairing", 1.4, 24, 0.8, -0.02, 0.15),
    "naked": ("with a bare roadster frame", 1.42, 25, 0.79, 0.1, 0.14),
    "dirt": ("as a tall dirt bike", 1.46, 27, 0.92, 0.16, 0.09),
    "scooter": ("as a step-through scooter", 1.28, 26, 0.76, 0.2, 0.11),
    "tourer": ("with a touring windscreen", 1.58, 28, 0.76, 0.18, 0.14),
}


class _BikeShape:
    """Drawn measures in metres: wheels, steering axis and seat, all in the plane x = 0."""

    def __init__(self, d: Designer, style: str) -> None:
        _, base, rake, seat, rise, tyre = STYLES[style]
        small = 0.7 if style == "scooter" else 1.0
        self.base = base * d.uniform("wheelbase", 0.93, 1.08)
        self.front_radius = small * d.uniform("front_radius", 0.29, 0.34) * (1.08 if style == "dirt" else 1.0)
        self.rear_radius = small * d.uniform("rear_radius", 0.28, 0.325)
        self.tyre = tyre * d.uniform("tyre_width", 0.8, 1.15)
        self.rake = np.radians(rake * d.uniform("fork_rake", 0.85, 1.2))
        self.seat = seat * d.uniform("seat_height", 0.95, 1.05)
        self.bar = rise + d.uniform("handlebar_rise", 0.0, 0.16)
        self.half_bar = d.uniform("handlebar_width", 0.33, 0.44)
        self.front, self.rear = self.base / 2, -self.base / 2
        self.crown_y = self.seat + 0.14 + (0.05 if style in ("cruiser", "scooter", "tourer") else 0.0)
        self.crown_z = self.front - np.tan(self.rake) * (self.crown_y - self.front_radius)

    def steer(self, height: float) -> tuple[float, float]:
        """(y, z) on the steering axis at a height above the front axle's."""
        return self.front_radius + height, self.front - np.tan(self.rake) * height


def _wheel(d: Designer, s: _BikeShape, front: bool, num_spokes: int, rubber: Material, metal: Material) -> None:
    """One wheel turning about x: tyre, rim, spokes, hub and brake disc."""
    radius, z = (s.front_radius, s.front) if front else (s.rear_radius, s.rear)
    width = s.tyre * (0.8 if front else 1.0)
    across = width / 2
    outer = torus(radius - across, across, 22, 7).rotate("z", 90)
    d.add("wheel", outer.move(0, radius, z), rubber)
    rim = torus(radius - 1.75 * across, 0.3 * across, 18, 4).rotate("z", 90).scale(x=2.2)
    hub = cylinder(0.045, 1.1 * width, segments=10).rotate("z", 90)
    disc = cylinder(0.42 * radius, 0.012, segments=16).rotate("z", 90).move(x=0.35 * width)
    thickness = 0.012 if num_spokes > 8 else 0.035
    star = spokes(radius - 1.7 * across, 0.05, num_spokes, thickness, thickness)
    d.add("wheel", (rim + hub + disc + star).move(0, radius, z), metal)


def _fender(radius: float, width: float, start: float, stop: float) -> Geometry:
    """A strip bent round the wheel, angles in degrees from +Z upward."""
    outline = np.concatenate([arc(radius + 0.018, start, stop, 9), arc(radius, stop, start, 9)])
    return side_profile(outline, width)


def _front_end(d: Designer, s: _BikeShape, style: str, paint: Material, metal: Material, dark: Material) -> None:
    """Fork, handlebar, headlamp, front fender and mirrors."""
    axle, (top_y, top_z) = (s.front_radius, s.front), (s.crown_y, s.crown_z)
    gap = s.tyre * 0.4 + 0.045
    legs = rods([[(gap, axle[0], axle[1]), (gap, top_y, top_z)]], 0.026, 0.02, 8).with_mirror()
    d.add("fork", legs + box(2 * gap + 0.06, 0.03, 0.07).move(0, top_y - 0.02, top_z), metal)
    bar_y, bar_z = top_y + s.bar, top_z - 0.05
    back = 0.06 if style in ("sport", "dirt") else 0.16
    path = smooth(
        [
            (0, top_y, top_z),
            (0.12, top_y + 0.4 * s.bar, top_z),
            (0.24, bar_y, bar_z),
            (s.half_bar, bar_y - 0.02, bar_z - back),
        ],
        5,
    )
    d.add("handlebar", rods(list(pairwise(path)), 0.014).with_mirror(), metal)
    grip = rods(
        [
            [
                (0.72 * s.half_bar, bar_y - 0.01, bar_z - 0.62 * back),
                (s.half_bar + 0.03, bar_y - 0.02, bar_z - back - 0.01),
            ]
        ],
        0.021,
        sides=8,
    )
    d.add("handlebar", grip.with_mirror(), dark)
    if d.choice("mirrors", {"two": "", "none": ""}, [0.75, 0.25]) == "two":
        stalk = rods([[(0.24, bar_y, bar_z), (0.3, bar_y + 0.15, bar_z - 0.02)]], 0.007, sides=5)
        d.add(
            "mirror",
            (stalk + ellipsoid(0.06, 0.045, 0.015, 10).move(0.31, bar_y + 0.17, bar_z - 0.02)).with_mirror(),
            dark,
        )
    lamp = d.material({"white": PAINT["white"]})
    lamp_y, lamp_z = top_y - 0.08, top_z + 0.1
    if style == "dirt":
        plate = [(-0.1, -0.12), (0.1, -0.12), (0.12, 0.1), (-0.12, 0.1)]
        d.add("fairing", extrude(plate, 0.03).rotate("x", -20).move(0, lamp_y, lamp_z), paint)
        d.add("light", ellipsoid(0.07, 0.05, 0.03, 10).move(0, lamp_y - 0.02, lamp_z + 0.02), lamp)
    elif style not in ("sport", "scooter"):
        d.add("light", ellipsoid(0.09, 0.09, 0.11, 12).move(0, lamp_y, lamp_z - 0.03), metal)
        d.add("light", cylinder(0.075, 0.05, segments=12).rotate("x", 90).move(0, lamp_y, lamp_z + 0.055), lamp)
    lift, span = (0.09, (35, 140)) if style == "dirt" else (0.025, (20, 165))
    d.add("fender", _fender(s.front_radius + lift, 0.9 * s.tyre + 0.02, *span).move(0, s.front_radius, s.front), paint)


def _tank(d: Designer, s: _BikeShape, paint: Material) -> tuple[float, float]:
    """Fuel tank lofted between steering head and seat; returns the seat's front (y, z)."""
    length, fat = d.uniform("tank_length", 0.42, 0.6), d.uniform("tank_width", 0.11, 0.17)
    front, rear = s.crown_z - 0.04, s.crown_z - 0.04 - length
    swell = d.uniform("tank_swell", 0.1, 0.2)
    base = s.seat - 0.03
    rings = []
    for share, wide, high in ((0, 0.45, 0.5), (0.12, 0.85, 0.95), (0.4, 1.0, 1.0), (0.7, 0.8, 0.75), (1.0, 0.4, 0.25)):
        t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        x, y = fat * wide * np.cos(t), (0.5 * np.sin(t) * (0.06 + swell * high))
        tilt = 0.06 * (1 - share)
        rings.append(
            np.stack([x, base + tilt + 0.4 * swell * high + y, np.full(12, front + (rear - front) * share)], -1)
        )
    d.add("gas tank", loft(rings), paint)
    return s.seat, rear + 0.06


def _seat(
    d: Designer, s: _BikeShape, style: str, front: tuple[float, float], leather: Material, paint: Material
) -> None:
    """Saddle, tail and rear fender."""
    y, z = front
    tail = {"sport": 0.2, "dirt": 0.14, "naked": 0.1}.get(style, 0.0)
    end = s.rear + (0.08 if style in ("cruiser", "scooter") else -0.1)
    kick = 0.08 if style in ("cruiser", "tourer") else 0.02
    top = smooth(
        [
            (z, y),
            (z - 0.2, y - 0.04),
            (z - 0.4, y - 0.01),
            (end + 0.05, y + kick + 0.5 * tail),
            (end, y + kick + 0.45 * tail),
        ],
        9,
    )
    bottom = [(end, y + 0.4 * tail - 0.05), (z - 0.35, y - 0.12), (z, y - 0.1)]
    width = d.uniform("seat_width", 0.2, 0.32) * (0.7 if style == "dirt" else 1.0)
    d.add("seat", side_profile(np.concatenate([top, bottom]), width, bevel=0.06), leather)
    if style == "sport":
        cowl = [(z - 0.3, y - 0.08), (end - 0.12, y + 0.16), (end - 0.14, y + 0.09), (z - 0.3, y - 0.18)]
        d.add("tail", side_profile(cowl, 0.16), paint)
    if d.choice("rear_fender", ["long", "short"]) == "long":
        d.add(
            "fender",
            _fender(s.rear_radius + 0.03, 1.1 * s.tyre + 0.02, 15, 150).mirror("z").move(0, s.rear_radius, s.rear),
            paint,
        )
    else:
        tip = s.rear - 0.75 * s.rear_radius
        strip = [
            (end + 0.2, y - 0.1),
            (end, y - 0.07),
            (tip, y - 0.14),
            (tip, y - 0.165),
            (end, y - 0.1),
            (end + 0.2, y - 0.14),
        ]
        d.add("fender", side_profile(strip, 0.16), paint)
    d.add("light", box(0.1, 0.05, 0.04).move(0, y - 0.02 + 0.3 * tail, end - 0.03), d.material({"red": PAINT["red"]}))


def _engine(d: Designer, s: _BikeShape, metal: Material, dark: Material, frame: Material) -> None:
    """Frame tubes, crankcase, cylinders and exhaust."""
    low, mid = 0.9 * s.front_radius, 0.55 * s.seat
    kind = d.choice("engine", {"single": "with a single cylinder", "twin": "with a V-twin engine", "four": ""})
    case = cylinder(0.15, 0.24, segments=16).rotate("z", 90)
    d.add("engine", case.scale(1, 0.85, 1.35).move(0, low, 0), metal)
    tilts = {"single": (8,), "twin": (-24, 26), "four": (14,)}[kind]
    wide = 0.36 if kind == "four" else 0.15
    for tilt in tilts:
        fins = [box(wide, 0.022, 0.17).move(y=0.13 + 0.045 * i) for i in range(4)]
        block = box(0.8 * wide, 0.26, 0.12).move(y=0.17) + joined(fins)
        d.add("engine", block.rotate("x", tilt).move(0, low, 0.02), metal if kind != "four" else dark)
    head = (0.0, s.crown_y - 0.06, s.crown_z)
    spine = smooth(
        [head, (0, s.seat + 0.0, s.crown_z - 0.3), (0, s.seat - 0.1, s.rear + 0.45), (0, s.seat - 0.1, s.rear + 0.1)], 6
    )
    cradle = smooth(
        [
            (0.05, head[1] - 0.04, head[2]),
            (0.11, low + 0.1, 0.3),
            (0.11, low - 0.14, 0.16),
            (0.11, low - 0.14, -0.2),
            (0.09, mid, s.rear + 0.42),
            (0.08, s.seat - 0.1, s.rear + 0.3),
        ],
        8,
    )
    arm = rods([[(0.5 * s.tyre + 0.04, s.rear_radius, s.rear), (0.5 * s.tyre + 0.03, low, -0.2)]], 0.024, sides=6)
    shock = rods(
        [[(0.5 * s.tyre + 0.05, s.rear_radius, s.rear + 0.06), (0.12, s.seat - 0.1, s.rear + 0.28)]], 0.026, sides=8
    )
    d.add(
        "frame",
        rods(list(pairwise(spine)), 0.024) + (rods(list(pairwise(cradle)), 0.018) + arm + shock).with_mirror(),
        frame,
    )
    rise = d.uniform("exhaust_rise", 0.0, 0.3)
    x = 0.5 * s.tyre + 0.1
    pipe = smooth(
        [
            (0.06, low + 0.2, 0.1),
            (0.1, low + 0.12, 0.26),
            (x, low - 0.12, 0.14),
            (x, low - 0.12, -0.2),
            (x, low - 0.08 + 0.3 * rise, s.rear + 0.3),
        ],
        7,
    )
    muffler = tube(
        [
            (x, low - 0.09 + 0.25 * rise, s.rear + 0.36),
            (x, low - 0.07 + 0.4 * rise, s.rear + 0.22),
            (x, low - 0.02 + rise, s.rear - 0.2),
        ],
        [0.025, 0.05, 0.055],
        10,
    )
    pair = d.choice("exhaust", {"one": "", "two": "with twin exhausts"})
    both = tube(pipe, 0.022, 8) + muffler
    d.add("exhaust", both.with_mirror() if pair == "two" else both, metal)


def _scooter_body(d: Designer, s: _BikeShape, paint: Material, dark: Material, leather: Material) -> None:
    """Leg shield, footboard and the shell over the rear wheel."""
    floor = 0.3
    shield = [
        (s.crown_z + 0.07, s.crown_y - 0.02),
        (s.crown_z, s.crown_y + 0.05),
        (s.crown_z - 0.05, s.crown_y - 0.1),
        (s.crown_z - 0.03, floor + 0.1),
        (s.crown_z - 0.1, floor),
        (-0.15, floor),
        (-0.2, floor - 0.07),
        (s.crown_z, floor - 0.07),
    ]
    wide = d.uniform("shield_width", 0.32, 0.44)
    d.add("body", side_profile(shield, wide), paint)
    seat_z = -0.1
    hump = smooth(
        [
            (seat_z + 0.02, floor - 0.05),
            (seat_z - 0.02, s.seat - 0.12),
            (s.rear + 0.1, s.seat - 0.1),
            (s.rear - 0.3, s.seat - 0.26),
            (s.rear - 0.28, s.rear_radius + 0.06),
            (s.rear, s.rear_radius + 0.14),
            (s.rear + 0.25, s.rear_radius),
        ],
        18,
    )
    d.add("body", side_profile(hump, 0.34, bevel=0.1), paint)
    d.add("engine", box(0.24, 0.16, 0.34, 0.04).move(0.03, s.rear_radius + 0.02, s.rear + 0.1), dark)
    d.add(
        "exhaust",
        rods(
            [[(0.14, s.rear_radius - 0.02, s.rear + 0.2), (0.15, s.rear_radius + 0.03, s.rear - 0.2)]], 0.05, sides=10
        ),
        dark,
    )
    _seat(d, s, "scooter", (s.seat, seat_z + 0.04), leather, paint)
    d.add(
        "light",
        ellipsoid(0.09, 0.09, 0.06, 12).move(0, s.crown_y + 0.5 * s.bar, s.crown_z + 0.05),
        d.material({"white": PAINT["white"]}),
    )
    column = rods(
        [[(0, s.front_radius + 0.1, s.front - 0.05), (0, s.crown_y + 0.5 * s.bar, s.crown_z)]], 0.05, sides=10
    )
    d.add("body", column, paint)


def _fairing(d: Designer, s: _BikeShape, style: str, paint: Material) -> None:
    """Sports shell with a screen, or a tourer's tall windscreen and cases."""
    glass = d.material(GLASS)
    z, y = s.crown_z, s.crown_y
    if style == "sport":
        reach = d.uniform("fairing_reach", 0.2, 0.34)
        shell = [
            (z + reach, y - 0.12),
            (z + 0.12, y + 0.08),
            (z - 0.1, y + 0.02),
            (z - 0.3, y - 0.12),
            (-0.1, 0.42),
            (-0.26, 0.24),
            (0.25, 0.24),
            (z + 0.02, 0.5),
        ]

        def pinch(v: Floats) -> Floats:
            v[:, 0] *= 1 - 0.75 * np.clip((v[:, 2] - z) / reach, 0, 1)
            return v

        d.add("fairing", side_profile(shell, d.uniform("fairing_width", 0.36, 0.46)).warp(pinch), paint)
        screen = [(z + 0.13, y + 0.06), (z - 0.02, y + 0.24), (z - 0.05, y + 0.22), (z - 0.03, y + 0.0)]
        d.add("windscreen", side_profile(screen, 0.24), glass)
        lamp = box(0.09, 0.05, 0.08).rotate("y", 25).move(0.075, y - 0.07, z + 0.68 * reach).with_mirror()
        d.add("light", lamp, d.material({"white": PAINT["white"]}))
        return
    tall = d.uniform("screen_height", 0.3, 0.5)
    pane = extrude([(-0.22, 0), (0.22, 0), (0.2, 0.7 * tall), (0.1, tall), (-0.1, tall), (-0.2, 0.7 * tall)], 0.012)
    d.add("windscreen", pane.rotate("x", -25).move(0, y + 0.04, z + 0.12), glass)
    d.add("case", box(0.19, 0.3, 0.5, 0.05).move(0.28, s.rear_radius + 0.26, s.rear - 0.02).with_mirror(), paint)
    if d.choice("top_case", {"yes": "with a top case", "no": ""}) == "yes":
        d.add("case", box(0.4, 0.28, 0.34, 0.06).move(0, s.seat + 0.2, s.rear - 0.1), paint)


def motorbike(d: Designer) -> None:
    """Cruiser, sports bike, roadster, dirt bike, scooter or tourer."""
    paint, metal, rubber = d.material(PAINT, METAL), d.material(METAL), d.material(RUBBER)
    leather, dark = d.material(LEATHER), d.material({"black plastic": PLASTIC["black plastic"]})
    frame = d.material(PAINT, METAL)
    style = d.choice("style", {name: entry[0] for name, entry in STYLES.items()})
    s = _BikeShape(d, style)
    if style == "scooter":
        _scooter_body(d, s, paint, dark, leather)
    else:
        front = _tank(d, s, paint)
        _seat(d, s, style, front, leather, paint)
        _engine(d, s, metal, dark, frame)
    if style in ("sport", "tourer"):
        _fairing(d, s, style, paint)
    _front_end(d, s, style, paint, metal, dark)
    num_spokes = {"cast": d.integer("num_spokes", 5, 7), "wire": 14}[d.choice("wheels", ["cast", "wire"])]
    for is_front in (True, False):
        _wheel(d, s, is_front, num_spokes, rubber, metal)
    if d.choice("stand", ["side", "none"]) == "side":
        d.add("stand", rods([[(-0.1, 0.26, -0.1), (-0.3, 0.01, -0.06)]], 0.014, sides=6), metal)


BUILDERS = {"motorbike": motorbike}

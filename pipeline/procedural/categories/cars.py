"""Cars, the nose to +Z."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import (
    add_wheels,
    joined,
    panes,
    placed,
    rods,
    side_profile,
    slabs,
)
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, PLASTIC, RUBBER, Designer
from recon.pipeline.procedural.geometry import arc, box, cylinder, smooth
from recon.pipeline.shapes.mesh import Floats, Material

# How a body style lays out its side view, as shares of the length from the nose: foot and head of the windscreen,
# head and foot of the rear window; then, in metres, the roof over the belt line and the belt line over the wheels.
CAR_BODIES = {
    "sedan": ("with a sedan body", (0.28, 0.43, 0.67, 0.84), 0.48, 0.34),
    "hatchback": ("with a hatchback body", (0.26, 0.41, 0.82, 0.97), 0.5, 0.36),
    "estate": ("with an estate body", (0.27, 0.41, 0.9, 0.975), 0.49, 0.34),
    "coupe": ("with a low coupe body", (0.38, 0.55, 0.66, 0.93), 0.38, 0.24),
    "suv": ("with a tall off-road body", (0.27, 0.37, 0.9, 0.975), 0.62, 0.46),
    "van": ("with a van body", (0.13, 0.27, 0.95, 0.985), 0.85, 0.42),
    "pickup": ("with an open pickup bed", (0.28, 0.38, 0.53, 0.56), 0.56, 0.44),
    "convertible": ("with an open top", (0.35, 0.46, 0.64, 0.66), 0.4, 0.26),
}


class _CarShape:
    """The drawn measures of a car, in metres, and the taper of its body."""

    def __init__(self, d: Designer, style: str) -> None:
        _, shares, roof, belt = CAR_BODIES[style]
        self.length = d.uniform("length", 3.3, 4.7) * {"van": 1.08, "suv": 1.04, "pickup": 1.15}.get(style, 1.0)
        self.width = d.uniform("width", 1.55, 1.95)
        self.radius = d.uniform("wheel_radius", 0.27, 0.36) * {"suv": 1.15, "pickup": 1.12}.get(style, 1.0)
        self.sill = d.uniform("ground_clearance", 0.14, 0.22) * {"suv": 1.5, "pickup": 1.4}.get(style, 1.0)
        self.belt = 2 * self.radius + belt * d.uniform("belt_height", 0.75, 1.25)
        self.roof = self.belt + roof * d.uniform("roof_height", 0.88, 1.15)
        self.hood = self.belt - d.uniform("hood_drop", 0.02, 0.14)
        self.front = self.length * (0.5 - d.uniform("front_overhang", 0.165, 0.22))
        self.rear = -self.length * (0.5 - d.uniform("rear_overhang", 0.17, 0.24))
        self.tumble = d.uniform("tumblehome", 0.1, 0.24)
        shift = d.uniform("cab_shift", -0.03, 0.03)
        moved = (shares[0] + shift, shares[1] + shift, *shares[2:])
        self.foot, self.head, self.rear_head, self.rear_foot = (self.length * (0.5 - s) for s in moved)

    def taper(self, vertices: Floats) -> Floats:
        """Draw the glasshouse in towards the roof and the plan towards both ends."""
        up = np.clip((vertices[:, 1] - self.belt) / (self.roof - self.belt), 0, 1)
        end = np.clip(2 * np.abs(vertices[:, 2]) / self.length, 0, 1)
        vertices[:, 0] *= (1 - self.tumble * up) * (1 - 0.12 * end**4)
        return vertices

    def outline(self, floor: float | None) -> Floats:
        """The body below the belt line in (z, y); `floor` is where a bed or an open cabin is sunk to."""
        half, top = self.length / 2, []
        deck = self.belt - 0.02 if self.rear_foot > -0.44 * self.length else self.belt - 0.06
        tail = [(-half + 0.06, self.sill), (-half, 0.5 * (self.sill + deck)), (-half + 0.05, deck - 0.06)]
        nose = [
            (half - 0.2, self.hood - 0.03),
            (half - 0.03, 0.62 * self.hood + 0.38 * self.sill),
            (half, 0.4 * self.hood + 0.6 * self.sill),
            (half - 0.1, self.sill),
        ]
        if floor is None:
            top = [*tail, (-half + 0.14, deck), (self.rear_foot + 0.1, self.belt), (self.foot - 0.1, self.belt), *nose]
            upper = [smooth(top, 30)]
        else:
            start, stop = self.sunk()
            behind = smooth([*tail, (-half + 0.09, self.belt), (start, self.belt)], 10)
            before = smooth([(stop, self.belt), (self.foot, self.belt), *nose], 16)
            upper = [behind, np.array([(start, floor), (stop, floor)]), before]
        lower = []
        for z in (self.front, self.rear):
            opening = 1.17 * self.radius
            dip = np.degrees(np.arcsin((self.sill - self.radius) / opening))
            lower.append(arc(opening, dip, 180 - dip, 9) + np.array([z, self.radius]))
        return np.concatenate([*upper, *lower])

    def sunk(self) -> tuple[float, float]:
        """The z range of the open cabin or bed."""
        if self.rear_foot < -0.1 * self.length:  # an open cabin
            return self.rear_foot, self.foot - 0.12
        return -self.length / 2 + 0.14, self.rear_foot - 0.02


def _glasshouse(d: Designer, s: _CarShape, paint: Material, glass: Material, num_panes: int, blind: bool) -> None:
    """Cabin with its windows; every pane is a slab through the cabin that stands out by a few millimetres."""
    belt, roof, width = s.belt - 0.06, s.roof, 0.94 * s.width
    crown = [
        (s.rear_foot, belt),
        (s.rear_head - 0.06, roof - 0.07),
        (s.rear_head + 0.06, roof - 0.01),
        ((s.head + s.rear_head) / 2, roof),
        (s.head - 0.1, roof - 0.015),
        (s.head + 0.05, roof - 0.07),
        (s.foot, belt),
    ]
    d.add("body", side_profile(crown, width).warp(s.taper), paint)
    low, high = s.belt + 0.035, roof - 0.1

    def edge(foot: float, head: float, y: float) -> float:
        return foot + (head - foot) * (y - belt) / (roof - 0.07 - belt)

    bottom = (edge(s.rear_foot, s.rear_head - 0.06, low) + 0.09, edge(s.foot, s.head + 0.05, low) - 0.12)
    top = (edge(s.rear_foot, s.rear_head - 0.06, high) + 0.07, edge(s.foot, s.head + 0.05, high) - 0.08)
    quads = panes(bottom, top, (low, high), num_panes, 0.07)
    if blind:
        quads = quads[-1:]
    d.add("window", slabs(quads, width + 0.02).warp(s.taper), glass)
    for foot, head, sign in ((s.foot, s.head + 0.05, 1), (s.rear_foot, s.rear_head - 0.06, -1)):
        lean = sign * 0.012
        screen = [(edge(foot, head, y) + lean * side, y) for y, side in ((low, -2), (low, 1), (high, 1), (high, -2))]
        d.add("window", slabs([screen], 0.84 * width).warp(s.taper), glass)


def _open_cabin(d: Designer, s: _CarShape, floor: float, paint: Material, glass: Material) -> None:
    """Doors, seats and a bare windscreen."""
    start, stop = s.sunk()
    seat = d.material(PLASTIC)
    places = [
        (side * 0.22 * s.width, 0.0, z)
        for z in (stop - 0.75, stop - 1.45)
        if z > start + 0.35 or z > stop - 1
        for side in (-1, 1)
    ]
    cushion = box(0.36 * s.width, 0.14, 0.42, 0.03).move(y=floor + 0.1)
    back = box(0.34 * s.width, 0.62, 0.13, 0.04).rotate("x", -14).move(y=floor + 0.42, z=-0.24)
    d.add("seat", placed(cushion + back, places), seat)
    screen = [
        (s.foot - 0.02, s.belt - 0.05),
        (s.foot + 0.02, s.belt - 0.05),
        (s.head + 0.02, s.roof),
        (s.head - 0.02, s.roof),
    ]
    d.add("window", side_profile(screen, 0.82 * s.width).warp(s.taper), glass)
    d.add(
        "frame",
        side_profile(np.array(screen) + np.array([0, 0.02]), 0.05).move(x=0.42 * s.width).with_mirror().warp(s.taper),
        paint,
    )


def _car_trim(d: Designer, s: _CarShape, paint: Material, dark: Material, metal: Material) -> None:
    """Lamps, bumpers, mirrors, grille."""
    half, width = s.length / 2, s.width
    lamp, tail = d.material({"white": PAINT["white"]}), d.material({"red": PAINT["red"]})
    height = 0.62 * s.hood + 0.38 * s.sill
    if d.choice("lamps", ["round", "wide"]) == "round":
        front = cylinder(0.09, 0.16, segments=14).rotate("x", 90)
    else:
        front = box(0.22 * width, 0.1, 0.14, 0.03)
    d.add("light", front.move(0.34 * width, height, half - 0.09).with_mirror(), lamp)
    d.add("light", box(0.16 * width, 0.12, 0.1).move(0.35 * width, 0.75 * s.belt, -half + 0.05).with_mirror(), tail)
    d.add("grille", box(0.36 * width, 0.12, 0.12).move(0, height - 0.03, half - 0.055), dark)
    bumper = box(0.88 * width, 0.13, 0.2, 0.045)
    finish = metal if d.choice("bumper", ["chrome", "plastic"]) == "chrome" else dark
    d.add("bumper", bumper.move(0, s.sill + 0.14, half - 0.05) + bumper.move(0, s.sill + 0.16, -half + 0.05), finish)
    mirror = box(0.16, 0.11, 0.07, 0.02).move(0.5 * width + 0.06, s.belt + 0.09, s.foot - 0.28)
    d.add("mirror", mirror.with_mirror(), paint)


def _car_roof(d: Designer, s: _CarShape, paint: Material, dark: Material) -> None:
    """What the roof or the tail carries."""
    extra = d.choice(
        "roof",
        {"bare": "", "rack": "with a roof rack", "spoiler": "with a rear spoiler", "box": "with a roof box"},
        [0.5, 0.18, 0.2, 0.12],
    )
    middle, length = (s.head + s.rear_head) / 2, s.head - s.rear_head
    inner = s.width * (1 - s.tumble) / 2
    if extra == "rack":
        x, y = 0.8 * inner, s.roof + 0.05
        rail = rods([[(x, y, middle - 0.45 * length), (x, y, middle + 0.4 * length)]], 0.018)
        bars = [box(1.7 * inner, 0.025, 0.05).move(0, s.roof + 0.06, middle + f * length) for f in (-0.25, 0.2)]
        feet = [box(0.03, 0.09, 0.05).move(0.8 * inner, s.roof + 0.01, middle + f * length) for f in (-0.4, 0.3)]
        d.add("roof rack", rail.with_mirror() + joined(bars) + joined(feet).with_mirror(), dark)
    elif extra == "box":
        d.add("roof box", box(0.9 * inner, 0.26, max(0.8 * length, 1.1), 0.1).move(0, s.roof + 0.12, middle), dark)
    elif extra == "spoiler":
        z, y = -s.length / 2 + 0.16, s.belt + 0.2
        if s.rear_foot < -0.44 * s.length:
            z, y = s.rear_head - 0.02, s.roof + 0.05
        post = box(0.05, y - s.belt + 0.06, 0.1).move(0.3 * s.width, (y + s.belt - 0.06) / 2, z)
        d.add("spoiler", box(0.84 * s.width * (1 - s.tumble), 0.03, 0.26).rotate("x", 8).move(0, y, z), paint)
        d.add("spoiler", post.with_mirror(), dark)


def car(d: Designer) -> None:
    """Passenger car: eight body styles over one platform."""
    paint, glass = d.material(PAINT, METAL), d.material({"dark glass": GLASS["dark glass"]})
    dark, metal, rubber = d.material({"black plastic": PLASTIC["black plastic"]}), d.material(METAL), d.material(RUBBER)
    style = d.choice("body", {name: body[0] for name, body in CAR_BODIES.items()})
    s = _CarShape(d, style)
    floor = {"pickup": 2.25 * s.radius + 0.03, "convertible": s.sill + 0.22}.get(style)
    d.add("body", side_profile(s.outline(floor), s.width, bevel=0.035).warp(s.taper), paint)
    if floor is not None:
        start, stop = s.sunk()
        wall = [
            (start - 0.05, floor - 0.1),
            (stop + 0.05, floor - 0.1),
            (stop + 0.05, s.belt - 0.015),
            (start - 0.05, s.belt - 0.015),
        ]
        d.add("door", side_profile(wall, 0.08).move(x=0.465 * s.width).with_mirror().warp(s.taper), paint)
    if style == "convertible":
        _open_cabin(d, s, floor or 0.0, paint, glass)
    else:
        num_panes = {"coupe": 1, "pickup": 1}.get(style) or d.integer("num_side_windows", 2, 3)
        blind = style == "van" and d.choice("sides", {"glazed": "", "closed": "with closed cargo sides"}) == "closed"
        _glasshouse(d, s, paint, glass, num_panes, blind)
        _car_roof(d, s, paint, dark)
    width = d.uniform("tyre_width", 0.17, 0.25)
    x = 0.5 * s.width - width / 2 - 0.005
    d.add("chassis", box(1.5 * x, 0.25, s.front - s.rear + 0.4).move(0, s.sill + 0.16, (s.front + s.rear) / 2), dark)
    num_spokes = 0 if d.choice("wheels", ["disc", "spoked"]) == "disc" else d.integer("num_spokes", 5, 8)
    spots = [(side * x * (1 - 0.03), s.radius, z) for z in (s.front, s.rear) for side in (-1, 1)]
    add_wheels(d, spots, s.radius, width, rubber, metal, num_spokes)
    _car_trim(d, s, paint, dark, metal)


BUILDERS = {"car": car}

"""Buses, the nose to +Z."""

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
from recon.pipeline.procedural.geometry import Geometry, arc, box, ellipsoid, smooth
from recon.pipeline.shapes.mesh import Floats, Material

# What a caption says of a bus, and how its length compares to a city bus's.
BUS_KINDS = {
    "city": ("with a flat city front", 1.0),
    "coach": ("as a travel coach", 1.05),
    "double": ("with two decks", 0.9),
    "school": ("with a bonnet like a school bus", 0.85),
    "jointed": ("in two jointed sections", 1.35),
    "minibus": ("as a short minibus", 0.6),
}


class _BusShape:
    """The drawn measures of a bus, in metres."""

    def __init__(self, d: Designer, kind: str) -> None:
        self.length = d.uniform("length", 8.2, 12.0) * BUS_KINDS[kind][1]
        self.width = d.uniform("width", 2.25, 2.6) * (0.9 if kind == "minibus" else 1.0)
        self.floor = d.uniform("ground_clearance", 0.28, 0.45) + (0.15 if kind in ("coach", "school") else 0.0)
        self.deck = d.uniform("deck_height", 2.3, 2.85) + (0.45 if kind == "coach" else 0.0)
        self.roof = self.floor + self.deck * (1.62 if kind == "double" else 1.0)
        self.corner = d.uniform("roof_rounding", 0.12, 0.45)
        self.radius = d.uniform("wheel_radius", 0.4, 0.52)
        self.lean = d.uniform("front_lean", 0.03, 0.45) * (0.3 if kind in ("double", "school") else 1.0)
        self.bonnet = d.uniform("bonnet_length", 1.1, 1.9) if kind == "school" else 0.0
        self.half = self.length / 2
        self.front = self.half - self.bonnet
        self.sill = self.floor + self.deck * d.uniform("window_sill", 0.36, 0.46) + (0.25 if kind == "coach" else 0.0)
        self.head = min(self.floor + self.deck * 0.84, self.roof - 0.75 * self.corner - 0.06)

    def round_roof(self, vertices: Floats) -> Floats:
        """Draw the top edge in, so that the roof meets the sides in a slope."""
        share = np.clip((vertices[:, 1] - self.roof + 0.7 * self.corner) / (0.7 * self.corner), 0, 1)
        vertices[:, 0] *= 1 - share**2 * 1.4 * self.corner / self.width
        return vertices

    def shell(self, rear: float, front: float, lean: float) -> Geometry:
        """The body from rear to front in z, its nose leaning back by `lean` at the roof."""
        knee, cut = self.floor + 0.38 * self.deck, 0.7 * self.corner
        outline = [
            (rear + 0.06, self.floor),
            (front - 0.1, self.floor),
            (front, self.floor + 0.3),
            (front, knee),
            (front - 0.85 * lean, self.roof - cut),
            (front - 0.85 * lean - 0.35 * cut, self.roof - 0.4 * cut),
            (front - 0.85 * lean - cut, self.roof),
            (rear + cut, self.roof),
            (rear + 0.4 * cut, self.roof - 0.35 * cut),
            (rear + 0.1, self.roof - cut),
            (rear, knee),
        ]
        return side_profile(outline, self.width).warp(self.round_roof)


def _bus_windows(d: Designer, s: _BusShape, spans: list[tuple[float, float]], decks: int, glass: Material) -> None:
    """Bands of windows along both sides, and the panes of the nose and tail."""
    pitch, gap = d.uniform("window_pitch", 0.8, 1.7), d.uniform("window_gap", 0.06, 0.22)
    quads: list[Floats] = []
    for deck in range(decks):
        rise = deck * 0.62 * s.deck + (0.08 if deck else 0.0)
        heights = (
            s.sill + rise,
            min(s.head + rise - (0.16 * s.deck if decks == 2 else 0.0), s.roof - 0.75 * s.corner - 0.05),
        )
        for rear, front in spans:
            span = (rear + 0.3, front - 0.35 - s.lean)
            quads += panes(span, span, heights, max(2, round((span[1] - span[0]) / pitch)), gap)
        knee, top = s.floor + 0.38 * s.deck, s.roof - 0.7 * s.corner
        low = heights[0] - (0.12 * s.deck if deck == 0 and not s.bonnet else 0.0)
        z = [s.front - 0.85 * s.lean * max(y - knee, 0.0) / (top - knee) for y in (low, heights[1])]
        screen = [(z[0] - 0.2, low), (z[0] + 0.015, low), (z[1] + 0.015, heights[1]), (z[1] - 0.2, heights[1])]
        d.add("window", side_profile(screen, 0.9 * s.width), glass)
        tail = box(0.72 * s.width, heights[1] - heights[0], 0.3).move(0, (heights[0] + heights[1]) / 2, -s.half + 0.13)
        d.add("window", tail, glass)
    d.add("window", slabs(quads, s.width + 0.03), glass)


def _bus_trim(
    d: Designer, s: _BusShape, kind: str, second_door: float, dark: Material, trim: Material, metal: Material
) -> None:
    """Doors, lamps, mirrors, stripe and what stands on the roof."""
    if d.choice("livery", ["plain", "stripe", "skirt"]) == "stripe":
        d.add(
            "stripe",
            box(s.width + 0.025, 0.16, s.front + s.half - 0.5).move(0, s.sill - 0.28, (s.front - s.half) / 2),
            trim,
        )
    elif d.choices["livery"] == "skirt":
        d.add(
            "stripe",
            box(s.width + 0.025, 0.3, s.front + s.half - 0.7).move(0, s.floor + 0.2, (s.front - s.half) / 2),
            trim,
        )
    height = s.head - s.floor - 0.12
    doors = [s.front - 0.85 - s.lean] + ([second_door] if d.integer("num_doors", 1, 2) == 2 else [])
    leaf = box(0.2, height, 0.42)
    x, y = s.width / 2 - 0.075, s.floor + 0.06 + height / 2
    d.add("door", placed(leaf, [(x, y, z + leaf_z) for z in doors for leaf_z in (-0.23, 0.23)]), dark)
    lamp, tail = d.material({"white": PAINT["white"]}), d.material({"red": PAINT["red"]})
    lamps = ellipsoid(0.14, 0.12, 0.08, 12).move(0.38 * s.width, s.floor + 0.45, s.half - 0.02).with_mirror()
    d.add("light", lamps, lamp)
    d.add("light", box(0.2, 0.3, 0.1).move(0.4 * s.width, s.floor + 0.55, -s.half + 0.02).with_mirror(), tail)
    d.add("bumper", box(0.98 * s.width, 0.22, 0.2, 0.06).move(0, s.floor + 0.12, s.half - 0.01), dark)
    d.add("bumper", box(0.98 * s.width, 0.22, 0.2, 0.06).move(0, s.floor + 0.14, -s.half + 0.03), dark)
    if kind != "school":
        board = box(0.6 * s.width, 0.24, 0.12).move(0, s.roof - 0.7 * s.corner - 0.02, s.front - 0.8 * s.lean)
        d.add("sign", board, dark)
    arm = rods(
        [[(0.46 * s.width, s.head, s.front - 0.5 * s.lean), (0.53 * s.width, s.head - 0.1, s.front + 0.22)]], 0.025
    )
    glass = box(0.1, 0.38, 0.16, 0.03).move(0.54 * s.width, s.head - 0.25, s.front + 0.22)
    d.add("mirror", (arm + glass).with_mirror(), dark)
    top = d.choice(
        "roof",
        {
            "bare": "",
            "cooler": "with an air conditioner on the roof",
            "rack": "with a luggage rack on the roof",
            "hatches": "",
        },
        [0.3, 0.3, 0.15, 0.25],
    )
    if top == "cooler":
        d.add(
            "roof unit", box(0.66 * s.width, 0.26, 0.22 * s.length, 0.1).move(0, s.roof + 0.08, -0.2 * s.length), trim
        )
    elif top == "rack":
        rails = [
            box(0.05, 0.05, 0.6 * s.length).move(x, s.roof + 0.2, -0.05 * s.length)
            for x in (-0.36 * s.width, 0.36 * s.width)
        ]
        bars = [
            box(0.77 * s.width, 0.04, 0.05).move(0, s.roof + 0.19, f * s.length) for f in (-0.33, -0.14, 0.05, 0.23)
        ]
        feet = [box(0.05, 0.25, 0.05).move(0.36 * s.width, s.roof + 0.09, f * s.length) for f in (-0.33, -0.05, 0.23)]
        d.add("roof rack", joined(rails + bars) + joined(feet).with_mirror(), metal)
    elif top == "hatches":
        hatch = box(0.7, 0.1, 0.7, 0.04)
        d.add("roof unit", placed(hatch, [(0, s.roof + 0.03, f * s.length) for f in (-0.26, 0.1)]), trim)


def bus(d: Designer) -> None:
    """Bus: city, coach, double decker, school bus, articulated or minibus."""
    paint, glass = d.material(PAINT, METAL), d.material({"dark glass": GLASS["dark glass"]})
    dark, metal, rubber = d.material({"black plastic": PLASTIC["black plastic"]}), d.material(METAL), d.material(RUBBER)
    kind = d.choice("kind", {name: phrase for name, (phrase, _) in BUS_KINDS.items()})
    s = _BusShape(d, kind)
    spans = [(-s.half, s.front)]
    if kind == "jointed":
        joint = d.uniform("joint", -0.1, 0.06) * s.length
        spans = [(joint + 0.45, s.front), (-s.half, joint - 0.45)]
        slats = [
            box(s.width - (0.1 if i % 2 else 0.28), s.roof - s.floor - 0.35, 0.17).move(
                0, (s.roof + s.floor) / 2, joint + f
            )
            for i, f in enumerate(np.linspace(-0.42, 0.42, 7))
        ]
    for i, (rear, front) in enumerate(spans):
        d.add("body", s.shell(rear, front, s.lean if i == 0 else 0.0), paint)
    if kind == "jointed":
        d.add("joint", joined(slats), dark)
    if kind == "school":
        nose = smooth(
            [
                (s.front - 0.2, s.floor + 0.05),
                (s.half, s.floor + 0.1),
                (s.half, s.sill - 0.4),
                (s.half - 0.3, s.sill - 0.12),
                (s.front - 0.2, s.sill - 0.02),
            ],
            12,
        )
        d.add("bonnet", side_profile(nose, 0.86 * s.width, bevel=0.06), paint)
        d.add("grille", box(0.45 * s.width, 0.5, 0.1).move(0, s.floor + 0.6, s.half - 0.01), metal)
    _bus_windows(d, s, spans, 2 if kind == "double" else 1, glass)
    trim = d.material(PAINT)
    axles = [s.half - (0.9 if kind == "school" else 1.5 + 0.1 * s.length), -s.half + 0.2 * s.length]
    if kind == "jointed":
        axles.append(spans[0][0] + 1.6)
    elif s.length > 9 and d.choice("axles", {"two": "", "three": "on three axles"}) == "three":
        axles.append(axles[1] - 2.2 * s.radius)
    # Between the axles, because a door needs the whole height of the side.
    _bus_trim(d, s, kind, (axles[0] + max(axles[1:])) / 2, dark, trim, metal)
    x, width = s.width / 2 - 0.12, 0.28
    spots = [(side * x, s.radius, z) for z in axles for side in (-1, 1)]
    opening = 1.14 * s.radius
    dip = np.degrees(np.arcsin((s.floor - 0.01 - s.radius) / opening))
    arch = side_profile(arc(opening, dip, 180 - dip, 12), s.width + 0.02)
    d.add("wheel arch", placed(arch, [(0, s.radius, z) for z in axles]), dark)
    add_wheels(d, spots, s.radius, width, rubber, metal)


BUILDERS = {"bus": bus}

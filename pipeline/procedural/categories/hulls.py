"""What boats and ships are built on: the hull's shape, deckhouses and railings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import panes, rods, side_profile, slabs
from recon.pipeline.procedural.designer import Designer
from recon.pipeline.procedural.geometry import Geometry, box, loft
from recon.pipeline.shapes.mesh import Floats, Material

# What a caption says, then: length, beam over length, depth over length, rise of the bow over depth.
KINDS = {
    "sailing": ("as a sailing boat", 9.0, 0.3, 0.12, 0.35),
    "motor": ("as a motor boat", 7.5, 0.33, 0.14, 0.3),
    "cargo": ("as a cargo ship", 90.0, 0.16, 0.1, 0.25),
    "rowing": ("as an open rowing boat", 4.2, 0.33, 0.13, 0.3),
    "fishing": ("as a fishing boat", 16.0, 0.31, 0.18, 0.6),
    "catamaran": ("with two hulls", 11.0, 0.1, 0.12, 0.3),
    "warship": ("as a warship with gun turrets", 110.0, 0.125, 0.085, 0.35),
    "liner": ("as a passenger ship", 120.0, 0.15, 0.09, 0.3),
}


class Hull:
    """Drawn measures in metres. The keel amidships is at y = 0, the deck edge at `edge(z)`."""

    def __init__(self, d: Designer, kind: str) -> None:
        _, length, beam, depth, sheer = KINDS[kind]
        self.length = length * d.uniform("length", 0.8, 1.25)
        self.half_beam = 0.5 * self.length * beam * d.uniform("beam", 0.85, 1.18)
        self.depth = self.length * depth * d.uniform("depth", 0.85, 1.2)
        self.sheer = sheer * self.depth * d.uniform("sheer", 0.5, 1.5)
        self.full = d.uniform("fullness", 0.35, 0.75) + (0.3 if kind in ("cargo", "liner", "warship") else 0.0)
        self.rake = d.uniform("bow_rake", 0.03, 0.14) * self.length * (0.7 if kind in ("cargo", "liner") else 1.0)
        self.stern = d.uniform("stern_width", 0.3 if kind in ("rowing", "sailing") else 0.6, 0.85)
        self.flare = d.uniform("flare", 0.05, 0.3) * (0.3 if kind in ("cargo", "liner") else 1.0)
        self.square = 3.5 if kind in ("cargo", "liner") else 2.6 if kind == "warship" else 1.8
        self.stations = np.array([0, 0.06, 0.2, 0.4, 0.6, 0.75, 0.87, 0.95, 1.0])

    def width(self, share: Floats | float) -> Floats:
        """Half beam at the deck edge, share 0 at the stern to 1 at the bow."""
        f = np.asarray(share, dtype=np.float64)
        bow = np.clip(1 - np.clip((f - 0.45) / 0.55, 0, 1) ** (1.4 + 2.4 * self.full), 0.015, 1)
        aft = self.stern + (1 - self.stern) * np.sin(np.clip(f / 0.42, 0, 1) * np.pi / 2)
        return np.asarray(self.half_beam * bow * aft)

    def edge(self, share: Floats | float) -> Floats:
        """Height of the deck edge."""
        f = np.asarray(share, dtype=np.float64)
        return np.asarray(
            self.depth
            + self.sheer * np.clip((f - 0.35) / 0.65, 0, 1) ** 2
            + 0.25 * self.sheer * np.clip((0.3 - f) / 0.3, 0, 1) ** 2
        )

    def z(self, share: float) -> float:
        """Metres along the ship from amidships, share 0 at the stern to 1 at the bow."""
        return (share - 0.5) * self.length

    def half_rings(self, inset: float = 0.0, bottom: float = 0.0) -> Floats:
        """[stations, 9, 3] section curves from edge to edge under the keel, shrunk by `inset` metres."""
        angle = np.linspace(0, np.pi, 9)
        rings = []
        for f in self.stations:
            wide, top = max(float(self.width(f)) - inset, 0.004 * self.length * 0.5), float(self.edge(f))
            keel = (
                bottom
                + (0.3 * self.depth * max(f - 0.8, 0) / 0.2 if f > 0.8 else 0.0)
                + 0.25 * self.depth * max(0.1 - f, 0) / 0.1
            )
            c = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / self.square)
            s = np.abs(np.sin(angle)) ** (2 / self.square)
            x = wide * c * (1 - self.flare * s)
            y = top - (top - keel) * s
            z = self.z(f) - self.rake * s * max(f - 0.7, 0) / 0.3
            rings.append(np.stack([x, y, np.broadcast_to(z, x.shape)], -1))
        return np.array(rings)

    def solid(self) -> Geometry:
        """A decked hull."""
        return loft(self.half_rings())

    def shell(self, thick: float, floor: float) -> Geometry:
        """An open hull: outside, gunwale and inside in one skin."""
        outer, inner = self.half_rings(), self.half_rings(thick, floor)
        inner[:, 1:-1, 1] = np.maximum(inner[:, 1:-1, 1], outer[:, 1:-1, 1] + 0.5 * thick)
        inner[0, :, 2] += thick
        inner[-1, :, 2] -= 3 * thick
        return loft(np.concatenate([outer, inner[:, ::-1]], 1))

    def level(self, start: float, stop: float, rise: float, low: float, inset: float = 0.0, count: int = 7) -> Geometry:
        """A slab between two shares of the length, from `low` to `rise` metres above the deck's edge."""
        rings = []
        for f in np.linspace(start, stop, count):
            x, y = max(float(self.width(f)) - inset, 0.01), float(self.edge(f))
            rings.append(
                [(x, y + low, self.z(f)), (x, y + rise, self.z(f)), (-x, y + rise, self.z(f)), (-x, y + low, self.z(f))]
            )
        return loft(rings)


def deckhouse(
    d: Designer,
    h: Hull,
    share: tuple[float, float],
    width: float,
    base: float,
    tall: float,
    lean: float,
    paint: Material,
    glass: Material,
    windows: int,
) -> float:
    """A deckhouse with a band of windows right round, its front leaning back; returns the height of its roof."""
    rear, front = h.z(share[0]), h.z(share[1])
    top = base + tall
    shape = [
        (rear, base - 0.3 * tall),
        (front, base - 0.3 * tall),
        (front, base + 0.1 * tall),
        (front - lean * tall, top),
        (rear + 0.2 * lean * tall, top),
    ]
    d.add("cabin", side_profile(shape, width), paint)
    low, high = base + 0.5 * tall, base + 0.84 * tall
    tilt = lean / 0.9
    edge = [front - tilt * (y - base - 0.1 * tall) for y in (low, high)]
    pane_gap = 0.04 * (front - rear)
    bottom, head = (rear + 3 * pane_gap, edge[0] - 2 * pane_gap), (rear + 3 * pane_gap, edge[1] - 2 * pane_gap)
    quads = panes(bottom, head, (low, high), windows, pane_gap)
    out = 0.012 * width
    d.add("window", slabs(quads, width + 2 * out), glass)
    screen = [(edge[0] - 4 * out, low), (edge[0] + out, low), (edge[1] + out, high), (edge[1] - 4 * out, high)]
    d.add("window", slabs([screen], 0.86 * width), glass)
    roof = box(1.08 * width, 0.06 * tall, (front - rear - lean * tall) * 1.08)
    d.add("cabin", roof.move(0, top + 0.02 * tall, (front - lean * tall + rear) / 2), paint)
    return top


def rails(
    d: Designer, h: Hull, span: tuple[float, float], height: float, thick: float, metal: Material, num: int = 7
) -> None:
    """Stanchions and one rail along both deck edges."""
    shares = np.linspace(*span, num)
    feet = [np.array([0.93 * float(h.width(f)), float(h.edge(f)), h.z(f)]) for f in shares]
    up = np.array([0.0, height, 0.0])
    posts = rods([(foot - [0, thick, 0], foot + up) for foot in feet], 0.7 * thick, sides=4)
    rail = rods([(a + up, b + up) for a, b in pairwise(feet)], thick, sides=4)
    d.add("railing", (posts + rail).with_mirror(), metal)

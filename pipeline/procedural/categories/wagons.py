"""What a train is made of behind its locomotive: its measures, bogies, coaches and goods wagons."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import joined, panes, placed, side_profile, slabs
from recon.pipeline.procedural.designer import Designer
from recon.pipeline.procedural.geometry import box, cylinder, extrude, lathe
from recon.pipeline.shapes.mesh import Floats, Material

WAGONS = {
    "coach": "passenger coaches",
    "box": "closed goods wagons",
    "tank": "tank wagons",
    "hopper": "open wagons",
    "flat": "container wagons",
}


class TrainShape:
    """The drawn measures of a train, in metres; `z` walks back from the nose as vehicles are added."""

    def __init__(self, d: Designer, kind: str) -> None:
        self.width = d.uniform("width", 2.5, 3.1)
        self.height = d.uniform("height", 2.5, 3.2)
        self.floor = d.uniform("floor_height", 0.95, 1.25) * (0.6 if kind == "tram" else 1.0)
        self.length = d.uniform("vehicle_length", 8.5, 15.0)
        self.wheel = d.uniform("wheel_radius", 0.38, 0.5) * (0.75 if kind == "tram" else 1.0)
        self.gap = d.uniform("coupling_gap", 0.5, 0.9) * (0.6 if kind in ("fast", "tram") else 1.0)
        self.rounding = d.uniform("roof_rounding", 0.15, 0.55)
        self.top = self.floor + self.height
        self.pitch = d.uniform("window_pitch", 1.05, 2.0)
        self.pane = self.height * d.uniform("window_height", 0.26, 0.4)

    def section(self, shrink: float = 1.0) -> Floats:
        """Cross-section [M, 2] in (x, y): straight sides, a rounded roof."""
        half, crown = 0.5 * self.width * shrink, self.rounding * 0.5 * self.width
        roof = [(half * np.cos(t), self.top - crown + crown * np.sin(t)) for t in np.linspace(0, np.pi, 9)]
        return np.array([(-half, self.floor), (half, self.floor), *roof])


def bogies(d: Designer, s: TrainShape, spots: list[float], dark: Material, metal: Material, axles: int = 2) -> None:
    """Wheelsets in frames at every z of `spots`."""
    pitch, r = 2.5 * s.wheel, s.wheel
    x = 0.36 * s.width
    wheel = cylinder(r, 0.14, segments=8).rotate("z", 90)
    zs = [z + (i - (axles - 1) / 2) * pitch for z in spots for i in range(axles)]
    d.add("wheel", placed(wheel, [(side * x, r, z) for z in zs for side in (-1, 1)]), metal)
    frame = box(0.12, 0.5 * r, pitch * axles * 0.9).move(x=x + 0.14).with_mirror() + box(2 * x, 0.6 * r, 0.6 * r)
    pivot = box(0.7 * x, s.floor - 1.15 * r, 1.2 * r).move(y=0.5 * (s.floor - 1.15 * r))
    d.add("bogie", placed(frame + pivot, [(0, 1.15 * r, z) for z in spots]), dark)


def windows(d: Designer, s: TrainShape, start: float, stop: float, glass: Material) -> None:
    """A row of panes along both sides between two z, taller or lower by the train's draw."""
    crown = s.top - s.rounding * 0.5 * s.width
    high = crown - 0.06
    low = high - s.pane
    quads = panes((stop, start), (stop, start), (low, high), max(2, round((start - stop) / s.pitch)), 0.24 * s.pitch)
    d.add("window", slabs(quads, s.width + 0.03), glass)


def coach(
    d: Designer, s: TrainShape, start: float, length: float, paint: Material, trim: Material, glass: Material
) -> None:
    """A passenger vehicle: rounded roof, windows, doors, a stripe."""
    middle = start - length / 2
    d.add("body", extrude(s.section(), length).move(z=middle), paint)
    windows(d, s, start - 1.35, start - length + 1.35, glass)
    door = box(s.width + 0.02, 0.66 * s.height, 0.7).move(y=s.floor + 0.36 * s.height)
    d.add("door", placed(door, [(0, 0, start - 0.75), (0, 0, start - length + 0.75)]), trim)
    if d.choices["livery"] == "stripe":
        d.add(
            "stripe", box(s.width + 0.03, 0.14 * s.height, length - 2.4).move(0, s.floor + 0.2 * s.height, middle), trim
        )


def goods(
    d: Designer, s: TrainShape, kind: str, start: float, length: float, paint: Material, trim: Material, dark: Material
) -> None:
    """A goods wagon on its frame."""
    middle, half = start - length / 2, 0.5 * s.width
    if kind == "box":
        d.add("wagon", extrude(s.section(0.96), length).move(z=middle), paint)
        ribs = [
            box(s.width + 0.02, 0.72 * s.height, 0.1).move(0, s.floor + 0.38 * s.height, start - length * f)
            for f in (0.04, 0.2, 0.8, 0.96)
        ]
        d.add("wagon", joined(ribs), trim)
        d.add("door", box(s.width + 0.05, 0.7 * s.height, 0.3 * length).move(0, s.floor + 0.4 * s.height, middle), trim)
    elif kind == "tank":
        r = 0.46 * min(s.width, s.height)
        end = length / 2 - 0.2
        profile = [
            (0, -end),
            (0.7 * r, -0.95 * end),
            (r, -0.86 * end),
            (r, 0.86 * end),
            (0.7 * r, 0.95 * end),
            (0, end),
        ]
        d.add("tank", lathe(profile, 14).rotate("x", 90).move(0, s.floor + 0.1 + r, middle), paint)
        d.add("tank", cylinder(0.35 * r, 0.35 * r, segments=12).move(0, s.floor + 0.15 + 2 * r, middle), trim)
        bands = [
            cylinder(1.02 * r, 0.14, segments=14).rotate("x", 90).move(0, s.floor + 0.1 + r, middle + f * end)
            for f in (-0.55, 0.55)
        ]
        d.add("tank", joined(bands), dark)
    elif kind == "hopper":
        tall = 0.6 * s.height
        lean = 0.22 * length
        ends = [
            (start - length + 0.1, s.floor + tall),
            (start - 0.1, s.floor + tall),
            (start - 0.1 - lean, s.floor - 0.2),
            (start - length + 0.1 + lean, s.floor - 0.2),
        ]
        inner = np.array(ends) + np.array([(0.12, -0.5), (-0.12, -0.5), (-0.12, 0.3), (0.12, 0.3)])
        d.add("wagon", side_profile(ends, 0.1).move(x=half - 0.05).with_mirror(), paint)
        wall, reach = box(s.width - 0.04, tall / np.cos(0.2), 0.1), length / 2 - 0.16 - 0.34 * lean
        walls = [wall.rotate("x", sign * 22).move(0, s.floor + 0.5 * tall, middle + sign * reach) for sign in (-1, 1)]
        d.add("wagon", joined(walls), paint)
        d.add("load", side_profile(inner, s.width - 0.15), trim)
        posts = [
            box(0.1, tall, 0.1).move(half, s.floor + 0.5 * tall, middle + f * (length - 2.2 * lean))
            for f in (-0.45, -0.15, 0.15, 0.45)
        ]
        d.add("wagon", joined(posts).with_mirror(), trim)
    else:
        num = d.integer("num_containers", 1, 2)
        size = (length - 0.4) / num
        crate = box(0.94 * s.width, 0.78 * s.height, size - 0.15)
        for i in range(num):
            z = start - 0.2 - size * (i + 0.5)
            d.add("container", crate.move(0, s.floor + 0.06 + 0.39 * s.height, z), paint if i == 0 else trim)
            ribs = [
                box(0.94 * s.width + 0.06, 0.7 * s.height, 0.1).move(0, s.floor + 0.42 * s.height, z + f * size)
                for f in (-0.3, -0.1, 0.1, 0.3)
            ]
            d.add("container", joined(ribs), paint if i == 0 else trim)

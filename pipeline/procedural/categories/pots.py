"""Flowerpots: pots, their stands, and a plant in each."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.plants import PLANTS
from recon.pipeline.procedural.categories.vessels import SEGMENTS, squared, vessel
from recon.pipeline.procedural.designer import CERAMIC, METAL, PLASTIC, STONE, WOOD, Designer, Finish
from recon.pipeline.shapes.mesh import Floats, Material

SOIL: dict[str, Finish] = {
    "soil": ("3a2b21", 0.0, 0.95),
    "sand": ("b79f78", 0.0, 0.95),
    "gravel": ("7d7a76", 0.0, 0.95),
}


def _pot_side(d: Designer, kind: str) -> Floats:
    """A pot's outside (radius, y) pairs, both up to about 1."""
    taper = d.uniform("taper", 0.55, 0.95)
    t = np.linspace(0, 1, 8)
    straight = taper + (1 - taper) * t
    if kind == "rimmed":
        return np.array([(taper, 0), (taper + 0.76 * (1 - taper), 0.76), (1.08, 0.78), (1.12, 1.0)])
    if kind == "urn":
        radii = (0.6, 0.6, 0.3, 0.3, 0.62, 0.85, 0.84, 1.0, 1.02)
        return np.stack([radii, (0, 0.08, 0.16, 0.26, 0.36, 0.55, 0.8, 0.95, 1.0)], -1)
    if kind == "bowl":
        return np.stack([0.5 + 0.5 * np.sin(0.5 * np.pi * t), t], -1)
    if kind == "belly":
        return np.stack([straight + 0.3 * np.sin(np.pi * t), t], -1)
    return np.array([(taper, 0.0), (1.0, 1.0)])


def _pot_stand(d: Designer, height: float, low: float, stretch: float, segments: int) -> None:
    """What is under a pot of radius `low` at its foot, which stands on y = 0."""
    stand = d.choice(
        "stand",
        {"none": "", "saucer": "on a saucer", "legs": "on a stand with legs", "feet": "on small feet"},
        (0.45, 0.25, 0.15, 0.15),
    )
    if stand == "saucer":
        plate = vessel([(low, 0), (1.35 * low, 0.14 * height)], 0.09 * low, 0.06 * height, segments)
        d.add("saucer", plate.scale(x=stretch).move(y=-0.061 * height), d.material(STONE, CERAMIC, PLASTIC))
    elif stand != "none":
        drop = height * (d.uniform("leg_length", 0.4, 1.1) if stand == "legs" else 0.1)
        spread, thick = 0.75 * low, 0.09 * low if stand == "legs" else 0.2 * low
        turns = np.radians([45, 135, 225, 315])
        reach = spread * (1.0 if stand == "feet" else 1.25)
        legs = [
            g.rod(
                (reach * np.cos(a) * stretch, -drop, reach * np.sin(a)),
                (spread * np.cos(a) * stretch, 0.02 * height, spread * np.sin(a)),
                thick,
                sides=8,
            )
            for a in turns
        ]
        d.add("leg", sum(legs[1:], legs[0]), d.material(WOOD, METAL))
        if stand == "legs":
            d.add(
                "leg",
                g.cylinder(1.05 * low, 0.05 * height, segments=segments).scale(x=stretch).move(y=-0.03 * height),
                d.material(WOOD, METAL),
            )


def _pot(d: Designer, height: float, radius: float, material: Material) -> tuple[float, float, float]:
    """Add the pot; returns the soil's height and half sizes in x and z."""
    kinds = {
        "rimmed": "with a thick rim",
        "cylinder": "",
        "bowl": "like a bowl",
        "urn": "on a foot",
        "belly": "with a rounded belly",
        "square": "with a square pot",
        "hexagonal": "with a hexagonal pot",
        "trough": "with a long trough",
    }
    kind = d.choice("pot", kinds, (0.2, 0.12, 0.13, 0.11, 0.13, 0.12, 0.09, 0.1))
    side = _pot_side(d, kind) * [radius, height]
    segments = 6 if kind == "hexagonal" else SEGMENTS
    stretch = d.uniform("length", 1.6, 2.6) if kind == "trough" else 1.0
    body = vessel(side, 0.09 * radius, 0.3 * height, segments)
    level = 0.88 * height
    inside = float(np.interp(level, side[:, 1], side[:, 0])) - 0.05 * radius
    soil = g.cylinder(inside, 0.04 * height, segments=segments).move(y=level)
    if kind in ("square", "trough"):
        body, soil = squared(body, height, 2 * height), squared(soil, height, 2 * height)
    d.add("pot", body.scale(x=stretch), material)
    d.add("soil", soil.scale(x=stretch), d.material(SOIL))
    _pot_stand(d, height, float(side[0, 0]), stretch, segments)
    return level, inside * stretch, inside


def flowerpot(d: Designer) -> None:
    """A pot with soil and a plant; the plant may hang below the rim."""
    height = d.uniform("pot_height", 0.1, 0.34)
    radius = height * d.uniform("pot_width", 0.36, 0.85)
    level, half_length, half = _pot(d, height, radius, d.material(STONE, CERAMIC, PLASTIC, WOOD, METAL))
    size = height * d.uniform("plant_height", 0.8, 2.6)
    kinds = {
        "bush": "holding a leafy plant",
        "blades": "holding tall grass-like leaves",
        "trailing": "holding a trailing plant",
        "rosette": "holding a succulent",
        "cactus": "holding a cactus",
        "flowers": "holding flowers",
        "tree": "holding a small tree",
    }
    first = len(d.primitives)
    PLANTS[d.choice("plant", kinds, (0.17, 0.15, 0.12, 0.1, 0.14, 0.18, 0.14))](d, half, size)
    _plant(d, first, level, half_length / half)


def _plant(d: Designer, first: int, level: float, stretch: float) -> None:
    """Set the plant (primitives from `first` on) on the soil, drawn out along a trough, and the whole on y = 0."""
    for p in d.primitives[first:]:
        p.vertices[:] = p.vertices * [1 + 0.6 * (stretch - 1), 1, 1] + [0, level, 0]
    lowest = min(float(p.vertices[:, 1].min()) for p in d.primitives)
    for p in d.primitives:
        p.vertices[:] -= [0, lowest, 0]


BUILDERS = {"flowerpot": flowerpot}

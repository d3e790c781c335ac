"""Clocks that stand: on a mantelpiece, or on the floor in a tall case."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.dials import add_dial, bezel, disc, pendulum
from recon.pipeline.procedural.designer import CERAMIC, GLASS, METAL, PAINT, STONE, WOOD, Designer
from recon.pipeline.shapes.mesh import Material


def _mantel_outline(
    d: Designer, shape: str, margin: float, low: float, top: float, y: float
) -> tuple[ArrayLike, float]:
    """The case's front view from height `low` to `top` about a dial at height `y`, and half its width at the foot."""
    half = margin
    round_top = g.arc(margin, 0, 180, 14) + np.array([0, top - margin])
    outlines: dict[str, ArrayLike] = {
        "arch": np.concatenate([[(-margin, low), (margin, low)], round_top]),
        "gable": [
            (-margin, low),
            (margin, low),
            (margin, top - 0.3 * margin),
            (0, top + 0.9 * margin),
            (-margin, top - 0.3 * margin),
        ],
        "carriage": g.rounded_rectangle(2 * margin, top - low, 0.06 * margin, 2) + np.array([0, 0.5 * (top + low)]),
        "columns": [(-margin, low), (margin, low), (margin, top), (-margin, top)],
        "disc": g.arc(margin, 0, 345, 24) + np.array([0, y]),
        "dome": [(-0.4 * margin, low), (0.4 * margin, low), (0.4 * margin, y), (-0.4 * margin, y)],
    }
    if shape == "hat":
        half = margin * d.uniform("skirt", 1.9, 2.8)
        side = g.smooth(
            [
                (half, low),
                (0.92 * half, low + 0.3 * margin),
                (0.62 * half, low + 0.55 * margin),
                (1.0 * margin, low + 1.25 * margin),
            ],
            9,
        )
        crown = g.arc(1.03 * margin, 20, 160, 12) + np.array([0, y])
        outlines["hat"] = np.concatenate([side, crown, (side * [-1, 1])[::-1]])
    return outlines[shape], half


def _mantel_trim(
    d: Designer,
    shape: str,
    radius: float,
    margin: float,
    depth: float,
    heights: tuple[float, float, float],
    plinth: Material,
) -> None:
    """Columns, handle, pediment or foot; `heights` are the case's foot, the dial's middle and the case's top."""
    low, y, top = heights
    if shape == "dome":
        d.add("base", g.cylinder(1.5 * margin, low, 1.35 * margin).move(y=0.5 * low), plinth)
        bars = g.rod(
            (0.6 * margin, low, -0.2 * depth), (0.6 * margin, y + 0.8 * radius, -0.2 * depth), 0.06 * radius, sides=8
        ).with_mirror()
        hoop = g.tube(
            np.column_stack([g.arc(1.25 * margin, 0, 180, 16) + np.array([0, y]), np.zeros(16)]), 0.05 * radius, 8
        )
        d.add(
            "column",
            bars
            + hoop
            + g.rod(
                (1.25 * margin, 0.5 * low, 0), (1.25 * margin, y + 0.1 * radius, 0), 0.05 * radius, sides=8
            ).with_mirror(),
            d.material(METAL),
        )
    if shape == "disc":
        d.add("base", g.rod((0, 0.8 * low, 0), (0, y - 0.9 * margin, 0), 0.3 * radius, 0.2 * radius), plinth)
    if shape == "carriage":
        path = [
            (-0.6 * margin, top, 0),
            (-0.6 * margin, top + 0.45 * margin, 0),
            (0.6 * margin, top + 0.45 * margin, 0),
            (0.6 * margin, top, 0),
        ]
        d.add("handle", g.tube(path, 0.07 * margin, 8), d.material(METAL))
    if shape in ("carriage", "columns"):
        reach = 1.02 if shape == "carriage" else 1.22
        post = g.cylinder(0.12 * margin, top - low, segments=10).move(
            x=reach * margin, y=0.5 * (top + low), z=0.42 * depth
        )
        d.add("column", post.with_mirror() + post.move(z=-0.84 * depth).with_mirror(), d.material(METAL, STONE, WOOD))
        d.add(
            "top",
            g.box(2.2 * reach * margin, 0.16 * margin, 1.15 * depth, 0.03 * margin).move(y=top + 0.05 * margin),
            plinth,
        )
        if shape == "columns" and d.choice("gable", {"flat": "", "pointed": "with a pediment"}) == "pointed":
            roof = [(-1.3 * margin, top + 0.12 * margin), (1.3 * margin, top + 0.12 * margin), (0, top + 0.75 * margin)]
            d.add("top", g.extrude(roof, depth), plinth)


def mantel_clock(d: Designer) -> None:
    """A clock that stands on a shelf, in a shaped case on a plinth."""
    radius = d.uniform("radius", 0.06, 0.11)
    kinds = {
        "hat": "with a sloping case",
        "arch": "with an arched case",
        "gable": "with a pointed case",
        "carriage": "with a handle on top",
        "columns": "with columns beside its dial",
        "dome": "under a dome",
        "disc": "with a round case on a foot",
    }
    shape = d.choice("shape", kinds, (0.18, 0.16, 0.14, 0.17, 0.15, 0.08, 0.12))
    margin, depth = radius * d.uniform("margin", 1.15, 1.5), radius * d.uniform("depth", 0.7, 1.4)
    low = radius * d.uniform("foot_height", 0.15, 0.5)
    tall = margin * d.uniform("stretch", 1.0, 1.7)
    y = low + 2 * tall - margin if shape != "hat" else low + margin
    finish = d.material(WOOD, STONE, METAL, CERAMIC)
    top, front = low + 2 * tall, 0.5 * depth
    outline, half = _mantel_outline(d, shape, margin, low, top, y)
    d.add("case", g.extrude(outline, depth if shape != "dome" else 0.5 * depth), finish)
    plinth = d.material(WOOD, STONE, METAL) if d.rng.random() < 0.4 else finish
    if shape == "dome":
        front = 0.27 * depth
    else:
        d.add("base", g.box(2.16 * half, low + 0.002, 1.18 * depth, 0.2 * low).move(y=0.5 * low), plinth)
    _mantel_trim(d, shape, radius, margin, depth, (low, y, top), plinth)
    add_dial(d, radius, y, front)
    d.add("bezel", bezel(1.04 * radius, 0.07 * radius, y, front + 0.02 * radius), d.material(METAL))


def _tall_crown(d: Designer, half: float, depth: float, top: float, finish: Material) -> None:
    """What crowns the hood of a tall clock."""
    kinds = {
        "flat": "with a flat top",
        "arched": "with an arched top",
        "swan": "with scrolls on top",
        "pointed": "with a pointed top",
        "stepped": "with a stepped top",
    }
    crown = d.choice("crown", kinds)
    rise = half * d.uniform("crown_height", 0.4, 1.0)
    if crown == "arched":
        d.add("hood", g.extrude(g.arc(half, 0, 180, 14) * [1.0, rise / half], 0.96 * depth).move(y=top), finish)
    elif crown == "pointed":
        d.add("hood", g.extrude([(-1.08 * half, 0), (1.08 * half, 0), (0, rise)], depth).move(y=top), finish)
    elif crown == "stepped":
        d.add(
            "hood",
            g.box(1.5 * half, 0.6 * rise, 0.8 * depth).move(y=top + 0.3 * rise)
            + g.box(0.9 * half, rise, 0.6 * depth).move(y=top + 0.5 * rise),
            finish,
        )
    elif crown == "swan":
        upper = g.smooth(
            [(half, 0.1 * rise), (0.7 * half, 0.35 * rise), (0.4 * half, 0.95 * rise), (0.12 * half, rise)], 9
        )
        d.add(
            "hood",
            g.extrude(np.concatenate([[(0.12 * half, 0), (half, 0)], upper]), 0.6 * depth)
            .with_mirror()
            .move(y=top, z=0.1 * depth),
            finish,
        )
        d.add(
            "finial",
            g.ellipsoid(0.1 * half, 0.24 * half, 0.1 * half, 12).move(y=top + 0.24 * half),
            d.material(METAL, WOOD),
        )


def _tall_door(d: Designer, waist: float, front: float, low: float, high: float, depth: float, trim: Material) -> None:
    """The door in the trunk between two heights, with the pendulum and weights behind its glass."""
    door = d.choice(
        "door",
        {"glass": "with a glass door", "panel": "", "round": "with a round window", "open": "with a bare pendulum"},
        (0.4, 0.25, 0.17, 0.18),
    )
    if door == "round":
        d.add("glass", disc(0.6 * waist, 0.02 * depth, 20).move(y=low + 0.3 * (high - low), z=front), d.material(GLASS))
        d.add("moulding", bezel(0.62 * waist, 0.07 * waist, low + 0.3 * (high - low), front), trim)
    else:
        palette = {"glass": GLASS, "panel": WOOD, "open": {"ebony": WOOD["ebony"]}}[door]
        d.add(
            "door",
            g.box(1.5 * waist, high - low, 0.03 * depth).move(y=0.5 * (low + high), z=front),
            d.material(palette),
        )
        stile = (
            g.box(0.1 * waist, high - low, 0.07 * depth)
            .move(x=0.72 * waist, y=0.5 * (low + high), z=front)
            .with_mirror()
        )
        rail = g.box(1.54 * waist, 0.1 * waist, 0.075 * depth)
        d.add("moulding", stile + rail.move(y=low, z=front) + rail.move(y=high, z=front), trim)
    if door in ("glass", "open"):
        length = (high - low) * d.uniform("pendulum", 0.5, 0.78)
        pendulum(d, high - 0.02, length, front + 0.06 * depth, waist * 0.26)
        for x in (-0.42, 0.42):
            drop = (high - low) * float(d.rng.uniform(0.25, 0.6))
            d.add(
                "weight",
                g.cylinder(0.1 * waist, 0.26 * waist, segments=10).move(x * waist, high - drop, front + 0.05 * depth)
                + g.rod(
                    (x * waist, high, front + 0.05 * depth),
                    (x * waist, high - drop, front + 0.05 * depth),
                    0.015 * waist,
                    sides=6,
                ),
                d.material(METAL),
            )


def tall_clock(d: Designer) -> None:
    """A tall case: base, narrower trunk with a door, hood with the dial."""
    height = d.uniform("height", 1.6, 2.4)
    half = height * d.uniform("slenderness", 0.085, 0.125)
    waist = half * d.uniform("waist", 0.62, 0.95)
    depth = half * d.uniform("depth", 0.9, 1.4)
    foot, hood = height * d.uniform("base_height", 0.16, 0.28), height * d.uniform("hood_height", 0.2, 0.28)
    finish = d.material(WOOD, PAINT, STONE)
    top, neck = height, height - hood
    d.add(
        "case", g.box(2 * waist, neck - foot + 0.04, 0.85 * depth).move(y=0.5 * (neck + foot), z=-0.05 * depth), finish
    )
    d.add("base", g.box(2 * half, foot, depth, 0.02 * half).move(y=0.5 * foot + 0.02 * height), finish)
    d.add("base", g.box(2.2 * half, 0.05 * height, 1.1 * depth, 0.008 * height).move(y=0.025 * height), finish)
    trim = finish if d.rng.random() < 0.5 else d.material(WOOD, METAL, PAINT)
    for y, size in ((foot + 0.02 * height, 1.04), (neck, 1.08), (top, 1.12)):
        d.add("moulding", g.box(2 * half * size, 0.022 * height, depth * size, 0.006 * height).move(y=y), trim)
    d.add("hood", g.box(1.9 * half, hood, 0.96 * depth).move(y=top - 0.5 * hood), finish)
    _tall_crown(d, half, depth, top, finish)
    if d.choice("pillars", {"none": "", "pillars": "with pillars beside its dial"}, (0.6, 0.4)) == "pillars":
        post = g.cylinder(0.09 * half, hood, segments=10).move(x=0.98 * half, y=top - 0.5 * hood, z=0.48 * depth)
        d.add("column", post.with_mirror(), trim)
    _tall_door(d, waist, 0.375 * depth, foot + 0.07 * height, neck - 0.05 * height, depth, trim)
    radius = min(0.8 * half, 0.42 * hood)
    y = top - 0.5 * hood
    square = d.choice("dial", {"round": "", "square": "with a square dial"}, (0.6, 0.4)) == "square"
    add_dial(d, radius, y, 0.48 * depth, square)
    if not square:
        d.add("bezel", bezel(1.03 * radius, 0.06 * radius, y, 0.49 * depth), trim)

"""Clocks: wall and alarm clocks here, standing ones beside. The face looks towards +z."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.dials import add_dial, bezel, digits, disc, pendulum
from recon.pipeline.procedural.categories.joinery import merge, settle
from recon.pipeline.procedural.categories.standing_clocks import mantel_clock, tall_clock
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, PLASTIC, WOOD, Designer, Finish
from recon.pipeline.shapes.mesh import Floats, Material


def _polygon(count: int, radius: float) -> Floats:
    """[count, 2] with a flat edge below."""
    a = np.radians(-90 + 180 / count + 360 * np.arange(count) / count)
    return np.stack([radius * np.cos(a), radius * np.sin(a)], -1)


def _wall_frame(d: Designer, shape: str, radius: float, frame: float, depth: float, finish: Material) -> bool:
    """Add the body behind the dial; whether the dial on it is square."""
    square = False
    if shape in ("round", "drop"):
        profile = [
            (0, 0),
            (frame, 0),
            (frame, 0.6 * depth),
            (0.5 * (frame + radius), 1.15 * depth),
            (radius, depth),
            (0, 0.9 * depth),
        ]
        d.add("frame", g.lathe(profile, 28).rotate("x", 90), finish)
    elif shape == "square":
        square = d.choice("dial", {"round": "", "square": "with a square dial"}) == "square"
        d.add(
            "frame",
            g.extrude(
                g.rounded_rectangle(2 * frame, 2 * frame, radius * d.uniform("corner", 0.03, 0.6), 5), depth
            ).move(z=0.5 * depth),
            finish,
        )
    elif shape == "octagon":
        sides = d.integer("num_sides", 6, 10)
        d.add(
            "frame",
            g.extrude(_polygon(sides, 1.08 * frame / np.cos(np.pi / sides)), depth, bevel=0.06).move(z=0.5 * depth),
            finish,
        )
    elif shape == "scalloped":
        t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        r = frame * (1.12 + 0.1 * np.abs(np.sin(0.5 * d.integer("num_scallops", 8, 14) * t)))
        d.add("frame", g.extrude(np.stack([r * np.cos(t), r * np.sin(t)], -1), depth).move(z=0.5 * depth), finish)
    elif shape == "sunburst":
        rays, reach = d.integer("num_rays", 10, 24), radius * d.uniform("ray_length", 1.6, 2.6)
        ray = g.extrude(
            [
                (-0.09 * radius, 0.8 * radius),
                (0.09 * radius, 0.8 * radius),
                (0.03 * radius, reach),
                (-0.03 * radius, reach),
            ],
            0.3 * depth,
        )
        short = ray.scale(y=0.8)
        d.add("frame", disc(1.06 * radius, depth), finish)
        burst = [(short if i % 2 else ray).rotate("z", 360 * i / rays).move(z=0.4 * depth) for i in range(rays)]
        d.add("ray", merge(burst), d.material(WOOD, METAL, PAINT))
    else:
        _house(d, radius, frame, depth, finish)
    return square


def _drop_case(d: Designer, radius: float, frame: float, depth: float, finish: Material) -> None:
    """A glazed box for the pendulum below a round wall clock."""
    tall, half = radius * d.uniform("drop", 1.5, 2.6), 0.55 * radius
    outline = [(-half, -0.5 * radius), (-half, -tall), (0, -tall - 0.4 * radius), (half, -tall), (half, -0.5 * radius)]
    d.add("case", g.extrude(outline, 0.85 * depth).move(z=0.425 * depth), finish)
    low, high = -tall + 0.05 * radius, -1.05 * frame
    if high - low > 0.15 * radius:
        d.add(
            "glass",
            g.box(1.5 * half, high - low, 0.1 * depth).move(y=0.5 * (low + high), z=0.86 * depth),
            d.material(GLASS),
        )
        bob = min(0.35 * half, 0.4 * (high - low))
        pendulum(d, high, 0.6 * (high - low), 0.99 * depth, bob)


def _wall_clock(d: Designer) -> None:
    """A plate on the wall: round, cornered, a sunburst, or a small house with a pendulum."""
    radius = d.uniform("radius", 0.11, 0.24)
    kinds = {
        "round": "with a round frame",
        "square": "with a square frame",
        "octagon": "with an octagonal frame",
        "sunburst": "with rays like a sun",
        "drop": "with a pendulum box below",
        "house": "shaped like a small house",
        "scalloped": "with a scalloped frame",
    }
    shape = d.choice("shape", kinds, (0.2, 0.14, 0.13, 0.13, 0.15, 0.15, 0.1))
    frame, depth = radius * d.uniform("frame_width", 1.08, 1.35), radius * d.uniform("depth", 0.2, 0.5)
    finish = d.material(WOOD, PLASTIC, METAL, PAINT)
    square = _wall_frame(d, shape, radius, frame, depth, finish)
    if shape == "drop":
        _drop_case(d, radius, frame, depth, finish)
    add_dial(d, radius if shape != "house" else 0.72 * radius, 0, depth * (1.0 if shape != "house" else 1.6), square)
    if shape in ("square", "octagon", "sunburst", "scalloped") and not square:
        d.add("bezel", bezel(1.02 * radius, 0.06 * radius, 0, depth), d.material(METAL, WOOD, PAINT))


def _house(d: Designer, radius: float, frame: float, depth: float, finish: Material) -> None:
    """A cuckoo clock: gabled body, roof boards, door, pendulum and weights below."""
    wide, low, deep = frame, -1.25 * frame, 1.6 * depth
    peak = frame * d.uniform("gable", 1.7, 2.4)
    d.add(
        "case",
        g.extrude([(-wide, low), (wide, low), (wide, 0.8 * frame), (0, peak), (-wide, 0.8 * frame)], deep).move(
            z=0.5 * deep
        ),
        finish,
    )
    slope = np.array([wide * 1.3, 0.8 * frame - 0.3 * (peak - 0.8 * frame)])
    board = [
        (-0.02 * wide, peak),
        tuple(slope),
        tuple(slope + np.array([0, 0.14 * frame])),
        (-0.02 * wide, peak + 0.16 * frame),
    ]
    d.add("roof", g.extrude(board, 1.7 * deep).with_mirror().move(z=0.75 * deep), d.material(WOOD, PAINT))
    d.add("door", g.box(0.36 * frame, 0.36 * frame, 0.2 * depth).move(y=0.95 * frame, z=deep), d.material(WOOD, PAINT))
    length = radius * d.uniform("pendulum", 1.0, 2.2)
    pendulum(d, low + 0.02, length, 0.4 * deep, 0.24 * radius)
    for x, share in ((-0.5, 0.8), (0.5, 1.3)):
        chain = g.rod(
            (x * wide, low + 0.01, 0.5 * deep), (x * wide, low - share * length, 0.5 * deep), 0.02 * radius, sides=6
        )
        cone = g.ellipsoid(0.09 * radius, 0.26 * radius, 0.09 * radius, 10).move(
            x * wide, low - share * length, 0.5 * deep
        )
        d.add("weight", chain + cone, d.material(WOOD, METAL))


def _digital_clock(d: Designer) -> None:
    """A bedside box with glowing digits and a button on top."""
    size = d.uniform("digit_height", 0.03, 0.06)
    width, height = size * d.uniform("width", 4.2, 6.0), size * d.uniform("height", 1.5, 2.4)
    depth, lean = size * d.uniform("depth", 0.8, 2.0), d.uniform("lean", 0.0, 0.35)
    shape = d.choice("shape", {"box": "", "wedge": "with a slanted case", "round": "with a rounded case"})
    finish = d.material(PLASTIC, WOOD, METAL)
    if shape == "round":
        body = g.extrude(g.rounded_rectangle(width, height, 0.45 * height, 6), depth).move(y=0.5 * height)
    else:
        body = g.box(width, height, depth, 0.06 * height).move(y=0.5 * height)
    slant = lean * depth if shape == "wedge" else 0.0

    def lean_back(v: Floats) -> Floats:
        v[:, 2] -= slant * (v[:, 1] / height) * (v[:, 2] > -0.2 * depth)
        return v

    d.add("case", body.warp(lean_back), finish)
    panel = g.box(3.9 * size, 1.3 * size, 0.08 * size).move(y=0.5 * height, z=0.5 * depth)
    d.add(
        "screen",
        panel.warp(lean_back),
        d.material({"dark glass": GLASS["dark glass"], "black plastic": PLASTIC["black plastic"]}),
    )
    time = d.uniform("time", 0, 24)
    numbers = digits(int(time), int(time % 1 * 60), 0.9 * size).move(y=0.5 * height, z=0.5 * depth + 0.07 * size)
    glow: dict[str, Finish] = {
        "red light": ("ff4436", 0.0, 0.5),
        "green light": ("58e07a", 0.0, 0.5),
        "white light": ("f2f6f8", 0.0, 0.5),
        "blue light": ("6bb8ff", 0.0, 0.5),
    }
    d.add("digit", numbers.warp(lean_back), d.material(glow))
    if (
        d.choice(
            "snooze",
            {"bar": "with a large button on top", "knobs": "with small buttons on top", "none": ""},
            (0.4, 0.35, 0.25),
        )
        != "none"
    ):
        spots = (0.0,) if d.choices["snooze"] == "bar" else (-0.25, 0.0, 0.25)
        wide = 0.4 * width if len(spots) == 1 else 0.1 * width
        keys = [
            g.box(wide, 0.2 * size, 0.4 * depth, 0.04 * size).move(
                x * width, height + 0.02 * size, -0.1 * depth - 0.5 * slant
            )
            for x in spots
        ]
        d.add("button", merge(keys), d.material(PLASTIC, METAL))
    if d.choice("feet", ["none", "feet"]) == "feet":
        foot = g.cylinder(0.14 * size, 0.16 * size, segments=10).move(x=0.32 * width, y=-0.07 * size)
        d.add("foot", foot.with_mirror(), d.material(PLASTIC, METAL))


def _alarm_top(d: Designer, radius: float, y: float, metal: Material) -> None:
    """Bells and hammer, a handle or a button on a case whose middle is at height `y`."""
    kinds = {
        "two": "with two bells",
        "one": "with one bell on top",
        "handle": "with a handle on top",
        "button": "with a button on top",
    }
    top = d.choice("bells", kinds, (0.5, 0.2, 0.15, 0.15))
    size = radius * d.uniform("bell_size", 0.38, 0.6)
    t = np.linspace(0, 0.5 * np.pi, 6)
    bell = g.lathe(np.concatenate([[(0, 0)], np.stack([size * np.cos(t), 0.75 * size * np.sin(t)], -1)]), 18)
    reach = 1.22 * radius
    if top == "two":
        tilt = d.uniform("bell_angle", 28, 42)
        one = (bell.move(y=reach) + g.rod((0, 0.9 * radius, 0), (0, reach + size, 0), 0.06 * radius, sides=8)).rotate(
            "z", -tilt
        )
        d.add("bell", one.with_mirror().move(y=y), d.material(METAL, PAINT))
        hammer = g.rod((0, 0.9 * radius, 0), (0, 1.5 * radius, 0), 0.04 * radius, sides=6) + g.box(
            0.3 * radius, 0.16 * radius, 0.14 * radius
        ).move(y=1.55 * radius)
        d.add("hammer", hammer.move(y=y), metal)
    elif top == "one":
        post = g.rod((0, 0.9 * radius, 0), (0, reach + 0.8 * size, 0), 0.07 * radius, sides=8)
        d.add("bell", (bell.scale(1.5, 1.2, 1.5).move(y=reach) + post).move(y=y), d.material(METAL, PAINT))
    elif top == "button":
        d.add(
            "button",
            g.cylinder(0.25 * radius, 0.5 * radius, segments=14).move(y=y + 1.2 * radius),
            d.material(PLASTIC, METAL),
        )
    if top in ("two", "handle"):
        hoop = g.arc(0.8 * radius, 0, 180, 12) * [1, 1.1] + [0, y + (1.35 if top == "two" else 0.95) * radius]
        d.add("handle", g.tube(np.column_stack([hoop, np.zeros(12)]), 0.06 * radius, 8), metal)


def _alarm_clock(d: Designer) -> None:
    """A wind-up alarm: a drum on two legs, bells and hammer on top."""
    radius = d.uniform("radius", 0.04, 0.075)
    depth, y = radius * d.uniform("depth", 0.6, 1.3), 1.35 * radius
    shape = d.choice(
        "shape",
        {"drum": "with a round case", "square": "with a square case", "pot": "with a bulging case"},
        (0.5, 0.25, 0.25),
    )
    finish = d.material(METAL, PAINT, PLASTIC)
    if shape == "square":
        body = g.extrude(g.rounded_rectangle(2.2 * radius, 2.2 * radius, 0.35 * radius, 5), depth)
    else:
        middle = 1.12 * radius * (1.18 if shape == "pot" else 1.0)
        body = g.lathe(
            [
                (0, -0.5 * depth),
                (0.95 * radius, -0.5 * depth),
                (middle, -0.2 * depth),
                (middle, 0.25 * depth),
                (1.08 * radius, 0.5 * depth),
                (0, 0.5 * depth),
            ],
            26,
        ).rotate("x", 90)
    d.add("case", body.move(y=y), finish)
    splay = d.uniform("splay", 25, 50)
    a = np.radians(splay)
    leg = g.rod(
        (1.0 * radius * np.sin(a), y - 1.0 * radius * np.cos(a), 0),
        (1.5 * radius * np.sin(a), 0.04 * radius, 0),
        0.1 * radius,
        0.07 * radius,
        8,
    )
    metal = d.material(METAL)
    d.add("foot", leg.with_mirror(), metal)
    _alarm_top(d, radius, y, metal)
    key = g.box(0.5 * radius, 0.16 * radius, 0.08 * radius).move(z=-0.3 * radius) + g.rod(
        (0, 0, 0.05 * radius), (0, 0, -0.3 * radius), 0.06 * radius, sides=8
    )
    d.add("key", key.move(y=y, z=-0.5 * depth), metal)
    add_dial(d, radius, y, 0.5 * depth)
    d.add("bezel", bezel(1.03 * radius, 0.07 * radius, y, 0.5 * depth), d.material(METAL, PAINT))


def clock(d: Designer) -> None:
    """A wall, mantel, grandfather, wind-up or digital alarm clock."""
    kind = d.choice(
        "kind",
        {
            "wall": "for a wall",
            "mantel": "for a mantelpiece",
            "tall": "in a tall case",
            "alarm": "with an alarm",
            "digital": "with glowing digits",
        },
        (0.3, 0.22, 0.2, 0.18, 0.1),
    )
    builders = {
        "wall": _wall_clock,
        "mantel": mantel_clock,
        "tall": tall_clock,
        "alarm": _alarm_clock,
        "digital": _digital_clock,
    }
    builders[kind](d)
    settle(d)


BUILDERS = {"clock": clock}

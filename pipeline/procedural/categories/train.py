"""Trains, the leading vehicle's nose to +Z: steam, diesel, high-speed, tram and freight."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import ellipse_loft, joined, placed, rods, settle, side_profile
from recon.pipeline.procedural.categories.wagons import WAGONS, TrainShape, bogies, coach, goods, windows
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, Designer
from recon.pipeline.procedural.geometry import Geometry, arc, box, cylinder, extrude, lathe, loft
from recon.pipeline.shapes.mesh import Floats, Material

KINDS = {
    "steam": "pulled by a steam locomotive",
    "diesel": "pulled by a diesel locomotive",
    "fast": "as a streamlined high-speed train",
    "tram": "as a tram",
    "hood": "pulled by a locomotive with a long hood",
}


def _steam(
    d: Designer, s: TrainShape, paint: Material, trim: Material, metal: Material, dark: Material, glass: Material
) -> float:
    """Boiler, chimney, domes, cab, driving wheels with rods; then the tender. Returns the locomotive's length."""
    long, r = s.length * 0.8, 0.34 * s.width * d.uniform("boiler_radius", 0.85, 1.2)
    axis, cab = s.floor + 0.35 + r, 0.2 * long
    boiler = [
        (0, -0.5 * long + cab),
        (r, -0.5 * long + cab),
        (r, 0.2 * long),
        (1.04 * r, 0.2 * long),
        (1.04 * r, 0.46 * long),
        (0.7 * r, 0.485 * long),
        (0, 0.49 * long),
    ]
    middle = -long / 2
    d.add("body", lathe(boiler, 18).rotate("x", 90).move(0, axis, middle), paint)
    bands = [
        cylinder(1.015 * r, 0.1, segments=14).rotate("x", 90).move(0, axis, middle + f * long) for f in (-0.14, 0.03)
    ]
    d.add("band", joined(bands), metal)
    tall = d.uniform("chimney_height", 0.6, 1.3)
    stack = d.choice(
        "chimney", {"straight": "", "flared": "with a flared chimney", "diamond": "with a diamond chimney"}
    )
    profile = {
        "straight": [(0.2, 0), (0.2, 0.85), (0.27, 0.88), (0.27, 1)],
        "flared": [(0.17, 0), (0.17, 0.3), (0.4, 1)],
        "diamond": [(0.16, 0), (0.18, 0.35), (0.46, 0.7), (0.28, 1)],
    }[stack]
    shape = [(0, -0.4), *[(x, y * tall) for x, y in profile], (0, tall)]
    d.add("chimney", lathe(shape, 12).move(0, axis + 0.95 * r, -0.13 * long), dark)
    dome = lathe([(0, -0.3), (0.3, -0.3), (0.3, 0.22), (0.2, 0.42), (0, 0.5)], 10)
    num = d.integer("num_domes", 1, 2)
    d.add("dome", placed(dome, [(0, axis + 0.92 * r, -long * (0.36 + 0.2 * i)) for i in range(num)]), metal)
    back, roof = -long, axis + r + d.uniform("cab_height", 0.25, 0.7)
    d.add("cab", box(0.92 * s.width, roof - s.floor, cab).move(0, (roof + s.floor) / 2, back + cab / 2), paint)
    canopy = extrude(np.array([*arc(0.75 * s.width, 48, 132, 7), *(arc(0.75 * s.width - 0.1, 132, 48, 7))]), 1.3 * cab)
    d.add("cab", canopy.move(0, roof - 0.75 * s.width * np.sin(np.radians(48)) + 0.05, back + 0.5 * cab), dark)
    d.add(
        "window",
        box(0.92 * s.width + 0.03, 0.3 * (roof - s.floor), 0.55 * cab).move(
            0, roof - 0.27 * (roof - s.floor), back + cab / 2
        ),
        glass,
    )
    d.add(
        "window",
        box(0.22 * s.width, 0.24 * (roof - s.floor), 0.2)
        .move(0.33 * s.width, roof - 0.22 * (roof - s.floor), back + cab - 0.08)
        .with_mirror(),
        glass,
    )
    d.add("frame", box(0.8 * s.width, 0.4, 0.98 * long).move(0, s.floor - 0.02, middle), dark)
    d.add("frame", box(0.96 * s.width, 0.07, 0.72 * long).move(0, s.floor + 0.3, -0.5 * long), trim)
    num_wheels, big = d.integer("num_driving_axles", 2, 4), s.floor * d.uniform("driving_wheel", 0.55, 0.78)
    pitch = 2.12 * big
    zs = [-0.92 * long + big + pitch * i for i in range(num_wheels) if -0.92 * long + big + pitch * i < -1.4]
    x = 0.38 * s.width
    wheel = lathe([(0.82 * big, -0.06), (big, -0.06), (big, 0.06), (0.82 * big, 0.06)], 14, closed=True).rotate("z", 90)
    bar = box(0.08, 1.7 * big, 0.1 * big)
    star = joined([bar.rotate("x", 90 * i + 45) for i in range(2)]) + cylinder(0.22 * big, 0.16, segments=5).rotate(
        "z", 90
    )
    d.add("wheel", placed(wheel + star, [(side * x, big, z) for z in zs for side in (-1, 1)]), trim)
    d.add(
        "rod",
        box(0.08, 0.14 * big, zs[-1] - zs[0] + 1.6).move(x + 0.16, 0.8 * big, (zs[0] + zs[-1]) / 2 + 0.6).with_mirror(),
        metal,
    )
    d.add(
        "piston",
        cylinder(0.28, 1.1, segments=14).rotate("x", 90).move(x + 0.14, 0.85 * s.floor, -0.13 * long).with_mirror(),
        dark,
    )
    small = cylinder(0.6 * s.wheel, 0.12, segments=12).rotate("z", 90)
    d.add("wheel", placed(small, [(side * x, 0.6 * s.wheel, -0.06 * long) for side in (-1, 1)]), trim)
    catcher = _plough(0.86 * s.width, s.floor - 0.2, 0.9)
    if d.choice("cowcatcher", {"cowcatcher": "with a cowcatcher", "beam": ""}) == "cowcatcher":
        d.add("cowcatcher", catcher.move(0, 0.1, -0.1), trim)
    d.add("frame", box(0.92 * s.width, 0.3, 0.14).move(0, s.floor, -0.06), trim)
    d.add("light", cylinder(0.2, 0.3, segments=12).rotate("x", 90).move(0, axis + 1.1 * r, -0.04 * long), metal)
    return long


def _plough(width: float, height: float, reach: float) -> Geometry:
    """A plough: a wedge whose point looks to +Z, standing on y = 0."""
    outline = [(-width / 2, 0.0), (0.0, reach), (width / 2, 0.0)]
    wedge = extrude(outline, height).rotate("x", 90).scale(y=-1.0).move(y=height / 2)
    return wedge.warp(
        lambda v: np.stack([v[:, 0], v[:, 1], np.where(v[:, 1] > height / 2, 0.2 * v[:, 2], v[:, 2])], -1)
    )


def _tender(d: Designer, s: TrainShape, start: float, paint: Material, dark: Material, trim: Material) -> float:
    """The wagon of coal behind a steam locomotive."""
    long = 0.38 * s.length
    tall = 0.6 * s.height
    d.add("tender", box(0.88 * s.width, tall, long).move(0, s.floor + tall / 2, start - long / 2), paint)
    coal = ellipse_loft(
        [
            (start - 0.12 * long, s.floor + tall, 0.2 * s.width, 0.1),
            (start - 0.4 * long, s.floor + tall, 0.38 * s.width, 0.4),
            (start - 0.9 * long, s.floor + tall, 0.36 * s.width, 0.25),
        ],
        10,
    )
    d.add("load", coal, dark)
    bogies(d, s, [start - 0.5 * long], dark, trim, 3 if long > 4 else 2)
    return long


def _diesel(
    d: Designer, s: TrainShape, hood: bool, paint: Material, trim: Material, dark: Material, glass: Material
) -> float:
    """A box-shaped locomotive with sloping screens, or a cab on a narrow hood with walkways."""
    long = s.length * 0.95
    if hood:
        at = d.uniform("cab_position", 0.12, 0.35) * long
        cab = 0.17 * long
        low = s.floor + 0.72 * s.height
        d.add(
            "body",
            box(0.6 * s.width, low - s.floor, 0.94 * long, 0.12).move(0, (low + s.floor) / 2, -0.52 * long),
            paint,
        )
        d.add(
            "cab",
            side_profile(
                [
                    (-at - cab, s.floor),
                    (-at, s.floor),
                    (-at - 0.02, s.top - 0.3),
                    (-at - 0.2, s.top),
                    (-at - cab + 0.2, s.top),
                    (-at - cab + 0.02, s.top - 0.3),
                ],
                0.96 * s.width,
            ),
            paint,
        )
        pane = box(0.96 * s.width + 0.03, 0.24 * s.height, 0.6 * cab).move(0, low + 0.1 * s.height, -at - cab / 2)
        d.add(
            "window",
            pane + box(0.7 * s.width, 0.2 * s.height, cab + 0.03).move(0, low + 0.11 * s.height, -at - cab / 2),
            glass,
        )
        d.add("frame", box(s.width, 0.16, long).move(0, s.floor + 0.02, -long / 2), trim)
        x, y = 0.48 * s.width, s.floor + 1.0
        posts = [((x, s.floor, z), (x, y, z)) for z in np.linspace(-0.03 * long, -0.97 * long, 8)]
        rail = rods([*posts, ((x, y, -0.03 * long), (x, y, -0.97 * long))], 0.03, sides=4)
        d.add("railing", rail.with_mirror(), trim)
        fans = cylinder(0.2 * s.width, 0.2, segments=14)
        d.add("fan", placed(fans, [(0, low + 0.05, -long * f) for f in (0.6, 0.72, 0.84)]), dark)
    else:
        slope, knee = d.uniform("nose_slope", 0.2, 1.1), s.floor + 0.45 * s.height
        outline = [
            (-long, s.floor),
            (0, s.floor),
            (0, knee),
            (-slope, s.top - 0.25),
            (-slope - 0.3, s.top),
            (-long + slope + 0.3, s.top),
            (-long + slope, s.top - 0.25),
            (-long, knee),
        ]
        d.add(
            "body",
            side_profile(outline, s.width).warp(lambda v: v * np.where(v[:, 1:2] > s.top - 0.01, [0.72, 1, 1], 1)),
            paint,
        )
        run = (s.top - 0.25) - knee
        for sign in (1, -1):
            z = [-slope * f for f in (0.2, 0.85)]
            shape = np.array(
                [
                    (z[0] - 0.3, knee + 0.2 * run),
                    (z[0] + 0.02, knee + 0.2 * run),
                    (z[1] + 0.02, knee + 0.85 * run),
                    (z[1] - 0.3, knee + 0.85 * run),
                ]
            )
            d.add("window", side_profile(shape if sign == 1 else shape * [-1, 1] - [long, 0], 0.84 * s.width), glass)
        d.add(
            "window",
            box(s.width + 0.03, 0.2 * s.height, 0.7).move(0, s.top - 0.25 - 0.18 * s.height, -slope - 0.7),
            glass,
        )
        vents = [
            box(s.width + 0.02, 0.3 * s.height, 0.09 * long).move(0, s.floor + 0.6 * s.height, -long * f)
            for f in (0.35, 0.5, 0.65)
        ]
        d.add("vent", joined(vents), dark)
        if d.choices["livery"] == "stripe":
            d.add(
                "stripe",
                box(s.width + 0.04, 0.16 * s.height, 0.98 * long).move(0, s.floor + 0.2 * s.height, -long / 2),
                trim,
            )
    lamps = (
        cylinder(0.13, 0.16, segments=10)
        .rotate("x", 90)
        .move(0.32 * s.width, s.floor + 0.24 * s.height, -0.03 if not hood else -0.04 * long)
        .with_mirror()
    )
    d.add("light", lamps, d.material({"white": PAINT["white"]}))
    return long


def _nose_car(d: Designer, s: TrainShape, kind: str, paint: Material, trim: Material, glass: Material) -> float:
    """The leading car of a high-speed train or tram: its section shrinks towards the nose."""
    fast = kind == "fast"
    nose = d.uniform("nose_length", 2.4, 5.5) if fast else d.uniform("nose_length", 0.3, 1.2)
    drop, point = (d.uniform("nose_drop", 0.5, 0.85), d.uniform("nose_width", 0.2, 0.5)) if fast else (0.1, 0.8)

    def rings(section: Floats, shares: Floats, grow: float) -> list[Floats]:
        out = []
        for f in shares:
            wide, high = point + (1 - point) * (1 - f) ** 0.55, 1 - drop * f**1.7
            ring = section * [wide * grow, 1.0]
            ring[:, 1] = s.floor + (ring[:, 1] - s.floor) * high * grow
            out.append(np.column_stack([ring, np.full(len(ring), nose * (f - 1))]))
        return out

    section = s.section()
    back = np.column_stack([section, np.full(len(section), -s.length)])
    d.add("body", loft([back, *rings(section, np.linspace(0, 1, 9), 1.0)]), paint)
    if fast:
        # The windscreen is a sleeve over the roof's arc, closed inside the body.
        d.add(
            "window",
            loft(rings(section[3:-1], np.linspace(0.25, 0.25 + d.uniform("screen_length", 0.25, 0.4), 5), 1.015)),
            glass,
        )
    else:
        low, high = s.floor + 0.4 * s.height, s.floor + 0.76 * s.height
        d.add("window", box(0.84 * 0.8 * s.width, high - low, 0.3).move(0, (low + high) / 2, -0.13), glass)
    windows(d, s, -nose - 0.5, 1.5 - s.length, glass)
    d.add("door", box(s.width + 0.02, 0.66 * s.height, 0.7).move(0, s.floor + 0.36 * s.height, 0.8 - s.length), trim)
    if d.choices["livery"] == "stripe":
        length = s.length - nose - 1.4
        d.add(
            "stripe",
            box(s.width + 0.03, 0.14 * s.height, length).move(0, s.floor + 0.2 * s.height, -nose - length / 2),
            trim,
        )
    lamp = (
        cylinder(0.12, 0.3, segments=10)
        .rotate("x", 90)
        .move(0.5 * point * s.width * 0.6, s.floor + 0.12 * s.height, -0.12)
    )
    d.add("light", lamp.with_mirror(), d.material({"white": PAINT["white"]}))
    return s.length


def _pantograph(d: Designer, s: TrainShape, z: float, metal: Material) -> None:
    """The jointed current collector on the roof."""
    tall = d.uniform("pantograph_height", 0.7, 1.4)
    x, y = 0.24 * s.width, s.top - 0.03
    lower = rods([[(x, y, z), (0.6 * x, y + 0.5 * tall, z - 0.9)]], 0.045, sides=5)
    upper = rods([[(0.6 * x, y + 0.5 * tall, z - 0.9), (0.8 * x, y + tall, z)]], 0.035, sides=5)
    shoe = box(0.66 * s.width, 0.06, 0.16).move(0, y + tall, z)
    d.add(
        "pantograph", (lower + upper).with_mirror() + shoe + box(0.6 * s.width, 0.08, 0.5).move(0, y + 0.02, z), metal
    )


def train(d: Designer) -> None:
    """A leading vehicle of one of five kinds and up to three wagons behind it."""
    paint, trim, metal = d.material(PAINT, METAL), d.material(PAINT), d.material(METAL)
    dark, glass = d.material({"black": PAINT["black"]}), d.material({"dark glass": GLASS["dark glass"]})
    kind = d.choice("kind", KINDS, [0.28, 0.2, 0.22, 0.14, 0.16])
    s = TrainShape(d, kind)
    d.choice("livery", ["plain", "stripe"])
    own = kind in ("fast", "tram")
    if kind == "steam":
        z = -_steam(d, s, paint, trim, metal, dark, glass) - 0.35
        z -= _tender(d, s, z, paint, dark, trim)
    elif own:
        z = -_nose_car(d, s, kind, paint, trim, glass)
    else:
        z = -_diesel(d, s, kind == "hood", paint, trim, dark, glass)
    if kind != "steam":
        bogies(d, s, [0.2 * z, 0.8 * z], dark, metal, 2 if own else d.integer("num_bogie_axles", 2, 3))
        d.add("frame", box(0.84 * s.width, 0.3, -0.7 * z).move(0, s.floor - 0.1, 0.5 * z), dark)
    if own and d.choice("current", ["pantograph", "none"]) == "pantograph":
        _pantograph(d, s, 0.6 * z, metal)
    num = d.integer("num_wagons", 0 if kind in ("steam", "hood") else 1, 3 if own else 2)
    load = "coach" if own else d.choice("wagons", list(WAGONS))
    if num:
        d.phrases.append("with " + WAGONS[load])
    colors = [paint if own else d.material(PAINT) for _ in range(num)]
    long = s.length * (1.0 if own else 0.8)
    for color in colors:
        z -= s.gap
        if load == "coach":
            coach(d, s, z, long, color, trim, glass)
        else:
            goods(d, s, load, z, long, color, trim, dark)
        bogies(d, s, [z - 0.18 * long, z - 0.82 * long], dark, metal)
        d.add("frame", box(0.8 * s.width, 0.3, long - 0.1).move(0, s.floor - 0.1, z - long / 2), dark)
        d.add("coupling", box(0.24, 0.2, s.gap + 0.4).move(0, s.floor - 0.14, z + s.gap / 2), dark)
        z -= long
    settle(d)


BUILDERS = {"train": train}

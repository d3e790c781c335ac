"""Rockets, standing on y = 0 with the nose to +Y: launchers, sounding rockets, story-book rockets, shuttles."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import ellipse_loft, joined, rods, settle, wing
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, Designer
from recon.pipeline.procedural.geometry import Geometry, box, cylinder, extrude, lathe, ring, smooth
from recon.pipeline.shapes.mesh import Material

NOSES = {
    "cone": "with a pointed nose",
    "ogive": "",
    "dome": "with a rounded nose",
    "fairing": "with a bulging payload fairing",
    "capsule": "with a capsule and an escape tower",
}
KINDS = {
    "launcher": "as a staged launcher",
    "sounding": "as a slim sounding rocket",
    "storybook": "with a bulging story-book hull",
    "shuttle": "as a space shuttle on its tank",
}


def around(geometry: Geometry, num: int, turn: float = 0.0) -> Geometry:
    """`num` copies spread evenly about the y axis."""
    return joined([geometry.rotate("y", turn + 360 * i / num) for i in range(num)])


def _nozzle(radius: float, height: float) -> Geometry:
    """A bell, its mouth at y = 0."""
    throat = [
        (0, 0.4 * height),
        (0.3 * radius, 0.35 * height),
        (0.9 * radius, 0.01 * height),
        (radius, 0),
        (0.75 * radius, 0.35 * height),
        (0.4 * radius, 0.8 * height),
        (0.35 * radius, height),
        (0, height),
    ]
    return lathe(throat, 14)


def _fin(root: float, tip: float, span: float, sweep: float, thick: float, x: float) -> Geometry:
    """A flat fin in the plane z = 0 from radius x outward, its root's foot at y = 0 and its tip's `sweep` lower."""
    outline = [(x, 0), (x + span, -sweep), (x + span, -sweep + tip), (x, root)]
    return extrude(outline, thick)


def _nose(
    d: Designer,
    kind: str,
    radius: float,
    base: float,
    height: float,
    paint: Material,
    accent: Material,
    metal: Material,
) -> float:
    """Everything above the last stage; returns the height of its tip."""
    y = base + height
    if kind == "capsule":
        tip = 0.34 * radius
        d.add(
            "nose",
            lathe([(0, base), (radius, base), (tip, base + 0.7 * height), (0, base + 0.75 * height)], 20),
            accent,
        )
        mast = rods([[(0, base + 0.7 * height, 0), (0, y + 0.5 * height, 0)]], 0.13 * radius, sides=8)
        d.add(
            "nose",
            mast
            + lathe(
                [
                    (0, y + 0.45 * height),
                    (0.2 * radius, y + 0.45 * height),
                    (0.16 * radius, y + 0.9 * height),
                    (0, y + 1.15 * height),
                ],
                10,
            ),
            metal,
        )
        return y + 1.15 * height
    wide = radius * (1.28 if kind == "fairing" else 1.0)
    t = np.linspace(0, 1, 7)
    if kind == "cone":
        curve = [(radius, base), (0.06 * radius, y - 0.05 * height), (0, y)]
    elif kind == "fairing":
        curve = [
            (radius, base),
            (wide, base + 0.14 * height),
            (wide, base + 0.5 * height),
            (0.8 * wide, base + 0.72 * height),
            (0.4 * wide, base + 0.93 * height),
            (0, y),
        ]
    else:
        power = 0.5 if kind == "dome" else 0.75
        reach = 0.6 * height if kind == "dome" else height
        curve = [(radius * (1 - f) ** power, base + reach * f) for f in t]
        y = base + reach
    d.add("nose", lathe([(0, base), *curve], 20), accent)
    if kind in ("cone", "ogive") and d.choice("probe", ["none", "probe"]) == "probe":
        d.add(
            "nose", rods([[(0, y - 0.1 * height, 0), (0, y + 0.35 * height, 0)]], 0.035 * radius, 0.02 * radius), metal
        )
    return y


def _stages(
    d: Designer, num: int, radius: float, height: float, paint: Material, accent: Material, dark: Material
) -> tuple[float, float]:
    """Stacked tanks, each with a band; returns the radius and the height at their top. They start at y = 0."""
    step, belt = d.uniform("stage_narrowing", 0.62, 1.0), d.uniform("band_height", 0.3, 0.85)
    shares = np.array([1.0, 0.62, 0.4][:num]) * [1.0, *d.rng.uniform(0.8, 1.25, num - 1)]
    y = 0.0
    for i, share in enumerate(shares / shares.sum()):
        top = y + height * share
        narrow = radius * step if i + 1 < num else radius
        d.add("body", lathe([(0, y), (radius, y), (radius, top - 0.7 * radius), (narrow, top), (0, top)], 24), paint)
        band = ring(0.5 * radius, 1.015 * radius, 0.3 * radius, 24)
        d.add("band", band.move(y=y + 0.2 * radius), dark if i % 2 == 0 else accent)
        if i == 0:
            d.add("band", ring(0.5 * radius, 1.012 * radius, 0.5 * radius, 24).move(y=y + belt * (top - y)), accent)
        y, radius = top, narrow
    return radius, y


def _boosters(d: Designer, radius: float, height: float, paint: Material, accent: Material, metal: Material) -> None:
    """Strap-on boosters, down to the first stage's foot."""
    size, tall = radius * d.uniform("booster_radius", 0.4, 0.75), height * d.uniform("booster_height", 0.3, 0.62)
    num = int(
        d.choice(
            "num_boosters",
            {"0": "without boosters", "2": "with two boosters", "3": "with three boosters", "4": "with four boosters"},
            [0.3, 0.35, 0.1, 0.25],
        )
    )
    if num == 0:
        return
    low = d.uniform("booster_drop", -0.3, 0.1) * radius
    point = [(0, tall + 2.6 * size), (0.3 * size, tall + 1.9 * size)]
    shell = lathe([(0, low), (size, low), (size, tall), *point[::-1]], 16)
    x, turn = radius + 0.9 * size, 90.0 if num == 2 else 45.0
    d.add("booster", around(shell.move(x=x), num, turn - 90), paint)
    d.add("booster", around(ring(0.5 * size, 1.03 * size, 0.35 * size, 16).move(x, 0.8 * tall), num, turn - 90), accent)
    d.add("engine", around(_nozzle(0.7 * size, 1.1 * size).move(x, low - 0.8 * size), num, turn - 90), metal)


def _launcher(d: Designer, paint: Material, accent: Material, metal: Material, dark: Material) -> None:
    """Stages, boosters, engines, fins and a nose."""
    num = d.integer("num_stages", 1, 3)
    height = d.uniform("height", 28, 60)
    radius = height * d.uniform("slenderness", 0.035, 0.075)
    top, y = _stages(d, num, radius, height, paint, accent, dark)
    _nose(d, d.choice("nose", NOSES), top, y, top * d.uniform("nose_length", 2.0, 4.5), paint, accent, metal)
    _boosters(d, radius, height, paint, accent, metal)
    engines = d.integer("num_engines", 1, 5)
    bell = radius * d.uniform("nozzle_size", 0.8, 1.15) * (0.8 if engines == 1 else 0.42)
    spread = 0.0 if engines == 1 else 0.55 * radius
    d.add("engine", around(_nozzle(bell, 1.7 * bell).move(spread, -1.45 * bell), engines), metal)
    if d.choice("fins", {"four": "with four fins", "none": ""}, [0.45, 0.55]) == "four":
        span, root = radius * d.uniform("fin_span", 0.6, 1.3), radius * d.uniform("fin_root", 1.4, 2.8)
        d.add("fin", around(_fin(root, 0.5 * root, span, 0.3 * span, 0.12 * radius, 0.9 * radius), 4, 45), accent)


def _sounding(d: Designer, paint: Material, accent: Material, metal: Material, dark: Material) -> None:
    """A thin tube with a set of large fins at its foot, and sometimes a second set higher up."""
    height = d.uniform("height", 4, 14)
    radius = height * d.uniform("slenderness", 0.022, 0.05)
    top, y = _stages(d, d.integer("num_stages", 1, 2), radius, height, paint, accent, dark)
    _nose(
        d,
        d.choice("nose", {"cone": NOSES["cone"], "ogive": "", "dome": NOSES["dome"]}),
        top,
        y,
        top * d.uniform("nose_length", 3.5, 7.5),
        paint,
        accent,
        metal,
    )
    num = int(d.choice("num_fins", {"3": "with three fins", "4": "with four fins"}))
    span, root = radius * d.uniform("fin_span", 1.5, 3.4), radius * d.uniform("fin_root", 2.5, 5.5)
    sweep, tip = d.uniform("fin_sweep", -0.6, 0.6) * span, d.uniform("fin_taper", 0.25, 0.8)
    d.add(
        "fin",
        around(_fin(root, tip * root, span, sweep, 0.16 * radius, 0.8 * radius).move(y=0.1 * radius), num),
        accent,
    )
    if d.choice("canards", {"none": "", "upper": "with a second set of fins"}, [0.55, 0.45]) == "upper":
        upper = _fin(0.6 * root, 0.3 * tip * root, 0.6 * span, 0.0, 0.12 * radius, 0.55 * top)
        d.add(
            "fin", around(upper.move(y=y * d.uniform("canard_height", 0.6, 0.85)), num, 45 if num == 4 else 0), accent
        )
    d.add("engine", _nozzle(0.75 * radius, 1.4 * radius).move(y=-1.0 * radius), metal)


def _storybook(d: Designer, paint: Material, accent: Material, metal: Material, dark: Material) -> None:
    """A spindle hull standing on swept fins, with portholes."""
    height = d.uniform("height", 8, 20)
    radius = height * d.uniform("slenderness", 0.1, 0.19)
    waist = d.uniform("widest", 0.3, 0.55)
    hull = smooth(
        [
            (0.5 * radius, 0),
            (0.86 * radius, 0.14 * height),
            (radius, waist * height),
            (0.72 * radius, (0.45 + 0.5 * waist) * height),
            (0.3 * radius, 0.92 * height),
            (0.02 * radius, height),
        ],
        18,
    )
    d.add("body", lathe([(0, 0), *hull[:-4], (0, hull[-5, 1])], 24), paint)
    d.add(
        "nose",
        lathe([(0, hull[-5, 1]), (1.02 * hull[-5, 0], hull[-5, 1]), *(hull[-4:] * [1.02, 1]), (0, 1.01 * height)], 24),
        accent,
    )
    num = int(d.choice("num_fins", {"3": "with three legs", "4": "with four legs"}))
    span, drop = radius * d.uniform("fin_span", 0.8, 1.7), radius * d.uniform("leg_drop", 0.5, 1.2)
    rise = height * d.uniform("fin_root", 0.22, 0.38)
    leg = smooth(
        [(0.6 * radius, 0.04 * height), (0.5 * radius + 0.7 * span, -0.6 * drop), (0.55 * radius + span, -drop)], 5
    )
    back = smooth([(0.75 * radius + span, -drop), (0.7 * radius + 0.95 * span, 0.25 * rise), (0.8 * radius, rise)], 6)
    d.add("fin", around(extrude(np.concatenate([leg, back]), 0.14 * radius), num, 30), accent)
    if d.choice("fin_tips", ["plain", "pods"]) == "pods":
        pod = ellipse_loft(
            [
                (-0.5 * rise, 0, 0.02, 0.02),
                (-0.3 * rise, 0, 0.16 * radius, 0.16 * radius),
                (0.3 * rise, 0, 0.16 * radius, 0.16 * radius),
                (0.6 * rise, 0, 0.02, 0.02),
            ],
            10,
        )
        d.add("fin", around(pod.rotate("x", -90).move(0.68 * radius + span, 0.4 * rise - drop), num, 30), metal)
    d.add("engine", _nozzle(0.55 * radius, 0.6 * radius).move(y=-0.5 * radius), metal)
    glass = d.material(GLASS)
    y = [(waist + 0.22 * i) * height for i in range(d.integer("num_portholes", 1, 2))]
    for level in y:
        x = float(np.interp(level, hull[:, 1], hull[:, 0]))
        port = cylinder(0.2 * radius, 0.16 * radius, segments=14).rotate("x", 90)
        frame = ring(0.19 * radius, 0.27 * radius, 0.22 * radius, 14).rotate("x", 90)
        d.add("window", (port.move(0, level, x)), glass)
        d.add("window", (frame.move(0, level, x)), metal)


def _shuttle(d: Designer, paint: Material, accent: Material, metal: Material, dark: Material) -> None:
    """A winged orbiter (its belly to the tank, its back to +Z), an external tank and two boosters."""
    height = d.uniform("height", 38, 56)
    radius, length = height * d.uniform("slenderness", 0.075, 0.1), height * d.uniform("orbiter_length", 0.6, 0.82)
    size = 0.62 * radius * d.uniform("orbiter_radius", 0.85, 1.2)
    # Modelled flying towards +Z with +Y as its back, then stood on its tail.
    rows = [
        (length, -0.3 * size, 0.05, 0.05),
        (0.96 * length, -0.25 * size, 0.5 * size, 0.45 * size),
        (0.86 * length, -0.08 * size, 0.9 * size, 0.85 * size),
        (0.76 * length, 0, size, size),
        (0.05 * length, 0, size, size),
        (0, 0, 0.95 * size, 0.95 * size),
    ]
    parts: list[tuple[str, Geometry, Material]] = [("body", ellipse_loft(rows, 18, 2.6), paint)]
    span, sweep = size * d.uniform("wing_span", 2.4, 3.4), d.uniform("wing_sweep", 0.28, 0.42) * length
    sections = [
        (-0.01, -0.62 * size, 0.58 * length, 0.56 * length, 0.3 * size),
        (1.4 * size, -0.62 * size, 0.36 * length, 0.33 * length, 0.22 * size),
        (span, -0.6 * size, 0.58 * length - sweep - 0.05 * length, 0.12 * length, 0.08 * size),
    ]
    parts.append(("wing", wing(sections).with_mirror(), paint))
    tail = [
        (0.24 * length, 0.8 * size),
        (0.07 * length, 2.6 * size),
        (-0.02 * length, 2.6 * size),
        (0.02 * length, 0.8 * size),
    ]
    parts.append(("tail", extrude(tail, 0.16 * size).rotate("y", -90), accent))
    pod = (
        ellipse_loft(
            [
                (0.16 * length, 0.7 * size, 0.1 * size, 0.1 * size),
                (0.1 * length, 0.75 * size, 0.42 * size, 0.42 * size),
                (-0.01 * length, 0.75 * size, 0.42 * size, 0.42 * size),
            ],
            12,
        )
        .move(x=0.62 * size)
        .with_mirror()
    )
    parts.append(("engine", pod, paint))
    bells = [(0, 0.55 * size), (-0.45 * size, -0.25 * size), (0.45 * size, -0.25 * size)]
    parts.append(
        (
            "engine",
            joined([_nozzle(0.4 * size, 0.8 * size).rotate("x", 90).move(x, y, -0.7 * size) for x, y in bells]),
            metal,
        )
    )
    glass = box(1.3 * size, 0.3 * size, 0.03 * length).move(0, 0.5 * size, 0.872 * length)
    parts.append(("window", glass, dark))
    bay = box(0.04 * size, 0.04 * size, 0.5 * length).move(0, size, 0.45 * length)
    parts.append(("body", bay, dark))
    for part, geometry, material in parts:
        d.add(part, geometry.rotate("x", -90).move(0, 1.2 * radius, radius + size * 1.02), material)
    tank = smooth(
        [
            (radius, 0.12 * height),
            (radius, 0.72 * height),
            (0.86 * radius, 0.82 * height),
            (0.45 * radius, 0.94 * height),
            (0.04, 0.999 * height),
        ],
        12,
    )
    d.add("tank", lathe([(0, 0.03 * height), (0.7 * radius, 0.05 * height), *tank, (0, height)], 22), d.material(PAINT))
    _boosters_shuttle(d, radius, height, paint, accent, metal)


def _boosters_shuttle(
    d: Designer, radius: float, height: float, paint: Material, accent: Material, metal: Material
) -> None:
    """The pair of solid boosters beside a shuttle's tank."""
    num = d.choice("side_boosters", {"two": "with two boosters", "none": "without boosters"}, [0.8, 0.2])
    size, tall = radius * d.uniform("booster_radius", 0.38, 0.5), height * d.uniform("booster_height", 0.66, 0.82)
    if num == "none":
        return
    shell = lathe(
        [
            (0, 0.02),
            (1.35 * size, 0.02),
            (size, 0.08 * height),
            (size, tall),
            (0.2 * size, tall + 2.4 * size),
            (0, tall + 2.6 * size),
        ],
        16,
    )
    d.add("booster", shell.move(x=radius + 1.05 * size).with_mirror(), paint)
    band = ring(0.5 * size, 1.03 * size, 0.4 * size, 16)
    d.add(
        "booster",
        (band.move(y=0.85 * tall) + band.move(y=0.3 * tall)).move(x=radius + 1.05 * size).with_mirror(),
        accent,
    )


def rocket(d: Designer) -> None:
    """Staged launcher, sounding rocket, story-book rocket or space shuttle."""
    paint, accent, metal = d.material(PAINT, METAL), d.material(PAINT, METAL), d.material(METAL)
    dark = d.material({"black": PAINT["black"]})
    kind = d.choice("kind", KINDS, [0.4, 0.22, 0.22, 0.16])
    parts = {"launcher": _launcher, "sounding": _sounding, "storybook": _storybook, "shuttle": _shuttle}
    parts[kind](d, paint, accent, metal, dark)
    settle(d)


BUILDERS = {"rocket": rocket}

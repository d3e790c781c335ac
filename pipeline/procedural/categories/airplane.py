"""Airplanes, the nose to +Z."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.vehicle_parts import (
    ellipse_loft,
    fin,
    joined,
    placed,
    rods,
    settle,
    side_profile,
    tyre,
    wing,
)
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, RUBBER, Designer
from recon.pipeline.procedural.geometry import Geometry, box, cylinder, ellipsoid, lathe
from recon.pipeline.shapes.mesh import Material

# What a caption says, then: length, fuselage radius over length, half span over length, root chord over length,
# where the wing's root starts behind the nose, its sweep over the half span, tip chord over root chord.
PLANES = {
    "airliner": ("as a jet airliner", 34.0, 0.055, 0.47, 0.21, 0.36, 0.55, 0.25),
    "business": ("as a small business jet", 16.0, 0.06, 0.48, 0.19, 0.42, 0.45, 0.35),
    "propliner": ("with turboprop engines", 24.0, 0.06, 0.52, 0.15, 0.36, 0.06, 0.55),
    "light": ("with one propeller at the nose", 8.0, 0.075, 0.62, 0.2, 0.27, 0.02, 0.8),
    "biplane": ("with two stacked wings", 7.0, 0.075, 0.58, 0.19, 0.2, 0.03, 0.95),
    "fighter": ("as a jet fighter", 15.0, 0.055, 0.3, 0.42, 0.38, 1.1, 0.2),
    "glider": ("as a slender glider", 8.0, 0.045, 0.98, 0.12, 0.32, 0.03, 0.45),
}


class _PlaneShape:
    """Drawn measures in metres; y = 0 on the fuselage's axis until the whole is settled."""

    def __init__(self, d: Designer, kind: str) -> None:
        _, length, radius, span, chord, start, sweep, tip = PLANES[kind]
        self.length = length * d.uniform("length", 0.8, 1.2)
        size = 0.5 * (length + self.length)
        self.radius = size * radius * d.uniform("fuselage_radius", 0.85, 1.2)
        self.span = size * span * d.uniform("wing_span", 0.85, 1.15)
        self.chord = size * chord * d.uniform("wing_chord", 0.85, 1.15)
        self.nose = self.length / 2
        self.root = self.nose - self.length * (start + d.uniform("wing_position", -0.03, 0.03))
        self.sweep = self.span * sweep * d.uniform("wing_sweep", 0.7, 1.3)
        self.tip = self.chord * tip * d.uniform("wing_taper", 0.75, 1.2)
        self.dihedral = self.span * d.uniform("dihedral", 0.0, 0.12)
        self.fin = size * d.uniform("fin_height", 0.12, 0.18)

    def leading(self, share: float) -> float:
        """z of the wing's leading edge at a share of the half span."""
        return self.root - self.sweep * share

    def wing_chord(self, share: float) -> float:
        return self.chord + (self.tip - self.chord) * share


def _fuselage(d: Designer, s: _PlaneShape, kind: str, paint: Material) -> None:
    """Body of revolution, drooped at the nose and swept up at the tail, as slim as the kind asks for."""
    r, n, length = s.radius, s.nose, s.length
    blunt = d.uniform("nose_bluntness", 0.6, 1.0)
    if kind in ("light", "biplane"):
        rows = [
            (0, -0.05, 0.62),
            (0.02, -0.03, 0.8),
            (0.14, -0.05, 0.95),
            (0.26, 0.05, 1.1),
            (0.45, 0.05, 1.08),
            (0.62, 0.0, 0.72),
            (0.85, 0.1, 0.36),
            (1, 0.2, 0.12),
        ]
    elif kind == "glider":
        rows = [
            (0, -0.2, 0.05),
            (0.03, -0.15, 0.5),
            (0.1, -0.05, 0.9),
            (0.22, 0, 1.1),
            (0.34, 0, 1.0),
            (0.48, 0.1, 0.5),
            (0.7, 0.15, 0.3),
            (1, 0.2, 0.16),
        ]
    elif kind == "fighter":
        rows = [
            (0, -0.1, 0.04),
            (0.08, -0.08, 0.42),
            (0.2, -0.02, 0.78),
            (0.35, 0, 1.0),
            (0.6, 0, 1.1),
            (0.85, 0, 0.95),
            (0.97, 0, 0.7),
        ]
    else:
        rows = [
            (0, -0.25, 0.08),
            (0.012, -0.22, 0.4 * blunt),
            (0.04, -0.14, 0.72 * blunt),
            (0.085, -0.04, 0.95),
            (0.13, 0, 1.0),
            (0.62, 0, 1.0),
            (0.74, 0.06, 0.88),
            (0.88, 0.3, 0.52),
            (0.97, 0.48, 0.22),
            (1, 0.52, 0.1),
        ]
    wide = 1.25 if kind == "fighter" else 1.0
    d.add("body", ellipse_loft([(n - f * length, up * r, wide * w * r, w * r) for f, up, w in rows], 16), paint)


def _wings(d: Designer, s: _PlaneShape, kind: str, paint: Material) -> float:
    """Main wings; returns the height of their root."""
    weights = {
        "light": [0.5, 0.0, 0.5],
        "propliner": [0.4, 0.0, 0.6],
        "biplane": [1.0, 0.0, 0.0],
        "glider": [0.0, 0.5, 0.5],
        "fighter": [0.0, 0.6, 0.4],
        "business": [1.0, 0.0, 0.0],
        "airliner": [0.75, 0.0, 0.25],
    }[kind]
    place = d.choice("wing_height", {"low": "", "middle": "", "high": "with high wings"}, weights)
    height = {"low": -0.62, "middle": 0.0, "high": 0.86}[place] * s.radius
    if kind == "light" and height > 0:
        height = 1.1 * s.radius
    thick = 0.11 if kind != "fighter" else 0.05
    rows = [
        (
            share * s.span,
            height + share * s.dihedral,
            s.leading(share),
            s.wing_chord(share),
            thick * s.wing_chord(share),
        )
        for share in (-0.004, 0.35, 0.95)
    ]  # past the middle, so that the halves overlap
    tip = d.choice(
        "wing_tip", {"plain": "", "winglets": "with winglets"} if kind != "biplane" else {"plain": "", "round": ""}
    )
    z, c = s.leading(1.0), s.tip
    end = (s.span, height + s.dihedral, z - 0.2 * c, 0.6 * c, 0.05 * c)
    if tip == "winglets":
        up = 0.1 * s.span if kind != "glider" else 0.05 * s.span
        rows += [(*end[:2], z, 0.95 * c, 0.1 * c), (s.span + 0.3 * up, end[1] + up, z - 0.7 * c, 0.45 * c, 0.04 * c)]
    else:
        rows.append(end)
    d.add("wing", wing(rows).with_mirror(), paint)
    return height


def _tail(d: Designer, s: _PlaneShape, kind: str, paint: Material) -> None:
    """Fin and tailplane: conventional, T, twin fins, or a V."""
    kinds = {"conventional": "", "t-tail": "with a T-tail", "twin": "with twin tail fins"}
    weights = {
        "fighter": [0.5, 0.0, 0.5],
        "biplane": [1.0, 0.0, 0.0],
        "business": [0.2, 0.8, 0.0],
        "glider": [0.4, 0.6, 0.0],
        "propliner": [0.4, 0.4, 0.2],
    }.get(kind, [0.7, 0.2, 0.1])
    tail = d.choice("tail", kinds, weights)
    end, r = -s.length / 2, s.radius
    chord = s.fin * d.uniform("fin_chord", 0.8, 1.25) * (1.5 if kind == "fighter" else 1.0)
    sweep = s.fin * (0.25 if kind in ("light", "biplane", "glider") else 0.8)
    root_y = (0.35 if kind in ("airliner", "business", "propliner") else 0.1) * r
    upright = fin(
        [
            (root_y, end + 1.25 * chord, 1.2 * chord, 0.12 * chord),
            (root_y + s.fin, end + 1.25 * chord - sweep, 0.62 * chord, 0.06 * chord),
        ]
    )
    half = s.fin * d.uniform("tailplane_span", 1.0, 1.5)
    lift = {"conventional": root_y, "t-tail": root_y + 0.97 * s.fin, "twin": root_y}[tail]
    start = end + (1.25 * chord - sweep if tail == "t-tail" else 1.0 * chord)
    plane = wing(
        [
            (-0.004 * half, lift, start, 0.85 * chord, 0.08 * chord),
            (half, lift + 0.03 * half, start - 0.6 * sweep, 0.45 * chord, 0.035 * chord),
        ]
    )
    if tail == "twin":
        x = 0.9 * r if kind == "fighter" else half
        lean = 12 if kind == "fighter" else 0
        upright = upright.move(y=-root_y).rotate("z", -lean).move(x, root_y - 0.1 * s.fin, 0.0).with_mirror()
    d.add("tail", upright, paint)
    d.add("tail", plane.with_mirror(), paint)


def _jet_pod(radius: float, length: float) -> tuple[Geometry, Geometry]:
    """A nacelle along z with its mouth at +Z, and the dark fan and nozzle inside it."""
    profile = [
        (0, -0.5 * length),
        (0.5 * radius, -0.5 * length),
        (0.7 * radius, -0.3 * length),
        (radius, 0.05 * length),
        (0.96 * radius, 0.42 * length),
        (0.86 * radius, 0.5 * length),
        (0.76 * radius, 0.46 * length),
        (0.74 * radius, 0.36 * length),
        (0, 0.36 * length),
    ]
    fan = [(0, 0.361 * length), (0.74 * radius, 0.361 * length), (0.22 * radius, 0.39 * length), (0, 0.48 * length)]
    return lathe(profile, 16).rotate("x", 90), lathe(fan, 12).rotate("x", 90)


def _propeller(
    d: Designer, radius: float, spots: list[tuple[float, float, float]], metal: Material, dark: Material
) -> None:
    """Spinner and blades before each spot, the same on every engine."""
    num = d.integer("num_blades", 2, 4)
    blade = box(0.1 * radius, radius, 0.025 * radius).rotate("y", 28).move(y=radius / 2)
    turn = float(d.rng.uniform(0, 360))
    star = joined([blade.rotate("z", turn + 360 * i / num) for i in range(num)])
    d.add("propeller", placed(star, spots), dark)
    spinner = lathe(
        [(0, -0.12 * radius), (0.14 * radius, -0.1 * radius), (0.12 * radius, 0.06 * radius), (0, 0.2 * radius)], 12
    )
    d.add("propeller", placed(spinner.rotate("x", 90), spots), metal)


def _engines(
    d: Designer, s: _PlaneShape, kind: str, height: float, paint: Material, metal: Material, dark: Material
) -> None:
    """Jets under the wing or at the tail, turboprops on the wing, one propeller at the nose, or a fighter's nozzles."""
    r = s.radius
    if kind in ("light", "biplane"):
        d.add(
            "engine",
            cylinder(0.6 * r, 0.3 * r, segments=16).rotate("x", 90).move(0, -0.05 * r, s.nose + 0.02 * r),
            dark,
        )
        _propeller(
            d, d.uniform("propeller_radius", 0.105, 0.13) * s.length, [(0, -0.05 * r, s.nose + 0.24 * r)], metal, dark
        )
    elif kind == "fighter":
        num = d.integer("num_engines", 1, 2)
        nozzle = lathe([(0, -1.0 * r), (0.45 * r, -1.0 * r), (0.6 * r, 0.6 * r), (0, 0.6 * r)], 16).rotate("x", 90)
        nozzle = nozzle.scale(1.2 / num**0.5, 1.2 / num**0.5, 1)
        d.add(
            "engine", placed(nozzle, [((i - (num - 1) / 2) * 1.1 * r, 0, -0.47 * s.length) for i in range(num)]), dark
        )
        intake = box(0.75 * r, 1.1 * r, 0.34 * s.length).move(1.25 * r, -0.15 * r, 0.02 * s.length).with_mirror()
        mouth = box(0.6 * r, 0.9 * r, 0.1 * r).move(1.27 * r, -0.15 * r, 0.19 * s.length).with_mirror()
        d.add("engine", intake, paint)
        d.add("engine", mouth, dark)
    elif kind == "propliner":
        shares = [0.3] if d.choice("num_engines", {"2": "", "4": "with four propellers"}) == "2" else [0.26, 0.55]
        size = 0.4 * r
        for share in shares:
            y, z = height + share * s.dihedral, s.leading(share)
            pod = ellipse_loft(
                [
                    (z + 1.4 * r, y, 0.5 * size, 0.5 * size),
                    (z + 0.9 * r, y, size, size),
                    (z - 0.3 * r, y, size, size),
                    (z - s.chord, y, 0.2 * size, 0.2 * size),
                ],
                12,
            ).move(x=share * s.span)
            d.add("engine", pod.with_mirror(), paint)
        spots = [
            (side * share * s.span, height + share * s.dihedral, s.leading(share) + 1.5 * r)
            for share in shares
            for side in (-1, 1)
        ]
        _propeller(d, d.uniform("propeller_radius", 0.06, 0.072) * s.length, spots, metal, dark)
    elif kind != "glider":
        place = d.choice(
            "engines",
            {"2": "with two engines under the wings", "4": "with four engines", "rear": "with engines at the tail"},
            [0.55, 0.25, 0.2] if kind == "airliner" else [0.0, 0.0, 1.0],
        )
        size, long = r * d.uniform("engine_radius", 0.42, 0.6), r * d.uniform("engine_length", 1.7, 2.4)
        pod, fan = _jet_pod(size, long)
        if place == "rear":
            spots = [(side * (r + 0.75 * size), 0.35 * r, -0.24 * s.length) for side in (-1, 1)]
            d.add("engine", box(2.2 * r, 0.12 * size, 0.6 * long).move(0, 0.35 * r, -0.24 * s.length), paint)
        else:
            shares = [0.33] if place == "2" else [0.3, 0.58]
            spots = [
                (side * f * s.span, height + f * s.dihedral - 1.15 * size, s.leading(f) + 0.15 * long)
                for f in shares
                for side in (-1, 1)
            ]
            pylon = box(0.14 * size, 0.7 * size, 0.55 * long).move(y=0.95 * size, z=-0.2 * long)
            d.add("engine", placed(pylon, spots), paint)
        d.add("engine", placed(pod, spots), metal)
        d.add("engine", placed(fan, spots), dark)


def _windows(d: Designer, s: _PlaneShape, kind: str, height: float, glass: Material) -> None:
    """A canopy, or a windscreen and a row of cabin windows."""
    r, n = s.radius, s.nose
    if kind in ("fighter", "glider", "biplane"):
        at, long = {"fighter": (0.2, 0.1), "glider": (0.17, 0.1), "biplane": (0.5, 0.05)}[kind]
        up = {"fighter": 0.62, "glider": 0.75, "biplane": 1.05}[kind]
        d.add("cockpit", ellipsoid(0.62 * r, 0.75 * r, long * s.length, 14).move(0, up * r, n - at * s.length), glass)
        return
    if kind == "light":
        cabin = [
            (n - 0.2 * s.length, 0.9 * r),
            (n - 0.27 * s.length, 1.75 * r),
            (n - 0.42 * s.length, 1.8 * r),
            (n - 0.56 * s.length, 0.7 * r),
        ]
        top = 1.0 if height < 0 else 0.72
        d.add("cockpit", side_profile(np.array(cabin) * [1, top], 1.5 * r, bevel=0.12), glass)
        return
    screen = [
        (n - 0.033 * s.length, 0.25 * r),
        (n - 0.035 * s.length, 0.42 * r),
        (n - 0.072 * s.length, 0.84 * r),
        (n - 0.085 * s.length, 0.4 * r),
    ]
    d.add("cockpit", side_profile(np.array(screen) + np.array([0.012 * s.length, 0.06 * r]), 1.16 * r), glass)
    num = d.integer("num_windows", 8, 18) if kind == "airliner" else d.integer("num_windows", 5, 9)
    pane = box(2.02 * r * np.cos(0.2), 0.2 * r, 0.5 * 0.5 * s.length / num)
    spots = [(0.0, 0.2 * r, n - s.length * (0.14 + 0.48 * i / (num - 1))) for i in range(num)]
    d.add("window", placed(pane, spots), glass)


def _gear(d: Designer, s: _PlaneShape, kind: str, height: float, rubber: Material, metal: Material) -> None:
    """Legs and wheels long enough to clear the engines and propellers."""
    size = s.radius * (0.36 if kind in ("light", "biplane") else 0.26 if kind != "glider" else 0.4)
    low = -1.55 * s.radius if kind != "fighter" else -1.9 * s.radius
    if kind in ("airliner", "light", "biplane"):
        low = -2.0 * s.radius
    if kind == "glider":
        d.add("wheel", tyre(size, 0.5 * size, 0.3 * size, 14).move(0, -s.radius, s.root - 0.3 * s.chord), rubber)
        return
    x = 0.22 * s.span if height < 0 and kind != "biplane" else 1.5 * s.radius
    main = (x, low, s.root - 0.55 * s.chord)
    third = (0.0, low, s.nose - 0.12 * s.length)
    if kind == "biplane":
        main, third = (x, low, s.root + 0.1 * s.chord), (0.0, -0.35 * s.radius, -0.46 * s.length)
    spots = [main, (-main[0], main[1], main[2]), third]
    d.add("wheel", placed(tyre(size, 0.55 * size, 0.2 * size, 14), spots), rubber)
    d.add("wheel", placed(cylinder(0.3 * size, 0.5 * size, segments=8).rotate("z", 90), spots), metal)
    thick = 0.12 * size
    foot = (0.6 * x if height > 0 or kind == "biplane" else x, -0.45 * s.radius, main[2])
    legs = rods([[foot, main]], 1.5 * thick, thick).with_mirror()
    d.add("gear", legs + rods([[(0, -0.1 * s.radius, third[2] + 0.1), third]], 1.3 * thick, thick), metal)


def airplane(d: Designer) -> None:
    """Airliner, business jet, turboprop, light plane, biplane, fighter or glider."""
    paint, accent, metal = d.material(PAINT, METAL), d.material(PAINT, METAL), d.material(METAL)
    dark, glass = d.material({"black": PAINT["black"]}), d.material({"dark glass": GLASS["dark glass"]})
    kind = d.choice("kind", {name: row[0] for name, row in PLANES.items()}, [0.24, 0.11, 0.13, 0.16, 0.12, 0.16, 0.08])
    s = _PlaneShape(d, kind)
    two_tone = d.choice("livery", {"plain": "", "wings": "", "tail": ""})
    _fuselage(d, s, kind, paint)
    height = _wings(d, s, kind, accent if two_tone == "wings" else paint)
    _tail(d, s, kind, paint if two_tone == "plain" else accent)
    _engines(d, s, kind, height, accent if two_tone == "wings" else paint, metal, dark)
    _windows(d, s, kind, height, glass)
    if kind == "biplane":
        gap, back = s.radius * d.uniform("wing_gap", 2.2, 2.9), d.uniform("stagger", 0.0, 0.4) * s.chord
        upper = [
            (f * s.span, height + gap + f * s.dihedral, s.root + back, s.chord * (1 - 0.25 * (f > 0.95)), 0.1 * s.chord)
            for f in (-0.004, 0.9, 1.0)
        ]
        d.add("wing", wing(upper).with_mirror(), accent if two_tone == "wings" else paint)
        struts = [
            ((x, height + 0.2 * s.dihedral, z), (0.9 * x, height + gap + 0.05, z + back))
            for x in (0.72 * s.span, 0.16 * s.span)
            for z in (s.root - 0.2 * s.chord, s.root - 0.75 * s.chord)
        ]
        d.add("strut", rods(struts, 0.03, sides=5).with_mirror(), metal)
    elif kind == "light" and height > 0:
        z = s.root - 0.4 * s.chord
        brace = rods([[(0.8 * s.radius, -0.6 * s.radius, z), (0.5 * s.span, height + 0.5 * s.dihedral, z)]], 0.04)
        d.add("strut", brace.with_mirror(), metal)
    if (
        kind in ("biplane", "glider")
        or d.choice("gear", {"down": "with its landing gear down", "up": ""}, [0.6, 0.4]) == "down"
    ):
        _gear(d, s, kind, height, d.material(RUBBER), metal)
    settle(d)


BUILDERS = {"airplane": airplane}

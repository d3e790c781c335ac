"""Faucets for basins, kitchens, baths and gardens; water leaves towards +z."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from recon.pipeline.procedural import geometry as g
from recon.pipeline.procedural.categories.joinery import settle
from recon.pipeline.procedural.designer import CERAMIC, METAL, PAINT, PLASTIC, RUBBER, STONE, Designer
from recon.pipeline.procedural.geometry import Geometry
from recon.pipeline.shapes.mesh import Floats, Material

DARK = {**RUBBER, "steel": METAL["steel"]}


def _strip(path: ArrayLike, thickness: float, width: float) -> Geometry:
    """A flat bar `width` wide in x along a polyline [P, 2] of (z, y) pairs: angular spouts and levers."""
    line = np.asarray(path, dtype=np.float64)
    step = np.diff(line, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    normal = np.stack([-step[:, 1], step[:, 0]], -1)
    joint = np.concatenate([normal[:1], normal[:-1] + normal[1:], normal[-1:]])
    # A mitred corner lies further out than half the thickness.
    joint /= np.maximum((joint * joint).sum(1, keepdims=True) / np.linalg.norm(joint, axis=1, keepdims=True), 1e-6)
    scale = np.ones((len(line), 1))
    scale[1:-1, 0] = 1 / np.maximum(np.einsum("ij,ij->i", joint[1:-1], normal[:-1]), 0.4)
    offset = 0.5 * thickness * joint * scale
    return g.extrude(np.concatenate([line + offset, (line - offset)[::-1]]), width).rotate("y", -90)


def _spout_path(d: Designer, kind: str, size: float) -> Floats:
    """(z, y) points of the spout's centre line, from the body upwards and out."""
    height, reach = size * d.uniform("spout_height", 0.55, 1.3), size * d.uniform("reach", 0.5, 1.0)
    drop = size * d.uniform("drop", 0.06, 0.35)
    if kind == "gooseneck":
        half = 0.5 * reach
        top = height + 0.3 * size
        bend = g.arc(half, 180, 0, 14) + np.array([half, top])
        return np.concatenate([[(0, 0)], bend, [(reach, top - drop)]])
    if kind == "arched":
        return g.smooth(
            [
                (0, 0),
                (0.04 * reach, 0.55 * height),
                (0.4 * reach, 0.85 * height),
                (0.85 * reach, 0.75 * height),
                (reach, 0.75 * height - drop),
            ],
            18,
        )
    if kind == "swan":
        return g.smooth(
            [
                (0, 0),
                (-0.12 * reach, 0.5 * height),
                (0.1 * reach, 1.05 * height),
                (0.55 * reach, 1.15 * height),
                (0.9 * reach, 0.8 * height),
                (reach, 0.8 * height - drop),
            ],
            20,
        )
    if kind == "angular":
        return np.array([(0, 0), (0, height), (reach, height), (reach, height - 0.6 * drop)])
    rise = 0.5 * height
    return np.array([(0, 0.3 * rise), (0, rise), (reach, rise + d.uniform("slope", -0.1, 0.5) * height)])


def _handle(d: Designer, kind: str, size: float) -> Geometry:
    """One handle standing on y = 0 about the y axis; levers point to +z."""
    r = size * d.uniform("handle_size", 0.07, 0.12)
    length = r * d.uniform("lever_length", 2.2, 4.5)
    if kind == "lever":
        hub = g.lathe([(0, 0), (r, 0), (r, 0.9 * r), (0.7 * r, 1.4 * r), (0, 1.4 * r)], 16)
        lift = length * np.tan(np.radians(d.uniform("lever_angle", -5, 35)))
        return hub + g.tube([(0, 0.9 * r, 0), (0, 1.0 * r + lift, length)], [0.42 * r, 0.26 * r], 8).scale(x=1.3)
    if kind == "blade":
        lift = length * np.tan(np.radians(d.uniform("lever_angle", -5, 35)))
        hub = g.cylinder(0.9 * r, 1.2 * r, segments=16).move(y=0.6 * r)
        return hub + _strip([(-0.8 * r, 1.1 * r), (0.5 * r, 1.2 * r), (length, 1.2 * r + lift)], 0.35 * r, 1.5 * r)
    if kind == "cross":
        hub = g.cylinder(0.45 * r, 1.8 * r, segments=12).move(y=0.9 * r)
        bars = g.rod((-1.5 * r, 1.5 * r, 0), (1.5 * r, 1.5 * r, 0), 0.26 * r, sides=8)
        knobs = [
            g.ellipsoid(0.4 * r, 0.4 * r, 0.4 * r, 8).move(x * 1.5 * r, 1.5 * r, z * 1.5 * r)
            for x, z in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        return hub + bars + bars.rotate("y", 90) + knobs[0] + knobs[1] + knobs[2] + knobs[3]
    if kind == "wheel":
        rim = g.torus(1.3 * r, 0.22 * r, 20, 6).move(y=1.6 * r)
        bar = g.rod((-1.3 * r, 1.6 * r, 0), (1.3 * r, 1.6 * r, 0), 0.18 * r, sides=6)
        return rim + bar + bar.rotate("y", 90) + g.cylinder(0.35 * r, 2 * r, segments=10).move(y=r)
    flutes = np.array([(0, 0), (0.6, 0), (0.6, 0.4), (1.1, 0.6), (1.15, 1.2), (0.8, 1.6), (0, 1.6)]) * r

    def fluted(v: Floats) -> Floats:
        v[:, [0, 2]] *= (1 + 0.08 * np.cos(8 * np.arctan2(v[:, 2], v[:, 0])))[:, None]
        return v

    return g.lathe(flutes, 16).warp(fluted)


def _spout(d: Designer, size: float, metal: Material) -> tuple[Floats, float]:
    """Add the spout with its mouth; returns its path of (z, y) points and its radius."""
    kinds = {
        "gooseneck": "with a gooseneck spout",
        "arched": "with a low arched spout",
        "swan": "with a swan-neck spout",
        "angular": "with an angular spout",
        "straight": "with a straight spout",
    }
    kind = d.choice("spout", kinds, (0.27, 0.2, 0.13, 0.2, 0.2))
    path = _spout_path(d, kind, size)
    thick = size * d.uniform("spout_thickness", 0.035, 0.075)
    flat = kind in ("angular", "straight") and d.choice("section", {"round": "", "flat": "with flat faces"}) == "flat"
    if flat:
        wide = thick * d.uniform("spout_width", 1.6, 3.6)
        d.add("spout", _strip(path, 1.7 * thick, wide), metal)
    else:
        points = np.column_stack([np.zeros(len(path)), path[:, 1], path[:, 0]])
        taper = np.linspace(1.15, 0.85, len(path)) if kind in ("arched", "swan", "straight") else np.ones(len(path))
        d.add("spout", g.tube(points, thick * taper, 12), metal)
    end, step = path[-1], path[-1] - path[-2]
    step = step / np.linalg.norm(step)
    tip = d.choice("tip", {"aerator": "", "sprayer": "with a pull-out sprayer", "plain": ""}, (0.4, 0.25, 0.35))
    if kind == "straight":  # a level pipe needs an outlet that points down
        z, y = end - 0.9 * thick * step
        d.add("mouth", g.cylinder(0.75 * thick, 2.6 * thick, segments=14).move(y=y - 0.9 * thick, z=z), metal)
    elif tip != "plain":
        length = 2.2 * thick if tip == "aerator" else size * d.uniform("sprayer_length", 0.14, 0.26)
        start, stop = end - 0.3 * length * step, end + 0.7 * length * step
        radii = (1.2 * thick, 1.2 * thick) if tip == "aerator" else (1.15 * thick, 1.5 * thick)
        d.add(
            "mouth",
            g.rod((0, start[1], start[0]), (0, stop[1], stop[0]), *radii, sides=14),
            d.material(METAL, RUBBER, PLASTIC),
        )
    return path, thick


def _two_handles(d: Designer, size: float, thick: float, metal: Material, accent: Material) -> None:
    """A handle on either side: on a common bar above the deck, on one plate, or each on its own foot."""
    kind = d.choice(
        "grip",
        {
            "lever": "with two levers",
            "cross": "with two cross handles",
            "knob": "with two knobs",
            "wheel": "with two wheels",
        },
        (0.3, 0.3, 0.22, 0.18),
    )
    apart = size * d.uniform("handle_distance", 0.28, 0.55)
    layout = d.choice("layout", {"separate": "", "plate": "on one plate", "bridge": "joined by a bridge"})
    lift = size * d.uniform("handle_height", 0.06, 0.24)
    piece = _handle(d, kind, size).rotate("y", d.uniform("handle_turn", 0, 90)).move(apart, lift)
    d.add("switch", piece.with_mirror(), accent)
    r = 1.5 * thick
    post = g.lathe(
        [
            (0, 0),
            (1.6 * r, 0),
            (1.5 * r, 0.02 * size),
            (0.8 * r, 0.06 * size),
            (0.8 * r, lift),
            (0, lift + 0.01 * size),
        ],
        16,
    )
    d.add("base", post.move(x=apart).with_mirror(), metal)
    if layout == "plate":
        outline = g.rounded_rectangle(2 * apart + 4.4 * r, 4.4 * r, 2.2 * r)
        d.add("base", g.extrude(outline, 0.035 * size).rotate("x", -90).move(y=0.018 * size), metal)
    elif layout == "bridge":
        y = 0.75 * lift
        d.add("base", g.rod((-apart, y, 0), (apart, y, 0), 0.8 * thick, sides=10), metal)


def _one_handle(d: Designer, size: float, thick: float, body: float, metal: Material, accent: Material) -> None:
    """A single lever: on top of the body behind the spout, at its side, or a joystick."""
    place = d.choice(
        "place", {"top": "with a lever on top", "side": "with a lever at its side", "deck": "with a separate lever"}
    )
    kind = d.choice("grip", ["lever", "blade", "knob"], (0.4, 0.42, 0.18))
    handle = _handle(d, kind, size)
    turn = d.uniform("handle_turn", -35, 35)
    if place == "top":
        d.add("switch", handle.rotate("y", 180 + turn).move(y=body, z=-0.7 * thick), accent)
    elif place == "side":
        y = 0.6 * body
        d.add("switch", handle.rotate("x", turn - 30).rotate("z", -90).move(x=1.4 * thick, y=y), accent)
        d.add("base", g.rod((0, y, 0), (2.2 * thick, y, 0), 1.1 * thick, sides=12), metal)
    else:
        x = size * d.uniform("handle_distance", 0.25, 0.42)
        foot = g.lathe(
            [
                (0, 0),
                (0.09 * size, 0),
                (0.08 * size, 0.03 * size),
                (0.05 * size, 0.05 * size),
                (0.05 * size, 0.1 * size),
                (0, 0.11 * size),
            ],
            16,
        )
        d.add("switch", handle.rotate("y", turn).move(x=x, y=0.1 * size), accent)
        d.add("base", foot.move(x=x), metal)


def _extras(d: Designer, size: float, metal: Material) -> None:
    """What else stands on the sink: a hand sprayer or a soap pump."""
    extra = d.choice(
        "extra",
        {"none": "", "sprayer": "with a hand sprayer beside it", "soap": "with a soap dispenser beside it"},
        (0.68, 0.17, 0.15),
    )
    if extra == "none":
        return
    x = -size * d.uniform("extra_distance", 0.62, 0.85)
    r = 0.05 * size
    if extra == "sprayer":
        foot = g.lathe([(0, 0), (1.5 * r, 0), (1.1 * r, 1.4 * r), (0, 1.4 * r)], 14)
        head = g.tube([(0, 1.2 * r, 0), (0, 4 * r, 0), (0, 5.6 * r, 1.2 * r)], [0.7 * r, 0.9 * r, 1.3 * r], 10)
        d.add("base", foot.move(x=x), metal)
        d.add("hose", head.move(x=x), d.material(DARK))
        return
    pump = g.lathe([(0, 0), (1.4 * r, 0), (1.3 * r, 0.5 * r), (0.6 * r, r), (0.6 * r, 3 * r), (0, 3 * r)], 14)
    nozzle = g.tube([(0, 3.2 * r, -0.6 * r), (0, 3.3 * r, 1.2 * r), (0, 2.7 * r, 3 * r)], 0.55 * r, 8)
    d.add("base", (pump + nozzle).move(x=x), metal)


def _wall_tap(d: Designer, size: float, metal: Material, accent: Material) -> None:
    """A tap out of a wall: a level pipe, a valve with its handle, a spout that turns down."""
    reach, pipe = size * d.uniform("reach", 0.45, 0.9), size * d.uniform("pipe", 0.045, 0.08)
    bend, valve = size * d.uniform("bend", 0.12, 0.45), d.uniform("valve_position", 0.3, 0.6) * reach
    path = np.concatenate(
        [
            [(0, 0, 0), (0, 0, reach - 0.3 * bend)],
            g.smooth([(0, 0, reach), (0, -0.3 * bend, reach + 0.35 * bend), (0, -bend, reach + 0.4 * bend)], 8),
        ]
    )
    flare = np.concatenate([np.full(len(path) - 2, pipe), [pipe * 1.05, pipe * 1.25]])
    d.add("spout", g.tube(path, flare, 16), metal)
    plate = d.choice(
        "plate",
        {"round": "from a round wall plate", "square": "from a square wall plate", "wide": "from a wide wall plate"},
    )
    r, thin = size * d.uniform("plate_size", 0.13, 0.24), 0.04 * size
    if plate == "round":
        d.add(
            "base",
            g.lathe([(0, 0), (r, 0), (0.9 * r, thin), (0.4 * r, 1.8 * thin), (0, 1.8 * thin)], 24).rotate("x", 90),
            metal,
        )
    else:
        d.add("base", g.box(2 * r if plate == "square" else 4.5 * r, 2 * r, thin, 0.3 * thin), metal)
    body = g.ellipsoid(1.7 * pipe, 1.7 * pipe, 1.9 * pipe, 16).move(z=valve)
    grip = d.choice(
        "grip",
        {
            "wheel": "with a wheel handle",
            "cross": "with a cross handle",
            "lever": "with a lever",
            "knob": "with a knob",
        },
    )
    if plate == "wide":
        handle = _handle(d, grip, size).rotate("x", 90).move(x=1.5 * r)
        d.add("switch", handle.with_mirror(), accent)
        return
    neck = g.cylinder(0.8 * pipe, 2.4 * pipe, 0.6 * pipe, 14).move(y=2.2 * pipe, z=valve)
    d.add("base", body + neck, metal)
    turn = d.uniform("handle_turn", -60, 60)
    d.add("switch", _handle(d, grip, size).rotate("y", turn).move(y=3.0 * pipe, z=valve), accent)


def faucet(d: Designer) -> None:
    """A faucet standing on a sink, or a tap out of a wall."""
    size = d.uniform("size", 0.16, 0.36)
    metal = d.material(METAL, PAINT, PLASTIC)
    accent = metal if d.rng.random() < 0.6 else d.material(METAL, CERAMIC, PLASTIC, STONE)
    mount = d.choice("mount", {"deck": "standing on a sink", "wall": "mounted on a wall"}, (0.78, 0.22))
    if mount == "wall":
        _wall_tap(d, size, metal, accent)
    else:
        path, thick = _spout(d, size, metal)
        wide = thick * d.uniform("body_width", 1.3, 2.1)
        style = d.choice(
            "body",
            {"column": "", "flared": "on a flared foot", "stepped": "on a stepped foot", "square": "on a square foot"},
        )
        body = size * d.uniform("body_height", 0.18, 0.42)
        body = min(body, 0.9 * float(path[:, 1].max()))
        profiles = {
            "column": [(1.5, 0), (1.5, 0.05), (1, 0.07), (1, 0.93), (0.8, 1.0)],
            "flared": [(2, 0), (1.9, 0.05), (1.2, 0.3), (0.85, 0.7), (0.9, 1.0)],
            "stepped": [(1.8, 0), (1.8, 0.1), (1.3, 0.14), (1.3, 0.4), (1.0, 0.46), (1.0, 0.8), (0.8, 1)],
        }
        if style == "square":
            foot = g.box(2 * wide, body, 2 * wide, 0.15 * wide).move(y=0.5 * body) + g.box(
                3 * wide, 0.05 * size, 3 * wide, 0.01 * size
            ).move(y=0.025 * size)
        else:
            foot = g.lathe(np.concatenate([[(0, 0)], np.array(profiles[style]) * [wide, body], [(0, body)]]), 20)
        collar = g.cylinder(1.3 * thick, 0.03 * size, 1.15 * thick, 20).move(y=body + 0.01 * size)
        d.add("base", foot + collar, metal)
        if d.choice("handles", {"one": "", "two": ""}, (0.55, 0.45)) == "two":
            _two_handles(d, size, thick, metal, accent)
        else:
            _one_handle(d, size, thick, body, metal, accent)
        _extras(d, size, metal)
    settle(d)


BUILDERS = {"faucet": faucet}

"""Seats for several: sofas and benches."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.joinery import at_corners, block, cushion, leg, merge, pipe, plate, settle
from recon.pipeline.procedural.designer import FABRIC, LEATHER, METAL, PAINT, STONE, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry, box, rounded_rectangle
from recon.pipeline.shapes.mesh import Material

SEATS = {"1": "for one", "2": "with two seats", "3": "with three seats", "4": "with four seats"}
LAYOUTS = {"straight": "", "chaise": "with a chaise end"}
SOFA_ARMS = {
    "square": "with square arms",
    "padded": "with padded arms",
    "sloped": "with sloping arms",
    "rolled": "with rolled arms",
    "none": "without arms",
}
SOFA_BACKS = {
    "cushions": "with loose back cushions",
    "tight": "",
    "channels": "with a channelled back",
    "camel": "with a curved back",
    "frame": "with an open frame",
}


def _sofa_arm(kind: str, width: float, height: float, depth: float) -> Geometry:
    """One arm standing on y = 0, its inner face on x = 0, reaching `width` to +x, centred along z."""
    if kind == "square":
        return block((-0.01, width), (0, height), (-depth / 2, depth / 2), 0.02)
    if kind == "padded":
        pad = cushion(width, depth, height, 0.4 * width).rotate("x", 90)
        return pad.move(x=width / 2, y=height / 2)
    if kind == "sloped":
        slope = [
            (-depth / 2, 0),
            (depth / 2, 0),
            (0.48 * depth, 0.62 * height),
            (-0.3 * depth, height),
            (-depth / 2, height),
        ]
        panel = plate(slope, 0, width + 0.01).rotate("x", 90)  # back to upright: outline in (x, y) along z
        return panel.rotate("y", -90).move(x=width)
    assert kind == "rolled", kind
    scroll = 0.62 * width
    t = np.linspace(-0.65 * np.pi, 1.0 * np.pi, 10)
    roll = np.column_stack([0.75 * width + scroll * np.cos(t), height - scroll + scroll * np.sin(t)])
    outline = np.concatenate([[(-0.01, 0.0), (0.72 * width, 0.0)], roll[:-2], [(-0.01, height - 0.9 * scroll)]])
    return plate(outline, -depth / 2, depth / 2).rotate("x", 90)


def _sofa_base(d: Designer, half: float, depth: float, height: float, wood: Material, soft: Material) -> None:
    """What lifts the body `height` metres off the floor; `half` is half its width."""
    base = d.choice("base", {"legs": "on legs", "plinth": "", "skirt": "with a skirt", "runners": "on metal runners"})
    inset = d.uniform("base_inset", 0.03, 0.12)
    z = depth / 2 - inset
    if base == "legs":
        kind = d.choice("legs", ["square", "tapered", "round", "turned", "hairpin"])
        d.add("leg", at_corners(leg(kind, height + 0.015, 0.055, 0.3 * inset), half - inset, z), wood)
    elif base == "plinth":
        d.add("base", block((inset - half, half - inset), (0, height + 0.01), (-z, z)), wood)
    elif base == "skirt":
        d.add(
            "skirt",
            block((0.004 - half, half - 0.004), (0, height + 0.01), (0.004 - depth / 2, depth / 2 - 0.004)),
            soft,
        )
    else:
        u = half - inset
        run = [(u, height + 0.01, -z), (u, 0.014, -z), (u, 0.014, z), (u, height + 0.01, z)]
        d.add("leg", pipe(run, 0.014, 0.03).with_mirror(), wood)


def _sofa_back(
    d: Designer, style: str, seats: int, width: float, rise: float, body: Material, loose: Material
) -> list[tuple[str, Geometry, Material]]:
    """The back above the seat: its front near z = 0, standing on y = 0, `width` metres between the arms."""
    thick = d.uniform("back_thickness", 0.1, 0.2)
    each = width / seats
    rest = block((-width / 2 - 0.02, width / 2 + 0.02), (-0.1, 0.92 * rise), (-thick - 0.02, -0.05), 0.02)
    if style == "tight":
        pad = cushion(width, thick, rise + 0.1, 0.4 * thick, 0.1 * thick).rotate("x", 90)
        return [("back", pad.move(y=rise / 2 - 0.05, z=-thick / 2), body)]
    if style == "channels":
        count = seats * d.integer("channels", 2, 4)
        pad = box(0.996 * width / count, rise + 0.1, thick, 0.03).move(y=rise / 2 - 0.05, z=-thick / 2)
        return [("back", merge(pad.move(x=(i + 0.5 - count / 2) * width / count) for i in range(count)), body)]
    if style == "camel":
        hump = d.uniform("hump", 0.1, 0.35)
        t = np.linspace(-1, 1, 17)
        crest = np.column_stack([t * width / 2, rise * (1 - hump + hump * (0.5 + 0.5 * np.cos(np.pi * t)))])
        outline = np.concatenate([[(-width / 2, -0.1), (width / 2, -0.1)], crest[::-1]])
        return [("back", plate(outline, -thick, -0.02, 0.03).rotate("x", 90), body)]
    if style == "frame":
        bars = [
            block((-width / 2, width / 2), (0.25 * rise, 0.32 * rise), (-thick, 0.03 - thick)),
            block((-width / 2, width / 2), (0.88 * rise, 0.95 * rise), (-thick, 0.03 - thick)),
        ]
        posts = [
            block((x - 0.02, x + 0.02), (-0.15, 0.95 * rise), (-0.01 - thick, 0.022 - thick))
            for x in np.linspace(-width / 2 + 0.03, width / 2 - 0.03, seats + 1)
        ]
        rest = merge(bars + posts)
    pad = cushion(0.99 * each, 0.75 * thick, rise, 0.06, 0.025).rotate("x", 90).move(y=rise / 2 + 0.01, z=-0.25 * thick)
    pads = merge(pad.move(x=(i + 0.5 - seats / 2) * each) for i in range(seats))
    return [("back", rest, body), ("cushion", pads, loose)]


def _throws(d: Designer, width: float, seat: float, depth: float) -> None:
    """Loose pillows leaning in the corners of the seat."""
    for i in range(d.integer("pillows", 0, 3)):
        size = 0.36 + 0.1 * float(d.rng.random())
        pillow = cushion(size, 0.13, size, 0.06, 0.035).rotate("x", 68).rotate("y", (25, -25, 8)[i])
        x = (-1, 1, 0.35)[i] * (width / 2 - 0.5 * size - 0.02)
        d.add("pillow", pillow.move(x=x, y=seat + 0.46 * size, z=0.02 * depth), d.material(FABRIC))


def _chaise(
    d: Designer,
    each: float,
    width: float,
    depth: float,
    levels: tuple[float, float, float],
    body: Material,
    loose: Material,
    wood: Material,
) -> None:
    """The last seat drawn out to the front; `levels` are the underside, the deck and the top of its cushion."""
    lift, deck, seat = levels
    side = 1.0 if d.choice("chaise_side", ["left", "right"]) == "right" else -1.0
    reach, x = d.uniform("chaise_length", 0.4, 0.8), side * (width / 2 - each / 2)
    front = depth / 2 + reach
    d.add("seat", block((x - each / 2, x + each / 2), (lift, deck - 0.003), (0.3 * depth, front), 0.012), body)
    top = cushion(0.99 * each, seat - deck + 0.04, reach + 0.06, 0.05, 0.02)
    d.add("cushion", top.move(x=x, y=(seat + deck - 0.04) / 2, z=front - reach / 2 - 0.03), loose)
    feet = block((-0.025, 0.025), (0, lift + 0.01), (-0.025, 0.025)).move(x=each / 2 - 0.06).with_mirror()
    d.add("leg", feet.move(x=x, z=front - 0.06), wood)


def sofa(d: Designer) -> None:
    """An upholstered seat for one to four: 5 arms, 5 backs, sometimes with a chaise."""
    seats = int(d.choice("seats", SEATS, weights=[0.1, 0.37, 0.38, 0.15]))
    arms, style = d.choice("arms", SOFA_ARMS), d.choice("back", SOFA_BACKS)
    layout = d.choice("layout", LAYOUTS, weights=[0.75, 0.25]) if seats > 1 else "straight"
    each, depth = d.uniform("seat_width", 0.5, 0.8), d.uniform("depth", 0.72, 1.05)
    seat, lift = d.uniform("seat_height", 0.36, 0.5), d.uniform("base_height", 0.05, 0.17)
    rise, arm_rise = d.uniform("back_height", 0.28, 0.58), d.uniform("arm_height", 0.1, 0.28)
    recline, arm_width = d.uniform("recline", 3, 16), d.uniform("arm_width", 0.07, 0.24)
    soft_height = d.uniform("cushion_thickness", 0.1, 0.2)
    width = each * seats * (1.25 if seats == 1 else 1.0)
    body = d.material(FABRIC, LEATHER)
    cover = d.choice("cushion_cover", ["same", "contrast"], weights=[0.7, 0.3])
    loose = d.material(FABRIC) if cover == "contrast" else body
    wood = d.material(WOOD, METAL)
    outer = width / 2 + (arm_width if arms != "none" else 0.0)
    deck = seat - 0.75 * soft_height
    body_finish = wood if style == "frame" else body
    d.add(
        "seat",
        block((-width / 2 - 0.012, width / 2 + 0.012), (lift, deck), (-depth / 2, depth / 2 - 0.006), 0.012),
        body,
    )
    pad_depth, single = 0.8 * depth, seats > 1 and d.choice("seat_cushion", ["one", "each"]) == "one"
    count = 1 if single else seats
    pad = cushion(0.99 * width / count, soft_height, pad_depth, 0.05, 0.02)
    pads = merge(pad.move(x=(i + 0.5 - count / 2) * width / count) for i in range(count))
    d.add("cushion", pads.move(y=seat - soft_height / 2, z=0.11 * depth), loose)
    for part, piece, finish in _sofa_back(d, style, seats, width, rise, body_finish, loose):
        d.add(part, piece.rotate("x", -recline).move(y=seat - 0.04, z=-0.27 * depth), finish)
    if arms != "none":
        arm = _sofa_arm(arms, arm_width, seat + arm_rise - lift, depth).move(x=width / 2, y=lift)
        d.add("arm", arm.with_mirror(), body)
    if layout == "chaise":
        _chaise(d, each, width, depth, (lift, deck, seat), body, loose, wood)
    _throws(d, width, seat, depth)
    _sofa_base(d, outer, depth, lift, wood, body)
    settle(d)


def _bench_legs(d: Designer, kind: str, half: float, depth: float, top: float, frame: Material) -> None:
    """Supports under a seat whose underside is at `top`; `half` is half its length."""
    thick = d.uniform("leg_thickness", 0.04, 0.09)
    inset, splay = d.uniform("leg_inset", 0.04, 0.3), d.uniform("splay", 0.0, 0.07)
    x, z = half - inset - 0.04, depth / 2 - 0.7 * thick
    if kind == "legs":
        shape = d.choice("leg_shape", ["square", "tapered", "turned", "round", "hairpin"])
        d.add("leg", at_corners(leg(shape, top, thick, splay, splay), x, z), frame)
        if shape != "hairpin":
            d.add("apron", block((-x, x), (top - 0.06, top + 0.001), (-z, z)), frame)
    elif kind == "trestle":
        foot = block((x - thick / 2, x + thick / 2), (0, 0.06), (-depth / 2, depth / 2), 0.01)
        upright = block((x - thick / 2 + 0.004, x + thick / 2 - 0.004), (0.05, top), (-0.3 * depth, 0.3 * depth), 0.008)
        d.add("leg", (foot + upright).with_mirror(), frame)
        d.add("stretcher", block((-x, x), (0.35 * top, 0.35 * top + 0.06), (-0.018, 0.018)), frame)
    elif kind == "slabs":
        wall = block((x - 0.5 * thick, x + 0.9 * thick), (0, top), (-0.46 * depth, 0.46 * depth), 0.008)
        d.add("leg", wall.with_mirror(), frame)
    elif kind == "loops":
        r = 0.25 * thick
        loop = pipe([(x, top, -z), (x, r, -z - splay), (x, r, z + splay), (x, top, z)], r, 0.06)
        d.add("leg", loop.with_mirror() + box(2 * x, 1.6 * r, 1.6 * r).move(y=top - r), frame)
    else:
        assert kind == "crossed", kind
        beam = box(0.8 * thick, np.hypot(top, 1.7 * z) + 0.02, 0.6 * thick, 0.006)
        angle = np.degrees(np.arctan2(1.7 * z, top))
        cross = beam.rotate("x", angle) + beam.rotate("x", -angle).move(x=0.5 * thick)
        cross = cross.move(x=x, y=top / 2).warp(lambda v: np.clip(v, [-np.inf, 0.0, -np.inf], [np.inf, top, np.inf]))
        d.add("leg", cross.with_mirror(), frame)
        d.add("stretcher", box(2 * x, 0.035, 0.035).move(y=top / 2), frame)


def _bench_seat(
    d: Designer, kind: str, length: float, depth: float, height: float, thick: float, finish: Material
) -> None:
    if kind == "slatted":
        count = d.integer("seat_slats", 3, 7)
        pitch = depth / count
        slat = box(length, thick, d.uniform("slat_fill", 0.55, 0.85) * pitch, 0.004).move(y=height - thick / 2)
        d.add("seat", merge(slat.move(z=(i + 0.5 - count / 2) * pitch) for i in range(count)), finish)
    elif kind == "padded":
        pads = d.integer("seat_pads", 1, 3)
        pad = cushion(0.995 * length / pads, thick, depth, 0.03, 0.012).move(y=height - thick / 2)
        d.add("seat", merge(pad.move(x=(i + 0.5 - pads / 2) * length / pads) for i in range(pads)), finish)
    else:
        corner = d.uniform("corner_radius", 0.004, 0.12)
        d.add("seat", plate(rounded_rectangle(length, depth, corner, 6), height - thick, height, 0.012), finish)


def bench(d: Designer) -> None:
    """A long seat: slatted, plank or padded; 5 supports; with or without a back and arms."""
    kind = d.choice("seat", {"slatted": "with a slatted seat", "plank": "", "padded": "with a padded seat"})
    back = d.choice(
        "back",
        {
            "none": "without a back",
            "rails": "with a back of rails",
            "slats": "with an upright slatted back",
            "board": "with a solid back",
        },
        weights=[0.37, 0.27, 0.18, 0.18],
    )
    support = d.choice(
        "support",
        {
            "legs": "",
            "trestle": "on a trestle",
            "slabs": "on solid ends",
            "loops": "on metal loops",
            "crossed": "on crossed legs",
        },
    )
    length, depth = d.uniform("length", 0.85, 2.1), d.uniform("seat_depth", 0.3, 0.52)
    height = d.uniform("seat_height", 0.38, 0.52)
    thick = d.uniform("cushion_thickness", 0.06, 0.14) if kind == "padded" else d.uniform("seat_thickness", 0.022, 0.07)
    finish = (
        d.material(FABRIC, LEATHER) if kind == "padded" else d.material(WOOD, PAINT, STONE if kind == "plank" else WOOD)
    )
    frame = d.material(METAL) if support == "loops" else d.material(WOOD, METAL, STONE if support == "slabs" else PAINT)
    _bench_seat(d, kind, length, depth, height, thick, finish)
    # 2 mm into the seat: tops that coincide would flicker through the gaps between slats.
    _bench_legs(d, support, length / 2, depth, height - thick + 0.002, frame)
    if kind != "plank":
        cleat = block((-0.02, 0.02), (height - thick - 0.02, height - thick + 0.004), (-0.47 * depth, 0.47 * depth))
        d.add("seat", merge(cleat.move(x=t * length) for t in (-0.36, 0.0, 0.36)), frame)
    if back != "none":
        _bench_back(d, back, kind == "padded", (length, depth, height, thick), finish, frame)
    settle(d)


def _bench_back(
    d: Designer, back: str, padded: bool, sizes: tuple[float, float, float, float], finish: Material, frame: Material
) -> None:
    """Back and arms; `sizes` are the seat's length, depth, height and thickness."""
    length, depth, height, thick = sizes
    rise, recline = d.uniform("back_height", 0.28, 0.6), d.uniform("recline", 2, 20)
    board = finish if not padded or back == "board" else frame
    posts = block((length / 2 - 0.1, length / 2 - 0.05), (-thick, rise), (-0.05, -0.012))
    middle = [block((-0.025, 0.025), (-thick, rise), (-0.05, -0.012))] if length > 1.5 else []
    if back == "rails":
        count = d.integer("back_rails", 2, 5)
        pitch = 0.85 * rise / count
        rail = block((-length / 2, length / 2), (0.17 * rise, 0.17 * rise + 0.7 * pitch), (-0.02, 0.004), 0.003)
        pieces = [
            ("back", merge(rail.move(y=pitch * i) for i in range(count)), board),
            ("back", merge([posts.with_mirror(), *middle]), frame),
        ]
    elif back == "slats":
        count = round(length / d.uniform("back_pitch", 0.08, 0.16))
        bars = merge(
            block((x - 0.018, x + 0.018), (0.05, rise - 0.02), (-0.035, -0.015))
            for x in np.linspace(-length / 2 + 0.1, length / 2 - 0.1, count)
        )
        rails = [block((-length / 2, length / 2), (y, y + 0.06), (-0.045, -0.003)) for y in (0.06, rise - 0.05)]
        pieces = [("back", merge(rails), board), ("back", bars + posts.with_mirror(), board)]
    else:
        pad = cushion(length, 0.07, rise, 0.03, 0.01).rotate("x", 90) if padded else box(length, rise, 0.03, 0.01)
        pieces = [("back", pad.move(y=0.5 * rise + 0.02), board), ("back", posts.with_mirror(), frame)]
    for part, piece, material in pieces:
        d.add(part, piece.rotate("x", -recline).move(y=height, z=-depth / 2 + 0.04), material)
    if d.choice("arms", {"none": "", "open": "with armrests"}) == "open":
        level, x = height + d.uniform("arm_height", 0.16, 0.26), length / 2 - 0.075
        run = [(x, height - 0.02, 0.42 * depth), (x, level, 0.42 * depth), (x, level, -0.42 * depth - 0.06)]
        d.add("arm", pipe(run, 0.019, 0.05).with_mirror(), frame)


BUILDERS = {"sofa": sofa, "bench": bench}

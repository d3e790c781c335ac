"""Boats and ships, the bow to +Z, standing on the keel."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.hulls import KINDS, Hull, deckhouse, rails
from recon.pipeline.procedural.categories.sails import rig
from recon.pipeline.procedural.categories.vehicle_parts import joined, placed, rods, settle, side_profile
from recon.pipeline.procedural.designer import FABRIC, GLASS, METAL, PAINT, PLASTIC, RUBBER, WOOD, Designer
from recon.pipeline.procedural.geometry import box, cylinder, torus
from recon.pipeline.shapes.mesh import Material


def _sailing(
    d: Designer, h: Hull, twin: bool, paint: Material, accent: Material, metal: Material, glass: Material
) -> None:
    """A yacht with keel and coach roof, or a sailing catamaran with a bridge deck."""
    deck, wood = d.material(WOOD), d.material(WOOD, METAL)
    if twin:
        gap = h.length * d.uniform("hull_gap", 0.19, 0.27)
        d.add("hull", h.solid().move(x=gap).with_mirror(), paint)
        top = float(h.edge(0.4))
        d.add("deck", box(2 * gap, 0.25 * h.depth, 0.5 * h.length).move(0, top - 0.05 * h.depth, h.z(0.36)), deck)
        for share in (0.66, 0.9):
            d.add(
                "beam",
                rods([[(-gap, 0.93 * top, h.z(share)), (gap, 0.93 * top, h.z(share))]], 0.01 * h.length, sides=8),
                metal,
            )
        base = deckhouse(d, h, (0.2, 0.56), 1.2 * gap, top + 0.05 * h.depth, 0.1 * h.length, 0.8, paint, glass, 3)
        rig(d, h, 0.55, base, wood)
        return
    d.add("hull", h.solid(), paint)
    d.add("deck", h.level(0.02, 0.97, 0.035 * h.depth, -0.1 * h.depth, 0.08 * h.half_beam), deck)
    if d.choice("stripe", ["none", "stripe"]) == "stripe":
        d.add("stripe", h.level(0.01, 0.98, -0.12 * h.depth, -0.2 * h.depth, -0.004 * h.length), accent)
    base = float(h.edge(0.5))
    if d.choice("cabin", {"cabin": "with a low cabin", "open": ""}, [0.7, 0.3]) == "cabin":
        base = deckhouse(
            d,
            h,
            (0.34, 0.66),
            1.0 * h.half_beam,
            base,
            h.length * d.uniform("cabin_height", 0.045, 0.085),
            1.4,
            paint,
            glass,
            3,
        )
    d.add("cockpit", h.level(0.08, 0.3, 0.09 * h.depth, -0.05 * h.depth, 0.4 * h.half_beam, 4), accent)
    rig(d, h, 0.56, base, wood)
    if d.choice("keel", {"deep": "with a deep keel", "none": ""}) == "deep":
        drop = h.depth * d.uniform("keel_depth", 0.6, 1.3)
        plate = [(h.z(0.4), 0.1 * h.depth), (h.z(0.62), 0.1 * h.depth), (h.z(0.54), -drop), (h.z(0.4), -drop)]
        rudder = [
            (h.z(0.03), 0.5 * h.depth),
            (h.z(0.1), 0.3 * h.depth),
            (h.z(0.08), -0.6 * drop),
            (h.z(0.03), -0.6 * drop),
        ]
        d.add("keel", side_profile(plate, 0.02 * h.length) + side_profile(rudder, 0.01 * h.length), accent)


def _motor(d: Designer, h: Hull, paint: Material, accent: Material, metal: Material, glass: Material) -> None:
    """Speedboat, cabin cruiser or one with a flying bridge, with outboard or inboard drive."""
    d.add("hull", h.solid(), paint)
    top = d.choice(
        "top",
        {"open": "with an open cockpit", "cabin": "with a cabin", "bridge": "with a flying bridge"},
        [0.4, 0.3, 0.3],
    )
    d.add("stripe", h.level(0.01, 0.98, -0.1 * h.depth, -0.24 * h.depth, -0.004 * h.length), accent)
    base, tall = float(h.edge(0.45)), h.length * d.uniform("cabin_height", 0.11, 0.16)
    if top == "open":
        d.add("deck", h.level(0.52, 0.97, 0.07 * h.depth, -0.1 * h.depth, 0.06 * h.half_beam), accent)
        screen = [(h.z(0.6), base), (h.z(0.61), base), (h.z(0.53), base + tall * 0.7), (h.z(0.52), base + tall * 0.7)]
        d.add("window", side_profile(screen, 1.5 * h.half_beam), glass)
        seat = d.material(FABRIC, PLASTIC)
        chair = box(0.5 * h.half_beam, 0.25 * tall, 0.07 * h.length).move(y=0.1 * tall)
        back = box(0.5 * h.half_beam, 0.6 * tall, 0.02 * h.length).move(0, 0.35 * tall, -0.035 * h.length)
        places = [
            (side * 0.45 * h.half_beam, base, h.z(f))
            for f in ((0.42, 0.22) if h.length > 7 else (0.4,))
            for side in (-1, 1)
        ]
        d.add("seat", placed(chair + back, places), seat)
        d.add(
            "gunwale",
            h.level(0.0, 0.55, 0.1 * h.depth, -0.1 * h.depth, 0.0)
            if h.full > 0.6
            else rods(
                [
                    ((x, float(h.edge(0)), h.z(0.01)), (x, base + 0.05 * h.depth, h.z(0.55)))
                    for x in (-0.85 * h.half_beam, 0.85 * h.half_beam)
                ],
                0.05 * h.depth,
            ),
            accent,
        )
    else:
        d.add("deck", h.level(0.02, 0.97, 0.06 * h.depth, -0.1 * h.depth, 0.06 * h.half_beam), d.material(WOOD, PAINT))
        roof = deckhouse(
            d, h, (0.2, 0.68), 1.45 * h.half_beam, base, tall, 1.3, paint, glass, d.integer("num_windows", 2, 4)
        )
        if top == "bridge":
            deckhouse(d, h, (0.24, 0.5), 1.1 * h.half_beam, roof, 0.65 * tall, 0.8, paint, glass, 2)
            d.add("radar", rods([[(0, roof, h.z(0.24)), (0, roof + 1.3 * tall, h.z(0.2))]], 0.008 * h.length), metal)
    if d.choice("drive", {"outboard": "with outboard engines", "inboard": ""}) == "outboard":
        num = d.integer("num_outboards", 1, 3)
        cowl = box(0.045 * h.length, 0.07 * h.length, 0.06 * h.length, 0.012 * h.length).move(
            y=float(h.edge(0)) + 0.02 * h.length
        )
        leg = box(0.018 * h.length, float(h.edge(0)) + 0.04 * h.length, 0.03 * h.length).move(
            y=0.5 * float(h.edge(0)) - 0.03 * h.length
        )
        spots = [((i - (num - 1) / 2) * 0.075 * h.length, 0.0, h.z(-0.015)) for i in range(num)]
        d.add("engine", placed(cowl + leg, spots), d.material(PAINT))
    if d.choice("railing", ["none", "bow"]) == "bow":
        rails(d, h, (0.62, 0.97), 0.05 * h.length, 0.004 * h.length, metal, 5)


def _rowing(d: Designer, h: Hull, paint: Material, accent: Material) -> None:
    """Open boat: thwarts, oars."""
    thick = 0.012 * h.length
    d.add("hull", h.shell(thick, 0.04 * h.length), paint)
    wood = d.material(WOOD)
    num = d.integer("num_seats", 2, 4)
    seats = [
        box(2 * float(h.width(f)) * (1 - 0.4 * h.flare) - 2 * thick, 0.02, 0.06 * h.length).move(
            0, 0.68 * float(h.edge(f)), h.z(f)
        )
        for f in np.linspace(0.14, 0.72, num)
    ]
    d.add("seat", joined(seats), wood)
    if d.choice("oars", {"out": "with oars out", "in": "with oars laid inside", "none": ""}) == "out":
        reach = h.length * d.uniform("oar_length", 0.4, 0.6)
        x = float(h.width(0.45))
        inner = np.array([0.25 * x, 1.5 * h.depth, h.z(0.52)])
        outer = np.array([x + reach, 0.45 * h.depth, h.z(0.38)])
        blade = box(0.28 * reach, 0.012 * h.length, 0.05 * h.length).move(*(outer - [0.08 * reach, 0, 0]))
        d.add("oar", (rods([[inner, outer]], 0.006 * h.length) + blade).with_mirror(), wood)
    elif d.choices["oars"] == "in":
        x, y = 0.5 * float(h.width(0.5)), 0.74 * float(h.edge(0.5)) + 0.02
        oar = rods([[(x, y, h.z(0.2)), (0.6 * x, y, h.z(0.8))]], 0.007 * h.length)
        blade = box(0.05 * h.length, 0.01 * h.length, 0.14 * h.length).move(x, y, h.z(0.2))
        d.add("oar", (oar + blade).with_mirror(), wood)
    if d.choice("motor", {"none": "", "outboard": "with a small outboard motor"}, [0.7, 0.3]) == "outboard":
        size, top, z = 0.06 * h.length, float(h.edge(0)), h.z(0) - 0.024 * h.length
        cowl = box(0.7 * size, size, 1.1 * size, 0.15 * size).move(0, top + 0.5 * size, z)
        d.add("engine", cowl + box(0.25 * size, 1.1 * top, 0.4 * size).move(0, 0.5 * top, z), d.material(PAINT))
    d.add(
        "gunwale",
        h.level(0.0, 0.16, 0.01 * h.length, -0.02 * h.length, 0.0, 3)
        + h.level(0.88, 0.99, 0.01 * h.length, -0.02 * h.length, 0.0, 3),
        accent,
    )


def _cargo(d: Designer, h: Hull, paint: Material, accent: Material, metal: Material, glass: Material) -> None:
    """Bridge aft, then stacked containers, hatches with cranes, or a tanker's pipes."""
    house = d.uniform("house_position", 0.08, 0.14)
    base, tall = float(h.edge(house)), h.length * d.uniform("house_height", 0.09, 0.15)
    white = d.material(PAINT)
    for level in range(3):
        shrink = 1 - 0.08 * level
        deckhouse(
            d,
            h,
            (house - 0.05 * shrink, house + 0.06 * shrink),
            1.75 * h.half_beam * shrink,
            base + level * tall / 3,
            tall / 3,
            0.1,
            white,
            glass,
            3,
        )
    funnel = box(0.4 * h.half_beam, 0.6 * tall, 0.03 * h.length, 0.08 * h.half_beam)
    d.add("funnel", funnel.move(0, base + 1.15 * tall, h.z(house - 0.03)), accent)
    load = d.choice(
        "load",
        {"containers": "loaded with containers", "cranes": "with deck cranes", "tanker": "with a tanker's flat deck"},
        [0.5, 0.25, 0.25],
    )
    start, stop = house + 0.1, 0.9
    top = float(h.edge(0.4))
    if load == "containers":
        rows, colors = d.integer("num_bays", 5, 8), [d.material(PAINT) for _ in range(3)]
        pitch = (stop - start) / rows
        columns, high = 4, 0.026 * h.length * d.uniform("container_height", 0.8, 1.1)
        for i in range(rows):
            wide = 1.85 * float(h.width(start + (i + 1) * pitch))
            for j in range(columns):
                num = int(d.rng.integers(1, 5))
                stack = box(0.96 * wide / columns, num * high, 0.92 * pitch * h.length)
                middle = start + (i + 0.5) * pitch
                stack = stack.move((j - 1.5) * wide / columns, float(h.edge(middle)) + num * high / 2, h.z(middle))
                d.add("container", stack, colors[int(d.rng.integers(3))])
    elif load == "cranes":
        num = d.integer("num_cranes", 2, 4)
        for i in range(num):
            f = start + (stop - start) * (i + 0.5) / num
            hatch = box(1.2 * h.half_beam, 0.2 * h.depth, 0.7 * (stop - start) / num * h.length)
            d.add("hatch", hatch.move(0, top + 0.08 * h.depth, h.z(f)), accent)
            mast_z, peak = h.z(f) - 0.42 * (stop - start) / num * h.length, top + 0.8 * tall
            d.add(
                "crane",
                rods([[(0, top, mast_z), (0, peak, mast_z)]], 0.12 * h.half_beam, sides=8)
                + rods(
                    [[(0, 0.75 * peak, mast_z), (0, peak * 1.12, mast_z + 0.7 * (stop - start) / num * h.length)]],
                    0.06 * h.half_beam,
                ),
                metal,
            )
    else:
        d.add(
            "pipe",
            rods(
                [
                    ((x, top + 0.12 * h.depth, h.z(start)), (x, top + 0.12 * h.depth, h.z(stop - 0.04)))
                    for x in (-0.3 * h.half_beam, 0, 0.3 * h.half_beam)
                ],
                0.05 * h.half_beam,
            ),
            metal,
        )
        d.add(
            "tank",
            placed(
                cylinder(0.4 * h.half_beam, 0.3 * h.depth, segments=16),
                [(0, top + 0.1 * h.depth, h.z(f)) for f in np.linspace(start + 0.08, stop - 0.12, 4)],
            ),
            accent,
        )


def _decks(d: Designer, h: Hull, paint: Material, accent: Material, glass: Material) -> None:
    """A passenger ship: stacked decks, lifeboats, funnels."""
    num, share = d.integer("num_decks", 2, 5), d.uniform("house_length", 0.5, 0.7)
    tall, white = 0.026 * h.length * d.uniform("deck_height", 0.85, 1.15), d.material(PAINT)
    y, start, stop = float(h.edge(0.4)), 0.46 - share / 2, 0.46 + share / 2
    for level in range(num):
        cut = 0.02 * level
        y = deckhouse(
            d, h, (start + cut, stop - 1.4 * cut), 1.8 * h.half_beam * (1 - 0.05 * level), y, tall, 0.4, white, glass, 9
        )
    boat = box(0.03 * h.length, 0.014 * h.length, 0.045 * h.length, 0.003 * h.length)
    spots = [
        (0.9 * h.half_beam, float(h.edge(0.4)) + 1.1 * tall, h.z(f)) for f in np.linspace(start + 0.1, stop - 0.12, 4)
    ]
    d.add("lifeboat", placed(boat, spots).with_mirror(), accent)
    funnels, size = d.integer("num_funnels", 1, 3), h.half_beam * d.uniform("funnel_size", 0.2, 0.34)
    for i in range(funnels):
        stack = cylinder(size, 3.0 * size, 0.85 * size, 16).scale(z=1.5).rotate("x", -10)
        d.add("funnel", stack.move(0, y + 1.4 * size, h.z(0.46 + (i - (funnels - 1) / 2) * 0.16)), accent)


def _warship(d: Designer, h: Hull, paint: Material, metal: Material, glass: Material) -> None:
    """Bridge tower, mast, funnels and turrets."""
    tall = h.length * d.uniform("tower_height", 0.05, 0.08)
    y = deckhouse(d, h, (0.36, 0.64), 1.3 * h.half_beam, float(h.edge(0.5)), 0.6 * tall, 0.5, paint, glass, 5)
    roof = deckhouse(d, h, (0.5, 0.61), 1.0 * h.half_beam, y, 0.8 * tall, 0.3, paint, glass, 2)
    mast = rods([[(0, y, h.z(0.5)), (0, roof + 1.6 * tall, h.z(0.5))]], 0.1 * h.half_beam, 0.04 * h.half_beam)
    d.add("mast", mast + box(0.9 * h.half_beam, 0.06 * tall, 0.06 * tall).move(0, roof + tall, h.z(0.5)), metal)
    d.add(
        "funnel",
        cylinder(0.28 * h.half_beam, 1.4 * tall, 0.22 * h.half_beam, 12)
        .scale(z=1.5)
        .move(0, y + 0.4 * tall, h.z(0.42)),
        paint,
    )
    num = d.integer("num_turrets", 2, 4)
    barrels, size = d.integer("num_barrels", 1, 3), h.half_beam * d.uniform("turret_size", 0.5, 0.75)
    for share, lift, sign in ((0.76, 0.0, 1), (0.24, 0.0, -1), (0.69, 0.5, 1), (0.31, 0.5, -1))[:num]:
        base = float(h.edge(share)) + lift * size
        house = box(1.1 * size, 0.55 * size, 1.3 * size, 0.12 * size).move(y=0.4 * size)
        guns = rods(
            [
                ((x * 0.3 * size, 0.45 * size, 0.5 * size), (x * 0.3 * size, 0.65 * size, 2.2 * size))
                for x in np.arange(barrels) - (barrels - 1) / 2
            ],
            0.07 * size,
        )
        ringed = cylinder(0.5 * size, (1 + 2 * lift) * size, segments=12).move(y=-lift * size)
        d.add("turret", (house + guns + ringed).scale(z=sign).move(0, base, h.z(share)), metal)


def _fishing(d: Designer, h: Hull, paint: Material, accent: Material, metal: Material, glass: Material) -> None:
    """A trawler: wheelhouse fore or aft, mast with derrick, net drum."""
    wood = d.material(WOOD)
    d.add("deck", h.level(0.02, 0.96, -0.06 * h.depth, -0.2 * h.depth, 0.02 * h.half_beam), wood)
    at = {"fore": 0.56, "aft": 0.12}[
        d.choice("wheelhouse", {"fore": "with its wheelhouse forward", "aft": "with its wheelhouse aft"})
    ]
    tall, base = h.length * d.uniform("cabin_height", 0.14, 0.2), float(h.edge(0.4))
    deckhouse(
        d, h, (at, at + d.uniform("cabin_length", 0.14, 0.24)), 1.2 * h.half_beam, base, tall, 0.15, accent, glass, 2
    )
    z, peak = h.z(0.44), base + tall * d.uniform("mast_height", 1.6, 2.6)
    swing = 0.28 * h.length * (-1 if at > 0.3 else 1)
    gear = rods([[(0, base - 0.2 * h.depth, z), (0, peak, z)]], 0.012 * h.length, 0.008 * h.length, sides=8)
    gear += rods([[(0, base + 0.4 * tall, z), (0, 0.9 * peak, z + swing)]], 0.008 * h.length)
    d.add("mast", gear + rods([[(0, peak, z), (0, 0.9 * peak, z + swing)]], 0.003 * h.length, sides=4), metal)
    d.add(
        "winch",
        cylinder(0.2 * h.half_beam, 0.9 * h.half_beam, segments=12)
        .rotate("z", 90)
        .move(0, base + 0.1 * h.depth, z + 0.5 * swing),
        metal,
    )
    buoy = torus(0.06 * h.half_beam * 2, 0.04 * h.half_beam * 2, 12, 6).rotate("z", 90)
    spots = [(float(h.width(f)) * 1.0, float(h.edge(f)) - 0.2 * h.depth, h.z(f)) for f in (0.2, 0.4, 0.6)]
    d.add("fender", placed(buoy, spots).with_mirror(), d.material(RUBBER))
    rails(d, h, (0.05, 0.95), 0.05 * h.length, 0.004 * h.length, metal, 8)


def watercraft(d: Designer) -> None:
    """Sailing boat, motor boat, cargo ship, rowing boat, fishing boat, catamaran, warship or passenger ship."""
    paint, accent, metal = d.material(PAINT, WOOD), d.material(PAINT), d.material(METAL)
    glass = d.material({"dark glass": GLASS["dark glass"]})
    kind = d.choice(
        "kind", {name: row[0] for name, row in KINDS.items()}, [0.22, 0.18, 0.15, 0.1, 0.11, 0.08, 0.08, 0.08]
    )
    h = Hull(d, kind)
    if kind in ("sailing", "catamaran"):
        _sailing(d, h, kind == "catamaran", paint, accent, metal, glass)
    elif kind == "motor":
        _motor(d, h, paint, accent, metal, glass)
    elif kind == "rowing":
        _rowing(d, h, paint, accent)
    else:
        d.add("hull", h.solid(), paint)
        if d.choice("waterline", ["plain", "painted"]) == "painted":
            d.add("stripe", h.level(0.01, 0.985, 0.02 * h.depth, -0.14 * h.depth, -0.0015 * h.length), accent)
        if kind == "cargo":
            _cargo(d, h, paint, accent, metal, glass)
        elif kind == "liner":
            _decks(d, h, paint, accent, glass)
        elif kind == "warship":
            _warship(d, h, paint, metal, glass)
        else:
            _fishing(d, h, paint, accent, metal, glass)
    settle(d)


BUILDERS = {"watercraft": watercraft}

"""Cabinets: cupboards, chests of drawers, sideboards, wardrobes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from recon.pipeline.procedural.categories.joinery import (
    Span,
    at_corners,
    block,
    handle,
    leg,
    merge,
    pipe,
    plate,
    settle,
)
from recon.pipeline.procedural.designer import GLASS, METAL, PAINT, PLASTIC, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry, arc, box, lathe
from recon.pipeline.shapes.mesh import Material

CROWN_WEIGHTS = {3: (0.6, 0.25, 0.15), 4: (0.5, 0.15, 0.15, 0.2), 5: (0.4, 0.12, 0.12, 0.17, 0.19)}  # by options
MIRROR = Material("mirror", (0.62, 0.68, 0.72), 0.3, 0.1)
Piece = tuple[str, Geometry, Material]

# Kind of cabinet -> (width, height, depth) ranges in metres.
CABINETS = {
    "cupboard": ((0.6, 1.3), (0.75, 1.5), (0.35, 0.6)),
    "drawers": ((0.5, 1.4), (0.6, 1.3), (0.38, 0.55)),
    "sideboard": ((1.2, 2.1), (0.5, 0.9), (0.35, 0.5)),
    "wardrobe": ((0.8, 1.9), (1.7, 2.3), (0.5, 0.65)),
    "display": ((0.6, 1.3), (1.3, 2.1), (0.3, 0.45)),
    "nightstand": ((0.35, 0.6), (0.42, 0.7), (0.32, 0.48)),
    "filing": ((0.38, 0.5), (0.65, 1.4), (0.45, 0.65)),
}
CABINET_PHRASES = {
    "cupboard": "with doors",
    "drawers": "full of drawers",
    "sideboard": "with a long low body",
    "wardrobe": "for clothes",
    "display": "with glazed doors",
    "nightstand": "for a bedside",
    "filing": "for files",
}


def _front(style: str, width: float, height: float, body: Material, trim: Material, glass: Material) -> list[Piece]:
    """One door or drawer face centred at the origin, standing 18 mm out of the plane z = 0."""
    leaf = block((-width / 2, width / 2), (-height / 2, height / 2), (-0.006, 0.018), 0.003)
    rail = min(0.07, 0.22 * min(width, height))
    a, b = width / 2 - rail, height / 2 - rail
    if style == "plain":
        return [("door", leaf, body)]
    if style == "raised":
        return [("door", leaf, body), ("door", block((-a, a), (-b, b), (0.01, 0.028), 0.009), trim)]
    if style == "louvred":
        count = int(np.clip(2 * b / 0.05, 3, 14))
        slat = box(2 * a, 0.012, 0.03).rotate("x", 35)
        slats = merge(slat.move(y=(i + 0.5 - count / 2) * 2 * b / count, z=0.018) for i in range(count))
        return [("door", leaf, body), ("door", slats, trim)]
    stiles = block((a, width / 2), (-height / 2, height / 2), (-0.006, 0.02)).with_mirror()
    rails = block((-a - 0.002, a + 0.002), (b, height / 2 - 0.001), (-0.005, 0.019)).with_mirror("y")
    if style == "framed":
        return [("door", leaf.move(z=-0.01), trim), ("door", stiles + rails, body)]
    assert style == "glazed", style
    bars = block((-0.008, 0.008), (-b, b), (0.0, 0.016)) + merge(
        block((-a, a), (y - 0.008, y + 0.008), (0.0, 0.015)) for y in (-b / 3, b / 3)
    )
    return [("door", stiles + rails + bars, body), ("glass", block((-a, a), (-b, b), (0.0, 0.006)), glass)]


def _fronts(d: Designer, kind: str, width: float, height: float) -> list[tuple[str, Span, Span]]:
    """Doors and drawers as (door or drawer, x limits, y limits) over a face [0, width] x [0, height]."""
    if kind == "drawers" or kind == "filing":
        rows, columns = d.integer("rows", 2, 5), 1 if kind == "filing" or width < 0.8 else d.integer("columns", 1, 3)
        grow = d.uniform("drawer_growth", 0.0, 0.5) if kind == "drawers" else 0.0
        edges = np.concatenate([[0.0], np.cumsum(np.linspace(1 + grow, 1, rows))])
        edges *= height / edges[-1]
        return [
            ("drawer", (width * c / columns, width * (c + 1) / columns), (edges[r], edges[r + 1]))
            for r in range(rows)
            for c in range(columns)
        ]
    doors = max(1, round(width / d.uniform("door_width", 0.38, 0.6)))
    low = d.uniform("split", 0.18, 0.38) * height
    if kind == "nightstand":
        mixed = d.choice("drawers", {"none": "", "above": "with a drawer"}, weights=[0.3, 0.7])
    else:
        options = {"none": "", "above": "with drawers above", "below": "with drawers below"}
        mixed = d.choice("drawers", options | ({"beside": "with drawers at its side"} if doors > 1 else {}))
    bays = list(pairwise(np.linspace(0, width, doors + 1).tolist()))
    span = {"none": (0.0, height), "above": (0.0, height - low), "below": (low, height), "beside": (0.0, height)}[mixed]
    fronts = [("door", (a, b), span) for a, b in bays]
    if mixed in ("above", "below"):
        level = (height - low, height) if mixed == "above" else (0.0, low)
        fronts += [("drawer", (a, b), level) for a, b in bays]
    elif mixed == "beside":
        rows = d.integer("rows", 3, 5)
        fronts[-1:] = [("drawer", fronts[-1][1], (height * r / rows, height * (r + 1) / rows)) for r in range(rows)]
    return fronts


def _cabinet_base(d: Designer, half: float, z: float, lift: float, wood: Material) -> None:
    base = d.choice("base", {"plinth": "", "legs": "on legs", "feet": "", "runners": "on a metal base"})
    if base == "plinth":
        d.add(
            "base",
            block((0.02 - half, half - 0.02), (0, lift + 0.002), (0.01 - z, z - d.uniform("toe_kick", 0.02, 0.07))),
            wood,
        )
    elif base == "legs":
        shape = d.choice("leg_shape", ["square", "tapered", "turned", "cabriole", "round", "hairpin"])
        d.add("leg", at_corners(leg(shape, lift + 0.002, 0.05, 0.2 * lift), half - 0.06, z - 0.05), wood)
    elif base == "feet":
        bun = lathe(
            [(0, 0), (0.03, 0), (0.05, 0.4 * lift), (0.03, 0.9 * lift), (0.04, lift + 0.002), (0, lift + 0.002)], 12
        )
        d.add("leg", at_corners(bun, half - 0.055, z - 0.055), wood)
    else:
        u, w = half - 0.04, z - 0.03
        d.add(
            "leg",
            pipe(
                [(u, lift + 0.002, -w), (u, 0.011, -w), (u, 0.011, w), (u, lift + 0.002, w)], 0.011, 0.015
            ).with_mirror(),
            wood,
        )


def _crown(d: Designer, width: float, height: float, depth: float, body: Material, trim: Material) -> None:
    """What stands on the top: a cornice, a rail, and on low ones shelves or a mirror."""
    half, z = width / 2, depth / 2
    options = {"none": "", "cornice": "with a cornice", "gallery": ""}
    if height < 1.2:
        options |= {"mirror": "with a mirror"} | ({"hutch": "with shelves on top"} if width > 0.7 else {})
    crown = d.choice("crown", options, weights=CROWN_WEIGHTS[len(options)])
    if crown == "cornice":
        ledge = d.uniform("cornice", 0.03, 0.07)
        d.add("top", box(width + 2 * ledge, 0.06, depth + 2 * ledge, 0.025).move(y=height + 0.03), trim)
    elif crown == "gallery":
        rise = d.uniform("gallery_height", 0.05, 0.16)
        d.add("top", block((-half, half), (height, height + rise), (-z, -z + 0.02), 0.004), trim)
    elif crown == "hutch":
        top = height + d.uniform("hutch_height", 0.45, 0.95)
        sides = block((half - 0.05, half - 0.028), (height, top), (-z + 0.004, 0.35 * z)).with_mirror()
        boards = merge(
            block((0.04 - half, half - 0.04), (y, y + 0.02), (-z + 0.006, 0.33 * z))
            for y in ((height + top) / 2, top - 0.022)
        )
        d.add("hutch", sides + boards, body)
        d.add("hutch", block((0.04 - half, half - 0.04), (height, top - 0.01), (-z, -z + 0.008)), body)
    elif crown == "mirror":
        rise, span = d.uniform("mirror_height", 0.45, 0.85), 0.38 * width
        oval = arc(1.0, 0, 360, 25)[:-1] * [span, 0.5 * rise]
        middle = {"y": height + 0.56 * rise, "z": -0.7 * z}
        stays = block((span - 0.02, span + 0.02), (height, height + 0.6 * rise), (-0.7 * z - 0.03, -0.7 * z - 0.008))
        d.add("mirror", plate(1.08 * oval, -0.012, 0.012).rotate("x", 90).move(**middle) + stays.with_mirror(), trim)
        d.add("mirror", plate(oval, 0.0, 0.016).rotate("x", 90).move(**middle), MIRROR)


def _carcass(
    d: Designer, size: tuple[float, float, float], lift: float, wall: float, body: Material, trim: Material
) -> None:
    """The hollow box behind the fronts, open towards +Z, with one shelf, and its top."""
    width, height, depth = size
    half, z = width / 2, depth / 2
    overhang = d.uniform("top_overhang", -0.006, 0.04)
    under = height - 0.02
    d.add("body", block((half - wall, half), (lift + 0.002, under), (-z + 0.003, z), 0.002).with_mirror(), body)
    inside, middle = (-half + 0.003, half - 0.003), (lift + under) / 2
    floors = [block(inside, (y, y + wall), (-z + 0.006, front)) for y, front in ((lift, z - 0.002), (middle, z - 0.03))]
    d.add("body", merge([*floors, block(inside, (lift + 0.004, under), (-z, 0.012 - z))]), body)
    d.add(
        "top",
        block(
            (-half - overhang, half + overhang),
            (height - 0.025, height + 0.004),
            (-z - 0.002, z + overhang + 0.008),
            0.006,
        ),
        trim,
    )


def _hang_fronts(
    d: Designer, kind: str, style: str, width: float, height: float, body: Material, trim: Material
) -> list[Piece]:
    """Every door, drawer and handle of a face `width` x `height` whose lower middle is the origin."""
    gap, pull_height = d.uniform("front_gap", 0.003, 0.009), d.uniform("handle_height", -0.2, 0.35)
    pull_kind = d.choice("handle", ["knob", "bar", "ring", "cup"])
    fronts = _fronts(d, kind, width, height)
    doored = any(part == "door" for part, _, _ in fronts)
    ajar = doored and d.choice("ajar", {"shut": "", "ajar": "with a door open"}, weights=[0.8, 0.2]) == "ajar"
    turn = -d.uniform("door_angle", 35, 110) if ajar else 0.0
    glass, metal = d.material(GLASS), d.material(METAL)
    groups: dict[tuple[str, Material], list[Geometry]] = {}
    doors = 0
    for part, (x0, x1), (y0, y1) in fronts:
        w, h = float(x1 - x0) - gap, float(y1 - y0) - gap
        pull, look, side = handle(pull_kind, min(0.14, 0.5 * h, 0.4 * w)), style, 0.0
        if part == "door":
            side, doors = (1.0 if doors % 2 == 0 else -1.0), doors + 1  # doors open in pairs
            pull = pull.rotate("z", 90) if pull_kind == "bar" else pull
        else:
            look = {"louvred": "plain", "glazed": "raised"}.get(style, style)
        pull = pull.move(side * (w / 2 - 0.045), pull_height * h if side else 0.0, 0.02)
        for name, piece, finish in [*_front(look, w, h, body, trim, glass), ("handle", pull, metal)]:
            swing = turn if part == "door" and doors == 1 else 0.0
            hung = piece.move(x=w / 2).rotate("y", swing).move(float(x0 + x1 - width - w) / 2, float(y0 + y1) / 2)
            groups.setdefault((part if name == "door" else name, finish), []).append(hung)
    return [(part, merge(group), finish) for (part, finish), group in groups.items()]


def cabinet(d: Designer) -> None:
    """Cupboards, chests of drawers, sideboards, wardrobes, glazed cabinets, nightstands and filing cabinets."""
    kind = d.choice("kind", CABINET_PHRASES)
    width, height, depth = (
        d.uniform(name, *limits) for name, limits in zip(("width", "height", "depth"), CABINETS[kind], strict=True)
    )
    lift, wall = d.uniform("base_height", 0.03, 0.2), d.uniform("wall_thickness", 0.016, 0.034)
    looks = {"plain": "with plain fronts", "raised": "with raised panels", "framed": "with framed panels"}
    if kind not in ("drawers", "filing"):
        looks["louvred"] = "with louvred doors"
    style = "glazed" if kind == "display" else d.choice("front", looks)
    body = d.material(PAINT, METAL) if kind == "filing" else d.material(WOOD, PAINT, PLASTIC)
    trim = d.material(WOOD, PAINT) if d.choice("finish", ["one", "two"], weights=[0.65, 0.35]) == "two" else body
    wood = body if kind == "filing" else d.material(WOOD, METAL)
    _carcass(d, (width, height, depth), lift, wall, body, trim)
    _cabinet_base(d, width / 2, depth / 2, lift, wood)
    fronts = _hang_fronts(d, kind, style, width - 2 * wall, height - lift - wall - 0.025, body, trim)
    for part, piece, finish in fronts:
        d.add(part, piece.move(y=lift + wall, z=depth / 2 - 0.018), finish)
    _crown(d, width, height, depth, body, trim)
    settle(d)


BUILDERS = {"cabinet": cabinet}

"""Tables and beds."""

from __future__ import annotations

import numpy as np

from pipeline.mesh import Floats, Material
from pipeline.sources.procedural.designer import FABRIC, GLASS, LEATHER, METAL, PAINT, STONE, WOOD, Designer
from pipeline.sources.procedural.geometry import Geometry, arc, box, cylinder, lathe, rod, rounded_rectangle, smooth
from pipeline.sources.procedural.joinery import (
    at_corners,
    block,
    cushion,
    handle,
    hoop,
    leg,
    merge,
    pipe,
    plate,
)

# Kind of table -> (height, length) ranges in metres.
TABLES = {
    "dining": ((0.7, 0.78), (0.9, 2.2)), "coffee": ((0.3, 0.5), (0.6, 1.4)), "side": ((0.45, 0.7), (0.35, 0.65)),
    "console": ((0.7, 0.9), (0.8, 1.5)), "desk": ((0.7, 0.8), (1.0, 1.8)), "bar": ((0.95, 1.1), (0.55, 1.0)),
}
TABLE_PHRASES = {"dining": "for dining", "coffee": "low, for coffee", "side": "small, for a bedside",
                 "console": "narrow, for a hallway", "desk": "for writing", "bar": "at bar height"}


def _top_outline(d: Designer, shape: str, length: float, depth: float) -> Floats:
    if shape == "rectangle":
        return rounded_rectangle(length, depth, d.uniform("corner_radius", 0.002, 0.12), 4)
    if shape == "oval":
        return arc(0.5, 0, 360, 33)[:-1] * [length, depth]
    if shape == "octagon":
        cut = d.uniform("corner_cut", 0.18, 0.3) * min(length, depth)
        a, b = length / 2, depth / 2
        return np.array([(a, -b + cut), (a, b - cut), (a - cut, b), (-a + cut, b),
                         (-a, b - cut), (-a, -b + cut), (-a + cut, -b), (a - cut, -b)])
    assert shape == "boat", shape
    t = np.linspace(-1, 1, 11)
    edge = np.column_stack([t * length / 2, depth / 2 * (1 - d.uniform("boat", 0.15, 0.35) * t**2)])
    return np.concatenate([edge * [1, -1], edge[::-1]])


def _table_support(d: Designer, kind: str, x: float, z: float, top: float, round_top: bool, frame: Material) -> None:
    """Supports inside +-x, +-z under a top whose underside is at `top`."""
    thick = d.uniform("leg_thickness", 0.035, 0.095)
    splay = d.uniform("splay", 0.0, 0.08)
    if kind == "legs":
        shape = d.choice("leg_shape", ["square", "tapered", "round", "turned", "cabriole", "hairpin"])
        shrink = 0.7 if round_top else 1.0
        u, w = x * shrink - thick / 2, z * shrink - thick / 2
        d.add("leg", at_corners(leg(shape, top, thick, splay, splay), u, w), frame)
        if shape != "hairpin":
            fall = d.uniform("apron_height", 0.04, 0.13)
            d.add("apron", block((-u, u), (top - fall, top + 0.001), (w - 0.01, w + 0.01)).with_mirror("z")
                  + block((u - 0.01, u + 0.01), (top - fall, top + 0.0015), (-w, w)).with_mirror(), frame)
    elif kind == "pedestal":
        foot = d.uniform("foot", 0.55, 0.85) * min(z, x)
        profile = smooth([(0.5 * thick, 0.05 * top), (1.1 * thick, 0.3 * top), (0.55 * thick, 0.62 * top),
                          (1.3 * thick, top)], 12)
        if d.choice("foot_shape", ["disc", "claws"]) == "disc":
            base = lathe([(0, 0), (foot, 0), (foot, 0.02), (0.4 * foot, 0.035 * top + 0.02), *profile, (0, top)], 24)
        else:
            claw = pipe([(0, 0.3 * top, 0), (0.45 * foot, 0.26 * top, 0), (foot, 0.022, 0)], 0.022, 0.12)
            claws = d.integer("claws", 3, 5)
            base = lathe([(0, 0.05 * top), *profile, (0, top)], 18)
            base = base + merge(claw.rotate("y", 45 + 360 * i / claws) for i in range(claws))
        d.add("base", base, frame)
        d.add("base", block((-0.7 * x, 0.7 * x), (top - 0.03, top + 0.001), (-0.06, 0.06)), frame)
    elif kind == "trestle":
        u = 0.72 * x
        cross = d.choice("trestle", ["crossed", "upright"]) == "crossed"
        if cross:
            angle = np.degrees(np.arctan2(1.5 * z, top))
            beam = box(0.8 * thick, np.hypot(top, 1.5 * z) + 0.03, 0.9 * thick)
            end = beam.rotate("x", angle) + beam.scale(x=0.9).rotate("x", -angle)
            end = end.move(y=top / 2).warp(lambda v: np.clip(v, [-9.0, 0.0, -9.0], [9.0, top, 9.0]))
        else:
            end = block((-0.5 * thick, 0.5 * thick), (0.04, top), (-0.3 * z, 0.3 * z))
            end = end + box(1.2 * thick, 0.06, 1.7 * z, 0.01).move(y=0.03) + box(1.1 * thick, 0.05, 1.6 * z).move(y=top - 0.025)
        d.add("leg", end.move(x=u).with_mirror(), frame)
        d.add("stretcher", box(2 * u, 0.07, 0.03).move(y=(0.5 if cross else 0.3) * top), frame)
    elif kind == "panels":
        u, w = (0.72 * x, 0.62 * z) if round_top else (x, z)
        d.add("leg", block((u - thick, u), (0, top), (-w, w)).with_mirror(), frame)
        d.add("apron", block((-u + 0.01, u - 0.01), (0.45 * top, top + 0.001), (-w + 0.01, -w + 0.03)), frame)
    else:
        assert kind == "frame", kind
        shrink = 0.7 if round_top else 1.0
        u, w, r = x * shrink - 0.02, z * shrink - 0.02, 0.28 * thick
        loop = pipe([(u, top, -w), (u, r, -w), (u, r, w), (u, top, w)], r, 0.02, 6)
        d.add("leg", loop.with_mirror() + rod((-u, top - r, 0), (u, top - r, 0), r, sides=6), frame)
        d.add("stretcher", rod((-u, r, -w), (u, r, -w), r, sides=6), frame)


def _table_storage(d: Designer, x: float, z: float, top: float, body: Material) -> None:
    """A desk's drawers under its top: one pedestal, two, or a shallow row."""
    metal = d.material(METAL)
    style = d.choice("drawers", {"one": "with a drawer pedestal", "both": "with drawers on both sides", "row": "with a row of drawers"})
    rows = 1 if style == "row" else d.integer("drawer_rows", 2, 4)
    tall = d.uniform("drawer_height", 0.1, 0.15) if style == "row" else 0.86 * top
    wide = 2 * x - 0.12 if style == "row" else d.uniform("drawer_width", 0.28, 0.42)
    columns = 3 if style == "row" else 1
    spots = {"one": [x - wide / 2 - 0.03], "both": [x - wide / 2 - 0.03, wide / 2 + 0.03 - x], "row": [0.0]}[style]
    each, pitch = wide / columns, tall / rows
    pull = handle(d.choice("handle", ["knob", "bar", "cup"]), min(0.13, 0.5 * pitch))
    for spot in spots:
        d.add("drawer", block((spot - wide / 2, spot + wide / 2), (top - tall, top + 0.001), (-0.9 * z, 0.9 * z)), body)
        faces, pulls = [], []
        for i in range(columns):
            for j in range(rows):
                middle = (spot + (i + 0.5 - columns / 2) * each, top - (j + 0.5) * pitch)
                faces.append(box(each - 0.015, pitch - 0.015, 0.02).move(*middle, 0.9 * z + 0.004))
                pulls.append(pull.move(*middle, 0.9 * z + 0.014))
        d.add("drawer", merge(faces), body)
        d.add("handle", merge(pulls), metal)


def table(d: Designer) -> None:
    """Dining, coffee, side, console and bar tables and desks: 4 outlines of top on 5 supports."""
    use = d.choice("use", TABLE_PHRASES, weights=[0.28, 0.2, 0.14, 0.12, 0.16, 0.1])
    (low, high), (short, long) = TABLES[use]
    shape = "rectangle" if use == "desk" else d.choice(
        "top", {"rectangle": "", "oval": "with a round top", "octagon": "with an eight-sided top", "boat": "with a bowed top"},
        weights=[0.4, 0.36, 0.12, 0.12])
    kind = d.choice("support", {"legs": "", "pedestal": "on a pedestal", "trestle": "on trestles", "panels": "on solid ends",
                                "frame": "on a metal frame"}, weights=[0.42, 0.2, 0.12, 0.1, 0.16])
    height, length = d.uniform("height", low, high), d.uniform("length", short, long)
    ratio = {"console": (0.26, 0.38), "desk": (0.42, 0.6), "side": (0.7, 1.0), "bar": (0.6, 1.0)}.get(use, (0.48, 1.0))
    depth = length * d.uniform("depth_ratio", *ratio)
    if kind == "pedestal" and use not in ("console", "desk"):
        depth = max(depth, 0.75 * length)  # one column cannot carry a long top
    thick, overhang = d.uniform("top_thickness", 0.016, 0.06), d.uniform("overhang", 0.01, 0.09)
    glass = use not in ("desk", "console") and d.choice("surface", {"solid": "", "glass": "with a glass top"}, weights=[0.85, 0.15]) == "glass"
    frame = d.material(METAL) if kind == "frame" else d.material(WOOD, PAINT, METAL)
    slab = d.material(GLASS) if glass else frame if d.choice("finish", ["one", "two"]) == "one" else d.material(WOOD, PAINT, STONE)
    under = height - thick
    d.add("top", plate(_top_outline(d, shape, length, depth), under, height, d.uniform("edge", 0.0, 0.03)), slab)
    x, z = length / 2 - overhang, depth / 2 - overhang
    rounded = shape in ("oval", "octagon")
    _table_support(d, kind, x, z, under + 0.002, rounded, frame)
    if use == "desk":
        _table_storage(d, x, z, under, frame)
    elif kind in ("legs", "frame", "panels") and d.choice("shelf", {"none": "", "shelf": "with a lower shelf"}) == "shelf":
        level, shrink = d.uniform("shelf_height", 0.2, 0.5) * under, 0.7 if rounded else 1.0
        d.add("shelf", block((-x * shrink, x * shrink), (level, level + 0.02), (-0.97 * z * shrink, 0.97 * z * shrink)), frame)


def _headboard(d: Designer, style: str, width: float, rise: float, wood: Material, soft: Material) -> None:
    """A headboard from y = 0 up to `rise`, its front at z = 0."""
    half = width / 2 + 0.02
    post = d.uniform("post_width", 0.04, 0.09)
    pieces: list[tuple[Geometry, Material]] = []
    posts = block((half - post, half), (0, rise), (-post, 0)).with_mirror()
    if style == "panel":
        pieces = [(posts, wood), (block((0.01 - half, half - 0.01), (0.12, 0.96 * rise), (0.012 - post, -0.012)), wood)]
        pieces.append((block((0.06 - half, half - 0.06), (0.5 * rise, 0.88 * rise), (-post, 0.004)), wood))
    elif style == "arched":
        bow = arc(1.0, 0, 180, 17) * [half, d.uniform("arch", 0.15, 0.4) * rise]
        base = rise - bow[:, 1].max()
        outline = np.concatenate([[(-half, 0.1), (half, 0.1)], bow + [0, base]])
        pieces = [(plate(outline, -0.05, 0.0).rotate("x", 90), wood)]
    elif style == "padded":
        columns = d.integer("tufts", 1, 6)
        pad = cushion(1.01 * 2 * half / columns, 0.11, 0.75 * rise, 0.035, 0.012).rotate("x", 90)
        pads = merge(pad.move(x=(i + 0.5 - columns / 2) * 2 * half / columns) for i in range(columns))
        pieces = [(pads.move(y=0.62 * rise, z=-0.05), soft), (block((-half, half), (0.1, 0.5 * rise), (-0.1, -0.02)), soft)]
    elif style == "bars":
        count = d.integer("bars", 5, 13)
        frame = pipe([(half - 0.02, 0, 0), (half - 0.02, rise, 0), (0.02 - half, rise, 0), (0.02 - half, 0, 0)], 0.02, 0.15)
        rods = [rod((x, 0.35 * rise, 0), (x, rise, 0), 0.009, sides=6) for x in np.linspace(-half, half, count + 2)[1:-1]]
        rods.append(rod((-half + 0.02, 0.4 * rise, 0), (half - 0.02, 0.4 * rise, 0), 0.014, sides=6))
        pieces = [(frame, wood), (merge(rods), wood)]
    else:
        assert style == "slats", style
        count = d.integer("bars", 3, 5)
        pitch = 0.6 * rise / count
        rails = [block((0.01 - half, half - 0.01), (0.4 * rise + pitch * i, 0.4 * rise + pitch * (i + 0.7)), (0.012 - post, -0.012))
                 for i in range(count)]
        pieces = [(posts, wood), (merge(rails), wood)]
    for piece, finish in pieces:
        d.add("headboard", piece, finish)


def _bedding(d: Designer, width: float, length: float, deck: float, head: float) -> float:
    """Mattress, covers and pillows on a deck at height `deck` whose head end is at z = `head`; returns the top."""
    thick = d.uniform("mattress_thickness", 0.12, 0.3)
    top, middle = deck + thick, head + length / 2
    linen, cover = d.material(FABRIC), d.material(FABRIC)
    d.add("mattress", cushion(width - 0.03, thick, length - 0.03, 0.05).move(y=deck + thick / 2, z=middle), linen)
    made = d.choice("cover", {"none": "", "duvet": "with a duvet", "throw": "with a folded throw"}, weights=[0.25, 0.5, 0.25])
    if made != "none":
        share = d.uniform("cover_length", 0.55, 0.8) if made == "duvet" else d.uniform("cover_length", 0.18, 0.3)
        drop = min(d.uniform("cover_drop", 0.3, 0.95), 0.95) * thick
        reach = share * length
        end = head + length + (0.012 if made == "duvet" else -0.12)
        spread = cushion(width + 0.035, drop + 0.035, reach, 0.03, 0.005)
        d.add("blanket", spread.move(y=top + 0.035 - (drop + 0.035) / 2, z=end - reach / 2), cover)
    count = d.integer("pillows", 1, 2) if width < 1.2 else d.integer("pillows", 2, 4)
    across = min(count, 1 if width < 1.2 else 2)
    size = min(0.92 * width / across, 0.75)
    plump = d.uniform("pillow_thickness", 0.1, 0.17)
    for i in range(count):
        row, column = divmod(i, across)
        pillow = cushion(size, plump, 0.42, 0.05, 0.035).rotate("x", 14 + 22 * row)
        x = (column + 0.5 - across / 2) * width / across
        d.add("pillow", pillow.move(x=x, y=top + 0.42 * plump + 0.09 * row, z=head + 0.24 + 0.2 * (1 - row)), linen)
    return top


def _bed_base(d: Designer, kind: str, half: float, z: float, deck: float, wood: Material) -> None:
    """What carries the deck; half its width, half its length."""
    rail = d.uniform("rail_height", 0.08, 0.2)
    if kind == "legs":
        d.add("frame", block((-half, half), (deck - min(rail, 0.7 * deck), deck + 0.03), (-z, z), 0.01), wood)
        shape = d.choice("leg_shape", ["square", "tapered", "turned", "round"])
        d.add("leg", at_corners(leg(shape, deck - 0.02, 0.08), half - 0.06, z - 0.06), wood)
    elif kind == "platform":
        d.add("frame", block((-half, half), (deck - 0.09, deck + 0.015), (-z, z), 0.01), wood)
        inset = d.uniform("platform_inset", 0.06, 0.3)
        d.add("base", block((inset - half, half - inset), (0, deck - 0.08), (inset - z, z - inset)), wood)
    else:
        assert kind == "drawers", kind
        d.add("frame", block((-half, half), (0, deck + 0.02), (-z, z), 0.008), wood)
        count = d.integer("drawers", 2, 3)
        pitch, metal = 2 * z / count, d.material(METAL)
        face = box(0.02, deck - 0.07, pitch - 0.05)
        pull = handle("bar", 0.16).rotate("y", 90)
        spots = [(i + 0.5 - count / 2) * pitch for i in range(count)]
        d.add("drawer", merge(face.move(half + 0.004, deck / 2, s).with_mirror() for s in spots), wood)
        d.add("handle", merge(pull.move(half + 0.014, 0.55 * deck, s).with_mirror() for s in spots), metal)


def _bed_posts(d: Designer, style: str, half: float, z: float, wood: Material) -> None:
    """Four posts with, for a canopy, rails and a cloth roof."""
    tall = d.uniform("post_height", 1.5, 2.15)
    post = leg(d.choice("post_shape", ["square", "turned", "round"]), tall, 0.075)
    d.add("post", at_corners(post, half, z), wood)
    if style == "canopy":
        long = block((half - 0.025, half + 0.025), (tall - 0.06, tall - 0.005), (-z, z)).with_mirror()
        short = block((-half, half), (tall - 0.06, tall - 0.007), (z - 0.025, z + 0.025)).with_mirror("z")
        d.add("canopy", long + short, wood)
        if d.choice("roof", ["open", "cloth"]) == "cloth":
            d.add("canopy", block((-half, half), (tall - 0.004, tall + 0.02), (-z, z)), d.material(FABRIC))
    else:
        d.add("post", at_corners(lathe([(0, -0.02), (0.045, 0.03), (0.02, 0.09), (0, 0.11)], 10), half, z).move(y=tall), wood)


def _upper_bunk(d: Designer, half: float, z: float, deck: float, wood: Material) -> None:
    """A second deck on posts, its guard rails and a ladder."""
    level = deck + d.uniform("bunk_gap", 0.85, 1.1)
    tall = level + 0.42
    d.add("post", at_corners(leg("square", tall, 0.07), half, z), wood)
    d.add("frame", block((-half, half), (level - 0.1, level + 0.02), (-z, z)), wood)
    guards = [block((half - 0.012, half + 0.012), (level + lift, level + lift + 0.07), (-z, z)).with_mirror() for lift in (0.12, 0.3)]
    ends = [block((-half, half), (level + lift, level + lift + 0.07), (z - 0.012, z + 0.012)).with_mirror("z") for lift in (0.12, 0.3)]
    d.add("rail", merge(guards + ends), wood)
    foot, x = 0.28, half + 0.03
    stiles = [rod((x + foot, 0.02, s), (x, tall - 0.1, s), 0.02, sides=6) for s in (0.25 * z, 0.25 * z + 0.4)]
    rungs = []
    for i in range(d.integer("rungs", 4, 6)):
        t = (i + 0.7) / 6.5
        at = (x + foot * (1 - t), 0.02 + (tall - 0.12) * t)
        rungs.append(rod((*at, 0.25 * z), (*at, 0.25 * z + 0.4), 0.015, sides=6))
    d.add("ladder", merge(stiles + rungs), wood)
    _bedding(d, 2 * half, 2 * z, level + 0.01, -z)


def bed(d: Designer) -> None:
    """Single and double beds, four-posters and bunks; the head is at -Z."""
    kind = d.choice("kind", {"plain": "", "posts": "with four posts", "canopy": "with a canopy", "bunk": "with an upper bunk"},
                    weights=[0.64, 0.12, 0.12, 0.12])
    head = d.choice("headboard", {"panel": "with a panelled headboard", "arched": "with an arched headboard",
                                  "padded": "with a padded headboard", "bars": "with a barred headboard",
                                  "slats": "with a slatted headboard", "none": "without a headboard"},
                    weights=[0.18, 0.18, 0.2, 0.16, 0.16, 0.12])
    foot = d.choice("footboard", {"none": "", "same": "with a footboard", "low": ""})
    base = d.choice("base", {"legs": "on legs", "platform": "on a platform", "drawers": "with drawers underneath"}, weights=[0.5, 0.25, 0.25])
    single = kind == "bunk" or d.choice("size", {"single": "for one", "double": "for two"}) == "single"
    width = d.uniform("width", 0.8, 1.1) if single else d.uniform("width", 1.3, 1.95)
    length, deck = d.uniform("length", 1.85, 2.15), d.uniform("deck_height", 0.2, 0.42)
    rise = deck + d.uniform("headboard_height", 0.4, 0.95)
    wood, soft = d.material(WOOD, PAINT, METAL), d.material(FABRIC, LEATHER)
    half, z = width / 2, length / 2
    body = soft if head == "padded" and base != "drawers" else wood
    _bed_base(d, base, half, z, deck, body)
    _bedding(d, width - 0.02, length - 0.02, deck + 0.01, 0.01 - z)
    if head != "none" and kind != "bunk":
        mark = len(d.primitives)
        _headboard(d, head, width, rise, wood, soft)
        boards = d.primitives[mark:]
        del d.primitives[mark:]
        lower = d.uniform("footboard_share", 0.5, 0.75) if foot == "same" else 0.0
        for board in boards:
            solid = Geometry(board.vertices, board.faces)
            d.add("headboard", solid.move(z=-z), board.material)
            if foot == "same":
                d.add("footboard", solid.rotate("y", 180).scale(y=lower).move(z=z), board.material)
    if foot == "low":
        d.add("footboard", block((-half - 0.01, half + 0.01), (0.08, deck + d.uniform("footboard_height", 0.05, 0.2)), (z - 0.01, z + 0.04), 0.01), body)
    if kind == "bunk":
        _upper_bunk(d, half, z, deck, wood)
    elif kind != "plain":
        _bed_posts(d, kind, half, z, wood)


BUILDERS = {"table": table, "bed": bed}

"""Beds."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.joinery import (
    at_corners,
    block,
    cushion,
    handle,
    leg,
    merge,
    pipe,
    plate,
    settle,
)
from recon.pipeline.procedural.designer import FABRIC, LEATHER, METAL, PAINT, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry, arc, box, lathe, rod
from recon.pipeline.shapes.mesh import Material

HEADBOARDS = {
    "panel": "with a panelled headboard",
    "arched": "with an arched headboard",
    "padded": "with a padded headboard",
    "bars": "with a barred headboard",
    "slats": "with a slatted headboard",
    "none": "without a headboard",
}


def _headboard(
    d: Designer, style: str, width: float, rise: float, wood: Material, soft: Material
) -> list[tuple[Geometry, Material]]:
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
        outline = np.concatenate([[(-half, 0.1), (half, 0.1)], bow + np.array([0, base])])
        pieces = [(plate(outline, -0.05, 0.0).rotate("x", 90), wood)]
    elif style == "padded":
        columns = d.integer("tufts", 1, 6)
        pad = box(0.996 * 2 * half / columns, 0.75 * rise, 0.11, 0.03)
        pads = merge(pad.move(x=(i + 0.5 - columns / 2) * 2 * half / columns) for i in range(columns))
        pieces = [
            (pads.move(y=0.62 * rise, z=-0.05), soft),
            (block((-half, half), (0.1, 0.5 * rise), (-0.1, -0.02)), soft),
        ]
    elif style == "bars":
        count = d.integer("bars", 5, 13)
        frame = pipe(
            [(half - 0.02, 0, 0), (half - 0.02, rise, 0), (0.02 - half, rise, 0), (0.02 - half, 0, 0)], 0.02, 0.15
        )
        rods = [
            rod((x, 0.35 * rise, 0), (x, rise, 0), 0.009, sides=6) for x in np.linspace(-half, half, count + 2)[1:-1]
        ]
        rods.append(rod((-half + 0.02, 0.4 * rise, 0), (half - 0.02, 0.4 * rise, 0), 0.014, sides=6))
        pieces = [(frame, wood), (merge(rods), wood)]
    else:
        assert style == "slats", style
        count = d.integer("bars", 3, 5)
        pitch = 0.6 * rise / count
        rails = [
            block(
                (0.01 - half, half - 0.01),
                (0.4 * rise + pitch * i, 0.4 * rise + pitch * (i + 0.7)),
                (0.012 - post, -0.012),
            )
            for i in range(count)
        ]
        pieces = [(posts, wood), (merge(rails), wood)]
    return pieces


def _bedding(d: Designer, width: float, length: float, deck: float, head: float) -> None:
    """Mattress, covers and pillows on a deck at height `deck` whose head end is at z = `head`."""
    thick = d.uniform("mattress_thickness", 0.12, 0.3)
    top, middle = deck + thick, head + length / 2
    linen, cover = d.material(FABRIC), d.material(FABRIC)
    d.add("mattress", cushion(width - 0.03, thick, length - 0.03, 0.05).move(y=deck + thick / 2, z=middle), linen)
    made = d.choice(
        "cover", {"none": "", "duvet": "with a duvet", "throw": "with a folded throw"}, weights=[0.25, 0.5, 0.25]
    )
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
        d.add(
            "post",
            at_corners(lathe([(0, -0.02), (0.045, 0.03), (0.02, 0.09), (0, 0.11)], 10), half, z).move(y=tall),
            wood,
        )


def _upper_bunk(d: Designer, half: float, z: float, deck: float, wood: Material) -> None:
    """A second deck on posts, its guard rails and a ladder."""
    level = deck + d.uniform("bunk_gap", 0.85, 1.1)
    tall = level + 0.42
    d.add("post", at_corners(leg("square", tall, 0.07), half, z), wood)
    d.add("frame", block((-half, half), (level - 0.1, level + 0.02), (-z, z)), wood)
    guards = [
        block((half - 0.012, half + 0.012), (level + lift, level + lift + 0.07), (-z, z)).with_mirror()
        for lift in (0.12, 0.3)
    ]
    ends = [
        block((-half, half), (level + lift, level + lift + 0.07), (z - 0.012, z + 0.012)).with_mirror("z")
        for lift in (0.12, 0.3)
    ]
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
    kind = d.choice(
        "kind",
        {"plain": "", "posts": "with four posts", "canopy": "with a canopy", "bunk": "with an upper bunk"},
        weights=[0.64, 0.12, 0.12, 0.12],
    )
    base = d.choice(
        "base",
        {"legs": "on legs", "platform": "on a platform", "drawers": "with drawers underneath"},
        weights=[0.5, 0.25, 0.25],
    )
    single = kind == "bunk" or d.choice("size", {"single": "for one", "double": "for two"}) == "single"
    width = d.uniform("width", 0.8, 1.1) if single else d.uniform("width", 1.3, 1.95)
    length, deck = d.uniform("length", 1.85, 2.15), d.uniform("deck_height", 0.2, 0.42)
    wood, soft = d.material(WOOD, PAINT, METAL), d.material(FABRIC, LEATHER)
    half, z = width / 2, length / 2
    head = "none" if kind == "bunk" else d.choice("headboard", HEADBOARDS, weights=[0.18, 0.18, 0.2, 0.16, 0.16, 0.12])
    body = soft if head == "padded" and base != "drawers" else wood
    _bed_base(d, base, half, z, deck, body)
    _bedding(d, width - 0.02, length - 0.02, deck + 0.01, 0.01 - z)
    if kind != "bunk":
        rise = deck + d.uniform("headboard_height", 0.4, 0.95)
        boards = [] if head == "none" else _headboard(d, head, width, rise, wood, soft)
        for piece, finish in boards:
            d.add("headboard", piece.move(z=-z), finish)
        foot = d.choice(
            "footboard", {"none": "", "same": "with a footboard", "low": ""} if boards else {"none": "", "low": ""}
        )
        if foot == "same":
            lower = d.uniform("footboard_share", 0.5, 0.75)
            for piece, finish in boards:
                d.add("footboard", piece.rotate("y", 180).scale(y=lower).move(z=z), finish)
        elif foot == "low":
            top = deck + d.uniform("footboard_height", 0.05, 0.2)
            d.add("footboard", block((-half - 0.01, half + 0.01), (0.08, top), (z - 0.01, z + 0.04), 0.01), body)
    if kind == "bunk":
        _upper_bunk(d, half, z, deck, wood)
    elif kind != "plain":
        _bed_posts(d, kind, half, z, wood)
    settle(d)


BUILDERS = {"bed": bed}

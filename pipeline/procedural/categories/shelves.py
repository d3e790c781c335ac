"""Bookshelves."""

from __future__ import annotations

import numpy as np

from recon.pipeline.procedural.categories.joinery import Span, at_corners, block, handle, merge, plate, settle
from recon.pipeline.procedural.designer import CERAMIC, FABRIC, METAL, PAINT, WOOD, Designer
from recon.pipeline.procedural.geometry import Geometry, arc, box, lathe, rod
from recon.pipeline.shapes.mesh import Floats, Material


def _books(d: Designer, bays: list[tuple[Span, float, float]], depth: float, fill: float) -> None:
    """Rows of books in `bays` ((x from, x to), y of the board, clear height), their spines near z = `depth` / 2."""
    finishes = [d.material(FABRIC) for _ in range(4)]
    groups: list[list[Geometry]] = [[] for _ in finishes]
    total = fill * sum(x1 - x0 for (x0, x1), _, _ in bays)
    thinnest = max(0.016, total / 130)  # a wall of thin books would cost thousands of triangles
    for (x0, x1), floor, clear in bays:
        x, end = x0 + 0.004, x0 + (x1 - x0) * min(1.0, fill * float(d.rng.uniform(0.6, 1.4)))
        while True:
            thick = thinnest * float(d.rng.uniform(1.0, 2.0))
            if x + thick > end:
                break
            tall, deep = clear * float(d.rng.uniform(0.6, 0.92)), depth * float(d.rng.uniform(0.6, 0.85))
            front = depth * 0.5 - 0.02 - 0.05 * depth * float(d.rng.random())
            book = block((x, x + thick - 0.002), (floor - 0.002, floor + tall), (front - deep, front))
            groups[int(d.rng.integers(len(groups)))].append(book)
            x += thick
    for group, finish in zip(groups, finishes, strict=True):
        if group:
            d.add("book", merge(group), finish)


def _ornaments(d: Designer, bays: list[tuple[Span, float, float]], depth: float) -> None:
    """A vase, a box or a bowl here and there."""
    for (x0, x1), floor, clear in bays:
        kind = ("none", "vase", "box", "bowl")[int(d.rng.integers(4))]
        x, size = x0 + (x1 - x0) * float(d.rng.uniform(0.35, 0.65)), 0.5 * min(clear, x1 - x0, depth)
        if kind == "vase":
            profile = np.array([(0, 0), (0.5, 0), (0.85, 0.5), (0.35, 1.2), (0.5, 1.5), (0, 1.5)]) * 0.55 * size
            d.add("ornament", lathe(profile, 12).move(x=x, y=floor - 0.002), d.material(CERAMIC))
        elif kind == "box":
            d.add(
                "ornament",
                box(1.3 * size, size, 1.2 * size, 0.01).move(x=x, y=floor + size / 2 - 0.002),
                d.material(PAINT),
            )
        elif kind == "bowl":
            profile = np.array([(0, 0), (0.4, 0), (1, 0.7), (0.9, 0.7), (0, 0.15)]) * 0.7 * size
            d.add("ornament", lathe(profile, 12).move(x=x, y=floor - 0.002), d.material(CERAMIC))


def bookshelf(d: Designer) -> None:
    """Open shelves: a case, a ladder, a metal rack or a stepped stack, with or without books."""
    style = d.choice(
        "style",
        {"case": "", "rack": "in a metal rack", "ladder": "shaped like a ladder", "stepped": "with stepped columns"},
        weights=[0.5, 0.18, 0.14, 0.18],
    )
    load = d.choice(
        "contents", {"empty": "without books", "books": "full of books", "some": "with a few books and ornaments"}
    )
    rows, columns = d.integer("rows", 2, 6), d.integer("columns", *((2, 4) if style == "stepped" else (1, 3)))
    width = max(d.uniform("width", 0.5, 1.1) * (1 + 0.45 * (columns - 1)), 0.3 * columns)
    pitch, depth = d.uniform("row_height", 0.27, 0.42), d.uniform("depth", 0.24, 0.4)
    board, lift = d.uniform("board_thickness", 0.016, 0.036), d.uniform("base_height", 0.02, 0.13)
    uneven = d.uniform("row_spread", 0.0, 0.35)
    body = d.material(WOOD, PAINT)
    rises = pitch * (1 + uneven * (np.arange(rows)[::-1] - (rows - 1) / 2) / max(rows - 1, 1))
    levels = lift + np.concatenate([[0.0], np.cumsum(rises)])  # of the boards' top faces but the last: its underside
    if style == "case":
        bays = _case(d, width, depth, levels, columns, board, body)
    elif style == "stepped":
        bays = _stepped(d, width, depth, levels, columns, board, body)
    else:
        bays = _open_frame(d, style, width, depth, levels, board, body)
    if load != "empty":
        fill = d.uniform("fill", 0.6, 0.98) if load == "books" else d.uniform("fill", 0.2, 0.5)
        picked = [bay for bay in bays if load == "books" or d.rng.random() < 0.6]
        _books(d, picked or bays[:1], depth * (0.75 if style == "ladder" else 1.0), fill)
    if load == "some":
        _ornaments(d, [((x1 - 0.4 * (x1 - x0), x1), y, clear) for (x0, x1), y, clear in bays], 0.8 * depth)
    settle(d)


def _crown(d: Designer, half: float, z: float, top: float, body: Material) -> None:
    crown = d.choice(
        "crown", {"flat": "", "cornice": "with a cornice", "arch": "with an arched top"}, weights=[0.5, 0.3, 0.2]
    )
    if crown == "cornice":
        ledge = d.uniform("cornice", 0.02, 0.06)
        d.add("top", box(2 * half + 2 * ledge, 0.04, 2 * z + 2 * ledge, 0.014).move(y=top + 0.015), body)
    elif crown == "arch":
        bow = arc(1.0, 0, 180, 13) * [half, d.uniform("arch", 0.08, 0.2)]
        d.add("top", plate(bow, -0.012, 0.012).rotate("x", 90).move(y=top - 0.006, z=z - 0.03), body)


def _case(
    d: Designer, width: float, depth: float, levels: Floats, columns: int, board: float, body: Material
) -> list[tuple[Span, float, float]]:
    """Two sides, a top and boards between; returns the bays."""
    half, z, top = width / 2, depth / 2, float(levels[-1])
    d.add("side", block((half - board, half), (0, top + board), (-z, z), 0.003).with_mirror(), body)
    d.add(
        "shelf", block((-half + 0.002, half - 0.002), (top, top + board - 0.002), (-z + 0.002, z - 0.002), 0.002), body
    )
    _crown(d, half, z, top + board, body)
    boards = [block((0.004 - half, half - 0.004), (y - board, y), (0.003 - z, z - 0.006), 0.002) for y in levels[:-1]]
    d.add("shelf", merge(boards), body)
    walls = np.linspace(-half, half, columns + 1)
    if columns > 1:
        d.add(
            "divider",
            merge(
                block((x - board / 2, x + board / 2), (levels[0] - 0.004, top + 0.004), (0.004 - z, z - 0.01))
                for x in walls[1:-1]
            ),
            body,
        )
    back = d.choice("back", {"closed": "", "open": "with an open back"}, weights=[0.65, 0.35])
    if back == "closed":
        finish = (
            d.material(PAINT, WOOD)
            if d.choice("back_finish", ["same", "contrast"], weights=[0.7, 0.3]) == "contrast"
            else body
        )
        d.add(
            "back", block((0.006 - half, half - 0.006), (levels[0] - 0.01, top + 0.01), (0.002 - z, 0.012 - z)), finish
        )
    if d.choice("plinth", ["board", "sides"]) == "board":
        d.add("base", block((0.006 - half, half - 0.006), (0, levels[0] - 0.004), (z - 0.045, z - 0.025)), body)
    shut = (
        len(levels) > 3 and d.choice("doors", {"none": "", "doors": "with doors below"}, weights=[0.7, 0.3]) == "doors"
    )
    if shut:
        leaf = block(
            (0.003, width / (2 * columns) - 0.003),
            (levels[0] - board, levels[1] - 0.004),
            (z - 0.004, z + 0.014),
            0.003,
        )
        spots = [float(walls[i] + walls[i + 1]) / 2 for i in range(columns)]
        d.add("door", merge(leaf.with_mirror().move(x=x) for x in spots), body)
        pull = handle("knob", 0.09).move(x=0.035, y=float(levels[0] + 0.7 * (levels[1] - levels[0])), z=z + 0.012)
        d.add("handle", merge(pull.with_mirror().move(x=x) for x in spots), d.material(METAL))
    gap = board / 2 + 0.003
    return [
        ((float(walls[c]) + gap, float(walls[c + 1]) - gap), float(levels[r]), float(levels[r + 1] - levels[r] - board))
        for r in range(1 if shut else 0, len(levels) - 1)
        for c in range(columns)
    ]


def _stepped(
    d: Designer, width: float, depth: float, levels: Floats, columns: int, board: float, body: Material
) -> list[tuple[Span, float, float]]:
    """Columns of cubes of different heights side by side; returns the bays."""
    z, rows = depth / 2, len(levels) - 1
    order = d.choice("steps", ["stairs", "valley", "random"])
    heights = {
        "stairs": np.linspace(1, rows, columns),
        "valley": rows - np.abs(np.linspace(-1, 1, columns)) * (rows - 1),
        "random": d.rng.integers(1, rows + 1, columns).astype(np.float64),
    }[order]
    heights = np.maximum(np.round(heights).astype(int), 1)
    walls, cell = np.linspace(-width / 2, width / 2, columns + 1), width / columns
    bays, boards, sides, backs = [], [], [], []
    for i, x in enumerate(walls):
        tall = max(heights[max(i - 1, 0)], heights[min(i, columns - 1)])
        sides.append(block((x - board / 2, x + board / 2), (0, levels[tall]), (-z, z), 0.002))
    for c, count in enumerate(heights):
        x0, x1 = float(walls[c]), float(walls[c] + cell)
        boards += [
            block((x0 + 0.002, x1 - 0.002), (y - board, y - 0.001), (0.003 - z, z - 0.003), 0.002)
            for y in levels[: count + 1]
        ]
        backs.append(block((x0 + 0.002, x1 - 0.002), (levels[0] - 0.005, levels[count] - 0.005), (0.002 - z, 0.01 - z)))
        bays += [
            (
                (x0 + board / 2 + 0.003, x1 - board / 2 - 0.003),
                float(levels[r]),
                float(levels[r + 1] - levels[r] - board),
            )
            for r in range(count)
        ]
    d.add("side", merge(sides), body)
    d.add("shelf", merge(boards), body)
    if d.choice("back", {"closed": "", "open": "with an open back"}) == "closed":
        d.add("back", merge(backs), body)
    return bays


def _open_frame(
    d: Designer, style: str, width: float, depth: float, levels: Floats, board: float, body: Material
) -> list[tuple[Span, float, float]]:
    """Boards in a metal rack, or between two ladders that lean together; returns the bays."""
    half, z, top = width / 2, depth / 2, float(levels[-1])
    frame = d.material(METAL, PAINT)
    post = d.uniform("post_thickness", 0.018, 0.04)
    shrink = 0.0 if style == "rack" else d.uniform("ladder_lean", 0.35, 0.65)
    t = np.clip((levels - levels[0]) / (top - levels[0]), 0, 1)
    fronts = z - shrink * depth * t
    boards = [
        block((-half, half), (y - board, y), (-z, front), 0.003)
        for y, front in zip(levels if style == "rack" else levels[:-1], fronts, strict=False)
    ]
    d.add("shelf", merge(boards), body)
    if style == "rack":
        d.add(
            "frame",
            at_corners(
                block((-post / 2, post / 2), (0, top + 0.03), (-post / 2, post / 2), 0.002),
                half - 0.002,
                z - post / 2 + 0.003,
            ),
            frame,
        )
        brace = d.choice("brace", {"none": "", "cross": "with a crossed brace", "sides": ""})
        if brace == "cross":
            d.add("frame", rod((-half, 0.1, -z), (half, top, -z), 0.007, sides=6).with_mirror(), frame)
        elif brace == "sides":
            d.add(
                "frame",
                merge(rod((half, y + 0.1, -z), (half, y + 0.1, z), 0.008, sides=6).with_mirror() for y in levels[:-1]),
                frame,
            )
    else:
        tall = top + d.uniform("stile_rise", -0.15, 0.1)
        slope = float(fronts[-1] - fronts[0]) / (top - float(levels[0]))
        stile = rod(
            (half, 0, z - slope * levels[0]), (half, tall, z + slope * (tall - levels[0])), 0.5 * post, sides=12
        )
        d.add("frame", (stile + rod((half, 0, -z), (half, tall, -z), 0.5 * post, sides=12)).with_mirror(), frame)
    return [
        ((-half + post, half - post), float(levels[r]), float(levels[r + 1] - levels[r] - board))
        for r in range(len(levels) - 1)
    ]


BUILDERS = {"bookshelf": bookshelf}

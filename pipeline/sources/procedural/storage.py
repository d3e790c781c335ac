"""Bookshelves and cabinets."""

from __future__ import annotations

import numpy as np

from pipeline.mesh import Material
from pipeline.sources.procedural.designer import CERAMIC, FABRIC, GLASS, METAL, PAINT, PLASTIC, WOOD, Designer
from pipeline.sources.procedural.geometry import Geometry, arc, box, lathe, rod
from pipeline.sources.procedural.joinery import Span, at_corners, block, cushion, handle, leg, merge, pipe, plate


def _books(d: Designer, bays: list[tuple[Span, float, float]], depth: float, fill: float) -> None:
    """Rows of books in `bays` ((x from, x to), y of the board, clear height), their spines near z = `depth` / 2."""
    finishes = [d.material(FABRIC) for _ in range(4)]
    groups: list[list[Geometry]] = [[] for _ in finishes]
    total = fill * sum(x1 - x0 for (x0, x1), _, _ in bays)
    thinnest = max(0.018, total / 110)  # a wall of thin books would cost thousands of triangles
    for (x0, x1), floor, clear in bays:
        x, end = x0 + 0.004, x0 + (x1 - x0) * min(1.0, fill * float(d.rng.uniform(0.6, 1.4)))
        while True:
            thick = thinnest * float(d.rng.uniform(1.0, 2.2))
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
            d.add("ornament", box(1.3 * size, size, 1.2 * size, 0.01).move(x=x, y=floor + size / 2 - 0.002), d.material(PAINT))
        elif kind == "bowl":
            profile = np.array([(0, 0), (0.4, 0), (1, 0.7), (0.9, 0.7), (0, 0.15)]) * 0.7 * size
            d.add("ornament", lathe(profile, 12).move(x=x, y=floor - 0.002), d.material(CERAMIC))


def bookshelf(d: Designer) -> None:
    """Open shelves: a case, a ladder, a metal rack or a stepped stack, with or without books."""
    style = d.choice("style", {"case": "", "rack": "in a metal rack", "ladder": "shaped like a ladder", "stepped": "with stepped columns"},
                     weights=[0.5, 0.18, 0.14, 0.18])
    load = d.choice("contents", {"empty": "without books", "books": "full of books", "some": "with a few books and ornaments"})
    rows, columns = d.integer("rows", 2, 6), d.integer("columns", 1, 4 if style == "stepped" else 3)
    width = max(d.uniform("width", 0.5, 1.1) * (1 + 0.45 * (columns - 1)), 0.3 * columns)
    pitch, depth = d.uniform("row_height", 0.27, 0.42), d.uniform("depth", 0.24, 0.4)
    board, lift = d.uniform("board_thickness", 0.016, 0.036), d.uniform("base_height", 0.02, 0.13)
    fill = d.uniform("fill", 0.6, 0.98) if load == "books" else d.uniform("fill", 0.2, 0.5)
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
        picked = [bay for bay in bays if load == "books" or d.rng.random() < 0.6]
        _books(d, picked or bays[:1], depth * (0.75 if style == "ladder" else 1.0), fill)
    if load == "some":
        _ornaments(d, [((x1 - 0.4 * (x1 - x0), x1), y, clear) for (x0, x1), y, clear in bays], 0.8 * depth)


def _case(
    d: Designer, width: float, depth: float, levels: np.ndarray, columns: int, board: float, body: Material
) -> list[tuple[Span, float, float]]:
    """Two sides, a top and boards between; returns the bays."""
    half, z, top = width / 2, depth / 2, float(levels[-1])
    d.add("side", block((half - board, half), (0, top + board), (-z, z), 0.003).with_mirror(), body)
    crown = d.choice("crown", {"flat": "", "cornice": "with a cornice", "arch": "with an arched top"}, weights=[0.5, 0.3, 0.2])
    d.add("shelf", block((-half + 0.002, half - 0.002), (top, top + board - 0.002), (-z + 0.002, z - 0.002)), body)
    if crown == "cornice":
        ledge = d.uniform("cornice", 0.02, 0.06)
        d.add("top", box(width + 2 * ledge, 0.04, depth + 2 * ledge, 0.014).move(y=top + board + 0.015), body)
    elif crown == "arch":
        bow = arc(1.0, 0, 180, 13) * [half, d.uniform("arch", 0.08, 0.2)]
        d.add("top", plate(bow, -0.012, 0.012).rotate("x", 90).move(y=top + board - 0.006, z=z - 0.03), body)
    boards = [block((0.004 - half, half - 0.004), (y - board, y), (0.003 - z, z - 0.006)) for y in levels[:-1]]
    d.add("shelf", merge(boards), body)
    walls = np.linspace(-half, half, columns + 1)
    if columns > 1:
        d.add("divider", merge(block((x - board / 2, x + board / 2), (levels[0] - 0.004, top + 0.004), (0.004 - z, z - 0.01))
                               for x in walls[1:-1]), body)
    back = d.choice("back", {"closed": "", "open": "with an open back"}, weights=[0.65, 0.35])
    if back == "closed":
        finish = d.material(PAINT, WOOD) if d.choice("back_finish", ["same", "contrast"], weights=[0.7, 0.3]) == "contrast" else body
        d.add("back", block((0.006 - half, half - 0.006), (levels[0] - 0.01, top + 0.01), (0.002 - z, 0.012 - z)), finish)
    if d.choice("plinth", ["board", "sides"]) == "board":
        d.add("base", block((0.006 - half, half - 0.006), (0, levels[0] - 0.004), (z - 0.045, z - 0.025)), body)
    shut = len(levels) > 3 and d.choice("doors", {"none": "", "doors": "with doors below"}, weights=[0.7, 0.3]) == "doors"
    if shut:
        leaf = block((0.003, width / (2 * columns) - 0.003), (levels[0] - board, levels[1] - 0.004), (z - 0.004, z + 0.014), 0.003)
        spots = [float(walls[i] + walls[i + 1]) / 2 for i in range(columns)]
        d.add("door", merge(leaf.with_mirror().move(x=x) for x in spots), body)
        pull = handle("knob", 0.09).move(x=0.035, y=float(levels[0] + 0.7 * (levels[1] - levels[0])), z=z + 0.012)
        d.add("handle", merge(pull.with_mirror().move(x=x) for x in spots), d.material(METAL))
    gap = board / 2 + 0.003
    return [((float(walls[c]) + gap, float(walls[c + 1]) - gap), float(levels[r]), float(levels[r + 1] - levels[r] - board))
            for r in range(1 if shut else 0, len(levels) - 1) for c in range(columns)]


def _stepped(
    d: Designer, width: float, depth: float, levels: np.ndarray, columns: int, board: float, body: Material
) -> list[tuple[Span, float, float]]:
    """Columns of cubes of different heights side by side; returns the bays."""
    z, rows = depth / 2, len(levels) - 1
    columns = max(columns, 2)
    order = d.choice("steps", ["stairs", "valley", "random"])
    heights = {"stairs": np.linspace(1, rows, columns), "valley": rows - np.abs(np.linspace(-1, 1, columns)) * (rows - 1),
               "random": d.rng.integers(1, rows + 1, columns).astype(np.float64)}[order]
    heights = np.maximum(np.round(heights).astype(int), 1)
    walls, cell = np.linspace(-width / 2, width / 2, columns + 1), width / columns
    bays, boards, sides, backs = [], [], [], []
    for i, x in enumerate(walls):
        tall = max(heights[max(i - 1, 0)], heights[min(i, columns - 1)])
        sides.append(block((x - board / 2, x + board / 2), (0, levels[tall]), (-z, z), 0.002))
    for c, count in enumerate(heights):
        x0, x1 = float(walls[c]), float(walls[c] + cell)
        boards += [block((x0, x1), (y - board, y - 0.001), (0.003 - z, z - 0.003)) for y in levels[: count + 1]]
        backs.append(block((x0, x1), (levels[0] - 0.005, levels[count] - 0.005), (0.002 - z, 0.01 - z)))
        bays += [((x0 + board / 2 + 0.003, x1 - board / 2 - 0.003), float(levels[r]), float(levels[r + 1] - levels[r] - board))
                 for r in range(count)]
    d.add("side", merge(sides), body)
    d.add("shelf", merge(boards), body)
    if d.choice("back", {"closed": "", "open": "with an open back"}) == "closed":
        d.add("back", merge(backs), body)
    return bays


def _open_frame(
    d: Designer, style: str, width: float, depth: float, levels: np.ndarray, board: float, body: Material
) -> list[tuple[Span, float, float]]:
    """Boards in a metal rack, or between two ladders that lean together; returns the bays."""
    half, z, top = width / 2, depth / 2, float(levels[-1])
    frame = d.material(METAL, PAINT)
    post = d.uniform("post_thickness", 0.018, 0.04)
    shrink = 0.0 if style == "rack" else d.uniform("ladder_lean", 0.35, 0.65)
    t = np.clip((levels - levels[0]) / (top - levels[0]), 0, 1)
    fronts = z - shrink * depth * t
    boards = [block((-half, half), (y - board, y), (-z, front), 0.003)
              for y, front in zip(levels if style == "rack" else levels[:-1], fronts, strict=False)]
    d.add("shelf", merge(boards), body)
    if style == "rack":
        d.add("frame", at_corners(block((-post / 2, post / 2), (0, top + 0.03), (-post / 2, post / 2)), half - 0.002, z - post / 2 + 0.003), frame)
        brace = d.choice("brace", {"none": "", "cross": "with a crossed brace", "sides": ""})
        if brace == "cross":
            d.add("frame", rod((-half, 0.1, -z), (half, top, -z), 0.007, sides=6).with_mirror(), frame)
        elif brace == "sides":
            d.add("frame", merge(rod((half, y + 0.1, -z), (half, y + 0.1, z), 0.008, sides=6).with_mirror() for y in levels[:-1]), frame)
    else:
        tall = top + d.uniform("stile_rise", -0.15, 0.1)
        slope = float(fronts[-1] - fronts[0]) / (top - float(levels[0]))
        stile = rod((half, 0, z - slope * levels[0]), (half, tall, z + slope * (tall - levels[0])), 0.5 * post, sides=8)
        d.add("frame", (stile + rod((half, 0, -z), (half, tall, -z), 0.5 * post, sides=8)).with_mirror(), frame)
    return [((-half + post, half - post), float(levels[r]), float(levels[r + 1] - levels[r] - board)) for r in range(len(levels) - 1)]


# Kind of cabinet -> (width, height, depth) ranges in metres.
CABINETS = {
    "cupboard": ((0.6, 1.3), (0.75, 1.5), (0.35, 0.6)), "drawers": ((0.5, 1.4), (0.6, 1.3), (0.38, 0.55)),
    "sideboard": ((1.2, 2.1), (0.5, 0.9), (0.35, 0.5)), "wardrobe": ((0.8, 1.9), (1.7, 2.3), (0.5, 0.65)),
    "display": ((0.6, 1.3), (1.3, 2.1), (0.3, 0.45)), "nightstand": ((0.35, 0.6), (0.42, 0.7), (0.32, 0.48)),
    "filing": ((0.38, 0.5), (0.65, 1.4), (0.45, 0.65)),
}
CABINET_PHRASES = {
    "cupboard": "with doors", "drawers": "full of drawers", "sideboard": "low and wide", "wardrobe": "tall, for clothes",
    "display": "with glazed doors", "nightstand": "small, for a bedside", "filing": "for files",
}


def _front(d: Designer, style: str, width: float, height: float, body: Material, trim: Material) -> list[tuple[str, Geometry, Material]]:
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
    bars = block((-0.008, 0.008), (-b, b), (0.0, 0.016)) + merge(block((-a, a), (y - 0.008, y + 0.008), (0.0, 0.015)) for y in (-b / 3, b / 3))
    return [("door", stiles + rails + bars, body), ("glass", block((-a, a), (-b, b), (0.0, 0.006)), d.material(GLASS))]


def _fronts(kind: str, d: Designer, width: float, height: float) -> list[tuple[str, Span, Span]]:
    """Doors and drawers as (door or drawer, x limits, y limits) over a face [0, width] x [0, height]."""
    if kind == "drawers" or kind == "filing":
        rows, columns = d.integer("rows", 2, 5), 1 if kind == "filing" or width < 0.8 else d.integer("columns", 1, 3)
        grow = d.uniform("drawer_growth", 0.0, 0.5) if kind == "drawers" else 0.0
        edges = np.concatenate([[0.0], np.cumsum(np.linspace(1 + grow, 1, rows))])
        edges *= height / edges[-1]
        return [("drawer", (width * c / columns, width * (c + 1) / columns), (edges[r], edges[r + 1]))
                for r in range(rows) for c in range(columns)]
    doors = max(1, round(width / d.uniform("door_width", 0.38, 0.6)))
    low = d.uniform("split", 0.18, 0.38) * height
    mixed = d.choice("drawers", {"none": "", "above": "with drawers above", "below": "with drawers below", "beside": "with drawers at its side"})
    if kind == "nightstand":
        mixed = "above"
    columns = np.linspace(0, width, doors + 1)
    span = {"none": (0.0, height), "above": (0.0, height - low), "below": (low, height), "beside": (0.0, height)}[mixed]
    fronts = [("door", (a, b), span) for a, b in zip(columns, columns[1:], strict=False)]
    if mixed in ("above", "below"):
        level = (height - low, height) if mixed == "above" else (0.0, low)
        fronts += [("drawer", (a, b), level) for a, b in zip(columns, columns[1:], strict=False)]
    elif mixed == "beside" and doors > 1:
        rows = d.integer("rows", 3, 5)
        fronts[-1:] = [("drawer", fronts[-1][1], (height * r / rows, height * (r + 1) / rows)) for r in range(rows)]
    return fronts


def _cabinet_base(d: Designer, half: float, z: float, lift: float, wood: Material) -> None:
    base = d.choice("base", {"plinth": "", "legs": "on legs", "feet": "", "runners": "on a metal base"})
    if base == "plinth":
        d.add("base", block((0.02 - half, half - 0.02), (0, lift + 0.002), (0.01 - z, z - d.uniform("toe_kick", 0.02, 0.07))), wood)
    elif base == "legs":
        shape = d.choice("leg_shape", ["square", "tapered", "turned", "cabriole", "round", "hairpin"])
        d.add("leg", at_corners(leg(shape, lift + 0.002, 0.05, 0.2 * lift), half - 0.06, z - 0.05), wood)
    elif base == "feet":
        bun = lathe([(0, 0), (0.03, 0), (0.05, 0.4 * lift), (0.03, 0.9 * lift), (0.04, lift + 0.002), (0, lift + 0.002)], 12)
        d.add("leg", at_corners(bun, half - 0.055, z - 0.055), wood)
    else:
        u, w = half - 0.04, z - 0.03
        d.add("leg", pipe([(u, lift + 0.002, -w), (u, 0.011, -w), (u, 0.011, w), (u, lift + 0.002, w)], 0.011, 0.015).with_mirror(), wood)


def cabinet(d: Designer) -> None:
    """Cupboards, chests of drawers, sideboards, wardrobes, glazed cabinets, nightstands and filing cabinets."""
    kind = d.choice("kind", CABINET_PHRASES)
    (w0, w1), (h0, h1), (z0, z1) = CABINETS[kind]
    width, height, depth = d.uniform("width", w0, w1), d.uniform("height", h0, h1), d.uniform("depth", z0, z1)
    lift, wall = d.uniform("base_height", 0.03, 0.2), d.uniform("wall_thickness", 0.016, 0.034)
    overhang, gap = d.uniform("top_overhang", -0.006, 0.04), d.uniform("front_gap", 0.003, 0.009)
    style = "glazed" if kind == "display" else d.choice("front", {
        "plain": "with plain fronts", "raised": "with raised panels", "framed": "with framed panels", "louvred": "with louvred doors"},
        weights=[0.35, 0.25, 0.25, 0.15])
    body = d.material(PAINT, METAL) if kind == "filing" else d.material(WOOD, PAINT, PLASTIC)
    trim = d.material(WOOD, PAINT) if d.choice("finish", ["one", "two"], weights=[0.65, 0.35]) == "two" else body
    wood, metal = (body if kind == "filing" else d.material(WOOD, METAL)), d.material(METAL)
    half, z = width / 2, depth / 2
    d.add("body", block((-half, half), (lift, height - 0.02), (-z, z - 0.02), 0.004), body)
    d.add("body", block((half - wall, half), (lift + 0.002, height - 0.02), (-z + 0.003, z), 0.002).with_mirror(), body)
    d.add("body", block((-half + 0.003, half - 0.003), (lift, lift + wall), (-z + 0.006, z - 0.002)), body)
    d.add("top", block((-half - overhang, half + overhang), (height - 0.025, height + 0.004), (-z - 0.002, z + overhang + 0.008), 0.006), trim)
    _cabinet_base(d, half, z, lift, wood)
    inner, tall = width - 2 * wall, height - lift - wall - 0.025
    pull_kind, wide_open = d.choice("handle", ["knob", "bar", "ring", "cup"]), d.choice("ajar", {"shut": "", "ajar": "with a door open"}, weights=[0.8, 0.2])
    pull_height = d.uniform("handle_height", -0.2, 0.35)
    pieces: dict[tuple[str, Material], list[Geometry]] = {}
    doors = 0
    for part, (x0, x1), (y0, y1) in _fronts(kind, d, inner, tall):
        w, h = float(x1 - x0) - gap, float(y1 - y0) - gap
        x, y = float(x0 + x1) / 2 - inner / 2, lift + wall + float(y0 + y1) / 2
        side = 0.0
        if part == "door":
            side, doors = (1.0 if doors % 2 == 0 else -1.0), doors + 1  # doors open in pairs
        turn = -100.0 if part == "door" and doors == 1 and wide_open == "ajar" else 0.0
        look = style if part == "door" or style != "louvred" else "plain"
        pull = handle(pull_kind, min(0.14, 0.5 * h, 0.4 * w))
        if part == "door" and pull_kind == "bar":
            pull = pull.rotate("z", 90)
        offset = (side * (w / 2 - 0.045), pull_height * h if side else 0.0, 0.02)
        made = [*_front(d, "raised" if look == "glazed" and part == "drawer" else look, w, h, body, trim), ("handle", pull.move(*offset), metal)]
        for name, piece, finish in made:
            if turn:
                piece = piece.move(x=w / 2).rotate("y", turn).move(x=-w / 2)
            label = part if name == "door" else name
            pieces.setdefault((label, finish), []).append(piece.move(x, y, z - 0.018))
    for (part, finish), group in pieces.items():
        d.add(part, merge(group), finish)
    crown = d.choice("crown", {"none": "", "cornice": "with a cornice", "gallery": "", "hutch": "with shelves on top", "mirror": "with a mirror"},
                     weights=[0.52, 0.16, 0.1, 0.12, 0.1])
    if crown == "cornice":
        d.add("top", box(width + 0.09, 0.06, depth + 0.09, 0.025).move(y=height + 0.03), trim)
    elif crown == "gallery":
        d.add("top", block((-half, half), (height, height + 0.1), (-z, -z + 0.02), 0.004), trim)
    elif height < 1.2 and crown == "hutch":
        rise = d.uniform("hutch_height", 0.45, 0.95)
        sides = block((half - 0.05, half - 0.028), (height, height + rise), (-z + 0.004, 0.35 * z)).with_mirror()
        boards = [block((0.04 - half, half - 0.04), (y, y + 0.02), (-z + 0.006, 0.33 * z)) for y in (height + 0.5 * rise, height + rise - 0.022)]
        d.add("hutch", sides + merge(boards), body)
        d.add("hutch", block((0.04 - half, half - 0.04), (height, height + rise - 0.01), (-z, -z + 0.008)), body)
    elif height < 1.2 and crown == "mirror":
        rise, span = d.uniform("mirror_height", 0.45, 0.85), 0.38 * width
        oval = arc(1.0, 0, 360, 25)[:-1] * [span, 0.5 * rise]
        d.add("mirror", plate(1.08 * oval, -0.012, 0.012).rotate("x", 90).move(y=height + 0.56 * rise, z=-0.7 * z), trim)
        d.add("mirror", plate(oval, 0.0, 0.016).rotate("x", 90).move(y=height + 0.56 * rise, z=-0.7 * z), Material("mirror", (0.62, 0.68, 0.72), 0.3, 0.1))
        d.add("mirror", block((span - 0.02, span + 0.02), (height, height + 0.6 * rise), (-0.7 * z - 0.03, -0.7 * z - 0.008)).with_mirror(), trim)


BUILDERS = {"bookshelf": bookshelf, "cabinet": cabinet}

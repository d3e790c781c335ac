"""Contact sheets: what the store's shapes look like, a row a class, and what was set aside and why."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from recon.pipeline.base.digests import row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import sync_directory, write_atomically
from recon.pipeline.keeping.pictures import Pictures, pictures
from recon.pipeline.shapes.upright import UNCLEAR, likely_up
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.names import named_keys
from recon.pipeline.store.records import Ref
from recon.pipeline.store.shards import read_rows

CELL = 144  # px a picture is shown at
GAP = 12
MARGIN = 32
LABEL = 176
COLUMNS = 12
ROWS_A_SHEET = 12
FAILURES_A_SHEET = 12
INK, FAINT, FRAME, WARNING = "#1a1a1a", "#707070", "#e2e2e2", "#b3261e"


@dataclass(frozen=True)
class PreviewResult:
    """Sheets written; `shapes` shown on those of classes, `failures` on those of what was set aside."""

    files: tuple[str, ...]
    classes: int
    shapes: int
    failures: int


@dataclass(frozen=True)
class _Strip:
    """One row of a sheet; a class or a shape with more than `COLUMNS` pictures takes several."""

    label: str
    note: str
    pictures: list[tuple[int, int, str]]
    """(row of the registry, view, the line below)"""
    tipped: frozenset[int] = frozenset()
    """Those rows whose likely up is another than the store's."""


def contact_sheet(
    store: FeatureStore,
    out: Path | str,
    ref: str | None = None,
    per_class: int = 8,
    failures: bool = True,
    views: bool = False,
    show: str = "rgb",
    teacher: str | None = None,
) -> PreviewResult:
    """Draw sheets into the folder `out`: classes-<n>.png and, where shapes were set aside, failures-<n>.png.

    A row is a class and shows the first view of `per_class` of its finished shapes, those whose uid has the lowest
    hash (`row_seed("preview", uid)`): the same in every store. Those whose points say that another direction than +Y is
    likely up (`shapes.upright`) have a red frame and that direction below. With `views` a row is a shape and shows all
    its views. With "lifted" the points have the colours of the three components in which a teacher's features of them
    differ most, one meaning in all pictures; `teacher`: whose.
    A class is not divided between sheets unless it fills one. `show` names what is drawn, one of `pictures.SHOWN`.
    What was set aside is listed with its stage and reason and shown as a picture where there is one, else by its
    points where there are some: a shape of which nothing was seen, say. Sheets of an earlier call are replaced.
    UserError without such pictures or where `out` cannot be written.
    """
    if per_class < 1:
        raise UserError(f"{per_class} shapes a class: give 1 or more")
    out = Path(out)
    found = store.ref(ref)
    shown = pictures(store, found, show, teacher)
    chosen = choose(store, found, shown.ok, per_class)
    aside = _set_aside(store, found) if failures else []
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, sheet in _sheets(store, found, shown, chosen, aside, views):
            write_atomically(out / name, _png(sheet))
            written.append(str(out / name))
        for old in sorted(out.iterdir()):
            if re.fullmatch(r"(classes|failures)-\d+\.png", old.name) and str(old) not in written:
                old.unlink()
        sync_directory(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write sheets there ({error.strerror or error}); name another folder") from error
    return PreviewResult(tuple(written), len(chosen), sum(map(len, chosen.values())), len(aside))


def class_sheets(store: FeatureStore, ref: str | None = None, per_class: int = 8) -> Iterator[Image.Image]:
    """The sheets of classes that `contact_sheet` writes, one at a time."""
    found = store.ref(ref)
    shown = pictures(store, found, "rgb")
    chosen = choose(store, found, shown.ok, per_class)
    return (sheet for _, sheet in _sheets(store, found, shown, chosen, [], views=False))


def _sheets(
    store: FeatureStore,
    ref: Ref,
    shown: Pictures,
    chosen: dict[str, list[int]],
    aside: Sequence[tuple[str, str, str]],
    views: bool,
) -> Iterator[tuple[str, Image.Image]]:
    """(file name, sheet), one at a time: a large data set has hundreds."""
    for page, strips in enumerate(_pages(_strips(store, ref, shown, chosen, views)), 1):
        yield f"classes-{page:02d}.png", _draw_strips(f"{ref.name}: {shown.title}", strips, shown)
    numbers = store.registry.numbers(ref.dataset)
    dots = pictures(store, ref, "points") if aside and "points" in ref.keys else None
    for page, start in enumerate(range(0, len(aside), FAILURES_A_SHEET), 1):
        lines = []
        for uid, stage, reason in aside[start : start + FAILURES_A_SHEET]:
            row = numbers.get(uid, -1)
            there = [found for found in (shown, dots) if found and row >= 0 and found.ok[row]]
            lines.append((_enlarged(there[0].draw(row, 0)) if there else None, uid, stage, reason))
        yield f"failures-{page:02d}.png", _draw_failures(f"{ref.name}: {len(aside)} set aside", lines)


def choose(store: FeatureStore, ref: Ref, ok: NDArray[np.bool_], per_class: int) -> dict[str, list[int]]:
    """Registry rows to show by category: those that are `ok` [N], lowest hash of the uid first."""
    registry = store.registry
    chosen: dict[str, list[int]] = {}
    for row in store.rows(ref):
        finished = chosen.setdefault(registry.categories[registry.category[row]], [])
        if ok[row]:
            finished.append(int(row))
    lowest = lambda row: row_seed("preview", registry.uid[row])  # noqa: E731
    return {name: sorted(rows, key=lowest)[:per_class] for name, rows in sorted(chosen.items())}


def _strips(
    store: FeatureStore, ref: Ref, shown: Pictures, chosen: dict[str, list[int]], views: bool
) -> dict[str, list[_Strip]]:
    """By class its strip of first views; with `views` a strip a shape. Long ones are wrapped."""
    registry = store.registry
    totals = {category: [0, 0] for category in chosen}
    for row in store.rows(ref):
        count = totals[registry.categories[registry.category[row]]]
        count[0] += bool(shown.ok[row])
        count[1] += 1
    strips = {}
    ways = _tipped(store, ref, [row for rows in chosen.values() for row in rows])
    for category, rows in chosen.items():
        uids = [registry.uid[row].removeprefix(f"{category}/") for row in rows]
        names = [f"up {ways[row]}? {uid}" if row in ways else uid for row, uid in zip(rows, uids, strict=True)]
        if views:
            several = [(v, f"view {v}") for v in range(shown.num_views)]
            whole = [_Strip(category, names[i], [(row, *v) for v in several]) for i, row in enumerate(rows)]
        else:
            done, total = totals[category]
            pairs = zip(rows, names, strict=True)
            whole = [_Strip(category, f"{done} of {total} finished", [(row, 0, name) for row, name in pairs])]
        strips[category] = [
            replace(strip, pictures=strip.pictures[start : start + COLUMNS], tipped=frozenset(ways))
            for strip in whole
            for start in range(0, max(len(strip.pictures), 1), COLUMNS)
        ]
    return strips


def _tipped(store: FeatureStore, ref: Ref, rows: Sequence[int]) -> dict[int, str]:
    """Of those rows whose points are there: the likely up, where that is clear and not +Y."""
    if "points" not in ref.keys:
        return {}
    points = store.points(ref)
    there = sorted(row for row in rows if points.ok[row])
    ways = {row: likely_up(read_rows(points.xyz, [row])[0]) for row in there}
    return {row: way for row, way in ways.items() if way not in ("+Y", UNCLEAR)}


def _pages(strips: dict[str, list[_Strip]]) -> list[list[_Strip]]:
    """Sheets of `ROWS_A_SHEET` strips; a class that does not fit on the rest of one starts another."""
    pages: list[list[_Strip]] = []
    for own in strips.values():
        if not pages or len(pages[-1]) + len(own) > ROWS_A_SHEET:
            pages.append([])
        for strip in own:
            if len(pages[-1]) == ROWS_A_SHEET:
                pages.append([])
            pages[-1].append(strip)
    return pages


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    if image.width > CELL:
        return image.resize((CELL, CELL), Image.Resampling.LANCZOS)
    times = CELL // image.width  # whole pixels: the sheet shows what the teacher saw
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _set_aside(store: FeatureStore, ref: Ref) -> list[tuple[str, str, str]]:
    """(uid, stage, reason) of the ref's shapes that some stage set aside, and of prompts."""
    mine = set(store.rows(ref).tolist())
    found = []
    for name, (kind, key) in named_keys(ref).items():
        names = store.names(key)
        failed = {row: f.reason for row, f in store.failures(key).items() if kind == "text" or row in mine}
        found += sorted((names[row], name, reason) for row, reason in failed.items())
    return found


# ---- drawing


def _draw_strips(title: str, strips: Sequence[_Strip], shown: Pictures) -> Image.Image:
    columns = max(len(strip.pictures) for strip in strips)
    below = 32  # two lines under a picture
    step = CELL + below + GAP
    width = max(2 * MARGIN + LABEL + columns * (CELL + GAP) - GAP, 720)
    sheet, draw = _blank(title, width, len(strips) * step)
    for i, strip in enumerate(strips):
        top = _body() + i * step
        height = _write(draw, (MARGIN, top + 4), strip.label.replace("_", " "), LABEL - 20, 14, INK, lines=3)
        _write(draw, (MARGIN, top + 10 + height), strip.note, LABEL - 20, 12, FAINT, lines=3)
        for j, (row, view, line) in enumerate(strip.pictures):
            left = MARGIN + LABEL + j * (CELL + GAP)
            frame = WARNING if row in strip.tipped else FRAME
            _paste(sheet, draw, (left, top), _enlarged(shown.draw(row, view)), frame)
            where = (left + CELL / 2, top + CELL + 3)
            draw.multiline_text(where, _below(line), FAINT, _font(11), anchor="ma", align="center", spacing=2)
    return sheet


def _draw_failures(title: str, lines: Sequence[tuple[Image.Image | None, str, str, str]]) -> Image.Image:
    step = CELL + GAP
    sheet, draw = _blank(title, 1120, len(lines) * step)
    left = MARGIN + CELL + 24
    room = sheet.width - left - MARGIN
    for i, (image, uid, stage, reason) in enumerate(lines):
        top = _body() + i * step
        _paste(sheet, draw, (MARGIN, top), image)
        height = _write(draw, (left, top + 4), uid, room, 14, INK, lines=1)
        height += 6 + _write(draw, (left, top + 10 + height), stage, room, 12, WARNING, lines=1)
        _write(draw, (left, top + 16 + height), reason, room, 12, INK, lines=4)
    return sheet


def _body() -> int:
    return MARGIN + 44


def _blank(title: str, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, _body() + height + MARGIN - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN - 6), title, width - 2 * MARGIN, 15, INK, lines=1)
    return sheet, draw


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], image: Image.Image | None, frame: str = FRAME
) -> None:
    left, top = at
    if image is None:
        draw.text((left + CELL / 2, top + CELL / 2), "no picture", FAINT, _font(12), anchor="mm")
    else:
        sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
    draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=frame, width=1 if frame == FRAME else 3)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, room: int, size: int, fill: str, lines: int
) -> int:
    """Write text wrapped to `room` px and at most `lines` lines; its height."""
    wrapped = textwrap.wrap(text, _fitting(room, size), max_lines=lines, placeholder="…")
    draw.multiline_text(at, "\n".join(wrapped), fill, _font(size))
    return len(wrapped) * (size + 4)


def _below(text: str) -> str:
    """Two lines under a picture: of what is longer the beginning and the end, since uids differ at their ends."""
    width = _fitting(CELL, 11)
    text = " ".join(text.split())
    text = text if len(text) <= 2 * width else f"{text[: width - 1]}…{text[-width:]}"
    return f"{text[:width]}\n{text[width:]}".strip()


def _fitting(room: int, size: int) -> int:
    """How many characters fit into `room` px."""
    return int(room / _font(size).getlength("x"))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Every character as wide as another, so that lines can be cut by counting; matplotlib brings it along."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()

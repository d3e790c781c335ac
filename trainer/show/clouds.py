"""Clouds as pictures: round dots seen from before, above and a little to the right, the nearer over the farther."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from recon.pipeline.base.wording import shown

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

AZIMUTH, ELEVATION = 35.0, 22.0  # degrees
FINER = 2  # times as large as it is drawn first
PLAIN = (122, 138, 158)
STOPS = ("#d5dae1", "#f2c14e", "#e8702a", "#a3123f", "#3d0a33")
"""From no attention to the most: light grey on white, so that the shape is seen where nothing looks"""
STOPS_ON_DARK = ("#3a4453", "#7d3c5c", "#cf4a5a", "#f29e4c", "#fff4c2")
HEAT = LinearSegmentedColormap.from_list("attention", STOPS)
MARGIN = 12
LETTER, SMALL = 13, 11
INK, FAINT = "#1a202c", "#4a5568"


def turned(points: NDArray[np.float32]) -> Floats:
    """Points [N, 3] as the camera sees them: right, up, towards it."""
    azimuth, elevation = np.radians([AZIMUTH, ELEVATION])
    right = np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    seen: Floats = np.asarray(points, np.float64) @ np.stack([right, np.cross(back, right), back], axis=1)
    return seen


def draw_cloud(points: NDArray[np.float32], colors: Pixels, size: int, radius: float = 0.021) -> Pixels:
    """Points [N, 3] within the unit sphere in colours [N, 3] on white: [size, size, 3]. `radius` is a dot's.

    Dots farther away are lighter, by which depth is seen.
    """
    seen, edge = turned(points), size * FINER
    order = np.argsort(seen[:, 2], kind="stable")
    at = (np.array([1.0, 1.0]) + seen[order, :2] * [1, -1] / 1.08) / 2 * edge
    far = ((1 - seen[order, 2]) / 2).clip(0, 1)[:, None] * 0.35
    lit = np.rint(colors[order] * (1 - far) + 255 * far).astype(int).tolist()
    image = Image.new("RGB", (edge, edge), "white")
    draw, dot = ImageDraw.Draw(image), max(radius * edge / 2, 1.0)
    for (x, y), color in zip(at.tolist(), lit, strict=True):
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=tuple(color))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def heat(values: NDArray[np.floating]) -> Pixels:
    """Colours [N, 3] of values [N], the largest of which is the darkest."""
    share = np.asarray(values, np.float64) / max(float(np.max(values)), 1e-12)
    colors: Pixels = np.rint(np.asarray(HEAT(share))[:, :3] * 255).astype(np.uint8)
    return colors


def plain(count: int, color: Sequence[int] = PLAIN) -> Pixels:
    """One colour [count, 3]."""
    return np.tile(np.array(color, np.uint8), (count, 1))


def grid(title: str, rows: Sequence[tuple[str, Sequence[Pixels]]], columns: Sequence[str], note: str = "") -> bytes:
    """A PNG: pictures of one size in rows and columns with their names, a title above and a note below."""
    font, small = _font(LETTER), _font(SMALL)
    size = rows[0][1][0].shape[0]
    names = [shown(name, lines=True) for name, _ in rows]
    label = MARGIN + round(max(small.getlength(line) for name in names for line in name.splitlines())) + MARGIN
    top = 2 * MARGIN + LETTER + MARGIN + SMALL
    lines = _wrapped(note, label + len(columns) * size - MARGIN, small)
    width = label + len(columns) * size + MARGIN
    height = top + MARGIN // 2 + len(rows) * size + MARGIN + (SMALL + 4) * len(lines)
    width = max(width, round(font.getlength(shown(title))) + 2 * MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), shown(title), fill=INK, font=font)
    for place, name in enumerate(columns):
        draw.text((label + (place + 0.5) * size, top - SMALL), shown(name), fill=FAINT, font=small, anchor="mt")
    for number, (name, (_, pictures)) in enumerate(zip(names, rows, strict=True)):
        up = top + MARGIN // 2 + number * size
        draw.text((MARGIN, up + size // 2), name, fill=INK, font=small, anchor="lm")
        for place, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (label + place * size, up))
    for number, line in enumerate(lines):
        draw.text((MARGIN, height - MARGIN // 2 - (SMALL + 4) * (len(lines) - number)), line, fill=FAINT, font=small)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _wrapped(text: str, room: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines that fit into `room` px."""
    lines: list[str] = []
    for word in shown(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines

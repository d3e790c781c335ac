"""The report's figures, each as PNG bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from recon.pipeline.base.wording import shown
from recon.trainer.training.metrics import OTHER_FIELDS

mpl.use("Agg")

LONGEST = 40
"""Letters of a category's name beside a matrix."""


def plain(name: str) -> str:
    """A name as matplotlib writes it as it stands, on one line: a `$` would begin mathematics."""
    return shown(name).replace("$", r"\$")


def loss_curves(lines: Sequence[dict[str, Any]], teachers: Sequence[str]) -> bytes:
    """One panel a loss over training steps, from the lines of metrics.jsonl; `teachers` name those of distillation."""
    names = [name for name in ("reconstruction", *teachers, "contrast") if name in lines[-1]] or ["total"]
    figure = Figure(figsize=(3.6 * len(names), 2.8), layout="constrained")
    steps = [line["step"] for line in lines]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        # A run of one line is a point, which a line without a marker would not show.
        axes.plot(steps, [line[name] for line in lines], color="#2b6cb0", marker="o" if len(lines) == 1 else "")
        axes.set_title(plain(name), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelsize=7, which="both")
        axes.grid(alpha=0.3)
    return _png(figure)


def overlaid_curves(names: Sequence[str], runs: Sequence[Sequence[dict[str, Any]]], across: int = 3) -> bytes:
    """One panel a loss or accuracy over training steps, a line each of the `names` runs, from lines of metrics.jsonl.

    Losses are drawn on a logarithmic scale. What a probe says of the random start is its point at step 0, and what it
    says of the teacher no curve.
    """
    every = dict.fromkeys(name for lines in runs for line in lines for name in line)
    apart = {name for name in every if name.endswith("_random_init") or name.startswith("teacher_")}
    fields = [name for name in every if name not in {*OTHER_FIELDS, *apart} - {"total", "grad_norm"}]
    down = -(-len(fields) // across)
    figure = Figure(figsize=(3.6 * min(across, len(fields)), 2.8 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, min(across, len(fields)), squeeze=False).ravel()
    for axes in panels[len(fields) :]:
        axes.set_visible(False)
    for axes, field in zip(panels, fields, strict=False):
        for index, (name, lines) in enumerate(zip(names, runs, strict=True)):
            points = [(line["step"], line[field]) for line in lines if field in line]
            # A run of one point would not show without a marker.
            marker = "o" if len(points) == 1 or "accuracy" in field or "_miou" in field else ""
            curve = zip(*points, strict=True) if points else ([], [])
            axes.plot(*curve, marker=marker, color=f"C{index}", label=plain(name))
        axes.set_title(plain(field), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        if "accuracy" not in field and "_miou" not in field:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(labelsize=7, which="both")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", fontsize=8, ncols=4, frameon=False)
    return _png(figure)


def confusion_matrix(counts: Sequence[Sequence[int]], categories: Sequence[str]) -> bytes:
    """Rows are true classes, columns predicted ones, shaded by the share of the row."""
    matrix = np.asarray(counts, dtype=np.float64)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [plain(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…") for name in categories]
    size = 2.2 + 0.24 * len(names) + 0.06 * max(0, *(len(name) - 14 for name in names))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=6, color=color)
    return _png(figure)


def contact_sheet(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], tile: int = 96, blocks: int = 2) -> bytes:
    """One line a label with its pictures [H, W, 3] beside it, the lines set in `blocks` columns."""
    font = ImageFont.load_default(13)
    rows = [(shown(name), pictures) for name, pictures in rows]
    label, per_block = 24 + round(max(font.getlength(name) for name, _ in rows)), -(-len(rows) // blocks)
    across = max(len(pictures) for _, pictures in rows)
    width = label + across * tile
    sheet = Image.new("RGB", (blocks * width, per_block * tile), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, pictures) in enumerate(rows):
        left, top = (i // per_block) * width, (i % per_block) * tile
        draw.text((left + 12, top + tile // 2 - 7), name, fill="black", font=font)
        for j, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + label + j * tile, top))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def dots(groups: Mapping[str, Sequence[float]], label: str) -> bytes:
    """A line of dots a group, one each value, and a bar at their mean."""
    figure = Figure(figsize=(6.4, 1.1 + 0.34 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(groups.values()):
        axes.plot(values, [place] * len(values), "o", color="#2b6cb0", alpha=0.5, markersize=5)
        axes.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color="#1a202c", linewidth=2)
    axes.set_yticks(range(len(groups)), [plain(name) for name in groups], fontsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(plain(label), fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    return as_png(figure, 130)


def as_png(figure: Figure, dpi: int, **options: Any) -> bytes:
    """The picture of a figure; a letter that its font lacks is a box, and no more said of it."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(out, format="png", dpi=dpi, **options)
    return out.getvalue()

"""What a search found, as a contact sheet: a PNG, or an HTML page that holds its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from recon.trainer.evaluate.features import Probe
from recon.trainer.show.chosen import clouds_of
from recon.trainer.show.clouds import draw_cloud, grid, plain
from recon.trainer.use.search import Found, thumbnail

SIZE, ACROSS = 160, 6


def thumbnails(probe: Probe, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
    """A picture [SIZE, SIZE, 3] of each row: its first stored view, or its points where there is none."""
    pictures = []
    for row in rows:
        view = thumbnail(probe, row)
        if view is None:
            cloud = clouds_of(probe, np.array([row]))[0].cpu().numpy()
            pictures.append(draw_cloud(cloud, plain(len(cloud)), SIZE))
        else:
            small = Image.fromarray(view).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            pictures.append(np.asarray(small))
    return pictures


def answers_png(told: str, found: Sequence[Found], pictures: Sequence[NDArray[np.uint8]]) -> bytes:
    """Best first, six in a row."""
    blank = np.full((SIZE, SIZE, 3), 255, np.uint8)
    rows = []
    for start in range(0, len(found), ACROSS):
        part, shown = found[start : start + ACROSS], [*pictures[start : start + ACROSS]]
        label = "\n".join(f"{each.cosine:.3f} {each.uid}" for each in part)
        rows.append((label, [*shown, *[blank] * (min(ACROSS, len(found)) - len(shown))]))
    return grid(told, rows, [""] * min(ACROSS, len(found)), "Cosine and name of each, from left to right.")


def answers_page(told: str, found: Sequence[Found], pictures: Sequence[NDArray[np.uint8]]) -> str:
    """The same as a page."""
    shown = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
        shown.append("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())
    loader = Environment(loader=PackageLoader("recon.trainer", "show"), autoescape=select_autoescape())
    page: str = loader.get_template("answers.html").render(told=told, found=list(zip(found, shown, strict=True)))
    return page

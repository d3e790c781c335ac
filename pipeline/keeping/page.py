"""A store's page: what it holds, what was set aside, its shapes by class, and what the data look like."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.pages import embedded, render
from recon.pipeline.keeping.preview import class_sheets
from recon.pipeline.keeping.stats import describe, statistics
from recon.pipeline.store.feature_store import FeatureStore

PICTURE_BYTES = 3_400_000  # of all sheets, in base64 a third more: a page is 5 MB at most


def write_page(store: FeatureStore, output: Path, ref: str | None = None) -> None:
    """Write the page of a store's ref to `output`. UserError where there is no such ref, or `output` refuses."""
    found = statistics(store, ref)
    sheets, more, left = [], 0, PICTURE_BYTES
    for sheet in class_sheets(store, ref) if "views" in store.ref(ref).keys else ():
        png = _small_png(sheet)
        if more or len(png) > left:
            more += 1
            continue
        left -= len(png)
        sheets.append(embedded(png))
    reasons = [(line.name, reason, count) for line in found.keys for reason, count in line.reasons.items()]
    page = render(
        "recon.pipeline.keeping",
        "report.html",
        store=store.path.resolve().name,
        found=found,
        reasons=reasons,
        sheets=sheets,
        more=more,
        lines=describe(found),
    )
    try:
        write_atomically(output, page)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}; name another file") from error


def _small_png(sheet: Image.Image) -> bytes:
    """In 256 colours, which renderings on white are hardly worse for: a third of the bytes."""
    out = io.BytesIO()
    sheet.quantize(256).save(out, "PNG", optimize=True)
    return out.getvalue()

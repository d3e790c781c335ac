"""Captions as readers want them: joined over the tables they come from, or one by one with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.store.columns import has_column, open_column, read_rows
from recon.pipeline.store.forms import AttributesForm
from recon.pipeline.store.records import Caption

Tables = Mapping[str, tuple[zarr.Group, NDArray[np.int64]]]
"""By name: the group of a table's key, and which rows of it are finished."""


def joined_captions(tables: Tables, rows: int) -> list[list[str]]:
    """Those that count, for each of the first `rows` of the registry, padded with "" to one length.

    `tables` is in the manifest's order; what two of them say of a shape stands once.
    """
    lines: list[dict[str, None]] = [{} for _ in range(rows)]
    for group, finished in tables.values():
        texts, kept = _texts(group, finished), _values(group, "kept", finished)
        for number, row in enumerate(finished):
            for at, text in enumerate(texts[number]):
                if text and (kept is None or kept[number, at]):
                    lines[row][text] = None
    width = max(map(len, lines), default=0)
    return [[*line, *[""] * (width - len(line))] for line in lines]


def caption_records(tables: Tables, rows: int) -> list[list[Caption]]:
    """Every stored caption of each of the first `rows`, in order of the tables and in each table's own order."""
    records: list[list[Caption]] = [[] for _ in range(rows)]
    for table, (group, finished) in tables.items():
        held = cast("AttributesForm", group.attrs.asdict())  # of its form, or there would be no group
        source, model, seed = held.get("source"), held.get("model"), held.get("seed")
        texts = _texts(group, finished)
        views, scores, kept = (_values(group, name, finished) for name in ("view", "score", "kept"))
        for number, row in enumerate(finished):
            records[row] += [
                Caption(
                    text=text,
                    table=table,
                    source=source or table,
                    view=None if views is None else int(views[number, at]),
                    score=None if scores is None else float(scores[number, at]),
                    model=model,
                    seed=seed,
                    kept=kept is None or bool(kept[number, at]),
                )
                for at, text in enumerate(texts[number])
                if text
            ]
    return records


def _texts(group: zarr.Group, finished: NDArray[np.int64]) -> list[list[str]]:
    """[finished, C]; none where the column is yet to be made."""
    values = _values(group, "caption", finished)
    return [] if values is None else cast("list[list[str]]", values.tolist())


def _values(group: zarr.Group, name: str, finished: NDArray[np.int64]) -> NDArray[Any] | None:
    """[finished, C] of a column; None where these captions have no such thing."""
    return read_rows(open_column(group, name), finished) if has_column(group, name) else None

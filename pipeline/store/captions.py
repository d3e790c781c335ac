"""Captions as readers want them: joined over the tables they come from, or one by one with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from recon.pipeline.store.columns import VERIFY, read_column
from recon.pipeline.store.receipts import DamagedStore
from recon.pipeline.store.records import Caption


def joined_captions(tables: Mapping[str, zarr.Group], rows: int) -> list[list[str]]:
    """Those that count, for each of the first `rows` of the registry, padded with "" to one length.

    `tables` is in the manifest's order; what two of them say of a shape stands once.
    """
    lines: list[dict[str, None]] = [{} for _ in range(rows)]
    for group in tables.values():
        kept = _numbers(group, "kept", rows)
        for row, texts in enumerate(read_column(group, "caption", rows)):
            for at, text in enumerate(texts):
                if text and (kept is None or kept[row, at]):
                    lines[row][text] = None
    width = max(map(len, lines), default=0)
    return [[*line, *[""] * (width - len(line))] for line in lines]


def caption_records(tables: Mapping[str, zarr.Group], rows: int) -> list[list[Caption]]:
    """Every stored caption of each of the first `rows`, in order of the tables and in each table's own order."""
    records: list[list[Caption]] = [[] for _ in range(rows)]
    for table, group in tables.items():
        source, model, seed = (cast(Any, group.attrs.get(name)) for name in ("source", "model", "seed"))
        views, scores, kept = (_numbers(group, name, rows) for name in ("view", "score", "kept"))
        for row, texts in enumerate(read_column(group, "caption", rows)):
            records[row] += [
                Caption(
                    text=text,
                    table=table,
                    source=source or table,
                    view=None if views is None else int(views[row, at]),
                    score=None if scores is None else float(scores[row, at]),
                    model=model,
                    seed=seed,
                    kept=kept is None or bool(kept[row, at]),
                )
                for at, text in enumerate(texts)
                if text
            ]
    return records


def _numbers(group: zarr.Group, name: str, rows: int) -> NDArray[Any] | None:
    """[rows, C] of a column; None where these captions have no such thing."""
    if name not in group:
        return None
    array = cast("zarr.Array[Any]", group[name])
    try:
        values = np.asarray(array[:rows])
    except Exception as error:  # so do codecs of damaged data
        raise DamagedStore(f"{group.store_path}/{name}: unreadable ({error}); {VERIFY}") from error
    return np.concatenate([values, np.zeros((rows - len(values), *values.shape[1:]), values.dtype)])

"""Exports as Parquet, a row a shape; needs pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.keeping.export.arrays import named_text
from recon.pipeline.keeping.export.table import Arrays, Progress, Table, Words

GROUP_ROWS = 64  # some megabytes a row group of 8192 points: what a reader of one row must decode
_TEXTS = ("uid", "dataset", "category", "split", "prompt")


def write_parquet(
    table: Table, folder: Path, trace: dict[str, Any], shard_rows: int, progress: Progress
) -> dict[str, Any]:
    """shapes/part-<n>.parquet, and class_prompts.parquet with category, prompt and its features.

    Numeric columns are flat lists of a fixed size; the field's metadata `shape` tells how to fold one. Features of a
    shape's captions are in text-<teacher>, one list a caption. The schema's metadata `recon` is README.json's text.
    """
    metadata = {"recon": canonical_json(trace)}
    shards = []
    (folder / "shapes").mkdir()
    for start, stop, arrays in table.blocks(shard_rows):
        name = f"shapes/part-{start // shard_rows:06d}.parquet"
        _write(_shapes(table, start, stop, arrays), folder / name, metadata)
        shards.append({"file": name, "rows": [start, stop]})
        progress(stop, len(table))
    if table.words:
        _write(_class_prompts(table, table.words), folder / "class_prompts.parquet", metadata)
    return {"shards": shards}


def _shapes(table: Table, start: int, stop: int, arrays: Arrays) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """By column: its Arrow array and the shape one entry folds to (() for what is no array)."""
    records = table.records[start:stop]
    columns: dict[str, tuple[Any, tuple[int, ...]]] = {
        name: (pa.array([record[name] for record in records]), ()) for name in ("uid", "dataset", "category", "split")
    }
    columns["label"] = (pa.array(table.label[start:stop]), ())
    for name in () if table.only_targets else ("parts", "captions"):
        columns[name] = (pa.array([record[name] for record in records], type=pa.list_(pa.string())), ())
    for name, values in arrays.items():
        columns[name] = (_fixed(values), values.shape[1:])
    if table.words:
        counts = [len(record["captions"]) for record in records]
        rows = np.concatenate([table.words.captions[start + i, :count] for i, count in enumerate(counts)])
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        for name, feat in named_text(table.words).items():
            columns[name] = (pa.ListArray.from_arrays(offsets, _fixed(feat[rows])), (-1, feat.shape[1]))
    return columns


def _class_prompts(table: Table, words: Words) -> dict[str, tuple[Any, tuple[int, ...]]]:
    rows = words.class_prompts.ravel()
    columns: dict[str, tuple[Any, tuple[int, ...]]] = {
        "category": (pa.array(np.repeat(table.categories, words.class_prompts.shape[1]).tolist()), ()),
        "prompt": (pa.array([words.prompts[row] for row in rows]), ()),
    }
    for name, feat in named_text(words).items():
        columns[name] = (_fixed(feat[rows]), (feat.shape[1],))
    return columns


def _fixed(values: NDArray[Any]) -> Any:
    """[rows, ...] as a list of a fixed size a row."""
    size = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), size)


def _write(columns: dict[str, tuple[Any, tuple[int, ...]]], path: Path, metadata: dict[str, str]) -> None:
    fields = [
        pa.field(name, array.type, metadata={"shape": canonical_json(list(shape))} if shape else None)
        for name, (array, shape) in columns.items()
    ]
    arrow = pa.table([array for array, _ in columns.values()], schema=pa.schema(fields, metadata=metadata))
    texts = [name for name in _TEXTS if name in columns]  # of numbers, a dictionary or bounds would say nothing
    pq.write_table(
        arrow, path, row_group_size=GROUP_ROWS, compression="zstd", use_dictionary=texts, write_statistics=texts
    )

"""Exports of a store that a program wrote through the store's own methods, with points alone: no mesh was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from recon.pipeline.base.digests import row_digest
from recon.pipeline.keeping.export import Form, export
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.store.records import Column

CATEGORIES = ("mug", "jar", "mug")
ROWS = len(CATEGORIES)


def write_points(path: Path) -> dict[str, NDArray[Any]]:
    """The columns [ROWS, ...] of what is written."""
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(ROWS, 8, 3)).astype(np.float32)
    order = np.tile(np.arange(8, dtype=np.uint16), (ROWS, 1))
    columns: dict[str, NDArray[Any]] = {
        "xyz": xyz,
        "normal": np.zeros_like(xyz, np.float16),
        "color": np.full_like(xyz, 200, np.uint8),
        "part": np.zeros((ROWS, 8), np.uint8),
        "order": order,
        "frame": np.tile([0.0, 0.0, 0.0, 1.0], (ROWS, 1)),
    }
    store = FeatureStore.create(path)
    same = {"dataset": ["own"] * ROWS, "split": ["train"] * ROWS, "source": [""] * ROWS, "fingerprint": [""] * ROWS}
    store.append_registry({"uid": [f"shape-{row}" for row in range(ROWS)], "category": list(CATEGORIES), **same})
    listed = [Column(name, values.shape[1:], str(values.dtype)) for name, values in columns.items()]
    group = store.require_key("points", "own-points", {"stage": "points", "of": "a program"}, listed)
    for column in listed:
        array = store.require_column(group, column, ROWS, 0, ROWS)
        array.with_config({"write_empty_chunks": True})[...] = columns[column.name]
    digests = tuple(row_digest(values[row] for values in columns.values()) for row in range(ROWS))
    receipt = Receipt(
        rows=(0, ROWS), inputs=digests, digests=digests, ok=(True,) * ROWS, failed={},
        nonfinite=0, bytes=0, seconds=0.0, made=(0,) * ROWS, provenance=({},),
    )  # fmt: skip
    receipt.write(store.receipt_path("own-points", 0, 0))
    store.write_ref("own", "points", "own-points")
    return columns


@pytest.mark.parametrize("form", ["memmap", "webdataset", "parquet", "safetensors"])
def test_a_store_without_meshes_has_shapes_without_parts(tmp_path: Path, form: Form) -> None:
    written = write_points(tmp_path / "own.zarr")
    out = tmp_path / "out"
    result = export(FeatureStore.open(tmp_path / "own.zarr"), out, form)
    assert (result.rows, result.left_out) == (ROWS, 0)
    records = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(record["uid"], record["category"], record["parts"], record["captions"]) for record in records] == [
        (f"shape-{row}", category, [], []) for row, category in enumerate(CATEGORIES)
    ]
    if form == "memmap":
        assert all(np.array_equal(np.load(out / f"{name}.npy"), values) for name, values in written.items())
    if form == "parquet":
        assert pq.read_table(out / "shapes")["parts"].to_pylist() == [[]] * ROWS

"""A shard packed here is the file that Zarr writes of the same rows, byte for byte."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from recon.pipeline.store.columns import COMPRESSORS
from recon.pipeline.store.packing import packed

DTYPES = ("uint8", "float16", "uint16", "float32", "int64")


def column(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], shards: Any, dtype: str) -> zarr.Array[Any]:
    array = zarr.create_array(
        path, shape=shape, chunks=chunks, shards=shards, dtype=dtype, compressors=COMPRESSORS, overwrite=True
    )
    return array.with_config({"write_empty_chunks": True})


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 8),
    chunk=st.sampled_from((1, 2, 4, 8)),
    inner=st.lists(st.integers(1, 5), max_size=2).map(tuple),
    dtype=st.sampled_from(DTYPES),
    draws=st.booleans(),
    empty=st.integers(0, 7),
)
def test_bytes_are_zarrs(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int, chunk: int, inner: tuple[int, ...], dtype: str, draws: bool, empty: int,
) -> None:  # fmt: skip
    """Whole shards and the last one of a column, rows that are empty, chunks of several rows."""
    path = tmp_path_factory.mktemp("packed") / "a.zarr"
    lead = (1,) if draws else ()
    array = column(path, (*lead, rows, *inner), (*lead, chunk, *inner), (*lead, 8, *inner), dtype)
    rng = np.random.default_rng(rows)
    values = rng.integers(0, 100, (rows, *inner)).astype(dtype)
    cells: list[Any] = list(values)
    if empty < rows:
        values[empty], cells[empty] = 0, None
    content = packed(array, cells, len(lead))
    array[(0, ...) if draws else ...] = values
    (written,) = [found for found in path.rglob("*") if found.is_file() and found.name != "zarr.json"]
    assert content == written.read_bytes()


def test_other_layouts_are_left_to_zarr(tmp_path: Path) -> None:
    """Text, another level of compression, and chunks that split a row."""
    text = zarr.create_array(tmp_path / "t.zarr", shape=(2,), chunks=(2,), dtype=str, compressors=COMPRESSORS)
    assert packed(text, ["a", "b"], 0) is None
    split = column(tmp_path / "s.zarr", (2, 4), (1, 2), (2, 4), "uint8")
    assert packed(split, list(np.zeros((2, 4), np.uint8)), 0) is None
    other = zarr.create_array(
        tmp_path / "o.zarr", shape=(2, 4), chunks=(1, 4), shards=(2, 4), dtype="uint8", compressors=[ZstdCodec(level=9)]
    )
    assert packed(other, list(np.zeros((2, 4), np.uint8)), 0) is None

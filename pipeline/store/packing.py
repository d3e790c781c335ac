"""A whole shard's file at once: the bytes that Zarr would write, without its tasks and copies a chunk.

Zarr hands each chunk of a shard to a thread of its own, several times over: of a shard of pictures that takes
several times as long as compressing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import Zstd
from zarr.codecs import BytesCodec, ShardingCodec

from recon.pipeline.store.columns import COMPRESSORS, LEVEL

_ABSENT = 2**64 - 1
_ORDERS = (BytesCodec(endian=None), BytesCodec(endian="little"))  # of values of one byte there is none
_ZSTD = Zstd(level=LEVEL)


def packed(array: zarr.Array[Any], cells: Sequence[Any], rows_axis: int) -> bytes | None:
    """The file of a shard that begins with these rows; None of a column that is laid out otherwise than ours are.

    cells: a value a row of the array that the shard holds, in order; None for an empty one. Chunks are of whole rows,
    so Zarr's order within the file is theirs.
    """
    codecs: tuple[Any, ...] = getattr(array.metadata, "codecs", ())
    codec = codecs[0] if len(codecs) == 1 else None
    if codec not in [ShardingCodec(chunk_shape=array.chunks, codecs=[order, *COMPRESSORS]) for order in _ORDERS]:
        return None
    shards = array.shards or array.chunks
    one_row = slice(rows_axis + 1, None)
    if array.chunks[one_row] != shards[one_row] or array.chunks[:rows_axis] != (1,) * rows_axis:
        return None
    rows_a_chunk = array.chunks[rows_axis]
    index = np.full((shards[rows_axis] // rows_a_chunk, 2), _ABSENT, "<u8")
    block = np.zeros((rows_a_chunk, *array.shape[one_row]), array.dtype.newbyteorder("<"))
    pieces, at = [], 0
    for number, first in enumerate(range(0, len(cells), rows_a_chunk)):
        some = cells[first : first + rows_a_chunk]
        for row, value in enumerate(some):
            block[row] = 0 if value is None else value
        block[len(some) :] = 0
        pieces.append(_summed(_ZSTD.encode(block)))
        index[number] = at, len(pieces[-1])
        at += len(pieces[-1])
    return b"".join([*pieces, _summed(index.tobytes())])


def _summed(content: bytes) -> bytes:
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")

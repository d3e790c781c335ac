"""Columns of text in a store: reading them whole, and appending to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from recon.pipeline.store.receipts import DamagedStore

COMPRESSORS = [ZstdCodec(level=1), Crc32cCodec()]  # without the sum, a flipped bit is passed on as data
VERIFY = "`recon-pipeline verify` says what is damaged"


def read_column(group: zarr.Group, name: str, rows: int) -> list[Any]:
    """The first `rows` entries of a text column as Python lists; blank where it has fewer."""
    if name not in group:
        return [""] * rows
    try:
        array = cast("zarr.Array[Any]", group[name])
        values = cast(list[Any], np.asarray(array[:rows]).tolist())
    except Exception as error:  # so do codecs of damaged data
        raise DamagedStore(f"{group.store_path}/{name}: unreadable ({error}); {VERIFY}") from error
    blank: list[Any] = np.full((rows - len(values), *array.shape[1:]), "").tolist()
    return values + blank


def append_text(group: zarr.Group, columns: dict[str, Sequence[str]], rows: int) -> None:
    """Append text columns after `rows` and commit by raising the group's `rows` attribute last."""
    count = len(next(iter(columns.values())))
    for name, values in columns.items():
        if name in group:
            array = cast("zarr.Array[Any]", group[name])
            array.resize((rows + count,))
        else:
            array = group.create_array(name, shape=(rows + count,), chunks=(4096,), dtype=str, compressors=COMPRESSORS)
        array[rows : rows + count] = np.array(values, dtype=np.dtypes.StringDType())
    group.attrs["rows"] = rows + count

"""Columns of a store: rows of them, and columns of text whole and appended to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import TypeAdapter
from zarr.codecs import Crc32cCodec, ZstdCodec

from recon.pipeline.base.documents import MAX_BYTES, BadDocument, parse_document
from recon.pipeline.base.wording import one_line
from recon.pipeline.store.receipts import MEND, DamagedStore

if TYPE_CHECKING:
    from zarr.storage import LocalStore

T = TypeVar("T")

LEVEL = 1  # of zstd
COMPRESSORS = [ZstdCodec(level=LEVEL), Crc32cCodec()]  # without the sum, a flipped bit is passed on as data
VERIFY = "`recon-pipeline verify` says what is damaged"
NEAR_CHUNKS = 4


def shard_rows(array: zarr.Array[Any], lane: int | None = None) -> int:
    """Rows of one shard of a column; `lane` as in `read_rows`."""
    rows: int = (array.shards or array.chunks)[lane is not None]
    return rows


def read_rows(
    array: zarr.Array[Any], rows: Sequence[int] | NDArray[np.int64], lane: int | None = None, mend: str = MEND
) -> NDArray[Any]:
    """[len(rows), ...] finished rows of a column, ascending; of one lane where it has that axis.

    DamagedStore names the first file that is missing or cannot be decoded, and says to `mend` it.
    """
    rows = np.asarray(rows, np.int64)
    # Rows between two wanted ones are read along with them where that costs less than another call; a shard of which
    # none is wanted may not be there.
    far = np.diff(rows) > NEAR_CHUNKS * array.chunks[lane is not None]
    far |= np.diff(rows // shard_rows(array, lane)) > 1
    runs = np.split(rows, np.flatnonzero(far) + 1) if len(rows) else []
    blocks: list[NDArray[Any]] = [
        _read_run(array, int(run[0]), int(run[-1]) + 1, lane, mend)[run - run[0]] for run in runs
    ]
    if len(blocks) == 1:
        return np.asarray(blocks[0])
    return np.concatenate(blocks) if blocks else np.zeros((0, *array.shape[1 + (lane is not None) :]), array.dtype)


def _read_run(array: zarr.Array[Any], start: int, stop: int, lane: int | None, mend: str) -> NDArray[Any]:
    lead = () if lane is None else (lane,)
    block = shard_rows(array, lane)
    root = Path(cast("LocalStore", array.store).root)
    shards = range(start // block, -(-stop // block))
    for number in shards:
        path = root / block_file(array, lane, number)
        if not path.is_file():  # which Zarr would pass off as zeros
            raise DamagedStore(f"{path}: missing, though its receipt says that it was written; {mend}")
    try:
        return np.asarray(array[(*lead, slice(start, stop))])
    except Exception as error:  # codecs raise what they like
        if len(shards) > 1:  # one after the other, so that the damaged one is named
            parts = [_read_run(array, max(start, n * block), min(stop, (n + 1) * block), lane, mend) for n in shards]
            return np.concatenate(parts)
        raise DamagedStore(f"{path}: cannot be read ({one_line(error)}); {mend}") from error


def has_column(group: zarr.Group, name: str) -> bool:
    """Whether a key has a column, damaged or not."""
    return _document_of(group, name).is_file()


def column_names(group: zarr.Group) -> list[str]:
    """Of a key, all there are, sorted."""
    return sorted(path.parent.name for path in _document_of(group, "*").parents[1].glob("*/zarr.json"))


def _document_of(group: zarr.Group, name: str) -> Path:
    return Path(cast("LocalStore", group.store).root) / group.path / name / "zarr.json"


def open_column(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """A column of a key. DamagedStore where it is missing or its zarr.json cannot be read."""
    where = f"{group.store_path}/{name}"
    try:
        if (size := _document_of(group, name).stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size} bytes")
        array = group[name]
    except Exception as error:  # Zarr raises what it likes of damaged metadata
        raise DamagedStore(f"{where}: unreadable ({one_line(error)}); {VERIFY}") from error
    if not isinstance(array, zarr.Array):
        raise DamagedStore(f"{where}: is no array; {VERIFY}")
    return array


def block_file(array: zarr.Array[Any], lane: int | None, number: int) -> str:
    """The one file a shard of a column lies in, relative to the store; `lane` as in `read_rows`."""
    grid = (() if lane is None else (lane,)) + (number,)
    return f"{array.path}/c/" + "/".join(map(str, grid + (0,) * (array.ndim - len(grid))))


def read_column(group: zarr.Group, name: str, rows: int) -> list[Any]:
    """The first `rows` entries of a text column as Python lists; blank where it has fewer."""
    if not has_column(group, name):
        return [""] * rows
    try:
        values = cast(list[Any], np.asarray(open_column(group, name)[:rows]).tolist())
    except Exception as error:  # so do codecs of damaged data
        raise DamagedStore(f"{group.store_path}/{name}: unreadable ({error}); {VERIFY}") from error
    shape = np.shape(values)[1:]
    return values + [np.full(shape, "").tolist() if shape else ""] * (rows - len(values))


def parsed(text: str, form: TypeAdapter[T], where: object) -> T:
    """What a cell of a column holds as JSON. DamagedStore where it is not of the form."""
    try:
        return parse_document(text.encode(), form, where, VERIFY)
    except BadDocument as error:
        raise DamagedStore(str(error)) from None


def append_text(group: zarr.Group, columns: dict[str, Sequence[str]], rows: int) -> None:
    """Append text columns after `rows` and commit by raising the group's `rows` attribute last."""
    count = len(next(iter(columns.values())))
    for name, values in columns.items():
        if has_column(group, name):
            array = open_column(group, name)
            array.resize((rows + count,))
        else:
            array = group.create_array(name, shape=(rows + count,), chunks=(4096,), dtype=str, compressors=COMPRESSORS)
        array[rows : rows + count] = np.array(values, dtype=np.dtypes.StringDType())
    group.attrs["rows"] = rows + count

"""Exports as tar files of samples, as the webdataset library reads them with its default decoders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recon.pipeline.keeping.export.arrays import named_text, write_words
from recon.pipeline.keeping.export.table import Arrays, Progress, Table
from recon.pipeline.store.records import of_recipe


def write_webdataset(
    table: Table, folder: Path, trace: dict[str, Any], shard_rows: int, progress: Progress
) -> dict[str, Any]:
    """shard-<n>.tar, a sample a shape: <name>.json, .cls (the label), .<column>.npy, .image.<teacher>.npy [K, V, D]
    and .text.<teacher>.npy [captions, D]; where some may be absent, .present.<teacher>.npy [K, V]; of points
    .lifted.<teacher>.npy [P, D] and .seen.<teacher>.npy [P]. Words that came in the files are [1, T, D]. Class prompts,
    which shapes share, lie beside in the files of `memmap`.

    The library takes a name up to its first dot as the sample's key and lowers the case of the rest.
    """
    shards = []
    for start, stop, arrays in table.blocks(shard_rows):
        name = f"shard-{start // shard_rows:06d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(start, stop):
                for suffix, data in _members(table, i, {k: v[i - start] for k, v in arrays.items()}):
                    info = tarfile.TarInfo(f"{table.records[i]['name']}.{suffix}")
                    info.size = len(data)  # times and owners stay zero: the same store, the same bytes
                    tar.addfile(info, io.BytesIO(data))
        shards.append({"file": name, "rows": [start, stop]})
        progress(stop, len(table))
    words = {"words": write_words(table.words, folder)} if table.words else {}
    return {"shards": shards, **words}


def _members(table: Table, row: int, arrays: Arrays) -> Iterator[tuple[str, bytes]]:
    """(suffix, contents) of one sample."""
    record = table.records[row]
    yield "json", json.dumps(record, sort_keys=True).encode()
    yield "cls", str(record["label"]).encode()
    for name, values in arrays.items():
        yield f"{_suffix(table, name)}.npy", _npy(values)
    if table.words:
        rows = table.words.captions[row, : len(record["captions"])]
        for name, feat in named_text(table.words).items():
            yield f"{name.replace('text-', 'text.', 1).lower()}.npy", _npy(feat[rows])


def _suffix(table: Table, name: str) -> str:
    """What a column is called within a sample."""
    kind, key, column, _ = table.columns()[name]
    if kind == "targets" and column == "feat":
        return name.replace("targets-", f"{of_recipe(table.store.recipe(kind, key))}.", 1).lower()
    return (name.replace("-", ".", 1) if kind in ("targets", "lifted") else name).lower()


def _npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()

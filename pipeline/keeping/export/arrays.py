"""Exports as bare arrays: one .npy a column to map into memory, or safetensors files of some rows each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from safetensors.numpy import save_file

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.keeping.export.table import Arrays, Progress, Table, Words, safe_names


def write_memmap(
    table: Table, folder: Path, trace: dict[str, Any], shard_rows: int, progress: Progress
) -> dict[str, Any]:
    """<column>.npy [N, ...], targets-<teacher>.npy [K, N, V, D], lifted-<teacher>.npy [N, P, D] with seen-<teacher>.npy
    [N, P], label.npy [N], and the words' files.
    """
    lanes = {name: has_lanes for name, (_, _, _, has_lanes) in table.columns().items()}
    for start, stop, arrays in table.blocks(shard_rows):
        for name, values in arrays.items():
            draws = lanes[name]
            lead = (values.shape[1], len(table)) if draws else (len(table),)
            shape = (*lead, *values.shape[1 + draws :])
            # Mapped anew for every block: pages once touched count as this process's memory until they are unmapped.
            mode = "r+" if start else "w+"
            whole = open_memmap(folder / f"{name}.npy", mode=mode, dtype=values.dtype, shape=shape)
            if draws:
                whole[:, start:stop] = values.swapaxes(0, 1)
            else:
                whole[start:stop] = values
            whole.flush()
        progress(stop, len(table))
    np.save(folder / "label.npy", table.label)
    return {"words": write_words(table.words, folder)} if table.words else {}


def write_words(words: Words, folder: Path) -> dict[str, str]:
    """text-<teacher>.npy, class_prompts.npy, captions.npy and prompts.json; what each of them holds."""
    for name, feat in named_text(words).items():
        np.save(folder / f"{name}.npy", feat)
    np.save(folder / "class_prompts.npy", words.class_prompts)
    np.save(folder / "captions.npy", words.captions)
    (folder / "prompts.json").write_text(json.dumps(words.prompts, indent=0) + "\n", encoding="utf-8")
    return {
        "prompts.json": "the distinct prompts",
        "text-<teacher>.npy": "[T, D] their raw features",
        "class_prompts.npy": "[num_categories, L] which prompts name a category",
        "captions.npy": "[N, C] which prompts are a row's captions, -1 after its last",
    }


def named_text(words: Words) -> Arrays:
    """The words' features by the name they are exported under."""
    names = safe_names(list(words.feat))
    return {f"text-{name}": feat for name, feat in zip(names, words.feat.values(), strict=True)}


def write_safetensors(
    table: Table, folder: Path, trace: dict[str, Any], shard_rows: int, progress: Progress
) -> dict[str, Any]:
    """shapes-<n>.safetensors with every column of `shard_rows` rows, text.safetensors with the words."""
    # One entry: safetensors writes several in an order of chance.
    metadata = {"recon": canonical_json(trace)}
    shards = []
    for start, stop, arrays in table.blocks(shard_rows):
        tensors = arrays | {"label": table.label[start:stop]}
        if table.words:
            tensors["captions"] = table.words.captions[start:stop]
        name = f"shapes-{start // shard_rows:06d}.safetensors"
        _save(tensors, folder / name, metadata)
        shards.append({"file": name, "rows": [start, stop]})
        progress(stop, len(table))
    if table.words:
        tensors = named_text(table.words) | {"class_prompts": table.words.class_prompts}
        _save(
            tensors, folder / "text.safetensors", {"recon": canonical_json({**trace, "prompts": table.words.prompts})}
        )
    return {"shards": shards}


def _save(tensors: Arrays, path: Path, metadata: dict[str, str]) -> None:
    # It writes the memory it is given, whatever the strides say.
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path, metadata)

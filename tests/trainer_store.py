"""A small feature store, written through the store's own methods, for the trainer's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.caption import class_prompts
from pipeline.store import FeatureStore
from pipeline.store.receipts import Receipt
from pipeline.store.records import Column

NUM_ROWS = 30
NUM_POINTS = 96
NUM_DRAWS = 2
NUM_VIEWS = 3
IMAGE_DIM = 6
TEXT_DIM = 5
NUM_CAPTIONS = 2
SHARD_ROWS = 8  # so that rows lie in four shards, the last of them not full
CATEGORIES = ("chair", "lamp", "table")
BROKEN_POINTS, BROKEN_TARGETS = 4, 17
"""Rows without points, and without draw 1 of the targets."""
NO_CAPTION = 10

RECIPE = """
[model]
width = 12
heads = 3
depth = 2
decoder_depth = 1
num_group = 8
group_size = 8
[data]
num_points = 64
[optim]
epochs = 3
batch_size = 8
warmup_epochs = 1
lr = 1e-3
[run]
log_every = 2
save_every = 4
"""
"""Two batches an epoch of this store, 6 steps in all; lines of metrics at 2, 4 and 6, checkpoints at 4 and 6."""


def value_of(row: int, draw: int, view: int) -> float:
    """First channel of an image target: says which row, draw and view it is of, exactly in float16."""
    return row + draw / 4 + view / 16


def make_store(path: Path) -> FeatureStore:
    """Every fifth row is of split "test". Features say what they are of, so a batch can be checked against them."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(path)
    category = [CATEGORIES[row % 3] for row in range(NUM_ROWS)]
    store.append_registry(
        {
            "uid": [f"shape-{row}" for row in range(NUM_ROWS)],
            "dataset": ["tiny"] * NUM_ROWS,
            "category": category,
            "split": ["test" if row % 5 == 4 else "train" for row in range(NUM_ROWS)],
            "source": [""] * NUM_ROWS,
            "fingerprint": [""] * NUM_ROWS,
        }
    )
    xyz = rng.normal(size=(NUM_ROWS, NUM_POINTS, 3)).astype(np.float32)
    xyz[:, :, 1] *= 2
    columns: dict[str, NDArray[Any]] = {
        "xyz": xyz,
        "normal": np.zeros_like(xyz, np.float16),
        "color": np.zeros_like(xyz, np.uint8),
        "part": np.zeros(xyz.shape[:2], np.uint8),
    }
    write_columns(store, "points", "points-key", columns, missing={0: [BROKEN_POINTS]})
    feat = rng.normal(size=(NUM_DRAWS, NUM_ROWS, NUM_VIEWS, IMAGE_DIM)).astype(np.float16)
    for draw, row, view in np.ndindex(feat.shape[:3]):
        feat[draw, row, view, 0] = value_of(row, draw, view)
    write_columns(store, "targets", "image-key", {"feat": feat}, NUM_DRAWS, missing={1: [BROKEN_TARGETS]})
    captions = np.array([[f"shape {row}", f"no. {row}" if row % 2 else ""] for row in range(NUM_ROWS)])
    captions[NO_CAPTION] = ""
    write_columns(store, "captions", "captions-key", {"caption": captions.astype(np.dtypes.StringDType())})

    store.require_key("text", "text-key", {"stage": "text"})
    prompts = [prompt for name in CATEGORIES for prompt in class_prompts(name)]
    prompts += [caption for line in captions for caption in line if caption]
    num_prompts = store.append_prompts("text-key", prompts)
    text = rng.normal(size=(num_prompts, TEXT_DIM)).astype(np.float16)
    text[:, 0] = np.arange(num_prompts)
    write_columns(store, "text", "text-key", {"feat": text}, shard_rows=num_prompts)

    for kind in ("points", "captions"):
        store.write_ref("tiny", kind, f"{kind}-key")
    store.write_ref("tiny", "targets", "image-key", teacher="toy")
    store.write_ref("tiny", "text", "text-key", teacher="toy")
    return FeatureStore.open(path)


def write_columns(
    store: FeatureStore,
    kind: str,
    key: str,
    columns: dict[str, NDArray[Any]],
    lanes: int = 0,
    shard_rows: int = SHARD_ROWS,
    missing: dict[int, list[int]] | None = None,
) -> None:
    """Write whole columns, [rows, ...] or with a leading axis of lanes, and their shards' receipts."""
    group = store.require_key(kind, key, {"stage": kind})
    for name, values in columns.items():
        rows, shape = values.shape[bool(lanes)], values.shape[1 + bool(lanes) :]
        dtype = "str" if values.dtype.kind == "T" else str(values.dtype)
        store.require_column(group, Column(name, shape, dtype), rows, lanes, shard_rows)[...] = values
    for lane in range(max(lanes, 1)):
        for start in range(0, rows, shard_rows):
            stop = min(start + shard_rows, rows)
            ok = tuple(row not in (missing or {}).get(lane, []) for row in range(start, stop))
            digests = tuple(f"{key}-{lane}-{row}" for row in range(start, stop))
            receipt = Receipt((start, stop), digests, digests, ok, {}, 0, 0.0, "", {})
            receipt.write(store.receipt_path(key, lane, start // shard_rows))

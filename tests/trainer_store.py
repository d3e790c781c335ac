"""A small feature store, written through the store's own methods, for the trainer's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.shapes.sample import farthest_point_order, point_frame
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.store.records import Column

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
OTHER_ROWS, OTHER_CATEGORIES = 15, ("lamp", "mug")
"""Of the data set "other" in a store of two, behind the rows of "tiny". One of its categories is one of tiny's too."""
NO_CAPTION = 10

RECIPE_OF_KEYS = {"teacher": {"weights": "none", "words": "none", "tap": "pooled"}}
"""Pictures and words count as embedded by two towers of one CLIP, so the zero-shot probe takes the store."""

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
precision = "float32"
"""
"""Two batches an epoch of this store, 6 steps in all; lines of metrics at 2, 4 and 6, checkpoints at 4 and 6."""


def value_of(row: int, draw: int, view: int) -> float:
    """First channel of an image target: says which row, draw and view it is of, exactly in float16."""
    return row + draw / 4 + view / 16


def make_store(path: Path, other: bool = False, text_dim: int = TEXT_DIM) -> FeatureStore:
    """Every fifth row is of split "test". Features say what they are of, so a batch can be checked against them.

    With `other` the store holds that data set too, under the same keys and with the ref "other".
    """
    rng = np.random.default_rng(0)
    store = FeatureStore.create(path)
    category = [CATEGORIES[row % 3] for row in range(NUM_ROWS)]
    if other:
        category += [OTHER_CATEGORIES[row % 2] for row in range(OTHER_ROWS)]
    num_rows = len(category)
    store.append_registry(
        {
            "uid": [f"shape-{row}" for row in range(num_rows)],
            "dataset": ["tiny" if row < NUM_ROWS else "other" for row in range(num_rows)],
            "category": category,
            "split": ["test" if row % 5 == 4 else "train" for row in range(num_rows)],
            "source": [""] * num_rows,
            "fingerprint": [""] * num_rows,
        }
    )
    xyz = rng.normal(size=(num_rows, NUM_POINTS, 3)).astype(np.float32)
    xyz[:, :, 1] *= 2
    columns: dict[str, NDArray[Any]] = {
        "xyz": xyz,
        "normal": np.zeros_like(xyz, np.float16),
        "color": np.zeros_like(xyz, np.uint8),
        "part": np.zeros(xyz.shape[:2], np.uint8),
        "order": np.stack([farthest_point_order(cloud) for cloud in xyz]).astype(np.uint16),
        "frame": np.stack([point_frame(cloud) for cloud in xyz]),
    }
    write_columns(store, "points", "points-key", columns, missing={0: [BROKEN_POINTS]})
    feat = rng.normal(size=(NUM_DRAWS, num_rows, NUM_VIEWS, IMAGE_DIM)).astype(np.float16)
    for draw, row, view in np.ndindex(feat.shape[:3]):
        feat[draw, row, view, 0] = value_of(row, draw, view)
    write_columns(store, "targets", "image-key", {"feat": feat}, NUM_DRAWS, missing={1: [BROKEN_TARGETS]})
    captions = np.array([[f"shape {row}", f"no. {row}" if row % 2 else ""] for row in range(num_rows)])
    captions[NO_CAPTION] = ""
    write_columns(store, "captions", "captions-key", {"caption": captions.astype(np.dtypes.StringDType())})

    store.require_key("text", "text-key", RECIPE_OF_KEYS | {"stage": "text"}, [Column("feat", (text_dim,), "float16")])
    prompts = [prompt for name in sorted({*category}) for prompt in class_prompts(name)]
    prompts += [caption for line in captions for caption in line if caption]
    num_prompts = store.append_prompts("text-key", prompts)
    text = rng.normal(size=(num_prompts, text_dim)).astype(np.float16)
    text[:, 0] = np.arange(num_prompts)
    write_columns(store, "text", "text-key", {"feat": text}, shard_rows=num_prompts)

    for ref in ("tiny", "other") if other else ("tiny",):
        store.write_ref(ref, "points", "points-key")
        store.write_ref(ref, "captions", "captions-key", part="words")
        store.write_ref(ref, "targets", "image-key", part="toy")
        store.write_ref(ref, "text", "text-key", part="toy")
    return FeatureStore.open(path, write=True)


def write_columns(
    store: FeatureStore,
    kind: str,
    key: str,
    columns: dict[str, NDArray[Any]],
    lanes: int = 0,
    shard_rows: int = SHARD_ROWS,
    missing: dict[int, list[int]] | None = None,
    teacher: dict[str, str] | None = None,
) -> None:
    """Write whole columns, [rows, ...] or with a leading axis of lanes, and their shards' receipts.

    `teacher` is said of the key besides what `RECIPE_OF_KEYS` says of all.
    """
    dtypes = {name: "str" if values.dtype.kind == "T" else str(values.dtype) for name, values in columns.items()}
    listed = [Column(name, values.shape[1 + bool(lanes) :], dtypes[name]) for name, values in columns.items()]
    recipe = {"teacher": RECIPE_OF_KEYS["teacher"] | (teacher or {}), "stage": kind}
    group = store.require_key(kind, key, recipe, listed)
    for column, values in zip(listed, columns.values(), strict=True):
        rows = values.shape[bool(lanes)]
        array = store.require_column(group, column, rows, lanes, shard_rows)
        array.with_config({"write_empty_chunks": True})[...] = values
    for lane in range(max(lanes, 1)):
        for start in range(0, rows, shard_rows):
            stop = min(start + shard_rows, rows)
            ok = tuple(row not in (missing or {}).get(lane, []) for row in range(start, stop))
            digests = tuple(f"{key}-{lane}-{row}" for row in range(start, stop))
            receipt = Receipt(
                rows=(start, stop), inputs=digests, digests=digests, ok=ok, failed={},
                nonfinite=0, bytes=0, seconds=0.0, made=(0,) * (stop - start), provenance=({},),
            )  # fmt: skip
            receipt.write(store.receipt_path(key, lane, start // shard_rows))

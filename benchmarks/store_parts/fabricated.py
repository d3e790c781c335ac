"""Finished stages that nobody computed: their receipts, and what other stages read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zarr

from recon.pipeline.base.digests import digest_of
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.listing import register
from recon.pipeline.flow.rows import prompts_of
from recon.pipeline.flow.run import Flow
from recon.pipeline.stages.rows import prompt_rows
from recon.pipeline.store import FeatureStore, receipts
from recon.pipeline.store.receipts import Entry, Receipt


def fabricate(flow: Flow) -> None:
    """Receipts of every stage for all of a flow's shapes, and the columns that other stages read back."""
    register(flow.store, flow.manifest.name, flow.shapes, whole=True)
    with mock.patch.object(receipts, "write_atomically", _write_plainly):
        for entry in flow.stages():
            stage, rows = entry.stage, entry.rows
            key = digest_of(stage.recipe)
            group = flow.store.require_key(stage.kind, key, stage.recipe, stage.columns, stage.attributes)
            if stage.kind == "text":
                flow.store.append_prompts(key, prompts_of(flow.store, flow.plan))
                rows = prompt_rows(flow.store.prompts(key))
            _fill(flow.store, stage, group, len(rows))
            _sign(flow.store, stage, key, rows)
            teacher = entry.name.partition(" ")[2] or None
            flow.store.write_ref(flow.manifest.name, stage.kind, key, teacher)


def _write_plainly(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _fill(store: FeatureStore, stage: Stage, group: zarr.Group, num_rows: int) -> None:
    for column in stage.columns:
        array: Any = store.require_column(group, column, num_rows, stage.lanes, stage.shard_rows)
        if column.name == "digest":
            array[:] = np.array([digest_of(i) for i in range(num_rows)], np.dtypes.StringDType())
        elif column.name == "caption":
            lines = [[f"a shape of size {i % 1000}", "a shape", "", ""] for i in range(num_rows)]
            array[:] = np.array(lines, np.dtypes.StringDType())


def _sign(store: FeatureStore, stage: Stage, key: str, rows: Sequence[Row]) -> None:
    for lane in range(max(stage.lanes, 1)):
        for at in range(0, len(rows), stage.shard_rows):
            part = rows[at : at + stage.shard_rows]
            entries = {row.index: Entry(row.inputs, row.inputs, True, {"host": "fabricated"}) for row in part}
            made = Receipt.of(part[0].index, entries, {}, nonfinite=0, bytes=1000, seconds=1.0)
            made.write(store.receipt_path(key, lane, at // stage.shard_rows))

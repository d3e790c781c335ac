"""Computes some finished rows of a stage again and compares them with what the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.shards import read_rows

if TYPE_CHECKING:  # the stages build on the store
    from recon.pipeline.execution.stage import Row, Stage


@dataclass(frozen=True)
class Recomputed:
    """One column of one row, stored and computed again."""

    name: str
    """The shape's uid, or the prompt."""
    row: int
    lane: int
    column: str
    equal: bool
    """The same bits."""
    max_error: float
    """Largest absolute difference; of text, the number of cells that differ; NaN where it cannot be computed now."""
    cosine: float | None
    """Of columns of floats."""
    reason: str = ""
    """Why it cannot be computed now."""


def recompute(store: FeatureStore, stage: Stage, rows: Sequence[Row], count: int, seed: int) -> list[Recomputed]:
    """Compute `count` of a stage's finished, up-to-date rows again, drawn at random from `seed`; writes nothing."""
    key = digest_of(stage.recipe)
    finished = _finished(store, key, rows, max(stage.lanes, 1))
    drawn = np.random.default_rng(seed).choice(len(finished), min(count, len(finished)), replace=False)
    found: list[Recomputed] = []
    for lane, row in (finished[number] for number in sorted(drawn.tolist())):
        group = store.kind_group(stage.kind, key)
        block = stage.compute(store, key, [row], lane)
        for column in stage.columns:
            if 0 in block.failed:
                reason = block.failed[0].reason
                found.append(Recomputed(row.name, row.index, lane, column.name, False, np.nan, None, reason))
                continue
            array = cast(Any, group[column.name])
            stored = np.asarray(read_rows(array, [row.index], lane if stage.lanes else None)[0])
            again = np.asarray(block.columns[column.name][0])
            found.append(Recomputed(row.name, row.index, lane, column.name, *_compare(stored, again)))
    return found


def _finished(store: FeatureStore, key: str, rows: Sequence[Row], lanes: int) -> list[tuple[int, Row]]:
    """(lane, row) of the rows that hold data made from what they would be made from now."""
    found = []
    for lane in range(lanes):
        done: dict[int, str] = {}
        for _, _, receipt in store.receipts(key, lane):
            lines = zip(range(*receipt.rows), receipt.inputs, receipt.ok, strict=True)
            done |= {index: inputs for index, inputs, ok in lines if ok}
        found += [(lane, row) for row in rows if row.ready and done.get(row.index) == row.inputs]
    return found


def _compare(stored: NDArray[Any], again: NDArray[Any]) -> tuple[bool, float, float | None]:
    """(same bits, largest absolute difference, cosine)."""
    if stored.dtype.kind not in "fiub":
        cells = zip(np.ravel(stored).tolist(), np.ravel(again).tolist(), strict=True)
        differing = sum(a != b for a, b in cells)
        return not differing, float(differing), None
    again = again.astype(stored.dtype, copy=False)
    a, b = stored.astype(np.float64).ravel(), again.astype(np.float64).ravel()
    equal = stored.tobytes() == again.tobytes()
    error = 0.0 if equal else float(np.abs(a - b).max())
    if stored.dtype.kind != "f":
        return equal, error, None
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return equal, error, 1.0 if equal else float(a @ b) / norm if norm else 0.0

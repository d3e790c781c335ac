"""Computes some finished rows of a stage again and compares them with what the store holds.

The same bits are not to be had everywhere: another graphics driver covers edges in other samples, another processor or
GPU rounds elsewhere. What counts as rounding is less than any change of a file, a model or a setting makes:

* pictures (views' rgb, alpha, normal, depth): nearly all values within a few levels, few levels off on average, and
  hardly a pixel off together with all its neighbours, so that edges may differ but no part of a shape may;
* teachers' features: each vector nearly as long as the other and in nearly its direction;
* points and other numbers: nearly all values alike in their first digits, of colours within a few levels;
* whole numbers and text: the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import one_line
from recon.pipeline.execution.stage import spare
from recon.pipeline.store.columns import open_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.shards import read_rows

if TYPE_CHECKING:  # the stages build on the store
    from recon.pipeline.execution.stage import Row, Stage

NEARLY_ALL = 0.98  # of values: at 224 px and 4 samples, edges are some hundredths of a picture
LEVELS, MEAN_LEVELS = 3, 0.5  # of 255
SOLID = 5e-4  # of pixels
DEPTH, MEAN_DEPTH = 0.01, 0.02  # in box radii; the stored float16 is right to 0.001
VECTOR = 0.045  # of the length: as far apart as two vectors of equal length with a cosine of 0.999
DIGITS = 1e-3  # of the largest value: what float16 keeps

Verdict = Literal["equal", "within rounding", "different"]


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
    verdict: Verdict
    """"different" also where it cannot be computed now."""
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
        failure, values = _again(store, stage, key, row, lane)
        for column in stage.columns:
            if failure:
                where = row.name, row.index, lane, column.name
                found.append(Recomputed(*where, False, "different", np.nan, None, failure))
                continue
            array = open_column(group, column.name)
            stored = np.asarray(read_rows(array, [row.index], lane if stage.lanes else None)[0])
            equal, error, cosine = _compare(stored, np.asarray(values[column.name]))
            verdict: Verdict = "equal" if equal else "different"
            if not equal and _rounding(stage.kind, column.name, stored, np.asarray(values[column.name])):
                verdict = "within rounding"
            found.append(Recomputed(row.name, row.index, lane, column.name, equal, verdict, error, cosine))
    return found


def _again(store: FeatureStore, stage: Stage, key: str, row: Row, lane: int) -> tuple[str, dict[str, Any]]:
    """Why the row cannot be computed now, or its values by column. MachineError where that is not the row's fault."""
    try:
        block = stage.compute(store, key, [row], lane)
    except UserError:
        raise
    except Exception as error:
        spare(error)
        return one_line(error), {}
    if 0 in block.failed:
        return block.failed[0].reason, {}
    return "", {name: values[0] for name, values in block.columns.items()}


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


def _rounding(kind: str, column: str, stored: NDArray[Any], again: NDArray[Any]) -> bool:
    """Whether two values that differ do so by rounding alone; see the module's beginning."""
    if stored.shape != again.shape or stored.dtype.kind not in "fiu":
        return False
    a, b = stored.astype(np.float64), again.astype(np.float64)
    if not np.isfinite(b).all():
        return False
    away = np.abs(a - b)
    picture, colours = kind == "views" and stored.ndim >= 3, column == "color"
    if picture or colours:
        most, mean = (DEPTH, MEAN_DEPTH) if column == "depth" else (LEVELS, MEAN_LEVELS)
        near = away <= most
        return bool(near.mean() >= NEARLY_ALL and away.mean() <= mean and (colours or _solid(~near) <= SOLID))
    if stored.dtype.kind != "f":
        return False
    if column == "feat":
        vectors, others = a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1])
        apart, length = np.linalg.norm(vectors - others, axis=1), np.linalg.norm(vectors, axis=1)
        return bool((apart <= VECTOR * length).all())
    return bool((away <= DIGITS * np.abs(a).max()).mean() >= NEARLY_ALL)


def _solid(off: NDArray[np.bool_]) -> float:
    """Share of pixels, [V, H, W] or with channels behind, that are off in a channel as are all eight around them."""
    pixels = np.asarray(off.reshape(*off.shape[:3], -1).any(axis=3))
    _, height, width = pixels.shape
    around = [pixels[:, y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    return float(np.logical_and.reduce(around).mean())

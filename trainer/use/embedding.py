"""What a student says of clouds, in one pass: its embedding of each, and what its queries predict of the teachers."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.pipeline.base.wording import brief
from recon.trainer.config import Config
from recon.trainer.data.points import farthest_points
from recon.trainer.evaluate.features import BATCH, Probe, Student

ROWS_AT_ONCE = 512
"""Of a store, read together."""
TOLD_EVERY = 10.0  # seconds
FORMATS = (".parquet", ".npz")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Described:
    """What a student says of N shapes."""

    embedding: NDArray[np.float32]
    """[N, 2C], `ReCon.embed`'s"""
    queries: dict[str, NDArray[np.float32]]
    """Teacher of the student -> [N, D], that teacher's raw feature as its query predicts it"""

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """By the names that files have them under."""
        return {"embedding": self.embedding, **{f"query_{name}": each for name, each in self.queries.items()}}


def widths(config: Config) -> dict[str, int]:
    """Teacher of a student -> width of its feature."""
    return {teacher.name: teacher.dim for teacher in config.model.teachers}


@torch.inference_mode()
def describe(student: Student, points: Tensor) -> Described:
    """Of clouds [N, P, C] in any frame and scale, one at the least, P being `data.num_points` as in training."""
    parts: list[list[Tensor]] = []
    for batch in torch.split(points, BATCH):
        embedding, predicted = student.model.describe(batch.to(student.device))
        parts.append([each.float().cpu() for each in (embedding, *predicted)])
    whole, *queries = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Described(whole, dict(zip(widths(student.config), queries, strict=True)))


def describe_rows(student: Student, probe: Probe, rows: NDArray[np.int64], told: Progress) -> Iterator[Described]:
    """Of finished rows of the probe's store, ascending, by their farthest points, some at a time.

    UserError where the store holds fewer points than the student takes.
    """
    points, count, model = probe.store.points(probe.ref), student.config.data.num_points, student.config.model
    if count > points.xyz.shape[1]:
        raise UserError(
            f"{probe.store.path}: holds {points.xyz.shape[1]} points a shape, the student takes {count}; raise "
            "sample.num_points in the manifest"
        )
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chosen = rows[start : start + ROWS_AT_ONCE]
        yield describe(student, farthest_points(points, chosen, count, model.color, model.default_color))
        told(start + len(chosen), len(rows))


def together(parts: Sequence[Described]) -> Described:
    """Several, one behind the other; one at the least."""
    names = parts[0].queries
    return Described(
        np.concatenate([part.embedding for part in parts]),
        {name: np.concatenate([part.queries[name] for part in parts]) for name in names},
    )


def telling(tell: Callable[[str], None], what: str) -> Progress:
    """Tells how far it is every ten seconds, with rate and time left."""
    started = last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < TOLD_EVERY or done >= total:
            return
        last, rate = now, done / (now - started)
        tell(f"{done} of {total} {what}, {brief(rate)} a second, {(total - done) / rate:.0f} s left")

    return told


def check_output(path: Path) -> None:
    """UserError for a name that says no format, before anything is computed for it."""
    if path.suffix not in FORMATS:
        raise UserError(f"--out {path}: its name must end in {' or '.join(FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(
                f"--out {path}: Parquet needs pyarrow: pip install 'recon-pointcloud[parquet]', or name a file .npz"
            ) from None


def write_embeddings(path: Path, words: dict[str, list[str]], described: Described, made: dict[str, Any]) -> None:
    """A row a shape: the texts of `words` ("uid" first), embedding, query_<teacher>. `made` says what made them.

    A Parquet file has lists of a fixed size and `made` in its schema's metadata "recon"; an npz file arrays of the same
    names and `made` as the JSON text "recon".
    """
    told, buffer = json.dumps(made), io.BytesIO()
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {name: pa.array(texts, pa.string()) for name, texts in words.items()}
        for name, values in described.columns().items():
            flat = pa.array(np.ascontiguousarray(values).ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        pq.write_table(pa.table(columns).replace_schema_metadata({"recon": told}), buffer, compression="zstd")
    else:
        texts = {name: np.array(each, dtype=np.str_) for name, each in words.items()}
        arrays: dict[str, Any] = {**texts, **described.columns(), "recon": np.array(told)}
        np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def made_by(student: Student) -> dict[str, Any]:
    """What a file of features says of the student."""
    return {
        "run": student.source.resolve().name,
        "checkpoint": student.checkpoint,
        "num_points": student.config.data.num_points,
        "teachers": {teacher.name: teacher.kind for teacher in student.config.model.teachers},
    }

"""A stage of any kind, quick enough to fill many stores with, for the tests of what works on whole stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recon.pipeline.base.digests import digest_of, row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.reader import REGISTRY_COLUMNS
from recon.pipeline.store.records import Column

COLUMNS = {
    "meshes": (Column("digest", (), "str"), Column("facts", (2,), "str"), Column("faces", (), "int64")),
    "points": (Column("xyz", (5, 3), "float32"), Column("part", (5,), "uint8")),
    "views": (Column("rgb", (2, 4, 4, 3), "uint8"), Column("depth", (2, 4, 4), "float16")),
    "captions": (Column("caption", (2,), "str"),),
    "targets": (Column("feat", (2, 8), "float16"),),
    "text": (Column("feat", (8,), "float16"),),
}


@dataclass(frozen=True)
class Toy:
    """Random values by the row's name and draw; "bad" rows fail. `noise` is added to what is computed, unsaid."""

    kind: str = "points"
    settings: tuple[tuple[str, Any], ...] = ()
    draws: int = 0
    shard_rows: int = 4
    noise: float = 0.0
    gpu = False
    attributes: ClassVar[dict[str, Any]] = {"note": "toy"}

    @property
    def lanes(self) -> int:
        return self.draws

    @property
    def columns(self) -> tuple[Column, ...]:
        return COLUMNS[self.kind]

    @property
    def recipe(self) -> dict[str, Any]:
        return {"stage": self.kind, "version": 1, **dict(self.settings)}

    def by_content(self, lane: int) -> bool:
        return False

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        def one(row: Row) -> list[Any]:
            if row.name.startswith("bad"):
                raise UserError(f"{row.name} is bad")
            rng = np.random.default_rng(row_seed("toy", row.name, lane))
            values: list[Any] = []
            for column in self.columns:
                if column.dtype == "str":
                    words = [f"{row.name} {number}" for number in range(int(np.prod(column.shape)))]
                    values.append(words if column.shape else words[0])
                else:
                    scale = 100 if column.dtype in ("uint8", "int64") else 1
                    number = scale * rng.random(column.shape) + self.noise
                    values.append(np.asarray(number).astype(column.dtype))
            return values

        return each_row(rows, [c.name for c in self.columns], one)


@dataclass(frozen=True)
class Drawn(Toy):
    """A picture of a mug, which takes OpenGL, and the row's seed."""

    shard_rows: int = 2

    @property
    def columns(self) -> tuple[Column, ...]:
        return Column("rgb", (2, 32, 32, 3), "uint8"), Column("seed", (), "int64")

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        from recon.pipeline.procedural import build
        from recon.pipeline.rendering.render import RenderConfig
        from recon.pipeline.stages import views

        def one(row: Row) -> tuple[Any, ...]:
            seed = row_seed(key, row.name)
            renderer = views._renderer(RenderConfig(preset="ring2", resolution=32))
            return renderer.render(build("mug", seed)).rgb, np.int64(seed)

        return each_row(rows, ("rgb", "seed"), one)


def register(path: Path, names: Sequence[str], dataset: str = "toy") -> FeatureStore:
    """The store at `path` with shapes of these uids added."""
    store = FeatureStore.create(path)
    if names:
        columns = {column: list(names) for column in REGISTRY_COLUMNS}
        columns["category"] = ["even" if len(name) % 2 else "odd" for name in names]
        store.append_registry(columns | {"dataset": [dataset] * len(names)})
    return store


def fill(store: FeatureStore, stage: Toy, names: Sequence[str] = (), ref: str = "toy", teacher: str = "") -> str:
    """Run the stage over all shapes, or over prompts, and note it in a ref (if that has a name); the key."""
    key = digest_of(stage.recipe)
    if stage.kind == "text":
        store.require_key("text", key, stage.recipe, stage.columns, stage.attributes)
        store.append_prompts(key, names)
        rows = [Row(i, prompt, digest_of(prompt)) for i, prompt in enumerate(store.prompts(key))]
    else:
        mine = enumerate(zip(store.registry.uid, store.registry.dataset, strict=True))
        rows = [Row(i, uid, digest_of([uid, "v1"])) for i, (uid, dataset) in mine if dataset == (ref or "toy")]
    run_stage(store, stage, rows, InProcess())
    if ref:
        store.write_ref(ref, stage.kind, key, teacher or "facts")
    return key


def files_of(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}

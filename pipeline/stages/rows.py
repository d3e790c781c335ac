"""What goes into each stage, a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recon.pipeline.base.digests import digest_of
from recon.pipeline.execution.stage import Row
from recon.pipeline.shapes.meshfile.sidecars import counted, without_sidecars
from recon.pipeline.sources.source import Shape
from recon.pipeline.store.columns import read_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Registry


def shape_rows(registry: Registry, shapes: Sequence[Shape], meshes: bool = True) -> list[Row]:
    """A manifest's shapes as rows of a stage that reads their files, in the store's order.

    meshes: whether it reads meshes, whose materials and textures count; ready-made clouds have none.
    """
    number = registry.numbers(shapes[0].dataset)
    part = counted if meshes else without_sidecars
    inputs = {fingerprint: digest_of(part(fingerprint)) for fingerprint in {shape.fingerprint for shape in shapes}}
    rows = [Row(number[s.uid], s.uid, inputs[s.fingerprint], True, s.source) for s in shapes]
    return sorted(rows, key=lambda row: row.index)


def mesh_rows(store: FeatureStore, key: str, rows: Sequence[Row]) -> list[Row]:
    """The same shapes as rows of a stage that works on the meshes read under `key`: the mesh's digest counts now."""
    digests = read_column(store.kind_group("meshes", key), "digest", rows[-1].index + 1)
    ok = store.ok(key, rows[-1].index + 1).tolist()
    return [Row(r.index, r.name, digests[r.index] if ok[r.index] else "", ok[r.index], r.source) for r in rows]


def with_upstream(store: FeatureStore, key: str, rows: Sequence[Row]) -> list[Row]:
    """Rows of a stage that reads what `key` made: ready where that is there."""
    ok = store.ok(key, rows[-1].index + 1).tolist()
    return [r if ok[r.index] else replace(r, inputs="", ready=False) for r in rows]


def prompt_rows(prompts: Sequence[str]) -> list[Row]:
    """Prompts as rows of the text stage: a prompt is its own name and input."""
    return [Row(i, prompt, digest_of(prompt)) for i, prompt in enumerate(prompts)]

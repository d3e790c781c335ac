"""The rows that one stage of a flow hands to the next, by what the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recon.pipeline.base.digests import digest_of
from recon.pipeline.caption.templates import templates_of
from recon.pipeline.execution.planning import plan_stage
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.nodes import Node, Plan
from recon.pipeline.sources.source import Shape
from recon.pipeline.stages.rows import mesh_rows, shape_rows, with_upstream
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.prompts import class_prompts


@dataclass(frozen=True)
class StageRows:
    """A stage of a flow, the rows whose inputs are known, and how many more there will be (None: nobody knows yet)."""

    name: str
    stage: Stage
    rows: Sequence[Row]
    unknown: int | None


def listed_rows(store: FeatureStore, dataset: str, shapes: Sequence[Shape], node: Node) -> list[Row]:
    """Those of a data set's shapes that have a row, for a node that works on the listing itself."""
    if not store.has_registry:
        return []
    known = store.registry.numbers(dataset)
    shapes = [shape for shape in shapes if shape.uid in known]
    return shape_rows(store.registry, shapes, meshes=node.kind == "meshes") if shapes else []


def handed_on(store: FeatureStore, node: Node, stage: Stage, rows: Sequence[Row]) -> list[Row]:
    """Rows of a stage that reads what this one made of `rows`: after the meshes, what counts is their digests."""
    if not rows:
        return []
    if node.kind == "meshes":
        return mesh_rows(store, digest_of(stage.recipe), rows)
    return with_upstream(store, digest_of(stage.recipe), rows)


def also_finished(store: FeatureStore, plan: Plan, node: Node, rows: list[Row]) -> list[Row]:
    """The rows of a node that works on shapes, ready where the other nodes that it needs have finished them too."""
    others = [other for other in plan.nodes if node.after is not None and other.name in node.also]
    for stage in map(plan.stage, others):
        rows = with_upstream(store, digest_of(stage.recipe), rows) if stage and rows else rows
    return rows


def prompts_of(store: FeatureStore, plan: Plan) -> list[str]:
    """Class prompts of every category of a manifest, then every shape's captions, in row order."""
    registry, manifest = store.registry, plan.manifest
    mine = store.listed_rows(manifest.name).tolist()
    categories = sorted({registry.categories[number] for number in registry.category[mine]})
    templates = templates_of(manifest.class_prompts)
    prompts = [prompt for name in categories for prompt in class_prompts(name, templates)]
    stages = {node.part: plan.stage(node) for node in plan.nodes if node.kind == "captions"}
    captions = store.captions_of({str(name): digest_of(s.recipe) for name, s in stages.items() if s})
    return prompts + [caption for row in mine for caption in captions[row] if caption]


def up_to_date(store: FeatureStore, stage: Stage, rows: Sequence[Row]) -> list[Row]:
    """The rows that the stage has nothing more to do for."""
    todo = {row.index for task in plan_stage(store, stage, rows).tasks for row in task.rows}
    return [row for row in rows if row.index not in todo] if todo else list(rows)

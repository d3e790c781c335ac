"""One manifest into one store: registers the shapes, then brings the stages up to date in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from pipeline.caption import class_prompts
from pipeline.errors import UserError
from pipeline.execution.engine import ROW_SECONDS, StageResult, run_stage
from pipeline.execution.executor import Executor, InProcess
from pipeline.execution.planning import StagePlan, plan_stage
from pipeline.execution.stage import Row, Stage
from pipeline.manifest import Manifest, Shape, list_shapes
from pipeline.stages import (
    Captions,
    ImageTargets,
    Meshes,
    Origin,
    PointClouds,
    RenderedViews,
    TextTargets,
    mesh_rows,
    origin_of,
    prompt_rows,
    shape_rows,
    teacher_of,
    text_recipe,
    with_upstream,
)
from pipeline.store.feature_store import REGISTRY_COLUMNS, FeatureStore
from pipeline.store.mend import mend
from pipeline.store.receipts import canonical_json, digest_of
from pipeline.store.verify import verify
from pipeline.teachers import TeacherSpec, TextTeacher

Progress = Callable[[str, int, int, int], None]


@dataclass(frozen=True)
class StageRows:
    """A stage of a flow, the rows whose inputs are known, and how many more there will be (None: nobody knows yet)."""

    name: str
    stage: Stage
    rows: Sequence[Row]
    unknown: int | None


@dataclass
class Flow:
    """The stages of a manifest over a store.

    Every method first runs what it builds on, which costs nothing when that is done. `limit` keeps to the manifest's
    first shapes, `shard` (i, n) to every n-th of them from the i-th on; `row_seconds`: what a row may take in a
    worker; `begin` is told (stage, plan) before a stage with work to do, `progress` (stage, rows done, rows to do,
    bytes written) after every shard.
    """

    manifest: Manifest
    root: Path | None
    store: FeatureStore
    executor: Executor = field(default_factory=InProcess)
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)
    row_seconds: float = ROW_SECONDS
    progress: Progress = lambda stage, done, total, written: None
    begin: Callable[[str, StagePlan], None] = lambda stage, plan: None

    def __post_init__(self) -> None:
        self._listed: list[Row] | None = None
        self._meshed: list[Row] | None = None
        self._results: dict[str, StageResult] = {}
        self.mended: list[str] = []

    # ---- the commands

    def ingest(self) -> list[StageResult]:
        """Register the shapes and read every mesh once."""
        self._listed_rows()
        if self._has_meshes:
            self._mesh_rows()
        return self._done

    def sample(self) -> list[StageResult]:
        """Points: of the surface, or the source's own."""
        self.ingest()
        self._run(self._points, self._listed_rows() if self._has_clouds else self._mesh_rows())
        return self._done

    def render(self) -> list[StageResult]:
        """Views. UserError for a data set without meshes."""
        if not self._has_meshes:
            name = self.manifest.name
            raise UserError(f"manifest {name!r} has ready-made clouds and no meshes: there is nothing to render")
        self._run(self._views, self._mesh_rows())
        return self._done

    def caption(self) -> list[StageResult]:
        """Captions a shape."""
        self.ingest()
        if self._has_meshes:
            self._run(self._captions, self._mesh_rows())
        return self._done

    def features(self) -> list[StageResult]:
        """Every teacher's features of views, where there are such, and of words."""
        if self._has_meshes:
            self.render()
        self.caption()
        for spec in self.manifest.features.teachers:
            images, text = self._teacher_stages(spec)
            if self._has_meshes:
                seen = with_upstream(self.store, digest_of(self._views.recipe), self._mesh_rows())
                self._run(images, seen, spec.name)
            if text is not None:
                key = digest_of(text.recipe)
                self.store.require_key("text", key, text.recipe, text.columns, text.attributes)
                self.store.append_prompts(key, self._prompts())
                self._run(text, prompt_rows(self.store.prompts(key)), spec.name)
        return self._done

    def all(self) -> list[StageResult]:
        """Every stage."""
        self.sample()
        return self.features()

    def retry(self) -> list[StageResult]:
        """Every stage, after everything in the store was checked: what is damaged or was set aside is done again."""
        self.mended = mend(self.store.path, verify(self.store, full=True).damages)
        self.store = FeatureStore.open(self.store.path, write=True)
        for _, key in self.store.list_keys():
            self.store.withdraw_failures(key)
        return self.all()

    def upstream(self) -> tuple[Stage, ...]:
        """The stages that others build on."""
        return (Meshes(self._origin), self._views) if self._has_meshes else ()

    def stages(self) -> Iterator[StageRows]:
        """Every stage with what can be said of its rows now; writes nothing."""
        rows = after = self._registered_rows()
        seen: Sequence[Row] = []
        if self._has_clouds:
            yield StageRows("points", self._points, rows, len(self.shapes) - len(rows))
        if self._has_meshes:
            meshes = Meshes(self._origin)
            yield StageRows("meshes", meshes, rows, len(self.shapes) - len(rows))
            rows = self._up_to_date(meshes, rows)
            after = mesh_rows(self.store, meshes, rows) if rows else []
            for stage in (self._points, self._views, self._captions)[self._has_clouds :]:
                yield StageRows(stage.kind, stage, after, len(self.shapes) - len(after))
            seen = self._up_to_date(self._views, after)
            seen = with_upstream(self.store, digest_of(self._views.recipe), seen) if seen else []
        for spec in self.manifest.features.teachers:
            images, text = self._teacher_stages(spec)
            if self._has_meshes:
                yield StageRows(f"targets {spec.name}", images, seen, len(self.shapes) - len(seen))
            if text is not None:
                key = digest_of(text.recipe)
                there = (self.store.path / "text" / key).is_dir()
                prompts = prompt_rows(self.store.prompts(key)) if there else []
                yield StageRows(f"text {spec.name}", text, prompts, None if len(after) < len(self.shapes) else 0)

    # ---- their parts

    @cached_property
    def shapes(self) -> list[Shape]:
        """The manifest's shapes that this flow is about."""
        part, parts = self.shard
        return list_shapes(self.manifest, self.root)[: self.limit][part::parts]

    def _registered_rows(self) -> list[Row]:
        """Those of the shapes that have a row."""
        if not self.store.has_registry:
            return []
        known = self.store.registry.numbers(self.manifest.name)
        shapes = [shape for shape in self.shapes if shape.uid in known]
        return shape_rows(self.store.registry, shapes) if shapes else []

    def _up_to_date(self, stage: Stage, rows: Sequence[Row]) -> list[Row]:
        """The rows that the stage has nothing more to do for."""
        todo = {row.index for task in plan_stage(self.store, stage, rows).tasks for row in task.rows}
        return [row for row in rows if row.index not in todo] if todo else list(rows)

    @property
    def _has_meshes(self) -> bool:
        return self.manifest.source.has_meshes

    @property
    def _has_clouds(self) -> bool:
        return self.manifest.source.has_clouds

    @cached_property
    def _origin(self) -> Origin:
        return origin_of(self.manifest, self.root)

    @property
    def _points(self) -> PointClouds:
        return PointClouds(self._origin, self.manifest.sample)

    @property
    def _views(self) -> RenderedViews:
        return RenderedViews(self._origin, self.manifest.render)

    @property
    def _captions(self) -> Captions:
        return Captions(self._origin)

    def _listed_rows(self) -> list[Row]:
        """The shapes as the source lists them; registers them on the first call."""
        if self._listed is None:
            register(self.store, self.shapes)
            self._listed = shape_rows(self.store.registry, self.shapes)
        return self._listed

    def _mesh_rows(self) -> list[Row]:
        """The shapes with their meshes' digests; reads them on the first call."""
        if self._meshed is None:
            meshes, rows = Meshes(self._origin), self._listed_rows()
            self._run(meshes, rows)
            self._meshed = mesh_rows(self.store, meshes, rows)
        return self._meshed

    @property
    def _done(self) -> list[StageResult]:
        """What ran so far, in its order."""
        return list(self._results.values())

    def _run(self, stage: Stage, rows: Sequence[Row], teacher: str | None = None) -> StageResult:
        """Run a stage once a flow and note its key under the manifest's name."""
        name = stage.kind if teacher is None else f"{stage.kind} {teacher}"
        if name not in self._results:
            report = lambda done, total, written: self.progress(name, done, total, written)  # noqa: E731
            begin = lambda plan: self.begin(name, plan)  # noqa: E731
            self._results[name] = run_stage(self.store, stage, rows, self.executor, self.row_seconds, report, begin)
            self.store.write_ref(self.manifest.name, stage.kind, self._results[name].key, teacher)
        return self._results[name]

    def _teacher_stages(self, spec: TeacherSpec) -> tuple[ImageTargets, TextTargets | None]:
        """Loads the teacher: its recipe holds a digest of its weights."""
        teacher = teacher_of(spec)
        recipe = canonical_json(teacher.recipe())
        features = self.manifest.features
        images = ImageTargets(spec, self._views, features.draws, features.seed, teacher.dim, recipe)
        if not hasattr(teacher, "embed_texts"):
            return images, None
        text_dim = cast(TextTeacher, teacher).embed_texts(["a shape"]).shape[1]
        return images, TextTargets(spec, text_dim, canonical_json(text_recipe(teacher.recipe())))

    def _prompts(self) -> list[str]:
        """Class prompts of every category, then every shape's captions, in row order."""
        registry, ref = self.store.registry, self.store.ref(self.manifest.name)
        mine = self.store.rows(ref)
        categories = sorted({registry.categories[number] for number in registry.category[mine]})
        prompts = [prompt for name in categories for prompt in class_prompts(name)]
        captions = self.store.captions(ref) if "captions" in ref.keys else []
        return prompts + [caption for row in mine if captions for caption in captions[row] if caption]


def register(store: FeatureStore, shapes: Sequence[Shape]) -> None:
    """Give every new shape a row, and note what the manifest says differently now of those that have one."""
    seen = {shape.uid: shape for shape in shapes}
    rows: dict[str, int] = {}
    if store.has_registry:
        registry = store.registry
        rows = registry.numbers(shapes[0].dataset) if shapes else {}
        held = {
            "category": [registry.categories[i] for i in registry.category],
            "split": registry.split,
            "source": registry.source,
            "fingerprint": registry.fingerprint,
        }
        for name, values in held.items():
            now = {rows[uid]: cast(str, getattr(shape, name)) for uid, shape in seen.items() if uid in rows}
            changed = {row: value for row, value in now.items() if value != values[row]}
            if changed:
                store.update_registry(name, changed)
    fresh = [shape for shape in shapes if shape.uid not in rows]
    if not shapes:
        raise UserError("the manifest lists no shape; look at its source and --root")
    if fresh:
        store.append_registry({name: [getattr(shape, name) for shape in fresh] for name in REGISTRY_COLUMNS})


def summary(results: Sequence[StageResult]) -> str:
    """The results as JSON, for programs."""
    lines: list[dict[str, Any]] = [
        {
            "stage": r.kind,
            "key": r.key,
            "rows": r.total,
            "computed": r.computed,
            "failed": len(r.failed),
            "seconds": round(r.seconds, 3),
        }
        for r in results
    ]
    return json.dumps(lines)

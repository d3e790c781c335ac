"""One manifest into one store: registers the shapes, then brings the stages up to date in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.caption.tables import AnyCaptions, CaptionerTable, FactsTable, teacher_named
from recon.pipeline.caption.templates import templates_of
from recon.pipeline.execution.engine import ROW_SECONDS, StageResult, run_stage
from recon.pipeline.execution.executor import Executor, InProcess
from recon.pipeline.execution.planning import StagePlan, plan_stage
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.caption_tables import CaptionTables
from recon.pipeline.flow.manifest import Manifest, list_shapes, origin_of, settled
from recon.pipeline.keeping.mend import mend
from recon.pipeline.keeping.verify import verify
from recon.pipeline.sources.source import Shape
from recon.pipeline.stages import (
    ImageTargets,
    Meshes,
    Origin,
    PointClouds,
    RenderedViews,
    TextTargets,
    captioner_of,
    mesh_rows,
    prompt_rows,
    shape_rows,
    teacher_of,
    with_upstream,
)
from recon.pipeline.stages.imported import ImportedTargets, check_width
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.store.reader import REGISTRY_COLUMNS
from recon.pipeline.teachers import TeacherSpec, TextTeacher

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
        self.manifest, _ = settled(self.manifest, self.store.path)
        self._listed: list[Row] | None = None
        self._meshed: list[Row] | None = None
        self._results: dict[str, StageResult] = {}
        self.mended: list[str] = []
        self.notes: list[str] = []

    # ---- the commands

    def ingest(self) -> list[StageResult]:
        """Register the shapes and read every mesh once. UserError for a file of captions that cannot be read."""
        self.notes = self._tables.read()
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
        """Captions a shape: those that are there already, then those of models, which look at views."""
        self._plain_captions()
        for table in self._tables.modelled:
            self.render()
            spec = self._tables.teacher(table)
            upstream = self._image_targets(spec) if spec else self._views
            seen = with_upstream(self.store, digest_of(upstream.recipe), self._seen_rows())
            self._run(self._tables.stage(table), self._tables.rows(table, seen), table.name)
        self._settle()
        return self._done

    def features(self) -> list[StageResult]:
        """Every teacher's features of views, where there are such, and of words."""
        self._plain_captions()
        for stored in self.manifest.features.stored:
            check_width(self._origin, stored, self.shapes)
            self._run(ImportedTargets(self._origin, stored), self._listed_rows(), stored.name)
        if self._has_meshes:
            self.render()
            for spec in self.manifest.features.teachers:
                self._image_targets(spec)
        self.caption()
        for spec in self.manifest.features.teachers:
            _, text = self._teacher_stages(spec)
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

    def retry(self, reason: str | None = None) -> list[StageResult]:
        """Every stage, after everything in the store was checked: what is damaged or was set aside is done again.

        With a reason nothing is checked, and only the shapes are done again that were set aside for a reason that holds
        it. Other manifests' shapes stay set aside; prompts are every manifest's.
        """
        if reason is None:
            self.mended = mend(self.store.path, verify(self.store, full=True).damages)
            self.store = FeatureStore.open(self.store.path, write=True)
        mine = set(self.store.registry.numbers(self.manifest.name).values()) if self.store.has_registry else set()
        for kind, key in self.store.list_keys():
            self.store.withdraw_failures(key, None if kind == "text" else mine, reason or "")
        return self.all()

    def upstream(self) -> tuple[Stage, ...]:
        """The stages that others build on."""
        if not self._has_meshes:
            return ()
        ranking = [spec for table in self._tables.modelled if (spec := self._tables.teacher(table))]
        stages = (stage for spec in ranking for stage in self._teacher_stages(spec) if stage is not None)
        return (Meshes(self._origin), self._views, *stages)

    def stages(self) -> Iterator[StageRows]:
        """Every stage with what can be said of its rows now; writes nothing."""
        listed = self._registered_rows()
        meshed: Sequence[Row] = []
        if self._has_clouds:
            yield self._entry("points", self._points, listed)
        if self._has_meshes:
            meshes = Meshes(self._origin)
            yield self._entry("meshes", meshes, listed)
            done = self._up_to_date(meshes, listed)
            meshed = mesh_rows(self.store, meshes, done) if done else []
            for stage in (self._points, self._views)[self._has_clouds :]:
                yield self._entry(stage.kind, stage, meshed)
        for stored in self.manifest.features.stored:
            yield self._entry(f"targets {stored.name}", ImportedTargets(self._origin, stored), listed)
        seen = {"": self._after(self._views, meshed)} if self._has_meshes else {}
        for spec in self.manifest.features.teachers if self._has_meshes else ():
            images, _ = self._teacher_stages(spec)
            yield self._entry(f"targets {spec.name}", images, seen[""])
            seen[spec.name] = self._after(images, seen[""])
        captions = [self._caption_entry(table, listed, meshed, seen) for table in self._tables.all]
        yield from captions
        for spec in self.manifest.features.teachers:
            _, text = self._teacher_stages(spec)
            if text is not None:
                key = digest_of(text.recipe)
                there = (self.store.path / "text" / key).is_dir()
                prompts = self.store.prompts(key) if there else []
                to_come = self._prompts_to_come(captions, prompts)
                yield StageRows(f"text {spec.name}", text, prompt_rows(prompts), to_come)

    # ---- their parts

    @cached_property
    def shapes(self) -> list[Shape]:
        """The manifest's shapes that this flow is about."""
        part, parts = self.shard
        return self._all_shapes[: self.limit][part::parts]

    @cached_property
    def _all_shapes(self) -> list[Shape]:
        return list_shapes(self.manifest, self.root)

    def _registered_rows(self) -> list[Row]:
        """Those of the shapes that have a row."""
        if not self.store.has_registry:
            return []
        known = self.store.registry.numbers(self.manifest.name)
        shapes = [shape for shape in self.shapes if shape.uid in known]
        return shape_rows(self.store.registry, shapes) if shapes else []

    def _entry(self, name: str, stage: Stage, rows: Sequence[Row]) -> StageRows:
        """A stage whose other rows wait for the stages before."""
        return StageRows(name, stage, rows, len(self.shapes) - len(rows))

    def _caption_entry(
        self, table: AnyCaptions, listed: Sequence[Row], meshed: Sequence[Row], seen: dict[str, list[Row]]
    ) -> StageRows:
        if table in self._tables.modelled:
            spec = self._tables.teacher(table)
            rows: Sequence[Row] = seen[spec.name if spec else ""]
        else:
            rows = meshed if isinstance(table, FactsTable) else listed
        return self._entry(f"captions {table.name}", self._tables.stage(table), self._tables.rows(table, rows))

    def _prompts_to_come(self, captions: Sequence[StageRows], prompts: Sequence[str]) -> int | None:
        """How many prompts a text stage lacks; None while not all captions are written."""
        for entry in captions:
            if entry.unknown or len(self._up_to_date(entry.stage, entry.rows)) < len(entry.rows):
                return None
        return len(set(self._prompts()) - set(prompts)) if self.store.has_registry else None

    def _after(self, stage: Stage, rows: Sequence[Row]) -> list[Row]:
        """Rows of a stage that reads what this one made: those that it has nothing more to do for."""
        done = self._up_to_date(stage, rows)
        return with_upstream(self.store, digest_of(stage.recipe), done) if done else []

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

    @cached_property
    def _tables(self) -> CaptionTables:
        origin = self._origin
        return CaptionTables(self.manifest, self.root, origin, self._views, self._all_shapes, self._teacher_stages)

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

    def _seen_rows(self) -> list[Row]:
        """The shapes whose views are there; renders them on the first call."""
        self.render()
        return with_upstream(self.store, digest_of(self._views.recipe), self._mesh_rows())

    def _image_targets(self, spec: TeacherSpec) -> ImageTargets:
        images, _ = self._teacher_stages(spec)
        self._run(images, self._seen_rows(), spec.name)
        return images

    def _plain_captions(self) -> None:
        """Captions that need no model."""
        self.ingest()
        for table in self._tables.plain:
            rows = self._mesh_rows() if isinstance(table, FactsTable) else self._listed_rows()
            self._run(self._tables.stage(table), self._tables.rows(table, rows), table.name)
        self._settle()

    def _settle(self) -> None:
        """Let the ref say what class prompts and which captions, in which order, the manifest asks for."""
        names = [table.name for table in self._tables.all]
        self.store.settle_ref(self.manifest.name, names, templates_of(self.manifest.class_prompts))

    @property
    def _done(self) -> list[StageResult]:
        """What ran so far, in its order."""
        return list(self._results.values())

    def _run(self, stage: Stage, rows: Sequence[Row], part: str | None = None) -> StageResult:
        """Run a stage once a flow and note its key under the manifest's name; `part`: the teacher, or the table."""
        name = stage.kind if part is None else f"{stage.kind} {part}"
        if name not in self._results:
            report = lambda done, total, written: self.progress(name, done, total, written)  # noqa: E731
            begin = lambda plan: self.begin(name, plan)  # noqa: E731
            self._results[name] = run_stage(self.store, stage, rows, self.executor, self.row_seconds, report, begin)
            self.store.write_ref(self.manifest.name, stage.kind, self._results[name].key, part)
        return self._results[name]

    def _teacher_stages(self, spec: TeacherSpec) -> tuple[ImageTargets, TextTargets | None]:
        """Loads the teacher: its recipe holds a digest of its weights."""
        teacher = teacher_of(spec)
        recipe = canonical_json(teacher.recipe())
        features = self.manifest.features
        images = ImageTargets(spec, self._views, features.draws, features.seed, teacher.shape, recipe)
        if not hasattr(teacher, "embed_texts"):
            return images, None
        reader = cast(TextTeacher, teacher)
        width = reader.embed_texts(["a shape"]).shape[1]
        return images, TextTargets(spec, width, canonical_json(reader.text_recipe()))

    def _prompts(self) -> list[str]:
        """Class prompts of every category, then every shape's captions, in row order."""
        registry = self.store.registry
        mine = sorted(registry.numbers(self.manifest.name).values())
        categories = sorted({registry.categories[number] for number in registry.category[mine]})
        templates = templates_of(self.manifest.class_prompts)
        prompts = [prompt for name in categories for prompt in class_prompts(name, templates)]
        stages = {table.name: self._tables.stage(table) for table in self._tables.all}
        captions = self.store.captions_of({name: digest_of(stage.recipe) for name, stage in stages.items()})
        return prompts + [caption for row in mine for caption in captions[row] if caption]


def load_models(manifest: Manifest, teachers: bool) -> None:
    """Load the models of captions and, if asked for, every teacher: what is wrong with one shows before the work."""
    tables = manifest.captions or ()
    for spec in manifest.features.teachers:
        if teachers or spec.name in map(teacher_named, tables):
            teacher_of(spec)
    for table in tables:
        if isinstance(table, CaptionerTable):
            captioner_of(table)


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

"""One manifest into one store: registers the shapes, then brings the stages up to date in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import NotFetched, UserError
from recon.pipeline.caption.templates import templates_of
from recon.pipeline.execution.engine import ROW_SECONDS, StageResult, run_stage
from recon.pipeline.execution.executor import Executor, InProcess
from recon.pipeline.execution.planning import StagePlan, plan_stage
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.listing import register
from recon.pipeline.flow.manifest import Manifest, as_registered, fingerprinted, list_shapes, settled
from recon.pipeline.flow.nodes import LISTING, Node, Plan
from recon.pipeline.flow.splits import splits_by_mesh
from recon.pipeline.keeping.copies import Copies, copies_of
from recon.pipeline.keeping.lacking import Lacking, lacking_of
from recon.pipeline.keeping.mend import mend
from recon.pipeline.keeping.verify import verify
from recon.pipeline.sources.source import Shape
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.rows import mesh_rows, prompt_rows, shape_rows, with_upstream
from recon.pipeline.store.columns import read_column
from recon.pipeline.store.feature_store import FeatureStore, WritableStore
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.teachers.loaded import teacher_of

T = TypeVar("T")

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
    opened: FeatureStore
    """One opened for reading will do to plan, and to find that nothing is left to do."""
    executor: Executor = field(default_factory=InProcess)
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)
    row_seconds: float = ROW_SECONDS
    progress: Progress = lambda stage, done, total, written: None
    begin: Callable[[str, StagePlan], None] = lambda stage, plan: None

    def __post_init__(self) -> None:
        self.manifest, _ = settled(self.manifest, self.opened.path)
        self._registered = False
        self._rows: dict[str, Sequence[Row]] = {}
        self._results: dict[str, StageResult] = {}
        self._waiting: dict[str, NotFetched] = {}
        self.mended: list[str] = []
        self.notes: list[str] = []

    @cached_property
    def store(self) -> WritableStore:
        """What the stages write through."""
        opened = self.opened
        return opened if isinstance(opened, WritableStore) else WritableStore(opened.path, opened.group)

    # ---- the commands

    def ingest(self) -> list[StageResult]:
        """Register the shapes and read every mesh once. UserError for a file of captions that cannot be read."""
        return self._run_stages("meshes")

    def sample(self) -> list[StageResult]:
        """Points: of the surface, or the source's own."""
        return self._run_stages("meshes", "points")

    def render(self) -> list[StageResult]:
        """Views. UserError for a data set without meshes."""
        if not self.manifest.source.has_meshes:
            name = self.manifest.name
            raise UserError(f"manifest {name!r} has ready-made clouds and no meshes: there is nothing to render")
        return self._run_stages("meshes", "views")

    def caption(self) -> list[StageResult]:
        """Captions a shape, by every table of the manifest."""
        return self._run_stages("meshes", "captions")

    def features(self) -> list[StageResult]:
        """Every teacher's features of views, where there are such, and of words."""
        return self._run_stages("meshes", "targets", "captions", "text")

    def all(self) -> list[StageResult]:
        """Every stage."""
        return self._run_stages(*{node.kind for node in self.plan.nodes})

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
        """The stages that recipes of others name."""
        return self.plan.upstream()

    def stages(self) -> Iterator[StageRows]:
        """Every stage with what can be said of its rows now; writes nothing."""
        handed: dict[str, list[Row]] = {}
        waiting = False  # whether captions are still to be written
        for node in self.plan.nodes:
            stage = self.plan.stage(node)
            if stage is None:
                continue
            if node.after is None:
                yield self._prompts_there(node, stage, waiting)
                continue
            rows = node.rows(self._listed_rows(node) if node.after == LISTING else handed[node.after])
            entry = StageRows(node.name, stage, rows, len(self.shapes) - len(rows))
            yield entry
            is_read = any(node.name in other.needs for other in self.plan.nodes)
            done = self._up_to_date(stage, rows) if is_read else []
            waiting |= node.kind == "captions" and (bool(entry.unknown) or len(done) < len(rows))
            handed[node.name] = self._handed_on(node, stage, done)

    def copies(self) -> Copies | None:
        """Which of the listed shapes share a mesh; None where no mesh has been read."""
        return self._of_meshes(copies_of)

    def lacking(self) -> Lacking | None:
        """Which of the listed shapes are not quite what their files say; None where no mesh has been read."""
        return self._of_meshes(lacking_of)

    # ---- their parts

    def _of_meshes(self, found: Callable[[FeatureStore, str, Sequence[int]], T]) -> T | None:
        """What is found in the meshes of the listed shapes; None where none has been read."""
        key = digest_of(Meshes(self.plan.origin).recipe)
        if not (self.store.has_registry and (self.store.path / "meshes" / key / "zarr.json").is_file()):
            return None
        return found(self.store, key, self.store.listed_rows(self.manifest.name).tolist())

    @cached_property
    def plan(self) -> Plan:
        """The manifest's stages."""
        return Plan(self.manifest, self.root, lambda: self._all_shapes)

    @cached_property
    def shapes(self) -> list[Shape]:
        """The manifest's shapes that this flow is about."""
        part, parts = self.shard
        shapes = self._all_shapes[: self.limit][part::parts]
        known: dict[str, str] = {}
        if self.store.has_registry:
            registry = self.store.registry
            mine = registry.numbers(self.manifest.name).values()
            known = {registry.source[row]: registry.fingerprint[row] for row in mine}
        return fingerprinted(self.manifest, self.root, shapes, known)

    @cached_property
    def _all_shapes(self) -> list[Shape]:
        shapes = list_shapes(self.manifest, self.root)
        return self._split(as_registered(shapes, self.store.registry)) if self.store.has_registry else shapes

    def _run_stages(self, *kinds: str) -> list[StageResult]:
        """Run the stages of these kinds and all that they build on; what ran so far, in its order."""
        if not self._registered:
            self.notes = [note for table in self.plan.tables for note in table.read(self.plan.subject)]
            self.notes += register(self.store, self.manifest.name, self.shapes, whole=self._is_whole)
            self._registered = True
        captions = False
        for node in self.plan.with_needs({node.name for node in self.plan.nodes if node.kind in kinds}):
            if node.kind == "text" and captions:
                self._settle_ref()
            if node.needs & set(self._waiting):
                continue
            try:
                self._run(node)
            except NotFetched as error:  # what needs no weights is done first
                self._waiting[node.name] = error
                continue
            captions |= node.kind == "captions"
        if captions or "captions" in kinds:
            self._settle_ref()
        if self._waiting:
            raise next(iter(self._waiting.values()))
        return list(self._results.values())

    @property
    def results(self) -> dict[str, StageResult]:
        """What ran so far, in its order, by what people call the stage, such as "targets demo"."""
        return dict(self._results)

    @property
    def _is_whole(self) -> bool:
        """Whether the flow is about all that the manifest lists."""
        return self.limit is None and self.shard == (0, 1)

    def _run(self, node: Node) -> None:
        """Run a stage once a flow and note its key under the manifest's name."""
        stage, name = self.plan.stage(node), node.name
        if name in self._results or stage is None:
            return
        rows = self._add_prompts(stage) if node.after is None else node.rows(self._handed(node))
        report = lambda done, total, written: self.progress(name, done, total, written)  # noqa: E731
        begin = lambda plan: self.begin(name, plan)  # noqa: E731
        result = run_stage(self.store, stage, rows, self.executor, self.row_seconds, report, begin)
        self._rows[name], self._results[name] = rows, result
        if node.kind == "meshes":
            self._split_again()
        self.store.write_ref(self.manifest.name, stage.kind, result.key, node.part)

    def _split_again(self) -> None:
        """Note the splits that have changed now that more meshes are known."""
        splits = {shape.uid: shape.split for shape in self._split(self._all_shapes)}
        shapes = [replace(shape, split=splits[shape.uid]) for shape in self.shapes]
        if shapes != self.shapes:
            self.shapes = shapes
            register(self.store, self.manifest.name, shapes, whole=False)

    def _split(self, shapes: list[Shape]) -> list[Shape]:
        """Shapes whose split goes by their mesh, where the manifest asks for that and the mesh has been read."""
        key = digest_of(Meshes(self.plan.origin).recipe)
        if self.manifest.split_by != "mesh" or not (self.store.path / "meshes" / key / "zarr.json").is_file():
            return shapes
        registry = self.store.registry
        digests = read_column(self.store.kind_group("meshes", key), "digest", len(registry))
        found = {uid: digests[row] for uid, row in registry.numbers(self.manifest.name).items()}
        splits = splits_by_mesh(shapes, found, self.manifest.source, self.manifest.test_fraction)
        return [replace(shape, split=splits[shape.uid]) for shape in shapes]

    def _handed(self, node: Node) -> list[Row]:
        """What a node is handed by the one before, which has run."""
        if node.after == LISTING:
            return self._listed_rows(node)
        before = next(other for other in self.plan.nodes if other.name == node.after)
        stage = self.plan.stage(before)
        assert stage is not None
        return self._handed_on(before, stage, self._rows[before.name])

    def _handed_on(self, node: Node, stage: Stage, rows: Sequence[Row]) -> list[Row]:
        """Rows of a stage that reads what this one made of `rows`: after the meshes, what counts is their digests."""
        if not rows:
            return []
        if node.kind == "meshes":
            return mesh_rows(self.store, digest_of(stage.recipe), rows)
        return with_upstream(self.store, digest_of(stage.recipe), rows)

    def _listed_rows(self, node: Node) -> list[Row]:
        """Those of the shapes that have a row, for a node that works on the listing itself."""
        if not self.store.has_registry:
            return []
        known = self.store.registry.numbers(self.manifest.name)
        shapes = [shape for shape in self.shapes if shape.uid in known]
        return shape_rows(self.store.registry, shapes, meshes=node.kind == "meshes") if shapes else []

    def _up_to_date(self, stage: Stage, rows: Sequence[Row]) -> list[Row]:
        """The rows that the stage has nothing more to do for."""
        todo = {row.index for task in plan_stage(self.store, stage, rows).tasks for row in task.rows}
        return [row for row in rows if row.index not in todo] if todo else list(rows)

    def _add_prompts(self, stage: Stage) -> list[Row]:
        """All prompts of a text stage's key, after what the shapes have come to need."""
        key = digest_of(stage.recipe)
        self.store.require_key(stage.kind, key, stage.recipe, stage.columns, stage.attributes)
        self.store.append_prompts(key, self.prompts())
        return prompt_rows(self.store.prompts(key))

    def _prompts_there(self, node: Node, stage: Stage, waiting: bool) -> StageRows:
        """A text stage with the prompts it has; how many it lacks is unknown while captions are still to come."""
        key = digest_of(stage.recipe)
        prompts = self.store.prompts(key) if (self.store.path / "text" / key).is_dir() else []
        to_come = None if waiting or not self.store.has_registry else len(set(self.prompts()) - set(prompts))
        return StageRows(node.name, stage, prompt_rows(prompts), to_come)

    def _settle_ref(self) -> None:
        """Let the ref say what class prompts and which captions, in which order, the manifest asks for."""
        names = [table.name for table in self.plan.tables]
        self.store.settle_ref(self.manifest.name, names, templates_of(self.manifest.class_prompts))

    def prompts(self) -> list[str]:
        """Class prompts of every category, then every shape's captions, in row order."""
        registry = self.store.registry
        mine = self.store.listed_rows(self.manifest.name).tolist()
        categories = sorted({registry.categories[number] for number in registry.category[mine]})
        templates = templates_of(self.manifest.class_prompts)
        prompts = [prompt for name in categories for prompt in class_prompts(name, templates)]
        stages = {node.part: self.plan.stage(node) for node in self.plan.nodes if node.kind == "captions"}
        captions = self.store.captions_of({str(name): digest_of(s.recipe) for name, s in stages.items() if s})
        return prompts + [caption for row in mine for caption in captions[row] if caption]


def load_models(manifest: Manifest, teachers: bool) -> list[str]:
    """Load the models of captions and, if asked for, every teacher: what is wrong with one shows before the work.

    What is said of those whose weights are not here and cannot be fetched now: what needs none can go on without.
    """
    tables = manifest.captions or ()
    looked_at = {table.teacher_named for table in tables}
    wanted: list[Callable[[], object]] = []
    for spec in manifest.features.teachers:
        if teachers or spec.name in looked_at:
            wanted.append(partial(teacher_of, spec))
    wanted += [table.load for table in tables]
    absent = []
    for load in wanted:
        try:
            load()
        except NotFetched as error:
            absent.append(str(error))
    return list(dict.fromkeys(absent))


def summary(results: Mapping[str, StageResult]) -> str:
    """The results by stage as JSON, for programs."""
    lines: list[dict[str, Any]] = [
        {
            "stage": r.kind,
            "name": name,
            "key": r.key,
            "rows": r.total,
            "finished": r.total - len(r.failed),
            "computed": r.computed,
            "failed": len(r.failed),
            "seconds": round(r.seconds, 3),
        }
        for name, r in results.items()
    ]
    return json.dumps(lines)

"""One manifest into one store: registers the shapes, then brings the stages up to date in their order."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import NotFetched, UserError
from recon.pipeline.caption.templates import templates_of
from recon.pipeline.execution.engine import (
    ROW_SECONDS,
    StageResult,
    Work,
    ask,
    attributes_of,
    run_side_by_side,
    run_stage,
)
from recon.pipeline.execution.executor import Executor, InProcess
from recon.pipeline.execution.planning import StagePlan
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.listing import register
from recon.pipeline.flow.manifest import Manifest, as_registered, fingerprinted, list_shapes, settled
from recon.pipeline.flow.nodes import LISTING, Node, Plan
from recon.pipeline.flow.rows import StageRows, also_finished, handed_on, listed_rows, prompts_of, up_to_date
from recon.pipeline.flow.splits import split_again
from recon.pipeline.keeping.copies import Copies, copies_of
from recon.pipeline.keeping.cut import describe as describe_cut
from recon.pipeline.keeping.lacking import Lacking, lacking_of
from recon.pipeline.keeping.mend import mend
from recon.pipeline.keeping.standing import standing_of
from recon.pipeline.keeping.verify import verify
from recon.pipeline.sources.source import Shape
from recon.pipeline.stages.classes import ClassTexts
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.rows import prompt_rows
from recon.pipeline.store.feature_store import FeatureStore, WritableStore
from recon.pipeline.teachers.loaded import count_cut

T = TypeVar("T")

Progress = Callable[[str, int, int, int], None]


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
        self._side_by_side: dict[str, StageResult] = {}
        self._keeping: set[str] = set()
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

    def lift(self) -> list[StageResult]:
        """Patch tokens lifted to points. UserError for a manifest that names no teacher to lift."""
        if self.manifest.features.lift is None:
            name = self.manifest.name
            raise UserError(
                f'manifest {name!r} lifts nothing: add a table [features.lift] with teachers = ["NAME"], of teachers '
                'with tap = "patch" or "dense"'
            )
        return self._run_stages("meshes", "lifted")

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
            rows = node.rows(self._listed(node) if node.after == LISTING else handed[node.after])
            rows = also_finished(self.store, self.plan, node, rows)
            entry = StageRows(node.name, stage, rows, len(self.shapes) - len(rows))
            yield entry
            is_read = any(node.name in other.needs for other in self.plan.nodes)
            done = up_to_date(self.store, stage, rows) if is_read else []
            waiting |= node.kind == "captions" and (bool(entry.unknown) or len(done) < len(rows))
            handed[node.name] = handed_on(self.store, node, stage, done)

    def copies(self) -> Copies | None:
        """Which of the listed shapes share a mesh; None where no mesh has been read."""
        return self._of_meshes(copies_of)

    def standing(self) -> list[str]:
        """What is to be said of the axes of points that were made just now; see `keeping.standing`."""
        made = self._results.get("points")
        return standing_of(self.store, made.key, self.manifest.name) if made and made.computed else []

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
        return Plan(self.manifest, self.root, lambda: self._all_shapes, partial(ask, self.executor), self._kept)

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
        nodes = self.plan.with_needs({node.name for node in self.plan.nodes if node.kind in kinds})
        self._keeping = {node.name for node in [node for node in nodes if self.plan.reads_meshes(node)][:-1]}
        try:
            taking = [node for node in nodes if node.takes and node.name not in self._results]
            if len(taking) > 1:
                self._take_together(taking)
            for number, node in enumerate(nodes):
                if node.kind == "text" and captions:
                    self._settle_ref()
                if node.needs & set(self._waiting):
                    continue
                try:
                    if self.executor.gpus and not self._side_by_side:
                        self._run_side_by_side([node for node in nodes[number:] if node.name not in self._results])
                    self._run(node)
                except NotFetched as error:  # what needs no weights is done first
                    self._waiting[node.name] = error
                    continue
                captions |= node.kind == "captions"
        finally:
            shutil.rmtree(self._kept, ignore_errors=True)
            with suppress(OSError):  # where workers keep notes it stays
                self._kept.parent.rmdir()
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

    @property
    def _kept(self) -> Path:
        """Where meshes are kept from one stage to the next."""
        return self.store.path / "running" / "meshes"

    def _run(self, node: Node) -> None:
        """Run a stage once a flow and note its key under the manifest's name."""
        stage, name = self.plan.stage(node), node.name
        if name in self._results or stage is None:
            return
        rows = self._add_prompts(stage) if node.after is None else node.rows(self._handed(node))
        rows = also_finished(self.store, self.plan, node, rows)
        result = run_stage(self.store, stage, rows, self.executor, self.row_seconds, *self._told(name))
        if before := self._side_by_side.get(name):
            seconds = before.seconds + result.seconds
            result = replace(result, computed=before.computed + result.computed, seconds=seconds)
        self._rows[name], self._results[name] = rows, result
        if node.kind == "meshes":
            self._split_again()
        self.store.write_ref(self.manifest.name, stage.kind, result.key, node.part)
        if node.kind == "text" and not node.classes:
            self._count_cut(str(node.part), result.key)

    def _count_cut(self, name: str, key: str) -> None:
        """Note how many of the manifest's prompts a teacher reads the beginnings of alone, where that is not noted."""
        spec = next(spec for spec in self.manifest.features.teachers if spec.name == name)
        if not self.plan.facts(spec).tells_cut:
            return
        prompts = list(dict.fromkeys(prompts_of(self.store, self.plan)))
        of = digest_of([key, prompts])  # other prompts may all have been embedded for another manifest
        if self.store.ref(self.manifest.name).cut_of.get(name) != of:
            count = ask(self.executor, count_cut, (spec, prompts))
            self.store.note_cut(self.manifest.name, name, count, len(prompts), of)

    def cut(self) -> list[str]:
        """A line a teacher that reads the beginnings alone of some of the manifest's prompts."""
        there = (self.store.path / "refs" / f"{self.manifest.name}.json").is_file()
        return describe_cut(self.store.ref(self.manifest.name).cut) if there else []

    def _take_together(self, nodes: Sequence[Node]) -> None:
        """Run the stages that take over what lies ready in the shapes' files, so that each is read once for all."""
        works: dict[str, tuple[Node, Work]] = {}
        for node in nodes:
            stage = self.plan.stage(node)
            assert stage is not None
            # Another of the same key finds it done.
            works.setdefault(digest_of(stage.recipe), (node, self._work(node, stage)))
        joined = [work for _, work in works.values()]
        results = run_side_by_side(self.store, joined, self.executor, self.row_seconds, join=True)
        for (node, work), result in zip(works.values(), results, strict=True):
            self._rows[node.name], self._results[node.name] = work.rows, result
            self.store.write_ref(self.manifest.name, result.kind, result.key, node.part)

    def _run_side_by_side(self, nodes: Sequence[Node]) -> None:
        """Where the meshes are read: render, and let the GPUs look at each shard of pictures as it is finished.

        nodes: what is left. Those that wait for nothing else go along. What is left undone is done node by node.
        """
        views = next((node for node in nodes if node.kind == "views"), None)
        behind = [node for node in nodes if views and node.after == views.name]
        if not views or views.after not in self._results or not behind:
            return
        free = [node for node in nodes if node.after == LISTING or node.after in self._results]
        works: dict[str, Work] = {}
        for node in (views, *behind, *free):
            try:
                stage = self.plan.stage(node)
            except NotFetched:  # told when its turn comes
                continue
            if stage is None or any(digest_of(stage.recipe) == digest_of(w.stage.recipe) for w in works.values()):
                continue
            if node in behind:
                works[node.name] = Work(stage, (), works[views.name], node.rows, *self._told(node.name))
            else:
                works[node.name] = self._work(node, stage)
        results = run_side_by_side(self.store, list(works.values()), self.executor, self.row_seconds)
        self._side_by_side = dict(zip(works, results, strict=True))

    def _work(self, node: Node, stage: Stage) -> Work:
        """Of a node whose rows are known now."""
        return Work(stage, node.rows(self._handed(node)), None, list, *self._told(node.name))

    def _told(self, name: str) -> tuple[Callable[[int, int, int], None], Callable[[StagePlan], None]]:
        """What is told of a stage's progress, and of its plan before it begins.

        A stage that others read the same meshes after finds a folder to keep them in.
        """

        def begin(plan: StagePlan) -> None:
            self.begin(name, plan)
            if name in self._keeping:
                with suppress(OSError):  # then each stage reads them, or tells what is wrong with the disk
                    self._kept.mkdir(parents=True, exist_ok=True)

        return partial(self.progress, name), begin

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
        return split_again(self.store, key, self.manifest, shapes)

    def _listed(self, node: Node) -> list[Row]:
        return listed_rows(self.store, self.manifest.name, self.shapes, node)

    def _handed(self, node: Node) -> list[Row]:
        """What a node is handed by the one before, which has run."""
        if node.after == LISTING:
            return self._listed(node)
        before = next(other for other in self.plan.nodes if other.name == node.after)
        stage = self.plan.stage(before)
        assert stage is not None
        return handed_on(self.store, before, stage, self._rows[before.name])

    def _add_prompts(self, stage: Stage) -> list[Row]:
        """All prompts of a text stage's key, after what the shapes have come to need."""
        key = digest_of(stage.recipe)
        self.store.require_key(stage.kind, key, stage.recipe, stage.columns, attributes_of(stage, self.executor))
        self.store.append_prompts(key, self._prompts_of(stage))
        return prompt_rows(self.store.prompts(key))

    def _prompts_there(self, node: Node, stage: Stage, waiting: bool) -> StageRows:
        """A text stage with the prompts it has; how many it lacks is unknown while captions are still to come."""
        key = digest_of(stage.recipe)
        prompts = self.store.prompts(key) if (self.store.path / "text" / key).is_dir() else []
        to_come = None if waiting or not self.store.has_registry else len(set(self._prompts_of(stage)) - set(prompts))
        return StageRows(node.name, stage, prompt_rows(prompts), to_come)

    def _settle_ref(self) -> None:
        """Let the ref say what class prompts and which captions, in which order, the manifest asks for."""
        names = [table.name for table in self.plan.tables]
        self.store.settle_ref(self.manifest.name, names, templates_of(self.manifest.class_prompts))

    def _prompts_of(self, stage: Stage) -> list[str]:
        return list(stage.names) if isinstance(stage, ClassTexts) else prompts_of(self.store, self.plan)

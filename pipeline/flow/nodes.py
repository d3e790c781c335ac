"""The stages of a manifest, in one list: what each waits for, how it is made, which rows it gets.

`Flow` walks the list to run it, and to report on it. A stage more is an entry more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from recon.pipeline.caption.facts import FactsTable
from recon.pipeline.caption.kinds import AnyCaptions
from recon.pipeline.caption.listing import ListingTable
from recon.pipeline.caption.table import Subject
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.manifest import Manifest, origin_of
from recon.pipeline.sources.source import Shape
from recon.pipeline.stages.classes import ClassTexts
from recon.pipeline.stages.imported import ImportedTargets
from recon.pipeline.stages.lift import LiftedTokens
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.points import PointClouds
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.teachers import TeacherSpec
from recon.pipeline.teachers.loaded import Facts, facts_of

LISTING = ""
"""What a node is `after` that works on the shapes as they are listed."""


@dataclass(frozen=True)
class Node:
    """One stage of a flow."""

    kind: str
    make: Callable[[], Stage | None]
    """Makes the stage, which loads a teacher where it needs one; None where there is nothing to do."""
    after: str | None = LISTING
    """The node whose finished rows it works on; None: on prompts."""
    part: str | None = None
    """The teacher, or the table of captions, of kinds that a ref has several keys of."""
    also: tuple[str, ...] = ()
    """Other nodes that have to be done before; where it works on rows, it gets those that they finished too."""
    rows: Callable[[Sequence[Row]], list[Row]] = list
    """Its own rows from those that it is handed."""
    classes: bool = False
    """Of a node on prompts: whether they are the categories' names, whose features came with the data set."""
    takes: bool = False
    """Whether it takes over what lies ready in the shapes' own files, row by row."""

    @property
    def name(self) -> str:
        """What people call it, such as "points" and "targets demo"."""
        return self.kind if self.part is None else f"{self.kind} {self.part}"

    @property
    def needs(self) -> set[str]:
        """Names of the nodes it waits for."""
        return {*self.also, *([self.after] if self.after else [])}


class Plan:
    """The nodes of a manifest under a root. UserError for a table that needs what the manifest does not have.

    kept: the folder for meshes that several of them work on, see `Origin`.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: Path | None,
        shapes: Callable[[], Sequence[Shape]],
        ask: Callable[[Callable[[Any], Any], Any], Any],
        kept: Path,
    ) -> None:
        """ask: calls a function that loads a model, here or in a worker; see `engine.ask`."""
        self.manifest, self.shapes, self.ask = manifest, shapes, ask
        self.origin = replace(origin_of(manifest, root), kept=kept)
        self.views = RenderedViews(self.origin, manifest.render)
        self._stages: dict[str, Stage | None] = {}
        self._known: dict[TeacherSpec, Facts] = {}

    @cached_property
    def subject(self) -> Subject:
        """What tables of captions can build on."""
        specs = {spec.name: spec for spec in self.manifest.features.teachers}
        stages = lambda name: (self._images(specs[name]), self._words(specs[name]))  # noqa: E731
        return Subject(self.origin, self.views, self.shapes, stages, self.ask)

    @cached_property
    def tables(self) -> tuple[AnyCaptions, ...]:
        """In the manifest's order; where it names none, what shapes know of themselves and came with the listing."""
        source = self.manifest.source
        if self.manifest.captions is None:
            facts = (FactsTable(kind="facts"),) if source.has_meshes else ()
            listed = any(shape.captions for shape in self.shapes())
            return (*facts, *((ListingTable(kind="listing"),) if listed else ()))
        for table in self.manifest.captions:
            table.check(source)
        return self.manifest.captions

    @cached_property
    def nodes(self) -> list[Node]:
        """In an order in which each comes after what it waits for."""
        source, features = self.manifest.source, self.manifest.features
        origin, views = self.origin, self.views
        points = Node("points", lambda: PointClouds(origin, self.manifest.sample), takes=source.has_clouds)
        found = [points] if source.has_clouds else []
        if source.has_meshes:
            found.append(Node("meshes", lambda: Meshes(origin)))
            if not source.has_clouds:
                found.append(Node("points", points.make, "meshes"))
            found.append(Node("views", lambda: views, "meshes"))
        for stored in features.stored:
            found.append(Node("targets", partial(self._imported, stored.name), part=stored.name, takes=True))
        if source.has_meshes:
            found += [Node("targets", partial(self._images, t), "views", t.name) for t in features.teachers]
        if features.lift:
            found += [
                Node("lifted", partial(self._lifted, name), f"targets {name}", name, also=("points",))
                for name in features.lift.teachers
            ]
        captions = [
            Node(
                "captions",
                partial(self._captions, table),
                table.after,
                table.name,
                rows=partial(self._said, table),
                takes=table.in_files,
            )
            for table in self.tables
        ]
        written = tuple(node.name for node in captions)
        return [
            *found,
            *captions,
            *(Node("text", partial(self._words, t), None, t.name, also=written) for t in features.teachers),
            *(Node("text", partial(ClassTexts.of, origin, c), None, c.name, classes=True) for c in features.classes),
        ]

    def stage(self, node: Node) -> Stage | None:
        """Made once: recipes of teachers and captioners need their weights."""
        if node.name not in self._stages:
            self._stages[node.name] = node.make()
        return self._stages[node.name]

    def with_needs(self, names: set[str]) -> list[Node]:
        """The named nodes and all that they wait for, in order."""
        wanted = set(names)
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted |= node.needs
        return [node for node in self.nodes if node.name in wanted]

    def reads_meshes(self, node: Node) -> bool:
        """Whether a node works on whole meshes, each of which is then worth keeping for the next that does."""
        of_meshes = node.kind in ("meshes", "views") or (node.kind == "points" and node.after == "meshes")
        return of_meshes and self.manifest.source.has_meshes

    def upstream(self) -> tuple[Stage, ...]:
        """The stages that recipes of others name."""
        if not self.manifest.source.has_meshes:
            return ()
        looked_at = {table.teacher_named for table in self.tables}
        ranking = [spec for spec in self.manifest.features.teachers if spec.name in looked_at]
        lifting = self.manifest.features.lift.teachers if self.manifest.features.lift else ()
        lifted = (stage for name in lifting for stage in (self._lifted(name).points, self._lifted(name).images))
        stages = (stage for spec in ranking for stage in (self._images(spec), self._words(spec)) if stage is not None)
        return (Meshes(self.origin), self.views, *stages, *lifted)

    def _images(self, spec: TeacherSpec) -> ImageTargets:
        facts, features = self.facts(spec), self.manifest.features
        return ImageTargets(spec, self.views, features.draws, features.seed, facts.shape, facts.recipe)

    def _lifted(self, name: str) -> LiftedTokens:
        spec = next(spec for spec in self.manifest.features.teachers if spec.name == name)
        assert self.manifest.features.lift is not None
        points = PointClouds(self.origin, self.manifest.sample)
        return LiftedTokens(points, self._images(spec), self.manifest.features.lift.num_points)

    def _words(self, spec: TeacherSpec) -> TextTargets | None:
        """None for a teacher without words."""
        facts = self.facts(spec)
        return TextTargets(spec, facts.width, facts.text_recipe) if facts.text_recipe else None

    def facts(self, spec: TeacherSpec) -> Facts:
        """What stages are made of; the teacher is asked once."""
        if spec not in self._known:
            self._known[spec] = self.ask(facts_of, spec)
        return self._known[spec]

    def _imported(self, name: str) -> ImportedTargets:
        """UserError when the first file that has any has features of another width: before every row is set aside."""
        stored = next(stored for stored in self.manifest.features.stored if stored.name == name)
        stage = ImportedTargets(self.origin, stored)
        stage.check_width(shape.source for shape in self.shapes() if shape.fingerprint != "missing")
        return stage

    def _captions(self, table: AnyCaptions) -> Stage:
        return table.stage(self.subject)

    def _said(self, table: AnyCaptions, rows: Sequence[Row]) -> list[Row]:
        return table.rows(self.subject, rows)

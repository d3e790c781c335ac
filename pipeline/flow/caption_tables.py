"""A manifest's `[[captions]]` tables over its shapes: which there are, their stages, what goes into these."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.words import single_spaced, spoken
from recon.pipeline.caption.files import read_captions
from recon.pipeline.caption.tables import (
    AnyCaptions,
    AttributesTable,
    CaptionerTable,
    FactsTable,
    FileTable,
    ListingTable,
    StoredTable,
    SynonymsTable,
    TextTable,
    teacher_named,
)
from recon.pipeline.execution.stage import Row, Stage
from recon.pipeline.flow.manifest import Manifest, root_of
from recon.pipeline.sources.openshape import OpenShapeSource
from recon.pipeline.sources.source import Shape, other_names
from recon.pipeline.stages.captions import (
    AttributeCaptions,
    FactCaptions,
    ModelCaptions,
    TextCaptions,
    attribute_rows,
    captioner_of,
    text_rows,
)
from recon.pipeline.stages.imported import ImportedCaptions
from recon.pipeline.stages.origin import Origin
from recon.pipeline.stages.targets import ImageTargets
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store.prompts import fill
from recon.pipeline.store.spaces import one_space
from recon.pipeline.teachers import TeacherSpec

TeacherStages = Callable[[TeacherSpec], tuple[ImageTargets, TextTargets | None]]


@dataclass
class CaptionTables:
    """UserError for a table that needs what the manifest does not have."""

    manifest: Manifest
    root: Path | None
    origin: Origin
    views: RenderedViews
    shapes: Sequence[Shape]
    """All that the manifest lists: a file of captions is about them whatever part of them a run is about."""
    teacher_stages: TeacherStages
    _stages: dict[str, Stage] = field(default_factory=dict)

    @cached_property
    def all(self) -> tuple[AnyCaptions, ...]:
        """In the manifest's order; where it names none, what shapes know of themselves and came with the listing."""
        has_meshes = self.manifest.source.has_meshes
        if self.manifest.captions is None:
            facts = (FactsTable(kind="facts"),) if has_meshes else ()
            listed = any(shape.captions for shape in self.shapes)
            return (*facts, *((ListingTable(kind="listing"),) if listed else ()))
        for table in self.manifest.captions:
            if isinstance(table, StoredTable):
                if not isinstance(self.manifest.source, OpenShapeSource):
                    raise UserError(
                        f"captions {table.name!r}: files of layout {self.manifest.source.layout!r} hold no texts; "
                        "remove the table"
                    )
            elif not has_meshes and not isinstance(table, TextTable):
                raise UserError(
                    f"captions {table.name!r}: kind {table.kind!r} needs meshes, and manifest {self.manifest.name!r} "
                    "has ready-made clouds; remove the table"
                )
        return self.manifest.captions

    @property
    def plain(self) -> list[AnyCaptions]:
        """Those that need no model."""
        return [table for table in self.all if not isinstance(table, AttributesTable | CaptionerTable)]

    @property
    def modelled(self) -> list[AnyCaptions]:
        """Those that look at views."""
        return [table for table in self.all if isinstance(table, AttributesTable | CaptionerTable)]

    def teacher(self, table: AnyCaptions) -> TeacherSpec | None:
        """The teacher whose features of the views the table needs."""
        return next((spec for spec in self.manifest.features.teachers if spec.name == teacher_named(table)), None)

    def stage(self, table: AnyCaptions) -> Stage:
        """Made once: a captioner's recipe needs its weights."""
        if table.name not in self._stages:
            self._stages[table.name] = self._stage(table)
        return self._stages[table.name]

    def rows(self, table: AnyCaptions, rows: Sequence[Row]) -> list[Row]:
        """Rows of the stage from those of what it builds on."""
        if isinstance(table, TextTable):
            return text_rows(rows, self._texts[table.name])
        if isinstance(table, AttributesTable):
            return attribute_rows(rows, {shape.uid: shape.category for shape in self.shapes})
        return list(rows)

    def read(self) -> list[str]:
        """Read the lists there are; what is to be said of them. UserError for one that cannot be read."""
        return list(self._notes) if self._texts else []

    def _stage(self, table: AnyCaptions) -> Stage:
        if isinstance(table, FactsTable):
            return FactCaptions(self.origin)
        if isinstance(table, StoredTable):
            return ImportedCaptions(self.origin, table.keep)
        if isinstance(table, TextTable):
            return TextCaptions(table.name, table.kind, table.keep)
        spec = self.teacher(table)
        if isinstance(table, AttributesTable):
            assert spec is not None
            return AttributeCaptions(
                *self._one_space(table, spec), tuple(table.words.values()), table.margin, table.template
            )
        if table.views and max(table.views) >= self.views.num_views:
            raise UserError(
                f"captions {table.name!r}: there is no view {max(table.views)}: preset {self.views.config.preset!r} "
                f"has 0 to {self.views.num_views - 1}"
            )
        recipe = canonical_json(captioner_of(table).recipe())
        return ModelCaptions(table, self.views, recipe, *(self._one_space(table, spec) if spec else ()))

    def _one_space(self, table: AnyCaptions, spec: TeacherSpec) -> tuple[ImageTargets, TextTargets]:
        images, text = self.teacher_stages(spec)
        width = images.shape[-1]
        seeing = json.loads(images.teacher_recipe)
        if text is None or not one_space(seeing, text.recipe["teacher"], width, text.dim):
            raise UserError(
                f"captions {table.name!r}: teacher {spec.name!r} has no pictures and words in one space; name an "
                'open_clip teacher with tap = "pooled"'
            )
        return images, text

    @cached_property
    def _texts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Table -> uid -> texts; fills `_notes`."""
        self._notes: list[str] = []
        found = {}
        for table in self.all:
            if isinstance(table, TextTable):
                texts = found[table.name] = self._texts_of(table)
                more = sum(len(lines) > table.keep for lines in texts.values())
                if more:
                    self._notes.append(
                        f"captions {table.name!r}: {more} shapes have more than keep = {table.keep}: the first count"
                    )
        return found

    def _texts_of(self, table: TextTable) -> dict[str, tuple[str, ...]]:
        if isinstance(table, FileTable):
            path = root_of(self.manifest, self.root) / table.path
            read = read_captions(path, {shape.uid for shape in self.shapes}, other_names(self.shapes))
            self._notes += read.notes(path)
            return read.captions
        if isinstance(table, SynonymsTable):
            return self._synonyms(table)
        lines = {shape.uid: dict.fromkeys(map(single_spaced, shape.captions)) for shape in self.shapes}
        return {uid: tuple(filter(None, texts)) for uid, texts in lines.items()}

    def _synonyms(self, table: SynonymsTable) -> dict[str, tuple[str, ...]]:
        names = self.manifest.source.synonyms(root_of(self.manifest, self.root))
        if not names:
            raise UserError(
                f"captions {table.name!r}: layout {self.manifest.source.layout!r} has no taxonomy here; remove it"
            )
        texts = {
            category: tuple(
                fill(table.template, name=name)
                for name in dict.fromkeys(map(spoken, several))
                if name != spoken(category)
            )
            for category, several in names.items()
        }
        return {shape.uid: texts.get(shape.category, ()) for shape in self.shapes}

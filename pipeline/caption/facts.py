"""Captions from what a shape knows of itself: sentences from the facts of embedded shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.words import article
from recon.pipeline.caption.table import CaptionsTable, CaptionStage, Name, Subject
from recon.pipeline.caption.texts import VERSION, filled
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.stages.meshes import Meshes
from recon.pipeline.stages.origin import Origin
from recon.pipeline.store.columns import parsed, read_column
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.forms import FACTS
from recon.pipeline.store.records import Column

NUM_FACTS = 4  # `describe` writes no more


class FactsTable(CaptionsTable):
    """What a procedural shape knows of itself; nothing for plain files."""

    kind: Literal["facts"]
    name: Name = "facts"

    @property
    def after(self) -> str:
        """See `CaptionsTable.after`."""
        return "meshes"

    def stage(self, subject: Subject) -> FactCaptions:
        """See `CaptionsTable.stage`."""
        return FactCaptions(subject.origin)


@dataclass(frozen=True)
class FactCaptions(CaptionStage):
    """From what a mesh's source knows of it; nothing for a plain file."""

    origin: Origin
    attributes: ClassVar[dict[str, Any]] = {"source": "facts"}
    columns = (Column("caption", (NUM_FACTS,), "str"),)

    @property
    def recipe(self) -> dict[str, Any]:
        """The meshes whose facts are told."""
        meshes = digest_of(Meshes(self.origin).recipe)
        return {"stage": "captions", "version": VERSION, "source": "facts", "meshes": meshes}

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """Up to `NUM_FACTS` sentences a shape, padded with empty ones."""
        group = store.kind_group("meshes", self.recipe["meshes"])
        facts = read_column(group, "facts", rows[-1].index + 1)

        def one(row: Row) -> tuple[list[str]]:
            known = parsed(facts[row.index] or "{}", FACTS, f"{group.store_path}/facts: row {row.index}")
            return (filled(describe(known), NUM_FACTS),)

        return each_row(rows, ["caption"], one)


def describe(facts: Mapping[str, Any]) -> list[str]:
    """Captions of one shape from its facts (`procedural.designer`), least detailed first, without repetition.

    They tell the main material, then the first structural trait, then all of them, then every material; [] where
    the facts name no category. Reads `category`, `main_material`, `phrases` and `materials`; all but the first may
    be missing.
    """
    if "category" not in facts:
        return []
    category = str(facts["category"]).replace("_", " ")
    main = str(facts.get("main_material", ""))
    phrases = [str(phrase) for phrase in facts.get("phrases", ())]
    materials = list(dict.fromkeys(str(name) for name in facts.get("materials", {}).values()))

    subject = f"{main} {category}".strip()
    subject = f"{article(subject)} {subject}"
    captions = [subject, *(f"{subject} {_listed(_joined(phrases[:count]))}" for count in (1, len(phrases)) if phrases)]
    if len(materials) > 1:
        captions.append(f"{article(category)} {category} in {_listed(materials)}")
    return list(dict.fromkeys(captions))


def _joined(phrases: Sequence[str]) -> list[str]:
    """Phrases without a "with" that the one before has said already."""
    previous = ["", *phrases]
    return [
        phrase.removeprefix("with ") if before.startswith("with ") else phrase
        for before, phrase in zip(previous, phrases, strict=False)
    ]


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))

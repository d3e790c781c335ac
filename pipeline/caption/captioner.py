"""Captions that a model writes of views."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from recon.pipeline.base.devices import share_memory
from recon.pipeline.base.digests import canonical_json, digest_of, row_seed
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.watch import unhurried
from recon.pipeline.caption.directions import Floats, directions
from recon.pipeline.caption.table import CaptionsTable, CaptionStage, Keep, Name, Subject
from recon.pipeline.caption.texts import VERSION
from recon.pipeline.execution.stage import Block, Row, each_row
from recon.pipeline.stages.targets import ImageTargets, clean_features
from recon.pipeline.stages.text import TextTargets
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.records import Column
from recon.pipeline.store.shards import read_rows
from recon.pipeline.teachers import TextTeacher
from recon.pipeline.teachers.loaded import PROBE, WORDS, check_probe, check_recipe, loaded, teacher_of


class CaptionerTable(CaptionsTable):
    """Captions that a model of the transformers library writes of views; needs the extra `captioner`."""

    kind: Literal["captioner"]
    name: Name = "captioner"
    model: str = Field(min_length=1)
    """A name on the hub, or a folder (beside the manifest) with the model, its processor and safetensors weights."""
    views: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Which views of the preset; none named: all."""
    num: int = Field(default=1, ge=1, le=32)
    """Captions a view: the first by beam search, the others drawn."""
    seed: int = 0
    prompt: str = ""
    """What every caption begins with."""
    max_new_tokens: int = Field(default=30, ge=1, le=1024)
    rerank: str | None = None
    """A teacher as in "attributes": captions that fit their view best come first."""
    keep: Keep = 4
    """So many a shape, the best ones; the rest is stored as rejected."""

    def resolved(self, folder: Path) -> Self:
        """The table with a model that lies under `folder`, the manifest's, named by its path."""
        lies_there = (folder / self.model).is_dir()
        return self.model_copy(update={"model": str(folder / self.model)}) if lies_there else self

    @field_validator("views")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a view is named twice")
        return value

    has_model: ClassVar[bool] = True
    teacher_field: ClassVar[str] = "rerank"

    @property
    def after(self) -> str:
        """See `CaptionsTable.after`."""
        return f"targets {self.rerank}" if self.rerank else "views"

    def load(self) -> None:
        """See `CaptionsTable.load`."""
        captioner_of(self)

    def stage(self, subject: Subject) -> ModelCaptions:
        """See `CaptionsTable.stage`."""
        views = subject.views
        if self.views and max(self.views) >= views.num_views:
            raise UserError(
                f"captions {self.name!r}: there is no view {max(self.views)}: preset {views.config.preset!r} "
                f"has 0 to {views.num_views - 1}"
            )
        recipe = canonical_json(subject.ask(_recipe_of, self))
        return ModelCaptions(self, views, recipe, *(subject.one_space(self.name, self.rerank) if self.rerank else ()))


@dataclass(frozen=True)
class ModelCaptions(CaptionStage):
    """What a captioner writes of views; where a teacher ranks them, the best first."""

    table: CaptionerTable
    views: RenderedViews
    captioner_recipe: str
    """Canonical JSON: it needs the weights, so it is read once, in the parent."""
    images: ImageTargets | None = None
    text: TextTargets | None = None
    """The teacher that ranks."""
    gpu = True
    shard_rows = 32

    @property
    def chosen(self) -> tuple[int, ...]:
        """Views that are looked at."""
        return self.table.views or tuple(range(self.views.num_views))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the manifest called the model; the recipe says what it is."""
        model = json.loads(self.captioner_recipe)["weights"]
        path = Path(self.table.model)
        name = path.name if path.is_absolute() else self.table.model  # the rest of it is this machine's
        probes = {PROBE: captioner_of(self.table).probe}
        if self.text:
            probes[WORDS] = loaded(self.text.teacher).text_probe
        return {"source": "captioner", "name": name, "model": model, "seed": self.table.seed, **probes}

    @property
    def columns(self) -> tuple[Column, ...]:
        """A caption a chosen view and draw: of which view, its cosine where a teacher ranks, and whether it is told."""
        num = (len(self.chosen) * self.table.num,)
        score = (Column("score", num, "float32"),) if self.text else ()
        return Column("caption", num, "str"), Column("view", num, "int16"), *score, Column("kept", num, "bool")

    @property
    def recipe(self) -> dict[str, Any]:
        """The pictures, the model and how it is asked; where a teacher ranks, its features and words too."""
        recipe = {
            "stage": "captions",
            "version": VERSION,
            "source": "captioner",
            "views": digest_of(self.views.recipe),
            "captioner": json.loads(self.captioner_recipe),
            "chosen": list(self.chosen),
            "num": self.table.num,
            "keep": self.table.keep,
            "seed": self.table.seed,
        }
        if self.images and self.text:
            recipe |= {"targets": digest_of(self.images.recipe), "text": digest_of(self.text.recipe)}
        return recipe

    def by_content(self, lane: int) -> bool:
        """True where each view gets one caption: further ones are drawn from seeds of the uid."""
        return self.table.num == 1

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        """A view's first caption is a beam search's, further ones are drawn."""
        recipe = self.recipe
        rgb = store.column("views", recipe["views"], "rgb")
        pictures = read_rows(rgb, [row.index for row in rows])[:, list(self.chosen)]
        flat = pictures.reshape(-1, *pictures.shape[2:])
        captioner = self._checked(store, key)
        drafts = [captioner.write(flat, None)]
        for draw in range(1, self.table.num):
            drafts.append(
                captioner.write(flat, [row_seed(key, row.name, view, draw) for row in rows for view in self.chosen])
            )
        by_row = np.array(drafts, dtype=object).T.reshape(len(rows), -1)
        views = np.repeat(np.array(self.chosen, np.int16), self.table.num)
        scores = self._scores(clean_features(store, recipe["targets"], rows), by_row, views) if self.text else None
        names = [column.name for column in self.columns]
        place = {row.index: at for at, row in enumerate(rows)}

        def one(row: Row) -> tuple[Any, ...]:
            at = place[row.index]
            return self._ranked(by_row[at].tolist(), views, None if scores is None else scores[at])

        return each_row(rows, names, one)

    def _checked(self, store: FeatureStore, key: str) -> Any:
        """The captioner, after it and what ranks were compared with the key's."""
        captioner, held = captioner_of(self.table), store.kind_group(self.kind, key).attrs
        whose = f"captions {self.table.name!r}"
        check_recipe(whose, captioner.recipe(), json.loads(self.captioner_recipe))
        with unhurried():
            check_probe(whose, f"captions/{key}", held.get(PROBE), lambda: captioner.probe, "fp32")
        if self.text:
            self.text.checked(f"captions/{key}", held.get(WORDS))
        return captioner

    def _scores(self, feat: NDArray[Any], captions: NDArray[Any], views: NDArray[np.int16]) -> Floats:
        """[R, C] cosines of captions with what the teacher saw in their view; `feat` [R, V, D] has every view."""
        assert self.text is not None
        distinct = sorted(set(captions.ravel().tolist()))
        teacher = cast(TextTeacher, teacher_of(self.text.teacher))
        words = dict(zip(distinct, directions(teacher.embed_texts(distinct)), strict=True))
        seen = directions(feat[:, views])
        return np.array(
            [
                [float(np.dot(words[text], image)) for text, image in zip(lines, images, strict=True)]
                for lines, images in zip(captions, seen, strict=True)
            ]
        )

    def _ranked(self, captions: list[str], views: NDArray[np.int16], scores: Floats | None) -> tuple[Any, ...]:
        """One row's columns: best first, the first `keep` different ones kept."""
        order = list(range(len(captions)))
        if scores is not None:
            order.sort(key=lambda i: -scores[i])
        kept: dict[str, bool] = {}
        told = []
        for i in order:
            first = bool(captions[i]) and captions[i] not in kept and len(kept) < self.table.keep
            if first:
                kept[captions[i]] = True
            told.append(first)
        ranks = () if scores is None else (scores[order].astype(np.float32),)
        return [captions[i] for i in order], views[order], *ranks, np.array(told)


def _recipe_of(table: CaptionerTable) -> dict[str, Any]:
    recipe: dict[str, Any] = captioner_of(table).recipe()
    return recipe


@lru_cache(maxsize=1)
def captioner_of(table: CaptionerTable, device: str = "auto") -> Any:
    """The process's one copy of a captioner."""
    import torch

    from recon.pipeline.caption.image_to_text import Captioner  # the library takes seconds to import

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        share_memory()
    torch.set_num_threads(1)  # workers share the cores, and other thread counts round differently
    with unhurried():
        return Captioner(table, device)

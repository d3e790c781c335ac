"""What the teachers say of the data: their stored features, and what an epoch draws of them for a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.records import Ref, Targets, Text
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.data.points import draw_points
from recon.trainer.data.reading import iterate_rows
from recon.trainer.data.transforms import random_bits, random_integers, random_subset

if TYPE_CHECKING:
    import zarr

CLEAN = -1
"""In the place of an augmentation's seed."""


Drawn = tuple[Tensor, Tensor | None]
"""Of B samples [B, ...]; and, of several a sample, which of them are there, [B, T] bool (None: all)"""


@dataclass(frozen=True)
class ImageTargets:
    """A teacher's features of what each shape itself has: of every view, or of its words that came with the data."""

    feat: Tensor
    """[K, N, V, D] float16, raw; of pictures draw 0 is the clean one"""
    present: Tensor | None = None
    """[K, N, V] bool: which are there; None: all"""
    every: bool = False
    """All of a sample, not one of them"""
    words: bool = False
    """Of words, which the settings of pictures do not concern"""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Drawn:
        """[B, D] the target of each of `samples` [B]: a view's feature, or the mean of several different views', among
        those that are there; or [B, V, D] all.

        The random bits choose the same view and draw for every teacher that has as many.
        """
        choices = torch.tensor(self.lanes(config), device=samples.device)
        lane = choices[random_integers(bits["draw"], len(choices))]
        present = None if self.present is None else self.present[lane, samples]
        if self.every:
            return self.feat[lane, samples], present
        choice, views = (bits["prompt"], 1) if self.words else (bits["view"], config.views)
        num_views, dim = self.feat.shape[2:]
        if views == 1:
            view = random_integers(choice, num_views) if present is None else _one_present(choice, present)
            return self.feat[lane, samples, view], None
        several = self.feat[lane, samples]
        if views:
            view = random_subset(choice, num_views, views, present)
            several = several.gather(1, view[..., None].expand(-1, -1, dim))
            present = None if present is None else present.gather(1, view)
        return _mean(several, present), None

    def lanes(self, config: DataConfig) -> Sequence[int]:
        """Which draws are chosen among."""
        return range(self.feat.shape[0]) if self.words else config.draws or range(self.feat.shape[0])

    def shape(self, config: DataConfig) -> tuple[int, ...]:
        """Of what is drawn of a sample."""
        return tuple(self.feat.shape[2:] if self.every else self.feat.shape[3:])

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return self.feat.dtype

    def masked(self, config: DataConfig) -> bool:
        """Whether it is drawn with what is there."""
        return self.every and self.present is not None

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageTargets:
        """The same with every tensor changed."""
        return replace(self, feat=change(self.feat), present=None if self.present is None else change(self.present))


def _one_present(choice: Tensor, present: Tensor) -> Tensor:
    """[B] one of those that are there, of `present` [B, V]; with all there what random bits [B] choose of V."""
    number = random_integers(choice, present.sum(dim=1).clamp_min(1))
    return (present.cumsum(dim=1) > number[:, None]).int().argmax(dim=1)


def _mean(several: Tensor, present: Tensor | None) -> Tensor:
    """[B, D] of [B, V, D], over those of `present` [B, V]."""
    if present is None:
        return several.float().mean(dim=1).to(several.dtype)
    total = several.float().masked_fill(~present[..., None], 0).sum(dim=1)
    return (total / present.sum(dim=1, keepdim=True).clamp_min(1)).to(several.dtype)


@dataclass(frozen=True)
class ViewTargets:
    """Which views an image teacher that runs on every step is to be shown, and how they are augmented."""

    num_views: int
    """Those the store holds of a shape."""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Drawn:
        """[B, 2 n] int64: the n views of each of `samples` [B], those `ImageTargets` would take, then their seeds.

        A view's seed is its own; it is CLEAN where `config.draws` chooses draw 0.
        """
        if config.views == 1:
            views = random_integers(bits["view"], self.num_views)[:, None]
        elif config.views:
            views = random_subset(bits["view"], self.num_views, config.views)
        else:
            views = torch.arange(self.num_views, device=samples.device).expand(len(samples), -1)
        # Any draw but the clean one is a new augmentation.
        choices = torch.tensor(config.draws or [1], device=samples.device)
        clean = choices[random_integers(bits["draw"], len(choices))] == 0
        seeds = random_bits(bits["augmentation"][:, None], views) & (2**63 - 1)
        return torch.cat([views, seeds.masked_fill(clean[:, None], CLEAN)], dim=1), None

    def map(self, change: Callable[[Tensor], Tensor]) -> ViewTargets:
        """Itself: it holds no tensor."""
        return self

    def shape(self, config: DataConfig) -> tuple[int, ...]:
        """Of what is drawn of a sample."""
        return (2 * (config.views or self.num_views),)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return torch.int64

    def masked(self, config: DataConfig) -> bool:
        """Whether it is drawn with what is there."""
        return False


@dataclass(frozen=True)
class TextTargets:
    """A text teacher's features of every prompt, and which of them are whose."""

    feat: Tensor
    """[T, D] float16, raw"""
    class_prompts: Tensor
    """[num_categories, L] int64, rows of feat"""
    captions: Tensor
    """[N, C] int64, rows of feat, those a row has first, then -1"""
    every: bool = False
    """All of a sample, not one of them"""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Drawn:
        """[B, D] the target of each of `samples` [B]: a prompt of its class (`category` [B]) or its own caption; or
        [B, T, D] its captions, and behind them the prompt, by `config.captions`.
        """
        if not self.every:
            return self.feat[self.prompts(samples, category, config, bits)], None
        own, by_class = self.captions[samples], self._by_class(category, bits)[:, None]
        rows = {"class": by_class, "shape": own, "both": torch.cat([own, by_class], dim=1)}[config.captions]
        there = rows >= 0
        feat = self.feat[rows.clamp_min(0)].masked_fill(~there[..., None], 0)
        return feat, there if self.masked(config) else None

    def prompts(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
        """[B] rows of feat."""
        by_class = self._by_class(category, bits)
        if config.captions == "class":
            return by_class
        own = self.captions[samples]
        num_own = (own >= 0).sum(dim=1)
        by_shape = own.gather(1, random_integers(bits["prompt"], num_own.clamp_min(1))[:, None])[:, 0]
        take_own = num_own > 0
        if config.captions == "both":
            take_own &= random_integers(bits["caption"], 2) == 1
        return torch.where(take_own, by_shape, by_class)

    def _by_class(self, category: Tensor, bits: dict[str, Tensor]) -> Tensor:
        """[B] rows of feat: one of the class's prompts."""
        return self.class_prompts[category, random_integers(bits["prompt"], self.class_prompts.shape[1])]

    def shape(self, config: DataConfig) -> tuple[int, ...]:
        """Of what is drawn of a sample."""
        num_own = self.captions.shape[1]
        num_texts = {"class": 1, "shape": num_own, "both": num_own + 1}[config.captions]
        return (num_texts, self.feat.shape[1]) if self.every else (self.feat.shape[1],)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return self.feat.dtype

    def masked(self, config: DataConfig) -> bool:
        """Whether it is drawn with what is there."""
        return self.every and config.captions != "class"

    def map(self, change: Callable[[Tensor], Tensor]) -> TextTargets:
        """The same with every tensor changed."""
        return replace(
            self, feat=change(self.feat), class_prompts=change(self.class_prompts), captions=change(self.captions)
        )


@dataclass(frozen=True)
class PartTargets:
    """The part each point belongs to."""

    part: Tensor
    """[N, P] int16, of the same points as the data set's xyz"""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Drawn:
        """[B, num_points] the parts of the points that are drawn of `samples` [B] with the same bits."""
        return draw_points(self.part[..., None], samples, bits["points"], config.num_points)[..., 0], None

    def map(self, change: Callable[[Tensor], Tensor]) -> PartTargets:
        """The same with every tensor changed."""
        return PartTargets(change(self.part))

    def shape(self, config: DataConfig) -> tuple[int, ...]:
        """Of what is drawn of a sample."""
        return (config.num_points,)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return self.part.dtype

    def masked(self, config: DataConfig) -> bool:
        """Whether it is drawn with what is there."""
        return False


@dataclass(frozen=True)
class OnlineTeacher:
    """What a store says of a teacher that is to run on every step: who it is, and where its inputs lie."""

    name: str
    """In `data.teachers`."""
    stored_name: str
    """In the ref."""
    key: str
    """The kind and key of its features, e.g. "targets/0123abcd"."""
    recipe: dict[str, Any]
    """Of the teacher, as the key holds it, with a digest of its weights."""
    attributes: dict[str, Any]
    """Of the key: its label, what its manifest said of it, and its probes."""
    inputs: zarr.Array[Any] | list[str]
    """[rows, V, H, W, 3] uint8 pictures, or the prompts."""


def online_teacher(
    store: FeatureStore, asked: TeacherConfig, stored: Targets | Text, rows: NDArray[np.int64]
) -> OnlineTeacher:
    """UserError for features that came with the data, and where the store lacks a picture of `rows`."""
    kind = "targets" if isinstance(stored, Targets) else "text"
    inputs: zarr.Array[Any] | list[str]
    if isinstance(stored, Targets):
        views = stored.recipe.get("views")
        if views is None:
            raise UserError(
                f"data.online: the features of {asked.teacher!r} ({stored.teacher!r}) came with the data set's files, "
                "and no teacher is known that made them: train on the stored ones with --teachers stored"
            )
        has = store.ok(views, len(store.registry))[rows] if (store.path / "views" / views).is_dir() else np.zeros(1)
        if not has.all():
            raise UserError(
                f"data.online: {store.path} lacks pictures that {asked.teacher!r} was shown (views {views}): make them "
                "with `recon-pipeline render`, or train on the stored features with --teachers stored"
            )
        inputs = store.column("views", views, "rgb")
    else:
        inputs = stored.prompts
    attributes = dict(store.kind_group(kind, stored.key).attrs)
    recipe = part_of(stored.recipe, "teacher")
    return OnlineTeacher(asked.teacher, stored.teacher, f"{kind}/{stored.key}", recipe, attributes, inputs)


def stored_teachers(store: FeatureStore, ref: Ref, teachers: Sequence[TeacherConfig]) -> list[Targets | Text]:
    """What a ref holds of each teacher. UserError where it has none that can be trained on, saying what it has."""
    of = {
        name: part_of(store.recipe("targets", key), "teacher").get("of", "image") for name, key in ref.targets.items()
    }
    pictures, words = ([name for name in of if (of[name] == "text") == text] for text in (False, True))
    found: list[Targets | Text] = []
    for asked in teachers:
        # Words that came with the data come last.
        held = pictures if asked.kind == "image" else [*ref.text, *words]
        if not held or (asked.stored_name and asked.stored_name not in held):
            has = [f"image:{name}" for name in pictures] + [
                f"text:{name}" for name in dict.fromkeys([*ref.text, *words])
            ]
            raise UserError(
                f"data.teachers: ref {ref.name!r} of {store.path} has no teacher {asked.teacher!r}; it has "
                f"{', '.join(has) or 'none'}. Name those, or train without teachers by --recipe recon-single"
            )
        name = asked.stored_name or held[0]
        each: Targets | Text
        if asked.kind == "image" or name not in ref.text:
            each = store.targets(name, ref)
            _check_features(store, each)
        else:
            each = store.text(name, ref)
            if not np.isfinite(each.feat).all():
                raise UserError(f"{store.path}: text features of {each.teacher!r} are not finite; compute them again")
        for earlier, other in zip(teachers, found, strict=False):
            if earlier.kind == asked.kind and other.teacher == each.teacher:
                raise UserError(
                    f"data.teachers: {earlier.teacher!r} and {asked.teacher!r} are one teacher of ref {ref.name!r}; "
                    "name each teacher once"
                )
        found.append(each)
    return found


def _check_features(store: FeatureStore, found: Targets) -> None:
    if found.feat.ndim != 4:
        raise UserError(
            f"{store.path}: image teacher {found.teacher!r} gives patch tokens {list(found.feat.shape[2:])}, "
            "and pretraining takes one feature a view: give it tap 'pooled', 'cls' or 'patch_mean' in the "
            "manifest, or name another with data.teachers"
        )
    if found.present is not None and found.present.shape != found.feat.shape[:3]:
        raise UserError(
            f"{store.path}/targets/{found.key}: present has {list(found.present.shape)} entries, feat "
            f"{list(found.feat.shape[:3])} features; restore it, or run `recon-pipeline features` again"
        )


def read_present(found: Targets, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """[K, N, V] which features of some rows are there; None: all. UserError for a damaged shard."""
    if found.present is None:
        return None
    there = np.empty((found.feat.shape[0], len(rows), found.feat.shape[2]), np.bool_)
    for lane in range(len(there)):
        for part, values in iterate_rows(found.present, rows, f"present of {found.teacher!r}", lane):
            there[lane, part] = values
    return there

"""What the teachers say of the data: their stored features, and what an epoch draws of them for a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from recon.trainer.data.transforms import random_bits, random_integers, random_subset

if TYPE_CHECKING:
    import zarr

CLEAN = -1
"""In the place of an augmentation's seed."""


@dataclass(frozen=True)
class _Features:
    feat: Tensor
    """[..., D] float16, raw"""

    @property
    def width(self) -> int:
        """Of what is drawn of a sample."""
        return self.feat.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return self.feat.dtype


@dataclass(frozen=True)
class ImageTargets(_Features):
    """An image teacher's features of every view, `feat` [K, N, V, D]; draw 0 is the clean picture."""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
        """[B, D] the target of each of `samples` [B]: a view's feature, or the mean of several different views'.

        The random bits choose the same view and draw for every teacher that has as many.
        """
        num_draws, _, num_views, dim = self.feat.shape
        choices = torch.tensor(config.draws or range(num_draws), device=samples.device)
        lane = choices[random_integers(bits["draw"], len(choices))]
        if config.views == 1:
            return self.feat[lane, samples, random_integers(bits["view"], num_views)]
        several = self.feat[lane, samples]
        if config.views:
            view = random_subset(bits["view"], num_views, config.views)
            several = several.gather(1, view[..., None].expand(-1, -1, dim))
        return several.float().mean(dim=1).to(several.dtype)

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageTargets:
        """The same with every tensor changed."""
        return ImageTargets(change(self.feat))


@dataclass(frozen=True)
class ViewTargets:
    """Which views an image teacher that runs on every step is to be shown, and how they are augmented."""

    num_views: int
    """Those the store holds of a shape."""
    views: int
    """As in the settings: 0 takes all."""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
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
        return torch.cat([views, seeds.masked_fill(clean[:, None], CLEAN)], dim=1)

    def map(self, change: Callable[[Tensor], Tensor]) -> ViewTargets:
        """Itself: it holds no tensor."""
        return self

    @property
    def width(self) -> int:
        """Of what is drawn of a sample."""
        return 2 * (self.views or self.num_views)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return torch.int64


@dataclass(frozen=True)
class TextTargets(_Features):
    """A text teacher's features of every prompt, `feat` [T, D], and which of them are whose."""

    class_prompts: Tensor
    """[num_categories, L] int64, rows of feat"""
    captions: Tensor
    """[N, C] int64, rows of feat, those a row has first, then -1"""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
        """[B, D] the target of each of `samples` [B]: a prompt of its class (`category` [B]) or its own caption."""
        return self.feat[self.prompts(samples, category, config, bits)]

    def prompts(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
        """[B] rows of feat."""
        choice = bits["prompt"]
        by_class = self.class_prompts[category, random_integers(choice, self.class_prompts.shape[1])]
        if config.captions == "class":
            return by_class
        own = self.captions[samples]
        num_own = (own >= 0).sum(dim=1)
        by_shape = own.gather(1, random_integers(choice, num_own.clamp_min(1))[:, None])[:, 0]
        take_own = num_own > 0
        if config.captions == "both":
            take_own &= random_integers(bits["caption"], 2) == 1
        return torch.where(take_own, by_shape, by_class)

    def map(self, change: Callable[[Tensor], Tensor]) -> TextTargets:
        """The same with every tensor changed."""
        return TextTargets(change(self.feat), change(self.class_prompts), change(self.captions))


@dataclass(frozen=True)
class PartTargets:
    """The part each point belongs to."""

    part: Tensor
    """[N, P] int16, of the same points as the data set's xyz"""

    def draw(self, samples: Tensor, category: Tensor, config: DataConfig, bits: dict[str, Tensor]) -> Tensor:
        """[B, num_points] the parts of the points that are drawn of `samples` [B] with the same bits."""
        return draw_points(self.part[..., None], samples, bits["points"], config.num_points)[..., 0]

    def map(self, change: Callable[[Tensor], Tensor]) -> PartTargets:
        """The same with every tensor changed."""
        return PartTargets(change(self.part))

    @property
    def width(self) -> int:
        """Of what is drawn of a sample."""
        return self.part.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of what is drawn of a sample."""
        return self.part.dtype


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
    found: list[Targets | Text] = []
    for asked in teachers:
        held = ref.targets if asked.kind == "image" else ref.text
        if not held or (asked.stored_name and asked.stored_name not in held):
            has = [f"{kind}:{name}" for kind, names in (("image", ref.targets), ("text", ref.text)) for name in names]
            raise UserError(
                f"data.teachers: ref {ref.name!r} of {store.path} has no teacher {asked.teacher!r}; it has "
                f"{', '.join(has) or 'none'}. Name those, or train without teachers by --recipe recon-single"
            )
        each: Targets | Text
        if asked.kind == "image":
            each = store.targets(asked.stored_name or None, ref)
            if each.feat.ndim != 4:
                raise UserError(
                    f"{store.path}: image teacher {each.teacher!r} gives patch tokens {list(each.feat.shape[2:])}, "
                    "and pretraining takes one feature a view: give it tap 'pooled', 'cls' or 'patch_mean' in the "
                    "manifest, or name another with data.teachers"
                )
        else:
            each = store.text(asked.stored_name or None, ref)
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

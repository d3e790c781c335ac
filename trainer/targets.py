"""What the teachers say of the data: their stored features, and what an epoch draws of them for a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.records import Ref, Targets, Text
from recon.trainer.config import DataConfig, TeacherConfig
from recon.trainer.transforms import random_integers, random_subset


@dataclass(frozen=True)
class ImageTargets:
    """An image teacher's features of every view."""

    feat: Tensor
    """[K, N, V, D] float16, raw; draw 0 is the clean picture"""

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
class TextTargets:
    """A text teacher's features of every prompt, and which of them are whose."""

    feat: Tensor
    """[T, D] float16, raw"""
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

"""Which rows of a feature store are trained on: mapped into memory from the trainer's copy, or left in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.trainer.cache import cached_arrays
from recon.trainer.config import DataConfig
from recon.trainer.reading import check_finite

if TYPE_CHECKING:
    import zarr

    from recon.pipeline.store import FeatureStore
    from recon.pipeline.store.records import Ref, Targets


@dataclass(frozen=True)
class Stored:
    """The store's own arrays, of all its rows."""

    xyz: zarr.Array[Any]
    """[rows, P, 3] float32"""
    image: zarr.Array[Any]
    """[K, rows, V, Di] float16"""


@dataclass(frozen=True)
class Dataset:
    """The rows of some splits that every stage finished, all on one device or memory-mapped.

    With `data.loader = "stream"` xyz and image lie on the meta device, which holds shapes and types only; the values
    are still in the store.
    """

    xyz: Tensor
    """[N, P, 3] float32, raw"""
    image: Tensor
    """[K, N, V, Di] float16, raw; draw 0 is the clean picture"""
    text: Tensor
    """[T, Dt] float16, raw"""
    class_prompts: Tensor
    """[num_categories, L] int64, rows of text"""
    captions: Tensor
    """[N, C] int64, rows of text, those a row has first, then -1"""
    category: Tensor
    """[N] int64, index into categories"""
    row: Tensor
    """[N] int64, the row in the store: what a sample's random draws are derived from"""
    record: dict[str, Any]
    """What the data are: keys and digests of the store, splits, row counts. JSON values."""
    uids: list[str] = field(default_factory=list)
    """[N] what the store calls a row's shape"""
    categories: list[str] = field(default_factory=list)
    """Names of the categories of the ref's data set, sorted; those of every split"""
    stored: Stored | None = None
    """Where xyz and image are, when they are not here"""

    @property
    def image_dim(self) -> int:
        """Width Di of the image teacher's features."""
        return self.image.shape[-1]

    @property
    def text_dim(self) -> int:
        """Width Dt of the text teacher's features."""
        return self.text.shape[-1]

    def __len__(self) -> int:
        return len(self.row)

    def num_bytes(self) -> int:
        """Of all tensors together; of those on the meta device, what they would take."""
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    def to(self, device: torch.device) -> Dataset:
        """The same data with every tensor on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def load_dataset(store: FeatureStore, config: DataConfig) -> Dataset:
    """Rows of `config.splits` that have points and every draw of every view.

    For the loader "map", the first call copies them out of the store shard by shard into `<store>/cache/<digest>/`,
    keyed by the digests of what they hold; later calls check that copy's sums and map it. For "stream" nothing of them
    is read yet. UserError for an unknown split, for a store without image targets or without a finished row, for a
    damaged shard or non-finite features, and where more points, draws or captions are asked for than there are.
    """
    ref = store.ref(config.ref or None)
    points, targets = store.points(ref), image_targets(store, ref, config.image_teacher)
    text = store.text(config.text_teacher or None, ref)
    registry = store.registry
    in_splits, own = rows_of_splits(store, ref, config.splits)
    rows = np.flatnonzero(in_splits & points.ok & targets.ok.all(axis=0))
    if not len(rows):
        raise UserError(f"{store.path}: no row of {', '.join(config.splits)} is finished; run `recon-pipeline status`")
    captions = -np.sort(-text.captions[rows], axis=1)
    _check_settings(config, points.xyz.shape[1], targets.feat.shape, captions)
    if not np.isfinite(text.feat).all():
        raise UserError(f"{store.path}: text features of {text.teacher!r} are not finite; compute them again")

    category, class_prompts = np.searchsorted(own, registry.category[rows]), text.class_prompts[own]
    record: dict[str, Any] = {
        "ref": ref.name,
        "splits": list(config.splits),
        "num_rows": len(rows),
        "num_rows_in_splits": int(in_splits.sum()),
        "num_rows_without_caption": int((captions < 0).all(axis=1).sum()),
        "rows": digest_of([[registry.uid[row], int(row)] for row in rows]),
        "prompts": digest_of([class_prompts.tolist(), category.tolist(), captions.tolist()]),
        "points": {"key": points.key, "digest": store.digest(points.key)},
        "image": {"teacher": targets.teacher, "key": targets.key, "digest": store.digest(targets.key)},
        "text": {"teacher": text.teacher, "key": text.key, "digest": store.digest(text.key)},
        # A student is measured on other stores too, which need not hold what it was taught with.
        "teachers": {"image": targets.recipe.get("teacher", {}), "text": text.recipe.get("teacher", {})},
    }
    if config.loader == "stream":
        stored = Stored(points.xyz, targets.feat)
        check_finite(store, points.key, points.xyz, rows, "points", lanes=False)
        check_finite(store, targets.key, targets.feat, rows, f"image features of {targets.teacher!r}", lanes=True)
        draws, _, *rest = targets.feat.shape
        xyz = torch.empty((len(rows), *points.xyz.shape[1:]), dtype=torch.float32, device="meta")
        image = torch.empty((draws, len(rows), *rest), dtype=torch.float16, device="meta")
    else:
        arrays = cached_arrays(store.path / "cache", record, points, targets, rows)
        stored, xyz, image = None, torch.from_numpy(arrays["xyz"]), torch.from_numpy(arrays["image"])
    return Dataset(
        xyz=xyz,
        image=image,
        text=torch.from_numpy(text.feat),
        class_prompts=torch.from_numpy(class_prompts),
        captions=torch.from_numpy(captions),
        category=torch.from_numpy(category),
        row=torch.from_numpy(rows),
        record=record,
        uids=[registry.uid[row] for row in rows],
        categories=[registry.categories[number] for number in own],
        stored=stored,
    )


def image_targets(store: FeatureStore, ref: Ref, teacher: str) -> Targets:
    """A ref's image targets of a teacher, or of its first. UserError where it has none that can be trained on."""
    if not ref.targets and "points" in ref.keys and "meshes" not in ref.keys:
        raise UserError(
            f"{store.path}: ref {ref.name!r} has ready-made clouds and no image targets, so it serves the probes `svm` "
            "and `zeroshot` alone; pretrain on a data set with meshes to render or with image features of its own"
        )
    targets = store.targets(teacher or None, ref)
    if targets.feat.ndim != 4:
        raise UserError(
            f"{store.path}: image teacher {targets.teacher!r} gives patch tokens {list(targets.feat.shape[2:])}, "
            "and pretraining takes one feature a view: give it tap 'pooled', 'cls' or 'patch_mean' in the manifest, "
            "or name another with data.image_teacher"
        )
    return targets


def rows_of_splits(store: FeatureStore, ref: Ref, splits: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """[registry] the rows of the ref's shapes in some splits, finished or not; and its categories' numbers, ascending.

    UserError for a split that the ref's data set does not have.
    """
    registry = store.registry
    # The store may hold other data sets, whose splits and categories are none of this one's.
    mine = np.zeros(len(registry), np.bool_)
    mine[store.rows(ref)] = True
    split_of = np.array(registry.split)
    known = sorted(set(split_of[mine].tolist()))
    for split in splits:
        if split not in known:
            raise UserError(f"{store.path}: ref {ref.name!r} has no split {split!r}; it has {', '.join(known)}")
    return mine & np.isin(split_of, splits), np.unique(registry.category[mine])


def _check_settings(config: DataConfig, num_points: int, targets: Sequence[int], captions: NDArray[np.int64]) -> None:
    num_draws, _, num_views, *_ = targets
    if config.num_points > num_points:
        raise UserError(f"data.num_points: {config.num_points} asked for, the store holds {num_points} a shape")
    if config.draws and max(config.draws) >= num_draws:
        raise UserError(f"data.draws: no draw {max(config.draws)}; the store holds 0 to {num_draws - 1}")
    if config.views > num_views:
        raise UserError(f"data.views: {config.views} asked for, the store holds {num_views} a shape")
    if config.captions != "class" and not (captions >= 0).any():
        raise UserError(f'data.captions: no shape has a caption of its own for {config.captions!r}; use "class"')

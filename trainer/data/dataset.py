"""Which rows of a feature store are trained on: mapped into memory from the trainer's copy, or left in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.forms import part_of
from recon.pipeline.store.records import Points, Ref, Targets, Text
from recon.trainer.config import DataConfig
from recon.trainer.data.cache import cached_array
from recon.trainer.data.choice import few_shot_categories, few_shot_rows, held_out, shared
from recon.trainer.data.colors import DEFAULT
from recon.trainer.data.dense import DenseTargets, lifted_teachers, students_of, told_of
from recon.trainer.data.parts import load_parts
from recon.trainer.data.points import farthest_order, ordered, stored_frame
from recon.trainer.data.reading import check_finite
from recon.trainer.data.targets import (
    ImageTargets,
    OnlineTeacher,
    PartTargets,
    TextTargets,
    ViewTargets,
    online_teacher,
    read_present,
    stored_teachers,
)
from recon.trainer.model.dense import Dense
from recon.trainer.model.teaching import Teacher

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True)
class Stored:
    """The store's own arrays, of all its rows."""

    xyz: zarr.Array[Any]
    """[rows, P, 3] float32"""
    feats: dict[int, zarr.Array[Any]]
    """[K, rows, V, D] float16 of each teacher of shapes, not of prompts, by its place among the teachers"""
    color: zarr.Array[Any] | None = None
    """[rows, P, 3] uint8, where colours are asked for"""
    order: zarr.Array[Any] | None = None
    """[rows, P] where samples are drawn from the farthest points alone"""
    lifted: tuple[zarr.Array[Any], ...] = ()
    """[rows, n, D] float16 of each lifted teacher, of the n farthest points"""


AnyTargets = ImageTargets | ViewTargets | TextTargets | PartTargets


@dataclass(frozen=True)
class Dataset:
    """The rows of some splits that every stage finished, all on one device or memory-mapped.

    With `data.loader = "stream"` xyz, color and the image teachers' features lie on the meta device, which holds shapes
    and types only; the values are still in the store.
    """

    xyz: Tensor
    """[N, P, 3] float32, raw"""
    targets: tuple[AnyTargets, ...]
    """In the order of `teachers`"""
    category: Tensor
    """[N] int64, index into categories"""
    row: Tensor
    """[N] int64, the row in the store: what a sample's random draws are derived from"""
    record: dict[str, Any]
    """What the data are: keys and digests of the store, splits, row counts. JSON values."""
    color: Tensor | None = None
    """[N, P, 3] uint8, linear RGB times 255, of the points of xyz; None: not asked for"""
    default_color: float = DEFAULT
    """sRGB in 0..1, for all three of a shape that has no colour"""
    frame: Tensor | None = None
    """[N, 4] float32: of all points the store holds of a row the centroid, and the largest distance from it"""
    teachers: tuple[Teacher, ...] = ()
    """What `data.teachers` stands for in this store."""
    uids: list[str] = field(default_factory=list)
    """[N] what the store calls a row's shape"""
    categories: list[str] = field(default_factory=list)
    """Names of the categories of the ref's data set, sorted; those of every split"""
    dense: tuple[Dense, ...] = ()
    """What `data.dense` stands for in this store."""
    lifted: tuple[DenseTargets, ...] = ()
    """In the order of `dense`"""
    parts: tuple[str, ...] = ()
    """Of segmentation, the names of the parts of all categories"""
    stored: Stored | None = None
    """Where xyz and the image teachers' features are, when they are not here"""
    online: tuple[OnlineTeacher, ...] = ()
    """With `data.online`, the teachers to load; see `recon.trainer.data.online`"""
    teach: Callable[[Iterator[Any]], Iterator[Any]] = iter
    """What a loader passes its `Samples` through: teachers that run online put their features in"""

    def __len__(self) -> int:
        return len(self.row)

    def num_bytes(self) -> int:
        """Of all tensors together; of those on the meta device, what they would take."""
        sizes: list[int] = []

        def measure(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        self._map(measure)
        return sum(sizes)

    def to(self, device: torch.device) -> Dataset:
        """The same data with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        return replace(
            self,
            xyz=change(self.xyz),
            color=None if self.color is None else change(self.color),
            targets=tuple(each.map(change) for each in self.targets),
            lifted=tuple(each.map(change) for each in self.lifted),
            category=change(self.category),
            row=change(self.row),
            frame=None if self.frame is None else change(self.frame),
        )


def load_dataset(
    store: FeatureStore, config: DataConfig, parts: bool = False, color: bool = False, default_color: float = DEFAULT
) -> Dataset:
    """Rows of `config.splits` that have points and every draw of every image teacher, with what is to be learnt.

    For the loader "map", the first call copies them out of the store shard by shard into folders of `<store>/cache/`,
    one a column, keyed by the digests of what they hold; later calls check their sums and map them. For "stream"
    nothing of them is read yet. With `color` samples have the points' colours, a shape without any the default.
    UserError for an unknown split, a teacher the store does not have or without a finished row, rows of which no
    teacher has anything, a damaged shard or non-finite features, and where more points, draws or captions are asked
    for than there are. With `config.online` features are not read: the data set says what its teachers are to be given,
    and `recon.trainer.data.online.OnlineTeachers` loads them.
    """
    ref = store.ref(config.ref or None)
    points, stored = store.points(ref), stored_teachers(store, ref, config.teachers)
    registry = store.registry
    in_splits, own = rows_of_splits(store, ref, config.splits)
    lifted = lifted_teachers(store, ref, points, config)
    finished = [each.ok.all(axis=0) for each in stored if isinstance(each, Targets)] + [each.ok for each in lifted]
    rows = np.flatnonzero(np.all([in_splits, points.ok, *finished], axis=0))
    if not len(rows):
        raise UserError(f"{store.path}: no row of {', '.join(config.splits)} is finished; run `recon-pipeline status`")
    rows, left_out = taught_rows(store, rows, stored, config)
    rows = chosen_rows(store, rows, own, config)
    online = tuple(
        online_teacher(store, asked, each, rows)
        for asked, each in zip(config.teachers if config.online else (), stored, strict=config.online)
    )
    _check_settings(config, points.xyz.shape[1], stored, rows)

    category = np.searchsorted(own, registry.category[rows])
    categories = [registry.categories[number] for number in own]
    record: dict[str, Any] = {
        "ref": ref.name,
        "splits": list(config.splits),
        "num_rows": len(rows),
        "num_rows_in_splits": int(in_splits.sum()),
        "rows": digest_of([[registry.uid[row], int(row)] for row in rows]),
        "categories": digest_of([categories, category.tolist()]),
        "points": {"key": points.key, "digest": store.digest(points.key)},
        "teachers": {},
        **({"left_out": left_out} if left_out else {}),
    }
    xyz = _points(store, config, record, points, points.xyz, rows)
    colors = _points(store, config, record, points, points.color, rows, "color") if color else None
    teachers, targets = _targets(store, config, record, stored, rows, own)
    record |= told_of(store, config, lifted)
    of_points = [
        _column(store, config, record, f"features of points of {each.teacher!r}", each.key, each.feat, rows)
        for each in lifted
    ]
    names: tuple[str, ...] = ()
    if parts:
        labels = load_parts(store, ref, categories, own)
        names, few = labels.names, 0 < config.pool < points.xyz.shape[1]
        part = labels.read_farthest(rows, config.pool) if few else labels.read(rows)
        targets.append(PartTargets(torch.from_numpy(part)))
        record["parts"] = digest_of([list(names), labels.of_category.tolist()])
    feats = {place: each.feat for place, each in enumerate(stored) if isinstance(each, Targets) and not config.online}
    order, there = points.order if lifted else None, tuple(each.feat for each in lifted)
    still = Stored(points.xyz, feats, points.color if color else None, order, there)
    return Dataset(
        xyz=xyz,
        color=colors,
        default_color=default_color,
        targets=tuple(targets),
        category=torch.from_numpy(category),
        row=torch.from_numpy(rows),
        frame=stored_frame(points, rows) if config.normalize == "cloud" else None,
        record=record,
        teachers=tuple(teachers),
        dense=students_of(config, lifted),
        lifted=tuple(map(DenseTargets, of_points)),
        parts=names,
        uids=[registry.uid[row] for row in rows],
        categories=categories,
        stored=still if config.loader == "stream" else None,
        online=online,
    )


def _targets(
    store: FeatureStore,
    config: DataConfig,
    record: dict[str, Any],
    stored: Sequence[Targets | Text],
    rows: NDArray[np.int64],
    own: NDArray[np.int64],
) -> tuple[list[Teacher], list[AnyTargets]]:
    """What rows are taught by each teacher, which the record is told; own: the data set's categories."""
    teachers, targets = [], list[AnyTargets]()
    for asked, each in zip(config.teachers, stored, strict=True):
        dim, every = int(each.feat.shape[-1]), asked.targets == "all"
        teachers.append(Teacher(asked.teacher, asked.kind, dim, asked.loss, asked.weight, asked.queries))
        told = {"kind": asked.kind, "teacher": each.teacher, "key": each.key, "digest": store.digest(each.key)}
        # A student is measured on other stores too, which need not hold what it was taught with.
        record["teachers"][asked.teacher] = told | {"recipe": part_of(each.recipe, "teacher")}
        if isinstance(each, Targets) and config.online:
            targets.append(ViewTargets(each.feat.shape[2]))
        elif isinstance(each, Targets):
            what = f"{each.of} features of {each.teacher!r}"
            feat = _column(store, config, record, what, each.key, each.feat, rows, lanes=1)
            there = read_present(each, rows)
            present = None if there is None else torch.from_numpy(there)
            targets.append(ImageTargets(feat, present, every, words=each.of == "text"))
        else:
            text = _text_targets(each, rows, own, every)
            prompts = torch.arange(len(text.feat))[:, None]
            targets.append(replace(text, feat=prompts) if config.online else text)
            learnt = [text.class_prompts.tolist(), text.captions.tolist()]
            record["teachers"][asked.teacher]["prompts"] = digest_of(learnt)
            record["num_rows_without_caption"] = int((text.captions < 0).all(dim=1).sum())
    return teachers, targets


def chosen_rows(
    store: FeatureStore, rows: NDArray[np.int64], numbers: NDArray[np.int64], config: DataConfig, test: bool = False
) -> NDArray[np.int64]:
    """Those of some finished rows that are trained on or, of a few-shot fold, tested on, ascending.

    numbers: the data set's categories. UserError for a fold with too few shapes.
    """
    category, seed = store.registry.category[rows], config.choice_seed
    if config.way:
        chosen = few_shot_categories(numbers, config.way, config.fold, seed)
        setting, count = ("data.queries", config.queries) if test else ("data.shot", config.shot)
        return few_shot_rows(rows, category, chosen, count, config.fold, seed, setting, store.registry.categories)
    if test:
        return rows
    kept = ~held_out(rows, category, config.hold_out, seed)
    # A share of what is left, so that no category loses all of it to validation.
    return rows[kept][shared(rows[kept], category[kept], config.share, seed)]


def _points(
    store: FeatureStore,
    config: DataConfig,
    record: dict[str, Any],
    points: Points,
    array: zarr.Array[Any],
    rows: NDArray[np.int64],
    column: str = "",
) -> Tensor:
    """[N, P, 3] what `array` holds of all points of each row, or of its farthest where `config.pool` asks for fewer
    than there are.
    """
    what = "colours of points" if column else "points"
    if config.dense and config.loader == "stream":
        return _column(store, config, record, what, points.key, array, rows)[:, : config.pool]
    if 0 < config.pool < array.shape[1] or config.dense:  # what is lifted lies in that order
        return ordered(array, farthest_order(points, rows, config.pool), rows, what)
    return _column(store, config, record, what, points.key, array, rows, column=column)


def _column(
    store: FeatureStore,
    config: DataConfig,
    record: dict[str, Any],
    what: str,
    key: str,
    array: zarr.Array[Any],
    rows: NDArray[np.int64],
    lanes: int = 0,
    column: str = "",
) -> Tensor:
    """Rows of a column, [N, ...] or behind its axis of lanes: mapped from the trainer's copy, or on the meta device.

    `column` is its name, where it is not the first that is copied of its key.
    """
    if config.loader == "stream":
        check_finite(store, key, array, rows, what, bool(lanes))
        shape = (*array.shape[:lanes], len(rows), *array.shape[lanes + 1 :])
        return torch.empty(shape, dtype=getattr(torch, str(array.dtype)), device="meta")
    held = {"rows": record["rows"], "key": key, "digest": store.digest(key)} | ({"column": column} if column else {})
    return torch.from_numpy(cached_array(store.path / "cache", held, array, rows, what, lanes))


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
            there = [each for each in splits if each in known] or [*({"train"} & {*known}), *known][:1]
            raise UserError(
                f"{store.path}: ref {ref.name!r} has no split {split!r}; it has {', '.join(known)}. A store made with "
                f"--limit may lack one: name those there are (--set 'data.splits={json.dumps(there)}', or --split)"
            )
    return mine & np.isin(split_of, splits), np.unique(registry.category[mine])


def _text_targets(text: Text, rows: NDArray[np.int64], categories: NDArray[np.int64], every: bool) -> TextTargets:
    captions = -np.sort(-text.captions[rows], axis=1)  # the missing ones, -1, stand last
    feat, prompts, own = map(torch.from_numpy, (text.feat, text.class_prompts[categories], captions))
    return TextTargets(feat, prompts, own, every)


def taught_rows(
    store: FeatureStore, rows: NDArray[np.int64], stored: Sequence[Targets | Text], config: DataConfig
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Those of some finished rows that every teacher of targets "one" has a feature of in each of the draws, and some
    teacher has anything of; and how many were left out for the lack of which. UserError where none is left.
    """
    lacking: dict[str, NDArray[np.bool_]] = {}
    nothing = np.full(len(rows), bool(stored))
    for asked, each in zip(config.teachers, stored, strict=True):
        if isinstance(each, Text):
            # A single target is a prompt of the class, where there is no caption.
            own = asked.targets == "all" and config.captions == "shape"
            nothing &= np.all(each.captions[rows] < 0, axis=1) & own
            continue
        there = read_present(each, rows)
        if there is None:
            nothing[:] = False
            continue
        lanes = [*config.draws] if config.draws and each.of == "image" else slice(None)
        some = np.any(there[lanes], axis=2)
        nothing &= ~np.any(some, axis=0)
        if asked.targets == "one":
            lacking[asked.teacher] = np.any(~some, axis=0)
    lacking["any teacher"] = np.all([nothing, *(~lacks for lacks in lacking.values())], axis=0)
    left_out = {name: int(lacks.sum()) for name, lacks in lacking.items() if lacks.any()}
    kept: NDArray[np.bool_] = np.all([~lacks for lacks in lacking.values()], axis=0)
    if not kept.any():
        names = " and of ".join(left_out)
        raise UserError(
            f"{store.path}: of {len(rows)} finished rows of {', '.join(config.splits)} none has a feature of {names}: "
            "all are absent in the data set's files; name other teachers with data.teachers"
        )
    return rows[kept], left_out


def _check_settings(
    config: DataConfig, num_points: int, stored: Sequence[Targets | Text], rows: NDArray[np.int64]
) -> None:
    if config.num_points > num_points:
        raise UserError(
            f"data.num_points: {config.num_points} asked for, the store holds {num_points} a shape; lower it, or raise "
            "sample.num_points in the manifest"
        )
    for each in stored:
        if isinstance(each, Text) or each.of == "text":
            continue
        num_draws, _, num_views, _ = each.feat.shape
        if not config.online and config.draws and max(config.draws) >= num_draws:
            raise UserError(
                f"data.draws: no draw {max(config.draws)}; the store holds 0 to {num_draws - 1}; set features.draws = "
                f"{max(config.draws) + 1} in its manifest (the clean picture is one) and run `recon-pipeline features`"
            )
        if config.views > num_views:
            raise UserError(f"data.views: {config.views} asked for, the store holds {num_views} a shape")
    own = any((each.captions[rows] >= 0).any() if isinstance(each, Text) else each.of == "text" for each in stored)
    if config.captions != "class" and not own:
        raise UserError(f'data.captions: no shape has a caption of its own for {config.captions!r}; use "class"')

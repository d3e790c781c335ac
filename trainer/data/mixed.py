"""Several stores in one run: each batch takes its samples from each of them by its share.

Each store goes through epochs of its own, in its own order, and what is drawn of a row is what a run on that store
alone draws of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import Batch, Batches, Samples, count_steps, joined
from recon.trainer.data.colors import DEFAULT
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.data.stream import StreamBatches
from recon.trainer.model.dense import Dense
from recon.trainer.model.teaching import Teacher

COUNTS = ("num_rows", "num_rows_in_splits")
"""Of a record, what of a mixed run is the sum of all its stores'."""


@dataclass(frozen=True)
class Mixed:
    """The data sets of several stores, which are taught by the same teachers; their samples stand one store behind the
    other where they are numbered.
    """

    parts: tuple[Dataset, ...]
    shares: tuple[int, ...]
    """Of every sum(shares) samples so many are of each"""
    record: dict[str, Any]
    """As of `Dataset`, of the first, with the counts of all; "shares", and under "stores" the records of all"""
    categories: list[str]
    """Of all, by name, sorted"""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """As of `Dataset`."""
        return self.parts[0].teachers

    @property
    def dense(self) -> tuple[Dense, ...]:
        """None: features of points are of one store."""
        return ()

    @cached_property
    def row(self) -> Tensor:
        """[N] int64, the row in its store."""
        return torch.cat([part.row for part in self.parts])

    @cached_property
    def uids(self) -> list[str]:
        """[N] what its store calls a row's shape."""
        return [uid for part in self.parts for uid in part.uids]


def load_mixed(
    stores: Sequence[FeatureStore], config: DataConfig, color: bool = False, default_color: float = DEFAULT
) -> Mixed:
    """The data sets of two or more stores, each as `load_dataset` has it.

    UserError as there, for settings that fit other numbers of stores, a store that stands there twice, and a teacher
    that is not the same in all.
    """
    if config.online:
        raise UserError("data.online: runs the teachers of one store; of several train on the stored features")
    if config.dense:
        raise UserError("data.dense: takes features of points from one store; leave it out, or train on one")
    for name in ("shares", "refs"):
        given = getattr(config, name)
        if given and len(given) != len(stores):
            raise UserError(
                f"data.{name}: {len(given)} given for {len(stores)} stores; give each its own, in their order"
            )
    refs = [
        store.ref(name or None).name
        for store, name in zip(stores, config.refs or [config.ref] * len(stores), strict=True)
    ]
    names = [(store.path.resolve(), ref) for store, ref in zip(stores, refs, strict=True)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--store {twice[0]}: ref {twice[1]!r} stands there twice; name each once, with its share")
    parts = []
    for store, ref in zip(stores, refs, strict=True):
        try:
            part = load_dataset(store, replace(config, ref=ref, refs=()), False, color, default_color)
        except UserError as error:
            if str(store.path) in str(error):
                raise
            raise UserError(f"{store.path}: {error}") from error
        parts.append(part)
    for store, part in zip(stores[1:], parts[1:], strict=True):
        _check_teachers(stores[0], parts[0], store, part)
    shares = config.shares or tuple(map(len, parts))
    records = [part.record for part in parts]
    left_out = _sums([record.get("left_out", {}) for record in records])
    record = records[0] | _sums([{name: each[name] for name in COUNTS} for each in records])
    record |= {"left_out": left_out} if left_out else {}
    categories = sorted({name for part in parts for name in part.categories})
    return Mixed(tuple(parts), shares, record | {"shares": [*shares], "stores": records}, categories)


def _sums(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Of each name that any has."""
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _check_teachers(store: FeatureStore, first: Dataset, other: FeatureStore, second: Dataset) -> None:
    """UserError unless two data sets' teachers are the same: by the recipes of features that were computed, of those
    that came with data sets by the model they claim, and by width alone where one was computed and one was not.
    """
    for a, b in zip(first.teachers, second.teachers, strict=True):
        ours, theirs = (part.record["teachers"][a.name] for part in (first, second))
        stored = [each["recipe"].get("kind") == "stored" for each in (ours, theirs)]
        model = [each["recipe"].get("model") for each in (ours, theirs)]
        same = ours["recipe"] == theirs["recipe"] if not any(stored) else True
        if all(stored):
            same = bool(model[0]) and model[0] == model[1]
        if a.dim != b.dim or not same:
            told = [
                f"{each['teacher']!r} ({teacher.dim}-d{f', {name}' if name else ''}) in {where.path}"
                for each, teacher, name, where in zip((ours, theirs), (a, b), model, (store, other), strict=True)
            ]
            mend = "name one that both stores have"
            if all(stored) and not all(model):
                mend = "say by `model` of [[features.stored]] in the manifests what made them"
            raise UserError(f"data.teachers: {a.name!r} is {' and '.join(told)}, not known to be one teacher; {mend}")


class Shares:
    """From which of several stores samples come: exact in every sum(shares) of them, and spread evenly between."""

    def __init__(self, shares: Sequence[int]) -> None:
        common = gcd(*shares)
        self._shares = np.array(shares, np.int64) // common
        # A store's j-th sample of n is due at (j + 1/2) / n of the whole.
        due = [(np.arange(count) + 0.5) / count for count in self._shares.tolist()]
        store = np.repeat(np.arange(len(shares)), self._shares)[np.concatenate(due).argsort(kind="stable")]
        counts = np.zeros((len(store) + 1, len(shares)), np.int32)
        counts[np.arange(len(store)) + 1, store] = 1
        self._before = counts.cumsum(axis=0, dtype=np.int32)

    def before(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """[T, stores] how many of the first `samples` [T] come from each."""
        whole, rest = np.divmod(samples, len(self._before) - 1)
        found: NDArray[np.int64] = whole[:, None] * self._shares + self._before[rest]
        return found


@lru_cache(maxsize=256)
def interleaved(counts: tuple[int, ...]) -> Tensor:
    """[sum(counts)] an order of samples that stand there store by store in which the stores are spread evenly."""
    due = [(np.arange(count) + 0.5) / max(count, 1) for count in counts]
    return torch.from_numpy(np.concatenate(due).argsort(kind="stable"))


class MixedBatches:
    """The loader over a `Mixed`, of either `data.loader`.

    A batch's samples of each store are the next of that store's own sequence of epochs; all batches are full. Of
    several ranks each takes every world_size-th of a batch's samples, sorted by store, so all see all stores. An epoch
    is as many samples as all stores have.
    """

    def __init__(
        self,
        dataset: Mixed,
        config: DataConfig,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_size counts the samples of all ranks. UserError if not one batch comes of the data."""
        self.steps_per_epoch = count_steps(len(dataset), batch_size, config)
        self.dataset, self.config, self.device = dataset, config, device
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._shares = Shares(dataset.shares)
        self._taken = np.zeros((1, len(dataset.parts)), np.int64)
        self.loaders: list[Batches | StreamBatches] = []
        whole = sum(dataset.shares)
        for part, share in zip(dataset.parts, dataset.shares, strict=True):
            own = replace(config, buffer_gb=config.buffer_gb * share / whole, shares=(), refs=())
            if config.loader == "stream":  # a rank's sequence is its own piece of every epoch
                self.loaders.append(StreamBatches(part, own, world_size, seed, device, rank, world_size))
            else:
                self.loaders.append(Batches(part, own, 1, seed, device))
        self._labels = [
            torch.tensor([dataset.categories.index(name) for name in part.categories], device=loader.dataset.row.device)
            for part, loader in zip(dataset.parts, self.loaders, strict=True)
        ]
        self._counts = [self._most(place) for place in range(len(dataset.teachers))]

    def samples(self, step: int) -> Tensor:
        """[B] a step's samples, in its batch's order, as indices into the data set."""
        starts = np.cumsum([0, *map(len, self.dataset.parts)]).tolist()
        parts = [
            loader.indices(places) + start
            for loader, places, start in zip(self.loaders, self._places(step), starts, strict=False)
        ]
        return torch.cat(parts)[interleaved(tuple(map(len, parts)))]

    def batch(self, step: int) -> Batch:
        """The batch of a step counted from 0 over all epochs."""
        (batch,) = self.iterate(step, step + 1)
        return batch

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps start to stop, prepared ahead where they come from the host's memory or the disk."""
        with ExitStack() as stack:
            drawn: list[Iterator[Samples]] = []
            for number, loader in enumerate(self.loaders):
                places = self._sequence(number, start, stop)
                if isinstance(loader, StreamBatches):
                    end = self._places(stop - 1)[number].stop
                    drawn.append(stack.enter_context(closing(loader.drawn(places, end))))
                else:
                    drawn.append(loader.drawn(places))
            for parts in zip(*drawn, strict=True):
                yield self._mixed(parts).to_batch(self.config, self.device, self.dataset.parts[0].default_color)

    def _sequence(self, number: int, start: int, stop: int) -> Iterator[range]:
        return (self._places(step)[number] for step in range(start, stop))

    def _places(self, step: int) -> list[range]:
        """Where a step's samples of this rank stand in the sequence of each store."""
        before = self._shares.before(np.array([step, step + 1]) * self.batch_size)
        counts = np.diff(before, axis=0)
        lead = self._lead(counts)[0].tolist()
        if self.config.loader == "stream":
            first = self._taken_before(step)
            return [
                range(a, a + len(range(skip, count, self.world_size)))
                for a, skip, count in zip(first, lead, counts[0].tolist(), strict=True)
            ]
        return [range(a + skip, b, self.world_size) for a, b, skip in zip(*before.tolist(), lead, strict=True)]

    def _lead(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """[T, stores] the first of each store's samples in a batch that is this rank's, of `counts` [T, stores]."""
        found: NDArray[np.int64] = (self.rank - (counts.cumsum(axis=1) - counts)) % self.world_size
        return found

    def _taken_before(self, step: int) -> list[int]:
        """How many samples of each store this rank has had before a step."""
        if step >= len(self._taken):
            steps = np.arange(max(1024, 2 * step) + 1)
            counts = np.diff(self._shares.before(steps * self.batch_size), axis=0)
            own = np.maximum(-(-(counts - self._lead(counts)) // self.world_size), 0)
            self._taken = np.concatenate([np.zeros_like(own[:1]), own.cumsum(axis=0)])
        found: list[int] = self._taken[step].tolist()
        return found

    def _most(self, place: int) -> int:
        """Of a teacher with several targets the most that any store has; 0 without, and where all are always there."""
        found = [loader.dataset.targets[place] for loader in self.loaders]
        counts = [target.shape(self.config)[0] for target in found if len(target.shape(self.config)) == 2]
        masked = any(target.masked(self.config) for target in found) or len({*counts}) > 1
        return max(counts, default=0) if masked else 0

    def _mixed(self, parts: Sequence[Samples]) -> Samples:
        """One store's samples after the other's, in the order of the batch."""
        alike = []
        for part, labels in zip(parts, self._labels, strict=True):
            padded = self._padded(replace(part, labels=labels[part.labels]))
            alike.append(padded.map(lambda tensor: tensor.to(self.device, non_blocking=True)))
        order = interleaved(tuple(map(len, parts))).to(self.device)
        return joined(alike).map(lambda tensor: tensor[order])

    def _padded(self, samples: Samples) -> Samples:
        """With as many targets as the other stores have, of which those that are not its own are absent."""
        targets, present = [*samples.targets], [*samples.present]
        for place, most in enumerate(self._counts):
            if most:
                target, there = targets[place], present[place]
                there = torch.ones_like(target[..., 0], dtype=torch.bool) if there is None else there
                lacking = most - target.shape[1]
                targets[place], present[place] = F.pad(target, (0, 0, 0, lacking)), F.pad(there, (0, lacking))
        return replace(samples, targets=tuple(targets), present=tuple(present))

"""The loader for more than memory holds: the store's shards in a new order every epoch, through a bounded buffer."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.machine import memory_bytes
from recon.pipeline.store.shards import read_rows, shard_rows
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import Batch, Samples, by_epoch, count_steps, draw, joined, move_names, pinned, workers
from recon.trainer.data.dataset import Dataset
from recon.trainer.data.dense import DenseTargets
from recon.trainer.data.targets import ImageTargets, TextTargets
from recon.trainer.data.transforms import random_bits, stream

if TYPE_CHECKING:
    import zarr

Key = tuple[int, int]
"""Epoch, and number of the window in it."""


class StreamBatches:
    """The loader over a `Dataset` that is still in the store (`data.loader = "stream"`).

    An epoch puts the blocks of rows that whole shards hold into a random order and cuts that sequence of rows into one
    piece a rank. A rank goes through its piece in windows of consecutive blocks, as many as `data.buffer_gb` holds
    samples of, and shuffles the rows inside each. All this is a function of seed, epoch and rank, and what is drawn of
    a row is what `Batches` draws of it. A block is read once an epoch (twice where two ranks share it), the samples
    are drawn as it is read, and the rest of it is let go of. Steps, and a step's samples a rank, are as many as there.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_size counts the samples of all ranks. UserError if not one batch comes of the data."""
        assert dataset.stored is not None, "a data set of loader map"
        self.steps_per_epoch = count_steps(len(dataset), batch_size, config)
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, device
        self.local_size = len(range(rank, batch_size, world_size))
        used = min(len(dataset), self.steps_per_epoch * batch_size)
        full, last = divmod(used, batch_size)
        counts = [
            full * len(range(r, batch_size, world_size)) + len(range(r, last, world_size)) for r in range(rank + 1)
        ]
        self._piece, self._length = slice(sum(counts[:rank]), sum(counts)), counts[rank]
        stored = dataset.stored
        shards = [shard_rows(stored.xyz), *(shard_rows(feat, 0) for feat in stored.feats.values())]
        shards += [shard_rows(each) for each in (stored.color, stored.order, *stored.lifted) if each is not None]
        self.block_rows = math.lcm(*shards)
        sample_bytes = sum(tensor.nbytes for tensor in self._allocate(1).tensors())
        self.window_rows = int(config.buffer_gb * 1e9) // sample_bytes
        self._check_memory(sample_bytes)
        self._windows_of = lru_cache(maxsize=2)(self._plan)
        self._window = lru_cache(maxsize=2)(self._read)

    def places(self, step: int) -> range:
        """Where a step's samples stand in the rank's sequence of all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        first, end = epoch * self._length + index * self.local_size, (epoch + 1) * self._length
        return range(first, min(first + self.local_size, end))

    def samples(self, step: int) -> Tensor:
        """[B] a step's samples, in its batch's order, as indices into the data set."""
        return self.indices(self.places(step))

    def indices(self, places: range) -> Tensor:
        """[B] the samples at some places of the rank's sequence of all epochs."""
        parts = [self._shuffled(key)[start:stop] for key, start, stop in self._needed(places)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Batch:
        """The batch of a step counted from 0 over all epochs; reads the one or two windows it lies in."""
        samples: Samples = next(self.dataset.teach(iter([self._assemble(self.places(step), self._window)])))
        return samples.to_batch(self.config, self.device, self.dataset.default_color)

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps start to stop; the next window is read while this one is used.

        UserError for a damaged shard, when the windows before it are used up.
        """
        for samples in self.dataset.teach(self.gathered(start, stop)):
            yield samples.to_batch(self.config, self.device, self.dataset.default_color)

    def gathered(self, start: int, stop: int) -> Generator[Samples, None, None]:
        """`iterate` before the arithmetic: the steps' samples on the host."""
        return self.drawn(map(self.places, range(start, stop)), self.places(stop - 1).stop)

    def drawn(self, places: Iterable[range], end: int) -> Generator[Samples, None, None]:
        """The samples at each of some places of the rank's sequence, ascending, the last before `end`."""
        closed = threading.Event()
        ahead: dict[Key, Future[Samples]] = {}
        with workers(1) as pool:
            try:
                for each in places:
                    wanted = [key for key, _, _ in self._needed(each)]
                    # Two at a time are enough; more are held only where a step's samples lie in more.
                    if len(wanted) == 1 and (following := self._following(wanted[0], end)):
                        wanted.append(following)
                    for key in [key for key in ahead if key not in wanted]:
                        del ahead[key]
                    for key in wanted:
                        if key not in ahead:
                            ahead[key] = pool.submit(self._read, key, closed)
                    yield self._assemble(each, lambda key: ahead[key].result())
            finally:
                closed.set()

    def _check_memory(self, sample_bytes: int) -> None:
        """UserError where the two windows held at a time are more than this process may take."""
        held = 2 * min(self.window_rows, self._piece.stop - self._piece.start) * sample_bytes
        if held > (free := memory_bytes()):
            raise UserError(
                f"data.buffer_gb {self.config.buffer_gb:g}: two such buffers hold {held / 1e9:.3g} GB and this process "
                f"may take {free / 1e9:.3g} GB; begin a run with a lower one, or free memory"
            )

    def _assemble(self, places: range, window: Callable[[Key], Samples]) -> Samples:
        # Copied, for a view would keep its whole window for as long as anybody keeps the batch.
        parts = [window(key).part(start, stop).map(Tensor.clone) for key, start, stop in self._needed(places)]
        # An epoch's last samples can be fewer than the ranks.
        return pinned(joined(parts or [self._allocate(0)]), self.device)

    def _needed(self, places: range) -> list[tuple[Key, int, int]]:
        """The windows some places of the sequence lie in, and from where to where."""
        needed = []
        for epoch, inside in by_epoch(places, self._length) if places else ():
            start, stop = inside.start, inside.stop
            for number, rows in enumerate(self._windows_of(epoch)):
                if start < len(rows) and stop > 0:
                    needed.append(((epoch, number), max(start, 0), min(stop, len(rows))))
                start, stop = start - len(rows), stop - len(rows)
        return needed

    def _following(self, key: Key, end: int) -> Key | None:
        """The window after one, if places before `end` lie in it or behind it."""
        epoch, number = key
        following = (epoch, number + 1) if number + 1 < len(self._windows_of(epoch)) else (epoch + 1, 0)
        return following if following <= self._needed(range(end - 1, end))[0][0] else None

    def _plan(self, epoch: int) -> list[Tensor]:
        """Each window's indices into the data set, block by block."""
        block = self.dataset.row // self.block_rows
        # SplitMix64 gives different blocks different bits, so sorting rows by them keeps every block together.
        order = random_bits(stream(self.seed, "blocks", epoch), block).argsort(stable=True)[self._piece]
        ends = [*(block[order].diff().nonzero()[:, 0] + 1).tolist(), len(order)]
        edges = [0]
        for begin, end in pairwise([0, *ends]):
            # A window holds a batch at the least, so that no batch lies in three of them.
            if end - edges[-1] > self.window_rows and begin - edges[-1] >= self.local_size:
                edges.append(begin)
        return [order[start:stop] for start, stop in pairwise([*edges, len(order)]) if stop > start]

    def _shuffled(self, key: Key) -> Tensor:
        """A window's indices into the data set in the order they are used in."""
        epoch, number = key
        indices = self._windows_of(epoch)[number]
        return indices[random_bits(stream(self.seed, "order", epoch), self.dataset.row[indices]).argsort()]

    def _read(self, key: Key, closed: threading.Event | None = None) -> Samples:
        """A window's samples in the order they are used in; cut short once `closed` is set."""
        epoch, number = key
        indices = self._windows_of(epoch)[number]
        rows = self.dataset.row[indices]
        place = random_bits(stream(self.seed, "order", epoch), rows).argsort().argsort()
        window = self._allocate(len(indices))
        ends = (rows // self.block_rows).diff().nonzero()[:, 0] + 1
        for part in torch.arange(len(indices)).tensor_split(ends):
            if closed is not None and closed.is_set():
                break
            drawn = self._read_block(indices[part], epoch)
            for ours, theirs in zip(window.tensors(), drawn.tensors(), strict=True):
                ours[place[part]] = theirs
        return window

    def _read_block(self, indices: Tensor, epoch: int) -> Samples:
        """The samples of rows of one block. UserError for a damaged shard or features that are not finite."""
        data, stored = self.dataset, self.dataset.stored
        assert stored is not None
        rows = data.row[indices].numpy()
        targets = list(data.targets)
        for place, feat in stored.feats.items():
            # Only the draws that are chosen among are read, so here they are all there is; none are where teachers run.
            target = data.targets[place]
            assert isinstance(target, ImageTargets)
            lanes = [*target.lanes(self.config)]
            read = torch.from_numpy(np.stack([read_rows(feat, rows, lane) for lane in lanes]))
            present = None if target.present is None else target.present[lanes][:, indices]
            targets[place] = replace(target, feat=read, present=present)
        for place, target in enumerate(targets):
            if isinstance(target, TextTargets):
                targets[place] = replace(target, captions=target.captions[indices])
        block = replace(
            data,
            xyz=self._read_points(stored.xyz, rows),
            color=None if stored.color is None else self._read_points(stored.color, rows),
            targets=tuple(targets),
            lifted=tuple(DenseTargets(torch.from_numpy(read_rows(feat, rows))) for feat in stored.lifted),
            category=data.category[indices],
            row=data.row[indices],
        )
        config = self.config if self.config.online else replace(self.config, draws=())
        drawn = draw(block, torch.arange(len(rows)), config, self.seed, epoch)
        images = {f"features of {data.teachers[place].name}": drawn.targets[place] for place in stored.feats}
        lifted = {f"features of {dense.name}": values for dense, values in zip(data.dense, drawn.dense, strict=True)}
        for what, values in {"points": drawn.points, **images, **lifted}.items():
            if not values.isfinite().all():
                raise UserError(f"{what}: not finite in the store's rows from {rows[0]} on; compute them again")
        return drawn

    def _read_points(self, array: zarr.Array[Any], rows: NDArray[np.int64]) -> Tensor:
        """[B, P, 3] of what a column holds of points, those that samples are drawn from."""
        values, stored = read_rows(array, rows), self.dataset.stored
        if stored is not None and stored.order is not None:
            order = read_rows(stored.order, rows)[:, : self.config.pool].astype(np.int64)
            values = np.take_along_axis(values, order[..., None], axis=1)
        return torch.from_numpy(values)

    def _allocate(self, count: int) -> Samples:
        config, data = self.config, self.dataset
        shapes = [(count, *each.shape(config)) for each in data.targets]
        several = [each.masked(config) for each in data.targets]
        return Samples(
            points=torch.empty(count, config.num_points, 3),
            moves=torch.empty(count, len(move_names(config)), dtype=torch.float64),
            labels=torch.empty(count, dtype=torch.int64),
            rows=torch.empty(count, dtype=torch.int64),
            targets=tuple(torch.empty(s, dtype=each.dtype) for s, each in zip(shapes, data.targets, strict=True)),
            present=tuple(
                torch.empty(shape[:2], dtype=torch.bool) if masked else None
                for shape, masked in zip(shapes, several, strict=True)
            ),
            color=None if data.color is None else torch.empty(count, config.num_points, 3, dtype=torch.uint8),
            dense=tuple(torch.empty(count, config.num_points, each.dim, dtype=torch.half) for each in data.dense),
        )

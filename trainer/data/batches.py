"""Samples and batches: what an epoch draws of a row, and the loader over memory-mapped or device-resident rows."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.machine import cores
from recon.trainer.config import DataConfig
from recon.trainer.data.colors import DEFAULT
from recon.trainer.data.dataset import Dataset
from recon.trainer.data.points import choose_points, chosen_points, in_frame, scale_translate, student_colors
from recon.trainer.data.transforms import normal_of, random_bits, random_uniform, rotate_y, stream, tilt

S = TypeVar("S")
T = TypeVar("T")

DRAWS = ("points", "draw", "view", "angle", "prompt", "caption", "augmentation")
"""Names of the streams a sample's random bits come from."""
MOVES = ("scale x", "scale y", "scale z", "shift x", "shift y", "shift z")
"""Those besides where samples are scaled and shifted."""
TILTS = ("tilt x", "tilt y", "tilt z")
"""Those besides where samples are tilted."""
_THREADS = 2


@dataclass(frozen=True)
class Batch:
    """Model inputs on the device."""

    points: Tensor
    """[B, num_points, 3] float32, centred, scaled, rotated; of a model with colours [B, num_points, 6], sRGB in 0..1
    behind the places"""
    targets: tuple[Tensor, ...]
    """[B, D] float32 of each teacher, [B, T, D] of one with targets "all"; of segmentation [B, num_points] int64, the
    points' parts"""
    labels: Tensor
    """[B] int64 category"""
    rows: Tensor
    """[B] int64 rows of the store"""
    present: tuple[Tensor | None, ...] = ()
    """Beside `targets`, [B, T] bool: which of several are there; None: all"""
    dense: tuple[Tensor, ...] = ()
    """[B, num_points, D] float16 of each teacher of `data.dense`: of each point, zero where there is none"""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Batch:
        """Samples start to stop."""
        cut = slice(start, stop)
        targets = tuple(target[cut] for target in self.targets)
        present = tuple(None if there is None else there[cut] for there in self.present)
        dense = tuple(feat[cut] for feat in self.dense)
        return Batch(self.points[cut], targets, self.labels[cut], self.rows[cut], present, dense)


@dataclass(frozen=True)
class Samples:
    """What an epoch draws of some rows, as the store holds it: batches before their arithmetic."""

    points: Tensor
    """[B, num_points, 3] float32, raw"""
    moves: Tensor
    """[B, M] float64 in [0, 1), by `move_names`: the turn about y; where samples are scaled and shifted three factors
    and three shifts; where they are tilted three angles"""
    labels: Tensor
    """[B] int64 category"""
    rows: Tensor
    """[B] int64 rows of the store"""
    targets: tuple[Tensor, ...]
    """[B, D] or [B, T, D] float16 of each teacher; of one that is still to run, what it is to be given"""
    present: tuple[Tensor | None, ...]
    """As of `Batch`"""
    color: Tensor | None
    """[B, num_points, 3] uint8, linear RGB times 255; None: not asked for"""
    dense: tuple[Tensor, ...] = ()
    """As of `Batch`"""

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> tuple[Tensor, ...]:
        """All there are, in the fields' order."""
        several = (each for each in (*self.present, self.color) if each is not None)
        return self.points, self.moves, self.labels, self.rows, *self.targets, *several, *self.dense

    def of(self, tensors: Iterable[Tensor]) -> Samples:
        """Others in the place of its tensors, in that order."""
        given = iter(tensors)

        def put(held: Tensor | None) -> Tensor | None:
            return None if held is None else next(given)

        points, moves, labels, rows = islice(given, 4)
        targets = tuple(islice(given, len(self.targets)))
        present, color = tuple(map(put, self.present)), put(self.color)
        return Samples(points, moves, labels, rows, targets, present, color, tuple(given))

    def map(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """The same with every tensor changed."""
        return self.of(map(change, self.tensors()))

    def part(self, start: int, stop: int) -> Samples:
        """Samples start to stop, without copying."""
        return self.map(lambda tensor: tensor[start:stop])

    def to_batch(self, config: DataConfig, device: torch.device, default_color: float = DEFAULT) -> Batch:
        """The arithmetic, on the device. A shape without colour has the default where colours are asked for."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        points = in_frame(moved.points, config.normalize)
        if config.tilt:
            points = tilt(points, config.tilt * normal_of(moved.moves[:, -len(TILTS) :]))
        if config.rotate:
            points = rotate_y(points, moved.moves[:, 0] * (2 * math.pi))
        if moves(config):
            points = scale_translate(points, moved.moves[:, 1:4], moved.moves[:, 4:7], config)
        if moved.color is not None:
            points = torch.cat([points, student_colors(moved.color, default_color)], dim=2)
        targets = tuple(target.float() if target.is_floating_point() else target.long() for target in moved.targets)
        return Batch(points, targets, moved.labels, moved.rows, moved.present, moved.dense)


class Batches:
    """The loader over a `Dataset` that is mapped or lies on the device.

    An epoch is a permutation of all rows; `rank` of `world_size` takes every world_size-th sample of each batch, so
    together they see what one process would. What is drawn of a sample depends on (seed, epoch, row in the store).
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
        self.steps_per_epoch = count_steps(len(dataset), batch_size, config)
        self._used = min(len(dataset), self.steps_per_epoch * batch_size)
        self.resident = device.type == "cpu" or _fits(dataset, config, device)
        self.dataset = dataset.to(device) if self.resident else dataset
        self.config, self.batch_size, self.seed, self.device = config, batch_size, seed, device
        self.rank, self.world_size = rank, world_size
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def places(self, step: int) -> range:
        """Where a step's samples stand in the sequence of all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        first, end = epoch * self._used + index * self.batch_size, (epoch + 1) * self._used
        return range(first + self.rank, min(first + self.batch_size, end), self.world_size)

    def samples(self, step: int) -> Tensor:
        """[B] a step's samples, in its batch's order, as indices into the data set."""
        return self.indices(self.places(step))

    def indices(self, places: range) -> Tensor:
        """[B] the samples at some places of the sequence of all epochs."""
        return torch.cat([self._order(epoch)[inside] for epoch, inside in by_epoch(places, self._used)])

    def batch(self, step: int) -> Batch:
        """The batch of a step counted from 0 over all epochs."""
        samples: Samples = next(self.dataset.teach(iter([self.gather(step)])))
        return samples.to_batch(self.config, self.device, self.dataset.default_color)

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps start to stop; those gathered on the host are prepared ahead."""
        for samples in self.dataset.teach(self.drawn(map(self.places, range(start, stop)))):
            yield samples.to_batch(self.config, self.device, self.dataset.default_color)

    def drawn(self, places: Iterable[range]) -> Iterator[Samples]:
        """The samples at each of some places of the sequence; those gathered on the host are prepared ahead."""
        return map(self.pick, places) if self.resident else in_threads(self.pick, places)

    def gather(self, step: int) -> Samples:
        """A step's samples, where the data set lies; from the host to a GPU in pinned memory."""
        return self.pick(self.places(step))

    def pick(self, places: range) -> Samples:
        """The same of the samples at some places of the sequence."""
        parts = [
            draw(self.dataset, self._order(epoch)[inside], self.config, self.seed, epoch)
            for epoch, inside in by_epoch(places, self._used)
        ]
        return joined(parts) if self.resident else pinned(joined(parts), self.device)

    def _shuffle(self, epoch: int) -> Tensor:
        return random_bits(stream(self.seed, "order", epoch), self.dataset.row).argsort()


def by_epoch(places: range, length: int) -> list[tuple[int, slice]]:
    """Places in a sequence of epochs of one length, ascending, as those of each epoch; no place is none of one."""
    found = []
    last = places[-1] if places else places.start
    for epoch in range(places.start // length, last // length + 1):
        begin = epoch * length
        # Of those before `at` there are so many.
        first, stop = (len(range(places.start, min(at, places.stop), places.step)) for at in (begin, begin + length))
        here = places[first:stop]
        found.append((epoch, slice(here.start - begin, here.stop - begin, here.step)))
    return found


def count_steps(num_rows: int, batch_size: int, config: DataConfig) -> int:
    """Batches of an epoch. UserError where there is none."""
    count = num_rows / batch_size
    steps = math.floor(count) if config.drop_last else math.ceil(count)
    if steps == 0:
        raise UserError(
            f"optim.batch_size {batch_size} is more than the {num_rows} rows there are: "
            "lower it or set data.drop_last=false"
        )
    return steps


def draw(data: Dataset, samples: Tensor, config: DataConfig, seed: int, epoch: int) -> Samples:
    """What an epoch draws of `samples` [B], indices into the data set: a function of seed, epoch and row alone."""
    drawn = move_names(config)
    names = (*DRAWS, *drawn[1:])
    keys = torch.tensor([[stream(seed, name, epoch)] for name in names], device=samples.device)
    # All in one call: in a batch of few samples, calls are what costs.
    bits = dict(zip(names, random_bits(keys, data.row[samples]), strict=True))
    category = data.category[samples]
    chosen = choose_points(data.xyz.shape[1], samples, bits["points"], config.num_points)
    points = chosen_points(data.xyz, chosen, config.num_points)
    if data.frame is not None:
        frame = data.frame[samples, None]
        points = (points - frame[..., :3]) / frame[..., 3:]
    taught = [target.draw(samples, category, config, bits) for target in data.targets]
    color = data.color
    return Samples(
        points=points,
        moves=torch.stack([random_uniform(bits[name]) for name in drawn], dim=1),
        labels=category,
        rows=data.row[samples],
        targets=tuple(target for target, _ in taught),
        present=tuple(present for _, present in taught),
        color=None if color is None else chosen_points(color, chosen, config.num_points),
        dense=tuple(target.draw(samples, config, bits) for target in data.lifted),
    )


def moves(config: DataConfig) -> bool:
    """Whether samples are scaled or shifted."""
    return config.scale != (1.0, 1.0) or config.translate > 0


def move_names(config: DataConfig) -> tuple[str, ...]:
    """The streams of what `Samples.moves` holds, in its order."""
    return ("angle", *(MOVES if moves(config) else ()), *(TILTS if config.tilt else ()))


def joined(parts: Sequence[Samples]) -> Samples:
    """Several of one form, one behind the other; one at the least."""
    if len(parts) == 1:
        return parts[0]
    return parts[0].of(map(torch.cat, zip(*(part.tensors() for part in parts), strict=True)))


def pinned(samples: Samples, device: torch.device) -> Samples:
    """The same in memory a GPU copies from while the host goes on."""
    return samples.map(Tensor.pin_memory) if device.type == "cuda" else samples


def in_threads(function: Callable[[S], T], steps: Iterable[S], threads: int = _THREADS) -> Iterator[T]:
    """`function` of each step, in order, computed a few steps ahead. Torch lets go of the GIL where it copies."""
    count = min(threads, cores())
    with workers(count) as pool:
        ahead: deque[Future[T]] = deque()
        for step in steps:
            ahead.append(pool.submit(function, step))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch computes on one core: its own threads within an operation wait for each other at
    its end, and where the cores are busy with other work, for long.
    """
    inner, ready = torch.get_num_threads(), threading.Barrier(count + 1)

    def alone() -> None:
        torch.get_num_threads()  # a thread takes over the process's number when it first asks, and only then
        torch.set_num_threads(1)
        ready.wait()

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(alone)
        ready.wait()
        torch.set_num_threads(inner)  # the last number set is also that of every thread yet to start
        yield pool


def _fits(dataset: Dataset, config: DataConfig, device: torch.device) -> bool:
    if config.online:  # what is drawn is looked at on the host
        return False
    if config.device_resident != "auto":
        return config.device_resident == "always"
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.num_bytes() * 2 < free
